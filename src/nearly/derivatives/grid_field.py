"""A small grid-based neural field, and the fine-tuning that makes its own derivatives accurate."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from nearly.core.errors import InputError
from nearly.derivatives.local_fit import LocalPolynomial
from nearly.training.loop import Trained, fit


class GridField(eqx.Module):
    """Features of several grids over [-1, 1]^d, interpolated linearly, added or decoded.

    **Arguments:**

    - `levels`: one array of features for each grid, of shape (n + 1, …, n + 1, features), finest
      last.
    - `decoder`: from all levels' features to the value; None adds them up.

    The field of instant-ngp without its hash: continuous, with derivatives that jump at the cells'
    faces. Points outside are continued linearly.
    """

    levels: tuple[Array, ...]
    decoder: eqx.nn.MLP | None = None

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        features = [interpolated(level, x) for level in self.levels]
        if self.decoder is None:
            return sum((each.sum() for each in features), jnp.zeros((), x.dtype))
        return self.decoder(jnp.concatenate(features))[0]


def interpolated(level: Array, x: Float[Array, " d"]) -> Float[Array, " features"]:
    """A grid's features at x, linear between the corners of its cell: 2^d of them."""
    found = jnp.zeros(level.shape[-1], x.dtype)
    for corner, weight in corners(level.shape[:-1], x):
        found = found + weight * level[tuple(corner)]
    return found


def corners(shape: Sequence[int], x: Float[Array, " d"]) -> list[tuple[Any, Any]]:
    """The corners of the cell x lies in, as indices, with their weights."""
    cells = jnp.asarray(shape) - 1
    place = (x + 1) / 2 * cells
    low = jnp.clip(jnp.floor(place), 0, cells - 1)
    share = place - low
    found: list[tuple[Any, Any]] = []
    for upper in itertools.product((0, 1), repeat=len(shape)):
        up = jnp.asarray(upper)
        found.append((low.astype(int) + up, jnp.prod(jnp.where(up, share, 1 - share))))
    return found


def grid_field(
    dimension: int,
    key: Key[Array, ""],
    *,
    cells: Sequence[int] = (16, 32, 64, 128),
    features: int = 2,
    width: int = 32,
    dtype: str = "float32",
) -> GridField:
    """A hybrid field: grids of so many cells along each axis, and a ReLU network of one layer.

    Raises `InputError` for grids without cells. Memory: features x (cells + 1)^dimension a grid.
    """
    if not cells or min(cells) < 1:
        raise InputError(f"cells {tuple(cells)} must name at least one grid of at least one cell")
    decoding, *keys = jax.random.split(key, 1 + len(cells))
    shapes = [(n + 1,) * dimension + (features,) for n in cells]
    levels = [1e-4 * jax.random.normal(k, s, dtype) for k, s in zip(keys, shapes, strict=True)]
    inputs = features * len(cells)
    decoder = eqx.nn.MLP(inputs, 1, width, 1, dtype=jnp.dtype(dtype), key=decoding)
    return GridField(tuple(levels), decoder)


def fine_tune(
    fitted: LocalPolynomial,
    points: Float[Array, "m d"],
    *,
    key: Key[Array, ""],
    epochs: int = 40,
    batch: int = 256,
    weight: float = 1.0,
    learning_rate: float = 2e-4,
) -> Trained:
    """Train a field until its automatic gradients are those of the local fit, values as before.

    **Arguments:**

    - `fitted`: the fit whose `field` is tuned; a frozen copy of it is the teacher.
    - `points`: where gradients are to become accurate, such as samples of a surface. `epochs` over
      them in batches of `batch`. `weight`: of the gradients' loss.

    **Returns:** `Trained`, whose `model` is the tuned field.

    Raises `InputError` for fewer points than a batch.

    The loss is the mean square of the change of values plus `weight` times that of the difference
    of unit gradients, with Adam at 2e-4, as published (`hybrid-field-derivatives`). That rate
    suits features that a network decodes; where features are the values themselves it is noise
    larger than their errors. Costs one fit for each point, and then the field's gradients alone.
    """
    if len(points) < batch:
        raise InputError(f"{len(points)} points are fewer than a batch of {batch}: add some")
    values = jax.jit(jax.vmap(fitted.field))(points)
    normals = _unit(jax.jit(jax.vmap(lambda x: fitted(x).gradient))(points))

    def loss(field: Any, data: Any, _: Any) -> Any:
        x, before, normal = data
        value, gradient = jax.vmap(jax.value_and_grad(field))(x)
        apart = jnp.sum((_unit(gradient) - normal) ** 2, axis=1)
        return jnp.mean((value - before) ** 2) + weight * jnp.mean(apart)

    return fit(
        loss,
        fitted.field,
        (points, values, normals),
        optimizer=optax.adam(learning_rate),
        steps=epochs * (len(points) // batch),
        key=key,
        batch=batch,
    )


def _unit(vectors: Float[Array, "n d"]) -> Float[Array, "n d"]:
    # The square root has no derivative at 0, where a flat field has its gradient.
    return vectors / jnp.sqrt(jnp.sum(vectors**2, axis=1, keepdims=True) + 1e-12)
