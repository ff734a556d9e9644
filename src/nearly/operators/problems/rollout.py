"""`Rollout`: from a state to those that follow, step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from nearly.core.measure import stopwatch
from nearly.operators.baselines import CoarseSolver, CoarseStepper
from nearly.operators.data import Trajectories, resample
from nearly.operators.family import Evolution
from nearly.operators.problems.learned import (
    TEST_SEED,
    TRAINING_SEED,
    Learned,
    described,
    sample_counts,
)
from nearly.pde.metrics import correlation_time, divergence_time, rollout_error

TRAJECTORIES = "labelled trajectories"


class Rollout(Learned):
    """Step a family's states forward, over and over, and stay near the reference trajectory.

    A method (protocol `solution-steppers`) is one of

    - a builder `(data, *, key) -> module`: from `Trajectories` it makes a module
      `(state [channels, *grid], parameters [p], *, key) -> the state dt later`. The dial is the
      number of labelled trajectories;
    - a `CoarseSolver`, whose dial is its resolution.

    The error is the relative L2 error of a frame, averaged over the frames and the held-out
    trajectories. Beside it stand the errors of the first and the last frame, and the time for
    which the correlation with the truth stays above 0.8. A rollout with values that are not
    finite is a diverged run, whose reason says when.

    A use is one step of one trajectory, measured over whole rollouts of all the held-out ones.

    **Arguments:**

    - `family`: the equation. `training`, `tests`: reference trajectories.
    - `counts`: the dial of learned methods. `uncertainty`: the reference's own relative error
      after one step.
    """

    family: Evolution
    training: Trajectories
    tests: Trajectories
    counts: tuple[int, ...]
    resolution: int
    uncertainty: float
    equation: str = ""
    name: str = "rollout"
    dtype: str = "float32"
    error_name: ClassVar[str] = "rollout error"
    work_name: ClassVar[str] = "seconds"
    protocol: ClassVar[str] = "solution-steppers"
    label: ClassVar[str] = TRAJECTORIES
    coarse: ClassVar[str] = "coarse-stepper"

    @property
    def frames(self) -> int:
        """How many steps are taken."""
        return self.tests.states.shape[1] - 1

    def stand_in(self, solver: CoarseSolver, resolution: int) -> Any:
        return solver.stepper(self.family, resolution)

    def labels(self, data: Trajectories) -> Any:
        return data.states

    def apply(self, standin: Any, *, key: Any) -> Any:
        return rollouts(standin, self.tests, self.frames, key)

    def seconds(self, use: Callable[[], Any], standin: Any) -> Sequence[float]:
        """Seconds of one step of one trajectory, in rollouts of all the held-out ones."""
        return [s / (len(self.tests) * self.frames) for s in stopwatch(use)]

    def errors(self, value: Any) -> Mapping[str, float]:
        predicted, true = jnp.asarray(value), jnp.asarray(self.tests.states[:, 1:])
        self._refuse_divergence(predicted)
        each = np.asarray(jax.vmap(rollout_error)(predicted, true), np.float64)
        agreed = jax.vmap(partial(correlation_time, dt=self.tests.dt))(predicted, true)
        return {
            "rollout error": float(each.mean()),
            "first frame": float(each[:, 0].mean()),
            "last frame": float(each[:, -1].mean()),
            "time to correlation 0.8": float(jnp.mean(agreed)),
        }

    def _refuse_divergence(self, predicted: Any) -> None:
        when = np.asarray(jax.vmap(partial(divergence_time, dt=self.tests.dt))(predicted))
        lost = int(np.isfinite(when).sum())
        if lost:
            raise FloatingPointError(
                f"{lost} of {len(when)} rollouts are not finite, the first from time "
                f"{float(when.min()):.4g} on (of {self.frames * self.tests.dt:.4g})"
            )

    def work(self, standin: Any) -> Mapping[str, float]:
        calls = getattr(standin, "calls", None)  # of a network in one step, where a stepper says
        own = {} if calls is None else {"network calls*": float(calls)}
        return {**super().work(standin), **own}


def rollouts(standin: Any, data: Trajectories, frames: int, key: Any) -> Any:
    """`frames` steps from the first state of every trajectory, `[samples, frames, ...]`."""
    keys = jax.random.split(key, len(data))
    if isinstance(standin, CoarseStepper):
        return jax.vmap(partial(_coarse_rollout, standin, frames))(
            data.states[:, 0], data.parameters
        )
    return jax.vmap(partial(rollout, standin, frames))(data.states[:, 0], data.parameters, keys)


def rollout(module: Any, frames: int, state: Any, parameters: Any, key: Any) -> Any:
    """The states after 1, 2, ..., `frames` calls of a stepper, each with a key of its own."""

    def one(state: Any, key: Any) -> tuple[Any, Any]:
        later = module(state, parameters, key=key)
        return later, later

    return jax.lax.scan(one, state, jax.random.split(key, frames))[1]


def _coarse_rollout(stepper: CoarseStepper, frames: int, state: Any, parameters: Any) -> Any:
    """The coarse solver stays on its own grid: only what it shows is interpolated."""
    family = stepper.family
    coarse = resample(state, family.grid, stepper.resolution)
    return resample(family.evolve(coarse, parameters, frames), family.grid, state.shape[-1])


def rollout_problem(
    name: str,
    family: Evolution,
    *,
    resolution: int,
    samples: int,
    train_frames: int,
    frames: int,
    tests: int = 16,
) -> Rollout:
    """The problem of a family: its data are solved for, or taken from the store's folder.

    **Arguments:** `samples`: labelled trajectories of `train_frames` states; learned methods run on
    all of them, in 1-D on an eighth too. `tests`: held-out ones, of `frames` steps.
    """
    training, held_out = (jax.random.key(seed) for seed in (TRAINING_SEED, TEST_SEED))
    return Rollout(
        family=family,
        training=family.trajectories(training, samples, resolution, train_frames),
        tests=family.trajectories(held_out, tests, resolution, frames + 1),
        counts=sample_counts(samples, family.grid.dims),
        resolution=resolution,
        uncertainty=float(f"{family.uncertainty(held_out, resolution):.2g}"),
        equation=described(family),
        name=name,
    )
