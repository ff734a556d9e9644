"""What random matrix theory promises of batch Hessians and learning rates, rerun."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from nearly.core.claim import Expected, claim
from nearly.curvature.objective import CrossEntropy, Objective
from nearly.curvature.operators import Hessian
from nearly.curvature.spectrum import (
    batch_largest_eigenvalue,
    batch_law,
    hessian_noise,
    lanczos_momentum,
    lanczos_quadrature,
    largest_eigenvalue,
    largest_stable_rate,
)
from nearly.datasets import digits

PAPER = "batch-hessian-learning-rates"
BATCHES = (16, 32, 64, 128, 256)
SEEDS = (0, 1, 2)


def softmax_regression(seed: int, inputs: Any, targets: Any) -> Objective:
    """Ten classes, after 100 steps of gradient descent from random weights."""
    model = eqx.nn.Linear(inputs.shape[1], 10, key=jax.random.key(seed))
    objective = Objective.of(
        model, CrossEntropy(), jnp.asarray(inputs, jnp.float32), jnp.asarray(targets), chunk=2048
    )

    def step(parameters: Any, _: None) -> tuple[Any, None]:
        slope = jax.grad(objective.value)(parameters)
        return jax.tree.map(lambda p, g: p - 0.1 * g, parameters, slope), None

    end, _ = jax.jit(lambda p: jax.lax.scan(step, p, None, length=100))(objective.parameters)
    return objective.at(end)


@lru_cache
def on_digits(seed: int) -> Objective:
    """Standardised pixels: 650 parameters."""
    data = digits(seed)
    return softmax_regression(seed, data.train_inputs, data.train_targets)


@lru_cache
def on_gaussians(seed: int) -> Objective:
    """Independent normal inputs, 320 weights and 10 biases; labels drawn from a random teacher."""
    draw = np.random.default_rng(seed)
    inputs = draw.normal(size=(2048, 32))
    scores = inputs @ draw.normal(size=(32, 10)) / 32**0.5 + draw.gumbel(size=(2048, 10))
    return softmax_regression(seed, inputs, scores.argmax(axis=1))


Instance = Callable[[int], Objective]


@lru_cache
def _excess(instance: Instance, seed: int) -> tuple[float, float, np.ndarray]:
    """The full Hessian's largest eigenvalue, its noise, and how far batches' exceed it."""
    objective = instance(seed)
    full = float(largest_eigenvalue(Hessian(objective), jax.random.key(seed), steps=40))
    noise = float(hessian_noise(objective, jax.random.key(seed)))
    means = [
        float(jnp.mean(batch_largest_eigenvalue(objective, b, jax.random.key(seed), draws=30)))
        for b in BATCHES
    ]
    return full, noise, np.array(means) - full


def _slope(instance: Instance, seed: int) -> float:
    share = 1 / np.array(BATCHES) - 1 / instance(seed).samples
    return float(np.polyfit(np.log(share), np.log(_excess(instance, seed)[2]), 1)[0])


def _ratio(instance: Instance, seed: int) -> float:
    full, noise, excess = _excess(instance, seed)
    samples = instance(seed).samples
    predicted = np.array([float(batch_law(full, noise, b, samples)) - full for b in BATCHES])
    return float(np.exp(np.mean(np.log(excess / predicted))))


_SHAPE = (
    "slope of log(largest eigenvalue of a batch Hessian - that of the full one) against the "
    "log of 1/B - 1/N, B = 16 to 256, softmax regression on "
)
_CONSTANT = (
    "largest eigenvalue's measured excess over the predicted one, geometric mean over "
    "B = 16 to 256, softmax regression on "
)
_SCALED = "650 parameters, or 330, instead of a VGG's millions"


@claim(
    PAPER,
    "excess-falls-as-one-over-the-batch",
    cost="medium",
    expected=Expected(
        _SHAPE + "digits",
        "within",
        (0.8, 1.2),
        "its theorem: the excess is P s^2 / (B lambda_1) where lambda_1 sticks out of the noise",
        scaled=_SCALED,
    ),
    limits="the theorem's noise has light tails; pixels that are seldom lit are large once "
    "standardised, and a batch that holds none of them misses the noise altogether",
)
def shape() -> list[float]:
    return [_slope(on_digits, seed) for seed in SEEDS]


@claim(
    PAPER,
    "excess-falls-as-one-over-the-batch-with-normal-inputs",
    cost="medium",
    expected=Expected(
        _SHAPE + "independent normal inputs",
        "within",
        (0.8, 1.2),
        "its theorem: the excess is P s^2 / (B lambda_1) where lambda_1 sticks out of the noise",
        scaled=_SCALED,
    ),
    limits="batches are no larger than a few times the number of inputs, so the excess is not yet "
    "small against the eigenvalue itself",
)
def normal_shape() -> list[float]:
    return [_slope(on_gaussians, seed) for seed in SEEDS]


_INDEPENDENT = (
    "the entries of the noise are not independent: one sample's Hessian has rank 9 and shares its "
    "directions with the full Hessian's largest, where the noise therefore gathers"
)


@claim(
    PAPER,
    "excess-has-the-constant-of-independent-noise",
    cost="medium",
    expected=Expected(
        _CONSTANT + "digits",
        "within",
        (0.5, 2.0),
        "its theorem: the excess is P s^2 / (B lambda_1), with independent entries of variance s^2",
        scaled=_SCALED,
    ),
    limits=_INDEPENDENT,
)
def constant() -> list[float]:
    return [_ratio(on_digits, seed) for seed in SEEDS]


@claim(
    PAPER,
    "excess-has-the-constant-of-independent-noise-with-normal-inputs",
    cost="medium",
    expected=Expected(
        _CONSTANT + "independent normal inputs",
        "within",
        (0.5, 2.0),
        "its theorem: the excess is P s^2 / (B lambda_1), with independent entries of variance s^2",
        scaled=_SCALED,
    ),
    limits=_INDEPENDENT,
)
def normal_constant() -> list[float]:
    return [_ratio(on_gaussians, seed) for seed in SEEDS]


@claim(
    PAPER,
    "largest-stable-rate-follows-the-batch-hessian",
    cost="medium",
    expected=Expected(
        "largest over smallest, B = 16 to 256, of the largest stable rate of SGD times the largest "
        "eigenvalue of the batch Hessian, softmax regression on digits",
        "<=",
        2.0,
        "derived: its rule that the largest rate is inversely proportional to lambda_1 of the "
        "batch Hessian, to a factor of two",
        scaled="650 parameters instead of a VGG's millions",
    ),
    limits="the curvature of cross-entropy vanishes as logits grow, so SGD settles elsewhere "
    "instead of blowing up, and the largest rate that ends no worse grows faster than B",
)
def stable_rate() -> list[float]:
    return [_tracking(seed) for seed in SEEDS]


def _tracking(seed: int) -> float:
    objective = on_digits(seed)
    full, _, excess = _excess(on_digits, seed)
    rates = [float(largest_stable_rate(objective, b, jax.random.key(seed))) for b in BATCHES]
    products = np.array(rates) * (full + excess)
    return float(products.max() / products.min())


@claim(
    PAPER,
    "lanczos-momentum-attains-the-optimal-rate-on-a-quadratic",
    cost="medium",
    expected=Expected(
        "measured over optimal convergence factor per step, (sqrt(k) - 1)/(sqrt(k) + 1), of the "
        "learner of rate and momentum on a quadratic with eigenvalues in [1, 100]",
        "within",
        (0.98, 1.05),
        "derived: the learner's formula is Polyak's, optimal for the edges that Lanczos finds",
    ),
)
def optimal_momentum() -> float:
    scale = jnp.linspace(1.0, 100.0, 20)

    def loss(p: Any) -> Any:
        return jnp.sum(scale * p**2) / 2

    optimizer = lanczos_momentum(jax.random.key(0), every=1000, steps=20)

    @jax.jit
    def run(p: Any) -> Any:
        def step(carry: Any, _: None) -> Any:
            p, state = carry
            updates, state = optimizer.update(jax.grad(loss)(p), state, p, value_fn=loss)
            p = optax.apply_updates(p, updates)
            return (p, state), jnp.linalg.norm(p)

        return jax.lax.scan(step, (p, optimizer.init(p)), None, length=60)[1]

    sizes = np.asarray(run(jnp.ones(20)))
    measured = (sizes[59] / sizes[29]) ** (1 / 30)
    return float(measured / (9 / 11))


@claim(
    PAPER,
    "quadrature-finds-the-spectrum",
    cost="medium",
    expected=Expected(
        "largest difference of the cumulative spectral density by 30 steps and 8 probes from the "
        "dense one, at the 100 largest gaps' midpoints, Hessian of softmax regression on digits",
        "<=",
        0.05,
        "derived: Lanczos quadrature is exact to 60 moments; 8 probes of 650 signs leave a "
        "standard error of about (2/(8*650))^0.5 = 0.02",
    ),
)
def quadrature() -> list[float]:
    return [_density_error(seed) for seed in SEEDS]


def _density_error(seed: int) -> float:
    operator = Hessian(on_digits(seed))
    exact = np.sort(np.linalg.eigvalsh(np.asarray(jax.jit(lambda: operator.as_matrix())())))
    order = np.argsort(-np.diff(exact))[:100]
    points = (exact[order] + exact[order + 1]) / 2
    found = lanczos_quadrature(operator, jax.random.key(seed)).cumulative(jnp.asarray(points))
    true = np.searchsorted(exact, points, side="right") / len(exact)
    return float(np.max(np.abs(np.asarray(found) - true)))
