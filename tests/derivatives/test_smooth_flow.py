"""Smooth flows: derivatives continuous to order four, maps onto, densities with integral one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from nearly.core.errors import InputError
from nearly.derivatives.smooth_flow import (
    Bumps,
    SmoothMap,
    SplineMap,
    TorusFlow,
    circle_map,
    force_matching_loss,
    interval_map,
    smooth_ramp,
    smooth_step,
    torus_flow,
)


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def derivatives(function: Any, order: int = 4) -> Any:
    """The function and its derivatives up to an order, at every point of an array."""
    rows = [function]
    for _ in range(order):
        rows.append(lambda x, f=rows[-1]: jax.jvp(f, (x,), (jnp.ones_like(x),))[1])
    return jax.jit(lambda x: jnp.stack([f(x) for f in rows]))


@pytest.mark.parametrize("parameters", [(1.0, 1.0), (0.5, 2.0)])
def test_ramp_and_step_agree_with_fifty_digits(parameters: tuple[float, float]) -> None:
    alpha, power = parameters

    def ramp(x: Any) -> Any:
        return mpmath.exp(-alpha * (x**-power - 1)) if x > 0 else mpmath.mpf(0)

    x = np.array([0.02, 0.1, 0.3, 0.5, 0.77, 0.95])
    with mpmath.workdps(50):
        ramps = [[float(mpmath.diff(ramp, t, n)) for t in x] for n in range(4)]
        steps = [
            [float(mpmath.diff(lambda u: ramp(u) / (ramp(u) + ramp(1 - u)), t, n)) for t in x]
            for n in range(4)
        ]
    for function, truth in ((smooth_ramp, ramps), (smooth_step, steps)):
        found = derivatives(lambda t, f=function: f(t, alpha, power), 3)(jnp.asarray(x))
        np.testing.assert_allclose(found, truth, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_all_derivatives_vanish_at_the_edges(dtype: Any) -> None:
    edges = jnp.array([-1.0, 0.0, 1e-30, 1e-3, 1.0, 2.0], dtype)
    for function, beyond in ((smooth_ramp, None), (smooth_step, 1.0)):
        found = np.asarray(derivatives(function)(edges))
        assert np.all(np.isfinite(found))
        assert found.dtype == dtype
        np.testing.assert_allclose(found[:, :4], 0, atol=1e-15)
        if beyond is not None:
            np.testing.assert_allclose(found[0, 4:], beyond)
            np.testing.assert_allclose(found[1:, 4:], 0, atol=1e-15)


def bumps() -> Bumps:
    """One bump wider than the circle, one across its seam, one inside."""
    slope, place = [0.6, 1.5, 3.0], [0.2, 0.95, 0.45]
    return Bumps(*map(jnp.array, (slope, place, [0.5, 0.8, 0.3], [0.3, 0.3, 0.4])))


def test_the_circle_has_no_seam_to_fourth_order() -> None:
    ends = derivatives(lambda x: circle_map(x, bumps()))(jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(ends[0], [0.0, 1.0], atol=1e-14)
    scale = np.abs(np.asarray(ends[1:])).max(1)
    np.testing.assert_allclose(ends[1:, 0], ends[1:, 1], atol=1e-12 * scale.max())
    assert scale[3] > 1  # the derivatives that agree are not all zero


def test_derivatives_are_continuous_where_bumps_begin_and_end() -> None:
    parameters = bumps()
    for f in (circle_map, interval_map):
        run = derivatives(lambda x, f=f: f(x, parameters))
        half = 0.5 / np.asarray(parameters.slope)
        place = np.asarray(parameters.place)
        edges = np.concatenate([place - half, place + half]) % 1.0
        left, right = run(jnp.asarray(edges - 1e-9)), run(jnp.asarray(edges + 1e-9))
        size = np.abs(np.asarray(run(jnp.linspace(0.01, 0.99, 99)))).max(1, keepdims=True)
        np.testing.assert_allclose(np.asarray(left) / size, np.asarray(right) / size, atol=1e-6)


@pytest.mark.parametrize("f", [circle_map, interval_map])
def test_maps_are_increasing_onto_the_unit_interval(f: Any) -> None:
    x = jnp.linspace(0.0, 1.0, 401)
    raw = jnp.asarray(6.0 * np.random.default_rng(1).normal(size=(8, 4, 3)))
    y = jax.jit(jax.vmap(lambda raw: f(x, Bumps.free(raw))))(raw)
    np.testing.assert_allclose(y[:, 0], 0.0, atol=1e-14)
    np.testing.assert_allclose(y[:, -1], 1.0, rtol=1e-14)
    # The identity's share of a map is one part in a hundred at least, on the interval after
    # division by at most 1.
    assert float(jnp.min(jnp.diff(y, axis=1))) > 0.9e-2 / 400


def test_the_spline_is_continuous_with_its_slope_and_no_further() -> None:
    spline = SplineMap(6)
    raw = jnp.asarray(np.random.default_rng(2).normal(size=(1, 18)))
    run = derivatives(jax.vmap(lambda x: spline(x[None], raw)[0]), 2)
    knots = np.cumsum(0.01 + 0.94 * np.asarray(jax.nn.softmax(raw[0, :6])))[:-1]
    left, right = run(jnp.asarray(knots - 1e-10)), run(jnp.asarray(knots + 1e-10))
    np.testing.assert_allclose(left[:2], right[:2], atol=1e-7)
    assert np.abs(np.asarray(left[2] - right[2])).min() > 1e-3
    ends = run(jnp.array([0.0, 1.0 - 1e-12]))
    np.testing.assert_allclose(ends[0], [0.0, 1.0], atol=1e-10)
    np.testing.assert_allclose(ends[1, 0], ends[1, 1], atol=1e-8)


@pytest.fixture(scope="module", params=[SmoothMap(3), SplineMap(4)], ids=["smooth", "spline"])
def flow(request: Any) -> TorusFlow:
    with jax.enable_x64(True):
        made = torus_flow(3, jax.random.key(0), transform=request.param, layers=2, width=8)
        return jax.tree.map(lambda a: 2 * a if eqx.is_inexact_array(a) else a, made)


POINTS = np.random.default_rng(4).uniform(size=(20, 3))


def test_noise_and_data_are_inverse_with_the_jacobians_determinant(flow: TorusFlow) -> None:
    @jax.jit
    @jax.vmap
    def there_and_back(x: Any) -> Any:
        z, log_det = flow.to_noise(x)
        back, inverse = flow.to_data(z)
        jacobian = jax.jacfwd(lambda x: flow.to_noise(x)[0])(x)
        return back - x, log_det + inverse, log_det - jnp.linalg.slogdet(jacobian)[1]

    off, total, determinant = there_and_back(jnp.asarray(POINTS))
    np.testing.assert_allclose(off - jnp.round(off), 0, atol=1e-12)
    np.testing.assert_allclose(total, 0, atol=1e-11)
    np.testing.assert_allclose(determinant, 0, atol=1e-11)


def test_the_density_is_periodic_and_integrates_to_one() -> None:
    flow = torus_flow(2, jax.random.key(1), transform=SmoothMap(3), layers=2, width=8)
    grid = np.stack(np.meshgrid(*[np.arange(64) / 64] * 2), -1).reshape(-1, 2)
    density = jax.jit(jax.vmap(lambda x: jnp.exp(flow.log_density(x))))
    values = density(jnp.asarray(grid))
    assert float(jnp.max(values) / jnp.min(values)) > 1.2
    np.testing.assert_allclose(jnp.mean(values), 1.0, rtol=1e-6)  # smooth: the rule is spectral
    np.testing.assert_allclose(density(jnp.asarray(grid) + 3.0), values, rtol=1e-9)


@pytest.mark.slow
def test_samples_have_the_derivatives_of_the_inverse(flow: TorusFlow) -> None:
    """Through the data point of a fixed noise, in the weights: against central differences."""
    weights, rest = eqx.partition(flow, eqx.is_inexact_array)
    z = jnp.asarray(POINTS[0])

    def value(weights: Any) -> Any:
        x, log_det = eqx.combine(weights, rest).to_data(z)
        return jnp.sum(jnp.sin(6 * x)) + log_det

    draw = np.random.default_rng(5)
    along = jax.tree.map(lambda a: jnp.asarray(draw.normal(size=a.shape)), weights)
    run, h = jax.jit(value), 1e-6
    up, down = (run(jax.tree.map(lambda a, t, s=s: a + s * t, weights, along)) for s in (h, -h))
    slopes = jax.jit(jax.grad(value))(weights)
    pairs = zip(jax.tree.leaves(slopes), jax.tree.leaves(along), strict=True)
    found = sum(float(jnp.sum(s * t)) for s, t in pairs)
    np.testing.assert_allclose(found, (up - down) / (2 * h), rtol=1e-6)


def test_the_force_is_the_gradient_and_enters_the_loss() -> None:
    flow = torus_flow(2, jax.random.key(2), transform=SmoothMap(2), layers=2, width=4)
    x = jnp.asarray(POINTS[:4, :2])

    @jax.jit
    def everything(x: Any) -> Any:
        density, force = jax.vmap(flow.log_density)(x), jax.vmap(flow.force)(x)
        losses = [force_matching_loss(flow, x, force + 0.5, w) for w in (0.0, 0.25, 1.0)]
        return density, force, jnp.stack(losses)

    density, force, losses = everything(x)
    h = 1e-6
    up, down = (everything(x + jnp.array([s, 0.0]))[0] for s in (h, -h))
    np.testing.assert_allclose(force[:, 0], (up - down) / (2 * h), rtol=1e-6, atol=1e-7)
    expected = [-jnp.mean(density), -0.75 * jnp.mean(density) + 0.125, 0.5]
    np.testing.assert_allclose(losses, expected, rtol=1e-12)


def test_samples_are_in_the_unit_square_and_of_the_dtype_asked() -> None:
    flow = torus_flow(2, jax.random.key(3), transform=SmoothMap(2), layers=2, width=4)
    points = jax.jit(jax.vmap(lambda k: flow.sample(k, "float64")))(
        jax.random.split(jax.random.key(4), 50)
    )
    assert points.shape == (50, 2)
    assert points.dtype == jnp.float64
    assert float(points.min()) >= 0
    assert float(points.max()) <= 1


def test_bad_flows_are_named() -> None:
    with pytest.raises(InputError, match="dimension 1"):
        torus_flow(1, jax.random.key(0))
    with pytest.raises(InputError, match="layers 1"):
        torus_flow(2, jax.random.key(0), layers=1)
    with pytest.raises(InputError, match="components 0"):
        SmoothMap(0)
    with pytest.raises(InputError, match="bins 1"):
        SplineMap(1)
