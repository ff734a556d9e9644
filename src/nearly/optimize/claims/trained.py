"""What the claims about optimizers share: a tuned learning rate, and a run with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import numpy as np

from nearly.core.tally import tally
from nearly.optimize.optimizers import RATES
from nearly.optimize.problems.finite_sum import FiniteSum, WithRate

TUNING = 1000
"""The seed of the key that rates are tuned with: no run that is judged uses it."""


def tuned(
    problem: FiniteSum, make: Callable[[Any], Any], steps: int, rates: tuple[float, ...] = RATES
) -> WithRate:
    """The optimizer with the learning rate, out of the catalogue's grid, that ends lowest."""
    methods = [WithRate(make, rate) for rate in rates]
    errors = problem.trials(methods, steps, key=jax.random.key(TUNING))
    return methods[int(np.nanargmin(np.asarray(errors, float)))]


def trained(
    problem: FiniteSum, method: WithRate, steps: int, seed: int
) -> tuple[float, Mapping[str, float]]:
    """The training loss after so many steps, and the bill."""
    standin = problem.build(method, steps, key=jax.random.key(seed))
    with tally() as counts:
        value = jax.block_until_ready(_apply(problem, standin, jax.random.key(seed)))
    return problem.errors(jax.device_get(value))[problem.error_name], counts.read()


@eqx.filter_jit
def _apply(problem: FiniteSum, standin: Any, key: Any) -> Any:
    """Compiled once for all seeds."""
    return problem.apply(standin, key=key)
