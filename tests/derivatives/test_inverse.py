"""Inverses: exact on functions whose inverse is known, and their derivatives of all orders."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nearly.core.errors import InputError
from nearly.derivatives.inverse import (
    MultiBinBisection,
    invert,
    invert_with_log_slope,
    multi_bin_bisection,
)


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def power(x: Any, exponent: Any) -> Any:
    return x**exponent


ROOT = invert(power, multi_bin_bisection(0.1, 3.0))


def test_derivatives_of_a_root_to_third_order() -> None:
    """x = y^(1/n), in y and in n."""

    def known(y: Any, n: Any) -> Any:
        return y ** (1 / n)

    def both(f: Any) -> Any:
        slopes = jax.grad(f, argnums=(0, 1))
        second = jax.jacfwd(slopes, argnums=(0, 1))
        third = jax.grad(jax.grad(jax.grad(f)))
        return jax.jit(lambda y, n: (f(y, n), slopes(y, n), second(y, n), third(y, n)))

    found, truth = both(ROOT)(2.0, 3.0), both(known)(2.0, 3.0)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(truth), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11)


def test_reverse_mode_under_vmap_and_broadcast_parameters() -> None:
    y, n = jnp.linspace(0.5, 4.0, 5), jnp.asarray(2.0)
    slopes = jax.jit(jax.vmap(jax.grad(ROOT), in_axes=(0, None)))(y, n)
    np.testing.assert_allclose(slopes, 0.5 / np.sqrt(y), rtol=1e-12)
    total = jax.jit(jax.grad(lambda n: jnp.sum(ROOT(y, n))))(n)
    np.testing.assert_allclose(total, np.sum(-np.sqrt(y) * np.log(y) / 4), rtol=1e-12)


def test_a_falling_function_closed_over_parameters_and_single_precision() -> None:
    rate = jnp.float32(2.0)

    def time_to(level: Any, rate: Any) -> Any:
        return invert(lambda t: jnp.exp(-rate * t), multi_bin_bisection(0.0, 10.0))(level)

    found = time_to(jnp.float32(0.25), rate)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, np.log(4) / 2, rtol=1e-6)
    slopes = jax.jit(jax.grad(time_to, argnums=(0, 1)))(jnp.float32(0.25), rate)
    np.testing.assert_allclose(slopes, [-2.0, -np.log(4) / 4], rtol=1e-5)


def test_the_log_slope_and_its_derivatives_are_the_papers() -> None:
    """In y: -f_xx / f_x^2. In theta: -f_xtheta / f_x + f_xx f_theta / f_x^2."""

    def f(x: Any, theta: Any) -> Any:
        return x + theta * x**2

    y, theta = 0.9, 0.7
    inverse = invert_with_log_slope(f, multi_bin_bisection(0.0, 2.0))
    run = jax.jit(jax.value_and_grad(lambda y, t: inverse(y, t)[1], argnums=(0, 1)))
    value, (by_y, by_theta) = run(y, theta)
    x = (-1 + np.sqrt(1 + 4 * theta * y)) / (2 * theta)
    fx, fxx, ft, fxt = 1 + 2 * theta * x, 2 * theta, x**2, 2 * x
    np.testing.assert_allclose(value, -np.log(fx), rtol=1e-12)
    np.testing.assert_allclose(by_y, -fxx / fx**2, rtol=1e-12)
    np.testing.assert_allclose(by_theta, -fxt / fx + fxx * ft / fx**2, rtol=1e-12)


def test_no_slope_is_an_error() -> None:
    cube_root = invert(lambda x: x**3, multi_bin_bisection(-1.0, 1.0))
    np.testing.assert_allclose(cube_root(0.125), 0.5, rtol=1e-12)
    with pytest.raises(RuntimeError):
        # 0 is an edge between two bins, so that the solution is exact and the slope there is 0.
        jax.block_until_ready(jax.grad(invert(lambda x: x**3, lambda f, y: y * 0))(0.0))


@pytest.mark.parametrize(("bins", "rounds"), [(2, 27), (4, 14), (32, 6), (256, 4)])
def test_rounds_and_the_bracket_they_leave(bins: int, rounds: int) -> None:
    search = MultiBinBisection(0.0, 2.0, bins, polish=0)
    assert search.rounds == rounds
    y = jnp.linspace(0.0, 4.0, 33)
    found = jax.jit(lambda y: search(jnp.square, y))(y)
    np.testing.assert_allclose(found, np.sqrt(y), atol=2.0 * 1e-8 / 2 + 1e-15)


def test_targets_out_of_reach_are_answered_by_the_nearer_end() -> None:
    search = multi_bin_bisection(1.0, 2.0)
    np.testing.assert_allclose(search(jnp.square, jnp.array([0.5, 9.0])), [1.0, 2.0], rtol=1e-12)


def test_bad_settings_are_named() -> None:
    with pytest.raises(InputError, match=r"from 1\.0 to 1\.0"):
        multi_bin_bisection(1.0, 1.0)
    with pytest.raises(InputError, match="bins 1"):
        multi_bin_bisection(0.0, 1.0, bins=1)
    with pytest.raises(InputError, match=r"tolerance 2\.0"):
        multi_bin_bisection(0.0, 1.0, tolerance=2.0)
    with pytest.raises(InputError, match="polish -1"):
        multi_bin_bisection(0.0, 1.0, polish=-1)
