"""The problem of bounding a network's local Lipschitz constant from above, as tightly as can be.

A method of the protocol "lipschitz-bounds" is called as `method(chain, box, norm)` and returns an
upper bound (`nearly.curvature.lipschitz.bounds.Bounder`). Where it has a field named in `DIALS`,
the dial sets that field.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nearly.core.errors import InputError
from nearly.core.problem import Host, Problem
from nearly.curvature.lipschitz import activations
from nearly.curvature.lipschitz.activations import Activation
from nearly.curvature.lipschitz.bounds import (
    NORMS,
    IntervalPropagation,
    LinearPropagation,
    Norm,
    NormProduct,
    RecurJac,
    sampled_lower_bound,
)
from nearly.curvature.lipschitz.branch_and_bound import BranchAndBound
from nearly.curvature.lipschitz.chain import Chain
from nearly.curvature.lipschitz.forward import Interval

DIALS: Mapping[str, Sequence[int]] = {"branches": (1, 64, 256, 1024), "slope_steps": (0, 10, 40)}
ACTIVATIONS: Mapping[str, Activation] = {
    "relu": activations.relu,
    "tanh": activations.tanh,
    "sigmoid": activations.sigmoid,
    "gelu": activations.gelu,
    "softplus": activations.softplus,
}


linear_propagation = LinearPropagation()
branch_and_bound = BranchAndBound()
recurjac = RecurJac()
interval_propagation = IntervalPropagation()
norm_product = NormProduct()


class LipschitzConstant(Problem):
    """The local Lipschitz constant of a chain over a box.

    The truth is not known but from below: the largest Jacobian among random points. The error is a
    bound's excess over that, relative; what cannot be avoided of it is the sample's own shortfall.
    A bound below the sample is a fault, and raises. Seconds are the work.
    """

    chain: Chain
    lower: Float[Array, " inputs"]
    upper: Float[Array, " inputs"]
    attained: float
    norm: Norm = "inf"
    name: str = "lipschitz constant"
    error_name: ClassVar[str] = "excess over a sample"
    work_name: ClassVar[str] = "seconds"
    protocol: ClassVar[str] = "lipschitz-bounds"
    dtype: ClassVar[str] = "float64"

    def __check_init__(self) -> None:
        if self.norm not in NORMS:
            raise InputError(f"norm {self.norm!r} must be one of {', '.join(NORMS)}")

    def random(self, method: Any) -> bool:
        return False

    def dials(self, method: Any) -> Sequence[Any]:
        field = _dial(method)
        return ("-",) if field is None else DIALS[field]

    def build(self, method: Any, dial: Any, *, key: Any) -> Any:
        field = _dial(method)
        if field is not None:
            method = dataclasses.replace(method, **{field: int(dial)})
        if isinstance(method, BranchAndBound) or not isinstance(method, eqx.Module):
            return Host(method)
        return method

    def apply(self, standin: Any, *, key: Any) -> Any:
        return standin(self.chain, Interval(self.lower, self.upper), self.norm)

    def errors(self, value: Any) -> Mapping[str, float]:
        bound = float(value)
        if bound < self.attained:
            raise ArithmeticError(f"bound {bound} is below {self.attained}, met at a point")
        return {"excess over a sample": bound / self.attained - 1, "bound": bound}

    def floor(self) -> float:
        return 1e-9


def _dial(method: Any) -> str | None:
    if not dataclasses.is_dataclass(method):
        return None
    fields = {field.name for field in dataclasses.fields(method)}
    return next((name for name in DIALS if name in fields), None)


def random_network(
    inputs: int = 16,
    width: int = 64,
    depth: int = 4,
    outputs: int = 10,
    activation: str = "relu",
    radius: float = 0.05,
    norm: Norm = "inf",
    seed: int = 0,
) -> LipschitzConstant:
    """A network of `depth` hidden layers at initialisation (He-normal), about a random point.

    Raises `InputError` for an activation or sizes that make no network.
    """
    if activation not in ACTIVATIONS:
        raise InputError(f"activation {activation!r} must be one of {', '.join(ACTIVATIONS)}")
    if min(inputs, width, depth, outputs) < 1 or not radius >= 0:
        raise InputError(
            f"inputs {inputs}, width {width}, depth {depth} and outputs {outputs} must be at least "
            f"1, and radius {radius} not negative"
        )
    draw = np.random.default_rng(seed).normal
    sizes = (inputs, *([width] * depth), outputs)
    weights = [draw(size=(n, m)) * np.sqrt(2 / m) for m, n in pairwise(sizes)]
    biases = [draw(size=n) * 0.1 for n in sizes[1:]]
    centre = draw(size=inputs)
    with jax.enable_x64(True):
        chain = Chain(
            tuple(map(jnp.asarray, weights)),
            tuple(map(jnp.asarray, biases)),
            (ACTIVATIONS[activation],) * depth,
        )
        lower, upper = jnp.asarray(centre - radius), jnp.asarray(centre + radius)
    attained = sampled_lower_bound(chain, lower, upper, norm, samples=4000)
    return LipschitzConstant(chain=chain, lower=lower, upper=upper, attained=attained, norm=norm)
