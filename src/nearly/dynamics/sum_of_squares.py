"""Bounds on the averages that any bounded solution of a polynomial equation can have, by sums of
squares (`bound_average`).

The algorithm (extremal-periodic-orbits). For any polynomial V the average of f . grad V along a
bounded solution is zero. So if

    S = U - phi - f . grad V

is nowhere negative, no average of phi exceeds U. Nonnegativity is asked for as a sum of squares
`S = m' Q m` with Q positive semidefinite, m the monomials up to half the degree of S; the least U
is then a semidefinite program, linear in U, V and Q.

Differs from the paper's implementation (YALMIP and MOSEK) in that

- the sign changes that leave the equation as it is are found, not given: monomials are told apart
  by their parities modulo those of the field, which splits Q into blocks;
- monomials that no sum of squares can use are left out of m, so that Q can be positive definite;
- coordinates are centred and scaled to a box, phi to unit size: in double precision the last digits
  of the bound depend on it;
- the residual of S = m' Q m and the least eigenvalue of Q are reported: a floating-point solution
  proves nothing. `nearly.dynamics.rational_proof` makes a proof of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np

from nearly.core.errors import InputError, MissingDependency
from nearly.dynamics.polynomials import (
    Exponent,
    Polynomial,
    PolynomialFunction,
    monomials,
    times,
    variables,
)

Entry = tuple[int, int, int]  # a block of Q, and row <= column in it
SOLVED = ("Solved", "AlmostSolved")


@dataclass(frozen=True)
class PolynomialSystem:
    """A polynomial equation, and the observable whose largest average is wanted.

    **Arguments:**

    - `field`: `(y, parameters) -> dy/dt`, a sequence; and `observable`: `y -> number`. Both by
      arithmetic alone: they are called with JAX arrays, and with polynomials.
    - `parameters`: numbers; as `Fraction`s where a decimal is not what is meant.
    - `centre`, `scale`: of the box in which the solutions of interest lie: `y = centre + scale * u`
      with u about in [-1, 1]. A coordinate that a symmetry flips must have centre 0.
    """

    field: Callable[[Any, Any], Sequence[Any]]
    observable: Callable[[Any], Any]
    parameters: tuple[Any, ...]
    centre: tuple[Any, ...]
    scale: tuple[Any, ...]
    name: str = "polynomial"

    def __post_init__(self) -> None:
        if len(self.centre) != len(self.scale) or not self.scale:
            raise InputError(
                f"centre {self.centre} and scale {self.scale} must both have one number for each "
                "component"
            )
        if min(self.scale) <= 0:
            raise InputError(f"scale {self.scale} must be positive: half the width of a box")

    @property
    def size(self) -> int:
        return len(self.scale)

    def polynomials(self) -> tuple[list[Polynomial], Polynomial]:
        """The field and the observable in the coordinates of the box."""
        y = [
            s * u + c for u, c, s in zip(variables(self.size), self.centre, self.scale, strict=True)
        ]
        speeds = self.field(y, self.parameters)
        if len(speeds) != self.size:
            raise InputError(f"the field has {len(speeds)} components, the box {self.size}")
        inverse = [Fraction(1) / Fraction(s) for s in self.scale]
        observable = 0 * y[0] + self.observable(y)
        return [r * (0 * y[0] + v) for v, r in zip(speeds, inverse, strict=True)], observable


@dataclass(frozen=True)
class Bound:
    """No bounded solution has an average of the observable above `value`, but for rounding.

    **Arguments:**

    - `value`: U. `status`: what the solver says of its solution.
    - `auxiliary`: V, `slack`: S, as functions of y; S is small where solutions of the largest
      average spend their time.
    - `residual`: the largest coefficient of `S - m' Q m`, over `magnitude`, the observable's size;
      `eigenvalue`: the least of Q, likewise. A proof needs the second to outweigh the first.
    - `program`: what was solved. `unknowns`, `gram`: its solution: coefficients of V, blocks of Q.
    """

    value: float
    status: str
    auxiliary: PolynomialFunction
    slack: PolynomialFunction
    residual: float
    eigenvalue: float
    magnitude: float
    program: SumOfSquares
    unknowns: np.ndarray
    gram: tuple[np.ndarray, ...]


def bound_average(system: PolynomialSystem, degree: int, *, symmetric: bool = True) -> Bound:
    """An upper bound on the largest long-time average of an observable; see the module.

    **Arguments:** `degree`: of V, even; `symmetric`: whether sign changes are used, which changes
    the cost and not the bound.

    Raises `InputError` for an odd degree or a program without a solution, `MissingDependency`
    without clarabel.

    **Cost:** with n = binomial(size + degree/2, size) / blocks, some n^4 to n^6 for each block.
    """
    return sum_of_squares(system, degree, symmetric=symmetric).solve()


def sum_of_squares(
    system: PolynomialSystem, degree: int, *, symmetric: bool = True
) -> SumOfSquares:
    """The program of `bound_average`, to be solved; as there."""
    if degree < 2 or degree % 2:
        raise InputError(f"degree {degree} of V must be even and at least 2")
    field, observable = system.polynomials()
    symmetry = _parities(field, observable) if symmetric else _no_symmetry(system.size)
    found = [e for e in monomials(system.size, degree)[1:] if not _reduced(e, symmetry)]
    rates = [Polynomial(system.size, {e: 1}).along(field) for e in found]
    highest = max(p.degree for p in [observable, *rates])
    support = set(observable.terms) | {(0,) * system.size}
    support.update(e for rate in rates for e in rate.terms)
    blocks: defaultdict[int, list[Exponent]] = defaultdict(list)
    for exponent in _usable(monomials(system.size, highest // 2), support):
        blocks[_reduced(exponent, symmetry)].append(exponent)
    return SumOfSquares(
        system,
        degree,
        tuple(found),
        tuple(tuple(block) for block in blocks.values()),
        tuple(rates),
        observable,
    )


def one_block(system: PolynomialSystem, degree: int) -> SumOfSquares:
    """The program without its symmetry: the same bound at a higher price, for comparison."""
    return sum_of_squares(system, degree, symmetric=False)


# ---- which monomials go together


def _parity(exponent: Exponent) -> int:
    return sum((e & 1) << i for i, e in enumerate(exponent))


def _parities(field: Sequence[Polynomial], observable: Polynomial) -> tuple[int, ...]:
    """The parities that every sign change which keeps the equation keeps, as a basis of bits.

    Flipping signs s keeps it if `f_i(s y) = s_i f_i(y)`: the parity of each monomial of f_i is
    that of y_i, where parities are told apart by s.
    """
    rows = [_parity(e) ^ (1 << i) for i, f in enumerate(field) for e in f.terms]
    rows += [_parity(e) for e in observable.terms]
    basis: list[int] = []
    for row in rows:
        rest = _reduced_bits(row, basis)
        if rest:
            basis = sorted([*basis, rest], reverse=True)
    return tuple(basis)


def _no_symmetry(size: int) -> tuple[int, ...]:
    return tuple(1 << i for i in reversed(range(size)))


def _reduced_bits(bits: int, basis: Sequence[int]) -> int:
    for row in basis:
        bits = min(bits, bits ^ row)
    return bits


def _reduced(exponent: Exponent, basis: Sequence[int]) -> int:
    """What tells a monomial apart; 0 if no sign change does anything to it."""
    return _reduced_bits(_parity(exponent), basis)


def _usable(candidates: Sequence[Exponent], support: set[Exponent]) -> list[Exponent]:
    """Those that can have a positive weight in a sum of squares whose terms lie in `support`.

    The square of a monomial that nothing can cancel must occur in S.
    """
    kept = list(candidates)
    while True:
        mixed = {times(a, b) for i, a in enumerate(kept) for b in kept[:i]}
        left = [e for e in kept if (square := times(e, e)) in support or square in mixed]
        if len(left) == len(kept):
            return kept
        kept = left


# ---- the semidefinite program


@dataclass(frozen=True)
class SumOfSquares:
    """Find V and Q: its monomials, the blocks of m, the rates f . grad of the monomials of V."""

    system: PolynomialSystem
    degree: int
    auxiliary: tuple[Exponent, ...]
    blocks: tuple[tuple[Exponent, ...], ...]
    rates: tuple[Polynomial, ...]
    observable: Polynomial

    @property
    def size(self) -> int:
        """The number of unknowns: U, the coefficients of V, the entries of Q."""
        return 1 + len(self.auxiliary) + sum(len(b) * (len(b) + 1) // 2 for b in self.blocks)

    @cached_property
    def magnitude(self) -> float:
        """The observable's largest coefficient."""
        return max((abs(float(c)) for c in self.observable.terms.values()), default=1.0)

    @cached_property
    def products(self) -> Mapping[Exponent, list[Entry]]:
        """Each monomial of m' Q m, and the entries of Q that make it."""
        found: defaultdict[Exponent, list[Entry]] = defaultdict(list)
        for index, block in enumerate(self.blocks):
            for column, b in enumerate(block):
                for row in range(column + 1):
                    found[times(block[row], b)].append((index, row, column))
        return found

    def solve(self) -> Bound:
        """The least bound of this degree."""
        constant = (0,) * self.system.size
        first = Polynomial(self.system.size, {constant: 1})
        unknowns, gram, status = self._solved(first, self.observable, cost=1.0)
        return self._bound(unknowns[0] * self.magnitude, unknowns[1:], gram, status)

    def strictly(self, value: Any) -> tuple[Bound, float]:
        """V and Q for a bound that is given, with the least eigenvalue of Q as large as possible.

        The eigenvalue, over the observable's magnitude, is the second thing returned.
        """
        constant = (0,) * self.system.size
        diagonal = Polynomial.of(
            self.system.size, ((times(e, e), -1) for block in self.blocks for e in block)
        )
        target = self.observable - value
        if constant not in target.terms:
            target = Polynomial(self.system.size, {**target.terms, constant: 0})
        unknowns, gram, status = self._solved(diagonal, target, cost=-1.0, most=1.0)
        shifted = tuple(q + unknowns[0] * np.eye(len(q)) for q in gram)
        return self._bound(float(value), unknowns[1:], shifted, status), float(unknowns[0])

    def _solved(
        self, first: Polynomial, target: Polynomial, *, cost: float, most: float | None = None
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...], str]:
        """min cost * t such that t * first - f . grad V - m' Q m = target, and t <= most.

        In units of the observable's magnitude.
        """
        clarabel = _clarabel()
        columns = [first, *(-rate for rate in self.rates)]
        matrix, right = self._equations(columns, target)
        known, sizes = len(columns), [len(block) for block in self.blocks]
        entries = matrix.shape[1] - known
        rows, cones = [matrix], [clarabel.ZeroConeT(matrix.shape[0])]
        ends = [right]
        if most is not None:
            rows.append(_selection(1, 0, matrix.shape[1]))
            cones.append(clarabel.NonnegativeConeT(1))
            ends.append(np.array([most]))
        rows.append(-_selection(entries, known, matrix.shape[1]))
        cones += [clarabel.PSDTriangleConeT(size) for size in sizes]
        ends.append(np.zeros(entries))
        found = _solve(clarabel, cost, rows, ends, cones)
        status = str(found.status)
        if status not in SOLVED:
            raise InputError(
                f"no bound of degree {self.degree} was found for {self.system.name} ({status}): "
                "use a higher degree, or a box that fits better"
            )
        x = np.array(found.x)
        # The matrix, not the slack: what is checked later is what V goes with.
        return x[:known], _matrices(x[known:], sizes), status

    def _equations(self, columns: Sequence[Polynomial], target: Polynomial) -> tuple[Any, Any]:
        """One equation for each monomial; Q as its upper triangle, off-diagonals times root 2."""
        from scipy.sparse import csc_matrix

        monomial = {e: None for p in [target, *columns] for e in p.terms} | dict.fromkeys(
            self.products
        )
        row_of = {e: i for i, e in enumerate(monomial)}
        rows, cols, values = [], [], []
        for column, polynomial in enumerate(columns):
            for e, c in polynomial.terms.items():
                rows.append(row_of[e])
                cols.append(column)
                values.append(float(c))
        offsets = np.cumsum([len(columns)] + [len(b) * (len(b) + 1) // 2 for b in self.blocks])
        for e, entries in self.products.items():
            for block, row, column in entries:
                rows.append(row_of[e])
                cols.append(offsets[block] + column * (column + 1) // 2 + row)
                values.append(-1.0 if row == column else -(2**0.5))
        right = np.zeros(len(row_of))
        for e, c in target.terms.items():
            right[row_of[e]] = float(c) / self.magnitude
        shape = (len(row_of), int(offsets[-1]))
        return csc_matrix((values, (rows, cols)), shape=shape), right

    def slack(self, value: Any, coefficients: Sequence[Any]) -> Polynomial:
        """S = U - phi - f . grad V, in whatever arithmetic the coefficients are in."""
        total = Polynomial.of(
            self.system.size,
            (
                (e, -v * c)
                for v, rate in zip(coefficients, self.rates, strict=True)
                for e, c in rate.terms.items()
            ),
        )
        return total + (value - self.observable)

    def _bound(
        self, value: float, unknowns: np.ndarray, gram: tuple[np.ndarray, ...], status: str
    ) -> Bound:
        system, coefficients = self.system, unknowns * self.magnitude
        slack = self.slack(value, [float(c) for c in coefficients])
        differences = {e: float(c) / self.magnitude for e, c in slack.terms.items()}
        for e, entries in self.products.items():
            made = sum((1 if r == c else 2) * gram[b][r, c] for b, r, c in entries)
            differences[e] = differences.get(e, 0.0) - made
        centre, scale = system.centre, system.scale
        auxiliary = Polynomial.of(system.size, zip(self.auxiliary, coefficients, strict=True))
        return Bound(
            value,
            status,
            PolynomialFunction.of(auxiliary, [float(c) for c in centre], [float(s) for s in scale]),
            PolynomialFunction.of(slack, [float(c) for c in centre], [float(s) for s in scale]),
            max(abs(d) for d in differences.values()),
            min(float(np.linalg.eigvalsh(q)[0]) for q in gram),
            self.magnitude,
            self,
            unknowns,
            gram,
        )


def _clarabel() -> Any:
    try:
        import clarabel
    except ImportError as error:
        raise MissingDependency(
            "sums of squares need clarabel: pip install 'nearly[sos]'"
        ) from error
    return clarabel


def _selection(count: int, first: int, width: int) -> Any:
    """The rows of a unit matrix of a width, from `first` on."""
    from scipy.sparse import csc_matrix

    here = np.arange(count)
    return csc_matrix((np.ones(count), (here, first + here)), shape=(count, width))


def _solve(clarabel: Any, cost: float, rows: list[Any], ends: list[Any], cones: list[Any]) -> Any:
    from scipy.sparse import csc_matrix, vstack

    matrix: Any = csc_matrix(vstack(rows))
    width = matrix.shape[1]
    linear = np.zeros(width)
    linear[0] = cost
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.max_iter = 400
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-10
    nothing = csc_matrix((width, width))
    right = np.concatenate(ends)
    return clarabel.DefaultSolver(nothing, linear, matrix, right, cones, settings).solve()


def _matrices(entries: np.ndarray, sizes: Sequence[int]) -> tuple[np.ndarray, ...]:
    """Symmetric matrices from their upper triangles, column by column."""
    found: list[np.ndarray] = []
    start = 0
    for size in sizes:
        count = size * (size + 1) // 2
        matrix = np.zeros((size, size))
        columns, rows = np.tril_indices(size)
        matrix[rows, columns] = entries[start : start + count] / 2**0.5
        matrix = matrix + matrix.T
        matrix[np.diag_indices(size)] /= 2**0.5
        start += count
        found.append(matrix)
    return tuple(found)
