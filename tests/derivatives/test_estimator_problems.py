"""The estimator problems, and what every method of their protocols must do."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from nearly.core import catalogue
from nearly.core.compare import compare
from nearly.core.errors import InputError, UnknownName
from nearly.derivatives.problems.estimators import GradientEstimator, QuantisedGradient

CHOICES = sorted(catalogue.methods("gradient-estimators"))
QUANTISED = sorted(catalogue.methods("quantised-gradients"))
UNBIASED = ("reinforce-leave-one-out", "exact-expectation")


def applied(problem: Any, name: str, samples: int, seed: int = 0) -> Any:
    with jax.enable_x64(problem.dtype == "float64"):
        method = catalogue.method(name, problem.protocol)[0]
        standin = problem.build(method, samples, key=jax.random.key(seed))
        return jax.tree.map(np.asarray, problem.apply(standin, key=jax.random.key(seed)))


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, "float32") for name in CHOICES), ("reinmax", "float64")]
)
def test_every_estimator_runs_in_both_precisions_and_repeats_with_its_key(
    name: str, dtype: str
) -> None:
    problem = GradientEstimator("tiny_vae", dtype=dtype)
    mean, square = applied(problem, name, 4)
    assert mean.shape == (12,) and mean.dtype == dtype
    assert np.isfinite(mean).all() and square >= 0
    np.testing.assert_array_equal(mean, applied(problem, name, 4)[0])
    other = applied(problem, name, 4, seed=1)[0]
    assert np.any(mean != other) != (name == "exact-expectation")


@pytest.mark.parametrize("name", QUANTISED)
def test_every_quantised_gradient_points_downhill(name: str) -> None:
    problem = QuantisedGradient()
    errors = problem.errors(applied(problem, name, 1000))
    assert errors["cosine"] > 0.3


@pytest.mark.parametrize("case", ["quadratic", "polynomial_programming", "tiny_vae"])
def test_unbiased_estimators_reach_the_truth(case: str) -> None:
    problem = GradientEstimator(case)
    for name in UNBIASED:
        errors = problem.errors(applied(problem, name, 3000))
        spread = errors["error of one sample"] / 3000**0.5
        assert errors["relative error"] < 3 * spread + problem.floor()


def test_reinmax_reaches_the_truth_of_a_quadratic_and_straight_through_does_not() -> None:
    frontier = compare(
        GradientEstimator("quadratic"),
        ["reinmax", "straight-through"],
        dials=[1, 3000],
        seeds=[0],
        timed=False,
    )
    error = {(run.method, run.dial): run.error for run in frontier.runs}
    assert error["reinmax", 3000] < 0.1 < error["straight-through", 3000]
    assert error["reinmax", 3000] < 0.2 * error["reinmax", 1]
    work = {run.method: run.work for run in frontier.runs if run.dial == 3000}
    assert work["reinmax"] == {"objectives": 3000, "objectives vjps": 3000}


def test_the_truth_of_the_two_bit_network_by_differences_of_its_mean() -> None:
    problem = QuantisedGradient(seed=3)
    with jax.enable_x64(True):
        loss, weights = problem.instance()
        weights = np.asarray(weights)
        draw = np.random.default_rng(0)

        def mean(w: np.ndarray) -> float:
            """Over all roundings up or down, one after the other."""
            total, below = 0.0, np.floor(w)
            for bits in np.ndindex(*(2,) * 8):
                up = np.array(bits)
                total += np.prod(np.where(up, w - below, 1 - w + below)) * values[bits]
            return total

        ups = np.array(list(np.ndindex(*(2,) * 8)))
        all_values = np.asarray(jax.vmap(loss)(np.floor(weights) + ups))
        values = {tuple(up): v for up, v in zip(ups.tolist(), all_values, strict=True)}
        direction = draw.normal(size=8)
        slope = (mean(weights + 1e-6 * direction) - mean(weights - 1e-6 * direction)) / 2e-6
        assert problem.truth() @ direction == pytest.approx(slope, rel=1e-6)


def test_bad_settings_are_named() -> None:
    with pytest.raises(UnknownName, match="did you mean 'quadratic'"):
        GradientEstimator("quadratics")
    with pytest.raises(InputError, match=r"power=0\.5 must be at least 1"):
        GradientEstimator("polynomial_programming", power=0.5)
    with pytest.raises(InputError, match="dial 0 must be a number of samples"):
        GradientEstimator().build(None, 0, key=None)
