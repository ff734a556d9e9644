"""Deflation: solve exactly in a small subspace, and iterate on the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float

from nearly.core.errors import InputError
from nearly.linear.operators import CallableOperator, is_definite


class Deflation(eqx.Module):
    """`M = P^T B P + Q`, with `Q = W (W^T A W)^-1 W^T` and `P = I - A Q`, as a preconditioner.

    The eigenvalues that belong to the span of the vectors W become one, whatever the scale of A
    (balancing form; it is symmetric, so any solver takes it); the others are left to B. With the
    lowest Ritz vectors (`lowest_ritz_vectors`) conjugate gradients no longer wait for the lowest
    eigenvalues.

    **Arguments:**

    - `vectors`: W, linearly independent. Shape (count, *shape of an unknown).
    - `inner`: B, from an operator to a lineax operator; None is the identity.

    **Cost:** set up by `count` products; of an application, `8 count size` flops, no product.
    """

    vectors: Float[Array, "count ..."]
    inner: Callable[[Any], Any] | None = None

    def __call__(self, operator: lx.AbstractLinearOperator) -> lx.AbstractLinearOperator:
        structure: Any = operator.in_structure()
        if self.vectors.shape[1:] != structure.shape:
            raise InputError(
                f"deflation vectors of shape {self.vectors.shape[1:]} for unknowns of shape "
                f"{structure.shape}; give them in the operator's shape"
            )
        count = len(self.vectors)
        images = jax.vmap(operator.mv)(self.vectors).reshape(count, -1)
        flat = self.vectors.reshape(count, -1)
        energies = flat @ images.T
        factor = jnp.linalg.cholesky((energies + energies.T) / 2)
        inner = None if self.inner is None else self.inner(operator)
        tags = [lx.positive_semidefinite_tag] if is_definite(operator) else []
        return CallableOperator(_Balanced(flat, images, factor, inner), structure, frozenset(tags))


class _Balanced(eqx.Module):
    vectors: Float[Array, "count size"]
    images: Float[Array, "count size"]
    factor: Float[Array, "count count"]
    inner: lx.AbstractLinearOperator | None

    def __call__(self, vector: Array) -> Array:
        r = vector.reshape(-1)
        coarse = self._solve(self.vectors @ r)
        z = r - self.images.T @ coarse
        if self.inner is not None:
            z = self.inner.mv(z.reshape(vector.shape)).reshape(-1)
        z = z - self.vectors.T @ self._solve(self.images @ z)
        return (z + self.vectors.T @ coarse).reshape(vector.shape)

    def _solve(self, coordinates: Array) -> Array:
        return jax.scipy.linalg.cho_solve((self.factor, True), coordinates)
