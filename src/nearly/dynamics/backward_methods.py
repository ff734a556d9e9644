"""Methods of the protocol `bsde-solvers`: Y at time 0 by training, and by regression."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nearly.core.errors import InputError
from nearly.dynamics.backward_paths import BackwardEquation, simulate, target
from nearly.dynamics.bsde import DeepBSDE


class TrainedValue(eqx.Module):
    """Y_0 by a `DeepBSDE`; the dial is the number of training steps."""

    solver: DeepBSDE = DeepBSDE()
    dials: ClassVar[tuple[int, ...]] = (200, 600)

    def __call__(
        self, equation: BackwardEquation, dial: int, *, key: Any
    ) -> Float[Array, " outputs"]:
        """Y_0; raises as `DeepBSDE` does."""
        return dataclasses.replace(self.solver, iterations=int(dial))(equation, key=key).initial


class BackwardRegression(eqx.Module):
    """Y_0 by least squares backwards in time; the dial is the number of paths.

    At each step, the next value and its covariance with the noise are regressed on 1, the states,
    their squares, and their norm's logarithm: `Y_n = E[Y_{n+1} + f h]` and
    `Z_n = E[(Y_{n+1} - E Y_{n+1}) dW] / E[h]`. Explicit in the driver, and only over paths that are
    still inside.

    Cost: `dial * steps` path steps, `steps` least-squares problems with `2 states + 2` unknowns,
    and all paths in memory.
    """

    steps: int = 25
    between: bool = True
    dials: ClassVar[tuple[int, ...]] = (1024, 4096, 16384)

    def __call__(
        self, equation: BackwardEquation, dial: int, *, key: Any
    ) -> Float[Array, " outputs"]:
        """Y_0; raises `InputError` for too few paths."""
        if dial < 8 * (equation.start.size + 1):
            raise InputError(
                f"{dial} paths are too few to regress on {equation.start.size} states: give more"
            )
        return _regressed(self, equation, int(dial), key)


trained_value = TrainedValue()
backward_regression = BackwardRegression()


@eqx.filter_jit
def _regressed(
    method: BackwardRegression, equation: BackwardEquation, count: int, key: Any
) -> Array:
    paths = jax.vmap(lambda k: simulate(equation, method.steps, k, between=method.between))(
        jax.random.split(key, count)
    )
    values = jax.vmap(lambda path: target(equation, path))(paths)

    def back(values: Array, inputs: Any) -> tuple[Array, None]:
        n, t, states, noise, width = inputs
        inside = (n < paths.exit)[:, None]
        basis = _basis(states) * inside
        expected = basis @ jnp.linalg.lstsq(basis, values * inside)[0]
        # What is left of the value has the same covariance with the noise, and less variance.
        products = ((values - expected)[:, :, None] * noise[:, None]).reshape(count, -1) * inside
        both = jnp.concatenate([products, width[:, None]], axis=1)
        means = basis @ jnp.linalg.lstsq(basis, both)[0]
        # Where paths end within the step, it is shorter on average.
        lasting = jnp.clip(means[:, -1:], equation.horizon / method.steps / 4)
        controls = (means[:, :-1] / lasting).reshape(*values.shape, -1)
        nothing = jnp.zeros((0,), values.dtype)
        drive = jax.vmap(lambda x, y, z: equation.driver(t, x, y, z, nothing))(
            states, expected, controls
        )
        return jnp.where(inside, expected + drive * width[:, None], values), None

    times = equation.horizon / method.steps * jnp.arange(method.steps, dtype=values.dtype)
    along = (paths.states[:, :-1], paths.noise, jax.vmap(lambda path: path.held)(paths))
    steps = (jnp.arange(method.steps), times, *(jnp.moveaxis(part, 1, 0) for part in along))
    values, _ = jax.lax.scan(back, values, steps, reverse=True)
    return jnp.mean(values, axis=0)


def _basis(states: Array) -> Array:
    """Functions of the states [paths, functions], of the order of 1."""
    spread = jnp.std(states, axis=0) + jnp.finfo(states.dtype).eps
    centred = (states - jnp.mean(states, axis=0)) / spread
    norm = jnp.log1p(jnp.sum(states**2, axis=1, keepdims=True))
    return jnp.concatenate([jnp.ones_like(norm), centred, centred**2 - 1, norm], axis=1)
