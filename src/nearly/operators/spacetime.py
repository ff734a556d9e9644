"""Space-time Fourier neural operators: known frames of a flow to later ones, at any times.

Frames are channels, `[frames, *space]`. Inside, time is one more axis, transformed like space. The
last layer, a spectral convolution with a bias in Fourier space, hands out a trigonometric
polynomial in space and time: it can be asked for more frames than it was trained on, and for its
exact time derivative. That is what `nearly.operators.residual_loss` corrects by the equation.
"""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nearly.core.errors import InputError
from nearly.operators.data import Pairs
from nearly.operators.fno import at_points
from nearly.operators.spectral import (
    SpectralConvolution,
    analyse,
    available_modes,
    check_modes,
    kept_shape,
    mix,
    restrict,
    spectral_convolution,
    synthesise,
)
from nearly.operators.training import (
    FieldLoss,
    Schedule,
    normalized,
    relative_l2_loss,
    train,
)
from nearly.training.architectures import Activation

NEW_WEIGHT = 1e-6  # the size of weights of modes that are added


class Latent(eqx.Module):
    """What the last layer acts on.

    **Attributes:**

    - `fields`: `[*space, 1 + steps]`: the last known frame, and the latent steps after it.
    """

    fields: Float[Array, "*space times"]

    @property
    def last(self) -> Float[Array, "*space"]:
        """The last known frame."""
        return self.fields[..., 0]


class OutputLayer(eqx.Module):
    """The last layer: latent steps to frames, a linear map of Fourier modes plus a bias of theirs.

    The latent steps are preceded by as many zeros (so that the end does not leak into the
    beginning), which makes a window of twice the time; the frames lie in its second half, at any
    resolution. What is added to the last known frame is their difference from its own time, so that
    the course begins there whatever the weights.

    **Arguments:** `weight`, `bias`: for each kept mode, real and imaginary parts. `modes`: kept
    along space and time. `scale`: of the bias.
    """

    weight: Float[Array, "*kept 2 1 1"]
    bias: Float[Array, "*kept 2 1"]
    modes: tuple[int, ...] = eqx.field(static=True)
    scale: float = eqx.field(static=True, default=0.1)

    def __call__(self, latent: Latent, frames: int) -> Float[Array, " frames *space"]:
        """The frames after the last known one, `frames` of them in the same time."""
        return self.values(latent, frames)[1:]

    def values(
        self, latent: Latent, frames: int, refinement: int = 1
    ) -> Float[Array, " times *space"]:
        """The polynomial at the last known frame's own time and after, `refinement` times a frame.

        `(frames + 1) refinement` times, of which every `refinement`-th is a frame's.
        """
        course = self._synthesised(self._coefficients(latent), latent, frames, refinement)
        return latent.last + (course - course[0])

    def time_derivative(
        self, latent: Latent, frames: int, dt: float, refinement: int = 1
    ) -> Float[Array, " times *space"]:
        """Its exact derivative in time at the times of `values`; frames are `dt` apart."""
        coefficients = self._coefficients(latent)
        rate = 2 * math.pi * np.arange(coefficients.shape[-3]) / (2 * (frames + 1) * dt)
        spread = jnp.asarray(rate, coefficients.dtype)[:, None]
        real, imaginary = coefficients[..., 0, :], coefficients[..., 1, :]
        turned = jnp.stack([-spread * imaginary, spread * real], axis=-2)
        return self._synthesised(turned, latent, frames, refinement)

    def _coefficients(self, latent: Latent) -> Float[Array, "*kept 2 1"]:
        fields = latent.fields
        times = fields.shape[-1]
        padded = jnp.concatenate([jnp.zeros_like(fields), fields], axis=-1)
        kept = available_modes((*fields.shape[:-1], 2 * times), self.modes)
        mixed = mix(restrict(self.weight, self.modes, kept), analyse(padded[..., None], kept))
        bias = restrict(self.bias[..., None], self.modes, kept)[..., 0]
        return mixed + self.scale * bias

    def _synthesised(
        self, coefficients: Array, latent: Latent, frames: int, refinement: int
    ) -> Float[Array, " times *space"]:
        half = (frames + 1) * refinement
        grid = (*latent.last.shape, 2 * half)
        *sides, last = coefficients.shape[:-2]
        kept = (*(side // 2 for side in sides), last)
        if available_modes(grid, kept) != kept:
            raise InputError(
                f"{frames} frames are too few for {last} modes in time: ask for at least "
                f"{math.ceil((last - 1) / refinement) - 1}"
            )
        window = synthesise(coefficients, kept, grid)[..., 0]
        return jnp.moveaxis(window[..., half:], -1, 0)


def enlarged(layer: OutputLayer, modes: tuple[int, ...], key: Any) -> OutputLayer:
    """The layer with more modes: the old weights copied, the new ones tiny, their biases zero.

    Raises `InputError` for fewer modes than there are.
    """
    check_modes(modes)
    if len(modes) != len(layer.modes) or any(map(int.__lt__, modes, layer.modes)):
        raise InputError(f"modes={modes} must be at least the layer's {layer.modes}")
    places = [
        np.concatenate([np.arange(old), np.arange(2 * new - old, 2 * new)])
        for old, new in zip(layer.modes[:-1], modes[:-1], strict=True)
    ]
    at = np.ix_(*places, np.arange(layer.modes[-1]))
    dtype = layer.weight.dtype
    weight = NEW_WEIGHT * jax.random.normal(key, (*kept_shape(modes), 2, 1, 1), dtype)
    bias = jnp.zeros((*kept_shape(modes), 2, 1), dtype)
    return OutputLayer(
        weight.at[at].set(layer.weight), bias.at[at].set(layer.bias), modes, layer.scale
    )


class SpaceTimeLayer(eqx.Module):
    """activation(MLP(spectral convolution(v)) + W v), as published."""

    spectral: SpectralConvolution
    wide: eqx.nn.Linear
    narrow: eqx.nn.Linear
    pointwise: eqx.nn.Linear
    activation: Activation

    def __call__(self, field: Float[Array, "*grid width"]) -> Float[Array, "*grid width"]:
        inside = self.activation(at_points(self.wide, self.spectral.channels_last(field)))
        return self.activation(at_points(self.narrow, inside) + at_points(self.pointwise, field))


class SpaceTimeFNO(eqx.Module):
    """`[known, *space] -> [frames, *space]`: see `spacetime_fno`."""

    scale: Float[Array, " width"]
    shift: Float[Array, " width"]
    project: eqx.nn.Linear
    lift: SpectralConvolution
    layers: tuple[SpaceTimeLayer, ...]
    reduce: eqx.nn.Linear
    output: OutputLayer
    activation: Activation
    latent_steps: int = eqx.field(static=True)
    frames: int = eqx.field(static=True)
    growth: float = eqx.field(static=True)

    def __call__(
        self, field: Float[Array, " known *space"], key: Any = None
    ) -> Float[Array, " frames *space"]:
        """The frames that follow."""
        return self.output(self.latent(field), self.frames)

    def latent(self, field: Float[Array, " known *space"]) -> Latent:
        """What the last layer acts on: everything before it, which fine-tuning leaves alone."""
        if field.ndim != len(self.lift.modes):
            raise InputError(
                f"known frames [known, *space] with {len(self.lift.modes) - 1} axes of space were "
                f"expected, not shape {list(field.shape)}; batches go through jax.vmap"
            )
        space = field.shape[1:]
        v = jnp.moveaxis(field, 0, -1)[..., None]
        v = v + _encoding((*space, field.shape[0]), self.scale.size, self.growth, v.dtype)
        v = (v - jnp.mean(v)) * jax.lax.rsqrt(jnp.var(v) + 1e-6) * self.scale + self.shift
        v = at_points(self.project, v)
        lifted = self.lift.channels_last(v, (*space, self.latent_steps))
        v = self.activation(v[..., -1:, :] + lifted)
        for layer in self.layers:
            v = layer(v)
        steps = at_points(self.reduce, v)[..., 0]
        return Latent(jnp.concatenate([jnp.moveaxis(field[-1:], 0, -1), steps], axis=-1))


def _encoding(grid: tuple[int, ...], width: int, growth: float, dtype: Any) -> np.ndarray:
    """Place, time, and growing waves of time at each point, `[*grid, width]`.

    Space takes as many channels as it has axes, time one, and the waves exp(growth t) cos or
    sin(pi k t) the rest.
    """
    *space, known = grid
    time = np.arange(1, known + 1) / known
    axes = [np.arange(n) / n for n in space] + [time]
    places = list(np.meshgrid(*axes, indexing="ij"))
    waves = [
        np.exp(growth * time) * (np.sin, np.cos)[k % 2](math.pi * k * time)
        for k in range(1, width - len(places) + 1)
    ]
    spread = [np.broadcast_to(wave, grid) for wave in waves]
    return np.stack((places + spread)[:width], axis=-1).astype(dtype)


def spacetime_fno(
    key: Any,
    *,
    frames: int,
    modes: tuple[int, ...],
    width: int = 20,
    layers: int = 3,
    latent_steps: int = 5,
    expansion: int = 4,
    growth: float = -1e-2,
    scale: float = 0.1,
    activation: Activation = jax.nn.gelu,
    dtype: Any = jnp.float32,
) -> SpaceTimeFNO:
    """A space-time FNO of scalar fields on periodic boxes with `len(modes) - 1` axes of space.

    **Arguments:**

    - `frames`: handed out by a call, at the distance of the known ones.
    - `modes`: kept along each axis of space and, last, along time. Paper: (32, 32, 5), width 10.
    - `layers`: after the lifting one. `latent_steps`: in time, inside. `expansion`: of the MLPs.
    - `growth`: of the waves in the encoding of time. `scale`: of the output's bias.

    Raises `InputError` for numbers out of range. Any number of known frames and any resolution may
    be fed. **Cost** of a call: as a `fno` with the latent steps as one more axis. Paper:
    `spectral-refiner`. Not the spherical FNO of the same abbreviation.

    Differs from the published code in the output layer. Its course begins at the last known frame
    (there, anywhere: fine-tuning on a residual cannot tell how far from it); and the two halves of
    its window stay equal whatever the number of frames (there the padding keeps its length, so that
    other numbers of frames stretch time).
    """
    if min(frames, width, layers, latent_steps, expansion) < 1:
        raise InputError(
            f"frames={frames}, width={width}, layers={layers}, latent_steps={latent_steps}, "
            f"expansion={expansion}: at least 1"
        )
    if not 2 <= len(modes) <= 3:
        raise InputError(f"modes={modes} must be those of one or two axes of space and of time")
    lift, project, reduce, output, *rest = jax.random.split(key, 4 + layers)

    def linear(inputs: int, outputs: int, key: Any) -> eqx.nn.Linear:
        return eqx.nn.Linear(inputs, outputs, dtype=dtype, key=key)

    def layer(key: Any) -> SpaceTimeLayer:
        first, second, third, fourth = jax.random.split(key, 4)
        return SpaceTimeLayer(
            spectral_convolution(width, width, modes, first, dtype=dtype),
            linear(width, expansion * width, second),
            linear(expansion * width, width, third),
            linear(width, width, fourth),
            activation,
        )

    return SpaceTimeFNO(
        jnp.ones(width, dtype),
        jnp.zeros(width, dtype),
        linear(width, width, project),
        spectral_convolution(width, width, modes, lift, dtype=dtype),
        tuple(map(layer, rest)),
        linear(width, 1, reduce),
        OutputLayer(
            0.5 * jax.random.uniform(output, (*kept_shape(modes), 2, 1, 1), dtype),
            jnp.zeros((*kept_shape(modes), 2, 1), dtype),
            modes,
            scale,
        ),
        activation,
        latent_steps,
        frames,
        growth,
    )


class TrainedSpaceTimeFNO(eqx.Module):
    """Builds a space-time FNO from pairs whose channels are known and later frames.

    **Arguments:** `modes`: along each axis of space; the others of `spacetime_fno` and of
    `operators.training.train`. The paper trains 10 to 15 epochs by one cycle up to 1e-2.
    """

    modes: int = 8
    time_modes: int = 5
    width: int = 10
    layers: int = 3
    latent_steps: int = 5
    steps: int = 300
    batch: int = 8
    learning_rate: float = 1e-2
    schedule: Schedule = "one-cycle"
    loss: FieldLoss = relative_l2_loss

    def __call__(self, data: Pairs, *, key: Any) -> Any:
        model_key, train_key = jax.random.split(key)
        return self.trained(self.model(data, model_key), data, train_key)

    def model(self, data: Pairs, key: Any) -> SpaceTimeFNO:
        """The untrained network for such data."""
        frames = data.outputs.shape[1]
        in_time = min(self.time_modes, frames + 2)  # more than that, so few frames cannot tell
        return spacetime_fno(
            key,
            frames=frames,
            modes=(*(self.modes,) * data.grid.dims, in_time),
            width=self.width,
            layers=self.layers,
            latent_steps=self.latent_steps,
            dtype=data.inputs.dtype,
        )

    def trained(self, model: Any, data: Pairs, key: Any) -> Any:
        """The model after the steps of these settings."""
        trained = train(
            model,
            data,
            steps=self.steps,
            batch=min(self.batch, len(data)),
            learning_rate=self.learning_rate,
            schedule=self.schedule,
            loss=self.loss,
            key=key,
        )
        return trained.model


class NormalizedSpaceTimeFNO(TrainedSpaceTimeFNO):
    """The same between normalised fields, for inputs and outputs of other sizes than a flow's.

    For `FineTuning` build the plain one: a residual is that of the fields themselves.
    """

    def __call__(self, data: Pairs, *, key: Any) -> Any:
        model_key, train_key = jax.random.split(key)
        return self.trained(normalized(self.model(data, model_key), data), data, train_key)


spacetime_map = NormalizedSpaceTimeFNO()
