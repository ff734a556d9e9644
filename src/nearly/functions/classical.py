"""The best textbook form of a function at every count of operations: what a record has to beat.

Two baselines, kept apart (`autonumerics-zero`):

- `best`, the fair one: minimax polynomials and rationals of *every* type (m, n), each in the form
  that takes the fewest operations: Horner, Knuth-Eve, two Horners, continued fractions, and the
  centred even and odd forms wherever the function has such a symmetry. Estrin's, even/odd and
  Paterson-Stockmeyer's schemes never need fewer operations than Horner's, so they cannot be best.
- `published`, the paper's: polynomials by Horner, rationals as two Horners and a division, both in
  powers of x (of x^2 for an even or odd function).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import TypeVar

from flint import arb, ctx

from nearly.core.errors import InputError
from nearly.functions import polynomial, rational
from nearly.functions.balls import exact
from nearly.functions.function import Function
from nearly.functions.program import Builder, Program
from nearly.functions.rational_schemes import (
    continued_fraction,
    full_continued_fraction,
    odd_quotient,
    two_horner,
)
from nearly.functions.schemes import horner, knuth_eve, polynomial_program
from nearly.functions.target import canonical, target
from nearly.functions.taylor_bound import constant

USUAL_OPS, MOST_OPS = 14, 24  # listed at once, so that counts share their fits
CHECK_BITS = 1024
PUBLISHED = ("Horner", "two Horners")
POLYNOMIAL_FORMS = (("Horner", horner), ("Knuth-Eve", knuth_eve))
RATIONAL_FORMS = (
    ("two Horners", two_horner),
    ("continued fraction", continued_fraction),
    ("continued fraction in x", full_continued_fraction),  # for even and odd functions
)

Made = TypeVar("Made")


@dataclass(frozen=True)
class Classical:
    """A textbook approximation.

    **Arguments:**

    - `form`: the evaluation scheme. `type`: the degree, or the degrees as `"m/n"`.
    - `program`: over the reals, without fma.
    - `error`: of the minimax fit, in the function's measure.
    """

    form: str
    type: str
    program: Program
    error: Fraction

    @property
    def ops(self) -> int:
        return self.program.cost.ops


def best(function: Function, ops: int) -> Classical:
    """The most accurate textbook form of at most `ops` operations (`autonumerics-zero`).

    **Arguments:**

    - `function`: over the reals, on a finite domain.
    - `ops`: + - * / on values that depend on x, one each; at most 24.

    **Returns:** a `Classical`.

    **Raises:** `InputError` for a count that no form reaches.

    Cost: a minimax fit for each of some 30 types, seconds; cached.

    Differs from the paper, which compares with `published` only: the same minimax rationals cost a
    third less in other forms.
    """
    return _least(function, ops, forms(function, ops))


def published(function: Function, ops: int) -> Classical:
    """The most accurate form of at most `ops` operations among those the paper compares with.

    Arguments, result, errors and cost are those of `best`. Paper: `autonumerics-zero`.
    """
    return _least(function, ops, [f for f in forms(function, ops) if f.form in PUBLISHED])


def _least(function: Function, ops: int, found: list[Classical]) -> Classical:
    within = [form for form in found if form.ops <= ops]
    if not within:
        raise InputError(f"no textbook form of {function.name} takes {ops} operations: allow more")
    return min(within, key=lambda form: (form.error, form.ops))


def forms(function: Function, ops: int) -> list[Classical]:
    """Every textbook form of at most `ops` operations; see `best`."""
    if not 1 <= ops <= MOST_OPS:
        raise InputError(f"{ops} operations: textbook forms are listed for 1 to {MOST_OPS}")
    listed = _forms(canonical(function), USUAL_OPS if ops <= USUAL_OPS else MOST_OPS)
    return [form for form in listed if form.ops <= ops]


@lru_cache(maxsize=64)
def _forms(function: Function, ops: int) -> tuple[Classical, ...]:
    found = [*_polynomials(function, ops), *_rationals(function, ops), *_quotients(function, ops)]
    rest = _without_simple_part(function)
    if rest is not None:
        found += [rest.restored(form) for form in (*rest.polynomials(ops), *rest.rationals(ops))]
    truths = _truths(function)
    return tuple(form for form in found if _is_as_good_as_its_fit(function, form, truths))


def _truths(function: Function) -> list[tuple[arb, arb]]:
    """A few points of the domain, and the function there."""
    low, high = function.interval
    with ctx.workprec(CHECK_BITS):
        points = [exact(low + (high - low) * Fraction(k, 22)) for k in range(1, 22, 4)]
        return [(x, function.oracle.value(x)) for x in points]


def _is_as_good_as_its_fit(
    function: Function, form: Classical, truths: list[tuple[arb, arb]]
) -> bool:
    """Whether the program has the fit's error: of a nearly degenerate type some forms do not."""
    with ctx.workprec(CHECK_BITS):
        for x, truth in truths:
            error = abs(form.program.run(x, _BALLS, constant) - truth)
            allowed = exact(form.error) * (1 if function.error == "absolute" else abs(truth))
            if not bool(error < allowed * arb("1.01") + arb(2) ** -400):
                return False
    return True


_BALLS: Mapping[str, Callable[[arb, arb], arb]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
}


# ------------------------------------------------------------------ every type


def _polynomials(function: Function, ops: int, weight: str | None = None) -> Iterator[Classical]:
    """Minimax polynomials of every degree that Knuth's and Eve's forms bring within `ops`."""
    problem = target(function, weight=weight)
    taken = sum(zero.order for zero in problem.zeros)
    for size in range((2 * ops) // 3 + 1):
        degree = taken + problem.step * size
        if degree == 0:
            continue
        fit = polynomial.minimax(function, degree, weight=weight)
        for name, scheme in POLYNOMIAL_FORMS:
            program = _tried(lambda s=scheme, f=fit: polynomial_program(s, f.polynomial).unfused())
            if program is not None:
                yield Classical(name, str(degree), program, fit.error)


def _rationals(function: Function, ops: int, weight: str | None = None) -> Iterator[Classical]:
    problem = target(function, weight=weight)
    taken, step = sum(zero.order for zero in problem.zeros), problem.step
    for above, below in _types(ops):
        m, n = taken + step * above, step * below
        fit = _tried(lambda m=m, n=n: rational.minimax(function, m, n, weight=weight))
        if fit is None:
            continue  # the function is itself of a lower type
        for name, scheme in RATIONAL_FORMS[: 3 if step == 2 else 2]:
            program = _tried(lambda s=scheme, f=fit: s(f.rational).unfused())
            if program is not None:
                yield Classical(name, f"{m}/{n}", program, fit.error)


def _types(ops: int) -> Iterator[tuple[int, int]]:
    """The degrees that cost at most `ops` operations as a continued fraction, or nearly so."""
    for below in range(1, ops):
        for above in range(ops):
            if 3 * min(above, below) + 2 * abs(above - below) - 2 <= ops:
                yield above, below


def _quotients(function: Function, ops: int) -> Iterator[Classical]:
    """Exponentials as the odd quotient about the middle of the domain."""
    if function.error != "relative" or not rational.is_exponential(function):
        return
    for degree in range(1, (2 * ops) // 3):
        fit = rational.minimax_quotient(function, degree)
        yield Classical(
            "odd quotient", f"{degree}/{degree}", odd_quotient(fit).unfused(), fit.error
        )


def _tried(make: Callable[[], Made]) -> Made | None:
    """What is made, or None where the textbook has no such form."""
    try:
        return make()
    except InputError:
        return None


# ------------------------------------------------------------------ centred forms


@dataclass(frozen=True)
class _Rest:
    """A function whose even part about 0 is a constant, or whose odd part is linear, without it.

    **Arguments:**

    - `function`: what remains, odd or even. `weight`: of its error.
    - `constant`, `slope`: f is `constant + slope x` plus what remains.
    """

    function: Function
    weight: str | None
    constant: Fraction
    slope: Fraction

    def polynomials(self, ops: int) -> Iterator[Classical]:
        return _polynomials(self.function, ops - self.cost, self.weight)

    def rationals(self, ops: int) -> Iterator[Classical]:
        return _rationals(self.function, ops - self.cost, self.weight)

    @property
    def cost(self) -> int:
        return 2 if self.slope else 1

    def restored(self, form: Classical) -> Classical:
        builder = Builder()
        value = builder.inline(form.program, builder.x)
        if self.slope:
            value = value + builder.x * self.slope
        if self.constant:
            value = value + self.constant
        return replace(form, form=f"centred {form.form}", program=builder.program(value))


def _without_simple_part(function: Function) -> _Rest | None:
    """What remains of sigmoid - 1/2, gelu - x/2 and their like; None for other functions."""
    if target(function).step == 2 or function.error == "ulp":
        return None
    low, high = function.interval
    if not (low == 0 or low + high == 0):
        return None
    constant, slope = _simple_part(function)
    if not constant and not slope:
        return None
    of_x = function.name if "x" in function.name else f"{function.name}(x)"
    part = "*x" if slope else ""
    rest = replace(function, name=f"({of_x}) - ({constant or slope}){part}", error="absolute")
    weight = f"1/({of_x})" if function.error == "relative" else None
    return _Rest(rest, weight, constant, slope)


def _simple_part(function: Function) -> tuple[Fraction, Fraction]:
    """(c, 0) if f(x) + f(-x) = 2c, (0, s) if f(x) - f(-x) = 2 s x, to 200 bits; else (0, 0)."""
    with ctx.workprec(320):
        radius = exact(max(map(abs, function.interval)))
        points = [radius * k / 64 for k in (7, 19, 33, 50, 61)]
        value = function.oracle.value
        pairs = [(x, value(x), value(-x)) for x in points]
        if not all(a.is_finite() and b.is_finite() for _, a, b in pairs):
            return Fraction(0), Fraction(0)
        means = [(a + b) / 2 for _, a, b in pairs]
        slopes = [(a - b) / (2 * x) for x, a, b in pairs]
    return _common(means), _common(slopes)


def _common(values: list[arb]) -> Fraction:
    """The short number that all the balls are to 200 bits, or 0."""
    short = Fraction(float(values[0])).limit_denominator(64)
    with ctx.workprec(320):
        same = all(bool(abs(value - exact(short)).abs_upper() < 2.0**-200) for value in values)
    return short if same else Fraction(0)
