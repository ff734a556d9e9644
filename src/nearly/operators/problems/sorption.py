"""`Sorption`: a family of nonlinear diffusion problems, learned from the equation alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nearly.core.errors import InputError
from nearly.core.problem import Problem
from nearly.operators.constraint import (
    ConstrainedOperator,
    HardConstraint,
    NonlinearDiffusion,
    constrained_loss,
    soft_loss,
)
from nearly.operators.fno import fno
from nearly.operators.training import optimizer
from nearly.training import Trained, fit

TESTS, MODEL, STEPS = range(3)  # what folds a key into those of the parts
HELD_OUT = 2402  # the seed of the held-out initial values, the same for every run
REFINEMENT = 4


def initial_values(key: Any, points: int, dtype: Any = jnp.float64) -> Float[Array, " points"]:
    """A random initial concentration: 1 at the inlet, falling as a Gaussian to a background.

    background + (1 - background) exp(-(x / width)^2), the one uniform on (0, 0.2), the other on
    (0.1, 0.3): compatible with the conditions at both ends.
    """
    low, high = jnp.array([0.0, 0.1], dtype), jnp.array([0.2, 0.3], dtype)
    background, width = jax.random.uniform(key, (2,), dtype, low, high)
    x = jnp.linspace(0, 1, points, dtype=dtype)
    return background + (1 - background) * jnp.exp(-((x / width) ** 2))


def reference_solution(
    equation: NonlinearDiffusion,
    initial: Float[np.ndarray, " points"],
    times: Float[np.ndarray, " times"],
) -> Float[np.ndarray, "points times"]:
    """The solution at the points i / (n - 1), by lines and LSODA: second order in x, on the host.

    Raises `InputError` if the integrator gives up.
    """
    from scipy.integrate import solve_ivp

    step = 1 / (initial.size - 1)

    def slope(_: float, u: np.ndarray) -> np.ndarray:
        bounded = np.maximum(u, equation.floor)
        rate = equation.diffusion / (1 + equation.retardation * bounded ** (equation.power - 1))
        beyond = np.concatenate([u, u[-2:-1]])  # no flux: the field is even about x = 1
        second = np.zeros_like(u)
        second[1:] = (beyond[2:] - 2 * u[1:] + u[:-1]) / step**2
        return rate * second

    found = solve_ivp(
        slope, (0, times[-1]), initial, "LSODA", times, rtol=1e-8, atol=1e-10, lband=1, uband=1
    )
    if not found.success:
        raise InputError(f"the reference solver gave up: {found.message}")
    return found.y


@lru_cache(8)
def _truth(equation: NonlinearDiffusion, points: int, tests: int) -> np.ndarray:
    fine = REFINEMENT * (points - 1) + 1
    times = np.linspace(0, 1, points)
    solutions: list[np.ndarray] = []
    with jax.enable_x64(True):
        for i in range(tests):
            initial = np.asarray(initial_values(jax.random.fold_in(_held_out(), i), fine))
            solutions.append(reference_solution(equation, initial, times)[::REFINEMENT])
    return np.stack(solutions)


def _held_out() -> Any:
    return jax.random.fold_in(jax.random.key(HELD_OUT), TESTS)


class SoftConstraint(eqx.Module):
    """A method of `Sorption`: the network's own output, the equation only in the loss."""

    def network(self, problem: Sorption, key: Any) -> Any:
        return problem.network(1, key)

    def loss(self, problem: Sorption, model: Any, field: Any) -> Any:
        return soft_loss(problem.equation, model, field)


class ConstraintLayer(eqx.Module):
    """A method of `Sorption`: basis fields and a layer that solves the equation on each block."""

    blocks: tuple[int, int] = eqx.field(static=True, default=(1, 1))

    def network(self, problem: Sorption, key: Any) -> Any:
        layer = HardConstraint(problem.equation, self.blocks)
        return ConstrainedOperator(problem.network(problem.basis, key), layer)

    def loss(self, problem: Sorption, model: Any, field: Any) -> Any:
        del problem
        return constrained_loss(model, field)


soft_constraint = SoftConstraint()
one_constraint = ConstraintLayer((1, 1))
expert_constraints = ConstraintLayer((4, 1))


class Sorption(Problem):
    """Initial values to the solution in space and time, learned without a single solved sample.

    A method says its network and its loss of one sample (`SoftConstraint`, `ConstraintLayer`); the
    dial is the number of optimiser steps. All train the same FNO on the same initial values, drawn
    anew for each step. The error is the mean relative L2 over held-out initial values, against
    lines and LSODA on a grid four times as fine.

    **Arguments:** `points`: along x and t, both ends included. `basis`, `width`, `modes`: of the
    FNO. `batch`, `learning_rate`: of Adam, as published 6 and 1e-3. `tests`: held out.
    """

    equation: NonlinearDiffusion = NonlinearDiffusion()
    points: int = eqx.field(static=True, default=32)
    basis: int = eqx.field(static=True, default=16)
    width: int = eqx.field(static=True, default=16)
    modes: int = eqx.field(static=True, default=6)
    batch: int = eqx.field(static=True, default=6)
    learning_rate: float = eqx.field(static=True, default=1e-3)
    steps: tuple[int, ...] = eqx.field(static=True, default=(20, 150))
    tests: int = eqx.field(static=True, default=8)
    name: ClassVar[str] = "diffusion-sorption"
    dtype: ClassVar[str] = "float64"
    error_name: ClassVar[str] = "relative L2"
    work_name: ClassVar[str] = "seconds"
    protocol: ClassVar[str] = "physics-informed-maps"

    def dials(self, method: Any) -> Sequence[int]:
        del method
        return self.steps

    def network(self, outputs: int, key: Any) -> Any:
        """The FNO everybody trains, `[1, x, t] -> [outputs, x, t]`."""
        modes = (self.modes, self.modes)
        return fno(
            1,
            outputs,
            key,
            modes=modes,
            width=self.width,
            padding=0.25,
            periodic=False,
            dtype=jnp.float64,
        )

    def fields(self, key: Any, count: int) -> Float[Array, "count 1 points points"]:
        """Initial values of samples i from `fold_in(key, i)`, along every time."""
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(count))
        values = jax.vmap(lambda k: initial_values(k, self.points))(keys)
        return jnp.broadcast_to(values[:, None, :, None], (count, 1, self.points, self.points))

    def build(self, method: Any, dial: Any, *, key: Any) -> Any:
        return self.trained(method, int(dial), key).model

    def trained(self, method: Any, steps: int, key: Any) -> Trained:
        """`nearly.training.Trained` of a method after so many optimiser steps."""
        return fit(
            _MeanLoss(self, method),
            method.network(self, jax.random.fold_in(key, MODEL)),
            _Batches(self),
            optimizer=optimizer(self.learning_rate, steps),
            steps=steps,
            key=jax.random.fold_in(key, STEPS),
        )

    def apply(self, standin: Any, *, key: Any) -> Any:
        del key
        return jax.vmap(standin)(self.fields(_held_out(), self.tests))[:, 0]

    def errors(self, value: Any) -> Mapping[str, float]:
        difference = np.asarray(value, np.float64) - self.truth()
        norms = np.linalg.norm(self.truth(), axis=(1, 2))
        errors = np.linalg.norm(difference, axis=(1, 2)) / norms
        return {"relative L2": float(errors.mean()), "worst": float(errors.max())}

    def truth(self) -> Float[np.ndarray, "tests points points"]:
        """The reference solutions of the held-out initial values."""
        return _truth(self.equation, self.points, self.tests)


class _MeanLoss(eqx.Module):
    """The mean loss of a batch: what `fit` minimises."""

    problem: Sorption
    method: Any

    def __call__(self, model: Any, batch: Any, key: Any) -> Any:
        del key
        return jnp.mean(jax.vmap(lambda f: self.method.loss(self.problem, model, f))(batch))


class _Batches(eqx.Module):
    """New initial values for each step."""

    problem: Sorption

    def __call__(self, key: Any) -> Any:
        return self.problem.fields(key, self.problem.batch)
