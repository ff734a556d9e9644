"""Backward stochastic differential equations and the paths of their forward half (`deep-xva`).

Paths may be drawn under another measure, and end at the time and place of their exit from a domain.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nearly.core.errors import InputError
from nearly.core.tally import counted

STEPS = "path steps"


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


def target(equation: BackwardEquation, path: Path) -> Float[Array, " outputs"]:
    """The payoff where a path ends."""
    at = path.exit
    return equation.payoff(path.times[at], path.states[at], path.side, path.seen[at])


def likelihood_ratio(equation: BackwardEquation, path: Path) -> Float[Array, ""]:
    """The density of a path, up to its end, under the measure without tilt over that with it."""
    if equation.tilt is None:
        return jnp.ones_like(path.times[0])
    tilts = jax.vmap(equation.tilt)(path.times[:-1], path.states[:-1])
    inside = jnp.arange(path.held.size) < path.exit
    noise = jnp.where(inside, jnp.sum(tilts * path.noise, axis=1), 0)
    return jnp.exp(jnp.sum(tilts**2, axis=1) @ path.held / 2 - jnp.sum(noise))
