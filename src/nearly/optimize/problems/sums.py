"""Catalogued instances of `FiniteSum`."""

from __future__ import annotations

import numpy as np

from nearly.core.errors import InputError
from nearly.datasets import digits, digits_images
from nearly.optimize.problems.finite_sum import FiniteSum
from nearly.optimize.problems.tasks import Classifier, LinearRegression, Reconstruction

STEPS = (100, 300, 1000)


def softmax_digits(batch: int = 64, steps: tuple[int, ...] = STEPS) -> FiniteSum:
    """Softmax regression on the digits: convex."""
    return _classify((64, 10), "softmax-digits", batch, steps)


def mlp_digits(width: int = 64, batch: int = 64, steps: tuple[int, ...] = STEPS) -> FiniteSum:
    """A network with one hidden layer on the digits."""
    return _classify((64, width, 10), "mlp-digits", batch, steps)


def _classify(sizes: tuple[int, ...], name: str, batch: int, steps: tuple[int, ...]) -> FiniteSum:
    data = digits()
    return FiniteSum(
        task=Classifier(sizes),
        inputs=data.train_inputs,
        targets=data.train_targets.astype(np.int32),
        test_inputs=data.test_inputs,
        test_targets=data.test_targets.astype(np.int32),
        batch=batch,
        steps=steps,
        name=name,
    )


def autoencoder_digits(batch: int = 64, steps: tuple[int, ...] = (50, 150, 500)) -> FiniteSum:
    """The deep autoencoder 64-128-32-128-64 on the digits' grey levels: badly conditioned."""
    data = digits_images()
    return FiniteSum(
        task=Reconstruction((64, 128, 32, 128, 64)),
        inputs=data.train_inputs,
        targets=data.train_inputs,
        test_inputs=data.test_inputs,
        test_targets=data.test_inputs,
        batch=batch,
        steps=steps,
        name="autoencoder-digits",
    )


def interpolating_least_squares(
    samples: int = 200,
    size: int = 100,
    condition: float = 100.0,
    batch: int = 8,
    steps: tuple[int, ...] = STEPS,
    instance: int = 0,
) -> FiniteSum:
    """Least squares that one vector fits exactly; the covariance's eigenvalues span `condition`."""
    if not condition >= 1:
        raise InputError(f"condition {condition} must be at least 1")
    random = np.random.default_rng(instance)
    scales = np.sqrt(np.geomspace(1, 1 / condition, size))
    inputs = random.normal(size=(2 * samples, size)) * scales
    targets = inputs @ random.normal(size=size)
    return FiniteSum(
        task=LinearRegression(size),
        inputs=inputs[:samples],
        targets=targets[:samples],
        test_inputs=inputs[samples:],
        test_targets=targets[samples:],
        batch=batch,
        steps=steps,
        name="interpolating-least-squares",
    )


def strong_growth_counterexample(size: int = 100, steps: tuple[int, ...] = STEPS) -> FiniteSum:
    """Half the squared distance to a point, whose coordinates are asked for one at a time.

    The gradient of a batch is `size` times that of one coordinate: the strong growth constant is
    `size`, and L = mu = 1. A method whose steps are combinations of the gradients it has seen
    leaves a coordinate where it was with probability `(1 - 1 / size)^k` after k steps, so its mean
    error is at least `(1 - 1 / size)^k size / 2` (`accelerated-sgd-interpolation`).
    """
    if size < 2:
        raise InputError(f"size {size} must be at least 2 unknowns")
    inputs, targets = np.sqrt(size) * np.eye(size), np.full(size, np.sqrt(size))
    return FiniteSum(
        task=LinearRegression(size),
        inputs=inputs,
        targets=targets,
        test_inputs=inputs,
        test_targets=targets,
        batch=1,
        steps=steps,
        name="strong-growth-counterexample",
    )
