"""Random numbers inside compiled code whose state is explicit: a search is its seed, its rounds.

SplitMix64: a counter that is stirred, so that a stream is one 64-bit number, any number is a good
seed, and a run does not depend on where it is executed or on what ran before it.
"""

from __future__ import annotations

from typing import no_type_check

import numba
import numpy as np

_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
_MASK = 2**64 - 1
_S30, _S27, _S31, _S11 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)


@numba.njit(cache=True, nogil=True)
@no_type_check
def stir(word):
    """A permutation of the 64-bit words without visible structure."""
    word = (word ^ (word >> _S30)) * _FIRST
    word = (word ^ (word >> _S27)) * _SECOND
    return word ^ (word >> _S31)


@numba.njit(cache=True, nogil=True)
@no_type_check
def draw(stream):
    """The next 64-bit word of `stream`, an array of one uint64 that is advanced."""
    stream[0] += _STEP
    return stir(stream[0])


@numba.njit(cache=True, nogil=True)
@no_type_check
def uniform(stream):
    """A number in [0, 1) with 53 random bits."""
    return np.float64(draw(stream) >> _S11) * 2.0**-53


@numba.njit(cache=True, nogil=True)
@no_type_check
def below(stream, count):
    """An integer in [0, count)."""
    return np.int64(uniform(stream) * count)


def stream_of(*keys: int) -> np.ndarray:
    """The stream that belongs to some integers: `[seed, island, round]`."""
    word = 0
    for key in keys:
        word = int(stir(np.uint64((word ^ key) + int(_STEP) & _MASK)))
    return np.array([word], dtype=np.uint64)
