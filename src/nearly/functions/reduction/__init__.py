"""Range reduction: elementary functions over a whole format from cores over small domains.

A reduction is written once for every format, over `Builder`, and takes whatever core programs it
is given. Three rules hold for all of them, because the same program must be right as C with fma,
as C without, and under XLA's compiler, which contracts any product with a sum and flushes
subnormal numbers to zero:

- nothing depends on an fma being exact, nor on one not being used: products that must be exact
  have few enough bits;
- subnormal arguments and results move through integers only;
- the special values (0, infinity, NaN, overflow, outside the domain) are selected, or come about
  by themselves; parts that the function's domain cannot reach are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import NamedTuple

from nearly.functions.function import Function
from nearly.functions.named import ALIASES
from nearly.functions.reduction.digamma import digamma
from nearly.functions.reduction.error_function import erf, erfc
from nearly.functions.reduction.exponential import exponential
from nearly.functions.reduction.gelu import gelu
from nearly.functions.reduction.hyperbolic import cosh, expm1, sigmoid, sinh, tanh
from nearly.functions.reduction.inverse import acos, asin, atan
from nearly.functions.reduction.inverse_error_function import erfinv
from nearly.functions.reduction.log_gamma import lgamma
from nearly.functions.reduction.logarithm import log1p, logarithm
from nearly.functions.reduction.root import cbrt, rsqrt, sqrt
from nearly.functions.reduction.scheme import Reduction
from nearly.functions.reduction.trigonometric import tangent, trigonometric

__all__ = ["Reduction", "reduction"]


class Family(NamedTuple):
    """A reduction, and the bounded domain on which the function is as easily approximated as is."""

    reduce: Callable[[Function], Reduction]
    plain: tuple[Fraction, Fraction]


def _symmetric(family: Callable[[Function], Reduction], reach: Fraction | int) -> Family:
    return Family(family, (Fraction(-reach), Fraction(reach)))


def _around_one(family: Callable[[Function], Reduction], factor: int) -> Family:
    return Family(family, (Fraction(1, factor), Fraction(factor)))


FAMILIES: Mapping[str, Family] = {
    "exp": _symmetric(exponential, 1),
    "exp2": _symmetric(exponential, 1),
    "exp10": _symmetric(exponential, 1),
    "expm1": _symmetric(expm1, 1),
    "log": _around_one(logarithm, 2),
    "log2": _around_one(logarithm, 2),
    "log10": _around_one(logarithm, 2),
    "log1p": Family(log1p, (Fraction(-1, 4), Fraction(1, 2))),
    "sin": _symmetric(trigonometric, Fraction(11, 7)),
    "cos": _symmetric(trigonometric, Fraction(11, 7)),
    "tan": _symmetric(tangent, Fraction(11, 14)),
    "atan": _symmetric(atan, 1),
    "asin": _symmetric(asin, Fraction(1, 2)),
    "acos": _symmetric(acos, Fraction(1, 2)),
    "tanh": _symmetric(tanh, 1),
    "sinh": _symmetric(sinh, 1),
    "cosh": _symmetric(cosh, 1),
    "sigmoid": _symmetric(sigmoid, 1),
    "erf": _symmetric(erf, 1),
    "erfc": _symmetric(erfc, 1),
    "erfinv": _symmetric(erfinv, Fraction(1, 2)),
    "gelu": _symmetric(gelu, 1),
    "lgamma": Family(lgamma, (Fraction(1, 2), Fraction(3))),
    "digamma": Family(digamma, (Fraction(1), Fraction(2))),
    "sqrt": _around_one(sqrt, 4),
    "rsqrt": _around_one(rsqrt, 4),
    "cbrt": _around_one(cbrt, 8),
}


def reduction(function: Function) -> Reduction | None:
    """What is left to approximate of a function, and how its whole domain follows from that.

    **Arguments:**

    - `function`: on any domain, in a machine format.

    **Returns:** `None` where no reduction is known, over the reals, and on a small domain, where
    the function itself is approximated as easily. Otherwise the error is below `Reduction.bound`
    with good cores, at every number of the domain, whether compiled with fma, without, or with
    contraction and subnormal numbers flushed: sin, cos and tan too, by Payne and Hanek's reduction
    where |x| goes beyond 2^(p/2 + 2) and by Cody and Waite's, a third as dear, where it does not.
    """
    name = ALIASES.get(function.name, function.name)
    if function.format.is_real or name not in FAMILIES:
        return None
    family = FAMILIES[name]
    if function.is_bounded:
        low, high = function.interval
        if family.plain[0] <= low and high <= family.plain[1]:
            return None
    return family.reduce(function)
