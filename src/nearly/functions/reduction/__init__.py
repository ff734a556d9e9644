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

from nearly.functions.function import Function
from nearly.functions.reduction.error_function import erf
from nearly.functions.reduction.exponential import exponential
from nearly.functions.reduction.hyperbolic import cosh, expm1, sigmoid, sinh, tanh
from nearly.functions.reduction.inverse import asin, atan
from nearly.functions.reduction.logarithm import logarithm
from nearly.functions.reduction.root import cbrt, rsqrt, sqrt
from nearly.functions.reduction.scheme import Reduction
from nearly.functions.reduction.trigonometric import trigonometric

__all__ = ["Reduction", "reduction"]

FAMILIES: Mapping[str, Callable[[Function], Reduction]] = {
    "exp": exponential,
    "exp2": exponential,
    "exp10": exponential,
    "log": logarithm,
    "log2": logarithm,
    "log10": logarithm,
    "sin": trigonometric,
    "cos": trigonometric,
    "tan": trigonometric,
    "atan": atan,
    "asin": asin,
    "tanh": tanh,
    "sinh": sinh,
    "cosh": cosh,
    "expm1": expm1,
    "sigmoid": sigmoid,
    "erf": erf,
    "sqrt": sqrt,
    "rsqrt": rsqrt,
    "cbrt": cbrt,
}


def reduction(function: Function) -> Reduction | None:
    """What is left to approximate of a function, and how its whole domain follows from that.

    `None` where no reduction is known, over the reals, and where the domain is not larger than the
    core's: there the function is approximated as it is.
    """
    if function.format.is_real or function.name not in FAMILIES:
        return None
    return FAMILIES[function.name](function)
