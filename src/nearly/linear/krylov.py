"""Krylov subspaces of symmetric operators: Lanczos, Ritz pairs, solves in the subspace."""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from nearly.core.errors import InputError


class Lanczos(eqx.Module):
    """`A V = V T + residual e_last^T`: an orthonormal basis and A in it, tridiagonal.

    **Arguments:**

    - `basis`: the vectors, orthonormal to rounding; each leaf has a leading axis of length steps.
    - `diagonal`, `offdiagonal`: of T. Shapes (steps,) and (steps - 1,). A zero on the off-diagonal
      says that the vectors so far span an invariant subspace; what follows is a new one.
    - `residual_norm`: how far the whole basis is from spanning one.
    """

    basis: PyTree[Array]
    diagonal: Float[Array, " steps"]
    offdiagonal: Float[Array, " gaps"]
    residual_norm: Float[Array, ""]

    @property
    def matrix(self) -> Float[Array, "steps steps"]:
        """T, dense."""
        beside = jnp.diag(self.offdiagonal, 1)
        return jnp.diag(self.diagonal) + beside + beside.T


def lanczos(operator: lx.AbstractLinearOperator, start: PyTree[Array], steps: int) -> Lanczos:
    """An orthonormal basis of the Krylov subspace, each vector orthogonalised against all others.

    Reorthogonalisation (twice, which is enough) is what keeps converged Ritz values from coming
    back as ghosts. Where the subspace is exhausted early, the basis goes on with a vector drawn
    from a fixed key, orthogonal to all before, so there are always `steps` vectors.

    **Arguments:**

    - `operator`: symmetric; neither this nor its tags are checked.
    - `start`: the first vector, not zero; normalised here.
    - `steps`: at most the size of the vector.

    **Raises:** `InputError` for more steps than unknowns.

    **Cost:** `steps` products, `4 steps^2 size` flops, `steps * size` numbers.
    """
    flat, unravel = ravel_pytree(start)
    size, dtype = flat.size, flat.dtype
    if not 1 <= steps <= size:
        raise InputError(f"{steps} Lanczos steps for {size} unknowns; give 1 to {size}")
    tiny = 10 * size * jnp.finfo(dtype).eps

    def orthogonal(w: Array, basis: Array) -> Array:
        for _ in range(2):
            w = w - basis.T @ (basis @ w)
        return w

    def advance(carry: Any, k: Array) -> Any:
        basis, v, scale = carry
        basis = basis.at[k].set(v)
        w = ravel_pytree(operator.mv(unravel(v)))[0]
        alpha = jnp.vdot(v, w)
        w = orthogonal(w, basis)
        beta = jnp.linalg.norm(w)
        scale = jnp.maximum(scale, jnp.abs(alpha) + beta)
        exhausted = beta <= tiny * scale
        other = jax.random.normal(jax.random.fold_in(jax.random.key(0), k), (size,), dtype)
        w = jnp.where(exhausted, orthogonal(other / math.sqrt(size), basis), w)
        beta = jnp.where(exhausted, 0, beta)
        norm = jnp.linalg.norm(w)
        return (basis, w / jnp.where(norm > 0, norm, 1), scale), (alpha, beta)

    first = (jnp.zeros((steps, size), dtype), flat / jnp.linalg.norm(flat), jnp.zeros((), dtype))
    (basis, _, _), (alphas, betas) = jax.lax.scan(advance, first, jnp.arange(steps))
    return Lanczos(jax.vmap(unravel)(basis), alphas, betas[:-1], betas[-1])


def ritz_pairs(decomposition: Lanczos) -> tuple[Float[Array, " steps"], PyTree[Array]]:
    """The Ritz values, ascending, and the Ritz vectors, of unit norm.

    **Returns:** values, shape (steps,), and a structure like the basis.

    **Cost:** `O(steps^3 + steps^2 size)`.
    """
    values, inner = jnp.linalg.eigh(decomposition.matrix)
    vectors = jax.tree.map(lambda v: jnp.tensordot(inner.T, v, axes=1), decomposition.basis)
    return values, vectors


def projected_solve(decomposition: Lanczos, side: PyTree[Array]) -> PyTree[Array]:
    """The Galerkin solution `V T^-1 V^T b`: the best in the A-norm that the subspace holds.

    Exact (to rounding) for the vector that the subspace was grown from once it is exhausted; with
    another right-hand side this is a recycled start. A must be definite.

    **Cost:** `2 steps size` products of numbers and a tridiagonal solve.
    """
    basis = decomposition.basis
    parts = jax.tree.map(lambda v, b: jnp.tensordot(v, b, axes=b.ndim), basis, side)
    coordinates = sum(jax.tree.leaves(parts))
    solved = jnp.linalg.solve(decomposition.matrix, jnp.asarray(coordinates))
    return jax.tree.map(lambda v: jnp.tensordot(solved, v, axes=1), basis)


def lowest_ritz_vectors(
    operator: lx.AbstractLinearOperator, key: Any, *, steps: int, count: int
) -> Float[Array, "count ..."]:
    """The `count` Ritz vectors of lowest value after `steps` Lanczos steps from a random vector.

    What `Deflation` is made of. Raises `InputError` if `count` exceeds `steps`.
    """
    if not 1 <= count <= steps:
        raise InputError(f"{count} Ritz vectors out of {steps} steps; give 1 to {steps}")
    structure: Any = operator.in_structure()
    start = jax.random.normal(key, structure.shape, structure.dtype)
    _, vectors = ritz_pairs(lanczos(operator, start, steps))
    return vectors[:count]
