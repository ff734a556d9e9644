"""SEGNO and EGNN: equivariance, the limit of many steps, a case solved by hand, their problem."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nearly.core.errors import InputError, UnknownName
from nearly.dynamics.equivariant import Bodies, Interaction, egnn, lengths, segno
from nearly.dynamics.motion_training import MotionTraining, second_order
from nearly.dynamics.problems import bodies as bodies_problem

KEY = jax.random.key(0)


def some(seed: int = 0, count: int = 4, dtype: Any = np.float64) -> Bodies:
    draw = np.random.default_rng(seed)
    places, velocities = draw.standard_normal((2, count, 3)).astype(dtype)
    return Bodies(places, velocities, draw.choice([-1.0, 1.0], count).astype(dtype))


def strong(model: Any) -> Any:
    """With pulls that matter at once: they start at a thousandth."""

    def louder(leaf: Any) -> Any:
        if not isinstance(leaf, Interaction):
            return leaf
        return eqx.tree_at(lambda x: x.pull_last.weight, leaf, 2e3 * leaf.pull_last.weight)

    return jax.tree.map(louder, model, is_leaf=lambda x: isinstance(x, Interaction))


@pytest.mark.parametrize("make", [segno, egnn])
def test_turns_mirrors_shifts_and_swaps_with_the_bodies(make: Any) -> None:
    draw = np.random.default_rng(5)
    mirrored = np.linalg.qr(draw.standard_normal((3, 3)))[0]
    mirrored *= -np.sign(np.linalg.det(mirrored))
    shift, order = draw.standard_normal(3), np.array([2, 0, 3, 1])
    with jax.enable_x64(True):
        model, system = strong(make(KEY, width=8, dtype=jnp.float64)), some()
        moved = Bodies(
            (system.positions @ mirrored.T + shift)[order],
            (system.velocities @ mirrored.T)[order],
            system.charges[order],
        )
        both = jax.tree.map(lambda *x: np.stack(x), system, moved)
        ends = np.asarray(jax.jit(lambda m, systems: m(systems))(model, both))
    expected = (ends[0] @ mirrored.T + shift)[order]
    np.testing.assert_allclose(ends[1], expected, atol=1e-12)
    still = system.positions + (system.velocities if make is segno else 0)
    assert np.max(np.abs(ends[0] - still)) > 1e-2  # something did accelerate


def test_without_pull_bodies_move_on_in_straight_lines() -> None:
    model = segno(KEY, width=4, steps=4, span=2.0)
    model = eqx.tree_at(lambda m: m.interaction.pull_last.weight, model, jnp.zeros((1, 4)))
    system = some(dtype=np.float32)
    expected = system.positions + np.arange(0.5, 2.1, 0.5)[:, None, None] * system.velocities
    np.testing.assert_allclose(model.path(system), expected, rtol=1e-5, atol=1e-6)


def test_a_constant_pull_is_solved_by_hand() -> None:
    """Two bodies at distance 2 that pull with phi_x = -1, one step of 1/2: v -= 2/2, x += v/2."""
    model = segno(KEY, width=4, steps=1, span=0.5)
    constant = jnp.full((1, 4), -1.0)
    quiet = eqx.tree_at(
        lambda m: (m.interaction.pull_first.weight, m.interaction.pull_first.bias), model,
        (jnp.zeros((4, 4)), jnp.ones(4)),
    )  # fmt: skip
    silu = 1 / (1 + np.exp(-1.0))
    quiet = eqx.tree_at(lambda m: m.interaction.pull_last.weight, quiet, constant / (4 * silu))
    places = np.array([[1.0, 0, 0], [-1.0, 0, 0]], np.float32)
    system = Bodies(places, np.zeros((2, 3), np.float32), np.ones(2, np.float32))
    np.testing.assert_allclose(quiet(system), places / 2, rtol=1e-6)


def test_many_steps_approach_the_solution_of_the_equation() -> None:
    with jax.enable_x64(True):
        model, system = strong(segno(KEY, width=8, steps=4, dtype=jnp.float64)), some(3)
        solution = dfx.diffeqsolve(
            dfx.ODETerm(model.field),
            dfx.Dopri5(),
            *(0.0, 1.0, None, model.initial(system)),
            args=system.edges,
            stepsize_controller=dfx.PIDController(rtol=1e-8, atol=1e-8),
        )
        assert solution.ys is not None
        truth = solution.ys[0][-1]
        errors = [float(jnp.max(jnp.abs(model.refined(k)(system) - truth))) for k in (16, 32)]
    np.testing.assert_allclose(np.log2(errors[0] / errors[1]), 1, atol=0.15)


def test_with_features_at_rest_the_steps_are_those_of_a_symplectic_solver() -> None:
    with jax.enable_x64(True):
        model = strong(segno(KEY, width=8, steps=5, rate=0, span=2.0, dtype=jnp.float64))
        terms, state = model.separable(some(3))
        solution = dfx.diffeqsolve(terms, dfx.SemiImplicitEuler(), 0.0, 2.0, 0.4, state)
        assert solution.ys is not None
        np.testing.assert_allclose(solution.ys[1][-1], model(some(3)), rtol=1e-12)
    with pytest.raises(InputError, match="rate of 8"):
        segno(KEY, width=2).separable(some(dtype=np.float32))


def test_gradients_are_those_of_finite_differences_also_at_rest() -> None:
    with jax.enable_x64(True):
        model = strong(segno(KEY, width=4, steps=2, dtype=jnp.float64))
        still = replace(some(1), velocities=np.zeros((4, 3)))
        aim = np.random.default_rng(2).standard_normal((4, 3))

        @jax.jit
        def loss(velocities: Any) -> Any:
            return jnp.sum(aim * model(replace(still, velocities=velocities)))

        gradient = jax.jit(jax.grad(loss))
        for velocities in (np.zeros((4, 3)), some(4).velocities):
            slope = gradient(velocities)
            step = 1e-5 * aim
            expected = (loss(velocities + step) - loss(velocities - step)) / 2e-5
            np.testing.assert_allclose(jnp.sum(slope * aim), expected, rtol=1e-6)
        assert jax.grad(lambda v: jnp.sum(lengths(v)))(np.zeros((1, 3))).tolist() == [[0, 0, 0]]


def test_bad_settings_name_the_value() -> None:
    with pytest.raises(InputError, match="steps 0"):
        segno(KEY, steps=0)
    with pytest.raises(InputError, match="span -1"):
        segno(KEY, span=-1.0)
    with pytest.raises(InputError, match="rate -1"):
        segno(KEY, width=2, rate=-1)
    with pytest.raises(InputError, match="width 0"):
        segno(KEY, width=0)
    with pytest.raises(InputError, match="factor 0"):
        segno(KEY, width=2).refined(0)
    with pytest.raises(InputError, match="layers 0"):
        egnn(KEY, layers=0)
    with pytest.raises(InputError, match="batch 0"):
        MotionTraining(second_order, batch=0)
    with pytest.raises(UnknownName, match="charged"):
        bodies_problem.body_motion("charge")
    with pytest.raises(InputError, match="horizon 0"):
        bodies_problem.body_motion(horizon=0.0)
    with pytest.raises(InputError, match="training 0"):
        bodies_problem.body_motion(training=0)


# ---- the problem


def test_the_simulated_laws_conserve_what_they_must(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies_problem, "BEGIN", 0.1)
    monkeypatch.setattr(bodies_problem, "CLIP", np.inf)  # which acts on one body of a pair
    gravity = bodies_problem.simulate("gravity", 0.4, 3, seed=1)
    centre = gravity["positions"].mean(axis=1)
    np.testing.assert_allclose(gravity["frames"].mean(axis=2), np.broadcast_to(centre, (4, 3, 3)))

    charged = bodies_problem.simulate("charged", 0.4, 3, seed=1)
    drift = charged["velocities"].mean(axis=1)
    for share, frame in zip((0.1, 0.2, 0.3, 0.4), charged["frames"], strict=True):
        expected = charged["positions"].mean(axis=1) + share * drift
        np.testing.assert_allclose(frame.mean(axis=1), expected, atol=1e-9)


def test_opposite_charges_attract_and_masses_too() -> None:
    places = np.zeros((3, 5, 1))
    places[0, :, 0] = [-1.0, 1.0, 1e6, -1e6, 2e6]
    charges = np.array([[1.0], [-1.0], [1.0], [1.0], [1.0]])
    with jax.enable_x64(True):
        for law, strength in (("charged", charges), ("gravity", np.ones((5, 1)))):
            state = (jnp.asarray(places), jnp.zeros((3, 5, 1)))
            strengths = jnp.asarray(bodies_problem._strengths(law, strength))
            _, velocities = bodies_problem._advance(state, strengths, 0.0, 1)
            np.testing.assert_allclose(velocities[0, :2, 0], [0.25e-3, -0.25e-3], rtol=1e-9)


@pytest.mark.slow
def test_training_lowers_the_error_and_counts_what_it_calls(
    monkeypatch: pytest.MonkeyPatch, fresh_store: Any
) -> None:
    from nearly.core.measure import run_trial

    monkeypatch.setattr(bodies_problem, "BEGIN", 0.1)
    problem = bodies_problem.body_motion(horizon=0.4, training=8, testing=4)

    def small(key: Any, problem: Any) -> Any:
        return segno(key, width=4, steps=2, span=problem.horizon)

    few, more = (run_trial(problem, MotionTraining(small, batch=4), n, 0)[0] for n in (1, 40))
    assert few.status == more.status == "ok", more.reason
    assert more.errors["mse"] < few.errors["mse"]
    assert more.work["nfe"] == 2
    assert more.setup_work["nfe"] == 80
    assert more.setup_work["nfe vjps"] == 80
