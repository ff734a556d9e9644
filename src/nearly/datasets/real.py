"""Small real data that ship inside scikit-learn: nothing is downloaded.

Inputs are float64, each column shifted and scaled by mean and deviation over the *training* part
(a column that is constant there is only shifted). The same seed gives the same split on every
machine. Cost: milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Num

from nearly.core.errors import InputError


@dataclass(frozen=True)
class Dataset:
    """Inputs `[n, features]` and targets `[n]` for training and for testing."""

    train_inputs: Float[np.ndarray, "train features"]
    train_targets: Num[np.ndarray, " train"]
    test_inputs: Float[np.ndarray, "test features"]
    test_targets: Num[np.ndarray, " test"]


def digits(seed: int = 0, test_fraction: float = 0.2) -> Dataset:
    """1797 handwritten digits of 8 by 8 pixels, flattened to 64 features; targets 0 to 9.

    `digits_images` has the same split with the pixels in [0, 1].
    """
    inputs, targets = _raw("digits")
    return _standardised(_split_by_class(inputs, targets, seed, test_fraction))


def digits_images(seed: int = 0, test_fraction: float = 0.2) -> Dataset:
    """The digits as grey levels in [0, 1], unstandardised: for images and likelihoods."""
    inputs, targets = _raw("digits")
    return _split_by_class(inputs / 16, targets, seed, test_fraction)


def breast_cancer(seed: int = 0, test_fraction: float = 0.2) -> Dataset:
    """569 tumours, 30 features, 2 classes (0 malignant, 1 benign)."""
    inputs, targets = _raw("breast_cancer")
    return _standardised(_split_by_class(inputs, targets, seed, test_fraction))


def diabetes(seed: int = 0, test_fraction: float = 0.2) -> Dataset:
    """442 patients, 10 features; the target, a measure of progression, is standardised too."""
    inputs, targets = _raw("diabetes")
    _check(test_fraction)
    order = np.random.default_rng(seed).permutation(len(targets))
    tests = order[: round(test_fraction * len(targets))]
    split = _standardised(_parted(inputs, targets, tests))
    mean, deviation = split.train_targets.mean(), split.train_targets.std()
    return Dataset(
        split.train_inputs,
        (split.train_targets - mean) / deviation,
        split.test_inputs,
        (split.test_targets - mean) / deviation,
    )


def _raw(name: str) -> tuple[np.ndarray, np.ndarray]:
    import sklearn.datasets

    loader: Any = getattr(sklearn.datasets, f"load_{name}")
    inputs, targets = loader(return_X_y=True)
    whole = np.issubdtype(targets.dtype, np.integer)
    return inputs.astype(np.float64), targets.astype(np.int32 if whole else np.float64)


def _check(test_fraction: float) -> None:
    if not 0 < test_fraction < 1:
        raise InputError(f"test_fraction={test_fraction} must lie between 0 and 1, such as 0.2")


def _split_by_class(
    inputs: np.ndarray, targets: np.ndarray, seed: int, test_fraction: float
) -> Dataset:
    """The same fraction of each class goes to testing."""
    _check(test_fraction)
    draw = np.random.default_rng(seed)
    of_class = [draw.permutation(np.flatnonzero(targets == c)) for c in np.unique(targets)]
    tests = np.concatenate([rows[: round(test_fraction * len(rows))] for rows in of_class])
    return _parted(inputs, targets, tests)


def _parted(inputs: np.ndarray, targets: np.ndarray, tests: np.ndarray) -> Dataset:
    held_out = np.zeros(len(targets), bool)
    held_out[tests] = True
    return Dataset(inputs[~held_out], targets[~held_out], inputs[held_out], targets[held_out])


def _standardised(data: Dataset) -> Dataset:
    mean, deviation = data.train_inputs.mean(0), data.train_inputs.std(0)
    scale = np.where(deviation > 0, deviation, 1.0)
    return Dataset(
        (data.train_inputs - mean) / scale,
        data.train_targets,
        (data.test_inputs - mean) / scale,
        data.test_targets,
    )
