"""Convolutions as matrix products: what a training loop on a CPU wants.

Inside a compiled loop, where `fit` trains, XLA's CPU convolutions do not reach the library that
makes them fast outside: a small U-Net's step took four times as long as the same step written as
products of the weights with shifted copies of the field.
"""

from __future__ import annotations

import itertools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

PADS = {"ZEROS": "constant", "CIRCULAR": "wrap", "REFLECT": "reflect", "REPLICATE": "edge"}


class ProductConvolution(eqx.Module):
    """An `eqx.nn.Conv` with the same weights and the same values: see `as_products`."""

    weight: Float[Array, "outputs inside *kernel"]
    bias: Float[Array, " outputs *ones"] | None
    stride: tuple[int, ...] = eqx.field(static=True)
    padding: tuple[tuple[int, int], ...] = eqx.field(static=True)
    mode: str = eqx.field(static=True)

    def __call__(
        self, x: Float[Array, " inputs *grid"], key: Any = None
    ) -> Float[Array, " outputs *out"]:
        kernel = self.weight.shape[2:]
        padded = jnp.pad(x, ((0, 0), *self.padding), PADS[self.mode])
        sizes = [n - k + 1 for n, k in zip(padded.shape[1:], kernel, strict=True)]

        def shifted(offsets: tuple[int, ...]) -> Array:
            axes = zip(offsets, sizes, self.stride, strict=True)
            return padded[(slice(None), *(slice(o, o + n, s) for o, n, s in axes))]

        copies = [shifted(offsets) for offsets in itertools.product(*map(range, kernel))]
        outputs, inside = self.weight.shape[:2]
        groups = x.shape[0] // inside
        fields = jnp.stack(copies).reshape(-1, groups, inside, *copies[0].shape[1:])
        weight = self.weight.reshape(groups, outputs // groups, inside, -1)
        out = jnp.einsum("goik,kgi...->go...", weight, fields)
        out = out.reshape(outputs, *out.shape[2:])
        return out if self.bias is None else out + self.bias


def as_products(model: Any) -> Any:
    """The model with each `eqx.nn.Conv` computed as one matrix product.

    Same weights, same values up to rounding; `kernel` times the memory of a field in each.
    Worth it for models that `fit` trains on a CPU. Convolutions that are dilated or padded by name
    stay as they are.
    """

    def convert(node: Any) -> Any:
        if not _plain(node):
            return node
        return ProductConvolution(
            node.weight, node.bias, node.stride, node.padding, node.padding_mode
        )

    return jax.tree.map(convert, model, is_leaf=lambda node: isinstance(node, eqx.nn.Conv))


def _plain(node: Any) -> bool:
    return (
        isinstance(node, eqx.nn.Conv)
        and set(node.dilation) == {1}
        and not isinstance(node.padding, str)
        and node.padding_mode in PADS
    )
