"""`Function`: what a builder is asked to approximate - a function, a domain, an error, a format."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from fractions import Fraction
from functools import cached_property

from flint import arb, ctx

from nearly.core.errors import InputError, NotProven, UnknownName
from nearly.functions.balls import exact, to_fraction
from nearly.functions.expressions import constant_number, parse, parse_constant
from nearly.functions.formats import Format, format_named
from nearly.functions.named import ALIASES, ELEMENTARY
from nearly.functions.oracle import Oracle
from nearly.functions.terms import Zero, leading_zeros

ERRORS = ("relative", "absolute", "ulp")
NORMS = ("sup", "l2")

_NAME = re.compile(r"\s*[A-Za-z_]\w*\s*\Z")
_MOST_CELLS = 2000
_MOST_ZEROS = 200
_FINEST = 40  # halvings


@dataclass(frozen=True)
class Function:
    """A scalar function to approximate.

    **Arguments:**

    - `name`: a known name (`"exp2"`), a safe expression in `x` (`"log1p(x)/x"`), or
      `"file.py:attribute"` of a Python callable.
    - `domain`: the two ends as expressions: `("0", "pi/4")`, `("-inf", "inf")`; decimals are
      taken exactly. In a machine format the domain is every number of the format between them.
    - `dtype`: `"real"`, `"float64"`, `"float32"`, `"bfloat16"` or `"float16"`.
    - `error`: what is measured: `"relative"`, `"absolute"` or `"ulp"`.
    - `norm`: `"sup"` or `"l2"` (root mean square over the domain).

    Hashable and picklable: what is sent to a worker is these five strings. Raises `InputError`
    where the function has a pole in a bounded domain or is not defined all over it; over an
    unbounded one (a machine format only) infinities and NaN are part of the function.
    """

    name: str
    domain: tuple[str, str] = ("0", "1")
    dtype: str = "real"
    error: str = "relative"
    norm: str = "sup"

    def __post_init__(self) -> None:
        _check_ends(self.domain)
        if self.error not in ERRORS:
            raise UnknownName("error measure", self.error, ERRORS)
        if self.norm not in NORMS:
            raise UnknownName("norm", self.norm, NORMS)
        self._check_formats()
        if not self.is_callable:
            self.oracle  # noqa: B018 - reads the name now, where the caller can see the error

    def _check_formats(self) -> None:
        if self.format.is_real and self.error == "ulp":
            raise InputError("real numbers have no ULP: choose a dtype or error='relative'")
        with ctx.workprec(128):
            low, high = self.ends
            ordered = bool(low < high)
        if not ordered:
            raise InputError(
                f"the domain [{self.domain[0]}, {self.domain[1]}] is empty: its first end must be "
                "below its second"
            )
        if self.is_bounded:
            return
        if self.format.is_real:
            raise InputError(
                f"the domain ({self.domain[0]}, {self.domain[1]}) is unbounded: over real numbers "
                "give two finite ends, or choose a dtype"
            )
        if self.norm == "l2":
            raise InputError("the l2 norm needs a bounded domain: give two finite ends")

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), astuple(self)

    @property
    def is_callable(self) -> bool:
        """Whether the name is `file.py:attribute`."""
        return ":" in self.name

    @property
    def format(self) -> Format:
        return format_named(self.dtype)

    @property
    def provable(self) -> bool:
        """Whether the truth is guaranteed; if not, every result is MEASURED."""
        return self.oracle.provable

    @cached_property
    def oracle(self) -> Oracle:
        """The truth. Raises `InputError` for an unknown name, a pole or an undefined part."""
        found = self._find()
        if found.provable and self.is_bounded:
            _check_defined(found, *self.interval)
        return found

    def _find(self) -> Oracle:
        if self.is_callable:
            from nearly.functions.tracing import load_oracle

            return load_oracle(self.name)
        if _NAME.match(self.name) and self.name.strip() not in ("x", "pi", "e"):
            name = self.name.strip()
            if ALIASES.get(name, name) not in ELEMENTARY:
                hint = "(or write an expression in x, as 'log1p(x)/x')"
                raise UnknownName("function", name, [*ELEMENTARY, *ALIASES], hint)
        return parse(self.name)

    @property
    def ends(self) -> tuple[arb, arb]:
        """The two ends of the domain, as balls at the working precision (possibly infinite)."""
        low, high = (parse_constant(end) for end in self.domain)
        return low(), high()

    @cached_property
    def is_bounded(self) -> bool:
        return all(end.is_finite() for end in self.ends)

    @property
    def exact_ends(self) -> tuple[Fraction | None, Fraction | None]:
        """Each end where it is rational by its form, else `None`."""
        low, high = (constant_number(end) for end in self.domain)
        return low, high

    @cached_property
    def interval(self) -> tuple[Fraction, Fraction]:
        """A rational interval that contains the domain, within 2^-300 of it, relatively.

        What builders and provers use for an end like pi/4. Raises `InputError` if infinite.
        """
        if not self.is_bounded:
            raise InputError(
                f"the domain ({self.domain[0]}, {self.domain[1]}) is unbounded: give finite ends"
            )
        low, high = self.exact_ends
        with ctx.workprec(400):
            a, b = self.ends
            with ctx.workprec(340):
                return (
                    to_fraction(a.lower()) if low is None else low,
                    to_fraction(b.upper()) if high is None else high,
                )

    @cached_property
    def parity_on_domain(self) -> str | None:
        """`"odd"` or `"even"` where the function is so and the domain symmetric about 0."""
        low, high = self.exact_ends
        if low is None or high is None:
            with ctx.workprec(400):
                a, b = self.ends
                symmetric = bool(a == -b) or (self.is_bounded and bool((a + b).contains(0)))
        else:
            symmetric = low == -high
        return self.oracle.parity if symmetric else None

    @cached_property
    def zeros(self) -> tuple[Zero, ...]:
        """The points of the domain where the function is known to be exactly zero, ascending.

        Known are the zeros of the named functions that are rational or rational multiples of pi,
        and those of compositions at 0, ±1, their own constants and the ends. Of more than 200,
        those next to 0.
        """
        if not self.oracle.provable:
            return ()
        with ctx.workprec(400):
            found = {zero.text: zero for zero in self._zeros()}
            return tuple(sorted(found.values(), key=lambda z: float(z.point())))

    def _zeros(self) -> Iterator[Zero]:
        largest = arb(2) ** 30
        low, high = self.ends
        a, b = low.max(-largest), high.min(largest)
        texts: list[str] = []
        for points in self.oracle.zeros:
            texts.extend(points.within(a, b, _MOST_ZEROS))
        for end in self.exact_ends:
            if end is not None and leading_zeros(self.oracle.coefficients, end):
                texts.append(str(end))
        for text in texts:
            number = constant_number(text)
            order = 1 if number is None else _order(self.oracle, number)
            yield Zero(text, order, parse_constant(text), number)

    def __str__(self) -> str:
        return f"{self.name} on [{self.domain[0]}, {self.domain[1]}], {self.dtype}"


def _order(f: Oracle, point: Fraction) -> int:
    """The order of a zero; 0 where the function has no Taylor series there."""
    with ctx.workprec(64):
        order = leading_zeros(f.coefficients, point)
        return order if f.coefficients(exact(point), order + 1)[order].is_finite() else 0


def _check_ends(domain: object) -> None:
    ends = domain if isinstance(domain, tuple) else ()
    if len(ends) != 2 or not all(isinstance(end, str) for end in ends):
        raise InputError(f"a domain is two texts, as ('0', 'pi/4'); got {domain!r}")
    for end in ends:
        if end.strip().lower().lstrip("+-") == "nan":
            raise InputError("an end of the domain is NaN: give a number, as '0' or 'pi/4'")


def _check_defined(f: Oracle, low: Fraction, high: Fraction) -> None:
    """Raise `InputError` where `f` has no finite value between `low` and `high`.

    Halves the domain until every cell has a finite enclosure; the first point where that fails is
    named. A cell at an end is excused if the end itself has a value (the root at 0).
    """
    for end in (low, high):
        _need_value(f, end, low, high)
    cells = [(low, high, 0)]
    seen = 0
    with ctx.workprec(128):
        while cells and seen < _MOST_CELLS:
            a, b, depth = cells.pop()
            seen += 1
            middle = (a + b) / 2
            if f.value(_hull(a, b)).is_finite():
                _need_value(f, middle, low, high)
            elif depth < _FINEST:
                _need_value(f, middle, low, high)
                cells.extend([(middle, b, depth + 1), (a, middle, depth + 1)])
            elif a != low and b != high:
                raise _no_value(f, _simple(middle, b - a), low, high)


def _simple(point: Fraction, width: Fraction) -> Fraction:
    """A round number in a cell, if there is one: the pole at 0, not at 4.5e-13."""
    near = point.limit_denominator(100)
    return near if abs(near - point) <= width else point


def _hull(a: Fraction, b: Fraction) -> arb:
    return exact(a).union(exact(b))


def _need_value(f: Oracle, point: Fraction, low: Fraction, high: Fraction) -> None:
    with ctx.workprec(128):
        if f.value(_hull(point, point)).is_finite():
            return
    try:
        f.at(point, 8)
    except NotProven:
        raise _no_value(f, point, low, high) from None


def _no_value(f: Oracle, point: Fraction, low: Fraction, high: Fraction) -> InputError:
    step = (high - low) / 2**30
    sides = [side for side in (-step, step) if low <= point + side <= high]
    with ctx.workprec(128):
        near = [f.value(_hull(point + side, point + side)) for side in sides]
        far = [f.value(_hull(point + 1024 * s, point + 1024 * s)) for s in sides]
        if not all(ball.is_finite() for ball in near):
            what = "is not defined"
        elif any(abs(a) > 1.1 * abs(b) for a, b in zip(near, far, strict=True)):
            what = "has a pole"
        else:
            what = "has no value that can be decided"
    return InputError(f"{f.text} {what} at x = {float(point):.10g} in the domain; shorten it")
