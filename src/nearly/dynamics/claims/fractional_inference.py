"""What variational inference under fractional noise promises: bridges, and the Hurst index."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from nearly.core.claim import Expected, claim
from nearly.dynamics.fractional import markov_fractional
from nearly.dynamics.fractional_inference import (
    FractionalSDE,
    GaussianObservations,
    affine_control,
    affine_noise,
    control_network,
    evidence_bound,
    noise_network,
)
from nearly.training import fit

PAPER = "fractional-sde-vi"
SEEDS = (0, 1, 2)
DEVIATION = 0.1  # of all observations


def still(t: Any, x: Any, args: Any) -> Any:
    """No drift."""
    return jnp.zeros_like(x)


def decay(t: Any, x: Any, args: Any) -> Any:
    """The drift of an Ornstein-Uhlenbeck process of rate 1."""
    return -x


def unit(t: Any, x: Any, args: Any) -> Any:
    """Noise of deviation 1."""
    return jnp.ones_like(x)


def keys_alone(key: Any) -> Any:
    """Batches of a loss that draws its own paths."""
    return jax.random.key_data(key)


def adam(rate: float, updates: int) -> Any:
    """Adam with a rate that falls to a hundredth along a cosine."""
    return optax.adam(optax.cosine_decay_schedule(rate, updates, 0.01))


# ---- bridges

BRIDGE_END, BRIDGE_STEPS, BRIDGE_UPDATES = 2.0, 100, 1000
BRIDGE_ADAM = adam(1e-2, BRIDGE_UPDATES)


def bridge(hurst: float, make: Callable[..., Any], key: Any) -> FractionalSDE:
    """Fractional Brownian motion from 0, for an observation of 0 at the end."""
    network = make(1, 5, key, dtype=jnp.float64)
    logit = jnp.log(jnp.asarray(hurst / (1 - hurst), jnp.float64))
    return FractionalSDE(
        *(still, unit, network, logit, BRIDGE_END),
        steps=BRIDGE_STEPS,
        fastest=20 * BRIDGE_END,
        kind="stationary",
    )


def bridge_loss(sde: FractionalSDE, batch: Any, key: Any) -> Any:
    """Minus the bound, by 32 paths."""
    del batch
    seen = GaussianObservations(jnp.array([sde.steps]), jnp.zeros((1, 1)), DEVIATION)
    return -evidence_bound(sde, seen, jnp.zeros(1), key, samples=32)


@eqx.filter_jit
def bridge_paths(sde: FractionalSDE, key: Any) -> Any:
    """4,096 paths of the posterior [paths, nodes]."""
    keys = jax.random.split(key, 4096)
    return jax.vmap(lambda k: sde.posterior(jnp.zeros(1), k)[0][:, 0])(keys)


def bridge_error(hurst: float, make: Callable[..., Any], seed: int) -> float:
    """The largest error of the learned standard deviation over the largest true one."""
    with jax.enable_x64(True):
        first, second, third = jax.random.split(jax.random.key(seed), 3)
        sde = bridge(hurst, make, first)
        moving = eqx.tree_at(lambda s: s.logit, jax.tree.map(eqx.is_inexact_array, sde), False)
        run = fit(
            bridge_loss,
            sde,
            keys_alone,
            optimizer=BRIDGE_ADAM,
            steps=BRIDGE_UPDATES,
            key=second,
            trainable=moving,
        )
        found = np.std(np.asarray(bridge_paths(run.model, third)), axis=0)[1:]
        times = jnp.arange(1, BRIDGE_STEPS + 1) * (BRIDGE_END / BRIDGE_STEPS)
        exact = sde.noise().exact_covariance
        end = jnp.full_like(times, BRIDGE_END)
        pinned = exact(times, end) ** 2 / (exact(end, end) + DEVIATION**2)
        truth = np.sqrt(np.asarray(exact(times, times) - pinned))
        return float(np.max(np.abs(found - truth)) / np.max(truth))


@claim(
    PAPER,
    "bridge-variance",
    cost="slow",
    expected=Expected(
        "largest error along the path of the learned posterior's standard deviation over the "
        "largest true one, by Gaussian conditioning of exact fractional Brownian motion from 0 on "
        "an observation of 0 at time 2 with deviation 0.1, H = 0.3 and 0.7",
        "<=",
        0.1,
        "the paper's figure of its bridges: the empirical variance of the posterior coincides with "
        "the true one; a tenth is what can be told apart on it",
        scaled="control of 2 layers of 64 for 1,000, 100 steps for 200, 1,000 updates for 2,000, "
        "without the mean-reverting bridges",
    ),
    limits="with H = 0.3 the last of the 100 steps alone adds noise of deviation 0.34, which a "
    "control that is constant in it cannot take away: 0.33 is found at the end, where 0.10 is true "
    "(with H = 0.7 and seed 0 the step adds 0.05 and the figure is 0.06, 0.03 after 4,000 updates)",
)
def bridge_variance() -> list[float]:
    return _bridge_errors(control_network)


@claim(
    PAPER,
    "bridge-variance-by-step-noise",
    cost="slow",
    expected=Expected(
        "largest error along the path of the learned posterior's standard deviation over the "
        "largest true one, as for bridge-variance, the law of each step's noise learned instead of "
        "a control",
        "<=",
        0.1,
        "derived: the law of a step's noise holds what limits the claim before this one; the same "
        "tenth",
        scaled="as there; beyond the paper, whose posterior is a control",
    ),
    limits="with H = 0.3 the end is right (0.15, with a control 0.32, where 0.10 is true) but the "
    "path is held too tightly before it: a deviation of 0.24 three steps earlier, where 0.45 is "
    "true; the bound is 0.85 nats below the evidence (with a control 4.1), since 1,000 updates of "
    "two layers of 64 find no gain that rises so late and so fast",
)
def bridge_variance_by_step_noise() -> list[float]:
    return _bridge_errors(noise_network)


def _bridge_errors(make: Callable[..., Any]) -> list[float]:
    return [max(bridge_error(hurst, make, seed) for hurst in (0.3, 0.7)) for seed in SEEDS]


# ---- the Hurst index

HURST = 0.7
SERIES, OBSERVED, STEPS, SAMPLES, UPDATES = 32, 16, 128, 2, 1200
ADAM = adam(0.05, UPDATES)


def synthetic(key: Any) -> Any:
    """Exact fractional Ornstein-Uhlenbeck series from 0, seen with errors [series, observed, 1]."""
    first, second = jax.random.split(key)
    times = jnp.arange(1, STEPS + 1) / STEPS
    exact = markov_fractional(HURST, 2).exact_covariance(*jnp.meshgrid(times, times))
    factor = jnp.linalg.cholesky(exact + 1e-10 * jnp.eye(STEPS))
    motion = factor @ jax.random.normal(first, (STEPS, SERIES), jnp.float64)
    changes = jnp.diff(motion, axis=0, prepend=0)

    def step(x: Any, change: Any) -> Any:
        middle = x + change / 2 - x / (2 * STEPS)
        x = x + change - middle / STEPS
        return x, x

    _, paths = jax.lax.scan(step, jnp.zeros(SERIES), changes)
    every = STEPS // OBSERVED
    errors = DEVIATION * jax.random.normal(second, (OBSERVED, SERIES), jnp.float64)
    return (paths[every - 1 :: every] + errors).T[..., None]


class Models(eqx.Module):
    """For each data set two models: one learns its Hurst index, the other keeps 1/2."""

    free: FractionalSDE
    half: FractionalSDE


def untrained(count: int, make: Callable[..., Any]) -> Models:
    """`count` of each, stacked, all with a Hurst index of 1/2."""
    control = make(SERIES, 1, 5, STEPS, dtype=jnp.float64)
    sde = FractionalSDE(decay, unit, control, jnp.zeros(()), steps=STEPS, fastest=100.0)

    def stacked(leaf: Any) -> Any:
        return jnp.tile(leaf, (count,) + (1,) * leaf.ndim) if eqx.is_array(leaf) else leaf

    many = jax.tree.map(stacked, sde)
    return Models(many, many)


def bound(sde: FractionalSDE, values: Any, key: Any, samples: int) -> Any:
    """Of all series of a data set together."""
    nodes = jnp.arange(1, OBSERVED + 1) * (STEPS // OBSERVED)

    def one(number: Any, key: Any) -> Any:
        seen = GaussianObservations(nodes, values[number], DEVIATION)
        return evidence_bound(sde, seen, jnp.zeros(1), key, samples=samples, args=number)

    return jnp.sum(jax.vmap(one)(jnp.arange(SERIES), jax.random.split(key, SERIES)))


@eqx.filter_jit
def bounds(models: Models, values: Any, key: Any, samples: int) -> Any:
    """Of every data set, [free and half, data sets], both on the same draws."""
    keys = jax.random.split(key, values.shape[0])

    def all_of(stack: FractionalSDE) -> Any:
        return eqx.filter_vmap(bound)(stack, values, keys, samples)

    return jnp.stack([all_of(models.free), all_of(models.half)])


class Loss(eqx.Module):
    """Minus the bounds of all models; they share no parameter, so each learns alone."""

    values: Any

    def __call__(self, models: Models, batch: Any, key: Any) -> Any:
        del batch
        return -jnp.sum(bounds(models, self.values, key, SAMPLES))


@cache
def learned(
    seeds: tuple[int, ...], make: Callable[..., Any] = affine_control, updates: int = UPDATES
) -> tuple[Any, Any]:
    """The Hurst indices [data sets], and the final bounds [free and half, data sets]."""
    with jax.enable_x64(True):
        keys = [jax.random.split(jax.random.key(seed)) for seed in seeds]
        values = jax.vmap(synthetic)(jnp.stack([first for first, _ in keys]))
        models = untrained(len(seeds), make)
        moving = jax.tree.map(eqx.is_inexact_array, models)
        moving = eqx.tree_at(lambda m: m.half.logit, moving, False)
        run = fit(
            Loss(values),
            models,
            keys_alone,
            optimizer=ADAM,
            steps=updates,
            key=keys[0][1],
            trainable=moving,
        )
        last = bounds(run.model, values, keys[-1][1], 64)
        return np.asarray(run.model.free.hurst), np.asarray(last)


_DATA = (
    "32 series of 16 observations with deviation 0.1 of exact fractional Ornstein-Uhlenbeck "
    "processes (type II, rate 1) with H = 0.7"
)
_SCALED = (
    "synthetic series, not the paper's videos; drift and deviations known; affine control, which "
    "holds the exact posterior of short steps"
)


@claim(
    PAPER,
    "hurst-index-by-the-bound",
    cost="slow",
    expected=Expected(
        "error of the Hurst index that maximises the evidence lower bound, from a start of 0.5, "
        + _DATA,
        "<=",
        0.05,
        "derived: 512 increments of known scale over 1/16 tell the index to "
        "(512 * 2 ln(16)^2)^-1/2 = 0.011, twice that with errors as large as half an increment, "
        "twice again for three seeds",
        scaled=_SCALED,
    ),
    limits="the bound, not the data: the exact likelihood of the same series is greatest at 0.72, "
    "0.68 and 0.70, with deviations of 0.02; the bound found is 29 to 46 nats below the evidence "
    "there, 119 to 135 at 1/2, where a step adds more noise; 4,000 updates bring seed 0 from 46 to "
    "about 22 nats and its index from 0.78 to 0.77",
)
def hurst_index_by_the_bound() -> list[float]:
    indices, _ = learned(SEEDS)
    return [abs(float(index) - HURST) for index in indices]


@claim(
    PAPER,
    "hurst-index-by-step-noise",
    cost="slow",
    expected=Expected(
        "error of the Hurst index that maximises the bound, the law of each step's noise learned "
        "(affine in the state), from a start of 0.5, " + _DATA,
        "<=",
        0.05,
        "derived: the bound can be as high as the evidence then, and the data tell the index to "
        "0.011 times four, as with a control",
        scaled="synthetic series, not the paper's videos; drift and deviations known; beyond the "
        "paper, whose posterior is a control",
    ),
)
def hurst_index_by_step_noise() -> list[float]:
    indices, _ = learned(SEEDS, affine_noise)
    return [abs(float(index) - HURST) for index in indices]


@claim(
    PAPER,
    "learned-index-beats-one-half",
    cost="slow",
    expected=Expected(
        "evidence lower bound with the Hurst index learned less that with 1/2, " + _DATA,
        ">=",
        5.0,
        "abstract: optimising the Hurst index; derived: e^5 is decisive evidence for the index",
        unit="nats",
        scaled=_SCALED,
    ),
)
def learned_index_beats_one_half() -> list[float]:
    _, last = learned(SEEDS)
    return [float(free - half) for free, half in last.T]
