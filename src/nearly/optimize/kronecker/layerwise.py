"""What optimizers with factors for every layer share: gradients as matrices, looks at a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree

from nearly.core.errors import InputError
from nearly.curvature.capture import Captured
from nearly.curvature.named_layers import Layers
from nearly.optimize.adaptive.settings import needs_params


def wide(array: Array) -> Array:
    """An array in float32 or better: what is inverted must not be in half precision."""
    return array.astype(jnp.result_type(array, jnp.float32))


def wide_matrices(layers: Layers, tree: PyTree) -> dict[str, Array]:
    """Each layer's parameters (or their gradients) as a matrix, in float32 or better."""
    return {name: wide(matrix) for name, matrix in layers.matrices(tree).items()}


def with_matrices(layers: Layers, like: PyTree, matrices: Mapping[str, Array]) -> PyTree:
    """A pytree with the layers' matrices replaced, in its own precision."""
    narrow = {n: matrices[n].astype(m.dtype) for n, m in layers.matrices(like).items()}
    return layers.parameters(like, narrow)


def outside(layers: Layers, tree: PyTree) -> PyTree:
    """What lies in none of the layers, None in the place of the layers' arrays."""
    kept = layers.filter(tree)
    return jax.tree.map(
        lambda x, k: x if k is None else None, tree, kept, is_leaf=lambda x: x is None
    )


def look(
    optimizer: str,
    capture_fn: Callable[..., Any] | None,
    params: Any,
    key: PRNGKeyArray | None,
    layers: Layers,
) -> dict[str, Captured]:
    """What passes through the layers; raises `InputError` where `update` cannot see it."""
    needs_params(params, optimizer)
    if capture_fn is None:
        raise InputError(
            f"{optimizer} needs update(..., capture_fn=...), which tells what passes through the "
            "layers: see nearly.curvature.batches.capture_function"
        )
    found = capture_fn(params) if key is None else capture_fn(params, key)
    missing = [name for name in layers.names if name not in found]
    if missing:
        raise InputError(
            f"capture_fn tells nothing of the layer {missing[0]}: give {optimizer} the layers it "
            f"tells of, layers={tuple(found)}"
        )
    return {n: jax.tree.map(wide, found[n]) for n in layers.names}


def finite_or(new: PyTree, old: PyTree) -> PyTree:
    """The new arrays, or the old where a new one has an entry that is not finite."""
    return jax.tree.map(lambda a, b: jnp.where(jnp.all(jnp.isfinite(a)), a, b), new, old)


def pairs_of(layers: Layers, params: PyTree, make: Callable[[int, Any], Any]) -> dict[str, Any]:
    """For every layer `(make(inputs, dtype), make(outputs, dtype))`, in float32 or better."""
    matrices = eqx.filter_eval_shape(lambda p: wide_matrices(layers, p), params)
    return {
        name: (make(m.shape[1], m.dtype), make(m.shape[0], m.dtype)) for name, m in matrices.items()
    }
