"""The search for the rounding of least error: beams about the best real point, then descents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import islice

import numpy as np

from nearly.functions.lattice.family import Family, Values
from nearly.functions.lattice.grid import Grid, peaks_of
from nearly.functions.lattice.reduced import Lattice

_SHORTLIST = 512  # of its points
_DESCENTS = 3  # from each beam
_SHARES = (0.02, 0.1)  # of the excess of the start that the best may still have
_FINALISTS = 3  # rounded points of each search whose errors are computed anew
_SPACINGS = 6  # choices of the spacings that are tried


def best_rounding(
    family: Family, wanted: Values, naive: Values, reaches: Sequence[float]
) -> Values:
    """The best rounding found, over several choices of the spacings.

    `reaches` are the spacings that a constant may move for as much of a penalty as the error
    there is: infinite where errors are linear in the constants.
    """
    found = {naive: float(family.norms(family.floats(naive))[0])}
    goal = family.floats(wanted)
    for reach in reaches:
        pending = [tuple(family.formats[j].spacing(wanted[j]) for j in family.free)]
        seen: set[Values] = set()
        while pending and len(seen) < _SPACINGS:
            steps = pending.pop(0)
            seen.add(steps)
            near = _neighbours(family, _least(found), steps, goal, reach)
            # A coefficient that left its binade may use the finer or must use the coarser spacing.
            natural = dict.fromkeys(family.spacings(values, steps) for values in near)
            pending += [n for n in natural if n not in seen and n not in pending]
            held = (v for v in near if v not in found and family.holds(v))
            for values in islice(held, _FINALISTS):
                found[values] = float(family.norms(family.floats(values))[0])
    return _least(found)


def _least(found: Mapping[Values, float]) -> Values:
    return min(found, key=lambda values: found[values])


def _neighbours(
    family: Family, start: Values, steps: Values, goal: np.ndarray, reach: float
) -> list[Values]:
    """Lattice points about `start` in order of their (linearised) norm, the best few descended.

    Most are numbers of their formats; some are not.
    """
    base = [round(start[j] / step) for j, step in zip(family.free, steps, strict=True)]
    start = _moved(start, family.free, [m * s for m, s in zip(base, steps, strict=True)])
    errors = family.floats(start)
    lattice = Lattice.reduced(family, start, steps, reach, float(family.norms(errors)[0]))
    ends: list[tuple[float, np.ndarray]] = []
    for beam in _beams(family, lattice, errors, goal):
        ends += _ends(family, lattice, errors, goal, beam)
    ends.sort(key=lambda end: end[0])
    points = [lattice.mantissas(z[None])[0] for _, z in ends]
    values = [[int(m) * s for m, s in zip(point, steps, strict=True)] for point in points]
    return list(dict.fromkeys(_moved(start, family.free, v) for v in values))


def _ends(
    family: Family, lattice: Lattice, errors: np.ndarray, goal: np.ndarray, beam: np.ndarray
) -> Iterator[tuple[float, np.ndarray]]:
    """The best of a beam, and where descents from the very best end, each with its norm."""
    # Where errors are far larger than what rounding does to them, the peaks of all candidates are
    # those of the unrounded one, to the second order; elsewhere a coarse grid tells them apart.
    peaks, lifts = peaks_of(goal, family.grid)
    tops = np.abs(errors[peaks] + lifts + beam @ lattice.basis[peaks].T).max(axis=1)
    coarse = np.maximum(tops, np.abs(errors[::4] + beam @ lattice.basis[::4].T).max(axis=1))
    beam = beam[np.argsort(coarse, kind="stable")[:_SHORTLIST]]
    fits = lattice.fits(beam)
    inside, outside = beam[fits][: _SHORTLIST // 8], beam[~fits][: _SHORTLIST // 32]
    norms = family.norms(errors + inside @ lattice.basis.T)
    for i in np.argsort(norms, kind="stable")[:_DESCENTS]:
        yield lattice.descend(family, errors, inside[i])
    yield from zip(norms.tolist(), inside, strict=True)
    # These show which other spacings to try.
    yield from zip(family.norms(errors + outside @ lattice.basis.T).tolist(), outside, strict=True)


def _moved(values: Values, free: Sequence[int], moved: Sequence[Fraction]) -> Values:
    result = list(values)
    for j, value in zip(free, moved, strict=True):
        result[j] = value
    return tuple(result)


def _beams(
    family: Family, lattice: Lattice, errors: np.ndarray, goal: np.ndarray
) -> Iterator[np.ndarray]:
    """Candidates near the unrounded point, in the mean square and in the shape of the sup norm.

    To first order the points whose sup norm exceeds that of a minimax error by at most `excess`
    form a simplex, long and thin: one face a_i . d <= excess for each peak. With weights w_i for
    which sum of w_i a_i = 0, the w_i (excess - a_i . d) are barycentric coordinates of it, in which
    it is as round as can be, and about whose centre there is more to find than about the unrounded
    point.
    """
    yield lattice.nearest(lattice.basis[lattice.sample], (goal - errors)[lattice.sample])
    peaks, lifts = alternation(goal, family.grid)
    if family.norm != "sup" or len(peaks) != lattice.basis.shape[1] + 1:
        return
    signs = np.sign(goal[peaks])
    faces = signs[:, None] * lattice.basis[peaks]
    weights = np.linalg.svd(faces.T)[2][-1]
    weights = weights / weights.sum()
    if not (weights > 0).all():
        return
    level = float(family.norms(goal)[0])
    excess = float(family.norms(errors)[0]) - level
    offset = weights * (level - signs * (errors[peaks] + lifts))
    for share in _SHARES:
        middle = share * excess * (weights - 1 / len(peaks))
        yield lattice.nearest(weights[:, None] * faces, offset + middle)


def alternation(errors: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """The largest peaks, one of each run of equal sign, as `peaks_of` gives them."""
    places, lifts = peaks_of(errors, grid)
    tops = errors[places] + lifts
    high = np.flatnonzero(np.abs(tops) > 0.99 * np.abs(tops).max())
    runs = np.split(high, np.flatnonzero(np.diff(np.sign(tops[high]))) + 1)
    best = np.array([run[np.argmax(np.abs(tops[run]))] for run in runs])
    return places[best], lifts[best]
