"""A floating-point sum of squares made exact: a bound that is proven (`prove_bound`).

A solver's V and Q satisfy their equations but for rounding. Taken as the rationals that they are:

1. the coefficients of V are changed such that S has no monomial that no square can make;
2. what is left of `S - m' Q m` is spread over the entries of Q that make its monomials, so that the
   identity holds exactly;
3. Q is factorised, `L D L'`, in rational arithmetic: if every pivot is positive it is positive
   definite, S a sum of squares, and the bound a theorem.

Step 2 moves the eigenvalues a little, so the solver is asked for a Q as far from singular as the
bound, raised by a margin, allows. The projection is Peyrl and Parrilo's; Goluskin proved his bounds
with intervals in its place, which asks for as much margin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from numbers import Rational
from typing import Any

import flint

from nearly.core.errors import InputError, NotProven
from nearly.dynamics.polynomials import Polynomial
from nearly.dynamics.sum_of_squares import (
    Bound,
    PolynomialSystem,
    SumOfSquares,
    bound_average,
)


@dataclass(frozen=True)
class ProvenBound:
    """No bounded solution of the equation has an average of the observable above `value`.

    **Arguments:**

    - `value`: U, exact. `numeric`: the bound it was made from.
    - `auxiliary`: V, with rational coefficients in the coordinates of the box: with the value it is
      all that is needed to check the proof.
    """

    value: Fraction
    numeric: Bound
    auxiliary: Polynomial


def prove_bound(
    system: PolynomialSystem, degree: int, *, value: Any = None, margin: float = 1e-6
) -> ProvenBound:
    """Prove an upper bound on the largest long-time average of an observable.

    **Arguments:** `value`: the bound to be proven; by default the numeric one of this degree,
    raised by `margin` of itself. It and the system's parameters count as the rationals they are:
    write 8/3 as a `Fraction`, and no constant of the field as a float.

    Raises `InputError` for a margin that is not positive, and `NotProven`, saying how far it is
    from a proof: then allow a larger margin or value.

    **Cost:** two semidefinite programs; the cube of the blocks' sizes, in long rationals.
    """
    if not margin > 0:
        raise InputError(f"margin {margin} must be positive, such as 1e-6")
    system = _exact(system)
    numeric = bound_average(system, degree)
    program = numeric.program
    if value is None:
        value = Fraction(numeric.value) + Fraction(margin) * abs(Fraction(numeric.value))
    strict, eigenvalue = program.strictly(Fraction(value))
    if eigenvalue <= 0:
        raise NotProven(
            f"no positive definite matrix shows {float(value):.8g} (eigenvalue {eigenvalue:.1e}): "
            "allow a larger margin or degree"
        )
    coefficients = _without_bare_monomials(program, strict, Fraction(value))
    slack = program.slack(Fraction(value), coefficients)
    gram = _corrected(program, strict, slack)
    if not all(_positive_definite(block) for block in gram):
        raise NotProven(
            f"the matrix for {float(value):.8g} is not positive definite once it is exact (its "
            f"least eigenvalue was {eigenvalue:.1e}): allow a larger margin"
        )
    auxiliary = Polynomial.of(system.size, zip(program.auxiliary, coefficients, strict=True))
    return ProvenBound(Fraction(value), numeric, auxiliary)


def _exact(system: PolynomialSystem) -> PolynomialSystem:
    """The system with rational parameters and box; raises `NotProven` where it rounds."""
    exact = replace(
        system,
        parameters=tuple(Fraction(p) for p in system.parameters),
        centre=tuple(Fraction(c) for c in system.centre),
        scale=tuple(Fraction(s) for s in system.scale),
    )
    field, observable = exact.polynomials()
    for polynomial in (*field, observable):
        for c in polynomial.terms.values():
            if not isinstance(c, Rational):
                raise NotProven(
                    f"the equation of {system.name} has the rounded constant {c}: only equations "
                    "of whole numbers and Fractions can be proven about"
                )
    return exact


def _without_bare_monomials(program: SumOfSquares, bound: Bound, value: Fraction) -> list[Fraction]:
    """V's coefficients, changed so that S holds no monomial that m' Q m does not."""
    magnitude = Fraction(program.magnitude)
    found = [Fraction(float(v)) * magnitude for v in bound.unknowns]
    constant = value - program.observable
    bare = sorted({e for p in [constant, *program.rates] for e in p.terms} - set(program.products))
    if not bare:
        return found
    rows = [
        [
            *(_rational(rate.terms.get(e, 0)) for rate in program.rates),
            _rational(constant.terms.get(e, 0)),
        ]
        for e in bare
    ]
    reduced, rank = flint.fmpq_mat(rows).rref()
    last = len(found)
    exact = [_rational(v) for v in found]
    for row in range(rank):
        entries = [reduced[row, column] for column in range(last + 1)]
        pivot = next(i for i, entry in enumerate(entries) if entry != 0)
        if pivot == last:
            raise NotProven("a monomial that no square makes cannot be removed: raise the degree")
        free = (entries[i] * exact[i] for i in range(pivot + 1, last) if entries[i] != 0)
        exact[pivot] = entries[last] - sum(free, flint.fmpq(0))
    return [_fraction(v) for v in exact]


def _corrected(program: SumOfSquares, bound: Bound, slack: Polynomial) -> list[list[list[Any]]]:
    """Q in rationals, with `m' Q m = S` to the last digit."""
    magnitude = _rational(Fraction(program.magnitude))
    gram = [
        [[_rational(Fraction(float(x))) * magnitude for x in row] for row in block]
        for block in bound.gram
    ]
    for e, entries in program.products.items():
        weights = [1 if r == c else 2 for _, r, c in entries]
        made = sum(
            (w * gram[b][r][c] for w, (b, r, c) in zip(weights, entries, strict=True)),
            flint.fmpq(0),
        )
        change = (_rational(slack.terms.get(e, 0)) - made) / sum(weights)
        for b, r, c in entries:
            moved = gram[b][r][c] + change
            gram[b][r][c] = gram[b][c][r] = moved
    return gram


def _positive_definite(matrix: Sequence[Sequence[Any]]) -> bool:
    """Whether all pivots of a symmetric rational matrix are positive."""
    rest = [list(row) for row in matrix]
    while rest:
        pivot, *others = rest[0]
        if pivot <= 0:
            return False
        rest = [
            [x - row[0] * y / pivot for x, y in zip(row[1:], others, strict=True)]
            for row in rest[1:]
        ]
    return True


def _rational(number: Any) -> Any:
    exact = Fraction(number)
    return flint.fmpq(exact.numerator, exact.denominator)


def _fraction(number: Any) -> Fraction:
    return Fraction(int(number.p), int(number.q))
