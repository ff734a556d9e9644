"""The small architectures the rooms share: MLP, residual CNN, U-Net, transformer.

Ordinary equinox modules that take ONE example and are batched with `jax.vmap`. Their layers are
plain `eqx.nn` ones, so whatever walks over layers (capture, pruning, Kronecker factors) finds
them. Weights are normal with variance `gain^2 / fan-in` (2 / fan-in in front of a ReLU or GELU,
1 / fan-in at the output), biases zero; equinox's own default, uniform with a third of that
variance, loses the signal with depth. Residual branches start at zero: a block starts as identity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nearly.core.errors import InputError

Layer = TypeVar("Layer", eqx.nn.Linear, eqx.nn.Conv)
Activation = Callable[[Array], Array]

HIDDEN_GAIN = math.sqrt(2)  # keeps the second moment through a ReLU, nearly so through a GELU
PADDINGS = ("ZEROS", "CIRCULAR", "REFLECT", "REPLICATE")


def normal_init(layer: Layer, key: Any, gain: float = 1.0) -> Layer:
    """The layer with weights drawn from N(0, gain^2 / fan-in) and zero biases, in its own dtype."""
    fan_in = math.prod(layer.weight.shape[1:])
    weight = jax.random.normal(key, layer.weight.shape, layer.weight.dtype)
    layer = eqx.tree_at(lambda x: x.weight, layer, weight * (gain / math.sqrt(fan_in)))
    if layer.bias is None:
        return layer
    return eqx.tree_at(lambda x: x.bias, layer, jnp.zeros_like(layer.bias))


class MLP(eqx.Module):
    """Linear layers with an activation between them: see `mlp`."""

    layers: tuple[eqx.nn.Linear, ...]
    activation: Activation

    def __call__(self, x: Float[Array, " inputs"], key: Any = None) -> Float[Array, " outputs"]:
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)


def mlp(
    sizes: Sequence[int],
    key: Any,
    activation: Activation = jax.nn.gelu,
    gain: float = HIDDEN_GAIN,
    dtype: Any = jnp.float32,
) -> MLP:
    """A multilayer perceptron `[sizes[0]] -> [sizes[-1]]`.

    **Arguments:**

    - `sizes`: inputs, hidden widths, outputs; at least two numbers.
    - `gain`: of the hidden layers' initial weights: sqrt(2) for ReLU and its kin, 5/3 for tanh.

    Raises `InputError` for fewer than two sizes or a size below 1.
    """
    if len(sizes) < 2 or min(sizes) < 1:
        raise InputError(f"sizes {list(sizes)} must be at least two positive numbers")
    last = len(sizes) - 2
    layers = [
        normal_init(eqx.nn.Linear(i, o, dtype=dtype, key=k), k, gain if position < last else 1.0)
        for position, (i, o, k) in enumerate(
            zip(sizes, sizes[1:], jax.random.split(key, last + 1), strict=False)
        )
    ]
    return MLP(tuple(layers), activation)


# ---- convolutional


class ResidualBlock(eqx.Module):
    """x + conv(act(norm(conv(act(norm(x)))))), the middle shifted and scaled by a condition."""

    first_norm: eqx.nn.GroupNorm
    first: eqx.nn.Conv
    second_norm: eqx.nn.GroupNorm
    second: eqx.nn.Conv
    modulation: eqx.nn.Linear | None

    def __init__(
        self,
        channels: int,
        dims: int,
        padding: str,
        key: Any,
        condition: int = 0,
        dtype: Any = None,
    ) -> None:
        keys = jax.random.split(key, 3)
        self.first_norm = _norm(channels, dtype)
        self.first = _conv(channels, channels, dims, padding, keys[0], HIDDEN_GAIN, dtype)
        self.second_norm = _norm(channels, dtype)
        self.second = _conv(channels, channels, dims, padding, keys[1], 0.0, dtype)
        self.modulation = None
        if condition:
            linear = eqx.nn.Linear(condition, 2 * channels, dtype=dtype, key=keys[2])
            self.modulation = normal_init(linear, keys[2], 0.0)

    def __call__(
        self,
        x: Float[Array, " channels *space"],
        condition: Float[Array, " condition"] | None = None,
    ) -> Float[Array, " channels *space"]:
        inside = self.first(jax.nn.gelu(self.first_norm(x)))
        inside = self.second_norm(inside)
        if self.modulation is not None and condition is not None:
            scale, shift = jnp.split(self.modulation(condition), 2)
            spread = (-1,) + (1,) * (x.ndim - 1)
            inside = inside * (1 + scale.reshape(spread)) + shift.reshape(spread)
        return x + self.second(jax.nn.gelu(inside))


class ResidualCNN(eqx.Module):
    """A field to a field of the same resolution: see `residual_cnn`."""

    stem: eqx.nn.Conv
    blocks: tuple[ResidualBlock, ...]
    head: eqx.nn.Conv

    def __call__(
        self, x: Float[Array, " inputs *space"], key: Any = None
    ) -> Float[Array, " outputs *space"]:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(jax.nn.gelu(x))


class CNNClassifier(eqx.Module):
    """A residual CNN whose channels are averaged over space and read out: see `classifier_cnn`."""

    trunk: ResidualCNN
    readout: eqx.nn.Linear

    def __call__(
        self, x: Float[Array, " inputs *space"], key: Any = None
    ) -> Float[Array, " classes"]:
        features = jax.nn.gelu(self.trunk(x))
        return self.readout(features.reshape(features.shape[0], -1).mean(1))


def residual_cnn(
    inputs: int,
    outputs: int,
    key: Any,
    *,
    width: int = 32,
    blocks: int = 2,
    dims: int = 2,
    padding: str = "ZEROS",
    dtype: Any = jnp.float32,
) -> ResidualCNN:
    """Residual convolutional blocks, `[inputs, *space] -> [outputs, *space]`, 3 wide in each axis.

    With `padding="CIRCULAR"` it commutes with periodic translations. `dims` is 1, 2 or 3; any
    resolution may be fed. Raises `InputError` for an unknown padding.
    """
    stem, head, *rest = jax.random.split(key, blocks + 2)
    return ResidualCNN(
        _conv(inputs, width, dims, padding, stem, 1.0, dtype),
        tuple(ResidualBlock(width, dims, padding, k, dtype=dtype) for k in rest),
        _conv(width, outputs, dims, padding, head, 1.0, dtype),
    )


def classifier_cnn(
    inputs: int,
    classes: int,
    key: Any,
    *,
    width: int = 32,
    blocks: int = 2,
    dims: int = 2,
    padding: str = "ZEROS",
    dtype: Any = jnp.float32,
) -> CNNClassifier:
    """A residual CNN, averaged over space, and a linear read-out: `[inputs, *space] -> [classes]`.

    With `padding="CIRCULAR"` periodic translations leave its logits unchanged.
    """
    trunk, readout = jax.random.split(key)
    return CNNClassifier(
        residual_cnn(
            inputs,
            width,
            trunk,
            width=width,
            blocks=blocks,
            dims=dims,
            padding=padding,
            dtype=dtype,
        ),
        normal_init(eqx.nn.Linear(width, classes, dtype=dtype, key=readout), readout),
    )


class UNet(eqx.Module):
    """Down to coarse grids and back up, with a shortcut at each resolution: see `unet`."""

    stem: eqx.nn.Conv
    down_blocks: tuple[ResidualBlock, ...]
    down: tuple[eqx.nn.Conv, ...]
    middle: ResidualBlock
    merge: tuple[eqx.nn.Conv, ...]
    up_blocks: tuple[ResidualBlock, ...]
    head: eqx.nn.Conv

    def __call__(
        self,
        x: Float[Array, " inputs *space"],
        condition: Float[Array, " condition"] | None = None,
        key: Any = None,
    ) -> Float[Array, " outputs *space"]:
        self._check(x, condition)
        x = self.stem(x)
        shortcuts: list[Array] = []
        for block, down in zip(self.down_blocks, self.down, strict=True):
            x = block(x, condition)
            shortcuts.append(x)
            x = down(x)
        x = self.middle(x, condition)
        for merge, block in zip(self.merge, self.up_blocks, strict=True):
            x = merge(jnp.concatenate([_doubled(x), shortcuts.pop()]))
            x = block(x, condition)
        return self.head(jax.nn.gelu(x))

    def _check(self, x: Array, condition: Array | None) -> None:
        factor = 2 ** len(self.down)
        if any(size % factor for size in x.shape[1:]):
            raise InputError(
                f"a U-Net of {len(self.down)} levels needs sizes that are multiples of {factor}, "
                f"not {list(x.shape[1:])}: pad the field or use fewer levels"
            )
        if (condition is None) != (self.middle.modulation is None):
            has = "no condition" if self.middle.modulation is None else "a condition"
            raise InputError(f"this U-Net was made to take {has}; see `condition` of unet")


def unet(
    inputs: int,
    outputs: int,
    key: Any,
    *,
    width: int = 32,
    levels: int = 2,
    dims: int = 2,
    condition: int = 0,
    padding: str = "ZEROS",
    dtype: Any = jnp.float32,
) -> UNet:
    """A U-Net `[inputs, *space] -> [outputs, *space]`; every size a multiple of 2^levels.

    **Arguments:**

    - `width`: channels at the finest grid, doubled at each of `levels` coarser ones.
    - `condition`: size of a vector (an embedded time, a parameter) that shifts and scales the
      channels in every block; 0 for none. It is the second argument of the call.

    Down by a convolution of stride 2, up by repetition and a convolution: a transposed
    convolution would print its stride as a checkerboard.
    """
    widths = [width * 2**level for level in range(levels + 1)]
    keys = iter(jax.random.split(key, 4 * levels + 3))

    def block(channels: int) -> ResidualBlock:
        return ResidualBlock(channels, dims, padding, next(keys), condition, dtype)

    def conv(before: int, after: int, stride: int = 1) -> eqx.nn.Conv:
        return _conv(before, after, dims, padding, next(keys), 1.0, dtype, stride)

    return UNet(
        stem=conv(inputs, width),
        down_blocks=tuple(block(w) for w in widths[:-1]),
        down=tuple(conv(w, 2 * w, 2) for w in widths[:-1]),
        middle=block(widths[-1]),
        merge=tuple(conv(3 * w, w) for w in reversed(widths[:-1])),
        up_blocks=tuple(block(w) for w in reversed(widths[:-1])),
        head=conv(width, outputs),
    )


def _conv(
    before: int,
    after: int,
    dims: int,
    padding: str,
    key: Any,
    gain: float,
    dtype: Any,
    stride: int = 1,
) -> eqx.nn.Conv:
    if padding not in PADDINGS:
        raise InputError(f"padding {padding!r} must be one of {', '.join(PADDINGS)}")
    if dims not in (1, 2, 3):
        raise InputError(f"dims={dims} must be 1, 2 or 3")
    made = eqx.nn.Conv(
        dims, before, after, 3, stride, padding=1, padding_mode=padding, dtype=dtype, key=key
    )
    return normal_init(made, key, gain)


def _norm(channels: int, dtype: Any) -> eqx.nn.GroupNorm:
    # Several channels to a group: alone in one, a channel would lose the bias in front of it.
    groups = math.gcd(max(channels // 4, 1), 8)
    groups = groups if channels % groups == 0 else 1
    made = eqx.nn.GroupNorm(groups, channels)
    return jax.tree.map(lambda x: x.astype(dtype) if eqx.is_array(x) else x, made)


def _doubled(x: Float[Array, " channels *space"]) -> Array:
    """Each cell repeated twice along each axis of space."""
    for axis in range(1, x.ndim):
        x = jnp.repeat(x, 2, axis)
    return x


# ---- transformer


class TransformerBlock(eqx.Module):
    """Pre-norm: x + attention(norm(x)), then x + mlp(norm(x))."""

    attention_norm: eqx.nn.LayerNorm
    attention: eqx.nn.MultiheadAttention
    mlp_norm: eqx.nn.LayerNorm
    mlp: MLP

    def __call__(
        self, x: Float[Array, "time width"], mask: Array | None
    ) -> Float[Array, "time width"]:
        inside = jax.vmap(self.attention_norm)(x)
        x = x + self.attention(inside, inside, inside, mask=mask)
        return x + jax.vmap(self.mlp)(jax.vmap(self.mlp_norm)(x))


class Transformer(eqx.Module):
    """A sequence of vectors to a sequence of vectors: see `transformer`."""

    embedding: eqx.nn.Linear
    positions: Float[Array, "length width"] | None
    blocks: tuple[TransformerBlock, ...]
    norm: eqx.nn.LayerNorm
    head: eqx.nn.Linear
    causal: bool = eqx.field(static=True)

    def __call__(
        self, x: Float[Array, "time inputs"], key: Any = None
    ) -> Float[Array, "time outputs"]:
        time = x.shape[0]
        x = jax.vmap(self.embedding)(x)
        if self.positions is not None:
            if time > self.positions.shape[0]:
                raise InputError(
                    f"a sequence of {time} exceeds the {self.positions.shape[0]} positions: "
                    "make the transformer with a larger length"
                )
            x = x + self.positions[:time]
        mask = jnp.tril(jnp.ones((time, time), bool)) if self.causal else None
        for block in self.blocks:
            x = block(x, mask)
        return jax.vmap(self.head)(jax.vmap(self.norm)(x))


def transformer(
    inputs: int,
    outputs: int,
    key: Any,
    *,
    width: int = 64,
    heads: int = 4,
    blocks: int = 2,
    length: int | None = None,
    causal: bool = False,
    dtype: Any = jnp.float32,
) -> Transformer:
    """A pre-norm transformer `[time, inputs] -> [time, outputs]`; tokens go in one-hot.

    **Arguments:**

    - `length`: the longest sequence, with a learned position for each place. None: no positions,
      and permuting the sequence permutes the output (unless `causal`).
    - `causal`: whether a place sees only itself and those before it.

    Raises `InputError` if `heads` does not divide `width`. **Cost:** time^2 · width a block.
    """
    if width % heads:
        raise InputError(f"heads={heads} must divide width={width}")
    embedding, positions, head, *rest = jax.random.split(key, blocks + 3)

    def norm() -> eqx.nn.LayerNorm:
        return eqx.nn.LayerNorm(width, dtype=dtype)

    def block(key: Any) -> TransformerBlock:
        first, second = jax.random.split(key)
        inside = mlp([width, 4 * width, width], second, dtype=dtype)
        inside = eqx.tree_at(lambda m: m.layers[-1].weight, inside, replace_fn=jnp.zeros_like)
        return TransformerBlock(norm(), _attention(heads, width, first, dtype), norm(), inside)

    return Transformer(
        normal_init(eqx.nn.Linear(inputs, width, dtype=dtype, key=embedding), embedding),
        0.02 * jax.random.normal(positions, (length, width), dtype) if length else None,
        tuple(block(k) for k in rest),
        norm(),
        normal_init(eqx.nn.Linear(width, outputs, dtype=dtype, key=head), head),
        causal,
    )


def _attention(heads: int, width: int, key: Any, dtype: Any) -> eqx.nn.MultiheadAttention:
    made = eqx.nn.MultiheadAttention(heads, width, dtype=dtype, key=key)

    def inward(m: Any) -> tuple[Any, ...]:
        return m.query_proj, m.key_proj, m.value_proj

    drawn = tuple(map(normal_init, inward(made), jax.random.split(key, 3)))
    made = eqx.tree_at(inward, made, drawn)
    return eqx.tree_at(lambda m: m.output_proj.weight, made, replace_fn=jnp.zeros_like)
