"""The output layer is a polynomial in time with its derivative; norms and residuals by hand."""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nearly.core.errors import InputError
from nearly.operators.residual_loss import (
    FineTuning,
    ResidualLoss,
    marched_derivative,
    refined,
    residual,
    sobolev_norm,
)
from nearly.operators.spacetime import Latent, OutputLayer, SpaceTimeFNO, enlarged, spacetime_fno
from nearly.pde.semilinear import Burgers
from nearly.pde.vorticity import NavierStokes2D

FLOW = NavierStokes2D(1e-2)
N = 12


@pytest.fixture(autouse=True)
def double_precision() -> Any:
    with jax.enable_x64(True):
        yield


def random_model(**settings: Any) -> SpaceTimeFNO:
    given = {"frames": 3, "modes": (3, 3, 3), "width": 6, "layers": 1, "latent_steps": 3}
    return spacetime_fno(jax.random.key(0), **(given | settings), dtype=jnp.float64)


def smooth(key: int, *shape: int) -> Any:
    x = np.arange(N) * 2 * np.pi / N
    waves = np.stack([np.ones(N), np.cos(x), np.sin(x), np.cos(2 * x)])
    numbers = jax.random.normal(jax.random.key(key), (*shape, 4, 4), jnp.float64)
    return jnp.einsum("...ij,ix,jy->...xy", numbers, waves, waves)


@pytest.fixture
def layer_and_latent() -> tuple[OutputLayer, Latent]:
    model = random_model()
    layer = eqx.tree_at(lambda o: o.bias, model.output, replace_fn=lambda b: b + 0.3)
    return layer, model.latent(smooth(1, 4))


# ---- the output layer


def test_more_frames_refine_the_same_course(layer_and_latent: Any) -> None:
    layer, latent = layer_and_latent
    coarse, fine = layer.values(latent, 3), layer.values(latent, 7)
    np.testing.assert_allclose(fine[::2], coarse, atol=1e-12)
    np.testing.assert_allclose(layer.values(latent, 3, 2), fine, atol=1e-12)
    np.testing.assert_allclose(layer(latent, 3), coarse[1:])


def test_the_time_derivative_is_that_of_the_values(layer_and_latent: Any) -> None:
    layer, latent = layer_and_latent
    many, dt = 64, 0.2
    values = layer.values(latent, 3, many)
    slopes = layer.time_derivative(latent, 3, dt, many)
    differences = (values[2:] - values[:-2]) / (2 * dt / many)
    np.testing.assert_allclose(slopes[1:-1], differences, atol=2e-3 * np.abs(slopes).max())


def test_without_weights_the_last_frame_stays(layer_and_latent: Any) -> None:
    layer, latent = layer_and_latent
    nothing = jax.tree.map(jnp.zeros_like, layer)
    np.testing.assert_allclose(nothing(latent, 3), jnp.stack([latent.last] * 3), atol=1e-15)


def test_added_modes_change_nothing_yet(layer_and_latent: Any) -> None:
    layer, latent = layer_and_latent
    more = enlarged(layer, (6, 5, 4), jax.random.key(3))
    assert more.weight.shape == (12, 10, 4, 2, 1, 1)
    np.testing.assert_allclose(more(latent, 3), layer(latent, 3), atol=1e-3)
    with pytest.raises(InputError, match=r"modes=\(2, 3, 3\) must be at least the layer's"):
        enlarged(layer, (2, 3, 3), jax.random.key(3))


def test_any_resolution_and_number_of_known_frames_may_be_fed() -> None:
    model = random_model()
    assert model(smooth(1, 4)).shape == (3, N, N)
    assert model(smooth(1, 2)).shape == (3, N, N)
    assert model(jnp.zeros((4, 2 * N, N))).shape == (3, 2 * N, N)
    line = spacetime_fno(jax.random.key(0), frames=2, modes=(3, 2), width=6, dtype=jnp.float64)
    assert line(jnp.zeros((4, N))).shape == (2, N)


def test_one_dtype_throughout() -> None:
    model = spacetime_fno(jax.random.key(0), frames=3, modes=(3, 3, 3), width=6)
    assert model(jnp.zeros((4, N, N), jnp.float32)).dtype == jnp.float32


# ---- the norm


@pytest.mark.parametrize("order", [0.0, -0.5, -1.0, 1.0])
def test_the_norm_of_a_wave(order: float) -> None:
    # cos has two coefficients of 1/2 at k = 2 pi (2 / 3, 1), on a box of lengths 3 and 1.
    flow = NavierStokes2D(1e-2, length=(3.0, 1.0))
    x, y = np.meshgrid(np.arange(12) / 12, np.arange(10) / 10, indexing="ij")
    wave = jnp.asarray(np.cos(2 * np.pi * (2 * x + y)))
    square = (2 * math.pi) ** 2 * ((2 / 3) ** 2 + 1)
    expected = math.sqrt(0.5) * (0.1 + square) ** (order / 2)
    np.testing.assert_allclose(sobolev_norm(wave, order, flow, 0.1), expected, rtol=1e-12)


def test_order_zero_is_the_root_mean_square() -> None:
    for n in (8, 9):
        field = jax.random.normal(jax.random.key(n), (n, n), jnp.float64)
        found = sobolev_norm(field, 0.0, FLOW)
        np.testing.assert_allclose(found, jnp.sqrt(jnp.mean(field**2)), rtol=1e-12)


def test_norms_of_opposite_order_are_dual() -> None:
    f, g = (jax.random.normal(jax.random.key(k), (N, N), jnp.float64) for k in (1, 2))
    assert abs(jnp.mean(f * g)) <= sobolev_norm(f, -1.0, FLOW) * sobolev_norm(g, 1.0, FLOW)


def test_the_published_double_root_is_order_minus_a_half() -> None:
    field = smooth(5)
    k = 2 * np.pi * np.fft.fftfreq(N, 1 / N)
    weight = np.sqrt(0.1 + k[:, None] ** 2 + k**2)  # rooted once here
    modes = np.fft.fft2(field) / N**2 * weight ** (-1 / 2)  # and once more by half the order
    found = np.linalg.norm(modes)
    np.testing.assert_allclose(found, sobolev_norm(field, -0.5, FLOW, 0.1), rtol=1e-12)
    assert abs(found / sobolev_norm(field, -1.0, FLOW, 0.1) - 1) > 0.1


# ---- the residual


def test_the_residual_of_decaying_vortices_vanishes() -> None:
    flow = NavierStokes2D(1e-2, forcing=None)
    x = 2 * np.pi * np.arange(N) / N
    vortices = jnp.asarray(np.cos(x)[:, None] * np.cos(x))
    decay = -2 * (2 * math.pi) ** 2 * 1e-2 * vortices
    np.testing.assert_allclose(residual(flow, vortices, decay), 0, atol=1e-11)
    np.testing.assert_allclose(residual(flow, vortices, 0 * decay), -decay, atol=1e-11)


def test_the_marched_derivative_has_no_residual_whatever_the_field() -> None:
    # A random field is no solution of anything, and still passes.
    field = smooth(7)
    derivative = marched_derivative(FLOW, field)
    size = sobolev_norm(derivative, 0.0, FLOW)
    assert size > 1
    assert sobolev_norm(residual(FLOW, field, derivative), 0.0, FLOW) < 1e-8 * size


def test_the_loss_is_that_of_its_parts() -> None:
    model, known = random_model(), smooth(1, 4)
    latent = model.latent(known)
    loss = ResidualLoss(FLOW, frames=3, dt=0.1, refinement=2, order=-1.0)
    values = model.output.values(latent, 3, 2)
    slopes = model.output.time_derivative(latent, 3, 0.1, 2)
    squares = [
        sobolev_norm(residual(FLOW, v, s), -1.0, FLOW) ** 2
        for v, s in zip(values, slopes, strict=True)
    ]
    np.testing.assert_allclose(values[0], known[-1], atol=1e-12)
    np.testing.assert_allclose(loss(model.output, latent), jnp.sqrt(sum(squares) / 8), rtol=1e-10)


@pytest.mark.slow
def test_fine_tuning_lowers_the_residual_of_each_instance_on_its_own() -> None:
    model, known = random_model(), smooth(1, 2, 4)
    loss = ResidualLoss(FLOW, frames=3, dt=0.1)
    tuning = FineTuning(loss, (5, 5, 4), steps=30, bias_rate=1e-2)
    both = tuning(model, known, key=jax.random.key(1))
    assert both.losses[-1] < 0.8 * both.losses[0]
    alone = tuning(model, known[:1], key=jax.random.key(1))
    np.testing.assert_allclose(
        refined(both.model, model, known)[0], refined(alone.model, model, known[:1])[0], atol=1e-4
    )


def test_it_works_in_one_dimension_too() -> None:
    model = spacetime_fno(jax.random.key(0), frames=2, modes=(3, 2), width=6, dtype=jnp.float64)
    latent = model.latent(smooth(1, 4)[:, 0])
    assert ResidualLoss(Burgers(0.1), frames=2, dt=0.1)(model.output, latent) > 0


def test_errors_name_the_value_and_the_remedy(layer_and_latent: Any) -> None:
    layer, latent = layer_and_latent
    with pytest.raises(InputError, match="0 frames are too few for 3 modes in time"):
        OutputLayer(layer.weight, layer.bias, layer.modes)(latent, 0)
    with pytest.raises(InputError, match="shift=0 must be positive"):
        sobolev_norm(latent.last, -1.0, FLOW, 0)
    with pytest.raises(InputError, match=r"known frames .* were expected, not shape \[12, 12\]"):
        random_model()(jnp.zeros((N, N)))
    with pytest.raises(InputError, match=r"modes=\(3,\) must be those of"):
        spacetime_fno(jax.random.key(0), frames=2, modes=(3,))
    with pytest.raises(InputError, match="dt=0 must be"):
        ResidualLoss(FLOW, frames=3, dt=0)
