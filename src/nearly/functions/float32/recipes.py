"""How each float32 function is made: which builder fits each core, at which dial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from nearly.core import catalogue
from nearly.functions.emit_jax import Near
from nearly.functions.function import Function
from nearly.functions.program import Program
from nearly.functions.reduction.scheme import Reduction

EVERYWHERE = ("-inf", "inf")


@dataclass(frozen=True)
class Recipe:
    """A function over all of float32.

    **Arguments:**

    - `name`: of the function, in our catalogue and in JAX.
    - `methods`: the builder of each core of its range reduction, in the catalogue's names; one
      stands for all.
    - `dial`: of each core, as `"8+6"`; one for all.
    - `derivative`: of the truth, an expression in `x` and the value `y`: derivatives of all orders
      follow from it. They are taken with JAX's own functions.
    - `tolerance`: the error promised, in ULP.
    - `floor`: where the truth is below it in size, near a zero, the error is promised in ULP of
      `floor` instead: an absolute error.
    """

    name: str
    methods: tuple[str, ...]
    dial: str
    derivative: str
    tolerance: float = 1.0
    floor: float = 0.0

    @property
    def function(self) -> Function:
        return Function(self.name, EVERYWHERE, "float32", "ulp")

    def program(self) -> Program:
        """Reduction, cores and rounding by our own tools; the same program every time."""
        reduced, cores = self._parts
        return reduced.wrap(*cores)

    def near_program(self) -> Near | None:
        """The cheaper program for arrays without large numbers, if the reduction has one."""
        reduced, cores = self._parts
        return Near(reduced.wrap_near(*cores), reduced.near[0]) if reduced.near else None

    @cached_property
    def _parts(self) -> tuple[Reduction, Sequence[Program]]:
        from nearly.functions.reduction import reduction

        reduced = reduction(self.function)
        assert reduced is not None
        count = len(reduced.cores)
        methods = self.methods * count if len(self.methods) == 1 else self.methods
        dials = self.dial.split("+")
        dials = dials * count if len(dials) == 1 else dials
        cores = [
            catalogue.method(method, "functions")[0](core, int(dial) if dial.isdigit() else dial)
            for core, method, dial in zip(reduced.cores, methods, dials, strict=True)
        ]
        return reduced, cores

    def sentence(self, found: Mapping[str, Any]) -> str:
        """What a docstring says, from the figures that trying every input gave."""
        tried = "every input" if found["inputs"] == 2**32 else f"the {found['inputs']:,} tried"
        where = f"where |{self.name}(x)| >= {self.floor:g}" if self.floor else f"on {tried}"
        below = f", and by {self.absolute(found):.2g} at most where not" if self.floor else ""
        return (
            f"{self.name}(x), elementwise in float32: at most {found['worst_ulp']:.3g} ULP off "
            f"{where}{below}.\n\nTakes an array or a number and gives float32; float64 is refused. "
            f"The worst input is x = {found['worst_input']}."
        )

    def absolute(self, found: Mapping[str, Any]) -> float:
        """The absolute error where the truth is below the floor."""
        return found["worst_ulp"] * self.function.format.ulps(self.floor).item()


def _recipes(*recipes: Recipe) -> Mapping[str, Recipe]:
    return {recipe.name: recipe for recipe in recipes}


RECIPES = _recipes(
    Recipe("exp2", ("remez",), "5", "y*log(2)"),
    Recipe("exp", ("remez-estrin",), "5", "y"),
    Recipe("expm1", ("remez",), "5", "exp(x)"),
    Recipe("log2", ("remez-estrin",), "9", "1/(x*log(2))"),
    Recipe("log", ("remez-estrin",), "9", "1/x"),
    Recipe("log1p", ("remez-estrin",), "9", "1/(1+x)"),
    Recipe("sin", ("remez",), "6+6", "cos(x)"),
    Recipe("cos", ("remez",), "6+6", "-sin(x)"),
    Recipe("tan", ("remez",), "6", "1+y*y"),
    Recipe("atan", ("remez",), "10", "1/(1+x*x)"),
    Recipe("asin", ("remez",), "10", "rsqrt((1-x)*(1+x))"),
    Recipe("acos", ("remez",), "10", "-rsqrt((1-x)*(1+x))"),
    Recipe("cbrt", ("remez",), "4", "1/(3*y*y)"),
    Recipe("rsqrt", ("remez",), "4", "-0.5*y*y*y"),
    Recipe("erf", ("remez",), "6+12", "2/sqrt(pi)*exp(-x*x)"),
    Recipe("erfc", ("remez",), "11+12+4", "-2/sqrt(pi)*exp(-x*x)"),
    Recipe("erf_inv", ("remez",), "8+11+9", "sqrt(pi)/2*exp(y*y)"),
    Recipe("tanh", ("remez",), "10+4", "(1-y)*(1+y)"),
    Recipe("sigmoid", ("remez",), "4", "y*(1-y)"),
    Recipe(
        "gelu",
        ("remez-even-odd", "remez", "remez"),
        "11+12+4",
        # Far out x phi(x) is zero; clipped, infinity does not multiply it.
        "erfc(-x*sqrt(1/2))/2 + clip(x,-16,16)*exp(-clip(x,-16,16)**2/2)/sqrt(2*pi)",
    ),
    Recipe("lgamma", ("remez",), "12+10+8+4+5", "digamma(x)", 2.0, 4.0),
    Recipe("digamma", ("remez",), "11+5+8+5+7", "trigamma(x)", 2.0, 4.0),
)
