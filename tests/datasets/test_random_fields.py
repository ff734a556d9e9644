"""Gaussian random fields: variance, boundary values, one function at every resolution."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft

from nearly.core.errors import InputError
from nearly.datasets.random_fields import gaussian_random_field
from nearly.datasets.trigonometric import (
    cosine_coefficients,
    cosine_values,
    sine_coefficients,
    sine_values,
)

KEY = jax.random.key(0)


@pytest.mark.parametrize("n", [1, 2, 7, 16])
def test_trigonometric_transforms_sum_the_series_and_invert(n: int) -> None:
    with jax.enable_x64(True):
        given = jax.random.normal(KEY, (3, n), jnp.float64)
        x = (np.arange(n) + 0.5) / n
        sines = math.sqrt(2) * np.sin(math.pi * np.outer(np.arange(1, n + 1), x))
        cosines = math.sqrt(2) * np.cos(math.pi * np.outer(np.arange(n), x))
        cosines[0] = 1
        np.testing.assert_allclose(sine_values(given, 1), given @ sines, atol=1e-12)
        np.testing.assert_allclose(cosine_values(given, 1), given @ cosines, atol=1e-12)
        np.testing.assert_allclose(sine_values(sine_coefficients(given, 1), 1), given, atol=1e-12)
        np.testing.assert_allclose(
            cosine_values(cosine_coefficients(given, 0), 0), given, atol=1e-12
        )


def test_the_transforms_agree_with_scipy_but_for_the_scale() -> None:
    with jax.enable_x64(True):
        given = jax.random.normal(KEY, (9,), jnp.float64)
        ours = sine_coefficients(given, 0)
        theirs = scipy.fft.dst(np.asarray(given), type=2, norm="ortho") / 3
        theirs[-1] /= math.sqrt(2)  # over the points, the last sine is larger than the others
        np.testing.assert_allclose(ours, theirs, atol=1e-14)


def variance(boundary: str, shape: tuple[int, ...], alpha: float, tau: float) -> float:
    """The mean over the box of the variance: the sum of the eigenvalues."""
    if boundary == "periodic":
        axes = [2 * math.pi * np.arange(-((n - 1) // 2), (n - 1) // 2 + 1) for n in shape]
    else:
        first = 1 if boundary == "dirichlet" else 0
        axes = [math.pi * np.arange(first, n + first) for n in shape]
    squares = sum(np.meshgrid(*[k**2 for k in axes], indexing="ij"))
    return float(((squares + tau**2) ** -alpha).sum())


@pytest.mark.parametrize("boundary", ["periodic", "dirichlet", "neumann"])
@pytest.mark.parametrize("shape", [(15,), (8, 9)])
def test_the_variance_is_the_sum_of_the_eigenvalues(boundary: str, shape: tuple[int, ...]) -> None:
    def draw(key: jax.Array) -> jax.Array:
        return gaussian_random_field(
            key,
            shape,
            alpha=2.0,
            tau=3.0,
            sigma=9.0,
            boundary=boundary,  # pyright: ignore[reportArgumentType]
        )

    fields = jax.jit(jax.vmap(draw))(jax.random.split(KEY, 4000))
    expected = 81 * variance(boundary, shape, 2.0, 3.0)
    # 4000 draws of a field with a few leading modes: three standard deviations are below 10 %.
    assert abs(float((fields**2).mean()) / expected - 1) < 0.1
    assert fields.dtype == jnp.float32


@pytest.mark.parametrize(
    "boundary, step, shift",
    [("periodic", 2, 0.0), ("dirichlet", 3, 1.0), ("neumann", 3, 1.0)],
)
def test_the_same_key_is_the_same_function_on_a_finer_grid(
    boundary: str, step: int, shift: float
) -> None:
    with jax.enable_x64(True):
        settings = {"alpha": 8.0, "tau": 1.0, "boundary": boundary, "dtype": jnp.float64}
        coarse = gaussian_random_field(KEY, (16, 16), **settings)  # pyright: ignore
        fine = gaussian_random_field(KEY, (16 * step,) * 2, **settings)  # pyright: ignore
        at = slice(int(shift), None, step)  # the points of the coarse grid among the fine's
        assert float(jnp.abs(fine[at, at] - coarse).max()) < 1e-6 * float(jnp.abs(coarse).max())


def test_boundary_values() -> None:
    with jax.enable_x64(True):
        settings = {"alpha": 6.0, "tau": 2.0, "dtype": jnp.float64}
        zero = gaussian_random_field(KEY, (512,), boundary="dirichlet", **settings)  # pyright: ignore
        flat = gaussian_random_field(KEY, (512,), boundary="neumann", **settings)  # pyright: ignore
        slope = float(jnp.abs(jnp.diff(zero)).max())
        assert abs(float(zero[0])) < slope
        assert abs(float(flat[1] - flat[0])) < 0.02 * float(jnp.abs(jnp.diff(flat)).max())


def test_without_an_inverse_length_the_mean_is_left_out() -> None:
    field = gaussian_random_field(KEY, (32,), alpha=1.0, tau=0.0)
    assert abs(float(field.mean())) < 1e-6


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"shape": (1, 8)}, "two points or more"),
        ({"tau": -1.0}, "must not be negative"),
        ({"alpha": 1.0}, "exceed half the dimension"),
    ],
)
def test_errors_name_the_value_and_the_remedy(settings: dict[str, object], message: str) -> None:
    given = {"shape": (8, 8), "alpha": 2.0, "tau": 1.0} | settings
    with pytest.raises(InputError, match=message):
        gaussian_random_field(KEY, given.pop("shape"), **given)  # pyright: ignore
