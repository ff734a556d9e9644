"""Environments: systems of one form and different parameters, which nobody is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nearly.core.errors import InputError
from nearly.dynamics.context import runge_kutta
from nearly.dynamics.problems.trajectories import TrajectoryLearning, evaluations

FINE = 16  # steps of the reference between two times

Law = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Environments(eqx.Module):
    """Trajectories of several systems at common times, the first that of the start."""

    trajectories: Float[np.ndarray | Array, "environments trajectories times components"]
    times: Float[np.ndarray | Array, " times"]

    @property
    def starts(self) -> Any:
        """Where the trajectories begin."""
        return self.trajectories[:, :, 0]

    @property
    def solutions(self) -> Any:
        """With the times in front, as solvers hand them back."""
        return jnp.moveaxis(jnp.asarray(self.trajectories), 2, 0)


class HeldOut(eqx.Module):
    """Trajectories to judge by: of the environments known from training, and of the new ones."""

    known: Environments
    new: Environments


class AdaptedField(eqx.Module):
    """One field, and what it is told in each known and in each new environment.

    `field(t, y, args)` takes states [environments, trajectories, components]; `known` and `new`
    are its args, for all known environments and all new ones.
    """

    field: Callable[[Any, Any, Any], Any]
    known: Any
    new: Any


class EnvironmentLearning(TrajectoryLearning):
    """Learn what systems of one form have in common, then a new one from one trajectory.

    A method (protocol `environment-models`) is a function `(problem, dial, *, key) -> AdaptedField`
    whose dial is the number of gradients it is trained with; it may adapt to each of the new
    environments by what `problem.adapt` holds of it. The error `adapted` is the mean square over
    held-out trajectories of the new environments, `in-domain` that over those of the known ones.

    **Arguments:**

    - `train`, `adapt`: what is learned from, and what is known of the new environments.
    - `test`: what is judged. `substeps`: of the Runge-Kutta rule between two times.
    """

    train: Environments
    adapt: Environments
    test: HeldOut
    name: str = "environments"
    dtype: str = "float32"
    substeps: int = 1
    error_name: ClassVar[str] = "adapted"
    protocol: ClassVar[str] = "environment-models"

    def __check_init__(self) -> None:
        if self.substeps < 1:
            raise InputError(f"substeps {self.substeps} must be at least 1")

    def predict(self, model: AdaptedField, data: HeldOut, *, key: Any) -> tuple[Array, Array]:
        field = evaluations(model.field)

        def solve(held: Environments, args: Any) -> Array:
            starts, times = jnp.asarray(held.starts), jnp.asarray(held.times)
            return runge_kutta(field, starts, times, args, self.substeps)

        return solve(data.known, model.known), solve(data.new, model.new)

    def errors(self, value: Any) -> Mapping[str, float]:
        known, new = value
        return {
            "adapted": mean_square(new, self.test.new),
            "in-domain": mean_square(known, self.test.known),
        }


def mean_square(found: Any, held: Environments) -> float:
    """Of what solvers hand back, times in front, from held trajectories."""
    wrong = np.moveaxis(np.asarray(found, np.float64), 0, 2) - held.trajectories
    return float(np.mean(wrong**2))


# ---- the catalogue's instances


def _predator_prey(y: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Lotka and Volterra's, births of prey and deaths of predators at a rate of 1/2."""
    prey, predators, meetings = y[..., 0], y[..., 1], y[..., 0] * y[..., 1]
    return np.stack(
        [0.5 * prey - p[..., 0] * meetings, p[..., 1] * meetings - 0.5 * predators], axis=-1
    )


def _selkov(y: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Sel'kov's model of glycolysis, with a = 0.1."""
    uptake = (0.1 + y[..., 0] ** 2) * y[..., 1]
    return np.stack([uptake - y[..., 0], p[..., 0] - uptake], axis=-1)


def lotka_volterra_environments(seed: int = 0) -> EnvironmentLearning:
    """Nine environments with rates (beta, delta) of {1/2, 3/4, 1}^2; four new of {5/8, 9/8}^2.

    Four trajectories of 20 times in [0, 10) of each environment to learn from, starting uniformly
    in (1, 2)^2 at the same points in all; one of each new environment to adapt to it; 32 of each to
    judge by. `seed` is that of the starts.
    """
    grid = [(b, d) for b in (0.5, 0.75, 1.0) for d in (0.5, 0.75, 1.0)]
    new = [(b, d) for b in (0.625, 1.125) for d in (0.625, 1.125)]
    return _learning(
        "lotka-volterra-environments", _predator_prey, (grid, new), (1.0, 2.0), seed, end=10.0
    )


def selkov_environments(seed: int = 0) -> EnvironmentLearning:
    """Sel'kov's glycolysis at nine supplies b from 0.1 to 0.9, where it rests or oscillates.

    New: b of 0.05, 0.45, 0.65 and 1. Four trajectories of 20 times in [0, 10), starting uniformly
    in (0, 3)^2; one to adapt, 32 to judge by. `seed` is that of the starts.
    """
    known = [(0.1 * k,) for k in range(1, 10)]
    new = [(b,) for b in (0.05, 0.45, 0.65, 1.0)]
    return _learning("selkov-environments", _selkov, (known, new), (0.0, 3.0), seed, end=10.0)


def _learning(
    name: str, law: Law, parameters: Any, box: tuple[float, float], seed: int, *, end: float
) -> EnvironmentLearning:
    times = np.linspace(0.0, end, 20, endpoint=False)
    known, new = (np.array(rows) for rows in parameters)

    def observed(rows: np.ndarray, count: int, purpose: int) -> Environments:
        draw = np.random.default_rng([seed, purpose])
        starts = draw.uniform(*box, (count, 2))
        return Environments(
            trajectories(law, rows, starts, times).astype(np.float32), times.astype(np.float32)
        )

    return EnvironmentLearning(
        train=observed(known, 4, 0),
        adapt=observed(new, 1, 1),
        test=HeldOut(observed(known, 32, 2), observed(new, 32, 2)),
        name=name,
    )


def trajectories(
    law: Law, parameters: np.ndarray, starts: np.ndarray, times: np.ndarray
) -> np.ndarray:
    """Of every system [environments, p] from every start: by the classical rule of order 4.

    In float64, 16 steps between two times: an error of 1e-7 where times are 1/2 apart.
    """
    y = np.broadcast_to(starts, (len(parameters), *starts.shape))
    told = parameters[:, None, :]
    passed = [y]
    for h in np.diff(times) / FINE:
        for _ in range(FINE):
            first = law(y, told)
            second = law(y + h / 2 * first, told)
            third = law(y + h / 2 * second, told)
            y = y + h / 6 * (first + 2 * second + 2 * third + law(y + h * third, told))
        passed.append(y)
    return np.stack(passed, axis=2)
