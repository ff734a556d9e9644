"""Backward stochastic differential equations by networks, with random exit and tilted paths
(`deep-xva`; the solver itself is the deep BSDE method of E, Han and Jentzen).

Forward, `dX = b(t, X) dt + s(t, X) dW` from a point; backward, `-dY = f(t, X, Y, Z) dt - Z dW` with
`Y = g` at the horizon, or where X first leaves a domain. Y_0 is a number to be trained and Z is one
network of (t, X) for all components of Y: the pair is right when Y, stepped forward by Euler, ends
in g on every path, so the mean square of what is missing is the loss.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from nearly.core.errors import InputError
from nearly.core.tally import counted
from nearly.training import fit
from nearly.training.architectures import MLP, mlp

STEPS = "path steps"
PILOT = 4096  # paths that say where the states are and how much the payoff varies


class BackwardEquation(eqx.Module):
    """What is solved; every function takes ONE path and is batched with `jax.vmap`.

    **Arguments:**

    - `start`: X at time 0 [states]. `horizon` > 0. `noises`: how many Brownian motions there are.
    - `drift`: `(t, x) -> [states]`. `diffusion`: `(t, x) -> [states, noises]`.
    - `driver`: f, `(t, x, y, z, seen) -> [outputs]` with y [outputs] and z [outputs, noises].
    - `payoff`: g, `(t, x, side, seen) -> [outputs]` where the path ends; `side` says through which
      side of the domain it has left (at t), -1 that it came to the horizon inside.
    - `distances`: `(t, x) -> [sides]`, all positive inside the domain; None: the whole space.
    - `tilt`: `(t, x) -> [noises]`; paths are drawn with the drift `b + s tilt`, that is under
      another measure, to see what is rare. Y and Z stay what they are: the increments that drive Y
      are still those of W, `dW~ + tilt dt`, so no likelihood ratio is needed.
    - `outputs`: components of Y.
    - `active`: Y depends on the first so many states and noises only; 0: on all.

    `seen` [values] is what earlier equations, whose solutions were found before, say at that time.

    Raises `InputError` for a horizon or a number of outputs that is not positive.
    """

    start: Float[Array, " states"]
    horizon: float
    noises: int = eqx.field(static=True)
    drift: Callable[[Any, Any], Any]
    diffusion: Callable[[Any, Any], Any]
    driver: Callable[[Any, Any, Any, Any, Any], Any]
    payoff: Callable[[Any, Any, Any, Any], Any]
    distances: Callable[[Any, Any], Any] | None = None
    tilt: Callable[[Any, Any], Any] | None = None
    outputs: int = eqx.field(static=True, default=1)
    active: int = eqx.field(static=True, default=0)

    def __check_init__(self) -> None:
        if not self.horizon > 0:
            raise InputError(f"horizon={self.horizon} must be positive")
        if self.outputs < 1 or self.noises < 1:
            raise InputError(f"outputs={self.outputs} and noises={self.noises} must be at least 1")
        if not 0 <= self.active <= min(self.noises, self.start.shape[0]):
            raise InputError(
                f"active={self.active} is more than there are states or noises; 0 means all"
            )


class Path(eqx.Module):
    """One path of X.

    `noise` are the increments of W under the measure of the equation, whatever the tilt; `exit` is
    the number of the node at which the path ends: that of its exit, or the last one. `side` is the
    side of the domain through which it left, or -1. Nodes are equidistant but for that of an exit,
    which is at the time and place of the exit; what follows is not to be used.
    """

    times: Float[Array, " nodes"]
    states: Float[Array, "nodes states"]
    noise: Float[Array, "steps noises"]
    exit: Int[Array, ""]
    side: Int[Array, ""]
    seen: Float[Array, "nodes values"]

    @property
    def held(self) -> Float[Array, " steps"]:
        """How long each step lasts; nothing after the exit."""
        widths = self.times[1:] - self.times[:-1]
        return jnp.where(jnp.arange(widths.size) < self.exit, widths, 0)


def simulate(
    equation: BackwardEquation,
    steps: int,
    key: Any,
    *,
    observe: Callable[[Path], Any] | None = None,
    between: bool = True,
) -> Path:
    """Euler's path of X, up to its exit.

    **Arguments:**

    - `observe`: what earlier solutions say along the path, `path -> [nodes, values]`.
    - `between`: see `stopped`.

    Cost: `steps` evaluations of drift and diffusion. Every step is counted as a path step.
    """
    noise_key, exit_key = jax.random.split(key)
    path = stopped(equation, unstopped(equation, steps, noise_key), exit_key, between=between)
    if observe is None:
        return path
    return eqx.tree_at(lambda p: p.seen, path, observe(path))


def unstopped(equation: BackwardEquation, steps: int, key: Any) -> Path:
    """Euler's path of X up to the horizon, as if there were no domain to leave."""
    dtype = equation.start.dtype
    step = jnp.asarray(equation.horizon / steps, dtype)
    times = step * jnp.arange(steps + 1, dtype=dtype)
    draws = jax.random.normal(key, (steps, equation.noises), dtype)
    noise = jnp.sqrt(step) * jax.vmap(counted(lambda z: z, STEPS))(draws)

    def advance(x: Array, inputs: Any) -> tuple[Array, Any]:
        t, increment = inputs
        if equation.tilt is not None:
            increment = increment + equation.tilt(t, x) * step
        moved = x + equation.drift(t, x) * step + equation.diffusion(t, x) @ increment
        return moved, (moved, increment)

    _, (states, noise) = jax.lax.scan(advance, equation.start, (times[:-1], noise))
    states = jnp.concatenate([equation.start[None], states])
    nothing = jnp.zeros((steps + 1, 0), dtype)
    return Path(times, states, noise, jnp.asarray(steps), jnp.asarray(-1), nothing)


def stopped(equation: BackwardEquation, path: Path, key: Any, *, between: bool = True) -> Path:
    """A path that ends where it leaves the domain.

    **Arguments:**

    - `between`: whether the exit is also looked for between the steps, by the law of the Brownian
      bridge, and put at the time and place that this law gives: exact for constant coefficients and
      flat sides. Looked for at the steps only, it is missed with an error of order 1/2 in the step.
    """
    distances = equation.distances
    if distances is None:
        return path
    gaps = jax.vmap(distances)(path.times, path.states)
    if not between:
        out = gaps[1:] <= 0
        left, first = jnp.any(out), jnp.argmax(jnp.any(out, axis=1))
        end = jnp.where(left, first + 1, path.exit)
        side = jnp.where(left, jnp.argmax(out[first]), -1)
        return dataclasses.replace(path, exit=end, side=side)
    chance_key, time_key, place_key = jax.random.split(key, 3)
    slopes = jax.vmap(jax.jacfwd(distances, argnums=1))(path.times[:-1], path.states[:-1])
    pushes = slopes @ jax.vmap(equation.diffusion)(path.times[:-1], path.states[:-1])
    variances = jnp.sum(pushes**2, axis=-1) * jnp.diff(path.times)[:, None]
    before, after = gaps[:-1], gaps[1:]
    # The chance that a Brownian bridge comes down to zero on its way.
    chances = jnp.exp(-2 * jnp.maximum(before * after, 0) / variances)
    uniforms = jax.random.uniform(chance_key, before.shape[:1], before.dtype)
    out = (before <= 0) | (after <= 0) | (uniforms[:, None] < chances)
    left, first = jnp.any(out), jnp.argmax(jnp.any(out, axis=1))
    shares = _hitting(before[first], after[first], variances[first], time_key)
    shares = jnp.where(out[first], shares, jnp.inf)
    side = jnp.argmin(shares)
    level = (gaps[first, side], gaps[first + 1, side], pushes[first, side])
    gone = _cut(equation, path, first, shares[side], level, place_key)
    gone = dataclasses.replace(gone, exit=first + 1, side=side)
    stays = dataclasses.replace(path, side=jnp.full_like(side, -1))
    return jax.tree.map(lambda a, b: jnp.where(left, a, b), gone, stays)


def _hitting(before: Array, after: Array, variances: Array, key: Any) -> Array:
    """When bridges that come down to zero do so first, as a share of the step; one for each side.

    The share over what is left of the step has the inverse Gaussian law of a Brownian motion's
    first passage, drawn as a root of a quadratic equation; a bridge that ends above zero passes it
    as its mirror image does.
    """
    tiny = jnp.finfo(before.dtype).tiny
    start = jnp.maximum(before, 0)
    other = jnp.maximum(jnp.abs(after), jnp.finfo(before.dtype).eps * start + tiny)
    mean = start / other
    normal_key, choice_key = jax.random.split(key)
    normal = jax.random.normal(normal_key, before.shape, before.dtype)
    q = normal**2 * variances / jnp.maximum(start * other, tiny)  # normal^2 mean / shape
    grown = 1 + q / 2 + jnp.sqrt(q + q**2 / 4)
    early = jax.random.uniform(choice_key, before.shape, before.dtype) * (1 + grown) < grown
    root = jnp.where(early, mean / grown, mean * grown)
    return jnp.where(start > 0, 1 - 1 / (1 + root), 0)


def _cut(
    equation: BackwardEquation, path: Path, first: Array, share: Array, level: Any, key: Any
) -> Path:
    """The path with the end of a step moved to a share of it, where the distance is zero.

    On the bridge between the ends of the step; `level` are the distance before and after, and what
    the noise adds to it: along that direction the bridge is where the distance tells it to be.
    """
    before, after, push = level
    x, increment = path.states[first], path.noise[first]
    t, width = path.times[first], path.times[first + 1] - path.times[first]
    drawn = jax.random.normal(key, increment.shape, increment.dtype)
    part = share * increment + jnp.sqrt(share * (1 - share) * width) * drawn
    wanted = -before - share * (after - before - push @ increment)
    part = part + push * (wanted - push @ part) / (push @ push)
    diffusion = equation.diffusion(path.times[first], x)
    drift = path.states[first + 1] - x - diffusion @ increment
    return dataclasses.replace(
        path,
        times=path.times.at[first + 1].set(t + share * width),
        states=path.states.at[first + 1].set(x + share * drift + diffusion @ part),
        noise=path.noise.at[first].set(part),
    )


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


def target(equation: BackwardEquation, path: Path) -> Float[Array, " outputs"]:
    """The payoff where a path ends."""
    at = path.exit
    return equation.payoff(path.times[at], path.states[at], path.side, path.seen[at])


def _costs(equation: BackwardEquation, path: Path) -> Array:
    """The driver along a path, were Y and Z zero: what costs and gains there are on the way."""
    nothing = jnp.zeros(equation.outputs, path.times.dtype)
    still = jnp.zeros((equation.outputs, equation.noises), path.times.dtype)
    drives = jax.vmap(lambda t, x, seen: equation.driver(t, x, nothing, still, seen))(
        path.times[:-1], path.states[:-1], path.seen[:-1]
    )
    return path.held @ drives


def likelihood_ratio(equation: BackwardEquation, path: Path) -> Float[Array, ""]:
    """The density of a path, up to its end, under the measure without tilt over that with it."""
    if equation.tilt is None:
        return jnp.ones_like(path.times[0])
    tilts = jax.vmap(equation.tilt)(path.times[:-1], path.states[:-1])
    inside = jnp.arange(path.held.size) < path.exit
    noise = jnp.where(inside, jnp.sum(tilts * path.noise, axis=1), 0)
    return jnp.exp(jnp.sum(tilts**2, axis=1) @ path.held / 2 - jnp.sum(noise))


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
def _adam(rate: float, iterations: int) -> optax.GradientTransformation:
    return optax.adam(optax.exponential_decay(rate, iterations, 0.01))


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

    kinds: dict[Any, Any] = {"network": _adam(rate, iterations), "start": optax.adam(late)}
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


# ---- quantiles


class Quantile(eqx.Module):
    """A conditional quantile: `inputs [features] -> number`, see `PinballRegression`."""

    network: MLP
    centre: Float[Array, " features"]
    spread: Float[Array, " features"]
    offset: Float[Array, ""]
    scale: Float[Array, ""]

    def __call__(self, inputs: Float[Array, " features"]) -> Float[Array, ""]:
        raw = self.network((inputs - self.centre) / self.spread)
        return self.offset + self.scale * raw[0]


class _Pinball(eqx.Module):
    level: float

    def __call__(self, model: Quantile, batch: Any, key: Any) -> Array:
        del key
        inputs, targets = batch
        gap = (targets - jax.vmap(model)(inputs)) / model.scale
        return jnp.mean(jnp.maximum(self.level * gap, (self.level - 1) * gap))


class PinballRegression(eqx.Module):
    """The conditional quantile of samples, by a network that minimises the pinball loss.

    **Arguments:** `level` of the quantile, between 0 and 1; `hidden`, `batch`, `iterations` and
    `rate` as in `DeepBSDE`.

    Cost: `iterations * batch` evaluations of the network. A level near 1 learns from few samples:
    `(1 - level) * batch` lie above it.
    """

    level: float = 0.99
    hidden: tuple[int, ...] = (32, 32)
    batch: int = 4096
    iterations: int = 1000
    rate: float = 1e-2

    def __check_init__(self) -> None:
        if not 0 < self.level < 1:
            raise InputError(f"level={self.level} must lie between 0 and 1")

    def __call__(
        self,
        inputs: Float[Array, "samples features"],
        targets: Float[Array, " samples"],
        *,
        key: Any,
    ) -> Quantile:
        """The quantile of the targets, given the inputs."""
        network_key, fit_key = jax.random.split(key)
        sizes = (inputs.shape[1], *self.hidden, 1)
        eps = jnp.finfo(inputs.dtype).eps
        model = Quantile(
            mlp(sizes, network_key, jnp.tanh, 1.0, inputs.dtype),
            jnp.mean(inputs, axis=0),
            jnp.std(inputs, axis=0) + eps,
            jnp.quantile(targets, self.level),
            jnp.std(targets) + eps,
        )
        moves = eqx.tree_at(
            lambda m: m.network,
            jax.tree.map(lambda _: False, model),
            jax.tree.map(eqx.is_inexact_array, model.network),
        )
        trained = fit(
            _Pinball(self.level),
            model,
            (inputs, targets),
            optimizer=_adam(self.rate, self.iterations),
            steps=self.iterations,
            key=fit_key,
            batch=min(self.batch, len(targets)),
            ema=0.99,
            trainable=moves,
        )
        return trained.model
