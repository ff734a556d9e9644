"""Kronecker factors against the dense Gauss-Newton matrix, and where they must equal it."""

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
from nearly.curvature.kronecker import KroneckerOperator, diagonal_fisher, ekfac, kfac
from nearly.curvature.objective import CrossEntropy, Objective, OutputHessian, SquaredError
from nearly.curvature.operators import dense_gauss_newton, gauss_newton

KEY = jax.random.key(0)
EXACT = OutputHessian()


@pytest.fixture(autouse=True)
def x64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def classifier(chunk: int = 256) -> Objective:
    model = eqx.nn.MLP(3, 4, 3, 1, activation=jnp.tanh, key=KEY)
    inputs = jax.random.normal(jax.random.key(1), (30, 3), "float64")
    targets = jax.random.randint(jax.random.key(2), (30,), 0, 4)
    return Objective.of(model, CrossEntropy(), inputs, targets, chunk=chunk)


class Tokens(eqx.Module):
    """A model with a convolution and a layer that is applied to every token."""

    first: eqx.nn.Conv1d
    second: eqx.nn.Linear

    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = jnp.tanh(self.first(x)).T
        return jnp.mean(jax.vmap(self.second)(hidden), axis=0)


def tokens() -> Objective:
    model = Tokens(eqx.nn.Conv1d(1, 2, 3, key=KEY), eqx.nn.Linear(2, 2, key=jax.random.key(3)))
    inputs = jax.random.normal(jax.random.key(1), (12, 1, 5), "float64")
    return Objective.of(model, SquaredError(), inputs, jnp.zeros((12, 2)), chunk=5)


def dense_blocks(objective: Objective, operator: KroneckerOperator) -> list[np.ndarray]:
    """The exact block of every layer, in the order of its matrix's entries."""
    capture = operator.capture
    _, unflatten = ravel_pytree(objective.parameters)
    whole = np.asarray(dense_gauss_newton(objective))
    order = capture.matrices(unflatten(jnp.arange(objective.dimension, dtype="float64")))
    places = [np.asarray(o).ravel().astype(int) for o in order.values()]
    return [whole[np.ix_(p, p)] for p in places]


def in_basis(block: np.ndarray, operator: KroneckerOperator, name: str) -> np.ndarray:
    basis = operator.blocks[name]
    rotation = np.kron(np.asarray(basis.left), np.asarray(basis.right))
    return rotation.T @ block @ rotation


@pytest.mark.parametrize("make", [classifier, tokens])
def test_ekfac_is_the_diagonal_in_its_basis(make: Any) -> None:
    objective = make()
    operator = ekfac(objective, key=KEY, cotangents=EXACT)
    for name, block in zip(operator.blocks, dense_blocks(objective, operator)):
        expected = np.diag(in_basis(block, operator, name))
        np.testing.assert_allclose(operator.blocks[name].values.ravel(), expected, atol=1e-12)


@pytest.mark.parametrize("make", [classifier, tokens])
def test_diagonal_fisher_is_the_diagonal(make: Any) -> None:
    objective = make()
    found = diagonal_fisher(objective, key=KEY, cotangents=EXACT)
    expected = np.diag(np.asarray(dense_gauss_newton(objective)))
    np.testing.assert_allclose(np.diag(found.as_matrix()), expected, atol=1e-12)


def test_kfac_of_one_linear_layer_and_squared_error_is_exact() -> None:
    # Its output Hessian is the identity for every sample: A (x) S is the Gauss-Newton matrix.
    inputs = jax.random.normal(jax.random.key(1), (20, 3), "float64")
    objective = Objective.of(
        eqx.nn.Linear(3, 2, key=KEY), SquaredError(), inputs, jnp.zeros((20, 2))
    )
    for method in (kfac, ekfac):
        found = method(objective, key=KEY, cotangents=EXACT).as_matrix()
        np.testing.assert_allclose(found, dense_gauss_newton(objective), atol=1e-12)


def test_ekfac_is_nearer_than_kfac_in_frobenius_norm() -> None:
    objective = classifier()
    errors = []
    for method in (kfac, ekfac, diagonal_fisher):
        operator = method(objective, key=KEY, cotangents=EXACT)
        blocks = dense_blocks(objective, operator)
        errors.append(
            sum(
                float(np.sum((in_basis(b, operator, n) - np.diag(v.values.ravel())) ** 2))
                for (n, v), b in zip(operator.blocks.items(), blocks)
            )
        )
    assert errors[1] < errors[0]
    assert errors[1] < errors[2]


def test_sampled_labels_tend_to_the_exact_factors() -> None:
    objective = classifier()
    exact = ekfac(objective, key=KEY, cotangents=EXACT)
    sampled = ekfac(objective, key=KEY, passes=300)
    for a, b in zip(exact.mean_eigenvalues().values(), sampled.mean_eigenvalues().values()):
        np.testing.assert_allclose(b, a, rtol=0.05)


def test_the_inverse_is_exact() -> None:
    operator = ekfac(classifier(), key=KEY).damped()
    product = operator.as_matrix() @ operator.inverse().as_matrix()
    np.testing.assert_allclose(product, np.eye(len(product)), atol=1e-10)


def test_powers() -> None:
    operator = kfac(classifier(), key=KEY).damped(0.1)
    root = operator.power(0.5).as_matrix()
    np.testing.assert_allclose(root @ root, operator.as_matrix(), atol=1e-12)


def test_damping_is_a_tenth_of_each_layers_mean() -> None:
    operator = ekfac(classifier(), key=KEY)
    before, after = operator.mean_eigenvalues(), operator.damped().mean_eigenvalues()
    for name in before:
        np.testing.assert_allclose(after[name], 1.1 * before[name])


def test_it_is_a_lineax_operator() -> None:
    objective = classifier()
    operator = ekfac(objective, key=KEY).damped()
    gradient = jax.grad(objective.value)(objective.parameters)
    assert lx.is_positive_semidefinite(operator)
    found = lx.linear_solve(operator, gradient, lx.CG(rtol=1e-12, atol=1e-14, max_steps=500)).value
    expected = operator.inverse().mv(gradient)
    np.testing.assert_allclose(ravel_pytree(found)[0], ravel_pytree(expected)[0], atol=1e-8)


def test_it_preconditions_conjugate_gradients() -> None:
    objective = classifier()
    gradient = jax.grad(objective.value)(objective.parameters)
    damping = 1e-4
    operator = lx.AddLinearOperator(
        gauss_newton(objective),
        lx.IdentityLinearOperator(gauss_newton(objective).in_structure()) * damping,
    )
    tagged = lx.TaggedLinearOperator(operator, lx.positive_semidefinite_tag)
    plain = lx.linear_solve(tagged, gradient, lx.CG(1e-6, 1e-12))
    inverse = ekfac(objective, key=KEY, cotangents=EXACT).damped(damping).inverse()
    better = lx.linear_solve(
        tagged, gradient, lx.CG(1e-6, 1e-12), options={"preconditioner": inverse}
    )
    assert int(better.stats["num_steps"]) < int(plain.stats["num_steps"])


def test_operators_pass_through_jit_vmap_and_grad() -> None:
    objective = classifier()
    operator = kfac(objective, key=KEY).damped()
    gradient = jax.grad(objective.value)(objective.parameters)
    apply = eqx.filter_jit(lambda o, v: ravel_pytree(o.inverse().mv(v))[0])
    np.testing.assert_allclose(
        apply(operator, gradient), ravel_pytree(operator.inverse().mv(gradient))[0], atol=1e-12
    )
    two = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), gradient)
    np.testing.assert_allclose(
        jax.vmap(lambda v: apply(operator, v))(two)[1], 2 * apply(operator, gradient)
    )
    quadratic = jax.grad(lambda v: 0.5 * ravel_pytree(v)[0] @ apply(operator, v))(gradient)
    np.testing.assert_allclose(ravel_pytree(quadratic)[0], apply(operator, gradient), atol=1e-12)


def test_chunks_and_progress() -> None:
    seen: list[tuple[int, int]] = []
    objective = classifier(chunk=7)
    one = ekfac(objective, key=KEY, cotangents=EXACT, progress=lambda d, t, _: seen.append((d, t)))
    whole = ekfac(classifier(), key=KEY, cotangents=EXACT)
    np.testing.assert_allclose(one.as_matrix(), whole.as_matrix(), atol=1e-12)
    assert seen == [(i + 1, 10) for i in range(10)]


def test_float32() -> None:
    with jax.enable_x64(False):
        model = eqx.nn.MLP(3, 4, 3, 1, key=KEY)
        inputs = jax.random.normal(KEY, (8, 3), "float32")
        objective = Objective.of(model, CrossEntropy(), inputs, jnp.zeros(8, int))
        operator = ekfac(objective, key=KEY).damped().inverse()
        product = ravel_pytree(operator.mv(objective.parameters))[0]
        assert product.dtype == "float32" and bool(jnp.all(jnp.isfinite(product)))


def test_errors_name_the_value_and_the_remedy() -> None:
    operator = kfac(classifier(), key=KEY)
    with pytest.raises(InputError, match=r"damping -1.* must be positive"):
        operator.damped(-1.0)
    with pytest.raises(InputError, match=r"no damping is given for the layer layers\[1\]"):
        operator.damped({"layers[0]": 0.1})
    with pytest.raises(InputError, match="passes = 0"):
        kfac(classifier(), key=KEY, passes=0)
