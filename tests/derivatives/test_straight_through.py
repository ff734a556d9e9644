"""Gradients through categorical choices, against enumeration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nearly.core.errors import InputError
from nearly.derivatives import expectations
from nearly.derivatives import straight_through as st

SAMPLERS: dict[str, Callable[..., Any]] = {
    "straight-through": st.straight_through,
    "gumbel": st.gumbel_straight_through,
    "gumbel-rao": st.gumbel_rao,
    "reinmax": st.reinmax,
}


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def draw(seed: int, *shape: int) -> Any:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


@partial(jax.jit, static_argnums=(0, 1))
def expected_gradient(choice: Any, objective: Any, logits: Any) -> Any:
    """The mean over all draws of the gradient that a rule gives at each, exactly."""
    every = expectations.all_choices(logits.shape).astype(logits.dtype)
    chance = jnp.prod(jnp.sum(every * jax.nn.softmax(logits), -1), -1)
    slopes = jax.vmap(lambda y: jax.grad(lambda x: objective(choice(y, x)))(logits))(every)
    return jnp.tensordot(chance, slopes, 1)


@partial(jax.jit, static_argnums=0)
def true_gradient(objective: Any, logits: Any) -> Any:
    return jax.grad(lambda x: expectations.exact(objective, x))(logits)


def quadratic(seed: int, size: int) -> Any:
    matrix, linear = draw(seed, size, size), draw(seed + 1, size)
    return lambda y: y.ravel() @ matrix @ y.ravel() + linear @ y.ravel()


@pytest.mark.parametrize(("latents", "classes"), [(1, 2), (1, 5), (3, 3)])
def test_reinmax_is_exact_on_quadratics_and_straight_through_on_linear(
    latents: int, classes: int
) -> None:
    logits = draw(7, latents, classes)
    objective = quadratic(0, latents * classes)
    truth = true_gradient(objective, logits)
    got = expected_gradient(st.reinmax_choice, objective, logits)
    np.testing.assert_allclose(got, truth, atol=1e-13)
    first_order = expected_gradient(st.straight_through_choice, objective, logits)
    assert np.abs(first_order - truth).max() > 1e-2
    line = draw(3, latents, classes)
    linear: Any = lambda y: jnp.sum(line * y)  # noqa: E731
    got = expected_gradient(st.straight_through_choice, linear, logits)
    np.testing.assert_allclose(got, true_gradient(linear, logits), atol=1e-14)


def test_reinmax_is_not_exact_beyond_quadratics() -> None:
    logits = draw(1, 1, 4)
    quartic: Any = lambda y: jnp.sum(draw(2, 4) * y[0]) ** 4  # noqa: E731
    got = expected_gradient(st.reinmax_choice, quartic, logits)
    assert np.abs(got - true_gradient(quartic, logits)).max() > 1e-2


def test_reinmax_by_the_rule_derived_in_the_module() -> None:
    logits, slope = draw(0, 4), draw(1, 4)
    p = jax.nn.softmax(logits)
    gradient = jax.jit(jax.grad(lambda x, y: slope @ st.reinmax_choice(y, x)))
    for y in jnp.eye(4):
        got = gradient(logits, y)
        by_hand = (p * (slope - p @ slope) + (y - p) * ((y - p) @ slope)) / 2
        np.testing.assert_allclose(got, by_hand, atol=1e-15)


def test_reinmax_at_another_temperature_is_the_authors_formula() -> None:
    logits, slope, tau = draw(0, 4), draw(1, 4), 1.7
    y = jax.nn.one_hot(2, 4, dtype=logits.dtype)
    got = jax.grad(lambda x: slope @ st.reinmax_choice(y, x, tau))(logits)
    middle, p = (jax.nn.softmax(logits / tau) + y) / 2, jax.nn.softmax(logits)
    twice = 2 * middle * (slope - middle @ slope)
    np.testing.assert_allclose(got, twice - p * (slope - p @ slope) / 2, atol=1e-15)


@pytest.mark.parametrize("name", SAMPLERS)
def test_draws_are_one_hot_with_the_right_frequencies(name: str) -> None:
    logits = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))
    many = jnp.broadcast_to(logits, (20000, 4))
    one_hot, probabilities = SAMPLERS[name](many, jax.random.key(0))
    assert one_hot.shape == many.shape
    np.testing.assert_array_equal(np.sort(one_hot, -1), [[0.0, 0, 0, 1]] * 20000)
    np.testing.assert_allclose(one_hot.mean(0), jnp.exp(logits), atol=0.015)
    np.testing.assert_allclose(probabilities[0], jnp.exp(logits), atol=1e-15)


@pytest.mark.parametrize("name", SAMPLERS)
def test_forward_and_reverse_mode_agree_and_both_outputs_have_gradients(name: str) -> None:
    logits, direction, slope = draw(0, 2, 3), draw(1, 2, 3), draw(2, 2, 3)

    def objective(x: Any) -> Any:
        one_hot, probabilities = SAMPLERS[name](x, jax.random.key(3))
        return jnp.sum(slope * one_hot) + jnp.sum(slope * probabilities**2)

    reverse = jnp.sum(jax.grad(objective)(logits) * direction)
    np.testing.assert_allclose(jax.jvp(objective, (logits,), (direction,))[1], reverse, rtol=1e-12)
    only_sample = jax.grad(lambda x: jnp.sum(slope * SAMPLERS[name](x, jax.random.key(3))[0]))
    only_soft = jax.grad(lambda x: jnp.sum(slope * jax.nn.softmax(x) ** 2))
    together = only_sample(logits) + only_soft(logits)
    np.testing.assert_allclose(jax.grad(objective)(logits), together, atol=1e-14)


@pytest.mark.parametrize("name", SAMPLERS)
def test_gradients_do_not_see_a_shift_of_the_logits(name: str) -> None:
    slope = draw(2, 3)
    gradient = jax.grad(lambda x: slope @ SAMPLERS[name](x, jax.random.key(3))[0])
    logits = draw(0, 3)
    np.testing.assert_allclose(gradient(logits), gradient(logits + 100), atol=1e-10)
    np.testing.assert_allclose(gradient(logits).sum(), 0, atol=1e-13)


@pytest.mark.parametrize("name", SAMPLERS)
def test_masked_classes_are_never_drawn_and_get_no_gradient(name: str) -> None:
    logits = jnp.array([0.3, -jnp.inf, 0.1, -jnp.inf])

    def objective(x: Any, key: Any) -> Any:
        one_hot = SAMPLERS[name](x, key)[0]
        return jnp.sum(one_hot * jnp.arange(4.0)), one_hot

    keys = jax.random.split(jax.random.key(0), 50)
    each = jax.jit(jax.vmap(jax.grad(objective, has_aux=True), (None, 0)))
    gradients, one_hot = each(logits, keys)
    assert np.isfinite(gradients).all()
    assert not np.any(gradients[:, 1::2]) and not np.any(one_hot[:, 1::2])
    assert np.any(gradients[:, ::2])


@pytest.mark.parametrize("name", SAMPLERS)
def test_jit_vmap_and_dtype(name: str) -> None:
    logits = draw(0, 5, 3).astype(jnp.float32)
    keys = jax.random.split(jax.random.key(1), 5)
    batched = jax.jit(jax.vmap(SAMPLERS[name]))(logits, keys)
    for i in range(5):
        single = SAMPLERS[name](logits[i], keys[i])
        np.testing.assert_array_equal(batched[0][i], single[0])
    assert batched[0].dtype == batched[1].dtype == jnp.float32


def test_conditional_gumbels_are_gumbels_that_peak_at_the_draw() -> None:
    logits = jnp.array([0.5, -0.3, 0.0])
    keys = jax.random.split(jax.random.key(0), 20000)

    def perturbed(key: Any) -> Any:
        first, second = jax.random.split(key)
        y = st.sample(logits, first)
        return y, st._gumbels_given(y, logits, second, 1)[0]

    y, noisy = jax.jit(jax.vmap(perturbed))(keys)
    np.testing.assert_array_equal(jnp.argmax(noisy, -1), jnp.argmax(y, -1))
    # Given and drawn: logits - logsumexp plus standard Gumbels, of mean 0.5772, variance pi^2/6.
    noise = noisy - (logits - jax.nn.logsumexp(logits))
    np.testing.assert_allclose(noise.mean(0), np.euler_gamma, atol=0.04)
    np.testing.assert_allclose(noise.var(0), np.pi**2 / 6, atol=0.1)


def test_gumbel_rao_has_the_mean_of_gumbel_and_less_variance() -> None:
    logits, slope = draw(0, 4), draw(1, 4)
    keys = jax.random.split(jax.random.key(2), 20000)

    def gradients(sampler: Any) -> Any:
        objective = lambda x, key: jnp.sum((sampler(x, key)[0] - slope) ** 2)  # noqa: E731
        return jax.jit(jax.vmap(jax.grad(objective), (None, 0)))(logits, keys)

    plain = gradients(partial(st.gumbel_straight_through, tau=0.5))
    rao = gradients(partial(st.gumbel_rao, tau=0.5, samples=10))
    error = np.sqrt((plain.var(0) + rao.var(0)) / len(keys))
    assert np.all(np.abs(plain.mean(0) - rao.mean(0)) < 4 * error)
    assert rao.var(0).sum() < 0.8 * plain.var(0).sum()


@pytest.mark.parametrize("method", ["exact", "leave-one-out"])
def test_unbiased_expectations_also_move_what_the_objective_closes_over(method: str) -> None:
    logits, target = draw(0, 2, 3), draw(1, 2, 3)
    estimate = {"exact": expectations.exact, "leave-one-out": expectations.LeaveOneOut(3)}[method]

    def objective(x: Any, scale: Any, key: Any) -> Any:
        return estimate(lambda y: jnp.sum(jnp.abs(y - scale * target) ** 1.5), x, key)

    keys = jax.random.split(jax.random.key(0), 4000)
    gradients = jax.jit(jax.vmap(jax.value_and_grad(objective, (0, 1)), (None, None, 0)))
    got = gradients(logits, 0.7, keys)
    value, (by_logits, by_scale) = got
    truth = jax.value_and_grad(
        lambda x, s: expectations.exact(lambda y: jnp.sum(jnp.abs(y - s * target) ** 1.5), x),
        (0, 1),
    )(logits, 0.7)
    for estimates, exact in [(value, truth[0]), (by_logits, truth[1][0]), (by_scale, truth[1][1])]:
        error = np.asarray(estimates).std(0) / np.sqrt(len(keys)) + 1e-12
        assert np.all(np.abs(np.asarray(estimates).mean(0) - exact) < 4.5 * error)


def test_exact_against_a_sum_written_by_hand() -> None:
    p, q = np.array([0.2, 0.8]), np.array([0.6, 0.4])
    logits = jnp.log(jnp.stack([p, q]))
    table = np.array([[1.0, 5.0], [2.0, -3.0]])
    got = expectations.exact(lambda y: y[0] @ table @ y[1], logits)
    np.testing.assert_allclose(got, p @ table @ q, rtol=1e-14)


def test_bad_settings_are_named() -> None:
    logits, key = jnp.zeros(3), jax.random.key(0)
    with pytest.raises(InputError, match=r"tau=0\.5 must be at least 1"):
        st.reinmax(logits, key, 0.5)
    with pytest.raises(InputError, match=r"tau=0 must be positive"):
        st.straight_through(logits, key, 0)
    with pytest.raises(InputError, match="samples=0"):
        st.gumbel_rao(logits, key, samples=0)
    with pytest.raises(InputError, match="samples=1 must be at least 2"):
        expectations.LeaveOneOut(1)
    with pytest.raises(InputError, match=r"4\^9 joint choices"):
        expectations.exact(jnp.sum, jnp.zeros((9, 4)))
