"""Polynomial preconditioners and the minimisers that use them."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
import pytest

from nearly.core.errors import InputError
from nearly.core.tally import counted, tally
from nearly.linear import polynomial as pol
from nearly.linear import preconditioned_descent as descent
from nearly.linear.conjugate_gradient import ConjugateGradient

SIZE = 12
VALUES = np.r_[1000.0, 100.0, np.linspace(5, 1, SIZE - 2)]


@pytest.fixture(autouse=True)
def x64() -> Any:
    with jax.enable_x64(True):
        yield


def matrix_of(values: np.ndarray = VALUES, seed: int = 0) -> jax.Array:
    size = len(values)
    vectors = np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]
    return jnp.asarray((vectors * values) @ vectors.T)


def operator_of(values: np.ndarray = VALUES) -> lx.MatrixLinearOperator:
    return lx.MatrixLinearOperator(matrix_of(values), lx.positive_semidefinite_tag)


def condition(matrix: Any) -> float:
    values = np.real(np.linalg.eigvals(np.asarray(matrix)))
    return float(values.max() / values.min())


# ------------------------------------------------------------------ operators


def test_elementary_symmetric_polynomials_by_hand() -> None:
    values = np.array([1.0, 2.0, 3.0])
    sums = jnp.asarray([np.sum(values**k) for k in (1, 2, 3)])
    np.testing.assert_allclose(pol.elementary_symmetric(sums), [1, 6, 11, 6], rtol=1e-14)


def test_exact_power_sums() -> None:
    for order in (1, 2, 3, 4, 5):
        expected = [np.sum(VALUES**k) for k in range(1, order + 1)]
        np.testing.assert_allclose(pol.exact_power_sums(operator_of(), order), expected)


def test_hutchinson_is_exact_for_diagonal_matrices_and_unbiased() -> None:
    diagonal = lx.MatrixLinearOperator(jnp.diag(jnp.asarray(VALUES)))
    sums = pol.hutchinson_power_sums(jax.random.key(0), 2)(diagonal, 3)
    np.testing.assert_allclose(sums, [np.sum(VALUES**k) for k in (1, 2, 3)], rtol=1e-12)
    many = pol.hutchinson_power_sums(jax.random.key(1), 4000)(operator_of(), 2)
    np.testing.assert_allclose(many, [np.sum(VALUES), np.sum(VALUES**2)], rtol=0.1)


@pytest.mark.parametrize("degree", [1, 2])
def test_the_condition_number_is_the_papers(degree: int) -> None:
    operator = operator_of()
    made = pol.symmetric_polynomial(operator, degree)
    found = condition(operator.as_matrix() @ made.as_matrix())
    np.testing.assert_allclose(found, pol.condition_bound(VALUES, degree), rtol=1e-6)
    columns = jax.vmap(made.mv, in_axes=1, out_axes=1)(jnp.eye(SIZE))
    np.testing.assert_allclose(columns, made.as_matrix(), atol=1e-12)


def test_the_highest_degree_is_the_inverse() -> None:
    values = np.array([4.0, 2.0, 1.0])
    operator = operator_of(values)
    made = pol.symmetric_polynomial(operator, 2).as_matrix() @ operator.as_matrix()
    np.testing.assert_allclose(made / made[0, 0], np.eye(3), atol=1e-12)


def test_bad_traces_are_refused() -> None:
    def wrong(operator: Any, order: int) -> jax.Array:
        return pol.exact_power_sums(operator, order) * jnp.asarray([1.0, 1.2])

    with pytest.raises(Exception, match="is indefinite: its traces are not accurate"):
        jax.block_until_ready(pol.symmetric_polynomial(operator_of(), 2, wrong).ratios)


def test_conjugate_gradients_take_them() -> None:
    operator, rhs = operator_of(), jnp.ones(SIZE)
    truth = np.linalg.solve(operator.as_matrix(), rhs)
    for made in (
        pol.symmetric_polynomial(operator, 2),
        pol.chebyshev_polynomial(operator, 3, condition=1000.0),
    ):
        solution = lx.linear_solve(
            operator, rhs, ConjugateGradient(1e-12), options={"preconditioner": made}
        )
        np.testing.assert_allclose(solution.value, truth, rtol=1e-8)
        assert lx.is_positive_semidefinite(made)


@pytest.mark.parametrize("degree", [0, 1, 4])
def test_chebyshev_has_the_smallest_residual_polynomial(degree: int) -> None:
    lower, upper = 1.0, 9.0
    x = np.linspace(lower, upper, 200)
    operator = lx.MatrixLinearOperator(jnp.diag(jnp.asarray(x)))
    made = pol.ChebyshevPolynomial(operator, jnp.asarray(lower), jnp.asarray(upper), degree)
    residual = 1 - x * made.mv(jnp.ones(200))
    # 1 / T_(degree + 1) at the centre over the radius
    smallest = 1 / np.cosh((degree + 1) * np.arccosh((upper + lower) / (upper - lower)))
    np.testing.assert_allclose(np.max(np.abs(residual)), smallest, rtol=1e-10)


# ------------------------------------------------------------------ minimisers


def minimisers(operator: lx.AbstractLinearOperator, tolerance: float) -> dict[str, Any]:
    made = pol.symmetric_polynomial(operator, 2)
    tight = (tolerance, tolerance)
    return {
        "gd": descent.PreconditionedGradientDescent(*tight, preconditioner=made),
        "fgm": descent.PreconditionedFastGradient(*tight, preconditioner=made),
        "krylov": descent.KrylovGradientDescent(*tight, operator=operator, degree=3),
    }


def logistic(weights: dict[str, jax.Array], inputs: jax.Array) -> jax.Array:
    flat = jnp.concatenate([weights["a"], weights["b"]])
    return jnp.mean(jax.nn.softplus(inputs @ flat)) + 0.05 * jnp.sum(flat**2)


@pytest.mark.parametrize("name", ["gd", "fgm", "krylov"])
def test_minimisers_on_a_pytree(name: str) -> None:
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=(40, 5)) * np.geomspace(10, 0.3, 5))
    gram = inputs.T @ inputs / 160 + 0.1 * jnp.eye(5)
    start = {"a": jnp.zeros(2), "b": jnp.zeros(3)}

    def product(v: dict[str, jax.Array]) -> dict[str, jax.Array]:
        flat = gram @ jnp.concatenate([v["a"], v["b"]])
        return {"a": flat[:2], "b": flat[2:]}

    structure = jax.eval_shape(lambda: start)
    operator = lx.FunctionLinearOperator(product, structure, lx.positive_semidefinite_tag)
    if name == "krylov":
        solver: Any = descent.KrylovGradientDescent(1e-10, 1e-12, operator=operator, degree=2)
    else:
        made = pol.symmetric_polynomial(operator, 2, pol.hutchinson_power_sums(jax.random.key(0)))
        kind = {"gd": descent.PreconditionedGradientDescent}.get(
            name, descent.PreconditionedFastGradient
        )
        solver = kind(1e-10, 1e-12, preconditioner=made)
    solution = optx.minimise(logistic, solver, start, inputs, max_steps=2000)
    slope = jax.grad(logistic)(solution.value, inputs)
    assert max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(slope)) < 1e-6


def test_quadratics_take_as_many_steps_as_the_condition_number_says() -> None:
    operator = operator_of()

    def loss(x: jax.Array, _: Any) -> jax.Array:
        return 0.5 * x @ operator.mv(x) - jnp.sum(x)

    truth = np.linalg.solve(operator.as_matrix(), np.ones(SIZE))
    steps = {}
    for name, solver in minimisers(operator, 1e-11).items():
        solution = optx.minimise(loss, solver, jnp.zeros(SIZE), max_steps=5000)
        np.testing.assert_allclose(solution.value, truth, rtol=1e-5)
        steps[name] = int(solution.stats["num_steps"])
    bound = pol.condition_bound(VALUES, 2)
    # log(1e11) kappa steps at M within a factor of two of the largest eigenvalue.
    assert steps["gd"] < 26 * 2 * bound
    assert steps["krylov"] < steps["gd"]


def test_krylov_of_full_degree_is_newtons_method_on_a_quadratic() -> None:
    values = np.array([100.0, 10.0, 1.0])
    operator, rhs = operator_of(values), jnp.asarray([1.0, 2.0, 3.0])
    solver = descent.KrylovGradientDescent(operator=operator, degree=2)
    np.testing.assert_allclose(
        solver.direction(rhs), np.linalg.solve(operator.as_matrix(), rhs), rtol=1e-10
    )
    np.testing.assert_allclose(solver.direction(jnp.zeros(3)), np.zeros(3))
    # An exhausted subspace beside the null space of B: no part of the step lies there.
    flat = lx.MatrixLinearOperator(jnp.diag(jnp.asarray([2.0, 0.0, 0.0])))
    solver = descent.KrylovGradientDescent(operator=flat, degree=2)
    np.testing.assert_allclose(solver.direction(jnp.asarray([1.0, 0.0, 0.0])), [0.5, 0, 0])


def test_one_gradient_a_step() -> None:
    operator = operator_of()
    oracle = counted(lambda x: 0.5 * x @ operator.mv(x) - jnp.sum(x), "losses")
    solver = minimisers(operator, 1e-3)["gd"]
    with tally() as counts:
        solution = optx.minimise(lambda x, _: oracle(x), solver, jnp.zeros(SIZE), max_steps=500)
        steps = int(solution.stats["num_steps"])
    assert counts.read()["losses vjps"] == steps + 1


def test_an_indefinite_preconditioner_is_reported() -> None:
    uphill = lx.DiagonalLinearOperator(-jnp.ones(2))
    solver = descent.PreconditionedGradientDescent(preconditioner=uphill)
    solution = optx.minimise(lambda x, _: jnp.sum(x**2), solver, jnp.ones(2), throw=False)
    assert solution.result != optx.RESULTS.successful
    with pytest.raises(eqx.EquinoxRuntimeError):
        optx.minimise(lambda x, _: jnp.sum(x**2), solver, jnp.ones(2))


def test_misuse_says_what_to_do() -> None:
    with pytest.raises(InputError, match="degree 12 must be from 0 to 11"):
        pol.symmetric_polynomial(operator_of(), 12)
    with pytest.raises(InputError, match="probes 0"):
        pol.hutchinson_power_sums(jax.random.key(0), 0)
    with pytest.raises(InputError, match="condition 1"):
        pol.chebyshev_polynomial(operator_of(), 2, condition=1.0)
    with pytest.raises(InputError, match="degree 12 must be from 0 to 11"):
        descent.KrylovGradientDescent(operator=operator_of(), degree=12)
    with pytest.raises(InputError, match="must not be negative"):
        descent.PreconditionedGradientDescent(-1.0, preconditioner=operator_of())
