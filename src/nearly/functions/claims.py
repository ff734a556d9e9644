"""What the classical papers promise of functions, rerun."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from flint import ctx

from nearly.core.claim import Expected, Inconclusive, claim
from nearly.core.compare import compare
from nearly.functions import polynomial, rational
from nearly.functions.function import Function
from nearly.functions.oracle import exact
from nearly.functions.program import Program
from nearly.functions.schemes import paterson_stockmeyer, polynomial_program

EXP2 = Function("exp2", ("0", "1"))


@claim(
    "remez",
    "the-error-equioscillates",
    cost="fast",
    expected=Expected(
        "smallest over largest of the n + 2 alternating extrema of the weighted error, "
        "2^x on [0, 1], degrees 1 to 12",
        "within",
        (0.999, 1.0),
        "derived: Chebyshev's alternation theorem, to the 3 digits a stopped exchange has",
    ),
)
def equioscillation() -> float:
    return min(_levelling(polynomial.minimax(EXP2, degree)) for degree in range(1, 13))


def _levelling(best: polynomial.BestPolynomial) -> float:
    """Smallest over largest error at the extrema, 0 unless their signs alternate."""
    with ctx.workprec(300):
        values = [EXP2.oracle.value(exact(x)) for x in best.extrema]
        errors = np.array(
            [float(exact(best.polynomial(x)) / f - 1) for x, f in zip(best.extrema, values)]
        )
    sizes, signs = np.abs(errors), np.sign(errors)
    alternates = len(errors) == len(best.polynomial.coefficients) + 1 and all(
        signs[1:] != signs[:-1]
    )
    return float(sizes.min() / sizes.max()) if alternates else 0.0


@claim(
    "knuth-eve",
    "degree-6-in-11-operations",
    cost="fast",
    expected=Expected(
        "operations of the preconditioned minimax polynomial of degree 6 for 2^x on [0, 1]",
        "<=",
        11,
        "TAOCP 4.6.4: degree 6 takes 4 multiplications and 7 additions, Horner's rule 12",
        unit="ops",
    ),
)
def preconditioned_operations() -> float:
    frontier = compare("exp2", ["remez", "remez-knuth-eve"], dials=[6], domain=("0", "1"))
    horner, preconditioned = frontier.runs
    if preconditioned.worst > 1.001 * horner.worst:
        raise Inconclusive("the preconditioned form is less accurate than Horner's rule")
    return preconditioned.work["ops"]


@claim(
    "paterson-stockmeyer",
    "nonscalar-multiplications-grow-as-the-root-of-the-degree",
    cost="fast",
    expected=Expected(
        "nonscalar multiplications over 2 sqrt(n), the largest at degrees 4 to 36 of 2^x on [0, 1]",
        "<=",
        1.0,
        "derived: k powers and n/k blocks, at the best k, take at most 2 sqrt(n) products",
    ),
)
def nonscalar_multiplications() -> float:
    return max(_nonscalar(_paterson_stockmeyer(n)) / (2 * n**0.5) for n in range(4, 37))


def _paterson_stockmeyer(degree: int) -> Program:
    coefficients = tuple(Fraction(1, k + 1) for k in range(degree + 1))
    dense = polynomial.Polynomial(tuple(range(degree + 1)), coefficients)
    return polynomial_program(paterson_stockmeyer, dense)


def _nonscalar(program: Program) -> int:
    """Multiplications whose two factors both depend on x."""
    products = (i[1:3] for i in program.instructions if i[0] in ("mul", "fma"))
    return sum(set(factors) <= program.depends for factors in products)


@claim(
    "cody-fraser-hart",
    "rationals-beat-polynomials-of-as-many-coefficients",
    cost="fast",
    expected=Expected(
        "error of the minimax polynomial over that of the minimax rational of type (n/2, n/2), "
        "the smallest at n = 2, 4, …, 12, for 2^x on [0, 1]",
        ">=",
        1.0,
        "derived: for the exponential the errors are as 2^-n/(n+1)! to 2^-n (n/2)!^2/(n!(n+1)!)",
    ),
)
def rational_over_polynomial() -> float:
    return min(
        float(polynomial.minimax(EXP2, n).error / rational.minimax(EXP2, n // 2, n // 2).error)
        for n in range(2, 13, 2)
    )
