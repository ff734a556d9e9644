"""CAPE: a guess of the next state whose channels are weighted by the equation's parameters.

Any network of fields becomes one of fields and parameters: the guess is handed to it beside the
state. Beside it here: parameters as channels, and FiLM, which shifts and scales the channels inside
a Fourier neural operator.

How this differs from `cape`:

- Its layer norm has one factor and one shift a channel instead of one a point, which would tie the
  module to one resolution; the statistics are the same.
- Low-pass features are brought back to the grid by linear interpolation, periodic like the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nearly.core.errors import InputError
from nearly.operators.curriculum import (
    Advance,
    Curriculum,
    Pace,
    Paced,
    Share,
    Windows,
    gradual,
    usable,
)
from nearly.operators.data import Trajectories
from nearly.operators.fno import FNO, FourierLayer, WithParameters, fno
from nearly.operators.scaling import Scaling, scaling
from nearly.operators.spectral import SpectralConvolution, spectral_convolution
from nearly.operators.training import optimizer
from nearly.training.architectures import MLP, mlp, normal_init
from nearly.training.convolution import as_products
from nearly.training.loop import fit

POOL = 4  # cells averaged along each axis in front of the spectral branch
KERNEL = 5
AUXILIARY = 5.7e-5  # weight of the guess's own loss, as published
ALONE = 0.03  # the part of the training in which the guess alone is trained: 3 epochs of 100

Field = Float[Array, "channels *grid"]


# ---- the attention


class ParameterAttention(eqx.Module):
    """A guess of the next state, `(state, parameters) -> state`: see `parameter_attention`."""

    lift: Any
    spectral: SpectralConvolution
    pointwise: Any
    depthwise: Any
    free: Any
    masks: tuple[MLP, MLP, MLP]
    head: Any
    norm: eqx.nn.GroupNorm

    def __call__(self, state: Field, parameters: Float[Array, " p"]) -> Field:
        """Raises `InputError` for a grid that is no multiple of 4 along each axis."""
        if any(size % POOL for size in state.shape[1:]):
            raise InputError(
                f"CAPE averages {POOL} cells along each axis: sizes {list(state.shape[1:])} must "
                f"be multiples of {POOL}"
            )
        lifted = jax.nn.gelu(self.lift(state))
        branches = (
            upsampled(self.spectral(averaged(lifted))),
            self.pointwise(lifted),
            self.depthwise(lifted),
        )
        spread = (-1,) + (1,) * (state.ndim - 1)
        mixed = self.free(lifted)
        for branch, mask in zip(branches, self.masks, strict=True):
            mixed = mixed + branch * mask(parameters).reshape(spread)
        return state + self.norm(self.head(jax.nn.gelu(mixed)))


def averaged(field: Field) -> Float[Array, " channels *quarters"]:
    """Means of blocks of 4 cells along each axis: a quarter of the resolution."""
    for axis in range(1, field.ndim):
        shape = (*field.shape[:axis], field.shape[axis] // POOL, POOL, *field.shape[axis + 1 :])
        field = field.reshape(shape).mean(axis + 1)
    return field


def upsampled(field: Field) -> Float[Array, " channels *fine"]:
    """Four times the resolution by periodic linear interpolation between the blocks' centres."""
    for axis in range(1, field.ndim):
        repeated = jnp.repeat(field, POOL, axis)
        weights = {-2: 1 / 8, -1: 1 / 4, 0: 1 / 4, 1: 1 / 4, 2: 1 / 8}
        field = sum(
            (weight * jnp.roll(repeated, shift, axis) for shift, weight in weights.items()),
            jnp.zeros_like(repeated),
        )
    return field


def parameter_attention(
    channels: int,
    parameters: int,
    key: Any,
    *,
    width: int = 64,
    modes: int = 8,
    dims: int = 1,
    dtype: Any = jnp.float32,
) -> ParameterAttention:
    """The module of `cape`, drawn from a key.

    **Arguments:**

    - `channels`: of the state. `parameters`: how many; at least 1.
    - `width`: of the features that are weighted, an even number; the layers before have half.
    - `modes`: of the spectral branch, on the averaged grid; a coarse grid goes without some.

    Raises `InputError`. **Cost:** about `width^2 * (modes + 1)` parameters in 1-D.
    """
    _check_parameters("CAPE", parameters)
    if width < 2 or width % 2:
        raise InputError(f"width={width} must be even, such as 64")
    keys = jax.random.split(key, 9)
    half = width // 2

    def conv(before: int, after: int, kernel: int, key: Any, groups: int = 1) -> Any:
        made = eqx.nn.Conv(
            dims,
            before,
            after,
            kernel,
            padding=kernel // 2,
            padding_mode="CIRCULAR",
            groups=groups,
            dtype=dtype,
            key=key,
        )
        return as_products(normal_init(made, key))

    return ParameterAttention(
        lift=conv(channels, half, KERNEL, keys[0]),
        spectral=spectral_convolution(half, width, (modes,) * dims, keys[1], dtype=dtype),
        pointwise=conv(half, width, 1, keys[2]),
        depthwise=conv(half, width, KERNEL, keys[3], groups=half),
        free=conv(half, width, 1, keys[4]),
        masks=(
            mlp([parameters, width, width], keys[5], dtype=dtype),
            mlp([parameters, width, width], keys[6], dtype=dtype),
            mlp([parameters, width, width], keys[7], dtype=dtype),
        ),
        head=conv(width, channels, KERNEL, keys[8]),
        norm=_in_dtype(eqx.nn.GroupNorm(1, channels), dtype),
    )


def _check_parameters(name: str, parameters: int) -> None:
    if parameters < 1:
        raise InputError(
            f"{name} needs at least 1 parameter: give a family whose equation has some"
        )


def _in_dtype(layer: Any, dtype: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(dtype) if eqx.is_inexact_array(x) else x, layer)


# ---- networks of a state and parameters


class Unconditioned(eqx.Module):
    """A network that is not told the parameters."""

    model: FNO

    def __call__(self, state: Field, parameters: Float[Array, " p"]) -> Field:
        del parameters
        return self.model(state)


class CAPE(eqx.Module):
    """A network that sees the state beside the attention's guess of the next one."""

    attention: ParameterAttention
    base: Any
    mix: Any

    def __call__(self, state: Field, parameters: Float[Array, " p"]) -> Field:
        return self.with_guess(state, parameters)[0]

    def with_guess(self, state: Field, parameters: Float[Array, " p"]) -> tuple[Field, Field]:
        """The next state, and the attention's own guess of it."""
        guess = self.attention(state, parameters)
        return self.mix(self.base(jnp.concatenate([state, guess]))), guess


class FiLM(eqx.Module):
    """A Fourier neural operator whose layers are scaled and shifted by a network of parameters."""

    base: FNO
    modulations: tuple[MLP, ...]

    def __call__(self, state: Field, parameters: Float[Array, " p"]) -> Field:
        layers = tuple(
            Modulated(layer, *jnp.split(modulation(parameters), 2))
            for layer, modulation in zip(self.base.layers, self.modulations, strict=True)
        )
        return eqx.tree_at(lambda m: m.layers, self.base, layers)(state)


class Modulated(eqx.Module):
    """A Fourier layer with the channels of its output scaled and shifted."""

    layer: FourierLayer
    scale: Float[Array, " width"]
    shift: Float[Array, " width"]

    @property
    def spectral(self) -> SpectralConvolution:
        return self.layer.spectral

    def __call__(self, field: Float[Array, "*grid width"]) -> Float[Array, "*grid width"]:
        return self.layer(field) * (1 + self.scale) + self.shift


@dataclass(frozen=True)
class Base:
    """The Fourier neural operator that is conditioned: the paper's has 20 channels, 12 modes."""

    width: int = 20
    modes: int = 12
    projection: int = 128

    def __call__(self, inputs: int, outputs: int, dims: int, key: Any, dtype: Any) -> FNO:
        return fno(
            inputs,
            outputs,
            key,
            modes=(self.modes,) * dims,
            width=self.width,
            projection=self.projection,
            dtype=dtype,
        )


BASE = Base()
Maker = Callable[[Base, int, int, int, Any, Any], Any]


def unconditioned(
    base: Base, channels: int, parameters: int, dims: int, key: Any, dtype: Any
) -> Unconditioned:
    """The base alone."""
    del parameters
    return Unconditioned(base(channels, channels, dims, key, dtype))


def parameter_channels(
    base: Base, channels: int, parameters: int, dims: int, key: Any, dtype: Any
) -> WithParameters:
    """The base with each parameter as a constant channel of its input."""
    return WithParameters(base(channels + parameters, channels, dims, key, dtype))


def film(base: Base, channels: int, parameters: int, dims: int, key: Any, dtype: Any) -> FiLM:
    """The base with each layer modulated by a network of one hidden layer, at first by nothing."""
    _check_parameters("FiLM", parameters)
    base_key, film_key = jax.random.split(key)
    made = base(channels, channels, dims, base_key, dtype)
    sizes = [parameters, 2 * base.width, 2 * base.width]
    keys = jax.random.split(film_key, len(made.layers))
    modulations = tuple(mlp(sizes, k, dtype=dtype) for k in keys)
    modulations = eqx.tree_at(
        lambda ms: [m.layers[-1].weight for m in ms], modulations, replace_fn=jnp.zeros_like
    )
    return FiLM(made, modulations)


def parameter_attended(
    base: Base, channels: int, parameters: int, dims: int, key: Any, dtype: Any
) -> CAPE:
    """The base with the attention in front of it, and its output mixed point by point."""
    attention_key, base_key, mix_key = jax.random.split(key, 3)
    mix = eqx.nn.Conv(dims, 2 * channels, channels, 1, dtype=dtype, key=mix_key)
    return CAPE(
        parameter_attention(channels, parameters, attention_key, dims=dims, dtype=dtype),
        base(2 * channels, 2 * channels, dims, base_key, dtype),
        as_products(normal_init(mix, mix_key)),
    )


# ---- the stepper


class ConditionedStepper(eqx.Module):
    """A network of state and parameters as a stepper, in the units it was trained in."""

    network: Any
    scaling: Scaling

    def __call__(self, state: Field, parameters: Float[Array, " p"], *, key: Any = None) -> Field:
        """The next state. Raises `InputError` for another number of channels."""
        del key
        self._check(state)
        told = self.scaling.parameters(parameters, state.dtype)
        return self.scaling.original(self.network(self.scaling.normal(state), told))

    def with_guess(self, state: Field, parameters: Float[Array, " p"]) -> tuple[Field, Field]:
        """The next state and the attention's guess of it."""
        self._check(state)
        told = self.scaling.parameters(parameters, state.dtype)
        made, guess = self.network.with_guess(self.scaling.normal(state), told)
        return self.scaling.original(made), self.scaling.original(guess)

    def squared_error(self, made: Field, truth: Field) -> Float[Array, ""]:
        """In units of the states' deviation."""
        return jnp.mean((self.scaling.normal(made) - self.scaling.normal(truth)) ** 2)

    def _check(self, state: Field) -> None:
        channels = self.scaling.mean.shape[0]
        if state.shape[0] != channels:
            raise InputError(
                f"a state of {state.shape[0]} channels for a stepper of {channels}: "
                "the first axis is the channel"
            )


def state_loss(
    stepper: ConditionedStepper, state: Any, parameters: Any, truth: Any, progress: Any
) -> tuple[Any, Any]:
    """One step for `Curriculum`: the next state and its squared error."""
    del progress
    made = stepper(state, parameters)
    return made, stepper.squared_error(made, truth)


def guided_loss(
    stepper: ConditionedStepper, state: Any, parameters: Any, truth: Any, progress: Any
) -> tuple[Any, Any]:
    """One step of CAPE for `Curriculum`: the guess has a small loss of its own, at first alone."""
    made, guess = stepper.with_guess(state, parameters)
    own = stepper.squared_error(guess, truth)
    both = stepper.squared_error(made, truth) + AUXILIARY * own
    return made, jnp.where(progress < ALONE, own, both)


# ---- the builder


@dataclass(frozen=True)
class ConditionedTraining:
    """Trains a conditioned Fourier neural operator on windows of trajectories.

    A method of `solution-steppers`.

    **Arguments:**

    - `network`: `parameter_attended` (CAPE), `film`, `parameter_channels` or `unconditioned`.
    - `advance`: the loss of one step; `guided_loss` goes with CAPE.
    - `base`: the operator that is conditioned.
    - `share`: `gradual`, `teacher_forcing` or `autoregressive`; see `curriculum`.
    - `frames`: of a window, the trajectories' own if they are shorter. `steps`, `batch`: of Adam,
      its rate halved five times from `learning_rate`.

    The paper: 100 epochs of batches of 50, halving every 20. The defaults take seconds on a CPU.
    """

    network: Maker
    advance: Advance
    base: Base = BASE
    share: Share = gradual
    frames: int = 6
    steps: int = 500
    batch: int = 16
    learning_rate: float = 3e-3

    def __call__(self, data: Trajectories, *, key: Any) -> ConditionedStepper:
        """The trained stepper.

        Raises `InputError` for data that is not periodic, not finite or (CAPE) without parameters,
        and if training diverged.
        """
        init_key, train_key = jax.random.split(key)
        stepper = self.untrained(data, key=init_key)
        dtype = data.states.dtype
        frames = min(self.frames, data.states.shape[1])
        trained = fit(
            Curriculum(self.advance, self.share, ALONE),
            Paced(stepper, jnp.zeros((), dtype)),
            Windows(jnp.asarray(data.states), jnp.asarray(data.parameters), frames, self.batch),
            optimizer=optimizer(self.learning_rate, self.steps, "halving"),
            gradient=Pace(self.steps),
            steps=self.steps,
            key=train_key,
        )
        return usable(trained).model

    def untrained(self, data: Trajectories, *, key: Any) -> ConditionedStepper:
        """The stepper with the weights its training starts from."""
        if not data.grid.periodic:
            raise InputError("these layers are periodic: give them a periodic family")
        units = scaling(data)
        network = self.network(
            self.base,
            data.states.shape[2],
            data.parameters.shape[1],
            data.grid.dims,
            key,
            data.states.dtype,
        )
        return ConditionedStepper(network, units)


cape = ConditionedTraining(parameter_attended, guided_loss)
film_stepper = ConditionedTraining(film, state_loss)
channels_stepper = ConditionedTraining(parameter_channels, state_loss)
plain_stepper = ConditionedTraining(unconditioned, state_loss)
