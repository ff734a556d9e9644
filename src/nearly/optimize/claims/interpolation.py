"""What is promised, proven and withdrawn of acceleration in batches under interpolation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nearly.core.claim import Expected, claim
from nearly.optimize.accelerate import (
    best_parameters,
    interpolation_sgd,
    semi_stochastic_acceleration,
    unsafe_interpolation_sgd,
)
from nearly.optimize.claims.schedules import TUNING, Make, best, runs
from nearly.optimize.optimizers import RATES
from nearly.optimize.problems.finite_sum import WithRate
from nearly.optimize.problems.sums import interpolating_least_squares, strong_growth_counterexample

SEEDS = (0, 1, 2)
RUNS = 100

# On the counterexample rho is the number of unknowns, L = mu = 1, and the start is 1 away from the
# solution in each of them: f_0 + mu |x_0 - x*|^2 / 2 is that number too.


def excess(optimizer: Any, steps: int, seed: int, *, exact: bool = False) -> float:
    """The mean of f at w over runs on the counterexample."""
    problem = strong_growth_counterexample()
    inputs, targets = jnp.asarray(problem.inputs), jnp.asarray(problem.targets)
    size = inputs.shape[1]

    def gradient(y: Any, row: Any, target: Any) -> Any:
        return jax.grad(lambda x: jnp.sum(problem.task.losses(x, row, target)) / len(row))(y)

    def run(key: Any) -> Any:
        def advance(carry: Any, i: Any) -> Any:
            y, state = carry
            extra = {"exact_grad": gradient(y, inputs, targets)} if exact else {}
            batch = gradient(y, inputs[i][None], targets[i][None])
            updates, state = optimizer.update(batch, state, y, **extra)
            return (y + updates, state), None

        start = jnp.zeros(size)
        chosen = jax.random.randint(key, (steps,), 0, size)
        y, state = jax.lax.scan(advance, (start, optimizer.init(start)), chosen)[0]
        w = best_parameters(state, y)
        return jnp.mean(problem.task.losses(w, inputs, targets))

    keys = jax.random.split(jax.random.key(seed), RUNS)
    return float(jnp.mean(jax.jit(jax.vmap(run))(keys)))


def over_bound(optimizer: Any, factor: float, steps: int, *, exact: bool = False) -> list[float]:
    """Decimal digits by which the mean of f exceeds `factor^steps` times what it started from."""
    size = strong_growth_counterexample().inputs.shape[1]
    with jax.enable_x64(True):
        means = [excess(optimizer, steps, seed, exact=exact) for seed in SEEDS]
    return [math.log10(mean / size) - steps * math.log10(factor) for mean in means]


@claim(
    "accelerated-sgd-interpolation",
    "rate-of-the-abstract",
    cost="medium",
    expected=Expected(
        "decimal digits by which the mean of f, q = 1 / (rho L), exceeds the rate "
        "(1 - sqrt(mu / (rho L)))^k on half a squared norm asked for coordinate by coordinate, "
        "k = 600 (mean of 100 runs)",
        "<=",
        0.0,
        "abstract: the dependence on the strong growth constant is its root",
        scaled="100 unknowns: rho = 100, L = mu = 1",
    ),
    limits="withdrawn by its authors: the long step's noise is rho times what the short one's "
    "progress pays for; no combination of the gradients seen can have that rate here",
)
def rate_of_the_abstract() -> list[float]:
    return over_bound(unsafe_interpolation_sgd(0.01, 1.0), 1 - 100**-0.5, 600)


@claim(
    "accelerated-sgd-interpolation",
    "rate-that-is-proven",
    cost="medium",
    expected=Expected(
        "decimal digits by which the mean of f, q = 1 / (rho^2 L), exceeds the rate "
        "(1 - sqrt(mu / L) / rho)^k on the same problem, k = 600 (mean of 100 runs)",
        "<=",
        0.0,
        "derived: estimating sequences pay for the noise of the long step if q <= 1 / (rho^2 L)",
        scaled="100 unknowns: rho = 100, L = mu = 1",
    ),
)
def rate_that_is_proven() -> list[float]:
    return over_bound(interpolation_sgd(0.01, 100.0, 1.0), 1 - 1 / 100, 600)


@claim(
    "accelerated-sgd-interpolation",
    "rate-of-the-semi-stochastic-method",
    cost="medium",
    expected=Expected(
        "decimal digits by which the mean of f, q = 1 / (rho L) and exact gradients in the long "
        "step, exceeds the rate (1 - sqrt(mu / (rho L)))^k on the same problem, k = 200 (mean of "
        "100 runs)",
        "<=",
        0.0,
        "theorem of the second version: the root of rho with exact gradients in the long step",
        scaled="100 unknowns: rho = 100, L = mu = 1",
    ),
)
def rate_of_the_semi_stochastic() -> list[float]:
    method = semi_stochastic_acceleration(0.01, 1.0)
    return over_bound(method, 1 - 100**-0.5, 200, exact=True)


def _accelerated(growth: float) -> Callable[[Any], Any]:
    return lambda rate: interpolation_sgd(rate, growth)


@claim(
    "accelerated-sgd-interpolation",
    "no-worse-than-sgd",
    cost="medium",
    expected=Expected(
        "training loss of accelerated over plain SGD after 1000 steps, least squares that one "
        "vector fits, the learning rate tuned for both, rho the number of batches 200 / 8",
        "<=",
        1.0,
        "abstract: stochastic acceleration is no worse than SGD",
        scaled="100 unknowns, condition 100, batches of 8",
    ),
)
def no_worse_than_sgd() -> list[float]:
    problem = interpolating_least_squares()
    ours, theirs = _accelerated(200 / 8), optax.sgd

    def losses(make: Make) -> np.ndarray:
        rate = RATES[best(runs(problem, make, RATES, 1000, TUNING))]
        return np.array([runs(problem, make, [rate], 1000, s)[0]["training loss"] for s in SEEDS])

    own = losses(lambda rate: WithRate(ours, rate))
    return (own / losses(lambda rate: WithRate(theirs, rate))).tolist()
