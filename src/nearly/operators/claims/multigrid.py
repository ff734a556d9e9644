"""MgNO on Darcy flow, beside FNO and a U-Net at equal parameters and at equal training time."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nearly.core.claim import Expected, Inconclusive, claim
from nearly.operators import families
from nearly.operators.data import Pairs
from nearly.operators.family import relative_errors
from nearly.operators.fno import fno
from nearly.operators.losses import RelativeH1
from nearly.operators.multigrid import TrainedMgNO, mgno
from nearly.operators.training import Normalized, normalized, train
from nearly.training.architectures import unet

PAPER = "mgno"
SEEDS = range(3)
POINTS, SAMPLES, TESTS = 64, 128, 32
STEPS, BATCH = 150, 8
H1 = RelativeH1()
TABLE = (
    "table of Darcy problems, relative L2, all trained on the same H1 loss (figures quoted from "
    "memory): "
)
SCALED = (
    "64 x 64 cells, 128 samples, width 8, 150 steps of 8 for 211 x 211 points, 1000 samples, "
    "width 24, 500 epochs; statistics of channels, not of pixels"
)


class Rival(NamedTuple):
    """An architecture, its rate, and how its steps are dispatched."""

    model: Callable[..., Any]
    rate: float
    dispatch: str


# Parameters: 52,588, 51,137 and 46,337. Rates of MgNO and FNO: the better of 2e-3 and 6e-3 on
# 32 x 32 cells and other keys; the U-Net's is FNO's, not tried.
RIVALS = {
    "MgNO": Rival(partial(mgno, 1, 1, width=8, layers=4, pre=(1, 1, 1, 1, 2)), 2e-3, "steps"),
    "FNO": Rival(
        partial(fno, 1, 1, width=8, modes=(7, 7), projection=64, padding=0.125, periodic=False),
        6e-3,
        "chunks",
    ),
    "U-Net": Rival(partial(unet, 1, 1, width=4, levels=3), 6e-3, "steps"),
}


class Outcome(NamedTuple):
    """Mean relative L2 on held-out samples, that of the outermost cells, seconds of a step."""

    error: float
    ring: float
    step: float


class Stopwatch:
    """Processor seconds of a step of training, its compilation left out."""

    def __init__(self) -> None:
        self.marks: list[tuple[int, float]] = []

    def __call__(self, done: int, total: int, text: str) -> None:
        self.marks.append((done, time.process_time()))

    @property
    def step(self) -> float:
        (first, begun), (last, ended) = self.marks[0], self.marks[-1]
        return (ended - begun) / (last - first)


@lru_cache
def _data(seed: int) -> tuple[Pairs, Pairs, Any]:
    training, held_out, key = jax.random.split(jax.random.key(seed), 3)
    family = families.darcy(reference=POINTS)
    return family.pairs(training, SAMPLES, POINTS), family.pairs(held_out, TESTS, POINTS), key


@lru_cache
def _trained(name: str, seed: int, steps: int = STEPS) -> Outcome:
    data, tests, key = _data(seed)
    start, order = jax.random.split(key)
    rival, watch = RIVALS[name], Stopwatch()
    model = train(
        unshifted(rival.model(start), data),
        data,
        steps=steps,
        batch=BATCH,
        learning_rate=rival.rate,
        schedule="one-cycle",
        weight_decay=1e-4,
        loss=H1,
        key=order,
        progress=watch,
        dispatch=rival.dispatch,
    ).model
    return Outcome(*_errors(model, tests), watch.step)


def unshifted(model: Any, data: Pairs) -> Normalized:
    """The model between the data's statistics, outputs scaled only: u = 0 on the boundary."""
    made = normalized(model, data)
    size = np.sqrt(made.output_mean**2 + made.output_std**2)
    return Normalized(model, made.input_mean, made.input_std, 0 * made.output_mean, size)


def _errors(model: Any, tests: Pairs) -> tuple[float, float]:
    predictions = np.asarray(jax.jit(partial(jax.lax.map, model))(jnp.asarray(tests.inputs)))
    ring = np.ones(tests.outputs.shape[2:], bool)
    ring[1:-1, 1:-1] = False
    return (
        float(relative_errors(predictions, tests.outputs).mean()),
        float(relative_errors(predictions[..., ring], tests.outputs[..., ring]).mean()),
    )


def _for_as_long(name: str, seed: int) -> Outcome:
    """Trained for the processor seconds that MgNO takes, as met with the first seed."""
    ratio = _trained("MgNO", SEEDS[0]).step / _trained(name, SEEDS[0]).step
    return _trained(name, seed, max(10, round(STEPS * ratio)))


def _ratios(rival: Callable[[str, int], Outcome], name: str) -> list[float]:
    return [_trained("MgNO", seed).error / rival(name, seed).error for seed in SEEDS]


# ---- Darcy flow


@claim(
    PAPER,
    "darcy-beside-fno-at-equal-parameters",
    cost="slow",
    expected=Expected(
        "relative L2 of MgNO over that of FNO, Darcy flow, equal parameters and steps",
        "<=",
        0.4,
        TABLE + "MgNO 0.72% and FNO 1.80% on the multiscale problem, the least of its three gains",
        scaled=SCALED,
    ),
    limits="150 steps on 128 samples, where the paper takes 62,500 on 1,000; how much of the "
    "distance is the short training was not measured",
)
def beside_fno() -> list[float]:
    return _ratios(_trained, "FNO")


@claim(
    PAPER,
    "darcy-beside-unet-at-equal-parameters",
    cost="slow",
    expected=Expected(
        "relative L2 of MgNO over that of a U-Net, Darcy flow, equal parameters and steps",
        "<=",
        1.0,
        TABLE + "MgNO is ahead of the U-Net on each problem",
        scaled=SCALED,
    ),
)
def beside_unet() -> list[float]:
    return _ratios(_trained, "U-Net")


@claim(
    PAPER,
    "darcy-beside-fno-at-equal-seconds",
    cost="slow",
    expected=Expected(
        "relative L2 of MgNO over that of FNO, Darcy flow, equal processor seconds of training",
        "<=",
        1.0,
        TABLE + "MgNO is ahead of FNO on each problem, at a comparable time an epoch",
        scaled=SCALED,
    ),
    limits="a step of MgNO takes five times one of FNO on one core (25 and 5 ms at 32 x 32), so "
    "that it gets a fifth of the steps",
)
def beside_fno_in_time() -> list[float]:
    return _ratios(_for_as_long, "FNO")


@claim(
    PAPER,
    "darcy-beside-unet-at-equal-seconds",
    cost="slow",
    expected=Expected(
        "relative L2 of MgNO over that of a U-Net, Darcy flow, equal processor seconds of training",
        "<=",
        1.0,
        TABLE + "MgNO is ahead of the U-Net on each problem, at a shorter time an epoch",
        scaled=SCALED,
    ),
)
def beside_unet_in_time() -> list[float]:
    return _ratios(_for_as_long, "U-Net")


@claim(
    PAPER,
    "boundary-values-beside-fno",
    cost="slow",
    expected=Expected(
        "relative L2 on the outermost ring of cells, where u nearly vanishes: MgNO's over FNO's, "
        "Darcy flow, equal parameters and steps",
        "<=",
        0.5,
        'derived: "seamlessly accommodates diverse boundary conditions" (abstract), while modes '
        "of a padded box do not know them; less than half is asked",
        scaled=SCALED,
    ),
    limits="zeros beyond the outermost cells lie half a cell behind the wall: they say where it "
    "is and impose nothing, and in 150 steps the ring is fitted no better than the rest",
)
def boundary_values() -> list[float]:
    return [_trained("MgNO", seed).ring / _trained("FNO", seed).ring for seed in SEEDS]


@claim(
    PAPER,
    "darcy-at-the-published-size",
    cost="gpu",
    expected=Expected(
        "mean relative L2 of Darcy flow",
        "<=",
        0.003,
        TABLE + "MgNO 0.15% on the smooth problem; twice that is left for other samples and for "
        "statistics of channels instead of pixels",
        scaled="256 x 256 cells for 211 x 211 points, which cannot be halved six times",
    ),
)
def published_size() -> list[float]:
    if jax.default_backend() == "cpu":
        raise Inconclusive("needs a GPU: 62,500 steps of 5 V-cycles of 24 channels on 256 x 256")
    family = families.darcy(reference=256)
    training, held_out, key = jax.random.split(jax.random.key(0), 3)
    builder = TrainedMgNO(width=24, layers=5, steps=62_500, learning_rate=5e-4)
    model = builder(family.pairs(training, 1000, 256), key=key)
    return [_errors(model, family.pairs(held_out, 100, 256))[0]]


# ---- a V-cycle can be learned

LAPLACE_POINTS, LAPLACE_WIDTH = 16, 16


@claim(
    PAPER,
    "one-linear-layer-learns-poisson",
    cost="medium",
    expected=Expected(
        "relative L2 of one layer without activation, trained on -Laplacian u = f, held-out f",
        "<=",
        0.01,
        "derived: linear maps are parameterised by V-cycles because a few of these invert an "
        "elliptic operator; a textbook cycle leaves a tenth, 16 channels have room for two",
        scaled="16 x 16 points, five-point differences, f smooth and random, 1500 steps of 16",
    ),
)
def learned_v_cycle() -> list[float]:
    return [_learned_v_cycle(jax.random.key(seed)) for seed in SEEDS]


def _learned_v_cycle(key: Any) -> float:
    draws, start, order = jax.random.split(key, 3)
    data = poisson(draws, 1088)
    layer = mgno(
        1,
        1,
        start,
        width=LAPLACE_WIDTH,
        layers=1,
        pre=(1, 1, 1, 2),
        post=(1, 1, 1),
        activation=_identity,
    )
    model = train(
        unshifted(layer, data),
        data[:1024],
        steps=1500,
        batch=16,
        learning_rate=5e-3,
        schedule="one-cycle",
        key=order,
        dispatch="steps",
    ).model
    return _errors(model, data[1024:])[0]


def _identity(x: Any) -> Any:
    return x


def poisson(key: Any, count: int) -> Pairs:
    """Random f, four times smoothed white noise, and the solutions of the five-point scheme."""
    n = LAPLACE_POINTS
    f = jax.random.normal(key, (count, 1, n, n), jnp.float32)
    for axis in (2, 3) * 4:
        f = f + 0.5 * (jnp.roll(f, 1, axis) + jnp.roll(f, -1, axis))
    difference = (2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)) * (n + 1) ** 2
    values, modes = np.linalg.eigh(difference)
    spectrum = modes.T @ np.asarray(f, np.float64) @ modes
    u = modes @ (spectrum / (values[:, None] + values)) @ modes.T
    box = families.darcy().grid
    return Pairs(np.asarray(f), u.astype(np.float32), np.zeros((count, 0), np.float32), box)
