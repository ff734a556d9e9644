"""Training networks on differential equations in any dimension, amortised over the steps (`stde`).

Each step estimates the operator from a few directions at a few random points. Over the training
all summands are visited; the cost of a step does not know how many there are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from nearly.core.errors import InputError
from nearly.derivatives.curves import Blocks, Dense, LinearMap, Projected
from nearly.derivatives.operators import Operator
from nearly.derivatives.samplers import Sampler
from nearly.derivatives.stde import Estimate, stde

Residual = Callable[[Estimate, Float[Array, " d"]], Float[Array, ""]]
Points = Float[Array, "n d"]


def unbiased_residual_loss(
    operator: Operator, residual: Residual, sampler: Sampler | None = None
) -> Callable[[Any, Points, Key[Array, ""]], Float[Array, ""]]:
    """The mean squared residual of an equation, estimated without bias.

    **Arguments:**

    - `operator`: the linear part, estimated by `stde` with `sampler`.
    - `residual`: (estimate, x) -> what should be zero, affine in `estimate.value`; nonlinear terms
      in u itself come from `estimate.function`, which is exact.

    **Returns:** a loss (model, points, key) -> scalar for `nearly.training.fit`.

    The square of an unbiased estimate overestimates the square by the variance, and its minimum
    lies where the variance is small rather than the residual. So the square is the product of two
    estimates from independent directions; its gradient is unbiased too. It takes twice the jets,
    and can be negative. The paper's own loss is `single_sample_residual_loss`.
    """
    transformation = stde(operator, sampler)

    def at_point(model: Any, x: Float[Array, " d"], key: Any) -> Float[Array, ""]:
        estimator = transformation(model)
        one, other = (residual(estimator(x, k), x) for k in jax.random.split(key))
        return one * other

    return _mean_over_points(at_point)


def single_sample_residual_loss(
    operator: Operator, residual: Residual, sampler: Sampler | None = None
) -> Callable[[Any, Points, Key[Array, ""]], Float[Array, ""]]:
    """The paper's loss: the square of one estimate, biased upwards by its variance.

    Arguments and result as `unbiased_residual_loss`; half its jets. Harmless where the summands
    are alike, as in the paper's equations.
    """
    transformation = stde(operator, sampler)

    def at_point(model: Any, x: Float[Array, " d"], key: Any) -> Float[Array, ""]:
        return residual(transformation(model)(x, key), x) ** 2

    return _mean_over_points(at_point)


def _mean_over_points(at_point: Callable[..., Any]) -> Callable[..., Any]:
    def loss(model: Any, points: Points, key: Key[Array, ""]) -> Float[Array, ""]:
        keys = jax.random.split(key, len(points))
        return jax.vmap(at_point, (None, 0, 0))(model, points, keys).mean()

    return loss


class BallPoints(eqx.Module):
    """Random points of the unit ball, uniform in direction and in radius, as in the paper.

    Called with a key, so that it is the `data` of `nearly.training.fit`.
    """

    count: int = eqx.field(static=True)
    dimension: int = eqx.field(static=True)
    dtype: str = eqx.field(default="float32", static=True)

    def __check_init__(self) -> None:
        if self.count < 1 or self.dimension < 1:
            raise InputError(f"{self.count} points in {self.dimension} dimensions: at least 1 each")

    def __call__(self, key: Key[Array, ""]) -> Points:
        rays, radii = jax.random.split(key)
        x = jax.random.normal(rays, (self.count, self.dimension), self.dtype)
        r = jax.random.uniform(radii, (self.count, 1), self.dtype)
        return x * (r / jnp.linalg.norm(x, axis=1, keepdims=True))


class BallHead(eqx.Module):
    """All of a network but its first matrix, times 1 - |x|^2: zero on the unit sphere exactly."""

    bias: Float[Array, " w"]
    layers: tuple[eqx.nn.Linear, ...]

    def __call__(self, hidden: Float[Array, " w"], square: Float[Array, ""]) -> Float[Array, ""]:
        value = hidden + self.bias
        for layer in self.layers:
            value = layer(jnp.tanh(value))
        return (1 - square) * value[0]


def ball_network(
    dimension: int,
    key: Key[Array, ""],
    *,
    width: int = 128,
    depth: int = 4,
    block: int = 1,
    dtype: str = "float32",
) -> Projected:
    """A tanh network that vanishes on the unit sphere, in the form `stde` differentiates fastest.

    **Arguments:** `width` and `depth`: 128 and 4 layers of weights in the paper. `block`: how many
    coordinates share a weight of the first layer through one kernel (the paper's convolution); 1:
    none, then the first layer holds dimension x width numbers, 512 MB for 10^6 x 128 in float32.

    Raises `InputError` if the block does not divide the dimension.
    """
    if depth < 2 or width < 1:
        raise InputError(f"depth {depth} must be at least 2 and width {width} at least 1")
    first, *keys = jax.random.split(key, depth)
    sizes = [width] * (depth - 1) + [1]
    layers = tuple(_linear(a, b, k, dtype) for a, b, k in zip(sizes, sizes[1:], keys, strict=False))
    head = BallHead(jnp.zeros(width, dtype), layers)
    return Projected(_first_layer(dimension, width, block, first, dtype), head)


def _linear(inputs: int, outputs: int, key: Any, dtype: str) -> eqx.nn.Linear:
    layer = eqx.nn.Linear(inputs, outputs, dtype=jnp.dtype(dtype), key=key)
    weight = jax.random.normal(key, (outputs, inputs), dtype) / inputs**0.5
    zero = jnp.zeros(outputs, dtype)
    return eqx.tree_at(lambda m: (m.weight, m.bias), layer, (weight, zero))


def _first_layer(dimension: int, width: int, block: int, key: Any, dtype: str) -> LinearMap:
    if block < 1 or dimension % block:
        raise InputError(f"block {block} must be positive and divide the dimension {dimension}")
    one, other = jax.random.split(key)
    rows = dimension // block
    weight = jax.random.normal(one, (rows, width), dtype) / rows**0.5
    if block == 1:
        return Dense(weight)
    return Blocks(jax.random.normal(other, (block,), dtype) / block**0.5, weight)
