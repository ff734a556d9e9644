"""CMA-ES as the paper uses it: a known optimum, the trap of one constant."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nearly.functions.discovery.covariance import fitted, train
from nearly.functions.discovery.kernels import ADD, MUL, target
from nearly.functions.discovery.mutation import PAPER
from nearly.functions.discovery.random_numbers import stream_of
from nearly.functions.discovery.selection import NEW, Proposal
from nearly.functions.function import Function

EXP2 = target(Function("exp2", ("0", "1"), error="absolute"), points=64, fine=64)


def line(*constants: float) -> Proposal:
    """c0 x + c1, or c0 x + x for a single constant."""
    last = -3 if len(constants) == 2 else -1
    return Proposal(
        NEW,
        2,
        np.array([MUL, ADD], np.int8),
        np.array([-1, 0], np.int16),
        np.array([-2, last], np.int16),
        np.array(constants),
        0,
        math.inf,
    )


def optimum() -> float:
    """Half the largest distance of 2^x below its chord: the minimax line's error, by hand."""
    x = -math.log2(math.log(2))
    return (1 + x - 2**x) / 2


def test_finds_the_minimax_line() -> None:
    found = train(line(0.5, 0.5), np.array([0.5, 0.5]), EXP2, stream_of(1))
    assert found[0] == pytest.approx(1, abs=2e-2)
    worst = np.abs(found[0] * EXP2.points + found[1] - EXP2.values).max()
    assert optimum() * 0.98 < worst < optimum() * 1.02


def test_one_constant_is_not_trained_as_in_the_paper() -> None:
    rates = PAPER.rates
    _, drawn = fitted(line(0.5), EXP2, rates, stream_of(2))
    _, again = fitted(line(0.5), EXP2, rates, stream_of(2))
    assert np.array_equal(drawn, again)
    assert 1e-16 <= drawn[0] <= 1  # a start of its sign, untrained: the best would be about 0
