"""Matrix roots: right where they say so, differentiable everywhere, and honest about the rest."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nearly.core import catalogue
from nearly.core.compare import compare
from nearly.core.errors import InputError, UnknownName
from nearly.linear import matrix_functions as mf
from nearly.linear.lyapunov import (
    converged_lyapunov,
    fixed_lyapunov,
    solve_lyapunov,
    solve_power_equation,
)
from nearly.linear.matrix_function_peers import jax_eigh
from nearly.linear.problems.matrix_function import (
    MatrixFunction,
    matrix_function,
    products,
    root_and_gradient,
)

SIZE = 6
ACCURATE = {
    "taylor": mf.TaylorRoot(60, scale=mf.spectral_norm),
    "pade": mf.PadeRoot(12),
    "pade geometric": mf.PadeRoot(8, scale=mf.geometric_mean),
    "pade spectral": mf.PadeRoot(12, scale=mf.spectral_norm),
    "newton-schulz": mf.NewtonSchulzRoot(12),
    "newton": mf.NewtonRoot(25),
    "eigh": mf.EighRoot(),
}


@pytest.fixture(autouse=True)
def x64() -> Any:
    with jax.enable_x64(True):
        yield


@lru_cache
def spd(batch: int = 2, condition: float = 3.0, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    vectors = np.linalg.qr(random.normal(size=(batch, SIZE, SIZE)))[0]
    return (vectors * np.geomspace(2, 2 / condition, SIZE)) @ np.swapaxes(vectors, -2, -1)


def weights(seed: int = 1) -> np.ndarray:
    w = np.random.default_rng(seed).normal(size=(SIZE, SIZE))
    return w + w.T


@pytest.mark.parametrize("root", [2, -2, 3, -4])
@pytest.mark.parametrize("name", ACCURATE)
def test_roots_and_gradients(name: str, root: int) -> None:
    method = ACCURATE[name]
    if name == "newton-schulz" and abs(root) != 2:
        with pytest.raises(InputError, match="takes root 2 or -2, not"):
            method(jnp.asarray(spd()), root)
        return
    w = np.broadcast_to(weights(), spd().shape)

    @jax.jit
    def both(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
        value, pull = jax.vjp(lambda a: method(a, root), matrix)
        return value, pull(jnp.asarray(w))[0]

    for ours, truth in zip(both(jnp.asarray(spd())), root_and_gradient(spd(), w, root)):
        np.testing.assert_allclose(ours, truth, atol=1e-7)


def test_the_published_coefficients() -> None:
    numerator, denominator = mf.pade_coefficients(2, 5)
    np.testing.assert_allclose(
        numerator, [1, -2.75, 2.75, -1.203125, 0.21484375, -0.0107421875], rtol=1e-15
    )
    np.testing.assert_allclose(
        denominator, [1, -2.25, 1.75, -0.546875, 0.05859375, -0.0009765625], rtol=1e-15
    )
    assert mf.taylor_coefficients(2, 4) == (1, -1 / 2, -1 / 8, -1 / 16, -5 / 128)
    assert mf.taylor_coefficients(-1, 3) == (1, 1, 1, 1)


@pytest.mark.parametrize("degree", [2, 4])
def test_order_of_convergence(degree: int) -> None:
    # At I - Z the Padé approximant is off by O(z^(2 degree + 1)), the polynomial by z^(degree + 1).
    for method, order in (
        (mf.PadeRoot(degree), 2 * degree + 1),
        (mf.TaylorRoot(degree), degree + 1),
    ):
        z = np.array([0.2, 0.1])
        values = method.of_scaled(jnp.asarray(1 - z)[:, None, None], 2)[:, 0, 0]
        errors = np.abs(values - np.sqrt(1 - z))
        assert abs(np.log2(errors[0] / errors[1]) - order) < 0.7


def test_geometric_scaling_halves_the_logarithm_of_the_condition_number() -> None:
    condition, degree = 81.0, 5
    matrix = jnp.asarray(spd(1, condition))
    value = mf.PadeRoot(degree, scale=mf.geometric_mean)(matrix)
    truth = root_and_gradient(np.asarray(matrix), np.asarray(matrix), 2)[0]
    error = np.linalg.norm(value - truth, 2, axis=(-2, -1)) / np.linalg.norm(
        truth, 2, axis=(-2, -1)
    )
    # (1 - r)/(1 + r) to the 2 degree + 1 at both ends, r the fourth root of the condition number.
    ratio = condition**0.25
    assert error[0] < 2.1 * ((ratio - 1) / (ratio + 1)) ** (2 * degree + 1)


@pytest.mark.parametrize("root", [2, -2, -3])
def test_second_derivatives_forward_over_reverse_and_the_other_way(root: int) -> None:
    matrix, w, e = jnp.asarray(spd()[0]), jnp.asarray(weights()), jnp.asarray(weights(2))

    def gradient(a: jax.Array) -> jax.Array:
        return jax.grad(lambda a: jnp.sum(w * mf.EighRoot()(a, root)))(a)

    gradient = jax.jit(gradient)
    step = 1e-5
    difference = (gradient(matrix + step * e) - gradient(matrix - step * e)) / (2 * step)
    forward = jax.jvp(gradient, (matrix,), (e,))[1]
    backward = jax.grad(lambda a: jnp.sum(gradient(a) * e))(matrix)
    np.testing.assert_allclose(forward, difference, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(backward, forward, atol=1e-10)


@pytest.mark.parametrize("root", [2, -2, 3, -4])
def test_the_gradient_is_finite_where_eigenvalues_coincide(root: int) -> None:
    identity, w = jnp.eye(SIZE), jnp.asarray(weights())
    ours = jax.grad(lambda a: jnp.sum(w * mf.PadeRoot(8)(a, root)))(identity)
    np.testing.assert_allclose(ours, w / root, atol=1e-5)
    theirs = jax.grad(lambda a: jnp.sum(w * jax_eigh(a, root)))(identity)
    assert not np.all(np.isfinite(theirs))


def test_scale_equivariance_and_batches() -> None:
    matrix = jnp.asarray(spd())
    method = mf.PadeRoot()
    np.testing.assert_allclose(method(100 * matrix), 10 * method(matrix), rtol=1e-12)
    np.testing.assert_allclose(method(matrix)[1], method(matrix[1]), rtol=1e-12)
    np.testing.assert_allclose(jax.vmap(method)(matrix), method(matrix), rtol=1e-12)
    # A batch of very different sizes: each matrix's gradient is that of the matrix alone.
    mixed = jnp.stack([matrix[0], 1e6 * matrix[1]])
    gradient = jax.grad(lambda a: jnp.sum(mf.EighRoot()(a)))
    np.testing.assert_allclose(gradient(mixed)[0], gradient(mixed[0]), rtol=1e-9)
    np.testing.assert_allclose(gradient(mixed)[1], gradient(mixed[1]), rtol=1e-9)


def test_float32_stays_float32() -> None:
    matrix = jnp.asarray(spd(), jnp.float32)
    value, pull = jax.vjp(mf.EighRoot(), matrix)
    assert value.dtype == pull(value)[0].dtype == jnp.float32
    truth = root_and_gradient(spd(), np.asarray(value, np.float64), 2)
    np.testing.assert_allclose(pull(value)[0], truth[1], atol=1e-5)


# ------------------------------------------------------------------ the equations


def test_lyapunov_by_the_definition() -> None:
    s, g = jnp.asarray(spd(condition=1e4)), jnp.asarray(weights())
    x = solve_lyapunov(s, jnp.broadcast_to(g, s.shape))
    np.testing.assert_allclose(s @ x + x @ s, np.broadcast_to(g, s.shape), atol=1e-9)


def test_eight_steps_are_right_for_well_conditioned_matrices_only() -> None:
    def error(condition: float) -> float:
        s, g = jnp.asarray(spd(condition=condition)), jnp.asarray(weights())
        g = jnp.broadcast_to(g, s.shape)
        truth = converged_lyapunov(s, g)
        difference = fixed_lyapunov(s, g) - truth
        return float(jnp.max(jnp.abs(difference)) / jnp.max(jnp.abs(truth)))

    assert error(1.5) < 1e-6
    assert error(1e3) > 0.3
    s = jnp.asarray(spd(condition=1e3))
    steps = fixed_lyapunov(s, s, steps=40)
    np.testing.assert_allclose(steps, 0.5 * np.broadcast_to(np.eye(SIZE), s.shape), atol=1e-9)


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_the_power_equation_by_the_definition(order: int) -> None:
    y, g = jnp.asarray(spd()), jnp.broadcast_to(jnp.asarray(weights()), spd().shape)
    x = solve_power_equation(y, g, order)
    power = np.linalg.matrix_power
    left = sum(power(y, k) @ np.asarray(x) @ power(y, order - 1 - k) for k in range(order))
    np.testing.assert_allclose(left, g, atol=1e-10)


# ------------------------------------------------------------------ honesty


def test_the_limit_of_a_method_is_where_its_error_passes_the_tolerance() -> None:
    for method in (mf.TaylorRoot(), mf.PadeRoot(), mf.NewtonSchulzRoot()):
        limit = mf.condition_limit(method, 1e-3)
        values = np.array([1 / limit * 1.01, 1 / limit * 0.99])
        roots = method.of_scaled(jnp.asarray(values)[:, None, None], 2)[:, 0, 0]
        errors = np.abs(roots / np.sqrt(values) - 1)
        assert errors[0] < 1e-3 < errors[1]
    assert mf.condition_limit(mf.EighRoot(), 1e-3) == np.inf
    assert mf.condition_limit(mf.PadeRoot(), 1e-3) < mf.condition_limit(mf.PadeRoot(10), 1e-3)


@pytest.mark.parametrize("root", [2, -2, 3])
def test_the_error_estimate_is_the_error(root: int) -> None:
    matrix = jnp.asarray(spd(1, 300.0))
    value = mf.PadeRoot(6)(matrix, root)
    vectors = np.linalg.eigh(np.asarray(matrix[0]))[1]
    values = np.linalg.eigvalsh(np.asarray(matrix[0]))
    found = np.diag(vectors.T @ value[0] @ vectors)
    truth = np.sqrt(np.mean((found / values ** (1 / root) - 1) ** 2))
    assert 1e-3 < truth < 0.3
    np.testing.assert_allclose(mf.root_error(matrix, value, root), [truth], rtol=0.5)


def test_a_checked_root_raises() -> None:
    safe = jax.jit(lambda a: mf.checked_root(mf.PadeRoot(), 1e-2)(a, 2))
    np.testing.assert_allclose(safe(jnp.asarray(spd())), mf.PadeRoot()(jnp.asarray(spd())))
    with pytest.raises(Exception, match="too ill-conditioned for it"):
        jax.block_until_ready(safe(jnp.asarray(spd(condition=1e4))))


def test_misuse_says_what_to_do() -> None:
    with pytest.raises(InputError, match="root 0 is no power"):
        mf.PadeRoot()(jnp.asarray(spd()), 0)
    with pytest.raises(InputError, match="degree 0 must be"):
        mf.TaylorRoot(0)
    with pytest.raises(UnknownName, match="did you mean 'geometric'"):
        matrix_function(spectrum="geometrical")
    with pytest.raises(InputError, match="condition 0"):
        matrix_function(condition=0.5)
    with pytest.raises(InputError, match="must be square and float32"):
        MatrixFunction(name="mine", dtype="float32", matrices=spd())  # type: ignore[call-arg]


# ------------------------------------------------------------------ the problem


@pytest.mark.parametrize("name", catalogue.methods("matrix-functions"))
def test_every_method_of_the_catalogue(name: str, fresh_store: Any) -> None:
    gradient = "sqrtm" not in name
    problem = matrix_function(size=5, batch=2, differentiate=gradient, dtype="float64")
    method = catalogue.method(name, "matrix-functions")[0]
    dials = problem.dials(method)[-1:]
    (run,) = compare(problem, [name], dials=dials, timed=False, seeds=(0,))
    assert run.status == "ok", run.reason
    assert run.worst < (0.2 if name == "taylor-root" else 1e-3)


def test_a_method_without_a_derivative_is_a_failed_run(fresh_store: Any) -> None:
    problem = matrix_function(size=4, batch=1, differentiate=True, dtype="float64")
    (run,) = compare(problem, ["scipy-sqrtm"], timed=False)
    assert run.status == "failed"
    assert "no gradient" in run.reason


def test_work_is_read_off_the_program() -> None:
    shape = jax.ShapeDtypeStruct((4, 4), jnp.float64)
    assert products(lambda a: mf.TaylorRoot(10)(a), shape) == {"matmuls": 9}
    assert products(lambda a: mf.NewtonSchulzRoot(5)(a), shape) == {"matmuls": 15}
    assert products(lambda a: mf.PadeRoot(5)(a), shape)["matmuls"] == 4
    looped = products(lambda a: jax.lax.fori_loop(0, 3, lambda _, x: x @ a, a), shape)
    assert looped == {"matmuls": 3}
    assert (
        products(lambda a: jax.lax.while_loop(lambda x: x[0, 0] < 9, lambda x: x @ a, a), shape)
        == {}
    )


def test_the_wishart_instance_has_about_the_condition_number_asked_for() -> None:
    problem = matrix_function(condition=20.0, spectrum="wishart", size=40, batch=2)
    found = np.linalg.cond(problem.matrices)
    assert np.all((found > 8) & (found < 30))
    clustered = matrix_function(condition=9.0, spectrum="clustered", size=4, batch=1)
    np.testing.assert_allclose(
        np.linalg.eigvalsh(clustered.matrices[0]), [1 / 9, 1 / 9, 1, 1], rtol=1e-4
    )
