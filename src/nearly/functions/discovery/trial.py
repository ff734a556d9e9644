"""What a proposed child is worth: its constants fitted, its error on a fine grid; compiled.

One call runs a whole round of a search on one island, so that Python costs nothing. Numba renews
what it has compiled when this file changes, not when `kernels` does: whoever edits that empties
`__pycache__`.
"""

from __future__ import annotations

from typing import NamedTuple, no_type_check

import numba
import numpy as np

from nearly.functions.discovery.double_double import refine, worst
from nearly.functions.discovery.kernels import NEAR_FLOOR, fit
from nearly.functions.discovery.mutation import start_all
from nearly.functions.discovery.selection import AGAIN, COPY, NEW, NOTHING, admit, propose

NEARLY_WHOLE = 1e-7
NOISE = 1e-12  # a float64 error below this may be rounding alone


class Effort(NamedTuple):
    """What a fit may cost.

    `steps` of Gauss-Newton for a new structure from each of its starts: the inherited one and
    `fresh / operations` random ones, but one at least (small structures are few, and all larger
    ones grow from them); `long_steps` for one that is fitted again; `refining` steps in
    double-double where float64 is at its end.
    """

    steps: int = 40
    long_steps: int = 60
    fresh: int = 16
    refining: int = 8


@numba.njit(cache=True, nogil=True)
@no_type_check
def run_round(state, rule, samples, rates, effort, stream, children):
    """Breed, fit and admit so many children."""
    for _ in range(children):
        proposal = propose(state, rule, rates, stream)
        error, high, low = fitted(proposal, samples, rates, effort, stream)
        admit(state, rule, proposal, error, high, low)


@numba.njit(cache=True, nogil=True)
@no_type_check
def fitted(proposal, samples, rates, effort, stream):
    """The error of a proposal and its constants, in two parts; infinite if it stays above its bar.

    A structure is dropped after the first few steps of a start that do not promise to pass the bar.
    """
    operations, left, right = proposal.operations, proposal.left, proposal.right
    constants, bar = proposal.constants, proposal.bar
    low = np.zeros(constants.size)
    if proposal.kind == NOTHING:
        return np.inf, constants, low
    if proposal.kind == COPY or constants.size == 0:
        return worst(operations, left, right, constants, low, samples), constants, low
    steps = effort.long_steps if proposal.kind == AGAIN else effort.steps
    best, found = fit(operations, left, right, constants, samples, bar, steps)
    if proposal.kind == NEW:
        trial = np.empty(constants.size)
        for _ in range(max(1, effort.fresh // operations.size)):
            start_all(trial, rates, stream)
            error, other = fit(operations, left, right, trial, samples, min(bar, best), steps)
            if error < best:
                best, found = error, other
    if not best < max(bar, NOISE):
        return np.inf, found, low
    if best < NEAR_FLOOR:
        best, found, low = refine(operations, left, right, found, low, samples, effort.refining)
    if not best < bar:
        return np.inf, found, low
    error = worst(operations, left, right, found, low, samples)
    if error < bar:
        return error, found, low
    if settle(found, low):
        error = worst(operations, left, right, found, low, samples)
    return error, found, low


@numba.njit(cache=True, nogil=True)
@no_type_check
def settle(high, low):
    """Round the constants that are all but whole numbers; whether there was one.

    A relative error is finite at a zero of the function only if the program is 0 there exactly: a
    logarithm needs x - 1, and a fit, which sees no point that near, leaves 1 + 1e-12.
    """
    found = False
    for k in range(high.size):
        whole = np.round(high[k])
        if whole != 0 and abs(high[k] - whole) + abs(low[k]) < NEARLY_WHOLE:
            high[k], low[k] = whole, 0.0
            found = True
    return found
