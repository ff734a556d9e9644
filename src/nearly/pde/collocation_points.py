"""Where an equation's residual is looked at: random points inside and on the faces with data."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from nearly.pde.equations import BoundaryValueProblem


class Cloud(eqx.Module):
    """Collocation points: inside, and on the faces that carry data."""

    interior: Float[Array, "n d"]
    boundary: Float[Array, "m d"]


class Uniform(eqx.Module):
    """Uniformly random collocation points. Called with a key, so that `fit` can draw them anew."""

    equation: BoundaryValueProblem
    interior: int = eqx.field(static=True)
    face: int = eqx.field(static=True)
    dtype: str = eqx.field(static=True)

    def __call__(self, key: Key[Array, ""]) -> Cloud:
        first, second = jax.random.split(key)
        faces = self.equation.faces
        boundary = [
            self._draw(k, self.face).at[:, axis].set((self._lower, self._upper)[side][axis])
            for k, (axis, side) in zip(jax.random.split(second, len(faces)), faces, strict=True)
        ]
        return Cloud(self._draw(first, self.interior), jnp.concatenate(boundary))

    def _draw(self, key: Any, count: int) -> Array:
        cells = jax.random.uniform(key, (count, self.equation.dimension), self.dtype)
        return self._lower + (self._upper - self._lower) * cells

    @property
    def _lower(self) -> Array:
        return jnp.asarray(self.equation.lower, self.dtype)

    @property
    def _upper(self) -> Array:
        return jnp.asarray(self.equation.upper, self.dtype)


class Kept(eqx.Module):
    """One draw of points, whatever the key: what `fit` takes as its batch."""

    cloud: Cloud

    def __call__(self, key: Any) -> Cloud:
        return self.cloud
