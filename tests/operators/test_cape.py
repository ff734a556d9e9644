"""CAPE: its attention, its place in front of a base, and the other ways to tell parameters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nearly.core.errors import InputError
from nearly.operators.claims import conditioning as claims
from nearly.operators.conditioning import (
    AUXILIARY,
    Base,
    averaged,
    cape,
    channels_stepper,
    film_stepper,
    guided_loss,
    parameter_attention,
    plain_stepper,
    state_loss,
    upsampled,
)
from nearly.operators.data import Grid, Trajectories
from nearly.operators.training import parameter_count

SMALL = {"base": Base(width=8, modes=4, projection=16)}


def decays(samples: int = 32, frames: int = 6, points: int = 16, dtype: Any = np.float32) -> Any:
    """Sines of random phase that decay by a factor a frame, which is their parameter."""
    draws = np.random.default_rng(0)
    phases = draws.uniform(0, 2 * np.pi, (samples, 1, 1, 1))
    factors = draws.uniform(0.3, 0.9, (samples, 1, 1, 1))
    x = 2 * np.pi * np.arange(points) / points
    states = factors ** np.arange(frames).reshape(1, -1, 1, 1) * np.sin(x + phases)
    parameters = factors[:, :, 0, 0]
    return Trajectories(states.astype(dtype), parameters.astype(dtype), Grid((1.0,), True), 0.1)


# ---- the attention


def test_averages_and_interpolation_by_hand() -> None:
    field = jnp.arange(8.0)[None]
    np.testing.assert_allclose(averaged(field), [[1.5, 5.5]])
    # Between block centres 1.5 and 5.5 (and 9.5, the first again) the line is straight.
    expected = [[3.0, 2.0, 2.0, 3.0, 4.0, 5.0, 5.0, 4.0]]
    np.testing.assert_allclose(upsampled(jnp.asarray([[1.5, 5.5]])), expected, atol=1e-6)


@pytest.mark.parametrize("dims", (1, 2))
def test_constants_survive_averaging_and_interpolation(dims: int) -> None:
    field = jnp.full((2, *(8,) * dims), 3.0)
    np.testing.assert_allclose(upsampled(averaged(field)), field, rtol=1e-6)


@pytest.fixture(scope="module")
def attention() -> Any:
    return eqx.filter_jit(parameter_attention(1, 1, jax.random.key(0), width=8, modes=4))


def test_translations_by_blocks_commute_with_the_guess(attention: Any) -> None:
    state = jax.random.normal(jax.random.key(1), (1, 32))
    guess = attention(state, jnp.ones(1))
    moved = attention(jnp.roll(state, 8, 1), jnp.ones(1))
    np.testing.assert_allclose(moved, jnp.roll(guess, 8, 1), atol=1e-4)


def test_the_guess_differs_from_the_state_by_a_normalised_field(attention: Any) -> None:
    state = 5 * jax.random.normal(jax.random.key(1), (1, 32))
    change = attention(state, jnp.ones(1)) - state
    assert float(change.mean()) == pytest.approx(0, abs=1e-4)
    assert float(change.std()) == pytest.approx(1, rel=1e-3)


def test_the_guess_depends_on_the_parameter_through_its_masks_alone(attention: Any) -> None:
    state = jax.random.normal(jax.random.key(1), (1, 32))
    one, other = attention(state, jnp.ones(1)), attention(state, -jnp.ones(1))
    assert float(jnp.abs(one - other).max()) > 1e-2
    made = parameter_attention(1, 1, jax.random.key(0), width=8, modes=4)
    closed = eqx.tree_at(lambda a: a.masks, made, replace_fn=lambda m: jax.tree.map(_still, m))
    one, other = closed(state, jnp.ones(1)), closed(state, -jnp.ones(1))
    np.testing.assert_array_equal(one, other)


def _still(leaf: Any) -> Any:
    return jnp.zeros_like(leaf) if eqx.is_inexact_array(leaf) else leaf


def test_any_resolution_that_is_a_multiple_of_four(attention: Any) -> None:
    assert attention(jnp.ones((1, 20)), jnp.ones(1)).shape == (1, 20)
    with pytest.raises(InputError, match=r"sizes \[18\] must be multiples of 4"):
        attention(jnp.ones((1, 18)), jnp.ones(1))


def test_planes_of_several_channels_and_parameters() -> None:
    made = parameter_attention(2, 3, jax.random.key(0), width=8, modes=2, dims=2)
    assert jax.eval_shape(made, jnp.ones((2, 8, 12)), jnp.ones(3)).shape == (2, 8, 12)


def test_an_equation_without_parameters_is_refused() -> None:
    data = decays()
    bare = Trajectories(data.states, np.zeros((len(data), 0), np.float32), data.grid, 0.1)
    with pytest.raises(InputError, match="at least 1 parameter"):
        cape.untrained(bare, key=jax.random.key(0))
    with pytest.raises(InputError, match="width=7"):
        parameter_attention(1, 1, jax.random.key(0), width=7)


# ---- conditioned steppers

BUILDERS = {
    "cape": cape,
    "film": film_stepper,
    "channels": channels_stepper,
    "plain": plain_stepper,
}


@pytest.mark.parametrize("name", [*BUILDERS])
def test_steppers_are_told_the_parameter_unless_they_are_not(name: str) -> None:
    stepper = replace(BUILDERS[name], **SMALL).untrained(decays(), key=jax.random.key(0))
    # FiLM starts unmodulated: wake its last layers.
    stepper = jax.tree.map(lambda x: x + 0.02 if eqx.is_inexact_array(x) else x, stepper)
    step = eqx.filter_jit(stepper)
    state = jnp.asarray(decays().states[0, 0])
    one, other = step(state, jnp.asarray([0.4])), step(state, jnp.asarray([0.8]))
    assert one.shape == state.shape
    assert (float(jnp.abs(one - other).max()) > 1e-4) == (name != "plain")


def test_parameter_counts_of_the_claim_are_equal() -> None:
    builders = (claims.ATTENDED, claims.CHANNELS, claims.FILM, claims.PLAIN)
    counts = [
        parameter_count(b.network(b.base, 1, 1, 1, jax.random.key(0), jnp.float32))
        for b in builders
    ]
    assert max(counts) < 1.03 * min(counts)


def test_the_guess_is_learned_alone_at_first() -> None:
    stepper = replace(cape, **SMALL).untrained(decays(), key=jax.random.key(0))
    data = decays()
    state, truth = jnp.asarray(data.states[0, 0]), jnp.asarray(data.states[0, 1])
    told = jnp.asarray(data.parameters[0])
    made, guess = stepper.with_guess(state, told)
    own, both = (float(stepper.squared_error(x, truth)) for x in (guess, made))
    first = guided_loss(stepper, state, told, truth, jnp.asarray(0.0))[1]
    later = guided_loss(stepper, state, told, truth, jnp.asarray(0.5))[1]
    assert float(first) == pytest.approx(own, rel=1e-5)
    assert float(later) == pytest.approx(both + AUXILIARY * own, rel=1e-5)
    plain = state_loss(stepper, state, told, truth, jnp.asarray(0.5))[1]
    assert float(plain) == pytest.approx(both, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*BUILDERS])
def test_training_learns_the_decay(name: str) -> None:
    data = decays(64)
    builder = replace(BUILDERS[name], **SMALL, steps=600)
    step = eqx.filter_jit(eqx.filter_vmap(builder(data, key=jax.random.key(0))))
    fresh = decays(96)[64:]
    made = np.asarray(step(jnp.asarray(fresh.states[:, 0]), jnp.asarray(fresh.parameters)))
    error = np.linalg.norm(made - fresh.states[:, 1]) / np.linalg.norm(fresh.states[:, 1])
    # Not told its factor, the best a network can do is the mean factor: off by 0.17 of 0.6.
    assert (error < 0.12) == (name != "plain")


def test_other_channels_and_closed_boxes_are_refused() -> None:
    data = decays()
    stepper = replace(plain_stepper, **SMALL).untrained(data, key=jax.random.key(0))
    with pytest.raises(InputError, match="2 channels for a stepper of 1"):
        stepper(jnp.ones((2, 16)), jnp.ones(1))
    closed = Trajectories(data.states, data.parameters, Grid((1.0,), False), 0.1)
    with pytest.raises(InputError, match="periodic"):
        cape(closed, key=jax.random.key(0))
