"""PDE-Refiner: its noise levels, the equivalence of its two forms, its stepper and its training."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nearly.core.errors import InputError
from nearly.operators.curriculum import Windows
from nearly.operators.data import Grid, Trajectories
from nearly.operators.refiner import (
    NoisePrediction,
    PDERefiner,
    Refiner,
    VelocityPrediction,
    denoising_loss,
)
from nearly.operators.scaling import scaling
from nearly.operators.unet import conditioned_unet, sinusoidal

FORMS = (NoisePrediction(), VelocityPrediction())


def waves(samples: int = 8, frames: int = 6, points: int = 16, dtype: Any = np.float32) -> Any:
    """Sines of random phase that travel a twelfth of the box a frame."""
    phases = np.random.default_rng(0).uniform(0, 2 * np.pi, (samples, 1, 1, 1))
    x = 2 * np.pi * np.arange(points) / points
    times = np.arange(frames).reshape(1, -1, 1, 1) / 12
    states = 3 * np.sin(x - 2 * np.pi * times + phases) + 1
    return Trajectories(
        states.astype(dtype), np.zeros((samples, 0), dtype), Grid((1.0,), True), 0.1
    )


def at(level: int) -> Any:
    return jnp.asarray(level, jnp.int32)


# ---- levels


def test_variances_fall_geometrically_to_the_smallest() -> None:
    form = NoisePrediction(refinements=3, smallest_variance=1e-6)
    deviations = [float(form.deviation(at(k), jnp.float32)) for k in range(4)]
    assert deviations == pytest.approx([1, 1e-1, 1e-2, 1e-3], rel=1e-5)


def test_the_velocity_form_is_as_noisy_as_the_noise_form() -> None:
    # 1 - (1 - b_k) ... (1 - b_K) is b_k plus what is smaller by b_{k+1} / b_k = 0.007.
    for level in (1, 2, 3):
        _, noise = VelocityPrediction().kept(at(level), jnp.float32)
        plain = NoisePrediction().deviation(at(level), jnp.float32)
        assert float(noise) == pytest.approx(float(plain), rel=0.005)


def test_velocity_levels_by_hand() -> None:
    # Variances 1, 0.5, 0.25: kept signal 0, 0.5 * 0.75, 0.75, and 1 after the last.
    form = VelocityPrediction(refinements=2, smallest_variance=0.25)
    signals = [float(form.kept(at(k), jnp.float32)[0]) ** 2 for k in range(4)]
    assert signals == pytest.approx([0, 0.375, 0.75, 1], abs=1e-6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("level", range(4))
def test_the_perfect_answer_gives_the_increment_back(form: Any, level: int) -> None:
    increment, noise = jax.random.normal(jax.random.key(0), (2, 1, 32))
    given = form.corrupted(increment, noise, at(level))
    answer = form.target(increment, noise, at(level))
    np.testing.assert_allclose(form.cleaned(given, answer, at(level)), increment, atol=1e-6)


@pytest.mark.parametrize("level", (1, 2, 3))
def test_both_forms_are_one_estimate(level: int) -> None:
    """A network's noise, turned into a velocity, cleans the same input in the same way."""
    velocity, plain = VelocityPrediction(), NoisePrediction()
    increment, noise, wrong = jax.random.normal(jax.random.key(1), (3, 1, 32))
    given = velocity.corrupted(increment, noise, at(level))
    predicted = noise + 0.1 * wrong
    converted = velocity.velocity(given, predicted, at(level))
    exact = velocity.target(increment, noise, at(level))
    np.testing.assert_allclose(velocity.velocity(given, noise, at(level)), exact, atol=1e-5)
    one, other = (
        velocity.cleaned(given, converted, at(level)),
        plain.cleaned(given, predicted, at(level)),
    )
    deviation = float(plain.deviation(at(level), jnp.float32))
    # Both differ from the truth by 0.1 deviations; from each other by the square of it at most.
    assert float(jnp.abs(one - other).max()) < 4 * deviation**2 + 0.02 * deviation


@pytest.mark.parametrize("form", FORMS)
def test_new_noise_has_the_variance_of_the_next_level(form: Any) -> None:
    increment = jnp.zeros((1, 20_000))
    noise, fresh = jax.random.normal(jax.random.key(2), (2, 1, 20_000))
    for level in (0, 1, 2):
        given = form.corrupted(increment, noise, at(level))
        following = form.next(given, increment, fresh, at(level))
        expected = float(NoisePrediction().deviation(at(level + 1), jnp.float32))
        assert float(following.std()) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("form", (NoisePrediction, VelocityPrediction))
def test_bad_levels_are_refused(form: Any) -> None:
    with pytest.raises(InputError, match="refinements=-1"):
        form(refinements=-1)
    with pytest.raises(InputError, match="smallest_variance=4"):
        form(smallest_variance=4.0)


# ---- the stepper


class Oracle(eqx.Module):
    """Answers perfectly: it knows the increment of a wave that travels by `shift` cells."""

    form: Any
    shift: int = eqx.field(static=True)
    unit: Any

    def __call__(self, x: Any, level: Any, parameters: Any) -> Any:
        state, given = x[:1], x[1:]
        increment = (jnp.roll(state, self.shift, 1) - state) / self.unit
        place = jnp.round(level * self.form.refinements).astype(jnp.int32)
        if isinstance(self.form, VelocityPrediction):
            signal, loud = self.form.kept(place, x.dtype)
            # What cleaning turns into the increment, at any level.
            return jnp.where(place == 0, -increment, (signal * given - increment) / loud)
        deviation = self.form.deviation(place, x.dtype)
        return jnp.where(place == 0, increment, (given - increment) / deviation)


@pytest.mark.parametrize("form", (*FORMS, NoisePrediction(0), VelocityPrediction(0)))
def test_a_perfect_network_steps_exactly(form: Any) -> None:
    data = waves(points=24)
    units = scaling(data)
    stepper = Refiner(Oracle(form, 2, units.increment_std / units.std), form, units)
    made = stepper(jnp.asarray(data.states[0, 0]), jnp.zeros(0), key=jax.random.key(0))
    np.testing.assert_allclose(made, data.states[0, 1], atol=2e-5)


def test_calls_are_counted() -> None:
    called: list[int] = []

    def network(x: Any, level: Any, parameters: Any) -> Any:
        jax.debug.callback(lambda: called.append(1))
        return x[:1]

    stepper = Refiner(network, NoisePrediction(refinements=4), scaling(waves()))
    jax.block_until_ready(stepper(jnp.ones((1, 16)), jnp.zeros(0), key=jax.random.key(0)))
    jax.effects_barrier()
    assert len(called) == stepper.calls == 5


@pytest.fixture(scope="module")
def untrained() -> Refiner:
    return PDERefiner(width=8, levels=1).untrained(waves(), key=jax.random.key(3))


def test_members_of_an_ensemble_differ_and_repeat(untrained: Refiner) -> None:
    state = jnp.asarray(waves().states[0, 0])
    keys = jax.random.split(jax.random.key(0), 3)
    draw = jax.jit(jax.vmap(lambda key: untrained(state, jnp.zeros(0), key=key)))
    members = draw(keys)
    assert float(jnp.abs(members[0] - members[1]).max()) > 0
    again = draw(keys[::-1])[-1]
    np.testing.assert_allclose(members[0], again, rtol=1e-5, atol=1e-5)


def test_one_call_without_refinement_draws_nothing() -> None:
    plain = PDERefiner(form=NoisePrediction(0), width=8, levels=1)
    stepper = plain.untrained(waves(), key=jax.random.key(3))
    state = jnp.asarray(waves().states[0, 0])
    step = jax.jit(lambda key: stepper(state, jnp.zeros(0), key=key))
    one, other = (step(jax.random.key(k)) for k in (0, 1))
    np.testing.assert_array_equal(one, other)


def test_translations_commute_with_a_step(untrained: Refiner) -> None:
    """By multiples of the coarsest cell; the noise of the refinements is left out."""
    state = jnp.asarray(waves().states[0, 0])
    zeros = jnp.zeros_like(state)
    answer = jax.jit(lambda state: untrained.output(state, zeros, at(0), jnp.zeros(0)))
    out, moved = answer(state), answer(jnp.roll(state, 2, 1))
    np.testing.assert_allclose(moved, jnp.roll(out, 2, 1), atol=1e-5)


def test_other_channels_and_coarse_formats_are_refused(untrained: Refiner) -> None:
    with pytest.raises(InputError, match="2 channels for a stepper of 1"):
        untrained(jnp.ones((2, 16)), jnp.zeros(0), key=jax.random.key(0))
    with pytest.raises(InputError, match="float16 cannot hold noise"):
        untrained(jnp.ones((1, 16), jnp.float16), jnp.zeros(0), key=jax.random.key(0))


def test_boundaries_that_are_not_periodic_are_refused() -> None:
    data = waves()
    closed = Trajectories(data.states, data.parameters, Grid((1.0,), False), 0.1)
    with pytest.raises(InputError, match="periodic"):
        PDERefiner()(closed, key=jax.random.key(0))


def test_grids_that_cannot_be_halved_and_values_that_are_not_finite_are_refused() -> None:
    odd = waves(points=18)
    stepper = PDERefiner(width=8, levels=2).untrained(odd, key=jax.random.key(0))
    with pytest.raises(InputError, match="multiples of 4"):
        stepper(jnp.ones((1, 18)), jnp.zeros(0), key=jax.random.key(0))
    broken = waves()
    broken.states[3, 2, 0, 1] = np.nan
    with pytest.raises(InputError, match="sample 3 are not finite"):
        PDERefiner()(broken, key=jax.random.key(0))


def test_planes_of_several_channels_and_parameters() -> None:
    states = np.random.default_rng(0).normal(size=(4, 3, 2, 8, 8)).astype(np.float32)
    data = Trajectories(states, np.ones((4, 3), np.float32), Grid((1.0, 2.0), True), 0.1)
    stepper = PDERefiner(width=8, levels=1).untrained(data, key=jax.random.key(0))
    shape = jax.eval_shape(
        lambda u, p: stepper(u, p, key=jax.random.key(0)), jnp.asarray(states[0, 0]), jnp.ones(3)
    )
    assert shape.shape == (2, 8, 8)


# ---- training


def test_the_loss_is_that_of_its_definition(untrained: Refiner) -> None:
    """A network that answers zero is wrong by the mean square of its targets: 1 at every level."""
    silent = eqx.tree_at(lambda r: r.network, untrained, lambda x, level, p: jnp.zeros_like(x[:1]))
    data = waves(64)
    batch = Windows(jnp.asarray(data.states), jnp.asarray(data.parameters), 2, 512)(
        jax.random.key(0)
    )
    loss = denoising_loss(silent, batch, jax.random.key(1))
    assert float(loss) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("dtype", (np.float32, pytest.param(np.float64, marks=pytest.mark.slow)))
def test_training_learns_to_travel(dtype: Any) -> None:
    with jax.enable_x64(dtype == np.float64):
        data = waves(32, dtype=dtype)
        builder = PDERefiner(width=8, levels=1, steps=200, learning_rate=5e-3)
        stepper = builder(data, key=jax.random.key(0))
        keys = jax.random.split(jax.random.key(1), len(data))
        step = jax.jit(jax.vmap(lambda u, key: stepper(u, jnp.zeros(0, dtype), key=key)))
        made = step(jnp.asarray(data.states[:, 0]), keys)
        assert made.dtype == dtype
        moved = np.linalg.norm(data.states[:, 1] - data.states[:, 0])
        assert np.linalg.norm(np.asarray(made) - data.states[:, 1]) < 0.1 * moved


def test_gradients_reach_the_state(untrained: Refiner) -> None:
    """Steppers are differentiable: the gradient agrees with finite differences."""
    with jax.enable_x64(True):
        data = waves(dtype=np.float64)
        stepper = PDERefiner(width=8, levels=1).untrained(data, key=jax.random.key(3))

        @jax.jit
        def energy(amplitude: Any) -> Any:
            u = stepper(
                amplitude * jnp.asarray(data.states[0, 0]), jnp.zeros(0), key=jax.random.key(0)
            )
            return jnp.sum(u**2)

        step = 1e-5
        slope = (energy(1 + step) - energy(1 - step)) / (2 * step)
        assert float(jax.grad(energy)(1.0)) == pytest.approx(float(slope), rel=1e-6)


# ---- the network


def test_places_are_embedded_apart() -> None:
    places = jax.vmap(lambda x: sinusoidal(x, 16))(jnp.asarray([0.0, 1 / 3, 2 / 3, 1.0]))
    assert places.shape == (4, 16)
    gaps = jnp.linalg.norm(places[:, None] - places[None], axis=-1) + 10 * jnp.eye(4)
    assert float(gaps.min()) > 1
    with pytest.raises(InputError, match="features=3"):
        sinusoidal(jnp.asarray(0.0), 3)


def test_the_network_is_told_level_and_parameters() -> None:
    network = conditioned_unet(2, 1, 1, jax.random.key(0), width=8, levels=1)
    # Blocks start as identity, whatever the condition: wake their second convolutions.
    network = jax.tree.map(lambda x: x + 0.05 if eqx.is_inexact_array(x) else x, network)
    network = eqx.filter_jit(network)
    x = jax.random.normal(jax.random.key(1), (2, 16))
    plain = network(x, jnp.asarray(0.0), jnp.zeros(1))
    assert float(jnp.abs(network(x, jnp.asarray(0.5), jnp.zeros(1)) - plain).max()) > 1e-4
    assert float(jnp.abs(network(x, jnp.asarray(0.0), jnp.ones(1)) - plain).max()) > 1e-4


def test_parameters_over_decades_go_in_by_their_logarithm() -> None:
    data = waves(4)
    parameters = np.array([[1e-3, 1.0], [1e-2, 2.0], [1e-1, 3.0], [1.0, 4.0]], np.float32)
    units = scaling(Trajectories(data.states, parameters, data.grid, 0.1))
    seen = np.array([units.parameters(jnp.asarray(p), jnp.float32) for p in parameters])
    np.testing.assert_allclose(seen.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(seen.std(0), 1, atol=1e-5)
    np.testing.assert_allclose(np.diff(seen, axis=0).std(0), 0, atol=1e-5)  # evenly apart
