"""Variational inference for equations driven by fractional noise, with a Hurst index to learn.

    prior      dX = drift dt + diffusion o dB,    B = sum_k w_k (Y_k - Y_k(0)),
               dY_k = -g_k Y_k dt + dW
    posterior  the same with dW + u(t, X, Y) dt in dW's place.

The evidence lower bound is E[log p(data | X) - 1/2 int |u|^2 dt] under the posterior. Its gradient
reaches drift, diffusion, control and the Hurst index, all of which `nearly.training.fit` can train.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nearly.core.errors import InputError
from nearly.dynamics.fractional import (
    Kind,
    MarkovFractionalBrownian,
    Scalar,
    Speeds,
    markov_fractional,
)
from nearly.training.architectures import MLP, mlp

Part = Callable[..., Any]


class FractionalSDE(eqx.Module):
    """An equation of fractional noise from 0 to `end`, and a posterior for it.

    **Arguments:**

    - `drift`, `diffusion`: `(t, x, args) -> array of x's shape` (noise acts elementwise), of the
      prior: functions, or modules to train.
    - `control`: `(t, x, y, args) -> u of x's shape`, y [size, *x]: `control_network`,
      `AffineControl`, or any other module.
    - `logit`: of the Hurst index, which is `jax.nn.sigmoid(logit)`; 0 for 1/2. It is an array, and
      trained unless left out of what `fit` calls trainable.
    - `end`, `steps`: so many equal steps up to there. `size`, `fastest`, `kind`: of the
      approximation, as in `markov_fractional`.

    Raises `InputError` for `end` or `steps` that are not positive.

    **Cost:** a step calls drift and diffusion twice, and control once (twice under the posterior).

    From `fractional-sde-vi`. There Euler's or Milstein's steps must be below 1/2 of the fastest
    process's time; here the processes Y are drawn from their exact law at the ends of the steps, so
    `fastest` costs nothing. X takes Heun's step (Stratonovich). `fractional_terms` gives the same
    equations to any solver of diffrax's instead.

    Two things leave the bound lower than it could be. A step's noise, which no control takes away,
    ought to be well below the errors of the observations: what it costs favours a larger Hurst
    index. And the stationary kind draws Y(0) from its prior law under the posterior too, as there.
    """

    drift: Part
    diffusion: Part
    control: Part
    logit: Scalar
    end: float = 1.0
    steps: int = eqx.field(static=True, default=100)
    size: int = eqx.field(static=True, default=5)
    fastest: float = 20.0
    kind: Kind = eqx.field(static=True, default="riemann-liouville")

    def __check_init__(self) -> None:
        if not self.end > 0:
            raise InputError(f"end={self.end} must be positive, such as 1.0")
        if self.steps < 1:
            raise InputError(f"steps={self.steps}: give at least 1")

    @property
    def hurst(self) -> Scalar:
        """The Hurst index."""
        return jax.nn.sigmoid(self.logit)

    def noise(self) -> MarkovFractionalBrownian:
        """The approximation of fractional Brownian motion at the present Hurst index."""
        return markov_fractional(
            self.hurst, self.size, self.end, fastest=self.fastest, kind=self.kind
        )

    def prior(
        self, x0: Float[Array, " components"], key: Any, args: Any = None
    ) -> Float[Array, "nodes components"]:
        """A trajectory of the prior at the `steps + 1` nodes."""
        nodes, _ = _follow(self, _no_control, x0, key, args)
        return nodes

    def posterior(
        self, x0: Float[Array, " components"], key: Any, args: Any = None
    ) -> tuple[Float[Array, "nodes components"], Scalar]:
        """A posterior trajectory at the nodes, and a sample of its divergence from the prior.

        The sample is 1/2 int |u|^2 dt + int u dW: the second integral has mean zero. At the true
        posterior the bound then has no variance; with the control's parameters held still in it,
        nor has its gradient.
        """
        return _follow(self, self.control, x0, key, args)


def evidence_bound(
    sde: FractionalSDE,
    log_likelihood: Callable[[Array], Any],
    x0: Float[Array, " components"],
    key: Any,
    *,
    samples: int = 1,
    args: Any = None,
) -> Scalar:
    """An unbiased estimate of the evidence lower bound, to be maximised.

    **Arguments:**

    - `log_likelihood`: of the data given a trajectory [nodes, components], such as
      `GaussianObservations`. `samples`: of the posterior. `args`: handed on to drift, diffusion and
      control.

    **Cost:** `samples` trajectories; its gradient holds the states of all their steps.
    """

    def one(key: Any) -> Any:
        nodes, divergence = sde.posterior(x0, key, args)
        return log_likelihood(nodes) - divergence

    return jnp.mean(jax.vmap(one)(jax.random.split(key, samples)))


class GaussianObservations(eqx.Module):
    """The log density of values seen at some nodes with independent Gaussian errors.

    `nodes` [n]: their numbers, 0 to `steps`; `values` [n, components]; `deviation`: of the errors.
    """

    nodes: Any
    values: Float[Array, "n components"]
    deviation: Any

    def __call__(self, trajectory: Float[Array, "nodes components"]) -> Scalar:
        errors = (self.values - trajectory[self.nodes]) / self.deviation
        scale = jnp.log(self.deviation) + jnp.log(2 * jnp.pi) / 2
        return -jnp.sum(errors**2 / 2 + scale)


# ---- controls


class ControlNetwork(eqx.Module):
    """u as a perceptron of sin t, cos t, X and Y: see `control_network`."""

    network: MLP

    def __call__(self, t: Any, x: Array, y: Array, args: Any) -> Array:
        del args
        time = jnp.asarray(t, x.dtype)
        clock = jnp.stack([jnp.sin(time), jnp.cos(time)])
        return self.network(jnp.concatenate([clock, x, y.ravel()]))


def control_network(
    components: int,
    size: int,
    key: Any,
    *,
    width: int = 64,
    depth: int = 2,
    dtype: Any = jnp.float32,
) -> ControlNetwork:
    """A control for one set of data, zero at first: the posterior starts as the prior.

    **Arguments:** `components` of x; `size`: how many processes Y. `width`, `depth`: of the hidden
    layers, tanh (`fractional-sde-vi` has two of 1,000 for its bridges).
    """
    inputs = 2 + components * (1 + size)
    network = mlp([inputs, *[width] * depth, components], key, jnp.tanh, gain=1.0, dtype=dtype)
    last = network.layers[-1]
    still = eqx.tree_at(lambda layer: layer.weight, last, jnp.zeros_like(last.weight))
    return ControlNetwork(eqx.tree_at(lambda net: net.layers[-1], network, still))


class AffineControl(eqx.Module):
    """u = offset(t) + gain(t) (X, Y), constant in each step: see `affine_control`.

    `offsets` [series, steps, components], `gains` [steps, 1 + size, components], `length` of a
    step: u is so much over the root of the length, the noise of a step, so that all of them are of
    the order of one. `args` is the number of the series.
    """

    offsets: Float[Array, "series steps components"]
    gains: Float[Array, "steps inputs components"]
    length: float

    def __call__(self, t: Any, x: Array, y: Array, args: Any) -> Array:
        step = jnp.round(t / self.length).astype(jnp.int32)
        state = jnp.concatenate([x[None], y])
        units = self.offsets[args, step] + jnp.sum(self.gains[step] * state, axis=0)
        return units / jnp.sqrt(jnp.asarray(self.length, x.dtype))


def affine_control(
    series: int, components: int, size: int, steps: int, end: float = 1.0, dtype: Any = jnp.float32
) -> AffineControl:
    """A control for many series seen at the same times: the exact form of the posterior where drift
    is linear, diffusion constant and errors Gaussian, each component apart.

    The gains do not depend on what was seen then, so all series share them; starts at zero.
    """
    offsets = jnp.zeros((series, steps, components), dtype)
    return AffineControl(offsets, jnp.zeros((steps, 1 + size, components), dtype), end / steps)


def _no_control(t: Any, x: Array, y: Array, args: Any) -> Array:
    del t, y, args
    return jnp.zeros_like(x)


# ---- the steps


class _Steps(eqx.Module):
    """The exact law of the processes over a step: Y -> decay Y + push u + draw of `factor`.

    `factor` [1 + size, 1 + size] is a square root of the covariance of W's increment and of the
    processes'.
    """

    decay: Speeds
    push: Speeds
    factor: Float[Array, "all all"]
    length: Scalar


def _steps(speeds: Array, length: Any) -> _Steps:
    length = jnp.asarray(length, speeds.dtype)
    both = jnp.concatenate([jnp.zeros(1, speeds.dtype), speeds])
    values, vectors = jnp.linalg.eigh(_faded(both[:, None] + both, length))
    factor = vectors * jnp.sqrt(jnp.maximum(values, 0))
    return _Steps(jnp.exp(-speeds * length), _faded(speeds, length), factor, length)


def _faded(speed: Array, length: Array) -> Array:
    """int_0^length exp(-speed v) dv."""
    moving = jnp.where(speed > 0, speed, 1)
    return jnp.where(speed > 0, -jnp.expm1(-moving * length) / moving, length)


def _follow(
    sde: FractionalSDE, control: Part, x0: Array, key: Any, args: Any
) -> tuple[Array, Array]:
    noise = sde.noise()
    steps = _steps(jax.lax.stop_gradient(noise.speeds), sde.end / sde.steps)
    first, rest = jax.random.split(key)
    start = jax.vmap(noise.initial, out_axes=1)(jax.random.split(first, x0.size))
    draws = jax.random.normal(rest, (sde.steps, sde.size + 1, x0.size), x0.dtype)
    moving, still = eqx.partition(control, eqx.is_inexact_array)
    held = eqx.combine(jax.lax.stop_gradient(moving), still)
    h = steps.length

    def step(state: Any, inputs: Any) -> Any:
        x, y, divergence = state
        number, draw = inputs
        t = number * h
        u, u_held = control(t, x, y, args), held(t, x, y, args)
        both = steps.factor @ draw
        y1 = steps.decay[:, None] * y + steps.push[:, None] * u + both[1:]
        change = noise.weights @ (y1 - y)
        x1 = _heun(sde, t, h, x, change, args)
        divergence += h * jnp.sum(u**2) / 2 + jnp.sum(u_held * both[0])
        return (x1, y1, divergence), x1

    zero = jnp.zeros((), x0.dtype)
    numbers = jnp.arange(sde.steps, dtype=x0.dtype)
    (_, _, divergence), xs = jax.lax.scan(step, (x0, start, zero), (numbers, draws))
    return jnp.concatenate([x0[None], xs]), divergence


def _heun(sde: FractionalSDE, t: Any, h: Any, x: Array, change: Array, args: Any) -> Array:
    """X after a step of h in which B changes so much."""
    drift, spread = sde.drift(t, x, args), sde.diffusion(t, x, args)
    guess = x + drift * h + spread * change
    drift = (drift + sde.drift(t + h, guess, args)) / 2
    spread = (spread + sde.diffusion(t + h, guess, args)) / 2
    return x + drift * h + spread * change
