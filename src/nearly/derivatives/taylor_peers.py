"""Other ways to the derivatives along a line: JAX's experimental jet, and nested forward mode.

Both take and return what `nearly.derivatives.taylor.directional_derivatives` does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def jax_jet(function: Callable[[Any], Any], x: jax.Array, v: jax.Array, order: int) -> Any:
    """`jax.experimental.jet`: O(K^2) as well, zeros multiplied through, few primitives."""
    from jax.experimental.jet import jet

    leaves, structure = _flat(function, x)
    series = [v, *[jnp.zeros_like(v)] * (order - 1)]
    values, terms = jet(leaves, (x,), (series,))
    stacked = [jnp.stack([y, *row]) for y, row in zip(values, terms, strict=True)]
    return jax.tree.unflatten(structure, stacked)


def nested_jvp(function: Callable[[Any], Any], x: jax.Array, v: jax.Array, order: int) -> Any:
    """`jax.jvp` of `jax.jvp` of …: any function JAX can push forward, at a cost of 2^K."""

    def along(t: Any) -> Any:
        return function(x + t * v)

    start, found = jnp.zeros((), x.dtype), []
    derivative: Callable[[Any], Any] = along
    for _ in range(order + 1):
        found.append(derivative(start))
        derivative = _differentiated(derivative)
    return jax.tree.map(lambda *rows: jnp.stack(rows), *found)


def _differentiated(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda t: jax.jvp(function, (t,), (jnp.ones_like(t),))[1]


def _flat(function: Callable[[Any], Any], x: jax.Array) -> tuple[Callable[[Any], Any], Any]:
    """The function with a flat tuple as its result, which is what jet knows; and the structure."""
    structure = jax.tree.structure(jax.eval_shape(function, x))
    return lambda y: tuple(jax.tree.leaves(function(y))), structure
