"""ETDRK4 on semilinear equations: exact solutions, orders, transformations, errors."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nearly.core.errors import InputError
from nearly.datasets.random_fields import gaussian_random_field
from nearly.pde.exponential import crank_nicolson_heun, etdrk4, etdrk4_coefficients
from nearly.pde.metrics import divergence_time, relative_l2
from nearly.pde.semilinear import (
    AllenCahn,
    Burgers,
    KortewegDeVries,
    KuramotoSivashinsky,
    Semilinear,
    integrate,
)


def points(n: int, length: float) -> jax.Array:
    return jnp.arange(n, dtype=jnp.float64) * (length / n)


def last(equation: Semilinear, initial: jax.Array, duration: float, steps: int) -> jax.Array:
    return integrate(equation, initial, dt=duration / steps, steps=steps, every=steps)[-1]


def slope(errors: list[float]) -> float:
    """The observed order over halvings of the step."""
    return math.log2(errors[0] / errors[-1]) / (len(errors) - 1)


def cole_hopf(x: np.ndarray, t: float, viscosity: float) -> np.ndarray:
    """Burgers on the unit interval from u(0) = sin(2 pi x), by quadrature of the heat kernel."""
    s = np.linspace(-12, 12, 4001)[:, None] * math.sqrt(2 * viscosity * t)
    y = x[None] - s
    phi = np.exp((np.cos(2 * math.pi * y) - 1) / (4 * math.pi * viscosity))
    kernel = np.exp(-(s**2) / (4 * viscosity * t))
    return (s / t * phi * kernel).sum(0) / (phi * kernel).sum(0)


def test_burgers_against_cole_and_hopf() -> None:
    with jax.enable_x64(True):
        x = points(128, 1.0)
        found = last(Burgers(0.02), jnp.sin(2 * math.pi * x), 0.3, 600)
        np.testing.assert_allclose(found, cole_hopf(np.asarray(x), 0.3, 0.02), atol=1e-9)


def soliton(x: jax.Array, t: float, speed: float, length: float) -> jax.Array:
    images = [x - length / 2 - speed * t + m * length for m in range(-3, 4)]
    return sum(
        (speed / 2 / jnp.cosh(math.sqrt(speed) / 2 * y) ** 2 for y in images), jnp.zeros_like(x)
    )


def test_a_soliton_travels_and_the_time_order_is_four() -> None:
    with jax.enable_x64(True):
        x = points(192, 40.0)
        start, end = (soliton(x, t, 2.0, 40.0) for t in (0.0, 1.0))
        errors = [
            float(relative_l2(last(KortewegDeVries(40.0), start, 1.0, n), end)) for n in (50, 100)
        ]
        assert errors[-1] < 1e-6
        assert slope(errors) > 3.5  # not yet asymptotic; a space error of 1e-8 is below it


def burgers_start() -> jax.Array:
    return gaussian_random_field(
        jax.random.key(1), (64,), alpha=2.0, tau=5.0, sigma=25.0, dtype=jnp.float64
    )


def smooth(n: int, length: float) -> jax.Array:
    x = 2 * math.pi / length * points(n, length)
    return jnp.cos(x) + 0.5 * jnp.sin(2 * x)


@pytest.mark.parametrize(
    "equation, initial, duration, steps, order",
    [
        (Burgers(0.02), burgers_start, 0.5, 50, 4),
        (KuramotoSivashinsky(32.0), lambda: smooth(64, 32.0), 4.0, 160, 4),
        (KortewegDeVries(20.0), lambda: smooth(64, 20.0), 0.5, 50, 4),
        (AllenCahn(0.01, 5.0), lambda: smooth(64, 1.0), 1.0, 20, 4),
    ],
    ids=["burgers", "kuramoto-sivashinsky", "korteweg-de-vries", "allen-cahn"],
)
def test_the_time_order_is_four(
    equation: Semilinear, initial: Callable[[], jax.Array], duration: float, steps: int, order: int
) -> None:
    with jax.enable_x64(True):
        start = initial()
        truth = last(equation, start, duration, 16 * steps)
        errors = [
            float(relative_l2(last(equation, start, duration, k * steps), truth)) for k in (1, 2, 4)
        ]
        assert abs(slope(errors) - order) < 0.35
        assert 1e-11 < errors[-1] < 1e-4  # neither at rounding error nor before convergence


def test_crank_nicolson_heun_has_order_two() -> None:
    with jax.enable_x64(True):
        equation, start = Burgers(0.02), burgers_start()
        truth = last(equation, start, 0.5, 1000)
        errors = [
            float(
                relative_l2(
                    integrate(
                        equation, start, dt=0.5 / n, steps=n, every=n, scheme=crank_nicolson_heun
                    )[-1],
                    truth,
                )
            )
            for n in (200, 400, 800)
        ]
        assert abs(slope(errors) - 2) < 0.2


def test_the_space_order_is_spectral() -> None:
    with jax.enable_x64(True):
        equation = Burgers(0.05)
        truth = last(equation, smooth(128, 1.0), 0.2, 400)
        errors = [
            float(relative_l2(last(equation, smooth(n, 1.0), 0.2, 400), truth[:: 128 // n]))
            for n in (16, 32, 64)
        ]
        assert errors[1] < errors[0] / 30
        assert errors[2] < errors[1] / 1000


def test_coefficients_near_zero_and_far_from_it() -> None:
    with jax.enable_x64(True):
        z = jnp.asarray([0.0, -1e-8, -1e-3, 0.3, -40.0, -1e5])
        for symbol in (z, 1j * z):
            c = etdrk4_coefficients(symbol, 1.0)
            # Taylor series of (e^(z/2) - 1) / z and of the three weights, to second order.
            small, s = slice(0, 3), symbol[:3]
            np.testing.assert_allclose(c.stage[small], 0.5 + s / 8 + s**2 / 48, rtol=1e-10)
            np.testing.assert_allclose(c.first[small], 1 / 6 + s / 6 + 3 * s**2 / 40, rtol=1e-8)
            np.testing.assert_allclose(c.middle[small], 1 / 3 + s / 6 + s**2 / 20, rtol=1e-8)
            np.testing.assert_allclose(c.last[small], 1 / 6 - 0 * s - s**2 / 120, rtol=1e-8)
            far = symbol[4:]
            full = jnp.exp(far)
            first = (-4 - far + full * (4 - 3 * far + far**2)) / far**3
            np.testing.assert_allclose(c.first[4:], first, rtol=1e-9)


def test_allen_cahn_in_one_dimension_is_that_in_two_of_a_constant() -> None:
    with jax.enable_x64(True):
        equation, line = AllenCahn(0.01, 2.0), smooth(32, 1.0)
        one = last(equation, line, 0.5, 20)
        two = last(equation, jnp.broadcast_to(line, (16, 32)), 0.5, 20)
        np.testing.assert_allclose(two, jnp.broadcast_to(one, (16, 32)), atol=1e-12)


def test_burgers_of_a_plane_wave_is_the_same_in_three_dimensions() -> None:
    with jax.enable_x64(True):
        line = smooth(16, 1.0)
        one = last(Burgers(0.05), line, 0.1, 10)
        three = last(Burgers(0.05), jnp.broadcast_to(line[:, None], (4, 16, 6)), 0.1, 10)
        np.testing.assert_allclose(three, jnp.broadcast_to(one[:, None], (4, 16, 6)), atol=1e-12)


def test_burgers_moves_with_the_grid() -> None:
    with jax.enable_x64(True):
        start = burgers_start()
        moved = last(Burgers(0.02), jnp.roll(start, 7), 0.1, 20)
        np.testing.assert_allclose(
            moved, jnp.roll(last(Burgers(0.02), start, 0.1, 20), 7), atol=1e-12
        )


def test_frames_are_the_states_between() -> None:
    start = jnp.sin(2 * math.pi * jnp.arange(32, dtype=jnp.float32) / 32)
    frames = integrate(Burgers(0.1), start, dt=0.01, steps=6, every=2)
    assert frames.shape == (3, 32)
    assert frames.dtype == jnp.float32
    again = integrate(Burgers(0.1), frames[0], dt=0.01, steps=4, every=4)
    np.testing.assert_allclose(frames[-1], again[-1], atol=2e-6)


def test_batches_of_fields_and_of_viscosities() -> None:
    with jax.enable_x64(True):
        fields = jnp.stack([smooth(32, 1.0), 2 * smooth(32, 1.0)])
        viscosities = jnp.asarray([0.05, 0.1])

        def solve(viscosity: jax.Array, field: jax.Array) -> jax.Array:
            return integrate(Burgers(viscosity), field, dt=0.01, steps=5)

        both = jax.jit(jax.vmap(solve))(viscosities, fields)
        assert both.shape == (2, 5, 32)
        for found, viscosity, field in zip(both, (0.05, 0.1), fields, strict=True):
            alone = integrate(Burgers(viscosity), field, dt=0.01, steps=5)
            np.testing.assert_allclose(found, alone, atol=1e-13)


def test_gradients_against_differences() -> None:
    with jax.enable_x64(True):
        start = smooth(32, 1.0)

        def energy(viscosity: jax.Array, scale: jax.Array) -> jax.Array:
            return jnp.sum(integrate(Burgers(viscosity), scale * start, dt=0.02, steps=5)[-1] ** 2)

        at, h = (jnp.asarray(0.05), jnp.asarray(1.0)), 1e-5
        by_viscosity, by_scale = jax.grad(energy, argnums=(0, 1))(*at)
        difference = (energy(at[0] + h, at[1]) - energy(at[0] - h, at[1])) / (2 * h)
        np.testing.assert_allclose(by_viscosity, difference, rtol=1e-6)
        difference = (energy(at[0], at[1] + h) - energy(at[0], at[1] - h)) / (2 * h)
        np.testing.assert_allclose(by_scale, difference, rtol=1e-6)


def test_single_precision_stays_close_to_double() -> None:
    with jax.enable_x64(True):
        start = smooth(64, 32.0)
        equation = KuramotoSivashinsky(32.0)
        double = last(equation, start, 5.0, 100)
        single = last(equation, start.astype(jnp.float32), 5.0, 100)
        assert single.dtype == jnp.float32
        assert float(relative_l2(single.astype(jnp.float64), double)) < 1e-5


def test_a_run_that_diverges_reports_when() -> None:
    with jax.enable_x64(True):
        start = 50 * smooth(64, 1.0)
        frames = integrate(Burgers(1e-4), start, dt=0.05, steps=40)
        when = float(divergence_time(frames, 0.05))
        assert 0 < when < 2.0
        assert math.isinf(
            float(divergence_time(integrate(Burgers(0.1), start, dt=1e-4, steps=4), 1e-4))
        )


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"every": 3}, "every=3 must divide steps=10"),
        ({"steps": 0}, "steps=0"),
        ({"dt": 0.0}, "dt=0.0 must be positive"),
        ({"initial": jnp.zeros((2, 2, 2, 2))}, "must have 1 or 2 or 3 axes"),
        ({"initial": jnp.full(8, jnp.nan)}, "8 of 8 values that are not finite"),
        ({"equation": Burgers(0.1, (1.0, 2.0))}, "has 2 numbers for a field with 1 axes"),
    ],
)
def test_errors_name_the_value_and_the_remedy(settings: dict[str, object], message: str) -> None:
    given = {"equation": Burgers(0.1), "initial": jnp.zeros(8), "dt": 0.1, "steps": 10, "every": 5}
    given |= settings
    with pytest.raises(InputError, match=message):
        integrate(given.pop("equation"), given.pop("initial"), **given)  # pyright: ignore


@pytest.mark.parametrize(
    "build",
    [
        lambda: Burgers(-0.1),
        lambda: Burgers(jnp.asarray(jnp.nan)),
        lambda: KuramotoSivashinsky(0.0),
        lambda: AllenCahn(-1.0),
        lambda: KortewegDeVries(-3.0),
    ],
)
def test_coefficients_that_cannot_be_are_refused(build: Callable[[], Semilinear]) -> None:
    with pytest.raises(InputError, match="must be"):
        build()


def test_the_schemes_are_exact_for_a_linear_equation() -> None:
    with jax.enable_x64(True):
        symbol = jnp.asarray([-3.0, -0.5, 0.0])
        start = jnp.asarray([1.0, 2.0, 3.0])
        advance = etdrk4(symbol, jnp.zeros_like, 0.7)
        np.testing.assert_allclose(advance(start), jnp.exp(0.7 * symbol) * start, rtol=1e-14)
