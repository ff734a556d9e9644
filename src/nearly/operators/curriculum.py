"""How a stepper meets its own errors in training: never, one step back, or by and by.

A stepper trained on true states alone (teacher forcing) has never seen what it makes of them; one
trained on its own rollouts from the start chases its early nonsense. The curriculum of `cape` goes
from the first to the second: of a window's T steps, those before

    T (1 + tanh((s - 0.5) / 0.2)) / 2,   s from 0 to 1 over the training,

are fed the stepper's own output, with gradients through all of them, later ones the true states.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from nearly.core.errors import InputError
from nearly.training.loop import Trained

CENTRE, STEEPNESS = 0.5, 0.2  # of the curriculum's tanh, as published

Share = Callable[[Any], Any]
Advance = Callable[[Any, Any, Any, Any, Any], tuple[Any, Any]]


class Window(eqx.Module):
    """A batch of pieces of trajectories: `states [batch, frames, channels, *grid]`."""

    states: Float[Array, "batch frames channels *grid"]
    parameters: Float[Array, "batch p"]


class Windows(eqx.Module):
    """Draws windows from trajectories, uniformly over all their places: data for `fit`.

    **Arguments:**

    - `states`: `[samples, frames, channels, *grid]`. `parameters`: `[samples, p]`.
    - `frames`: of a window, at least 2. `batch`: windows in a batch.

    Raises `InputError` if a window is longer than the trajectories.
    """

    states: Float[Array, "samples times channels *grid"]
    parameters: Float[Array, "samples p"]
    frames: int = eqx.field(static=True)
    batch: int = eqx.field(static=True)

    def __check_init__(self) -> None:
        length = self.states.shape[1]
        if not 2 <= self.frames <= length:
            raise InputError(
                f"a window of {self.frames} frames in trajectories of {length}: "
                f"choose from 2 to {length}"
            )

    def __call__(self, key: Any) -> Window:
        sample_key, start_key = jax.random.split(key)
        samples, times = self.states.shape[:2]
        sample = jax.random.randint(sample_key, (self.batch,), 0, samples)
        start = jax.random.randint(start_key, (self.batch,), 0, times - self.frames + 1)
        frames = start[:, None] + jnp.arange(self.frames)
        return Window(self.states[sample[:, None], frames], self.parameters[sample])


def usable(trained: Trained) -> Any:
    """The trained model; raises `InputError` if its training diverged."""
    if trained.status == "diverged":
        raise InputError(f"training diverged: {trained.reason}; lower the learning rate")
    return trained.model


# ---- which steps are fed the stepper's own output


def teacher_forcing(progress: Float[Array, ""]) -> Float[Array, ""]:
    """No step is."""
    return jnp.zeros_like(progress)


def autoregressive(progress: Float[Array, ""]) -> Float[Array, ""]:
    """All are, from the start."""
    return jnp.ones_like(progress)


def gradual(progress: Float[Array, ""]) -> Float[Array, ""]:
    """The share that the curriculum of `cape` has reached: 0.7% at progress 0, 99.3% at 1."""
    return (1 + jnp.tanh((progress - CENTRE) / STEEPNESS)) / 2


# ---- a loss that knows how far the training is


class Paced(eqx.Module):
    """A model beside the progress of its training, 0 to 1: what `Curriculum` is the loss of.

    `fit` gives a loss no step number. `Pace` writes it into `progress` at each step, whose own
    gradient is zero; on leaving `fit` it is 0 as at the start.
    """

    model: Any
    progress: Float[Array, ""]


class Pace(eqx.Module):
    """The `gradient` for `fit` that tells a `Paced` model which of `steps` steps it takes."""

    steps: int = eqx.field(static=True)

    def __call__(
        self, objective: Callable[[Any], Any], weights: Paced, *, key: Any, step: Int[Array, ""]
    ) -> tuple[Any, PyTree]:
        del key
        progress = step.astype(weights.progress.dtype) / self.steps
        now = eqx.tree_at(lambda w: w.progress, weights, progress)
        return jax.value_and_grad(objective)(now)


class Curriculum(eqx.Module):
    """The mean loss over the steps of a window, some fed the stepper's own output.

    **Arguments:**

    - `advance`: `(model, state, parameters, truth, progress) -> (next state, loss)` of one step.
    - `share`: `gradual`, `teacher_forcing`, `autoregressive`, or any function of the progress: the
      share of a window's steps that follow the stepper's own output.
    - `warm_up`: the part of the training before the curriculum starts, in [0, 1).

    **Cost:** a step of training costs `frames - 1` calls and keeps their activations.
    """

    advance: Advance = eqx.field(static=True)
    share: Share = eqx.field(static=True, default=gradual)
    warm_up: float = eqx.field(static=True, default=0.0)

    def __check_init__(self) -> None:
        if not 0 <= self.warm_up < 1:
            raise InputError(f"warm_up={self.warm_up} must lie in [0, 1), such as 0.03")

    def __call__(self, paced: Paced, window: Window, key: Any) -> Float[Array, ""]:
        del key
        progress = jax.lax.stop_gradient(paced.progress)
        reached = (progress - self.warm_up) / (1 - self.warm_up)
        steps = window.states.shape[1] - 1
        own_steps = self.share(reached) * steps

        def rollout(states: Array, parameters: Array) -> Array:
            def step(own: Array, at: tuple[Array, Array, Array]) -> tuple[Array, Array]:
                t, true, following = at
                fed = jnp.where(t < own_steps, own, true)
                return self.advance(paced.model, fed, parameters, following, progress)

            times = jnp.arange(steps)
            return jax.lax.scan(step, states[0], (times, states[:-1], states[1:]))[1]

        return jnp.mean(jax.vmap(rollout)(window.states, window.parameters))
