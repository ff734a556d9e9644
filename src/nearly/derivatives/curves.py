"""Derivatives of a function along a curve, and functions for which they cost O(1) in dimension.

Along an axis only one coordinate of x moves. A function of the form head(A x, |x|^2) can tell:
`Projected` moves by a column of A instead of pushing a vector of d numbers through it, so the
derivatives along one of a million axes cost as much as along one of ten (`stde`).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nearly.core.errors import InputError
from nearly.derivatives.taylor import jet


class SparseVector(eqx.Module):
    """A vector of few nonzero entries; entries of equal index add up."""

    indices: Int[Array, " m"]
    values: Float[Array, " m"]

    def dense(self, dimension: int) -> Float[Array, " d"]:
        """The same vector, all its entries written out."""
        return jnp.zeros(dimension, self.values.dtype).at[self.indices].add(self.values)


Vector = SparseVector | Float[Array, " d"]


def combined(weights: Float[Array, " n"], vectors: Sequence[Vector], dimension: int) -> Vector:
    """The combination of vectors: sparse if all of them are."""
    sparse = [v for v in vectors if isinstance(v, SparseVector)]
    if len(sparse) == len(vectors):
        indices = jnp.concatenate([v.indices for v in sparse])
        values = [weights[i] * v.values for i, v in enumerate(sparse)]
        return SparseVector(indices, jnp.concatenate(values))
    dense = [written_out(v, dimension) for v in vectors]
    return sum((weights[i] * v for i, v in enumerate(dense[1:], 1)), weights[0] * dense[0])


def written_out(vector: Vector, dimension: int) -> Float[Array, " d"]:
    """A vector as an array of all its entries."""
    return vector.dense(dimension) if isinstance(vector, SparseVector) else vector


def derivatives_along(
    f: Callable[[Float[Array, " d"]], Any],
    x: Float[Array, " d"],
    inputs: Mapping[int, Vector],
    order: int,
) -> list[Any]:
    """f and its derivatives 1, …, order along the curve x + inputs[1] t + inputs[2] t^2/2 + ….

    **Arguments:** `inputs`: the curve's derivatives by order; those not named are zero.

    **Returns:** order + 1 values of f's shape. One jet: O(order^2) evaluations of f. A `Projected`
    function takes sparse vectors without writing them out.
    """
    if order == 0 or not inputs:
        value = f(x)
        return [value] + [jnp.zeros_like(value)] * order
    if isinstance(f, Projected):
        return f.derivatives_along(x, inputs, order)
    series = [written_out(inputs[k], x.size) if k in inputs else None for k in range(1, order + 1)]
    value, derivatives = jet(f, (x,), (series,))
    return [value, *derivatives]


class LinearMap(eqx.Module):
    """A linear map of x whose single columns are cheap."""

    @abstractmethod
    def __call__(self, x: Float[Array, " d"]) -> Float[Array, " w"]:
        """A x."""

    @abstractmethod
    def columns(self, indices: Int[Array, " m"]) -> Float[Array, "w m"]:
        """Some columns of A, in O(w m)."""

    def along(self, vector: Vector) -> Float[Array, " w"]:
        """A applied to a direction."""
        if isinstance(vector, SparseVector):
            return self.columns(vector.indices) @ vector.values
        return self(vector)


class Dense(LinearMap):
    """A matrix of its own weight for each coordinate; stored transposed, a column lies together."""

    transposed: Float[Array, "d w"]

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, " w"]:
        return x @ self.transposed

    def columns(self, indices: Int[Array, " m"]) -> Float[Array, "w m"]:
        return self.transposed[indices].T


class Blocks(LinearMap):
    """Weight sharing: one kernel convolved with stride its length, then a matrix (`stde`).

    A first layer of d x w weights is what fills the memory at d = 10^6; with blocks of B
    coordinates it has d/B x w. Raises `InputError` where the blocks do not divide d.
    """

    kernel: Float[Array, " b"]
    transposed: Float[Array, "n w"]

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, " w"]:
        if x.size != self.kernel.size * self.transposed.shape[0]:
            raise InputError(
                f"{self.transposed.shape[0]} blocks of {self.kernel.size} do not cover "
                f"{x.size} coordinates: choose a block that divides the dimension"
            )
        return (x.reshape(-1, self.kernel.size) @ self.kernel) @ self.transposed

    def columns(self, indices: Int[Array, " m"]) -> Float[Array, "w m"]:
        block, place = jnp.divmod(indices, self.kernel.size)
        return (self.transposed[block] * self.kernel[place][:, None]).T


class Projected(eqx.Module):
    """f(x) = head(A x, |x|^2): what `stde` differentiates at a cost independent of dimension.

    Any network whose first layer is linear has this form; |x|^2 is there for factors that vanish
    on a sphere. Derivatives along axes touch a column of A and one coordinate of x.
    """

    linear: LinearMap
    head: Callable[[Float[Array, " w"], Float[Array, ""]], Any]

    def __call__(self, x: Float[Array, " d"]) -> Any:
        return self.head(self.linear(x), jnp.vdot(x, x))

    def derivatives_along(
        self, x: Float[Array, " d"], inputs: Mapping[int, Vector], order: int
    ) -> list[Any]:
        """As the function of this name; memory O(d) for x, O(w) for each sparse direction."""
        hidden = self.linear(x)
        orders = range(1, order + 1)
        moved = [self.linear.along(inputs[k]) if k in inputs else None for k in orders]
        curve: dict[int, Vector] = {0: x, **inputs}
        norm = [_square(curve, k) for k in range(order + 1)]
        value, derivatives = jet(self.head, (hidden, norm[0]), (moved, norm[1:]))
        return [value, *derivatives]


def _square(curve: Mapping[int, Vector], order: int) -> Float[Array, ""]:
    """A derivative of |curve|^2, by Leibniz' rule."""
    pairs = [(i, order - i) for i in curve if order - i in curve]
    dots = (math.comb(order, i) * _dot(curve[i], curve[j]) for i, j in pairs)
    x = curve[0]
    assert not isinstance(x, SparseVector)
    return sum(dots, jnp.zeros((), x.dtype))


def _dot(one: Vector, other: Vector) -> Float[Array, ""]:
    if isinstance(one, SparseVector) and isinstance(other, SparseVector):
        meet = one.indices[:, None] == other.indices
        return jnp.sum(jnp.where(meet, one.values[:, None] * other.values, 0))
    if isinstance(one, SparseVector):
        return _dot(other, one)
    if isinstance(other, SparseVector):
        return one[other.indices] @ other.values
    return jnp.vdot(one, other)
