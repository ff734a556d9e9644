"""The Fourier neural operator (`fno`): maps of fields to fields, at any resolution.

    lift every point's values and coordinates to `width` channels
    repeat: field <- activation(spectral convolution of the field + W field + b), the last without
    project every point's channels to the output by a network of one hidden layer

Differs from the published code: channels are the last axis inside (see `spectral`); coordinates
are those of the grid, without the right end of a periodic axis and at the centres of cells else,
so that they mean the same at each resolution; padding is a fraction of the box, not a number of
cells, for the same reason; GELU, as in the authors' later code, where the paper has ReLU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nearly.core.errors import InputError
from nearly.operators.baselines import residual_stepper
from nearly.operators.data import Grid, Pairs, Trajectories
from nearly.operators.spectral import SpectralConvolution, Transform, spectral_convolution
from nearly.operators.training import (
    FieldLoss,
    Schedule,
    as_stepper,
    normalized,
    relative_l2_loss,
    train,
)

Activation = Callable[[Array], Array]

SMALL = {1: (16, 32), 2: (8, 20), 3: (4, 12)}  # modes and width by axes, for a processor


class FourierLayer(eqx.Module):
    """A spectral convolution plus a map of each point's channels: `[*grid, width]`."""

    spectral: SpectralConvolution
    pointwise: eqx.nn.Linear

    def __call__(self, field: Float[Array, "*grid width"]) -> Float[Array, "*grid width"]:
        return self.spectral.channels_last(field) + at_points(self.pointwise, field)


class FNO(eqx.Module):
    """A Fourier neural operator `[inputs, *grid] -> [outputs, *grid]`: see `fno`."""

    lift: eqx.nn.Linear
    layers: tuple[FourierLayer, ...]
    hidden: eqx.nn.Linear
    readout: eqx.nn.Linear
    activation: Activation
    periodic: bool = eqx.field(static=True)
    padding: float = eqx.field(static=True)

    @property
    def dims(self) -> int:
        return len(self.layers[0].spectral.modes)

    def __call__(
        self, field: Float[Array, " inputs *grid"], key: Any = None
    ) -> Float[Array, " outputs *grid"]:
        """The output field on the input's grid.

        Raises `InputError` for a field of other channels or another number of axes.
        """
        self._check(field)
        grid = field.shape[1:]
        x = jnp.moveaxis(field, 0, -1)
        x = jnp.concatenate([x, _coordinates(grid, self.periodic, x.dtype)], -1)
        x = self._padded(at_points(self.lift, x))
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        x = self.layers[-1](x)[tuple(map(slice, grid))]
        x = self.activation(at_points(self.hidden, x))
        return jnp.moveaxis(at_points(self.readout, x), -1, 0)

    def _padded(self, x: Array) -> Array:
        if not self.padding:
            return x
        return jnp.pad(x, [(0, round(n * self.padding)) for n in x.shape[:-1]] + [(0, 0)])

    def _check(self, field: Array) -> None:
        inputs = self.lift.weight.shape[1] - self.dims
        if field.ndim != self.dims + 1 or field.shape[0] != inputs:
            raise InputError(
                f"this FNO takes a field of {inputs} channels and {self.dims} axes, "
                f"[{inputs}, *grid], not one of shape {list(field.shape)}; batches go through "
                "jax.vmap"
            )


def fno(
    inputs: int,
    outputs: int,
    key: Any,
    *,
    modes: tuple[int, ...],
    width: int = 32,
    layers: int = 4,
    projection: int = 128,
    padding: float = 0.0,
    periodic: bool = True,
    activation: Activation = jax.nn.gelu,
    transform: Transform = "auto",
    dtype: Any = jnp.float32,
) -> FNO:
    """A Fourier neural operator on grids of `len(modes)` axes, of any resolution.

    **Arguments:**

    - `inputs`, `outputs`: channels of the fields.
    - `modes`: kept along each axis, as in `SpectralConvolution`. The paper has (16,), (12, 12)
      and (8, 8, 8) with `width` 64, 32 and 20.
    - `projection`: width of the one hidden layer at the end.
    - `padding`: zeros appended along each axis, as a fraction of it, so that what is not periodic
      need not be. The fraction is rounded to cells: choose one that is whole at the resolutions
      in use.
    - `periodic`: where the points lie (`data.Grid`).
    - `transform`: `fft`, `dense` or `auto`, as in `SpectralConvolution`.

    Layers of points are drawn uniformly within ±1 / sqrt(fan-in), spectral ones as published.

    Raises `InputError` for numbers out of range. **Cost** of a call: per layer and point, width^2
    and the transforms; per layer and kept mode, width^2. Paper: `fno`.
    """
    if min(width, layers, projection) < 1:
        raise InputError(f"width={width}, layers={layers}, projection={projection}: at least 1")
    if not 0 <= padding <= 1:
        raise InputError(f"padding={padding} must be a fraction of the box, from 0 to 1")
    lift, hidden, readout, *rest = jax.random.split(key, 3 + layers)

    def layer(key: Any) -> FourierLayer:
        first, second = jax.random.split(key)
        return FourierLayer(
            spectral_convolution(width, width, modes, first, transform=transform, dtype=dtype),
            eqx.nn.Linear(width, width, dtype=dtype, key=second),
        )

    return FNO(
        eqx.nn.Linear(inputs + len(modes), width, dtype=dtype, key=lift),
        tuple(map(layer, rest)),
        eqx.nn.Linear(width, projection, dtype=dtype, key=hidden),
        eqx.nn.Linear(projection, outputs, dtype=dtype, key=readout),
        activation,
        periodic,
        padding,
    )


def at_points(
    linear: eqx.nn.Linear, field: Float[Array, "*grid inputs"]
) -> Float[Array, "*grid outputs"]:
    """A linear layer at every point, as one product of matrices."""
    out = field @ linear.weight.T
    return out if linear.bias is None else out + linear.bias


def _coordinates(grid: tuple[int, ...], periodic: bool, dtype: Any) -> np.ndarray:
    """The place of each point in the unit box, `[*grid, axes]`."""
    box = Grid((1.0,) * len(grid), periodic)
    axes = [box.axis(points, axis) for axis, points in enumerate(grid)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).astype(dtype)


class WithParameters(eqx.Module):
    """A model of fields to which parameters are channels, each constant over the grid."""

    model: FNO

    def __call__(
        self,
        field: Float[Array, " channels *grid"],
        parameters: Float[Array, " parameters"] | None = None,
    ) -> Float[Array, " channels *grid"]:
        if parameters is None:
            return self.model(field)
        spread = parameters.reshape(-1, *(1,) * (field.ndim - 1)).astype(field.dtype)
        constants = jnp.broadcast_to(spread, (spread.shape[0], *field.shape[1:]))
        return self.model(jnp.concatenate([field, constants]))


class SpaceTime(eqx.Module):
    """FNO-3D: some frames of a flow in the plane to all later ones, as one field in space-time.

    The frames that are known are channels, the same at every later time; time is the last axis.

    **Arguments:** `model`: an FNO of three axes, from the known frames to one channel. `frames`:
    how many later ones.
    """

    model: FNO
    frames: int = eqx.field(static=True)

    def __call__(self, field: Float[Array, "known n m"]) -> Float[Array, "later n m"]:
        spread = jnp.broadcast_to(field[..., None], (*field.shape, self.frames))
        return jnp.moveaxis(self.model(spread)[0], -1, 0)


# ---- builders


class Settings(eqx.Module):
    """What a trained Fourier neural operator may be told.

    **Arguments:** `modes` along each axis and `width`, `layers`, `projection`, `padding` of `fno`
    (padding only where the grid is not periodic); the others of `operators.training.train`.
    `dtype` is that of the data. Modes and width that are None are those of `SMALL`.

    The defaults are for a processor: the paper has (modes, width) = (16, 64) in one dimension and
    (12, 32) in two, a projection of 128, 500 epochs of batches of 20, and halves its rate of 1e-3
    every 100.

    **Cost:** `steps` gradients of `batch` samples.
    """

    modes: int | None = None
    width: int | None = None
    layers: int = 4
    projection: int = 64
    padding: float = 0.125
    transform: Transform = "auto"
    steps: int = 500
    batch: int = 16
    learning_rate: float = 2e-3
    schedule: Schedule = "cosine"
    weight_decay: float = 1e-4
    loss: FieldLoss = relative_l2_loss

    def model(self, data: Pairs, inputs: int, key: Any) -> FNO:
        """The untrained network for fields of so many channels."""
        modes, width = SMALL[data.grid.dims]
        return fno(
            inputs,
            data.outputs.shape[1],
            key,
            modes=(self.modes or modes,) * data.grid.dims,
            width=self.width or width,
            layers=self.layers,
            projection=self.projection,
            padding=0.0 if data.grid.periodic else self.padding,
            periodic=data.grid.periodic,
            transform=self.transform,
            dtype=data.inputs.dtype,
        )

    def trained(self, model: Any, data: Pairs, key: Any, **options: Any) -> Any:
        """The model after the steps of these settings."""
        return train(
            model,
            data,
            steps=self.steps,
            batch=self.batch,
            learning_rate=self.learning_rate,
            schedule=self.schedule,
            weight_decay=self.weight_decay,
            loss=self.loss,
            key=key,
            **options,
        ).model


class TrainedFNO(Settings):
    """Builds a Fourier neural operator from pairs of fields, trained and normalised: see
    `Settings`."""

    def __call__(self, data: Pairs, *, key: Any) -> Any:
        """A module `[inputs, *grid] -> [outputs, *grid]`. Raises `InputError` if it diverges."""
        draw, learn = jax.random.split(key)
        model = self.model(data, data.inputs.shape[1], draw)
        return self.trained(normalized(model, data), data, learn)


class TrainedFNOStepper(Settings):
    """Builds a Fourier neural stepper from trajectories, trained on single steps from true states.

    The state plus what the network says of it and of the logarithms of the parameters. Differs
    from the paper, which predicts the next state itself from ten before it: over a short step that
    is mostly the state, which need not be learned; and the state of these equations is all there
    is to know.
    """

    def __call__(self, data: Trajectories, *, key: Any) -> Any:
        """A module `(state, parameters, *, key) -> next state`."""
        draw, learn = jax.random.split(key)
        pairs = data.steps()
        model = self.model(pairs, pairs.inputs.shape[1] + data.parameters.shape[1], draw)
        stepper = residual_stepper(WithParameters(model), data)
        return self.trained(stepper, pairs, learn, predict=as_stepper)


# What the catalogue names: settings of a training of seconds on one core.
fno_map = TrainedFNO(batch=8)  # half of the default: it ends in seconds in two dimensions too
fno_stepper = TrainedFNOStepper()
