"""Problems of learned equations: data, errors, what is counted; trainers."""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nearly.core import catalogue
from nearly.core.errors import InputError
from nearly.core.measure import keys, run_trial, to_host
from nearly.core.tally import tally
from nearly.dynamics.problems.neural_equations import (
    FlowClassification,
    Labelled,
    Moments,
    SpiralSDE,
    annuli,
    annuli_points,
    spiral,
    spiral_moments,
)
from nearly.dynamics.regularizers import LocalEstimate, Regularizer, Unregularized
from nearly.dynamics.trainers import Batches, Objective, Trainer

TINY: dict[str, Any] = {"train": 32, "test": 16, "hidden": 4, "steps": 3, "batch": 8, "rtol": 1e-2}


def test_points_lie_in_a_disc_and_an_annulus() -> None:
    points = annuli_points(3, 4000)
    radius = np.linalg.norm(points.inputs, axis=1)
    inner, outer = radius[points.classes == 0], radius[points.classes == 1]
    assert len(inner) == len(outer) == 2000
    assert inner.max() <= 0.5 < 1 <= outer.min() <= outer.max() <= 1.5
    np.testing.assert_allclose(np.mean(inner**2), 0.125, rtol=0.05)  # uniform over the disc
    np.testing.assert_allclose(np.mean(outer**2), (1 + 2.25) / 2, rtol=0.05)


def test_the_spiral_without_noise_is_a_spiral() -> None:
    """|x|_4 falls as the field says, and the noise spreads as 0.2 x o dW does at the start."""
    moments = spiral_moments(0, paths=4000)
    np.testing.assert_array_equal(moments.means[0], [2, 0])
    np.testing.assert_array_equal(moments.variances[0], [0, 0])
    first = moments.variances[1, 0] * 29  # 0.04 x^2 a unit of time, x = 2
    np.testing.assert_allclose(first, 0.16, rtol=0.3)
    second = moments.means[1, 1] * 29  # 2 x^3
    np.testing.assert_allclose(second, 16, rtol=0.05)
    other = spiral_moments(1, paths=4000)
    assert not np.array_equal(moments.means, other.means)
    np.testing.assert_allclose(moments.means, other.means, atol=0.05)


def test_errors_of_a_classifier_are_those_by_hand() -> None:
    labelled = Labelled(np.zeros((3, 2), np.float32), np.array([0, 1, 1]))
    problem = FlowClassification(train=labelled, test=labelled)
    found = problem.errors(np.log(np.array([[3, 1], [3, 1], [1, 9]])))
    assert found["misclassified"] == pytest.approx(1 / 3)
    by_hand = -np.mean(np.log([3 / 4, 1 / 4, 9 / 10]))
    assert found["cross entropy"] == pytest.approx(by_hand)
    assert problem.errors(np.full((3, 2), np.nan))["misclassified"] == np.inf


def test_errors_of_moments_are_those_by_hand() -> None:
    test = Moments(np.zeros((30, 2), np.float32), np.ones((30, 2), np.float32))
    problem = SpiralSDE(train=test, test=test)
    found = problem.errors((np.full((30, 2), 0.5), np.full((30, 2), 3.0)))
    assert found == {"moments": 4.25, "means": 0.25, "variances": 4.0}
    assert problem.errors((np.full((30, 2), np.nan), test.variances))["moments"] == np.inf


def test_a_use_counts_the_calls_of_its_field() -> None:
    """Tsit5: one call to begin, six a step."""
    problem = annuli(**TINY)
    model = problem.initial(jax.random.key(0))
    with tally() as counts:
        scores = eqx.filter_jit(problem.apply)(model, key=None)
    assert scores.shape == (16, 2)
    assert counts.read()["nfe"] % 6 == 1
    assert problem.work(model) == {"parameters": 3 * 4 + 4 + 4 * 2 + 2 + 2 * 2 + 2}


@pytest.mark.slow
def test_a_trial_counts_evaluations_of_training_too() -> None:
    problem = annuli(**TINY)
    method, _ = catalogue.method("ernode", problem.protocol)
    trial, model = run_trial(problem, method, 0.1, 0)
    assert trial.status == "ok", trial.reason
    assert trial.setup_work["nfe"] >= 3 * 7
    assert trial.setup_work["nfe vjps"] >= 3 * 7
    again, _ = run_trial(problem, method, 0.1, 0)
    assert again.errors == trial.errors
    other = method(problem, 10.0, key=jax.random.key(5))
    same = method(problem, 0.1, key=jax.random.key(5))
    weights = [m.field.network.layers[0].weight for m in (other, same)]
    assert not np.array_equal(*weights)
    assert jnp.isfinite(model.readout.weight).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", list(catalogue.methods("neural-equations")))
def test_every_catalogued_trainer_trains(name: str) -> None:
    """Twenty steps lower the loss that the untrained model has."""
    problem = annuli(**(TINY | {"steps": 20, "hidden": 16}))
    method, _ = catalogue.method(name, problem.protocol)
    trial, _ = run_trial(problem, method, method.dials[0], 0)
    assert trial.status == "ok", trial.reason
    before = untrained_errors(problem)["cross entropy"]
    assert trial.errors["cross entropy"] < before


class Penalty(Regularizer):
    """A penalty of 3 beside the values 2, at strength 1."""

    def __call__(self, solve: Any, strength: Any, *, key: Any) -> Any:
        return solve, 3 * strength


class Plain:
    """A problem whose loss is the difference of a value and the model."""

    def equation(self, model: Any, data: Any, *, key: Any) -> Any:
        return data

    def read(self, model: Any, values: Any) -> Any:
        return values - model

    def loss(self, predictions: Any, data: Any) -> Any:
        return predictions


def test_the_weight_of_a_penalty_falls_as_training_goes() -> None:
    objective = Objective(Plain(), Penalty(), 2.0, decay=0.25)
    for progress, weight in ((0.0, 2.0), (0.5, 1.0), (1.0, 0.5)):
        assert objective(1.0, (5.0, progress), jax.random.key(0)) == 4 + 3 * weight


@pytest.mark.slow
def test_a_training_whose_solves_fail_diverges() -> None:
    problem = annuli(**TINY)
    wild = dataclasses.replace(problem, learning_rate=1e6)
    method = Trainer(Unregularized(), (0.0,))
    with pytest.raises(FloatingPointError, match="training at strength 0"):
        method(wild, 0.0, key=jax.random.key(0))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ernode", "lrnde-biased"])
def test_the_spiral_is_learned_with_each_penalty(name: str) -> None:
    problem = spiral(paths=40, steps=60)
    method, _ = catalogue.method(name, problem.protocol)
    trial, _ = run_trial(problem, method, method.dials[0], 0)
    assert trial.status == "ok", trial.reason
    assert trial.errors["moments"] < 0.8 * untrained_errors(problem)["moments"]
    assert trial.work["nfe"] % 6 == 0  # three calls of the drift and three of the diffusion


def untrained_errors(problem: Any) -> Any:
    """Those of the model that training with seed 0 begins with."""
    build, use = keys(0)
    model = problem.initial(jax.random.split(build)[0])
    return problem.errors(to_host(eqx.filter_jit(problem.apply)(model, key=use)))


def test_batches_know_how_far_training_is() -> None:
    stream = Batches(np.arange(5.0, dtype=np.float32), 3, jnp.asarray(4))
    state = stream.initial(jax.random.key(0))
    state, (rows, progress) = stream.draw(state, jax.random.key(1))
    assert rows.shape == (3,)
    assert float(progress) == 0
    _, (_, progress) = stream.draw(state, jax.random.key(1))
    assert float(progress) == 0.25
    _, (rows, _) = dataclasses.replace(stream, batch=None).draw(state, jax.random.key(1))
    np.testing.assert_array_equal(rows, np.arange(5.0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: annuli(rtol=2.0), "rtol=2.0 must lie between 0 and 1"),
        (lambda: annuli(hidden=0), "hidden, steps, batch and learning_rate must be positive"),
        (lambda: SpiralSDE(train=None, test=None, paths=1), "paths=1: give at least 2"),
        (lambda: Trainer(Unregularized(), ()), "must be one strength or more"),
        (lambda: Trainer(LocalEstimate(), (1.0,), decay=2.0), "decay=2.0 must lie between 0 and 1"),
        (
            lambda: annuli(**TINY).build("sgd", 1.0, key=None),
            "a str is no method here: give a function",
        ),
        (lambda: annuli(**TINY).dials(np.mean), "has no dials: give it a tuple"),
    ],
)
def test_bad_settings_say_so(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
