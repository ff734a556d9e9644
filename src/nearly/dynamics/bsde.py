"""Backward stochastic differential equations by networks, with random exit and tilted paths
(`deep-xva`; the solver itself is the deep BSDE method of E, Han and Jentzen).

Forward, `dX = b(t, X) dt + s(t, X) dW` from a point; backward, `-dY = f(t, X, Y, Z) dt - Z dW` with
`Y = g` at the horizon, or where X first leaves a domain. Y_0 is a number to be trained and Z is one
network of (t, X) for all components of Y: the pair is right when Y, stepped forward by Euler, ends
in g on every path, so the mean square of what is missing is the loss.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from nearly.core.errors import InputError
from nearly.dynamics.backward_paths import (
    BackwardEquation,
    Path,
    likelihood_ratio,
    simulate,
    target,
)
from nearly.training import fit
from nearly.training.architectures import MLP, mlp

PILOT = 4096  # paths that say where the states are and how much the payoff varies


class BackwardSolution(eqx.Module):
    """Y_0 [outputs], as `initial`, and Z as a function `(t, x) -> [outputs, noises]`, as `control`.

    **Arguments:** trained are `moved`, how far Y_0 went from its `guess` in units of the guess's
    `doubt`, and the `network`; its inputs (t, x) are centred at `centre` and divided by `spread`,
    its outputs are in units of `scale`, the deviation of the payoff.
    """

    equation: BackwardEquation
    guess: Float[Array, " outputs"]
    doubt: Float[Array, " outputs"]
    moved: Float[Array, " outputs"]
    network: MLP
    centre: Float[Array, " inputs"]
    spread: Float[Array, " inputs"]
    scale: Float[Array, " outputs"]

    @property
    def initial(self) -> Float[Array, " outputs"]:
        """Y_0: a guess, and what training moved it, in units of the guess's doubt."""
        return self.guess + self.doubt * self.moved

    def control(self, t: Float[Array, ""], x: Float[Array, " states"]) -> Float[Array, "o n"]:
        """Z at a time and a state."""
        equation = self.equation
        inputs = jnp.concatenate([t[None], x])[: self.centre.size]
        raw = self.network((inputs - self.centre) / self.spread)
        raw = raw.reshape(equation.outputs, -1) * self.scale[:, None] / equation.horizon**0.5
        return jnp.pad(raw, ((0, 0), (0, equation.noises - raw.shape[1])))

    def along(self, path: Path) -> Float[Array, "nodes outputs"]:
        """Y along a path that started at the equation's start, constant after the exit.

        The path may have other, smaller steps than those of the training.
        """
        equation = self.equation
        controls = jax.vmap(self.control)(path.times[:-1], path.states[:-1])
        widths = path.times[1:] - path.times[:-1]
        driven = jnp.einsum("son,sn->so", controls, path.noise)

        def advance(y: Array, inputs: Any) -> tuple[Array, Array]:
            n, t, x, z, seen, width, change = inputs
            moved = y - equation.driver(t, x, y, z, seen) * width + change
            y = jnp.where(n < path.exit, moved, y)
            return y, y

        inputs = (
            jnp.arange(widths.size),
            path.times[:-1],
            path.states[:-1],
            controls,
            path.seen[:-1],
            widths,
            driven,
        )
        _, values = jax.lax.scan(advance, self.initial, inputs)
        return jnp.concatenate([self.initial[None], values])

    def shortfall(self, path: Path) -> Float[Array, " outputs"]:
        """What Y misses of the payoff where the path ends."""
        return self.along(path)[-1] - target(self.equation, path)


def _costs(equation: BackwardEquation, path: Path) -> Array:
    """The driver along a path, were Y and Z zero: what costs and gains there are on the way."""
    nothing = jnp.zeros(equation.outputs, path.times.dtype)
    still = jnp.zeros((equation.outputs, equation.noises), path.times.dtype)
    drives = jax.vmap(lambda t, x, seen: equation.driver(t, x, nothing, still, seen))(
        path.times[:-1], path.states[:-1], path.seen[:-1]
    )
    return path.held @ drives


class _Paths(eqx.Module):
    """A source of batches of paths."""

    equation: BackwardEquation
    observe: Callable[[Path], Any] | None
    steps: int = eqx.field(static=True)
    batch: int = eqx.field(static=True)
    between: bool = eqx.field(static=True)

    def __call__(self, key: Any) -> Path:
        def one(key: Any) -> Path:
            return simulate(
                self.equation, self.steps, key, observe=self.observe, between=self.between
            )

        return jax.vmap(one)(jax.random.split(key, self.batch))


def _loss(model: BackwardSolution, batch: Path, key: Any) -> Array:
    del key
    missing = jax.vmap(model.shortfall)(batch) / model.scale
    return jnp.sum(jnp.mean(missing**2, axis=0))


class DeepBSDE(eqx.Module):
    """Solve a backward equation by training Y_0 and a network for Z on fresh paths at each step.

    **Arguments:**

    - `steps`: of Euler's scheme, equidistant.
    - `hidden`: widths of the network's hidden layers. `batch`: paths drawn for each training step.
    - `iterations`: training steps of Adam at `rate`, falling to a hundredth of it; Y_0 rests for
      the first half and then moves at a quarter of the rate. What is handed back is the moving
      average of the weights, over about the last hundred steps.
    - `between`: see `simulate`.

    Differs from the usual implementation: one network for all times instead of one for each (as in
    the paper), Y_0 starts at the mean over a pilot batch of the payoff and of what the driver gives
    for Y = Z = 0, and everything is scaled by what that batch shows. A path ends at the time and
    place of its exit, not at the step's end: what is lost at a default shortly before the horizon
    would be that at the horizon, where nothing is posted any more.

    Cost: `iterations * batch * steps` evaluations of the network and their gradient.
    """

    steps: int = 25
    hidden: tuple[int, ...] = (32, 32)
    batch: int = 256
    iterations: int = 1000
    rate: float = 1e-2
    between: bool = True

    def __check_init__(self) -> None:
        for name in ("steps", "batch", "iterations"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)}: give at least 1")

    def __call__(
        self,
        equation: BackwardEquation,
        *,
        key: Any,
        observe: Callable[[Path], Any] | None = None,
    ) -> BackwardSolution:
        """The solution. `observe`: what the driver and the payoff see of earlier solutions."""
        pilot_key, network_key, fit_key = jax.random.split(key, 3)
        paths = _Paths(equation, observe, self.steps, self.batch, self.between)
        pilot = _Paths(equation, observe, self.steps, PILOT, self.between)
        model = _begin(pilot, self.hidden, pilot_key, network_key)
        moves = eqx.tree_at(
            lambda m: (m.moved, m.network),
            jax.tree.map(lambda _: False, model),
            (True, jax.tree.map(eqx.is_inexact_array, model.network)),
        )
        trained = fit(
            _loss,
            model,
            paths,
            optimizer=_adam_and_start(self.rate, self.iterations),
            steps=self.iterations,
            key=fit_key,
            ema=0.99,
            trainable=moves,
        )
        if trained.status != "done":
            raise InputError(f"training did not end: {trained.reason}; lower rate={self.rate}")
        return trained.model


@lru_cache(32)
def _adam_and_start(rate: float, iterations: int) -> optax.GradientTransformation:
    """Adam; Y_0 rests for the first half, then moves at a quarter of the rate.

    While Z is wrong Y_0 has no right value: under a tilt the mean of Z's part is not zero, and an
    Y_0 that follows it moves far away along a flat valley.
    """
    half = iterations // 2
    late = optax.join_schedules(
        [optax.constant_schedule(0.0), optax.exponential_decay(rate / 4, iterations - half, 0.01)],
        [half],
    )

    def labels(weights: BackwardSolution) -> Any:
        return eqx.tree_at(lambda m: m.moved, jax.tree.map(lambda _: "network", weights), "start")

    falling = optax.adam(optax.exponential_decay(rate, iterations, 0.01))
    kinds: dict[Any, Any] = {"network": falling, "start": optax.adam(late)}
    return optax.multi_transform(kinds, labels)


@eqx.filter_jit
def _begin(
    paths: _Paths, hidden: tuple[int, ...], pilot_key: Any, network_key: Any
) -> BackwardSolution:
    """Y_0 from the means of a pilot batch, a network scaled by what the batch shows.

    This guess weighs tilted paths by their likelihood ratios; the training needs none.
    """
    equation, pilot = paths.equation, paths(pilot_key)
    states = equation.active or equation.start.size
    noises = equation.active or equation.noises
    inputs = jnp.concatenate([pilot.times[..., None], pilot.states[..., :states]], axis=-1)
    totals = jax.vmap(lambda path: target(equation, path) + _costs(equation, path))(pilot)
    scale = jnp.std(totals, axis=0)
    weighed = jax.vmap(lambda path: likelihood_ratio(equation, path))(pilot)[:, None] * totals
    doubt = jnp.std(weighed, axis=0)
    sizes = (states + 1, *hidden, equation.outputs * noises)
    network = mlp(sizes, network_key, jnp.tanh, 1.0, equation.start.dtype)
    return BackwardSolution(
        equation,
        jnp.mean(weighed, axis=0),
        jnp.where(doubt > 0, doubt, 1),
        jnp.zeros_like(scale),
        network,
        jnp.mean(inputs, axis=(0, 1)),
        jnp.std(inputs, axis=(0, 1)) + jnp.finfo(inputs.dtype).eps,
        jnp.where(scale > 0, scale, 1),
    )
