"""Builders: `(function, dial) -> Program`, one for each textbook way to approximate a function.

A builder's dial is a polynomial's degree (a whole number) or a rational's type (`"m/n"`), and
`builder.dials(function)` lists the sensible ones from cheap to dear. Over the reals constants keep
as many bits as their effect takes to stay a billionth of the error; in a machine format they are
rounded together to the registers. Fits are cached: schemes share them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, TypeVar

from flint import arb, ctx

from nearly.core.errors import InputError
from nearly.functions import chebyshev, polynomial, rational
from nearly.functions.balls import exact, to_fraction
from nearly.functions.formats import exponent
from nearly.functions.function import Function
from nearly.functions.polynomial import Polynomial, check_degree, significant
from nearly.functions.program import Builder, Program
from nearly.functions.rational import Rational
from nearly.functions.rational_schemes import (
    RationalScheme,
    continued_fraction,
    odd_quotient,
    two_horner,
)
from nearly.functions.rounding import round_coefficients, round_program
from nearly.functions.schemes import (
    Scheme,
    clenshaw,
    estrin,
    even_odd,
    horner,
    knuth_eve,
    paterson_stockmeyer,
    polynomial_program,
    power,
    product,
)
from nearly.functions.target import canonical, midpoint, symmetry, target
from nearly.functions.taylor import taylor as taylor_polynomial

Dial = TypeVar("Dial", int, str)

# The dearest dials offered by default: over the reals 24 operations, in a machine format what its
# precision can use on a reduced domain.
DEGREES = {"real": 12, "float64": 20, "float32": 16, "float16": 8, "bfloat16": 6}


@dataclass(frozen=True)
class PolynomialBuilder:
    """A polynomial evaluated by a scheme that works on its coefficients as they are.

    **Arguments:**

    - `approximate`: (function, degree) -> `Polynomial`.
    - `scheme`: one of `nearly.functions.schemes`.

    In a machine format the coefficients are rounded by lattice reduction, and the polynomial is in
    powers of x only if its domain is near 0: elsewhere of x - c, with c in the domain.
    """

    approximate: Callable[[Function, int], Polynomial]
    scheme: Scheme

    def __call__(self, function: Function, dial: Any) -> Program:
        check_degree(dial)
        found = placed(function, self.approximate(function, dial))
        if function.format.is_real:
            return finished(function, polynomial_program(self.scheme, found))
        coefficients = round_coefficients(
            function, found.exponents, found.coefficients, centre=found.centre
        )
        rounded = replace(found, coefficients=coefficients)
        return polynomial_program(self.scheme, rounded).in_format(function.dtype)

    def dials(self, function: Function) -> Sequence[int]:
        return degrees(function)


@dataclass(frozen=True)
class PreconditionedBuilder:
    """A polynomial in Knuth's and Eve's forms, whose constants are not its coefficients.

    Degrees under 4 (in x^2, for an even or odd function) save nothing and raise `InputError`.
    """

    approximate: Callable[[Function, int], Polynomial]

    def __call__(self, function: Function, dial: Any) -> Program:
        check_degree(dial)
        found = placed(function, self.approximate(function, dial))
        return finished(function, polynomial_program(knuth_eve, found))

    def dials(self, function: Function) -> Sequence[int]:
        problem = target(canonical(function))
        taken = sum(zero.order for zero in problem.zeros)
        return [d for d in degrees(function) if (d - taken) // problem.step >= 4]


@dataclass(frozen=True)
class ClenshawBuilder:
    """A Chebyshev series evaluated as it stands.

    **Arguments:**

    - `approximate`: (function, degree) -> `ChebyshevSeries`.
    """

    approximate: Callable[[Function, int], chebyshev.ChebyshevSeries]

    def __call__(self, function: Function, dial: Any) -> Program:
        check_degree(dial)
        series = self.approximate(function, dial)
        builder = Builder()
        a, b = series.map
        zeros, step, centre = series.problem.zeros, series.problem.step, series.problem.centre
        u = power(builder, builder.x - centre if centre else builder.x, step)
        t = builder.apply("fma", u, a, b)
        value = clenshaw(builder, t, series.coefficients)
        for zero in zeros:
            z = builder.x - zero.at if zero.at else builder.x
            value = product(builder, value, power(builder, z, zero.order))
        program = builder.program(builder.constant(value, "r"))
        if not function.format.is_real:
            # The basis is so well conditioned that coefficients rounded one by one lose nothing.
            return program.in_format(function.dtype)
        return finished(function, program)

    def dials(self, function: Function) -> Sequence[int]:
        return degrees(function)


@dataclass(frozen=True)
class RationalBuilder:
    """A rational of type m/n, the dial `"m/n"`, evaluated by a scheme.

    **Arguments:**

    - `approximate`: (function, m, n) -> `Rational`.
    - `scheme`: one of `nearly.functions.rational_schemes`.
    """

    approximate: Callable[[Function, int, int], Rational]
    scheme: RationalScheme

    def __call__(self, function: Function, dial: Any) -> Program:
        found = self.approximate(function, *parsed_type(dial))
        return finished(function, self.scheme(found.about(place(function, found.centre))))

    def dials(self, function: Function) -> Sequence[str]:
        return types(function)


@dataclass(frozen=True)
class EvenRationalBuilder:
    """A rational that uses the symmetry of the function about the middle of its domain, in x^2.

    An exponential there (2^x, on any domain) as an odd quotient of type n/n; an even or odd
    function as a continued fraction in x^2. Any other raises `InputError`, and has no dials.
    """

    def __call__(self, function: Function, dial: Any) -> Program:
        numerator, denominator = parsed_type(dial)
        if rational.is_exponential(function):
            if numerator != denominator:
                raise InputError(
                    f"type {dial}: the even form of an exponential has equal degrees, as "
                    f"{numerator}/{numerator}"
                )
            best = rational.minimax_quotient(function, numerator)
            return finished(function, odd_quotient(best))
        if symmetry(function)[0] == 1:
            raise InputError(
                f"{function.name} is neither even nor odd nor an exponential about the middle of "
                "its domain: use rational-continued-fraction"
            )
        return rational_continued_fraction(function, dial)

    def dials(self, function: Function) -> Sequence[str]:
        if rational.is_exponential(function):
            candidates = [f"{n}/{n}" for n in range(1, 2 * DEGREES[function.dtype] // 3 + 1)]
            return _until_good(
                function, candidates, lambda d: rational.minimax(function, *parsed_type(d)).error
            )
        return types(function) if symmetry(function)[0] == 2 else []


# ------------------------------------------------------------------ what they share


def place(function: Function, zero: Fraction) -> Fraction:
    """The centre of the powers: a zero if there is one, else 0 unless that costs precision.

    Powers of x on a domain far from 0 cancel in floating point, and do not over the reals.
    """
    low, high = function.interval
    near = (high - low) / 4
    if zero or function.format.is_real or low - near <= 0 <= high + near:
        return zero
    return midpoint(low, high)


def placed(function: Function, found: Polynomial) -> Polynomial:
    """The polynomial in the powers in which it is best evaluated."""
    problem = target(canonical(function))
    return found.about(place(function, problem.centre))


def finished(function: Function, program: Program) -> Program:
    """A real program with fma in the function's format, or over the reals without fma."""
    if not function.format.is_real:
        return round_program(function, shortened(function, program))
    return shortened(function, program).unfused()


def shortened(function: Function, program: Program) -> Program:
    """The program with constants of as many bits as its error deserves: 64 beside twice its own.

    The error is estimated at 17 points; an exact program keeps 512 bits.
    """
    with ctx.workprec(1024):
        low, high = map(exact, function.interval)
        points = [((low * (34 - k) + high * k) / 34).mid() for k in range(1, 34, 2)]
        pairs = [(program.run(x, _BALLS, _ball), function.oracle.value(x)) for x in points]
        errors = [abs(y - f).mid() for y, f in pairs if (y - f).is_finite()]
        scale = max((abs(f).mid() for _, f in pairs if f.is_finite()), default=arb(1))
        worst = max(errors, default=arb(1)) / scale if bool(scale > 0) else arb(1)
        lost = -exponent(to_fraction(worst.mid())) if bool(worst > arb(2) ** -224) else 224
    bits = 64 + 2 * max(lost, 0)

    constants = {
        name: significant(value, bits) if isinstance(value, Fraction) else value
        for name, value in program.constants.items()
    }
    return replace(program, constants=constants)


def _ball(value: object) -> arb:
    return exact(value) if isinstance(value, Fraction) else arb(value)  # type: ignore[arg-type]


_BALLS = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "fma": lambda a, b, c: a * b + c,
}


def parsed_type(dial: str) -> tuple[int, int]:
    """The degrees in `"m/n"`; raises `InputError` for anything else."""
    parts = str(dial).split("/")
    if len(parts) != 2 or not all(part.strip().isdigit() for part in parts):
        raise InputError(f"dial {dial!r}: a rational's dial is its type, as '3/2'")
    return int(parts[0]), int(parts[1])


def degrees(function: Function) -> list[int]:
    """Degrees from cheap to dear; those of its parity, up to twice as high, for even and odd ones.

    In a machine format the list ends with the first degree whose error is a sixteenth of an ULP.
    """
    problem = target(canonical(function))
    first = sum(zero.order for zero in problem.zeros) or problem.step
    last = DEGREES[function.dtype] * problem.step
    candidates = list(range(first, last + 1, problem.step))
    return _until_good(
        function, candidates, lambda degree: polynomial.minimax(function, degree).error
    )


def types(function: Function) -> list[str]:
    """Types m/n on and next to the diagonal, from cheap to dear, as `degrees` does."""
    problem = target(canonical(function))
    taken = sum(zero.order for zero in problem.zeros)
    step, limit = problem.step, DEGREES[function.dtype]
    pairs = [(below + more, below) for below in range(1, limit) for more in (0, 1)]
    if step == 2 and taken:
        pairs = [(0, 1), *pairs]  # what multiplies the zero may be of type 0/1
    sizes = [(taken * (step - 1) + step * m, step * n) for m, n in pairs if m + n <= limit]
    candidates = [f"{m}/{n}" for m, n in sizes if m >= taken]
    return _until_good(
        function, candidates, lambda dial: rational.minimax(function, *parsed_type(dial)).error
    )


def _until_good(
    function: Function, candidates: Sequence[Dial], error: Callable[[Dial], Fraction]
) -> list[Dial]:
    """The dials up to the first whose fit is too good for its format to show."""
    if function.format.is_real:
        return list(candidates)
    enough = _sixteenth(function)
    kept: list[Dial] = []
    for dial in candidates:
        try:
            found = error(dial)
        except InputError:
            break  # a degenerate type: dearer ones are so too
        kept.append(dial)
        if found < enough:
            break
    return kept


def _sixteenth(function: Function) -> Fraction:
    """A sixteenth of an ULP, in the function's measure."""
    if function.error == "ulp":
        return Fraction(1, 16)
    part = Fraction(1, 2 ** (function.format.precision + 3))
    if function.error == "relative":
        return part
    low, high = function.interval
    with ctx.workprec(128):
        values = [function.oracle.value(exact(x)) for x in (low, (low + high) / 2, high)]
        return part * max(to_fraction(abs(v)) for v in values if v.is_finite())


# ------------------------------------------------------------------ the builders


def _minimax(function: Function, degree: int) -> Polynomial:
    return polynomial.minimax(function, degree).polynomial


def _truncation(function: Function, degree: int) -> Polynomial:
    return chebyshev.truncation(function, degree).polynomial()


def _interpolation(function: Function, degree: int) -> Polynomial:
    return chebyshev.interpolation(function, degree).polynomial()


def _rational(function: Function, numerator: int, denominator: int) -> Rational:
    return rational.minimax(function, numerator, denominator).rational


def _taylor_origin(function: Function, degree: int) -> Polynomial:
    return taylor_polynomial(function, degree, Fraction(0))


def _pade_origin(function: Function, numerator: int, denominator: int) -> Rational:
    return rational.pade(function, numerator, denominator, Fraction(0))


taylor = PolynomialBuilder(taylor_polynomial, horner)
taylor_origin = PolynomialBuilder(_taylor_origin, horner)
chebyshev_truncation = PolynomialBuilder(_truncation, horner)
chebyshev_interpolation = PolynomialBuilder(_interpolation, horner)
chebyshev_clenshaw = ClenshawBuilder(chebyshev.truncation)
minimax = PolynomialBuilder(_minimax, horner)
minimax_estrin = PolynomialBuilder(_minimax, estrin)
minimax_even_odd = PolynomialBuilder(_minimax, even_odd)
minimax_paterson_stockmeyer = PolynomialBuilder(_minimax, paterson_stockmeyer)
minimax_knuth_eve = PreconditionedBuilder(_minimax)
pade = RationalBuilder(rational.pade, continued_fraction)
pade_origin = RationalBuilder(_pade_origin, continued_fraction)
rational_two_horner = RationalBuilder(_rational, two_horner)
rational_continued_fraction = RationalBuilder(_rational, continued_fraction)
rational_even = EvenRationalBuilder()
