"""The lattice of the errors that rounded constants can make, by a reduced basis."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from flint import arb, ctx, fmpz, fmpz_mat

from nearly.functions.lattice.family import Family, Values
from nearly.functions.lattice.grid import BITS, peaks_of

_STRIDE = 12  # one point of the grid in so many makes a coordinate of the lattice
_BEAM = 3000
_CHOICES = np.arange(-6, 7)  # about the best integer of each coordinate
_CLIMBS = 60  # steps of a descent
_CLOSE = 8  # moves of a step that are looked at closely


@dataclass(frozen=True)
class Lattice:
    """A reduced basis of the changes of the error.

    `basis[:, i]` is the change of the error at each point for one step along reduced vector `i`,
    `turn[i]` that step in spacings of each constant, `base` the constants at
    z = 0 in spacings and `limits` what these may reach, `sample` the rows that measure distance.
    """

    basis: np.ndarray
    turn: np.ndarray
    base: np.ndarray
    limits: np.ndarray
    sample: np.ndarray
    penalty: np.ndarray

    @staticmethod
    def reduced(
        family: Family, start: Values, steps: Values, reach: float, error: float
    ) -> Lattice:
        with ctx.workprec(BITS):
            columns = family.slopes(start, steps)
            largest = [max(float(abs(c).mid()) for c in column) for column in columns]
            # 160 bits for the shortest column: reduced vectors are shorter still by the basis'
            # condition, and must keep the 53 bits of a double.
            shift = 160 - math.frexp(min(largest))[1]
            scaled = fmpz_mat([[_integer(c, shift) for c in column] for column in columns])
        count = len(columns)
        picked = list(range(0, scaled.ncols(), _STRIDE))
        # Where the error hardly depends on some combination, nothing else keeps it from running
        # off to where the linearisation is worthless.
        weight = int(math.ldexp(error * math.sqrt(len(picked)) / reach, shift))
        rows = [
            [scaled[i, k] for k in picked] + [fmpz(weight * (i == k)) for k in range(count)]
            for i in range(count)
        ]
        _, turn = fmpz_mat(rows).lll(transform=True)  # pyright: ignore[reportCallIssue]
        product = np.array([float(v) for v in (turn * scaled).entries()])
        basis = np.ldexp(product, -shift).reshape(count, -1).T.copy()
        turns = [int(v) for v in turn.entries()]
        penalty = np.array(turns, float).reshape(count, count).T
        limits = [2 ** family.formats[j].precision for j in family.free]
        base = [round(start[j] / step) for j, step in zip(family.free, steps, strict=True)]
        # Products wrap, sums of them come back into range: the machine's integers are exact where
        # mantissas fit in them.
        whole = object if max(*limits, *map(abs, base)) > 2**60 else np.int64
        if whole is np.int64:
            turns = [(v + 2**63) % 2**64 - 2**63 for v in turns]
        return Lattice(
            basis,
            np.array(turns, whole).reshape(count, count),
            np.array(base, whole),
            np.array(limits, whole),
            np.array(picked),
            penalty * (error * math.sqrt(len(picked)) / reach),
        )

    def mantissas(self, points: np.ndarray) -> np.ndarray:
        """The constants at rows of z, in spacings, exactly."""
        return points.astype(np.int64).astype(self.turn.dtype) @ self.turn + self.base

    def fits(self, points: np.ndarray) -> np.ndarray:
        """Whether all mantissas at rows of z are short enough for their formats."""
        mantissas = self.mantissas(points)
        last = np.maximum(mantissas & -mantissas, 1)  # the last bit that is set
        return np.all(np.abs(mantissas) // last <= self.limits, axis=1)

    def nearest(self, rows: np.ndarray, target: np.ndarray) -> np.ndarray:
        """The integer z, one per row, for which `rows @ z` is nearest to the target, by a beam."""
        matrix = np.vstack([rows, self.penalty])
        q, r = np.linalg.qr(matrix)
        rest = q.T @ np.concatenate([target, np.zeros(len(self.penalty))])
        count = matrix.shape[1]
        points, cost = np.zeros((1, count)), np.zeros(1)
        for i in reversed(range(count)):
            centre = (rest[i] - points @ r[i]) / r[i, i]
            choice = np.rint(centre)[:, None] + _CHOICES
            total = cost[:, None] + (r[i, i] * (choice - centre[:, None])) ** 2
            kept = np.argsort(total, axis=None, kind="stable")[:_BEAM]
            points = points[kept // len(_CHOICES)]
            points[:, i] = choice.ravel()[kept]
            cost = total.ravel()[kept]
        return points

    def descend(
        self, family: Family, errors: np.ndarray, z: np.ndarray
    ) -> tuple[float, np.ndarray]:
        """Go to the best neighbour along one or two vectors that fits, as long as that helps."""
        steps = _moves(len(z))
        here = errors + self.basis @ z
        norm = float(family.norms(here)[0])
        for _ in range(_CLIMBS):
            # The tops of today's peaks foretell the norm: one matrix of moves by peaks leaves few
            # moves to look at closely.
            peaks, lifts = peaks_of(here, family.grid)
            bounds = np.abs(here[peaks] + lifts + steps @ self.basis[peaks].T).max(axis=1)
            close = np.argsort(bounds, kind="stable")[: 4 * _CLOSE]
            close = close[bounds[close] < norm]
            close = close[self.fits(z + steps[close])][:_CLOSE]
            if not len(close):
                break
            norms = family.norms(here + steps[close] @ self.basis.T)
            best = int(np.argmin(norms))
            if not norms[best] < norm:
                break
            norm, z = float(norms[best]), z + steps[close[best]]
            here = errors + self.basis @ z
        return norm, z


def _moves(count: int) -> np.ndarray:
    """One step or two along one axis, and one along each of two."""
    unit = np.eye(count)
    single = [s * unit[i] for i in range(count) for s in (-2, -1, 1, 2)]
    double = [
        s * unit[i] + t * unit[j]
        for i, j in combinations(range(count), 2)
        for s in (-1, 1)
        for t in (-1, 1)
    ]
    return np.array(single + double)


def _integer(value: arb, shift: int) -> int:
    mantissa, power = value.mid().man_exp()
    places = int(power) + shift
    return int(mantissa) << places if places >= 0 else int(mantissa) >> -places
