"""What contextual self-modulation promises for environments that were not trained on."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp

from nearly.core.claim import Expected, claim
from nearly.dynamics.context import runge_kutta
from nearly.dynamics.context_peers import PerEnvironment, coda, one_for_all, one_for_each
from nearly.dynamics.context_training import conditioned, ncf_t1
from nearly.dynamics.problems.environments import (
    AdaptedField,
    EnvironmentLearning,
    lotka_volterra_environments,
    mean_square,
)

PAPER = "neural-context-flows"
SEEDS = range(3)
STEPS = 1500
SCALED = (
    "contexts of 32 numbers, width 32, a pool of 1, 1 substep, 1,500 gradients at 3e-3, 500 to "
    "adapt; paper: 1,024, 64, 6, 5, 24,000 or more at 1e-4, 1,500 or more"
)


def each(problem: EnvironmentLearning, steps: int, *, key: Any) -> AdaptedField:
    """Networks for the new environments alone: nobody asks for the known ones here."""
    new = one_for_each.train(problem, problem.adapt, steps, key=key)
    return AdaptedField(PerEnvironment(), None, new)


METHODS: dict[str, Callable[..., AdaptedField]] = {
    "t1": ncf_t1,
    "order 0": conditioned,
    "one for all": one_for_all,
    "one for each": each,
    "coda": coda,
}


@cache
def adapted(name: str, seed: int) -> float:
    """Mean square error in the new environments, after training and adaptation by one method."""
    problem = lotka_volterra_environments(seed=1000 + seed)
    model = METHODS[name](problem, STEPS, key=jax.random.key(seed))
    held = problem.test.new
    starts, times = jnp.asarray(held.starts), jnp.asarray(held.times)
    solve = jax.jit(lambda m, y: runge_kutta(m.field, y, times, m.new, problem.substeps))
    return mean_square(solve(model, starts), held)


def ratios(rival: str) -> list[float]:
    """The context flow's error over a rival's, for each seed."""
    return [adapted("t1", seed) / adapted(rival, seed) for seed in SEEDS]


@claim(
    PAPER,
    "self-modulation-lowers-adaptation-error",
    cost="slow",
    expected=Expected(
        "mean square error in four new Lotka-Volterra environments after adaptation: NCF-t1 over "
        "the same without self-modulation (order 0)",
        "<=",
        1.0,
        "the paper: self-modulation raises the loss of training and lowers that after adaptation",
        scaled=SCALED,
    ),
)
def self_modulation_lowers_adaptation_error() -> list[float]:
    return ratios("order 0")


@claim(
    PAPER,
    "far-below-one-for-all",
    cost="slow",
    expected=Expected(
        "mean square error in four new Lotka-Volterra environments: NCF-t1 after adaptation over "
        "one neural ODE for all environments",
        "<=",
        0.1,
        "derived: one field for all leaves at least the variance between environments, some 0.06; "
        "the paper's error is 1e-5 to 1e-4, three orders below, of which two are granted to a "
        "training that is shorter",
        scaled=SCALED,
    ),
)
def far_below_one_for_all() -> list[float]:
    return ratios("one for all")


@claim(
    PAPER,
    "below-one-for-each",
    cost="slow",
    expected=Expected(
        "mean square error in four new Lotka-Volterra environments: NCF-t1 adapted to one "
        "trajectory over neural ODEs trained on that trajectory alone",
        "<=",
        0.1,
        "derived: a network from scratch knows one orbit, and is judged on 32 others that lie up "
        "to 0.5 beside it; the context of a known form has two parameters to find",
        scaled=SCALED,
    ),
)
def below_one_for_each() -> list[float]:
    return ratios("one for each")


@claim(
    PAPER,
    "beside-coda",
    cost="slow",
    expected=Expected(
        "mean square error in four new Lotka-Volterra environments after adaptation: NCF-t1 over "
        "CoDA, weights affine in two numbers",
        "<=",
        1.0,
        "abstract: state-of-the-art out-of-distribution performance on 5 out of 6 problems, "
        "Lotka-Volterra among the six",
        scaled=SCALED,
    ),
    limits="The field is trained less far, not adapted worse: after 3,000 gradients on other data "
    "the error in known environments was 7e-4 with self-modulation, 4e-5 with CoDA, and in new "
    "ones 0.8 and 1.7 times that.",
)
def beside_coda() -> list[float]:
    return ratios("coda")
