"""Linear layers on arrays with any leading batch axes."""

from __future__ import annotations

from typing import Any

import equinox as eqx
from jaxtyping import Array, Float


def dense(layer: eqx.nn.Linear, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
    """What `jax.vmap(layer)` makes of each row: one matrix product, whatever the axes."""
    bias: Any = layer.bias
    y = x @ layer.weight.T
    return y if bias is None else y + bias
