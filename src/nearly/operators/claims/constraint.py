"""Hard constraints on the whole grid and by experts, beside the soft constraint."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import equinox as eqx
import jax
import numpy as np

from nearly.core.claim import Expected, Inconclusive, claim
from nearly.operators.constraint import constrained_loss
from nearly.operators.problems.sorption import (
    Sorption,
    expert_constraints,
    one_constraint,
    soft_constraint,
)

PAPER = "pi-hc-moe"
SEEDS = 3
STEPS = 200
# A first run cut time into four instead of space (a misreading of the paper's 1 x 4, time first):
# its experts reached 17% in the median, and one constraint 6%.
TIMED = 5
METHODS = {"soft": soft_constraint, "one": one_constraint, "experts": expert_constraints}
SCALED = (
    "nonlinear diffusion with the sorption law, initial values compatible with the boundary; 32^2 "
    "points of 1024 x 101, an FNO of width 16 with 6 modes, 200 steps of 6 samples, 3 seeds"
)
RESULTS = (
    "results, 1-D diffusion-sorption: relative L2 14.79% by experts, 48.05% by one constraint, "
    "805.58% by the soft constraint (figures quoted from memory)"
)


@lru_cache
def _errors() -> Mapping[str, np.ndarray]:
    """The held-out error that every method reaches in equal steps, for each seed."""
    with jax.enable_x64(True):
        problem = Sorption()
        return {name: _error(problem, method, STEPS) for name, method in METHODS.items()}


def _error(problem: Sorption, method: Any, steps: int) -> np.ndarray:
    keys = [jax.random.key(seed) for seed in range(SEEDS)]
    models = [problem.trained(method, steps, key).model for key in keys]
    found = [problem.errors(problem.apply(model, key=keys[0])) for model in models]
    return np.array([each["relative L2"] for each in found])


@claim(
    PAPER,
    "experts-error",
    cost="slow",
    expected=Expected("held-out relative L2, four experts", "<=", 0.1479, RESULTS, scaled=SCALED),
)
def experts_error() -> list[float]:
    return list(_errors()["experts"])


@claim(
    PAPER,
    "experts-beat-one-constraint",
    cost="slow",
    expected=Expected(
        "relative L2 by one constraint over that by four experts, equal steps",
        ">=",
        3.2,
        RESULTS,
        scaled=SCALED,
    ),
    limits="One constraint reaches 4.5% here, a tenth of the published error: 16 basis fields span "
    "solutions that are smooth on 32^2 points, and cutting the grid only takes data from a solve.",
)
def one_over_experts() -> list[float]:
    found = _errors()
    return list(found["one"] / found["experts"])


@claim(
    PAPER,
    "one-constraint-beats-the-soft-one",
    cost="slow",
    expected=Expected(
        "relative L2 by the soft constraint over that by one hard constraint, equal steps",
        ">=",
        16.8,
        RESULTS,
        scaled=SCALED,
    ),
    limits="The soft constraint does not diverge here as in the paper (806%): from initial values "
    "that suit the boundary it reaches 11%.",
)
def soft_over_one() -> list[float]:
    found = _errors()
    return list(found["soft"] / found["one"])


@claim(
    PAPER,
    "experts-train-faster",
    cost="medium",
    expected=Expected(
        "seconds of a gradient with one constraint over those with four experts",
        ">=",
        2.0,
        "results, 1-D diffusion-sorption: training is 2 to 3 times faster by experts (quoted from "
        "memory)",
        scaled=f"{SCALED}; one CPU core, untrained networks, the experts one after the other",
    ),
    limits="On one core the experts' work adds up, and a batch iterates until the slowest of 24 "
    "solves is done, not of 6; the published gain is that of running them side by side.",
)
def seconds_ratio() -> list[float]:
    with jax.enable_x64(True):
        problem = Sorption()
        return [_seconds_ratio(problem, jax.random.key(seed)) for seed in range(SEEDS)]


def _seconds_ratio(problem: Sorption, key: Any) -> float:
    """The median over alternating pairs."""
    fields = problem.fields(key, problem.batch)
    one, experts = (method.network(problem, key) for method in (one_constraint, expert_constraints))
    _seconds(one, fields)
    _seconds(experts, fields)
    pairs = [_seconds(one, fields) / _seconds(experts, fields) for _ in range(TIMED)]
    return float(np.median(pairs))


def _seconds(model: Any, fields: Any) -> float:
    begun = time.perf_counter()
    jax.block_until_ready(_gradient(model, fields))
    return time.perf_counter() - begun


@eqx.filter_jit
@eqx.filter_grad
def _gradient(model: Any, fields: Any) -> Any:
    return jax.vmap(lambda field: constrained_loss(model, field))(fields).mean()


@claim(
    PAPER,
    "experts-error-on-a-fine-grid",
    cost="gpu",
    expected=Expected(
        "held-out relative L2, four experts",
        "<=",
        0.1479,
        RESULTS,
        scaled="initial values compatible with the boundary; 256^2 points of 1024 x 101",
    ),
)
def fine_experts_error() -> list[float]:
    if jax.default_backend() == "cpu":
        raise Inconclusive("needs a GPU: least squares at 65,536 points, 6 x 4 of them a step")
    with jax.enable_x64(True):
        problem = Sorption(points=256, width=64, modes=8)
        return list(_error(problem, expert_constraints, 5000))
