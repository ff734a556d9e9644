"""Latent spectral models on Darcy flow, beside their own U-Net and FNO."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nearly.core.claim import Expected, Inconclusive, claim
from nearly.operators import families
from nearly.operators.data import Pairs
from nearly.operators.family import relative_errors
from nearly.operators.fno import fno
from nearly.operators.latent_spectral import TrainedLSM, latent_spectral_model
from nearly.operators.training import normalized, train

PAPER = "latent-spectral-models"
SEEDS = range(3)
POINTS, SAMPLES, TESTS = 32, 256, 64
STEPS, BATCH = 200, 8
TABLE = "table of benchmarks, Darcy at 85 x 85: LSM 0.0065, U-Net 0.0080, FNO 0.0108"
SCALED = (
    "32 x 32 cells, 256 samples, width 16 and 3 scales, 200 steps of 8 for 85 x 85, 1000 samples, "
    "width 64 and 5 scales, 25,000 steps of 20; group normalisation for batch normalisation"
)

# Parameters: 78,097, 68,785 and 84,513. Rate and schedule: the same for all.
BLOCKS = {"width": 16, "scales": 3, "patch": 4, "heads": 8, "projection": 64}
RIVALS: dict[str, tuple[Callable[..., Any], str]] = {
    "LSM": (partial(latent_spectral_model, 1, 1, **BLOCKS), "steps"),
    "without blocks": (partial(latent_spectral_model, 1, 1, **BLOCKS, tokens=0), "steps"),
    "FNO": (
        partial(fno, 1, 1, width=12, modes=(6, 6), projection=64, padding=0.125, periodic=False),
        "chunks",
    ),
}


@lru_cache
def _data(seed: int) -> tuple[Pairs, Pairs, Any]:
    training, held_out, key = jax.random.split(jax.random.key(seed), 3)
    family = families.darcy(reference=POINTS)
    return family.pairs(training, SAMPLES, POINTS), family.pairs(held_out, TESTS, POINTS), key


@lru_cache
def _error(name: str, seed: int) -> float:
    data, tests, key = _data(seed)
    start, order = jax.random.split(key)
    make, dispatch = RIVALS[name]
    model = train(
        normalized(make(start), data),
        data,
        steps=STEPS,
        batch=BATCH,
        learning_rate=3e-3,
        weight_decay=1e-4,
        key=order,
        dispatch=dispatch,
    ).model
    return _judged(model, tests)


def _judged(model: Any, tests: Pairs) -> float:
    predictions = jax.jit(partial(jax.lax.map, model))(jnp.asarray(tests.inputs))
    return float(relative_errors(np.asarray(predictions), tests.outputs).mean())


@claim(
    PAPER,
    "darcy-beside-its-unet-without-spectral-blocks",
    cost="slow",
    expected=Expected(
        "relative L2 of the latent spectral model over that of the same U-Net without its blocks, "
        "Darcy flow",
        "<=",
        1.0,
        TABLE,
        scaled=SCALED,
    ),
)
def beside_unet() -> list[float]:
    return [_error("LSM", seed) / _error("without blocks", seed) for seed in SEEDS]


@claim(
    PAPER,
    "darcy-beside-fno-at-equal-parameters",
    cost="slow",
    expected=Expected(
        "relative L2 of the latent spectral model over that of FNO, Darcy flow, equal parameters "
        "and steps",
        "<=",
        1.0,
        TABLE,
        scaled=SCALED,
    ),
)
def beside_fno() -> list[float]:
    return [_error("LSM", seed) / _error("FNO", seed) for seed in SEEDS]


@claim(
    PAPER,
    "darcy-at-the-published-size",
    cost="gpu",
    expected=Expected(
        "mean relative L2 of Darcy flow",
        "<=",
        0.0065,
        TABLE,
        scaled="84 x 84 cells for 85 x 85 points; group normalisation for batch normalisation",
    ),
)
def published_size() -> list[float]:
    if jax.default_backend() == "cpu":
        raise Inconclusive("needs a GPU: 25,000 steps of a model of width 64 and 5 scales")
    family = families.darcy(reference=84)
    training, held_out, key = jax.random.split(jax.random.key(0), 3)
    builder = TrainedLSM(
        width=64,
        scales=5,
        patch=6,
        heads=8,
        projection=128,
        steps=25_000,
        batch=20,
        learning_rate=5e-4,
        schedule="halving",
    )
    model = builder(family.pairs(training, 1000, 84), key=key)
    return [_judged(model, family.pairs(held_out, 200, 84))]
