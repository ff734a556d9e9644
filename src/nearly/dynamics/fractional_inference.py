"""Variational inference for equations driven by fractional noise, with a Hurst index to learn.

    prior      dX = drift dt + diffusion o dB,    B = sum_k w_k (Y_k - Y_k(0)),
               dY_k = -g_k Y_k dt + dW
    posterior  the same with dW + u(t, X, Y) dt in dW's place.

The evidence lower bound is E[log p(data | X) - 1/2 int |u|^2 dt] under the posterior. Its gradient
reaches drift, diffusion, control and the Hurst index, all of which `nearly.training.fit` can train.

Beyond the paper, a posterior may give the whole Gaussian law of a step's noise (`StepNoise`): a
control moves its mean alone, so no bound can be tight where a step adds more than the data leave.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
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
      `AffineControl`, or any other module; or one that returns a `StepNoise`: `noise_network`,
      `AffineNoise`.
    - `logit`: of the Hurst index, which is `jax.nn.sigmoid(logit)`; 0 for 1/2. It is an array, and
      trained unless left out of what `fit` calls trainable.
    - `end`, `steps`: so many equal steps up to there. `size`, `fastest`, `kind`: of the
      approximation, as in `markov_fractional`.

    Raises `InputError` for `end` or `steps` that are not positive.

    **Cost:** a step calls drift and diffusion twice, and the posterior's control twice.

    From `fractional-sde-vi`. There Euler's or Milstein's steps must be below 1/2 of the fastest
    process's time; here the processes Y are drawn from their exact law at the ends of the steps, so
    `fastest` costs nothing. X takes Heun's step (Stratonovich). `fractional_terms` gives the same
    equations to any solver of diffrax's instead.

    Two things leave the bound lower than it could be. A step's noise, which no control takes away
    (a `StepNoise` does), ought to be well below the errors of the observations: what it costs
    favours a larger Hurst index. And the stationary kind draws Y(0) from its prior law under the
    posterior too, as there.
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

        The sample is the log ratio of both densities of the steps' noise, for a control
        1/2 int |u|^2 dt + int u dW, of which the second integral has mean zero. At the true
        posterior the bound then has no variance; with the parameters of that density held still,
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


# ---- the law of a step's noise


class StepNoise(eqx.Module):
    """A Gaussian law of the noise of a step, in units in which its prior is the standard one.

    **Arguments:** `mean` [1 + size, components]; `root` [1 + size, 1 + size], lower triangular with
    a positive diagonal: of the covariance, for each component alike. The units are those of the
    symmetric root of the covariance of W's increment and the processes'.
    """

    mean: Float[Array, "all components"]
    root: Float[Array, "all all"]

    def drawn(self, draw: Array) -> Array:
        """What standard normal numbers become under this law."""
        return self.mean + self.root @ draw

    def divergence(self, units: Array) -> Scalar:
        """The log density there less the prior's."""
        draw = solve_triangular(self.root, units - self.mean, lower=True)
        scale = self.mean.shape[1] * jnp.sum(jnp.log(jnp.diagonal(self.root)))
        return jnp.sum(units**2 - draw**2) / 2 - scale


class _Moved(eqx.Module):
    """The law that a control leaves: the prior's with another mean."""

    mean: Float[Array, "all components"]

    def drawn(self, draw: Array) -> Array:
        return self.mean + draw

    def divergence(self, units: Array) -> Scalar:
        return jnp.sum(self.mean * units - self.mean**2 / 2)


# ---- controls


class ControlNetwork(eqx.Module):
    """u as a perceptron of sin t, cos t, X and Y: see `control_network`."""

    network: MLP

    def __call__(self, t: Any, x: Array, y: Array, args: Any) -> Array:
        del args
        return self.network(_seen(t, x, y))


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
    return ControlNetwork(_still([inputs, *[width] * depth, components], key, dtype))


class NoiseNetwork(eqx.Module):
    """A step's noise from a perceptron of sin t, cos t, X and Y: see `noise_network`."""

    network: MLP

    def __call__(self, t: Any, x: Array, y: Array, args: Any) -> StepNoise:
        del args
        count = y.shape[0] + 1
        found = self.network(_seen(t, x, y))
        mean, below = jnp.split(found, [count * x.size])
        square = jnp.zeros((count, count), x.dtype).at[jnp.tril_indices(count)].set(below)
        return StepNoise(mean.reshape(count, x.size), _root(square))


def noise_network(
    components: int,
    size: int,
    key: Any,
    *,
    width: int = 64,
    depth: int = 2,
    dtype: Any = jnp.float32,
) -> NoiseNetwork:
    """The law of each step's noise for one set of data, the prior's at first.

    **Arguments:** as in `control_network`, which it takes the place of where few steps lie between
    precise observations.
    """
    count = size + 1
    sizes = [
        2 + components * count,
        *[width] * depth,
        count * components + count * (count + 1) // 2,
    ]
    return NoiseNetwork(_still(sizes, key, dtype))


def _still(sizes: list[int], key: Any, dtype: Any) -> MLP:
    """A perceptron that is zero everywhere, but for its hidden layers."""
    network = mlp(sizes, key, jnp.tanh, gain=1.0, dtype=dtype)
    last = network.layers[-1]
    still = eqx.tree_at(lambda layer: layer.weight, last, jnp.zeros_like(last.weight))
    return eqx.tree_at(lambda net: net.layers[-1], network, still)


def _seen(t: Any, x: Array, y: Array) -> Array:
    time = jnp.asarray(t, x.dtype)
    return jnp.concatenate([jnp.stack([jnp.sin(time), jnp.cos(time)]), x, y.ravel()])


def _root(square: Array) -> Array:
    """Any square matrix's lower triangle, with the exponentials of its diagonal."""
    return jnp.tril(square, -1) + jnp.diag(jnp.exp(jnp.diagonal(square)))


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
    """A control for many series seen at the same times: the form of the posterior where drift is
    linear, diffusion constant, errors Gaussian and steps short, each component apart.

    The gains do not depend on what was seen then, so all series share them; starts at zero.
    """
    offsets = jnp.zeros((series, steps, components), dtype)
    return AffineControl(offsets, jnp.zeros((steps, 1 + size, components), dtype), end / steps)


class AffineNoise(eqx.Module):
    """A step's noise with a mean of offset(t) + gain(t) (X, Y) and a root(t): see `affine_noise`.

    `offsets` [series, steps, 1 + size, components], `gains` [steps, 1 + size, 1 + size,
    components], the second of these axes summed over, `squares` [steps, 1 + size, 1 + size]: the
    roots, with the logarithms of their diagonals. `length` of a step. `args` is the number of the
    series.
    """

    offsets: Float[Array, "series steps all components"]
    gains: Float[Array, "steps all all components"]
    squares: Float[Array, "steps all all"]
    length: float

    def __call__(self, t: Any, x: Array, y: Array, args: Any) -> StepNoise:
        step = jnp.round(t / self.length).astype(jnp.int32)
        state = jnp.concatenate([x[None], y])
        mean = self.offsets[args, step] + jnp.sum(self.gains[step] * state, axis=1)
        return StepNoise(mean, _root(self.squares[step]))


def affine_noise(
    series: int, components: int, size: int, steps: int, end: float = 1.0, dtype: Any = jnp.float32
) -> AffineNoise:
    """The law of each step's noise for many series seen at the same times: the exact posterior
    where drift is linear, diffusion constant and errors Gaussian, however long the steps.

    Gains and roots do not depend on what was seen then, so all series share them; the prior's law
    at first.
    """
    count = size + 1
    offsets = jnp.zeros((series, steps, count, components), dtype)
    gains = jnp.zeros((steps, count, count, components), dtype)
    return AffineNoise(offsets, gains, jnp.zeros((steps, count, count), dtype), end / steps)


def _no_control(t: Any, x: Array, y: Array, args: Any) -> Array:
    del t, y, args
    return jnp.zeros_like(x)


# ---- the steps


class _Steps(eqx.Module):
    """The exact law of the processes over a step: Y -> decay Y + the processes' share of a draw.

    `factor` [1 + size, 1 + size] is the symmetric root of the covariance of W's increment and of
    the processes': of all roots the one that no choice of eigenvectors changes.
    """

    decay: Speeds
    factor: Float[Array, "all all"]
    length: Scalar

    def law(self, given: Any) -> Any:
        """Of the noise, from what a control returned: over W's increment u counts its length."""
        return given if isinstance(given, StepNoise) else _Moved(self.factor[:, :1] * given)


def _steps(speeds: Array, length: Any) -> _Steps:
    length = jnp.asarray(length, speeds.dtype)
    both = jnp.concatenate([jnp.zeros(1, speeds.dtype), speeds])
    values, vectors = jnp.linalg.eigh(_faded(both[:, None] + both, length))
    factor = (vectors * jnp.sqrt(jnp.maximum(values, 0))) @ vectors.T
    return _Steps(jnp.exp(-speeds * length), factor, length)


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
        units = steps.law(control(t, x, y, args)).drawn(draw)
        y1 = steps.decay[:, None] * y + steps.factor[1:] @ units
        change = noise.weights @ (y1 - y)
        x1 = _heun(sde, t, h, x, change, args)
        divergence += steps.law(held(t, x, y, args)).divergence(units)
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
