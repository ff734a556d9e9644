"""The No-U-Turn sampler on a Gaussian, whose moments are known."""

from __future__ import annotations

import numpy as np
import pytest

from nearly.core.errors import InputError
from nearly.dynamics.no_u_turn import no_u_turn

SCALES = np.array([0.3, 1.0, 2.0])


def gaussian(x: np.ndarray) -> tuple[float, np.ndarray]:
    return float(np.sum((x / SCALES) ** 2)) / 2, x / SCALES**2


def test_moments_of_a_gaussian_and_every_gradient_counted() -> None:
    calls = 0

    def counting(x: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal calls
        calls += 1
        return gaussian(x)

    chain = no_u_turn(counting, np.zeros(3), draws=4000, warmup=500, seed=0)
    assert chain.gradients + chain.warmup_gradients == calls
    assert 0.05 < chain.step < 1
    np.testing.assert_allclose(chain.samples.mean(axis=0) / SCALES, 0, atol=0.12)
    np.testing.assert_allclose(chain.samples.std(axis=0) / SCALES, 1, atol=0.08)


def test_a_seed_repeats_a_chain() -> None:
    first, again = (
        no_u_turn(gaussian, np.ones(3), draws=5, warmup=20, seed=3).samples for _ in range(2)
    )
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"draws": 0}, "draws=0, warmup=1: both must be at least 1"),
        ({"acceptance": 1.5}, r"acceptance=1\.5 must lie between"),
    ],
)
def test_mistakes_name_value_and_remedy(fault: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        no_u_turn(gaussian, np.zeros(3), **({"draws": 1, "warmup": 1, "seed": 0} | fault))
