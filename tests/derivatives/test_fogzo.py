"""Quantisers, and gradients that ask the hard loss."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.integrate import quad

from nearly.core.errors import InputError, UnknownName
from nearly.derivatives import fogzo
from nearly.derivatives.fogzo import FOGZO, SPSA, Rounding, Sign
from nearly.training import fit
from nearly.training.architectures import mlp

KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def test_two_bits_have_four_levels_and_an_identity_behind() -> None:
    weights = jnp.array([-9.0, -1.1, -0.6, 0.2, 0.3, 0.8, 9.0]) * 0.5
    rounding = Rounding(bits=2, step=0.5)
    np.testing.assert_array_equal(rounding(weights), 0.5 * np.array([-2, -1, -1, 0, 0, 1, 1]))
    slope = jax.grad(lambda w: jnp.sum(rounding(w) * jnp.arange(7.0)))(weights)
    np.testing.assert_array_equal(slope, np.arange(7.0))


@pytest.mark.parametrize("surrogate", fogzo.SURROGATES)
def test_signs(surrogate: str) -> None:
    x = jnp.array([-2.0, -0.5, 0.0, 0.4, 3.0])
    sign = Sign(surrogate, step=2.0)
    np.testing.assert_array_equal(sign(2 * x), 2 * np.array([-1, -1, 1, 1, 1]))
    slope = jax.grad(lambda w: jnp.sum(sign(w)))(2 * x)
    by_hand = {
        "hardtanh": np.abs(x) <= 1,
        "tanh": 1 / np.cosh(x) ** 2,
        "approx-sign": np.maximum(0, 2 - 2 * np.abs(x)),
    }[surrogate]
    np.testing.assert_allclose(slope, by_hand, atol=1e-15)


LAWS = {**{name: noise for name, (_, noise) in fogzo.SURROGATES.items()}, "round": Rounding.noise}
DENSITIES: dict[str, Any] = {
    "hardtanh": lambda x: 0.5 * (abs(x) <= 1),
    "tanh": lambda x: 0.5 / np.cosh(x) ** 2,
    "approx-sign": lambda x: max(0.0, 1 - abs(x)),
    "round": lambda x: 1.0 * (abs(x) <= 0.5),
}


@pytest.mark.parametrize("name", LAWS)
def test_each_law_has_the_density_that_its_slope_pretends(name: str) -> None:
    noise, density = LAWS[name], DENSITIES[name]
    variance = quad(lambda x: x * x * density(x), -30, 30, points=[-1, -0.5, 0, 0.5, 1])[0]
    assert noise.deviation == pytest.approx(variance**0.5, rel=1e-6)
    drawn = np.asarray(noise.draw(KEY, (40000,), jnp.float64))
    assert abs(drawn.mean()) < 0.02 and abs(drawn.var() - 1) < 0.03
    for end in (-0.6, 0.2, 0.45):
        below = quad(density, -30, end, points=[-1, -0.5, 0])[0]
        assert np.mean(drawn * noise.deviation < end) == pytest.approx(below, abs=0.01)


TARGET = {"w": np.array([1.0, -2.0, 0.5]), "b": np.array([0.3])}
SLOPE = {"w": np.array([0.4, 0.1, -0.3]), "b": np.array([2.0])}
WEIGHTS = {"w": np.zeros(3), "b": np.zeros(1)}
MISTAKE = np.array([1.0, -0.5, 3.0])


@jax.custom_jvp
def crooked(w: Any) -> Any:
    return w


@crooked.defjvp
def _(primals: Any, tangents: Any) -> Any:  # a backward pass that is wrong, as that of a quantiser
    return primals[0], tangents[0] * MISTAKE


def biased(weights: Any) -> Any:
    return SLOPE["w"] @ crooked(weights["w"]) + SLOPE["b"] @ weights["b"]


def mean_and_error(method: Any, objective: Any, weights: Any, count: int = 20000) -> Any:
    step = jnp.zeros((), jnp.int32)
    run = jax.jit(jax.vmap(lambda k: method(objective, weights, key=k, step=step)[1]))
    found = run(jax.random.split(KEY, count))
    means = jax.tree.map(lambda x: np.asarray(x).mean(0), found)
    return means, jax.tree.map(lambda x: np.asarray(x).std(0) / count**0.5 + 1e-12, found)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 1.0])
def test_the_mean_keeps_of_the_guide_what_the_loss_confirms(beta: float) -> None:
    # The loss is linear, so differences are exact and the expectation holds without remainder.
    method = FOGZO(beta=beta, quantised={"w": True, "b": False})
    mean, error = mean_and_error(method, biased, WEIGHTS)
    guide = SLOPE["w"] * MISTAKE
    guide /= np.linalg.norm(guide)
    truth = SLOPE["w"]
    expected = beta * guide * (guide @ truth) + (1 - beta) * truth
    assert np.all(np.abs(mean["w"] - expected) < 4.5 * error["w"])
    np.testing.assert_allclose(mean["b"], SLOPE["b"])  # not quantised: the plain gradient


def test_spsa_is_unbiased_and_averages_down() -> None:
    mean, error = mean_and_error(SPSA(), biased, WEIGHTS)
    many = mean_and_error(SPSA(pairs=8), biased, WEIGHTS, 4000)
    for name in ("w", "b"):
        assert np.all(np.abs(mean[name] - SLOPE[name]) < 4.5 * error[name])
        ratio = (many[1][name] * 4000**0.5) / (error[name] * 20000**0.5)
        np.testing.assert_allclose(ratio, 8**-0.5, rtol=0.1)


def test_units_of_the_weights_do_not_matter() -> None:
    # w = scale * x: a gradient by w is that by x over the scale, draw by draw.
    scale = {"w": 0.25, "b": 4.0}
    stretched = jax.tree.map(lambda s, t: s * t, scale, TARGET)
    objective = lambda w: sum(jnp.sum(jnp.sin(v)) for v in jax.tree.leaves(w))  # noqa: E731
    in_steps = lambda w: objective(jax.tree.map(lambda s, v: v / s, scale, w))  # noqa: E731
    step = jnp.zeros((), jnp.int32)
    for method in (FOGZO(beta=0.7), SPSA()):
        plain = method(objective, TARGET, key=KEY, step=step)[1]
        scaled = eqx.tree_at(lambda m: m.scale, method, scale, is_leaf=lambda x: x is None)
        other = scaled(in_steps, stretched, key=KEY, step=step)[1]
        for name in scale:
            np.testing.assert_allclose(other[name] * scale[name], plain[name], rtol=1e-12)


def test_beta_may_be_a_schedule_and_the_first_steps_first_order() -> None:
    schedule = optax.linear_schedule(1.0, 0.5, 10)
    at = lambda m, s: m(biased, WEIGHTS, key=KEY, step=jnp.asarray(s))[1]["w"]  # noqa: E731
    np.testing.assert_array_equal(at(FOGZO(beta=schedule), 10), at(FOGZO(beta=0.5), 0))
    np.testing.assert_array_equal(at(FOGZO(beta=schedule), 0), at(FOGZO(beta=1.0), 0))
    late = FOGZO(beta=0.5, first_order_steps=3)
    first_order = fogzo.straight_through(biased, WEIGHTS, key=KEY, step=0)[1]["w"]
    np.testing.assert_array_equal(at(late, 2), first_order)
    np.testing.assert_array_equal(at(late, 3), at(FOGZO(beta=0.5), 3))


def test_a_gradient_of_zero_leaves_finite_numbers() -> None:
    got = FOGZO()(lambda w: 0.0 * jnp.sum(w), jnp.ones(3), key=KEY, step=jnp.asarray(0))
    np.testing.assert_array_equal(got[1], 0)


def test_in_the_training_loop() -> None:
    model = mlp([2, 8, 1], KEY, dtype=jnp.float64)
    which, quantiser = fogzo.matrices(model), Rounding(bits=2, step=0.5)
    inputs = np.random.default_rng(0).normal(size=(64, 2))
    data = (inputs, np.tanh(inputs.sum(1, keepdims=True)))

    def loss(model: Any, batch: Any, key: Any) -> Any:
        hard = fogzo.quantise(model, quantiser, which)
        return jnp.mean((jax.vmap(hard)(batch[0]) - batch[1]) ** 2)

    for method in (fogzo.straight_through, FOGZO(quantiser.noise, 0.5, 0.99, which)):
        got = fit(
            loss, model, data, optimizer=optax.adam(2e-2), steps=150, key=KEY, gradient=method
        )
        assert np.min(got.losses) < 0.5 * got.losses[0]
    assert set(np.unique(quantiser(got.model.layers[0].weight))) <= {-1.0, -0.5, 0.0, 0.5}


def test_bad_settings_are_named() -> None:
    with pytest.raises(InputError, match="bits=1 must be at least 2"):
        Rounding(bits=1)
    with pytest.raises(InputError, match="step=0 must be positive"):
        Sign(step=0)
    with pytest.raises(UnknownName, match="did you mean 'hardtanh'"):
        Sign("hardtan")
    with pytest.raises(InputError, match=r"beta=1\.5 must lie between 0 and 1"):
        FOGZO(beta=1.5)
    with pytest.raises(InputError, match="pairs=0"):
        SPSA(pairs=0)
