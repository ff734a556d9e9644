"""Argument scaling: fit on a domain made small, then square (double, triple) back.

exp(x) = exp(x/2)^2, cos(2t) = 2 cos(t)^2 - 1 and their like turn an approximation on a domain
shrunk by m^k into one on the whole, for one to four operations each time: a degree costs two.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from flint import arb, arb_series

from nearly.core.errors import InputError
from nearly.functions.balls import exact
from nearly.functions.builders import finished
from nearly.functions.function import Function
from nearly.functions.named import ALIASES
from nearly.functions.polynomial import Polynomial
from nearly.functions.program import Builder, Program
from nearly.functions.remez import remez
from nearly.functions.schemes import horner, polynomial_program
from nearly.functions.target import Piece, Target, canonical, target

_ITERATIONS = 16  # Newton's method converges in three or four
_MOST_STEPS = 16

Fma = Callable[[Any, Any, Any], Any]


@dataclass(frozen=True)
class Identity:
    """f(m x) from f(x), perhaps through a quantity u that composes better than f itself.

    **Arguments:**

    - `factor`: the m by which one step multiplies the argument.
    - `inner`: u as an expression of `{x}`.
    - `step`: u(x) -> u(m x).
    - `finish`: u -> f.
    - `alternates`: whether each step also changes the sign of u (which saves a negation).
    - `weight`: operations of a step, next to the two of a degree.
    """

    factor: int
    inner: str
    step: Callable[[Fma, Any], Any]
    finish: Callable[[Fma, Any], Any] = lambda fma, u: u
    alternates: bool = False
    weight: int = 1

    def start(self, steps: int) -> str:
        """The expression in x of the u that is to be approximated."""
        inner = self.inner.format(x=f"(x/{self.factor**steps})")
        return f"-({inner})" if self.alternates and steps % 2 else inner

    def compose(self, steps: int, fma: Fma, u: Any) -> Any:
        for _ in range(steps):
            u = self.step(fma, u)
        return self.finish(fma, u)


# cos and cosh go through their distance from 1, whose relative error doubling does not amplify;
# sin and sinh through their triple angle, which needs no cosine.
IDENTITIES: Mapping[str, Identity] = {
    "exp": Identity(2, "exp({x})", lambda fma, u: u * u),
    "exp2": Identity(2, "exp2({x})", lambda fma, u: u * u),
    "exp10": Identity(2, "exp10({x})", lambda fma, u: u * u),
    "expm1": Identity(2, "expm1({x})", lambda fma, u: u * (u + 2), weight=2),
    "cos": Identity(
        2,
        "4*sin({x}/2)**2",
        lambda fma, u: u * (4 - u),
        lambda fma, u: fma(u, -0.5, 1),
        weight=2,
    ),
    "cosh": Identity(
        2,
        "4*sinh({x}/2)**2",
        lambda fma, u: u * (u + 4),
        lambda fma, u: fma(u, 0.5, 1),
        weight=2,
    ),
    "sin": Identity(
        3,
        "2*sin({x})",
        lambda fma, u: u * fma(u, u, -3),
        lambda fma, u: u * 0.5,
        alternates=True,
        weight=3,
    ),
    "sinh": Identity(
        3,
        "2*sinh({x})",
        lambda fma, u: u * fma(u, u, 3),
        lambda fma, u: u * 0.5,
        weight=3,
    ),
    "tan": Identity(2, "tan({x})", lambda fma, u: (u + u) / (1 - u * u), weight=4),
    "tanh": Identity(2, "tanh({x})", lambda fma, u: (u + u) / fma(u, u, 1), weight=4),
}


@dataclass(frozen=True)
class ScalingBuilder:
    """A polynomial on a domain shrunk by the function's own identity, composed back.

    The dial `"3^2"` is a polynomial of degree 3 (of its powers, those of the parity of what is
    fitted), squared (doubled, tripled) twice. The polynomial is the minimax one for the error of
    the composition, not for its own: the levelled error is that of the program. Functions:
    exp, exp2, exp10, expm1, cos, cosh, sin, sinh, tan, tanh; any other raises `InputError` and has
    no dials.

    In floating point each squaring doubles the relative rounding error that it is given, so a few
    steps cost a few ULP (not for cos and cosh): a frontier over the reals, or for 16-bit formats,
    which compute in float32.

    Costs three or four minimax fits.
    """

    def __call__(self, function: Function, dial: str) -> Program:
        identity = _identity(function)
        degree, steps = parsed(dial)
        polynomial = fit(function, identity, degree, steps)
        builder = Builder()
        u = builder.inline(polynomial_program(horner, polynomial), builder.x)
        return finished(function, builder.program(identity.compose(steps, builder.fma, u)))

    def dials(self, function: Function) -> Sequence[str]:
        identity = IDENTITIES.get(_name(function))
        if identity is None:
            return []
        problem = target(canonical(Function(identity.start(1), function.domain)))
        # Beyond these one more term gains more than as many operations of scaling, or less.
        if identity.weight == 1:
            pairs = [(n, k) for n in range(2, 7) for k in range(max(1, 2 * n - 6), 2 * n - 2)]
        else:
            pairs = [(n, k) for n in range(5) for k in (1, 2, 3)]
        most = _MOST_STEPS if function.format.is_real else 3
        pairs = [(n, k) for n, k in pairs if k <= most]
        pairs.sort(key=lambda pair: (2 * pair[0] + identity.weight * pair[1], pair[1]))
        return [f"{problem.offset + problem.step * n}^{k}" for n, k in pairs]


scaling = ScalingBuilder()


def parsed(dial: str) -> tuple[int, int]:
    """The degree and the number of steps in `"3^2"`; raises `InputError` for anything else."""
    found = re.fullmatch(r"\s*(\d{1,2})\s*\^\s*(\d{1,2})\s*", str(dial))
    if not found or not 1 <= int(found[2]) <= _MOST_STEPS or int(found[1]) > 64:
        raise InputError(
            f"dial {dial!r}: scaling's dial is a degree up to 64 and 1 to {_MOST_STEPS} squarings, "
            "as '3^2'"
        )
    return int(found[1]), int(found[2])


def fit(function: Function, identity: Identity, degree: int, steps: int) -> Polynomial:
    """The polynomial whose composition has the least sup error in the function's measure.

    Newton's method on the composition F: each round is a minimax fit of the linearisation
    p - (F(p) - f) / F'(p), in the weight of F'.
    """
    outer = target(canonical(function))
    inner = target(canonical(Function(identity.start(steps), function.domain)))
    if any(zero.at for zero in (*outer.zeros, *inner.zeros)):
        raise InputError(
            f"{function.name} has zeros away from 0 in its domain, which scaling cannot follow in "
            f"the {function.error} error: use the absolute error or a shorter domain"
        )
    exponents = range(0, degree - inner.offset + 1, inner.step)
    if not exponents:
        raise InputError(
            f"degree {degree}: what is scaled for {function.name} has degree {inner.offset} "
            "at least"
        )
    problem = replace(inner, pieces=outer.pieces, sample=_Composed(outer, inner, identity, steps))
    error = Fraction(0)
    for _ in range(_ITERATIONS):
        best = remez(problem, exponents)
        if abs(best.error - error) <= best.error / 10**10:
            return Polynomial(tuple(inner.offset + e for e in exponents), best.numerator)
        error = best.error
        start = tuple(zip(exponents, best.numerator, strict=True))
        linear = _Composed(outer, inner, identity, steps, start, function)
        problem = replace(problem, sample=linear)
    raise InputError(
        f"dial '{degree}^{steps}': the composition of so coarse a polynomial has no minimax fit "
        "near it; take a higher degree or fewer squarings"
    )


@dataclass(frozen=True)
class _Composed:
    """(point, piece) -> the target and weight of the inner polynomial, over its zero's factor.

    Linearised about the polynomial `start`, of exponent and coefficient; without one about the
    true u, where the composition is the function itself.
    """

    outer: Target
    inner: Target
    identity: Identity
    steps: int
    start: tuple[tuple[int, Fraction], ...] = ()
    function: Function | None = None

    def __call__(self, x: arb, piece: Piece) -> tuple[arb, arb]:
        x = self._beside_zero(x, piece)
        factor = x**self.inner.offset
        g, _ = self.inner.sample(x, piece)
        if self.start:
            g = sum((exact(c) * x**e for e, c in self.start), arb(0))
        composed = self.identity.compose(self.steps, _fused, arb_series([g * factor, 1], prec=2))
        value, slope = composed[0], composed[1]
        if self.function is not None:
            g = g - (value - self.function.oracle.value(x)) / (slope * factor)
        _, weight = self.outer.sample(x, piece)
        return g, weight * abs(slope * x ** (self.inner.offset - self.outer.offset))

    def _beside_zero(self, x: arb, piece: Piece) -> arb:
        """A point so near x that it makes no difference, where x is too near 0 to divide by."""
        low, high = exact(piece.low), exact(piece.high)
        reach = high - low
        if not self.inner.offset or bool(abs(x) > reach * arb(2) ** -60):
            return x
        return (reach if bool(low + high > 0) else -reach) * arb(2) ** -60


def _fused(a: Any, b: Any, c: Any) -> Any:
    return a * b + c


def _name(function: Function) -> str:
    return ALIASES.get(function.name.strip(), function.name.strip())


def _identity(function: Function) -> Identity:
    identity = IDENTITIES.get(_name(function))
    if identity is None:
        raise InputError(
            f"no scaling identity is known for {function.name!r}; known: {', '.join(IDENTITIES)}"
        )
    return identity
