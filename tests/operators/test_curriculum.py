"""The curriculum of teacher forcing, its pace inside `fit`, windows, and the losses of rollouts."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nearly.core.errors import InputError
from nearly.operators.curriculum import (
    Curriculum,
    Pace,
    Paced,
    Window,
    Windows,
    autoregressive,
    gradual,
    teacher_forcing,
    usable,
)
from nearly.operators.data import Grid, Trajectories
from nearly.operators.refiner import NoisePrediction, Refiner
from nearly.operators.rollout_losses import SobolevLoss, pushforward_loss
from nearly.operators.scaling import scaling
from nearly.training.loop import Trained, fit


class Factor(eqx.Module):
    """A stepper that multiplies by a number."""

    factor: Any


def advance(model: Factor, state: Any, parameters: Any, truth: Any, progress: Any) -> Any:
    made = model.factor * state
    return made, jnp.mean((made - truth) ** 2)


def powers(base: float, frames: int) -> Window:
    """One trajectory 1, base, base^2, ... at a single point."""
    return Window(base ** jnp.arange(float(frames)).reshape(1, -1, 1, 1), jnp.zeros((1, 0)))


def loss(share: Any, progress: float, **settings: Any) -> float:
    paced = Paced(Factor(jnp.asarray(3.0)), jnp.asarray(progress))
    return float(Curriculum(advance, share, **settings)(paced, powers(2.0, 4), jax.random.key(0)))


def test_teacher_forcing_sees_true_states_only() -> None:
    # 3 * (1, 2, 4) against (2, 4, 8): off by 1, 2, 4.
    assert loss(teacher_forcing, 0.7) == pytest.approx((1 + 4 + 16) / 3)


def test_autoregression_sees_its_own_states_only() -> None:
    # 3, 9, 27 against 2, 4, 8.
    assert loss(autoregressive, 0.0) == pytest.approx((1 + 25 + 361) / 3)


def test_the_curriculum_goes_from_the_first_to_the_second() -> None:
    assert loss(gradual, 0.0) == pytest.approx((1 + 4 + 16) / 3)
    assert loss(gradual, 1.0) == pytest.approx((1 + 25 + 361) / 3)
    # Half way 1.5 of 3 steps are its own: 3 and 9, and from the true 4 then 12.
    assert loss(gradual, 0.5) == pytest.approx((1 + 25 + 16) / 3)


def test_the_curriculum_waits_for_the_warm_up() -> None:
    assert loss(gradual, 0.5, warm_up=0.5) == pytest.approx((1 + 4 + 16) / 3)
    assert loss(gradual, 0.75, warm_up=0.5) == pytest.approx((1 + 25 + 16) / 3)
    with pytest.raises(InputError, match=r"warm_up=1\.0"):
        Curriculum(advance, gradual, 1.0)


def test_published_shares() -> None:
    shares = [float(gradual(jnp.asarray(s))) for s in (0.0, 0.5, 1.0)]
    assert shares == pytest.approx([0.0067, 0.5, 0.9933], abs=1e-4)


def test_gradients_pass_through_all_own_steps() -> None:
    """Of (a^3 - 8)^2 + (a^2 - 4)^2 + (a - 2)^2 over 3 at a = 3."""

    def total(factor: Any) -> Any:
        paced = Paced(Factor(factor), jnp.asarray(0.0))
        return Curriculum(advance, autoregressive)(paced, powers(2.0, 4), jax.random.key(0))

    expected = (2 * 19 * 27 + 2 * 5 * 6 + 2) / 3
    assert float(jax.grad(total)(jnp.asarray(3.0))) == pytest.approx(expected)


def test_pace_tells_the_step_and_leaves_no_trace() -> None:
    def share(progress: Any) -> Any:
        return progress

    def seen(paced: Paced, batch: Any, key: Any) -> Any:
        return jax.lax.stop_gradient(paced.progress) + 0 * paced.model.factor

    trained = fit(
        seen,
        Paced(Factor(jnp.asarray(1.0)), jnp.asarray(0.0)),
        jnp.zeros((1, 1)),
        optimizer=optax.adam(0.1),
        gradient=Pace(4),
        steps=4,
        key=jax.random.key(0),
    )
    np.testing.assert_allclose(trained.losses, [0, 0.25, 0.5, 0.75])
    assert float(trained.model.progress) == 0
    assert share(0.5) == 0.5


def test_training_by_the_curriculum_finds_the_factor() -> None:
    trained = fit(
        Curriculum(advance, gradual, 0.1),
        Paced(Factor(jnp.asarray(1.0)), jnp.asarray(0.0)),
        Windows(powers(2.0, 6).states, jnp.zeros((1, 0)), 4, 2),
        optimizer=optax.adam(0.05),
        gradient=Pace(300),
        steps=300,
        key=jax.random.key(0),
    )
    assert float(trained.model.model.factor) == pytest.approx(2, abs=1e-3)


# ---- windows


def test_windows_are_consecutive_frames_of_one_sample() -> None:
    states = (10 * jnp.arange(3.0)[:, None] + jnp.arange(7.0)).reshape(3, 7, 1, 1)
    draw = Windows(states, jnp.arange(3.0)[:, None], 4, 50)
    window = draw(jax.random.key(0))
    values = np.asarray(window.states[..., 0, 0])
    np.testing.assert_array_equal(np.diff(values, axis=1), 1)
    np.testing.assert_array_equal(values[:, 0] // 10, window.parameters[:, 0])
    assert set(values[:, 0] % 10) == {0, 1, 2, 3}


def test_a_window_longer_than_the_trajectories_is_refused() -> None:
    with pytest.raises(InputError, match="window of 5 frames in trajectories of 4"):
        Windows(jnp.zeros((1, 4, 1, 1)), jnp.zeros((1, 0)), 5, 1)


def test_a_diverged_training_is_no_model() -> None:
    with pytest.raises(InputError, match="lower the learning rate"):
        usable(Trained(None, None, np.zeros(1), 1, "diverged", "the loss is not finite"))


# ---- losses of rollouts


def doubling(points: int = 16) -> tuple[Refiner, Window]:
    """A stepper whose increment is the factor in its network times the state, in unit scales."""
    states = np.ones((1, 3, 1, points), np.float32)
    data = Trajectories(states, np.zeros((1, 0), np.float32), Grid((1.0,), True), 0.1)
    units = eqx.tree_at(lambda s: s.mean, scaling(data), np.zeros(1, np.float32))
    model = Refiner(lambda x, level, p: x[:1], NoisePrediction(0), units)
    return model, Window(jnp.asarray(states), jnp.zeros((1, 0)))


def test_pushforward_adds_the_error_after_its_own_step() -> None:
    # The state 1 becomes 2, then 4; the truth stays 1.
    model, window = doubling()
    assert float(pushforward_loss(model, window, jax.random.key(0))) == pytest.approx(1 + 9)


def test_no_gradient_passes_through_the_pushed_state() -> None:
    _, window = doubling()

    def total(factor: Any) -> Any:
        model = eqx.tree_at(lambda m: m.network, doubling()[0], lambda x, level, p: factor * x[:1])
        return pushforward_loss(model, window, jax.random.key(0))

    # a^2 + (2 (1 + a) - 1)^2 with the state 1 + 1 = 2 held fixed: 2 a + 2 * 3 * 2 at a = 1.
    assert float(jax.grad(total)(1.0)) == pytest.approx(2 + 12)


@pytest.mark.parametrize(("wave", "order"), ((0, 1.0), (3, 1.0), (8, 1.0), (3, 2.0), (3, 0.0)))
def test_sobolev_weighs_a_wave_by_its_number(wave: int, order: float) -> None:
    model, _ = doubling()
    x = 2 * jnp.pi * jnp.arange(16) / 16
    states = jnp.stack([jnp.cos(wave * x), jnp.cos(wave * x)])[None, :, None]
    plain = float(jnp.mean(jnp.cos(wave * x) ** 2))
    found = float(SobolevLoss(order)(model, Window(states, jnp.zeros((1, 0))), jax.random.key(0)))
    assert found == pytest.approx((1 + wave**2) ** order * plain, rel=1e-4)


def test_sobolev_orders_below_zero_are_refused() -> None:
    with pytest.raises(InputError, match=r"order=-1\.0"):
        SobolevLoss(-1.0)
