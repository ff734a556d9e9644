"""Operators that couple each point of a structured grid to its neighbours."""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Bool, Float, Shaped

from nearly.core.errors import InputError
from nearly.linear.operators.registration import Tags, dense, register

Offset = tuple[int, ...]
Grid = Float[Array, "*grid"]


class StencilOperator(lx.AbstractLinearOperator):
    """`(A u)(i) = sum_k coefficients_k(i) u(i + offset_k)` on a grid, with u = 0 around it.

    A product is one pass through the grid: XLA fuses the shifts, nothing is gathered.

    **Arguments:**

    - `coefficients`: one number for each offset, shape (offsets,), or one for each offset and
      point, shape (offsets, *grid).
    - `offsets`: the neighbours, as vectors of grid steps; each once.
    - `shape`: of the grid, and so of the arrays it is applied to.
    - `mask`: where there are unknowns, shape grid. Elsewhere (in obstacles) the operator is the
      identity, and the neighbours see zero. None: unknowns everywhere.
    - `tags`: what is known of it, as `lineax.positive_semidefinite_tag`.

    Differentiable with respect to `coefficients`.

    **Cost:** of a product, `2 * offsets * points` flops.
    """

    coefficients: Float[Array, "offsets ..."]
    mask: Bool[Array, "*grid"] | None
    offsets: tuple[Offset, ...] = eqx.field(static=True)
    shape: tuple[int, ...] = eqx.field(static=True)
    tags: Tags = eqx.field(static=True)

    def __init__(
        self,
        coefficients: Float[Array, "offsets ..."],
        offsets: tuple[Offset, ...],
        shape: tuple[int, ...],
        *,
        mask: Bool[Array, "*grid"] | None = None,
        tags: Tags = frozenset(),
    ) -> None:
        self.coefficients = coefficients
        self.offsets = offsets
        self.shape = shape
        self.mask = mask
        self.tags = tags

    def __check_init__(self) -> None:
        offsets, shape = self.offsets, self.shape
        if not shape or min(shape) < 1:
            raise InputError(f"a grid of shape {shape}; give one or more positive sizes")
        if len(set(offsets)) != len(offsets) or any(len(o) != len(shape) for o in offsets):
            raise InputError(
                f"offsets {offsets} must be different vectors of {len(shape)} grid steps"
            )
        if any(abs(step) >= n for o in offsets for step, n in zip(o, shape, strict=True)):
            raise InputError(f"offsets {offsets} reach across the whole grid of shape {shape}")

    @property
    def is_constant(self) -> bool:
        """Whether the coefficients are the same at every point."""
        return self.coefficients.ndim == 1

    def mv(self, vector: Grid) -> Grid:
        """The product with an array on the grid."""
        if self.mask is None:
            return self._couple(vector)
        inside = jnp.where(self.mask, vector, 0)
        return jnp.where(self.mask, self._couple(inside), vector)

    def _couple(self, u: Grid) -> Grid:
        total = jnp.zeros_like(u)
        for c, offset in zip(self.coefficients, self.offsets, strict=True):
            total = total + c * shift(u, offset)
        return total

    def as_matrix(self) -> Float[Array, "rows columns"]:
        """The dense matrix; points are counted with the last index fastest."""
        return dense(self)

    def transpose(self) -> StencilOperator:
        """The operator with the transposed matrix (itself if it is tagged symmetric)."""
        if lx.is_symmetric(self):
            return self
        coefficients = self.coefficients
        if not self.is_constant:
            pairs = zip(coefficients, self.offsets, strict=True)
            coefficients = jnp.stack([shift(c, opposite(o)) for c, o in pairs])
        return StencilOperator(
            coefficients,
            tuple(opposite(o) for o in self.offsets),
            self.shape,
            mask=self.mask,
            tags=lx.transpose_tags(self.tags),
        )

    def in_structure(self) -> Any:
        return jax.ShapeDtypeStruct(self.shape, self.coefficients.dtype)

    def out_structure(self) -> Any:
        return self.in_structure()

    def plus(self, number: Float[Array, ""] | float) -> StencilOperator:
        """The operator with a number added to its diagonal (outside obstacles); keeps its tags.

        So the caller must know that the sum is still what the tags say.
        """
        centre = self.offsets.index((0,) * len(self.shape))
        added = self.coefficients.at[centre].add(number)
        return eqx.tree_at(lambda a: a.coefficients, self, added)

    def __len__(self) -> int:
        return math.prod(self.shape)


def shift(u: Shaped[Array, "*grid"], offset: Offset) -> Shaped[Array, "*grid"]:
    """The array `i -> u(i + offset)`, zero where that is outside of the grid."""
    if not any(offset):
        return u
    # Of the ways to write a shift this is the one that XLA fuses without a copy.
    return jax.lax.pad(u, jnp.zeros((), u.dtype), [(-step, step, 0) for step in offset])


def opposite(offset: Offset) -> Offset:
    """The offset in the other direction."""
    return tuple(-step for step in offset)


register(StencilOperator)


@lx.diagonal.register(StencilOperator)
def _(operator: StencilOperator) -> Float[Array, " points"]:
    return diagonal_on_grid(operator).ravel()


def diagonal_on_grid(operator: StencilOperator) -> Float[Array, "*grid"]:
    """The diagonal of the matrix, on the grid."""
    centre = (0,) * len(operator.shape)
    if centre not in operator.offsets:
        own = jnp.zeros((), operator.coefficients.dtype)
    else:
        own = operator.coefficients[operator.offsets.index(centre)]
    everywhere = jnp.broadcast_to(own, operator.shape)
    return everywhere if operator.mask is None else jnp.where(operator.mask, everywhere, 1)
