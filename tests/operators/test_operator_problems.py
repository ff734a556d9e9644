"""The problems of the room, on baselines: what is measured, what is charged, what it pays."""

import dataclasses
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from typer.testing import CliRunner

import nearly
from nearly.cli.app import app
from nearly.core.errors import InputError
from nearly.core.run import Run
from nearly.operators import families
from nearly.operators.baselines import (
    CoarseSolver,
    NearestNeighbour,
    PCARidge,
    Persistence,
)
from nearly.operators.data import Grid, Pairs
from nearly.operators.problems.operator_map import OperatorMap, operator_map
from nearly.operators.problems.rollout import Rollout, rollout_problem
from nearly.operators.training import (
    mean_squared_loss,
    normalized,
    optimizer,
    parameter_count,
    train,
    trainable,
)

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def heat() -> OperatorMap:
    family = families.heat(reference=64)
    return operator_map("heat", family, resolution=32, samples=40, tests=4)


@pytest.fixture(scope="module")
def waves() -> Rollout:
    family = families.burgers(reference=64)
    return rollout_problem(
        "waves", family, resolution=32, samples=8, train_frames=3, frames=4, tests=3
    )


def run_of(frontier: nearly.Frontier, method: str, dial: int) -> Run:
    return next(r for r in frontier if r.method == method and r.dial == dial)


def test_ridge_learns_a_linear_map_and_labels_are_charged(heat: OperatorMap) -> None:
    methods = {
        "pca-ridge": PCARidge(),
        "nearest": NearestNeighbour(),
        "coarse-solver": CoarseSolver(),
    }
    frontier = nearly.compare(heat, methods)
    ridge = run_of(frontier, "pca-ridge", 40)
    assert ridge.status == "ok" and ridge.error < 2e-3
    assert run_of(frontier, "nearest", 40).error > 0.1
    assert ridge.setup["work"] == {"labelled solves": 40}
    assert run_of(frontier, "pca-ridge", 5).setup["work"] == {"labelled solves": 5}
    assert ridge.setup["seconds"] >= 40 * heat.training.solve_seconds
    assert ridge.work["parameters"] > 0 and ridge.seconds is not None
    # Both know one resolution only, the solver any.
    finer = "relative L2 at twice the resolution"
    assert finer not in ridge.errors
    coarse = run_of(frontier, "coarse-solver", 32)
    assert coarse.error < 1e-5 and coarse.errors[finer] < 1e-3
    assert coarse.setup["work"] == {}


def test_what_it_pays_off_against_is_the_cheapest_solve_that_is_as_accurate(
    heat: OperatorMap,
) -> None:
    methods = {"pca-ridge": PCARidge(), "coarse-solver": CoarseSolver()}
    frontier = nearly.compare(heat, methods)
    timed = [
        dataclasses.replace(r, seconds=1.0 + r.dial if r.method == "coarse-solver" else 0.5)
        for r in frontier
    ]
    frontier = dataclasses.replace(frontier, runs=tuple(timed))
    ridge = run_of(frontier, "pca-ridge", 40)
    rival = frontier.rival_of(ridge)
    good = [r for r in frontier if r.method == "coarse-solver" and r.error <= ridge.worst]
    assert rival is min(good, key=lambda r: r.dial)
    spent = ridge.setup["seconds"] - rival.setup["seconds"]
    assert frontier.break_even(ridge, rival) == pytest.approx(max(0, spent) / (rival.seconds - 0.5))
    data = frontier.to_json()
    assert data["rival"] == "coarse-solver"
    assert data["break_even"][frontier.runs.index(ridge)] is not None


def test_a_model_that_knows_one_resolution_says_so(heat: OperatorMap) -> None:
    model = PCARidge()(heat.training, key=KEY)
    with pytest.raises(InputError, match=r"takes a field of shape \[1, 32\], not \[1, 64\]"):
        model(jnp.zeros((1, 64), jnp.float32))


def test_the_linear_map_is_the_least_squares_solution() -> None:
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((30, 1, 6)).astype(np.float32)
    matrix, shift = rng.standard_normal((6, 6)), rng.standard_normal(6)
    outputs = (inputs @ matrix.T + shift).astype(np.float32)
    data = Pairs(inputs, outputs, np.zeros((30, 0)), Grid((1.0,), True))
    model = PCARidge()(data, key=KEY)
    fresh = rng.standard_normal(6).astype(np.float32)
    np.testing.assert_allclose(
        model(jnp.asarray(fresh[None]))[0], matrix @ fresh + shift, atol=1e-3
    )


def test_the_nearest_neighbour_of_a_sample_is_itself(heat: OperatorMap) -> None:
    model = NearestNeighbour()(heat.training, key=KEY)
    np.testing.assert_array_equal(
        model(jnp.asarray(heat.training.inputs[7])), heat.training.outputs[7]
    )


def test_what_is_no_builder_is_refused(heat: OperatorMap) -> None:
    frontier = nearly.compare(heat, {"wrong": nearly.Host(print)}, seeds=(0,))
    assert "is no method here" in frontier.runs[0].reason
    frontier = nearly.compare(heat, {"wrong": lambda data, *, key: 3}, seeds=(0,))
    assert "must give a module to call" in frontier.runs[0].reason


def test_persistence_has_the_error_of_standing_still(waves: Rollout) -> None:
    frontier = nearly.compare(
        waves, {"persistence": Persistence(), "coarse-stepper": CoarseSolver()}
    )
    states = waves.tests.states.astype(np.float64)
    axes = (2, 3)
    wrong = np.linalg.norm(states[:, :1] - states[:, 1:], axis=axes)
    expected = (wrong / np.linalg.norm(states[:, 1:], axis=axes)).mean()
    still = run_of(frontier, "persistence", 8)
    assert still.error == pytest.approx(expected, rel=1e-5)
    assert still.setup["work"] == {"labelled trajectories": 8}
    solver = run_of(frontier, "coarse-stepper", 32)
    assert solver.error < 1e-4
    assert solver.errors["time to correlation 0.8"] == pytest.approx(0.4)


class Exploding(eqx.Module):
    def __call__(self, state: Any, parameters: Any, *, key: Any) -> Any:
        return state * 1e20


def test_a_rollout_that_diverges_says_when(waves: Rollout) -> None:
    frontier = nearly.compare(waves, {"exploding": lambda data, *, key: Exploding()}, seeds=(0,))
    run = frontier.runs[0]
    assert run.status == "diverged"
    assert "3 of 3 rollouts are not finite, the first from time 0.2 on (of 0.4)" in run.reason


def test_training_moves_the_weights_but_not_the_statistics() -> None:
    rng = np.random.default_rng(0)
    inputs = (5 + 3 * rng.standard_normal((16, 1, 8))).astype(np.float32)
    data = Pairs(inputs, 2 * inputs, np.zeros((16, 0), np.float32), Grid((1.0,), True))
    model = normalized(eqx.nn.Conv1d(1, 1, 1, key=KEY), data)
    assert parameter_count(model) == 2
    assert sum(jax.tree.leaves(trainable(model))) == 2
    made = train(model, data, steps=200, batch=16, learning_rate=0.05, weight_decay=0.1, key=KEY)
    np.testing.assert_array_equal(made.model.input_mean, model.input_mean)
    assert made.losses[-1] < 0.2 * made.losses[0]
    with pytest.raises(InputError, match="2 channels for a model of 1"):
        made.model(jnp.zeros((2, 8)))


def test_training_that_diverges_raises(heat: OperatorMap) -> None:
    model = eqx.nn.Conv1d(1, 1, 1, key=KEY)
    settings = {"steps": 20, "batch": 4, "learning_rate": 1e30}
    with pytest.raises(InputError, match=r"training diverged.*lower learning_rate"):
        train(model, heat.training, key=KEY, loss=mean_squared_loss, **settings)


def test_schedules_are_checked() -> None:
    with pytest.raises(InputError, match="unknown schedule 'cosin': did you mean 'cosine'"):
        optimizer(1e-3, 10, "cosin")
    with pytest.raises(InputError, match="learning_rate=0"):
        optimizer(0.0, 10)


def test_the_command_prints_the_price(fresh_store: Path, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    settings = ["--samples", "32", "--tests", "4", "--resolution", "16", "--methods"]
    result = CliRunner().invoke(
        app,
        ["compare", "antiderivative", *settings, "coarse-solver,pca-ridge"],
        env={"COLUMNS": "220"},
    )
    assert result.exit_code == 0, result.output
    for column in ("relative L2", "parameters", "labelled solves", "pays off after"):
        assert column in result.output
