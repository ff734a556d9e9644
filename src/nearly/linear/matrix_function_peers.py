"""Other libraries' matrix roots: functions `(matrices, root) -> matrices`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nearly.core.errors import InputError
from nearly.core.problem import Host


def jax_eigh(matrix: Float[Array, "*batch n n"], root: int) -> Float[Array, "*batch n n"]:
    """`jnp.linalg.eigh` and its own derivative, NaN where eigenvalues coincide."""
    values, vectors = jnp.linalg.eigh(matrix)
    return (vectors * values[..., None, :] ** (1 / root)) @ jnp.swapaxes(vectors, -2, -1)


def jax_sqrtm(matrix: Float[Array, "*batch n n"], root: int) -> Float[Array, "*batch n n"]:
    """`jax.scipy.linalg.sqrtm` (Schur, CPU only, not differentiable), batched."""
    if root != 2:
        raise InputError(f"sqrtm takes root 2, not {root}")
    return jnp.real(jnp.vectorize(jax.scipy.linalg.sqrtm, signature="(n,n)->(n,n)")(matrix))


def _scipy_sqrtm(matrices: Float[np.ndarray, "batch n n"], root: int) -> np.ndarray:
    from scipy.linalg import sqrtm

    if root != 2:
        raise InputError(f"sqrtm takes root 2, not {root}")
    return np.stack([np.real(np.asarray(sqrtm(a))) for a in matrices])


scipy_sqrtm = Host(_scipy_sqrtm)
