"""What is promised of SGD with model building (`sgd-model-building`)."""

from __future__ import annotations

from typing import Any

import numpy as np
import optax

from nearly.core.claim import Expected, claim
from nearly.optimize.claims.schedules import SEEDS, TUNING, Make, best, runs, tuned
from nearly.optimize.model_building import model_building_sgd
from nearly.optimize.problems.finite_sum import FiniteSum, WithRate
from nearly.optimize.problems.sums import autoencoder_digits, mlp_digits

GRID = tuple(float(f"{rate:.3g}") for rate in np.geomspace(0.05, 5, 9))


def _model_building(rate: float) -> WithRate:
    return WithRate(model_building_sgd, rate)


def _sgd(rate: float) -> WithRate:
    return WithRate(optax.sgd, rate)


def _adam(rate: float) -> WithRate:
    return WithRate(optax.adam, rate)


@claim(
    "sgd-model-building",
    "faster-than-sgd-untuned",
    cost="slow",
    expected=Expected(
        "training loss of SMB at its default rate .5 over that of SGD at the best of 9 rates from "
        ".05 to 5, after 500 steps",
        "<=",
        1.0,
        "abstract: faster convergence, with less tuning",
        scaled="64-64-10 network on the digits, batches of 64",
    ),
    limits="at .5 no trial is rejected here, so that SMB is SGD, whose best rate is the grid's "
    "last, 5, at which one trial in twenty is rejected",
)
def faster_than_sgd() -> list[float]:
    problem = mlp_digits()
    rate = GRID[best(runs(problem, _sgd, GRID, 500, TUNING))]

    def loss(make: Make, rate: float, seed: int) -> float:
        return runs(problem, make, [rate], 500, seed)[0]["training loss"]

    return [loss(_model_building, 0.5, s) / loss(_sgd, rate, s) for s in SEEDS]


@claim(
    "sgd-model-building",
    "generalises-as-adam-does",
    cost="slow",
    expected=Expected(
        "share of wrong labels on the test samples of SMB at its default rate .5, minus that of "
        "tuned Adam, after 500 steps",
        "<=",
        0.01,
        "abstract: performance comparable to other adaptive methods; within a percentage point",
        scaled="64-64-10 network on the digits, batches of 64",
    ),
)
def generalises_as_adam() -> list[float]:
    problem = mlp_digits()
    rivals = tuned(problem, _adam, 500)
    own = [runs(problem, _model_building, [0.5], 500, seed)[0] for seed in SEEDS]
    return [a["test mistakes"] - b["test mistakes"] for a, b in zip(own, rivals, strict=True)]


@claim(
    "sgd-model-building",
    "forgives-the-learning-rate",
    cost="slow",
    expected=Expected(
        "how many of 9 learning rates from .05 to 5 end within twice the least training loss of "
        "both methods, SMB minus SGD, after 500 steps",
        ">=",
        1.0,
        "abstract: SMB requires less tuning; one rate is the least that can be called less",
        scaled="64-64-10 network on the digits, batches of 64",
    ),
    limits="SMB differs from SGD only where trials are rejected, at 5 one in twenty of them: the "
    "grid does not reach the rates at which SGD fails, and a rate that is too short stays so",
)
def forgives_the_rate() -> list[float]:
    return _more_usable(mlp_digits(), _model_building)


def _more_usable(problem: FiniteSum, ours: Make) -> list[float]:
    """How many more rates end within twice the least loss of both than do with SGD."""

    def losses(make: Make, seed: int) -> np.ndarray:
        found = [r["training loss"] for r in runs(problem, make, GRID, 500, seed)]
        return np.nan_to_num(found, nan=np.inf)

    def more(seed: int) -> float:
        own, other = losses(ours, seed), losses(_sgd, seed)
        enough = 2 * min(own.min(), other.min())
        return float(np.sum(own <= enough) - np.sum(other <= enough))

    return [more(seed) for seed in SEEDS]


def _self_scheduled(rate: Any) -> Any:
    return model_building_sgd(rate, epoch=22)  # 1438 samples in batches of 64


@claim(
    "sgd-model-building",
    "forgives-the-learning-rate-it-schedules",
    cost="slow",
    expected=Expected(
        "how many of 9 learning rates from .05 to 5 end within twice the least training loss of "
        "both methods, SMB with its automatic schedule minus SGD, after 500 steps",
        ">=",
        1.0,
        "abstract: SMB requires less tuning; one rate is the least that can be called less",
        scaled="64-128-32-128-64 autoencoder of the digits, batches of 64",
    ),
)
def forgives_the_rate_it_schedules() -> list[float]:
    return _more_usable(autoencoder_digits(), lambda rate: WithRate(_self_scheduled, rate))
