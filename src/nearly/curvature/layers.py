"""The layers of equinox that are linear in their weights, each read as one matrix.

A layer maps a row `a` (its input, with a one appended where it has a bias) to `W a`; a convolution
does so at every output position, to the patch under its kernel. So the gradient of anything with
respect to `W` is the sum over positions of `outer(delta, a)`, where `delta` is the cotangent of
the layer's output.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nearly.core.errors import InputError

LAYERS = (eqx.nn.Linear, eqx.nn.Conv, eqx.nn.Embedding)

_PADDING = {"REFLECT": "reflect", "REPLICATE": "edge", "CIRCULAR": "wrap"}


@dataclass(frozen=True)
class LinearMap:
    """A layer's geometry, without its weights: hashable, so that it can select a program."""

    name: str
    inputs: int  # columns of the matrix, the bias's included
    outputs: int
    bias: bool

    @property
    def shape(self) -> tuple[int, int]:
        return self.outputs, self.inputs

    @property
    def size(self) -> int:
        return self.outputs * self.inputs

    def rows(self, inputs: Any, dtype: Any) -> Float[Array, "positions inputs"]:
        """The layer's input at every position, a one appended where the layer has a bias."""
        plain = self._plain_rows(inputs, dtype)
        if not self.bias:
            return plain
        return jnp.concatenate([plain, jnp.ones((plain.shape[0], 1), dtype)], axis=1)

    def _plain_rows(self, inputs: Any, dtype: Any) -> Array:
        return jnp.reshape(inputs, (1, -1)).astype(dtype)

    def deltas(self, cotangent: Array) -> Float[Array, "positions outputs"]:
        """The cotangent of the layer's output at every position."""
        return jnp.reshape(cotangent, (1, -1))

    def matrix(self, layer: Any) -> Float[Array, "outputs inputs"]:
        """The layer's weights, or anything of their structure, as one matrix."""
        weight = jnp.reshape(layer.weight, (self.outputs, -1))
        if not self.bias:
            return weight
        return jnp.concatenate([weight, jnp.reshape(layer.bias, (-1, 1))], axis=1)

    def layer(self, like: Any, matrix: Float[Array, "outputs inputs"]) -> Any:
        """The inverse of `matrix`: the layer `like` with the matrix in the place of its weights."""
        weight = matrix[:, :-1] if self.bias else matrix
        changed = eqx.tree_at(lambda x: x.weight, like, self._weight(like, weight))
        if not self.bias:
            return changed
        return eqx.tree_at(
            lambda x: x.bias, changed, jnp.reshape(matrix[:, -1], jnp.shape(like.bias))
        )

    def _weight(self, like: Any, weight: Array) -> Array:
        return jnp.reshape(weight, jnp.shape(like.weight))


@dataclass(frozen=True)
class EmbeddingMap(LinearMap):
    """A look-up table: a linear map of the one-hot row."""

    def _plain_rows(self, inputs: Any, dtype: Any) -> Array:
        return jax.nn.one_hot(jnp.reshape(inputs, (1,)), self.inputs, dtype=dtype)

    def matrix(self, layer: Any) -> Float[Array, "outputs inputs"]:
        return layer.weight.T

    def _weight(self, like: Any, weight: Array) -> Array:
        return weight.T


@dataclass(frozen=True)
class ConvolutionMap(LinearMap):
    """A convolution of one group: the same matrix at every position, applied to the patch there."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: str | tuple[tuple[int, int], ...]
    padding_mode: str

    def _plain_rows(self, inputs: Any, dtype: Any) -> Array:
        image, padding = inputs, self.padding
        if self.padding_mode in _PADDING and not isinstance(padding, str):
            widths = ((0, 0), *padding)
            image, padding = jnp.pad(image, widths, mode=_PADDING[self.padding_mode]), "VALID"
        patches = jax.lax.conv_general_dilated_patches(
            image[None], self.kernel, self.stride, padding, rhs_dilation=self.dilation
        )[0]
        return jnp.reshape(patches, (patches.shape[0], -1)).T.astype(dtype)

    def deltas(self, cotangent: Array) -> Float[Array, "positions outputs"]:
        return jnp.reshape(cotangent, (self.outputs, -1)).T


def is_layer(node: Any) -> bool:
    """Whether a node of a model is a layer that this module reads."""
    return isinstance(node, LAYERS)


def linear_map(name: str, layer: Any) -> LinearMap:
    """The geometry of a layer.

    **Arguments:**

    - `name`: how to call it, its path in the model. `layer`: an `eqx.nn.Linear`, `Conv` or
      `Embedding`.

    Raises `InputError` for one whose weights are not its own plain array (tied by
    `eqx.nn.Shared`, stacked for `vmap` or `scan`) and for grouped convolutions.
    """
    _check_weights(name, layer)
    if isinstance(layer, eqx.nn.Embedding):
        return EmbeddingMap(name, layer.num_embeddings, layer.embedding_size, False)
    weight: Sequence[int] = layer.weight.shape
    bias = layer.bias is not None
    columns = math.prod(weight[1:]) + bias
    if not isinstance(layer, eqx.nn.Conv):
        return LinearMap(name, columns, weight[0], bias)
    if layer.groups != 1:
        raise InputError(
            f"{name} is a convolution of {layer.groups} groups, which is not one linear map; "
            "leave it out with layers=[...], or use one group"
        )
    if layer.padding_mode != "ZEROS" and isinstance(layer.padding, str):
        raise InputError(
            f"{name} pads {layer.padding} with {layer.padding_mode}: give its padding as numbers, "
            "or leave it out with layers=[...]"
        )
    return ConvolutionMap(
        name,
        columns,
        weight[0],
        bias,
        tuple(weight[2:]),
        tuple(layer.stride),
        tuple(layer.dilation),
        layer.padding,
        layer.padding_mode,
    )


def _check_weights(name: str, layer: Any) -> None:
    arrays = {"weight": layer.weight, "bias": getattr(layer, "bias", None)}
    for field, array in arrays.items():
        if array is not None and not eqx.is_inexact_array(array):
            raise InputError(
                f"{name}.{field} is {array!r}, not an array of its own (tied by eqx.nn.Shared?): "
                "the uses of tied weights have inputs of different kinds; "
                "leave it out with layers=[...]"
            )
    expected = layer.num_spatial_dims + 2 if isinstance(layer, eqx.nn.Conv) else 2
    if layer.weight.ndim != expected:
        raise InputError(
            f"{name}.weight has shape {layer.weight.shape}: {layer.weight.ndim} axes where one "
            f"layer has {expected} (stacked for vmap or scan?); keep the layers apart, or leave "
            "it out with layers=[...]"
        )
