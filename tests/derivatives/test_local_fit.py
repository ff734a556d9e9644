"""Local fits: exact on quadratics, order in sigma, noise, domains, and a field's derivatives."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nearly.core.errors import InputError
from nearly.derivatives.fitted_operators import fitted_operator
from nearly.derivatives.local_fit import (
    Smooth,
    ball_stencil,
    box_stencil,
    choose_sigma,
    gaussian_stencil,
    local_polynomial,
    sobol_stencil,
)
from nearly.derivatives.operators import D, directional, laplacian, power_sum, trace

POINT = (0.4, -0.2, 0.5)


@pytest.fixture(autouse=True)
def float64() -> Any:
    with jax.enable_x64(True):
        yield


def quadratic(x: Any) -> Any:
    """Gradient (2x + 3y, 3x - 4z, 1 - 4y), Hessian entries 2; 3; -4."""
    return 7 + x[0] ** 2 + 3 * x[0] * x[1] - 4 * x[1] * x[2] + x[2]


def wild(x: Any) -> Any:
    """A function as good as noise of variance 1: its phase turns ever differently."""
    return jnp.sqrt(2.0) * jnp.sin(1e7 * (jnp.sum(jnp.sin(x * jnp.arange(1, x.size + 1))) + x @ x))


def offsets(dtype: str = "float64") -> Any:
    return sobol_stencil(64, 3, dtype)


@pytest.mark.parametrize(
    "make", [gaussian_stencil, ball_stencil, box_stencil], ids=lambda m: m.__name__
)
def test_quadratics_are_fitted_exactly_on_any_stencil(make: Any) -> None:
    stencil = make(jax.random.key(0), 40, 3, "float64")
    fitted = local_polynomial(quadratic, stencil, 0.1)(jnp.array(POINT))
    x, y, z = POINT
    np.testing.assert_allclose(fitted.value, quadratic(POINT), rtol=1e-12)
    np.testing.assert_allclose(
        fitted.gradient, [2 * x + 3 * y, 3 * x - 4 * z, 1 - 4 * y], rtol=1e-10
    )
    np.testing.assert_allclose(fitted.hessian, [[2, 3, 0], [3, 0, -4], [0, -4, 0]], atol=1e-9)
    assert fitted.laplacian == pytest.approx(2, abs=1e-9)
    assert fitted.noise < 1e-12


def test_float32_bears_a_small_sigma_and_a_large_value() -> None:
    def field(x: Any) -> Any:
        return quadratic(x) + 100

    fit = local_polynomial(field, offsets("float32"), 0.01)
    gradient = fit(jnp.array(POINT, "float32")).gradient
    x, y, z = POINT
    np.testing.assert_allclose(gradient, [2 * x + 3 * y, 3 * x - 4 * z, 1 - 4 * y], rtol=2e-3)


@pytest.mark.parametrize(("degree", "what", "order"), [(1, "gradient", 2), (2, "hessian", 2)])
def test_order_in_sigma(degree: int, what: str, order: int) -> None:
    def smooth(x: Any) -> Any:
        return jnp.sin(2 * x[0]) * jnp.exp(x[1]) + x[2] ** 3

    x = jnp.array(POINT)
    truth = {"gradient": jax.grad(smooth)(x), "hessian": jax.hessian(smooth)(x)}[what]
    errors = [
        jnp.abs(
            getattr(local_polynomial(smooth, offsets(), s, degree=degree)(x), what) - truth
        ).max()
        for s in (0.02, 0.01)
    ]
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.1)


def test_standard_errors_are_those_of_noise() -> None:
    """Noise is a fixed function of the point, as wild as independent noise."""

    def noisy(x: Any) -> Any:
        return quadratic(x) + 0.01 * wild(x)

    points = 0.5 * jax.random.normal(jax.random.key(1), (400, 3), "float64")
    fitted = jax.vmap(local_polynomial(noisy, offsets(), 0.05))(points)
    assert float(fitted.noise.mean()) == pytest.approx(0.01, rel=0.05)
    gradients = jax.vmap(lambda f: f.gradient)(fitted)
    spread = jnp.std(gradients - jax.vmap(jax.grad(quadratic))(points), axis=0)
    claimed = jax.vmap(lambda f: f.gradient_error)(fitted).mean(0)
    np.testing.assert_allclose(spread, claimed, rtol=0.15)


def test_samples_outside_the_domain_are_left_out() -> None:
    def walled(x: Any) -> Any:
        return jnp.where(x[0] > 0, quadratic(x), 1e6)

    x = jnp.array([0.01, -0.2, 0.5])
    fit = local_polynomial(walled, offsets(), 0.1, inside=lambda y: y[0] > 0)
    np.testing.assert_allclose(fit(x).hessian, [[2, 3, 0], [3, 0, -4], [0, -4, 0]], atol=1e-8)
    outside = fit(jnp.array([-5.0, 0.0, 0.0]))
    assert jnp.isnan(outside.gradient).all()


def test_curvature_of_a_sphere() -> None:
    fit = local_polynomial(lambda x: jnp.linalg.norm(x), offsets(), 0.005)
    x = jnp.array(POINT)
    assert fit(x).curvature == pytest.approx(float(1 / jnp.linalg.norm(x)), rel=1e-3)


def test_a_smooth_field_has_the_fit_s_derivatives_in_every_mode() -> None:
    def kinked(x: Any) -> Any:
        return quadratic(jnp.round(x * 50) / 50)

    fit = local_polynomial(kinked, sobol_stencil(128, 3, "float64"), 0.05)
    smooth, x = Smooth(fit), jnp.array(POINT)
    assert smooth(x) == kinked(x)
    fitted = fit(x)
    np.testing.assert_allclose(jax.grad(smooth)(x), fitted.gradient, rtol=1e-12)
    np.testing.assert_allclose(jax.jacfwd(smooth)(x), fitted.gradient, rtol=1e-12)
    np.testing.assert_allclose(jax.jit(jax.hessian(smooth))(x), fitted.hessian, rtol=1e-9)
    np.testing.assert_allclose(fitted.gradient, jax.grad(quadratic)(x), atol=0.05)


def test_operators_of_the_fit_agree_with_its_derivatives() -> None:
    x, drift = jnp.array(POINT), jnp.array([1.0, 2.0, -1.0])
    sigma = jnp.array([[1.0, 0.0], [2.0, 1.0], [0.0, -1.0]])
    operator = (
        2 * laplacian()
        + D(0) * D(1)
        - D(2)
        + directional(drift)
        + trace(sigma)
        + 3
        + power_sum(2, 1, weights=jnp.array([1.0, 5.0]))
        + directional(drift) ** 2
    )
    h, g = jax.hessian(quadratic)(x), jax.grad(quadratic)(x)
    truth = 2 * jnp.trace(h) + h[0, 1] - g[2] + drift @ g + jnp.trace(sigma.T @ h @ sigma)
    truth += 3 * quadratic(x) + h[1, 1] + 5 * h[2, 2] + drift @ h @ drift
    found = fitted_operator(operator, 64)(quadratic)(x, jax.random.key(0))
    assert float(found.value) == pytest.approx(float(truth), rel=1e-8)
    assert found.function == quadratic(x)


def test_the_chosen_sigma_grows_with_the_noise() -> None:
    def noisy(amount: float) -> Any:
        return lambda x: jnp.sin(3 * x[0]) + amount * wild(x)

    points = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (15, 2)))
    stencil, sigmas = sobol_stencil(64, 2, "float64"), [0.01, 0.02, 0.04, 0.08, 0.16, 0.32]
    quiet, loud = (choose_sigma(noisy(a), points, stencil, sigmas) for a in (1e-5, 1e-1))
    assert quiet < loud
    assert loud >= 0.08


def test_errors_name_the_value_and_the_remedy() -> None:
    with pytest.raises(InputError, match="degree 3 must be 1 or 2"):
        local_polynomial(quadratic, offsets(), 0.1, degree=3)
    with pytest.raises(InputError, match=r"sigma -0\.1 must be positive"):
        local_polynomial(quadratic, offsets(), -0.1)
    with pytest.raises(InputError, match="8 samples cannot determine the 10 coefficients"):
        local_polynomial(quadratic, sobol_stencil(8, 3), 0.1)
    with pytest.raises(InputError, match="fit with degree=2"):
        local_polynomial(quadratic, offsets(), 0.1, degree=1)(jnp.array(POINT)).hessian  # noqa: B018
    with pytest.raises(InputError, match="even number"):
        sobol_stencil(9, 3)
    with pytest.raises(InputError, match="must increase"):
        choose_sigma(quadratic, jnp.ones((1, 3)), offsets(), [0.2, 0.1])
    with pytest.raises(InputError, match="order 4: use stde"):
        fitted_operator(laplacian() ** 2, 64)
