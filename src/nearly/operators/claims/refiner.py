"""PDE-Refiner on the Kuramoto-Sivashinsky equation, beside the same network as a plain predictor.

A rollout's figure is the mean time for which its correlation with the reference stays above 0.8,
over 16 held-out trajectories. Every network is trained for the same steps, batches and rates unless
a claim says otherwise; the plain predictor is the refiner's own network with no refinement.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nearly.core.claim import Expected, Inconclusive, claim
from nearly.operators import families
from nearly.operators.data import Trajectories
from nearly.operators.problems.rollout import rollouts
from nearly.operators.refiner import NoisePrediction, PDERefiner, denoising_loss
from nearly.operators.rollout_losses import SobolevLoss, pushforward_loss
from nearly.pde.metrics import correlation_time

SEEDS = (0, 1, 2)
POINTS, TRAINING, TESTS = 64, 256, 16
SCALED = (
    "length 32 with 64 points instead of about 64 with 256, a U-Net of width 16 and 4,000 steps of "
    "32 instead of width 64 and 400 epochs of 2,048 trajectories in batches of 128"
)
SHORT_TRAINING = (
    "a quarter of the batch trains each level, and so short a training does not make the denoiser "
    "better than the prediction it starts from: after 800 steps the first refinement raised the "
    "error of the loud modes by half while all of them lowered that of the faint modes 17-fold, "
    "and in a box of length 32 the loud ones decide the correlation"
)
REFINER = PDERefiner(steps=4000)
PLAIN = NoisePrediction(refinements=0)


@lru_cache
def _data() -> tuple[Trajectories, Trajectories]:
    """For training, and held out: 160 units of time, more than any rollout stays near."""
    family = families.kuramoto_sivashinsky(32.0)
    training = family.trajectories(jax.random.key(26), TRAINING, POINTS, 101)
    return training, family.trajectories(jax.random.key(27), TESTS, POINTS, 201)


def _agreement(stepper: Any, tests: Trajectories, seed: int) -> float:
    """The mean time to correlation 0.8."""
    frames = tests.states.shape[1] - 1

    @jax.jit
    def times(key: Any) -> Any:
        made = rollouts(stepper, tests, frames, key)
        true = jnp.asarray(tests.states[:, 1:])
        return jax.vmap(lambda a, b: correlation_time(a, b, tests.dt))(made, true)

    return float(jnp.mean(times(jax.random.key(seed))))


@lru_cache
def _time(builder: PDERefiner, seed: int, loss: Callable[..., Any], window: int = 2) -> float:
    training, tests = _data()
    stepper = builder.trained(training, loss, frames=window, key=jax.random.key(seed))
    return _agreement(stepper, tests, seed)


def _over(rival: PDERefiner, seed: int, loss: Callable[..., Any], window: int = 2) -> float:
    """The refiner's time to correlation 0.8 over a rival's."""
    return _time(REFINER, seed, denoising_loss) / _time(rival, seed, loss, window)


ONE_STEP = replace(REFINER, form=PLAIN)


@claim(
    "pde-refiner",
    "longer-rollouts-than-one-step-prediction",
    cost="slow",
    expected=Expected(
        "time to correlation 0.8 of the refiner with 3 refinements over that of the same network "
        "trained by squared error for the same steps",
        ">=",
        1.15,
        "section 4.1: about 98 s against 75 s on Kuramoto-Sivashinsky, 1.3 times (quoted from "
        "memory); half of the gain is asked of a small network and few steps",
        scaled=SCALED,
    ),
    limits=SHORT_TRAINING,
)
def over_one_step() -> list[float]:
    return [_over(ONE_STEP, seed, denoising_loss) for seed in SEEDS]


@claim(
    "pde-refiner",
    "longer-rollouts-than-one-step-prediction-at-equal-calls-in-training",
    cost="slow",
    expected=Expected(
        "time to correlation 0.8 of the refiner over that of the same network trained by squared "
        "error for K + 1 = 4 times the steps (one seed)",
        ">=",
        1.0,
        "derived: a refinement is a call; what it buys must not be had by training as much longer",
        scaled=SCALED,
    ),
    limits=SHORT_TRAINING,
)
def over_longer_training() -> float:
    return _over(replace(ONE_STEP, steps=4 * REFINER.steps), 0, denoising_loss)


@claim(
    "pde-refiner",
    "longer-rollouts-than-pushforward-training",
    cost="slow",
    expected=Expected(
        "time to correlation 0.8 of the refiner over that of the one-step predictor trained with "
        "pushforward for the same steps (one seed)",
        ">=",
        1.0,
        'abstract: it "consistently outperforms" the other rollout strategies; the paper\'s figure '
        "has pushforward among them",
        scaled=SCALED,
    ),
    limits=SHORT_TRAINING,
)
def over_pushforward() -> float:
    return _over(ONE_STEP, 0, pushforward_loss, window=3)


@claim(
    "pde-refiner",
    "longer-rollouts-than-a-sobolev-loss",
    cost="slow",
    expected=Expected(
        "time to correlation 0.8 of the refiner over that of the one-step predictor trained with "
        "a Sobolev loss of order 1 for the same steps (one seed)",
        ">=",
        1.0,
        'abstract: it "consistently outperforms" the other rollout strategies; the paper\'s figure '
        "has Sobolev losses among them",
        scaled=SCALED,
    ),
    limits=SHORT_TRAINING,
)
def over_sobolev() -> float:
    return _over(ONE_STEP, 0, SOBOLEV)


SOBOLEV = SobolevLoss(order=1.0)


@claim(
    "pde-refiner",
    "faint-modes-are-right",
    cost="medium",
    expected=Expected(
        "amplitude of the error of one step in the upper third of the spectrum, over that of the "
        "same network trained by squared error for the same 500 steps",
        "<=",
        0.5,
        "the figure of spectra: where squared error leaves amplitudes of the error about those of "
        "the solution itself, refinement lowers them by orders of magnitude; half asked here",
        scaled=SCALED.replace("4,000 steps", "500 steps"),
    ),
)
def faint_modes() -> list[float]:
    training, tests = _data()
    short = replace(REFINER, steps=500)
    first = replace(short, form=PLAIN)

    def error(builder: PDERefiner, seed: int) -> float:
        stepper = builder(training, key=jax.random.key(seed))
        made = jax.jit(lambda key: rollouts(stepper, tests, 1, key))(jax.random.key(seed))
        modes = np.fft.rfft(np.asarray(made[:, 0] - tests.states[:, 1]), axis=-1)
        return float(np.sqrt(np.mean(np.abs(modes[..., -(POINTS // 6) :]) ** 2)))

    return [error(short, seed) / error(first, seed) for seed in SEEDS]


@claim(
    "pde-refiner",
    "full-size-longer-rollouts-than-one-step-prediction",
    cost="gpu",
    expected=Expected(
        "time to correlation 0.8 of the refiner with 3 refinements over that of the same network "
        "trained by squared error, length 64 with 256 points, width 64",
        ">=",
        1.2,
        "section 4.1: about 98 s against 75 s, 1.3 times (quoted from memory)",
        scaled="four levels without attention; 100,000 steps; the length does not vary",
    ),
)
def full_size() -> float:
    if jax.default_backend() == "cpu":
        raise Inconclusive("needs a GPU: 200,000 steps of a U-Net of width 64 on 256 points")
    family = families.kuramoto_sivashinsky(64.0, reference=256)
    training = family.trajectories(jax.random.key(26), 2048, 256, 101)
    tests = family.trajectories(jax.random.key(27), 128, 256, 201)
    full = PDERefiner(width=64, levels=4, steps=100_000, batch=128, learning_rate=1e-3)
    times = [
        _agreement(builder(training, key=jax.random.key(0)), tests, 0)
        for builder in (full, replace(full, form=PLAIN))
    ]
    return times[0] / times[1]
