"""Data from scikit-learn: sizes, sums that identify them, and the split."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from nearly import datasets
from nearly.core.errors import InputError

# Examples and features.
KNOWN = {"digits": (1797, 64), "breast_cancer": (569, 30), "diabetes": (442, 10)}


@pytest.mark.parametrize("name", KNOWN)
def test_sizes_and_standardised_columns(name: str) -> None:
    count, features = KNOWN[name]
    data = getattr(datasets, name)()
    assert data.train_inputs.shape[1] == data.test_inputs.shape[1] == features
    assert len(data.train_inputs) + len(data.test_inputs) == count
    assert len(data.test_inputs) == pytest.approx(0.2 * count, abs=3)
    np.testing.assert_allclose(data.train_inputs.mean(0), 0, atol=1e-12)
    spread = data.train_inputs.std(0)
    assert np.all((np.abs(spread - 1) < 1e-12) | (spread == 0))


def test_sums_identify_the_data() -> None:
    images = datasets.digits_images()
    pixels = np.concatenate([images.train_inputs, images.test_inputs])
    labels = np.concatenate([images.train_targets, images.test_targets])
    assert (pixels.sum() * 16, labels.sum()) == (561718, 8070)
    assert (pixels.min(), pixels.max()) == (0, 1)
    cancer = datasets.breast_cancer()
    assert cancer.train_targets.sum() + cancer.test_targets.sum() == 357
    assert set(cancer.train_targets) == {0, 1}


def test_standardising_undoes_no_information() -> None:
    images, standard = datasets.digits_images(), datasets.digits()
    np.testing.assert_array_equal(images.test_targets, standard.test_targets)
    mean, deviation = images.train_inputs.mean(0), images.train_inputs.std(0)
    again = standard.test_inputs * np.where(deviation > 0, deviation, 1) + mean
    np.testing.assert_allclose(again, images.test_inputs, atol=1e-12)


@pytest.mark.parametrize("name", ["digits", "breast_cancer"])
def test_the_split_is_stratified(name: str) -> None:
    data = getattr(datasets, name)()
    train, test = np.bincount(data.train_targets), np.bincount(data.test_targets)
    np.testing.assert_allclose(test / (train + test), 0.2, atol=0.01)


def test_the_seed_decides_the_split() -> None:
    a, b, c = datasets.digits(), datasets.digits(), datasets.digits(seed=1)
    np.testing.assert_array_equal(a.train_inputs, b.train_inputs)
    assert np.any(a.train_targets != c.train_targets)


def test_diabetes_targets_are_standardised() -> None:
    data = datasets.diabetes()
    assert data.train_targets.mean() == pytest.approx(0, abs=1e-12)
    assert data.train_targets.std() == pytest.approx(1)
    assert abs(data.test_targets.mean()) < 0.3


def test_a_bad_fraction_is_named() -> None:
    with pytest.raises(InputError, match=r"test_fraction=1\.5 must lie between 0 and 1"):
        datasets.digits(test_fraction=1.5)


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import nearly.datasets, nearly.training, sys;"
        "print('sklearn' in sys.modules, 'jax' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "False"]
