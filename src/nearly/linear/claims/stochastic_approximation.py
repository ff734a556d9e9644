"""Linear stochastic approximation: how wrong the last iterate and the average are, in law."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nearly.core.claim import Expected, claim
from nearly.linear import stochastic_approximation as lsa

SEEDS = (0, 1, 2)
SCALAR = lsa.Discrete(np.array([[[-1.0]], [[3.0]]]), np.full(2, 0.5), np.zeros(1), np.eye(1))
PLANE = lsa.Discrete(
    np.array([[[2.0, 1.0], [0.0, 0.5]], [[0.0, -1.0], [1.0, 1.5]], [[1.0, 0.0], [-1.0, 1.0]]]),
    np.array([0.5, 0.25, 0.25]),
    np.array([1.0, -1.0]),
    0.1 * np.eye(2),
)
CHAIN = "A_n = -1 or 3 with equal odds, b_n standard normal"


@claim(
    "linear-stochastic-approximation",
    "the-covariance-is-the-step-times-lyapunovs",
    cost="fast",
    expected=Expected(
        "distance of the stationary covariance over the step from Lyapunov's solution, at step "
        "0.02 over that at 0.01, in two dimensions",
        "within",
        (1.9, 2.1),
        "the paper's expansion: alpha Sigma + O(alpha^2), so the distance is of first order",
    ),
)
def lyapunov() -> float:
    limit = lsa.lyapunov_covariance(PLANE.mean, PLANE.noise_covariance)
    distances = [
        np.linalg.norm(lsa.stationary_covariance(PLANE, step) / step - limit)
        for step in (0.02, 0.01)
    ]
    return float(distances[0] / distances[1])


@claim(
    "linear-stochastic-approximation",
    "moments-exist-up-to-one-over-the-step",
    cost="fast",
    expected=Expected(
        f"tail index times the step at step 0.01, {CHAIN}",
        "within",
        (0.48, 0.54),
        "the paper: the p-th moment is bounded for steps below c/p; derived: "
        "E|1 - alpha A|^k = 1 at k = (1 + 5 alpha/2) / (2 alpha) + O(alpha)",
    ),
    limits="our derivation, not the paper: it took A for normal, while k alpha tends to the root "
    "0.609 of E exp(-x A) = 1",
)
def tail_index_law() -> float:
    step = 0.01
    return step * lsa.tail_index(1 - step * SCALAR.matrices[:, 0, 0], SCALAR.probabilities)


@claim(
    "linear-stochastic-approximation",
    "half-the-step-doubles-the-moments",
    cost="fast",
    expected=Expected(
        f"tail index at step 0.01 over that at step 0.02, {CHAIN}",
        "within",
        (1.9, 2.1),
        "the paper: the p-th moment is bounded for steps below c/p",
    ),
)
def tail_index_doubles() -> float:
    indices = [
        lsa.tail_index(1 - step * SCALAR.matrices[:, 0, 0], SCALAR.probabilities)
        for step in (0.01, 0.02)
    ]
    return indices[0] / indices[1]


@claim(
    "linear-stochastic-approximation",
    "the-tails-are-a-power",
    cost="medium",
    expected=Expected(
        f"Hill estimate from the 500 largest of 200,000 last iterates at step 0.3, {CHAIN}",
        "within",
        (2.29, 2.99),
        "derived: Kesten's index, the root k = 2.64 of E|1 - alpha A|^k = 1, and three standard "
        "errors k / sqrt(500); the paper: no exponential tail bound can hold",
    ),
)
def tails() -> Sequence[float]:
    return [lsa.hill_estimator(_last(0.3, 200_000, 60, seed), 500) for seed in SEEDS]


@claim(
    "linear-stochastic-approximation",
    "the-last-iterate-has-the-stationary-variance",
    cost="medium",
    expected=Expected(
        f"variance of 50,000 last iterates over the predicted one, steps 0.1 and 0.05, {CHAIN}",
        "within",
        (0.95, 1.05),
        "derived: alpha^2 / (1 - E(1 - alpha A)^2), and four standard errors",
    ),
)
def variance() -> Sequence[float]:
    return [_variance_ratio(step, seed) for step in (0.1, 0.05) for seed in SEEDS]


@claim(
    "linear-stochastic-approximation",
    "the-average-has-the-optimal-covariance",
    cost="medium",
    expected=Expected(
        "n times the variance of the average of n = 2,000 iterates over A^-1 Sigma A^-T with the "
        f"stationary noise of step 0.05, 4,000 chains, {CHAIN}",
        "within",
        (0.91, 1.09),
        "the paper's leading term of the Polyak-Ruppert average; four standard errors",
    ),
)
def averaging() -> Sequence[float]:
    return [_average_ratio(0.05, seed) for seed in SEEDS]


def _variance_ratio(step: float, seed: int) -> float:
    sample = _last(step, 50_000, int(12 / step), seed)
    return float(np.mean(sample**2) / lsa.stationary_covariance(SCALAR, step)[0, 0])


def _average_ratio(step: float, seed: int, steps: int = 2000) -> float:
    burn_in = int(12 / step)
    keys = jax.random.split(jax.random.key(seed), 4000)
    averages = np.asarray(_chains(steps + burn_in, burn_in)(keys, step).average)
    return float(steps * np.mean(averages**2) / lsa.averaged_covariance(SCALAR, step)[0, 0])


def _last(step: float, chains: int, steps: int, seed: int) -> np.ndarray:
    keys = jax.random.split(jax.random.key(seed), chains)
    return np.asarray(_chains(steps, 0)(keys, step).last)[:, 0].astype(np.float64)


@lru_cache(8)
def _chains(steps: int, burn_in: int) -> Any:
    """Independent chains from 0, one a key."""

    def run(key: Any, step: Any) -> lsa.Iterates:
        start = jnp.zeros(1)
        return lsa.simulate(SCALAR.draw, start, step, steps=steps, burn_in=burn_in, key=key)

    return jax.jit(jax.vmap(run, in_axes=(0, None)))
