"""Correcting one prediction by the equation: the residual in a negative Sobolev norm.

If w is the solution and v a prediction with residual R = v_t - L v - N(v), their difference e is
bounded by its size at the beginning and the integral over time of |R|^2 in the dual norm H^{-1} (of
a viscous equation: times 1 / viscosity). So the dual norm of the residual estimates the error
without a solution, and the last layer of a `SpaceTimeFNO`, linear in its parameters, can be
fine-tuned on it for each instance.

Two things were settled here:

- The order of the norm. (shift + |k|^2)^(order / 2) multiplies a mode; H^{-1} is order -1. The
  published loss takes the root of (shift + |k|^2) once more before it applies half the order: what
  it calls -1 is order -1/2 here.
- The time derivative. The published code steps the solver by 1e-6 to and fro from each predicted
  frame and takes the difference (`marched_derivative`). That is the right side L v + N(v) itself,
  whatever v is, so its residual vanishes up to the square of the step, and says nothing of how one
  frame follows from another. What determines a solution is the derivative of the prediction's own
  course in time (`OutputLayer.time_derivative`), at more times than it has degrees of freedom.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from nearly.core.errors import InputError
from nearly.operators.spacetime import Latent, OutputLayer, SpaceTimeFNO, enlarged
from nearly.pde.semilinear import Semilinear
from nearly.training import Trained, fit

SHIFT = 10**-1.5  # the published alpha: the mean of a field counts too


def sobolev_norm(
    field: Float[Array, "*grid"],
    order: float,
    equation: Semilinear,
    shift: float = SHIFT,
) -> Float[Array, ""]:
    """The norm of order `order` of a field on the equation's periodic box, by Parseval's identity.

    The square root of the sum over modes of (shift + |k|^2)^order |coefficient|^2, so order 0 is
    the root mean square, and -1 the norm of H^{-1}. Raises `InputError` for a shift that is not
    positive. **Cost:** a fast Fourier transform. Paper: `spectral-refiner`.
    """
    if shift <= 0:
        raise InputError(f"shift={shift} must be positive, or the mean has no finite norm")
    return jnp.sqrt(_squared_norm(field, order, equation, shift))


def _squared_norm(field: Array, order: float, equation: Semilinear, shift: float) -> Array:
    grid = equation.grid(field.shape, field.dtype)
    half = jnp.abs(grid.transform(field) / field.size) ** 2
    last = field.shape[-1]
    # The last axis holds half of the spectrum: all but its ends stand for two modes.
    once = (jnp.arange(last // 2 + 1) * 2) % last == 0
    both = half * jnp.where(once, 1.0, 2.0).astype(field.dtype)
    return jnp.sum(both * (shift + grid.square()) ** order)


def residual(
    equation: Semilinear, value: Float[Array, "*grid"], derivative: Float[Array, "*grid"]
) -> Float[Array, "*grid"]:
    """v_t - L v - N(v) at one time, given v and v_t."""
    grid = equation.grid(value.shape, value.dtype)
    symbol, nonlinear = equation.discretise(grid)
    spectrum = grid.transform(value)
    return derivative - grid.values(symbol * spectrum + nonlinear(spectrum))


def marched_derivative(
    equation: Semilinear, value: Float[Array, "*grid"], step: float = 1e-6
) -> Float[Array, "*grid"]:
    """The published time derivative: the mean of one solver step forward and one back.

    Crank-Nicolson for the linear part, Euler for the rest, each difference over its step. Equal to
    L v + N(v) up to the square of the step: see the module. Needs float64.
    """
    grid = equation.grid(value.shape, value.dtype)
    symbol, nonlinear = equation.discretise(grid)
    spectrum = grid.transform(value)

    def difference(step: float) -> Array:
        moved = ((1 + step / 2 * symbol) * spectrum + step * nonlinear(spectrum)) / (
            1 - step / 2 * symbol
        )
        return (moved - spectrum) / step

    return grid.values((difference(step) + difference(-step)) / 2)


class ResidualLoss(eqx.Module):
    """How far a prediction is from satisfying the equation, in the norm of some order.

    **Arguments:**

    - `equation`: of `nearly.pde`. `frames`, `dt`: how many frames are handed out, how far apart.
    - `order`: of the norm: -1 for H^{-1}, 0 for L2.
    - `refinement`: times in the distance of two frames at which the residual is taken. The
      polynomial in time has two numbers a mode, more than there are frames: at the frames alone
      its derivative could be fitted without moving its values.

    **Called** with a layer and its latent: the root of the mean over times of |R|^2. The estimate's
    other part, the error at the beginning, is zero by construction of the layer.
    """

    equation: Semilinear
    frames: int = eqx.field(static=True)
    dt: float = eqx.field(static=True)
    order: float = eqx.field(static=True, default=-1.0)
    refinement: int = eqx.field(static=True, default=4)
    shift: float = eqx.field(static=True, default=SHIFT)

    def __check_init__(self) -> None:
        if min(self.frames, self.refinement) < 1 or self.dt <= 0:
            raise InputError(
                f"frames={self.frames}, refinement={self.refinement} and dt={self.dt} must be "
                "positive"
            )

    def __call__(self, layer: OutputLayer, latent: Latent) -> Float[Array, ""]:
        values = layer.values(latent, self.frames, self.refinement)
        derivatives = layer.time_derivative(latent, self.frames, self.dt, self.refinement)

        def squared(value: Array, derivative: Array) -> Array:
            found = residual(self.equation, value, derivative)
            return _squared_norm(found, self.order, self.equation, self.shift)

        return jnp.sqrt(jnp.mean(jax.vmap(squared)(values, derivatives)))


class FineTuning(eqx.Module):
    """Fine-tunes the output layer of a trained space-time FNO on one instance's residual.

    **Arguments:**

    - `loss`: what is minimised. `modes`: the layer's from now on; None: those it has.
    - `steps`: of Adam, with its own rate for `weight` and `bias`: published are 50 to 100 steps at
      1e-4 and 1e-2 or 2e-1, for sums over the grid where ours are means.

    **Called** with the model and known frames `[known, *space]` (give both in float64: residuals
    of trained models are small): the `Trained` layers of all instances, if there are several
    `[instances, known, *space]`, each tuned apart from the others (Adam knows no neighbours).

    **Cost:** of a step and instance, five transforms of space for each of (frames + 1) refinement
    times, forth and back. Marching the solver from the last known frame to the same error costs
    less. Paper: `spectral-refiner`.
    """

    loss: ResidualLoss
    modes: tuple[int, ...] | None = eqx.field(static=True, default=None)
    steps: int = eqx.field(static=True, default=100)
    weight_rate: float = eqx.field(static=True, default=1e-4)
    bias_rate: float = eqx.field(static=True, default=3e-4)

    def __call__(
        self, model: SpaceTimeFNO, known: Float[Array, "instances known *space"], *, key: Any
    ) -> Trained:
        latents = jax.vmap(model.latent)(known)
        start = enlarged(model.output, self.modes or model.output.modes, key)
        layers = jax.tree.map(lambda x: jnp.repeat(x[None], known.shape[0], 0), start)
        return fit(
            _SummedLoss(self.loss),
            layers,
            latents,
            optimizer=_adam(self.weight_rate, self.bias_rate),
            steps=self.steps,
            key=key,
        )


@lru_cache(32)  # an optimiser made anew would compile the training loop anew
def _adam(weight_rate: float, bias_rate: float) -> optax.GradientTransformation:
    """Adam with a rate of its own for each part of the layer."""
    rates: dict[Any, optax.GradientTransformation] = {
        "weight": optax.adam(weight_rate),
        "bias": optax.adam(bias_rate),
    }

    def labels(layer: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: path[0].name, layer)

    return optax.partition(rates, labels)


class _SummedLoss(eqx.Module):
    """The sum over instances: the gradient of each is that of its own loss."""

    loss: ResidualLoss

    def __call__(self, layers: OutputLayer, latents: Latent, key: Any) -> Any:
        del key
        return jnp.sum(jax.vmap(self.loss)(layers, latents))


def refined(layers: OutputLayer, model: SpaceTimeFNO, known: Any) -> Array:
    """The frames that fine-tuned layers hand out: `[instances, frames, *space]`."""
    latents = jax.vmap(model.latent)(known)
    return jax.vmap(lambda layer, latent: layer(latent, model.frames))(layers, latents)
