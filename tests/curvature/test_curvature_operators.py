"""Curvature operators against dense matrices built by hand."""

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

from nearly.core.errors import InputError
from nearly.curvature.objective import (
    BinaryCrossEntropy,
    CrossEntropy,
    Objective,
    ObservedLabels,
    OutputHessian,
    SampledLabels,
    SquaredError,
    output_hessian,
)
from nearly.curvature.operators import (
    EmpiricalFisher,
    Hessian,
    damped,
    dense_gauss_newton,
    fisher,
    gauss_newton,
)

KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def x64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def classifier(chunk: int = 4) -> Objective:
    model = eqx.nn.MLP(3, 4, 3, 1, activation=jnp.tanh, key=KEY)
    inputs = jax.random.normal(jax.random.key(1), (10, 3), "float64")
    targets = jax.random.randint(jax.random.key(2), (10,), 0, 4)
    return Objective.of(model, CrossEntropy(), inputs, targets, chunk=chunk)


def regression() -> Objective:
    model = eqx.nn.MLP(3, 2, 3, 1, activation=jnp.tanh, key=KEY)
    inputs = jax.random.normal(jax.random.key(1), (10, 3), "float64")
    targets = jax.random.normal(jax.random.key(2), (10, 2), "float64")
    return Objective.of(model, SquaredError(), inputs, targets, chunk=3)


def by_hand(o: Objective) -> np.ndarray:
    """(1/N) sum J^T H J with forward-mode Jacobians and the Hessian of the loss."""
    flat, unflatten = ravel_pytree(o.parameters)
    total = np.zeros((flat.size, flat.size))
    jacobian_of = jax.jit(jax.jacfwd(lambda p, x: o.output(unflatten(p), x)))
    hessian_of = jax.jit(jax.hessian(o.loss))
    for x, t in zip(*o.data):
        jacobian = np.asarray(jacobian_of(flat, x))
        hessian = np.asarray(hessian_of(o.output(o.parameters, x), t))
        total += jacobian.T @ hessian @ jacobian
    return total / o.samples


@pytest.mark.parametrize("o", [classifier, regression], ids=["classes", "numbers"])
def test_gauss_newton(o: Any) -> None:
    objective = o()
    expected = by_hand(objective)
    np.testing.assert_allclose(gauss_newton(objective).as_matrix(), expected, atol=1e-12)
    np.testing.assert_allclose(dense_gauss_newton(objective), expected, atol=1e-12)


def test_hessian_is_jaxs() -> None:
    o = classifier()
    flat, unflatten = ravel_pytree(o.parameters)
    expected = jax.hessian(lambda p: o.value(unflatten(p)))(flat)
    np.testing.assert_allclose(Hessian(o).as_matrix(), expected, atol=1e-12)


def test_hessian_of_a_linear_model_is_gauss_newton() -> None:
    o = classifier()
    linear = Objective.of(eqx.nn.Linear(3, 4, key=KEY), CrossEntropy(), *o.data)
    np.testing.assert_allclose(
        Hessian(linear).as_matrix(), gauss_newton(linear).as_matrix(), atol=1e-12
    )


def test_empirical_fisher_is_the_gradients_second_moment() -> None:
    o = classifier()
    rows = np.asarray(o.gradients(*o.data))
    expected = rows.T @ rows / o.samples
    np.testing.assert_allclose(EmpiricalFisher(o).as_matrix(), expected, atol=1e-12)


def test_chunks_do_not_matter() -> None:
    vector = jax.tree.map(jnp.ones_like, classifier().parameters)
    products = [
        ravel_pytree(gauss_newton(classifier(chunk)).mv(vector))[0] for chunk in (1, 3, 5, 10, 64)
    ]
    for product in products[1:]:
        np.testing.assert_allclose(product, products[0], atol=1e-13)


@pytest.mark.parametrize("loss", [CrossEntropy(), SquaredError(), BinaryCrossEntropy()])
def test_cotangents_square_to_the_output_hessian(loss: Any) -> None:
    outputs = jnp.asarray([0.3, -1.0, 0.5])
    target = jnp.asarray(1) if isinstance(loss, CrossEntropy) else jnp.asarray([0.0, 1.0, 1.0])
    expected = np.asarray(output_hessian(loss, outputs, target))
    roots = np.stack(OutputHessian()(loss, outputs, target, KEY))
    np.testing.assert_allclose(roots.T @ roots, expected, atol=1e-12)


def test_sampled_labels_are_unbiased() -> None:
    outputs, loss = jnp.asarray([0.3, -1.0, 0.5]), CrossEntropy()
    keys = jax.random.split(KEY, 40_000)
    drawn = jax.vmap(lambda k: SampledLabels()(loss, outputs, jnp.asarray(0), k)[0])(keys)
    products = np.asarray(drawn[:, :, None] * drawn[:, None, :])
    error = products.mean(0) - np.asarray(output_hessian(loss, outputs, jnp.asarray(0)))
    assert np.all(np.abs(error) < 4 * products.std(0) / len(keys) ** 0.5 + 1e-12)


def test_observed_labels_are_the_gradient() -> None:
    outputs = jnp.asarray([0.0, 0.0])
    (gradient,) = ObservedLabels()(CrossEntropy(), outputs, jnp.asarray(0), KEY)
    np.testing.assert_allclose(gradient, [-0.5, 0.5])


def test_the_fisher_tends_to_gauss_newton() -> None:
    o = classifier()
    many = o.on(*jax.tree.map(lambda x: jnp.repeat(x, 2000, axis=0), o.data))
    many = eqx.tree_at(lambda x: x.parameters, many, o.parameters)
    matrix = fisher(many, KEY).as_matrix()
    error = jnp.linalg.norm(matrix - by_hand(o)) / jnp.linalg.norm(by_hand(o))
    assert error < 0.05


def test_a_damped_system_is_solved_by_lineax() -> None:
    o = classifier()
    gradient = jax.grad(o.value)(o.parameters)
    operator = damped(gauss_newton(o), 0.1)
    assert lx.is_positive_semidefinite(operator) and lx.is_symmetric(operator)
    assert not lx.is_positive_semidefinite(damped(Hessian(o), 0.1))
    found = lx.linear_solve(operator, gradient, lx.CG(rtol=1e-12, atol=1e-14)).value
    dense = by_hand(o) + 0.1 * np.eye(o.dimension)
    expected = np.linalg.solve(dense, ravel_pytree(gradient)[0])
    np.testing.assert_allclose(ravel_pytree(found)[0], expected, atol=1e-9)


def test_some_layers_only() -> None:
    o = classifier()
    last = Objective.of(o.model, CrossEntropy(), *o.data, layers=["layers[1]"])
    whole = by_hand(o)
    assert last.dimension == 16
    np.testing.assert_allclose(gauss_newton(last).as_matrix(), whole[-16:, -16:], atol=1e-12)


def test_materialise_and_diagonal() -> None:
    o = classifier()
    operator = gauss_newton(o)
    np.testing.assert_allclose(lx.diagonal(operator), np.diag(by_hand(o)), atol=1e-12)
    vector = jax.tree.map(jnp.ones_like, o.parameters)
    same = lx.materialise(operator).mv(vector)
    np.testing.assert_allclose(
        ravel_pytree(same)[0], ravel_pytree(operator.mv(vector))[0], atol=1e-12
    )


def test_errors_name_the_value_and_the_remedy() -> None:
    o = classifier()
    with pytest.raises(InputError, match=r"damping -1.* must be positive"):
        damped(gauss_newton(o), -1.0)
    with pytest.raises(InputError, match=r"\[9, 10\] samples"):
        Objective.of(o.model, CrossEntropy(), o.inputs[:9], o.targets)
    with pytest.raises(InputError, match="chunk = 0"):
        Objective.of(o.model, CrossEntropy(), *o.data, chunk=0)
    with pytest.raises(InputError, match="draws = 0"):
        SampledLabels(0)
    with pytest.raises(InputError, match="no method sample"):
        SampledLabels()(lambda y, t: jnp.sum(y**2), jnp.ones(2), None, KEY)
