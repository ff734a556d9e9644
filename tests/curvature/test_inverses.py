"""Every catalogued inverse and influence method obeys its protocol."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import nearly
from nearly.core import catalogue
from nearly.core.lazy import load
from nearly.curvature.objective import CrossEntropy, Objective
from nearly.curvature.operators import dense_gauss_newton, spread
from nearly.curvature.problems.inverse import pearson

KEY = jax.random.key(0)
DAMPING = 0.05
INVERSES = catalogue.methods("curvature")
INFLUENCES = catalogue.methods("influence")


@pytest.fixture(autouse=True)
def x64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def objective() -> Objective:
    model = eqx.nn.MLP(3, 4, 5, 1, activation=jnp.tanh, key=KEY)
    inputs = jax.random.normal(jax.random.key(1), (40, 3), "float64")
    targets = jax.random.randint(jax.random.key(2), (40,), 0, 4)
    return Objective.of(model, CrossEntropy(), inputs, targets)


@pytest.mark.parametrize("name", INVERSES)
def test_an_inverse_is_a_linear_lineax_operator(name: str) -> None:
    o = objective()
    damping = spread(DAMPING, o.parameters)
    operator = load(INVERSES[name].target)(o, damping, 2, key=KEY)
    assert isinstance(operator, lx.AbstractLinearOperator)
    gradient = jax.grad(o.value)(o.parameters)
    apply = eqx.filter_jit(lambda p, v: ravel_pytree(p.mv(v))[0])
    product = apply(operator, gradient)
    assert product.dtype == "float64" and bool(jnp.all(jnp.isfinite(product)))
    double = apply(operator, jax.tree.map(lambda x: 2 * x, gradient))
    np.testing.assert_allclose(double, 2 * product, rtol=1e-9)
    assert float(product @ ravel_pytree(gradient)[0]) > 0  # it stays a descent direction
    again = load(INVERSES[name].target)(o, damping, 2, key=KEY)
    np.testing.assert_array_equal(apply(again, gradient), product)


@pytest.mark.parametrize("name", INFLUENCES)
def test_influence_correlates_with_the_exact_one(name: str) -> None:
    o = objective()
    damping = spread(DAMPING, o.parameters)
    queries = o.gradients(*jax.tree.map(lambda x: x[:4], o.data))
    scorer = load(INFLUENCES[name].target)(o, damping, 8, key=KEY)
    scores = np.asarray(eqx.filter_jit(lambda s, o, q: s(o, q))(scorer, o, queries))
    matrix = np.asarray(dense_gauss_newton(o)) + DAMPING * np.eye(o.dimension)
    gradients = np.asarray(o.gradients(*o.data))
    truth = -np.asarray(queries) @ np.linalg.solve(matrix, gradients.T)
    assert scores.shape == truth.shape
    assert pearson(scores, truth) > 0.5


def test_pearson_by_hand() -> None:
    a = np.array([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    b = np.array([[2.0, 4.0, 6.0], [1.0, 2.0, 3.0]])
    assert pearson(a, b) == pytest.approx(0.5)


@pytest.mark.slow
def test_the_problems_run_in_compare() -> None:
    for problem, methods in (
        ("influence-tanh", ["influence-ekfac", "influence-cg", "influence-identity"]),
        ("curvature-tanh", ["inverse-ekfac", "inverse-cg", "inverse-identity"]),
    ):
        frontier = nearly.compare(problem, methods, dials=[16], seeds=[0], timed=False)
        errors: dict[str, Any] = {run.method: run.worst for run in frontier}
        kind = methods[0].partition("-")[0]
        assert errors[f"{kind}-cg"] < errors[f"{kind}-ekfac"] < errors[f"{kind}-identity"]
        work = {run.method: run.work for run in frontier}
        assert work[f"{kind}-cg"]["samples vjps"] > work[f"{kind}-ekfac"].get("samples vjps", 0)
