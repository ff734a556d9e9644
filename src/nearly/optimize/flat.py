"""Parameters as one vector."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree


def flatten(tree: PyTree) -> tuple[Float[Array, " size"], Callable[[Array], PyTree]]:
    """A pytree as one vector of float32 or better, and the way back to its own dtypes.

    In bfloat16 an orthogonal projection is none. Costs a copy.
    """
    flat, unravel = ravel_pytree(tree)
    wide = flat.astype(jnp.promote_types(flat.dtype, jnp.float32))
    return wide, lambda vector: unravel(vector.astype(flat.dtype))
