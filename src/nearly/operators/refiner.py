"""PDE-Refiner: steppers that predict, then denoise at falling noise, for long rollouts.

A one-step network trained by squared error gets the loud part of the spectrum right and leaves the
faint part to chance, which a chaotic equation feeds back. Denoising at noise of variance
`smallest_variance^(k/K)`, k = 1..K, makes the network see each band of amplitudes in turn.

How this differs from `pde-refiner`:

- The increment is divided by its own measured deviation, where the paper divides by 0.3, the
  deviation of its equations at its time step.
- Levels are dealt evenly over a batch: the same expectation as drawing them, with less variance.
- Matrix products run in full float32 on any device: the smallest noise is 6e-4 of the increment,
  which bfloat16 and TF32 products drown. States in less than float32 are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from nearly.core.errors import InputError
from nearly.operators.curriculum import Window, Windows, usable
from nearly.operators.data import Trajectories
from nearly.operators.scaling import Scaling, scaling
from nearly.operators.training import optimizer
from nearly.operators.unet import conditioned_unet
from nearly.training.loop import fit

FULL_PRECISION = "highest"

Field = Float[Array, "channels *grid"]


# ---- what the network is asked for at each level


class NoisePrediction(eqx.Module):
    """The paper's form: level 0 predicts the increment from zeros, later levels the noise in it.

    **Arguments:**

    - `refinements`: K; the network is called K + 1 times a step. 0 is plain one-step prediction.
    - `smallest_variance`: of the noise at the last level, the variance of the increment being 1;
      at level k it is `smallest_variance^(k/K)`.
    """

    refinements: int = eqx.field(static=True, default=3)
    smallest_variance: float = eqx.field(static=True, default=4e-7)

    def __check_init__(self) -> None:
        _check_levels(self.refinements, self.smallest_variance)

    def deviation(self, level: Int[Array, ""], dtype: Any) -> Float[Array, ""]:
        """Of the noise at a level; 1 at level 0, which has none."""
        fraction = level.astype(dtype) / max(self.refinements, 1)
        return jnp.asarray(self.smallest_variance, dtype) ** (fraction / 2)

    def first(self, noise: Field) -> Field:
        return jnp.zeros_like(noise)

    def corrupted(self, increment: Field, noise: Field, level: Int[Array, ""]) -> Field:
        """The network's input at a level, in training."""
        noisy = increment + self.deviation(level, noise.dtype) * noise
        return jnp.where(level == 0, 0, noisy)

    def target(self, increment: Field, noise: Field, level: Int[Array, ""]) -> Field:
        return jnp.where(level == 0, increment, noise)

    def cleaned(self, given: Field, output: Field, level: Int[Array, ""]) -> Field:
        """The increment, from the network's input and output."""
        denoised = given - self.deviation(level, given.dtype) * output
        return jnp.where(level == 0, output, denoised)

    def next(self, given: Field, clean: Field, noise: Field, level: Int[Array, ""]) -> Field:
        """The network's input at level + 1: its estimate with new noise on it."""
        del given
        return clean + self.deviation(level + 1, clean.dtype) * noise


class VelocityPrediction(eqx.Module):
    """The form of the authors' code: a diffusion of K + 1 steps with the velocity as its target.

    Its steps' variances are those of `NoisePrediction`, `smallest_variance^(k/K)`, so level 0 is
    fed pure noise. Up to the products of the (small) variances the two forms are the same
    estimate: `velocity` turns one network's output into the other's.
    """

    refinements: int = eqx.field(static=True, default=3)
    smallest_variance: float = eqx.field(static=True, default=4e-7)

    def __check_init__(self) -> None:
        _check_levels(self.refinements, self.smallest_variance)

    def kept(self, level: Int[Array, ""], dtype: Any) -> tuple[Any, Any]:
        """Amplitudes of the increment and of the noise in the input of a level."""
        variances = self._variances()
        noise = -np.expm1(np.cumsum(np.log1p(-variances[:0:-1]))[::-1])  # 1 - prod(1 - variance)
        noise = np.append(np.append(1.0, noise), 0.0)
        signal = jnp.asarray(np.sqrt(1 - noise), dtype)
        return signal[level], jnp.asarray(np.sqrt(noise), dtype)[level]

    def _variances(self) -> np.ndarray:
        return self.smallest_variance ** (
            np.arange(self.refinements + 1) / max(self.refinements, 1)
        )

    def first(self, noise: Field) -> Field:
        return noise

    def corrupted(self, increment: Field, noise: Field, level: Int[Array, ""]) -> Field:
        signal, loud = self.kept(level, noise.dtype)
        return signal * increment + loud * noise

    def target(self, increment: Field, noise: Field, level: Int[Array, ""]) -> Field:
        signal, loud = self.kept(level, noise.dtype)
        return signal * noise - loud * increment

    def cleaned(self, given: Field, output: Field, level: Int[Array, ""]) -> Field:
        signal, loud = self.kept(level, given.dtype)
        return signal * given - loud * output

    def next(self, given: Field, clean: Field, noise: Field, level: Int[Array, ""]) -> Field:
        """A draw from the diffusion's posterior one step less noisy."""
        variance = jnp.asarray(self._variances(), clean.dtype)[level]
        _, before = self.kept(level, clean.dtype)
        signal, after = self.kept(level + 1, clean.dtype)
        return (
            signal * variance / before**2 * clean
            + jnp.sqrt(1 - variance) * after**2 / before**2 * given
            + jnp.sqrt(variance) * after / before * noise
        )

    def velocity(self, given: Field, noise: Field, level: Int[Array, ""]) -> Field:
        """The velocity that belongs to a prediction of the noise in the input of a level > 0."""
        signal, loud = self.kept(level, given.dtype)
        return (noise - loud * given) / signal


def _check_levels(refinements: int, smallest_variance: float) -> None:
    if refinements < 0:
        raise InputError(f"refinements={refinements} must be at least 0, such as 3")
    if not 0 < smallest_variance < 1:
        raise InputError(
            f"smallest_variance={smallest_variance} must lie between 0 and 1, such as 4e-7: "
            "it is the square of the noise's deviation"
        )


# ---- the stepper


class Refiner(eqx.Module):
    """A stepper: one state to the next by a prediction and K refinements of it.

    **Arguments:**

    - `network`: `(x [2 channels, *grid], level in [0, 1], parameters [p]) -> [channels, *grid]`;
      its input is the state and, after it, the noisy increment. Any module will do.
    - `form`: what the network is asked for, and how noisy each level is.
    - `scaling`: the units the network works in.
    """

    network: Callable[..., Any]
    form: NoisePrediction | VelocityPrediction
    scaling: Scaling

    @property
    def calls(self) -> int:
        """How often a step calls the network: K + 1."""
        return self.form.refinements + 1

    def output(
        self,
        state: Field,
        given: Field,
        level: Int[Array, ""],
        parameters: Float[Array, " p"],
    ) -> Field:
        """The network's answer to a (scaled) state and a noisy increment."""
        fraction = level.astype(state.dtype) / max(self.form.refinements, 1)
        with jax.default_matmul_precision(FULL_PRECISION):
            return self.network(jnp.concatenate([state, given]), fraction, parameters)

    def __call__(self, state: Field, parameters: Float[Array, " p"], *, key: Any) -> Field:
        """The next state, drawn: another key gives another member of the ensemble.

        Raises `InputError` for another number of channels than it was trained on, or less than
        float32. **Cost:** K + 1 calls of the network, one after the other.
        """
        self._check(state)
        scaled = self.scaling.normal(state)
        told = self.scaling.parameters(parameters, state.dtype)
        first, *rest = jax.random.split(key, self.calls + 1)

        def refine(given: Field, level_and_key: Any) -> tuple[Field, Field]:
            level, own = level_and_key
            clean = self.form.cleaned(given, self.output(scaled, given, level, told), level)
            noise = jax.random.normal(own, state.shape, state.dtype)
            return self.form.next(given, clean, noise, level), clean

        start = self.form.first(jax.random.normal(first, state.shape, state.dtype))
        levels = jnp.arange(self.calls)
        _, increments = jax.lax.scan(refine, start, (levels, jnp.stack(rest)))
        return self.scaling.advanced(state, increments[-1])

    def _check(self, state: Field) -> None:
        channels = self.scaling.mean.shape[0]
        if state.shape[0] != channels:
            raise InputError(
                f"a state of {state.shape[0]} channels for a stepper of {channels}: "
                "the first axis is the channel"
            )
        if jnp.finfo(state.dtype).bits < 32:
            raise InputError(
                f"a state in {state.dtype} cannot hold noise of variance "
                f"{self.form.smallest_variance:g}: use float32"
            )


def denoising_loss(model: Refiner, batch: Window, key: Any) -> Float[Array, ""]:
    """Mean squared error of the network's answer, over a batch of pairs of frames.

    The levels are dealt evenly over the batch, from a random one on.
    """
    level_key, noise_key = jax.random.split(key)
    size, calls = batch.states.shape[0], model.calls
    levels = (jnp.arange(size) + jax.random.randint(level_key, (), 0, calls)) % calls
    noises = jax.random.normal(noise_key, batch.states[:, 0].shape, batch.states.dtype)

    def one(states: Any, parameters: Any, noise: Field, level: Any) -> Float[Array, ""]:
        increment = model.scaling.increment(states[0], states[1])
        given = model.form.corrupted(increment, noise, level)
        told = model.scaling.parameters(parameters, noise.dtype)
        output = model.output(model.scaling.normal(states[0]), given, level, told)
        return jnp.mean((output - model.form.target(increment, noise, level)) ** 2)

    return jnp.mean(jax.vmap(one)(batch.states, batch.parameters, noises, levels))


# ---- the builder


THREE_REFINEMENTS = NoisePrediction()


@dataclass(frozen=True)
class PDERefiner:
    """Trains a refiner with a periodic U-Net on trajectories: a method of `solution-steppers`.

    **Arguments:**

    - `form`: the levels; `NoisePrediction(refinements=0)` is the same network trained as a plain
      one-step predictor.
    - `width`, `levels`: of the U-Net. `steps`, `batch`: of Adam, its rate falling from
      `learning_rate` by a cosine. `ema`: decay of the weights' moving average, which is used.

    The paper: width 64, 400 epochs of batches of 128 at a rate of 1e-4. The defaults train in some
    seconds on a CPU.
    """

    form: NoisePrediction | VelocityPrediction = THREE_REFINEMENTS
    width: int = 16
    levels: int = 2
    steps: int = 800
    batch: int = 32
    learning_rate: float = 2e-3
    ema: float = 0.995

    def __call__(self, data: Trajectories, *, key: Any) -> Refiner:
        """The trained stepper.

        Raises `InputError` for data that is not periodic or not finite, and if training diverged.
        """
        return self.trained(data, denoising_loss, key=key)

    def untrained(self, data: Trajectories, *, key: Any) -> Refiner:
        """The stepper with the weights its training starts from."""
        if not data.grid.periodic:
            raise InputError("the refiner's U-Net pads periodically: give it a periodic family")
        channels, parameters = data.states.shape[2], data.parameters.shape[1]
        network = conditioned_unet(
            2 * channels,
            channels,
            parameters,
            key,
            width=self.width,
            levels=self.levels,
            dims=data.grid.dims,
            dtype=data.states.dtype,
        )
        return Refiner(network, self.form, scaling(data))

    def trained(
        self, data: Trajectories, loss: Callable[..., Any], *, frames: int = 2, key: Any
    ) -> Refiner:
        """The stepper trained by any loss `(model, window, key) -> scalar` on windows of frames."""
        init_key, train_key = jax.random.split(key)
        model = fit(
            loss,
            self.untrained(data, key=init_key),
            Windows(jnp.asarray(data.states), jnp.asarray(data.parameters), frames, self.batch),
            optimizer=optimizer(self.learning_rate, self.steps),
            steps=self.steps,
            ema=self.ema,
            key=train_key,
        )
        return usable(model)


# What a comparison runs unasked: half of a study's batches, so that it ends in seconds.
pde_refiner = PDERefiner(steps=500, batch=16)
