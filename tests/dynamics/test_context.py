"""Context flows: the expansion, the integrator, alternating steps, pools, adaptation, peers."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nearly.core.errors import InputError
from nearly.dynamics import context as ctx
from nearly.dynamics import context_training as training
from nearly.dynamics.context_peers import CoDA, OneForAll, OneForEach
from nearly.dynamics.problems.environments import (
    EnvironmentLearning,
    Environments,
    HeldOut,
    _selkov,
    lotka_volterra_environments,
    selkov_environments,
    trajectories,
)

KEY = jax.random.key(0)


def field64() -> ctx.ContextFlow:
    flow = ctx.context_flow(2, 3, KEY, context=5, width=4, dtype=jnp.float64)
    contexts = jax.random.normal(jax.random.key(1), (3, 5), jnp.float64)
    return eqx.tree_at(lambda f: f.contexts, flow, contexts)


def tiny(starts: int = 2) -> EnvironmentLearning:
    """Three linear environments y' = -p y, two new ones, four times."""
    times = np.linspace(0.0, 1.0, 4)

    def observed(rates: list[float], count: int, seed: int) -> Environments:
        draw = np.random.default_rng(seed).uniform(1, 2, (count, 2))
        rows = np.array(rates)[:, None]
        made = trajectories(lambda y, p: -p * y, rows, draw, times)
        return Environments(made.astype(np.float32), times.astype(np.float32))

    known, new = [0.5, 1.0, 1.5], [0.75, 2.0]
    held = HeldOut(observed(known, 3, 2), observed(new, 3, 3))
    return EnvironmentLearning(
        train=observed(known, starts, 0), adapt=observed(new, 1, 1), test=held
    )


# ---- the expansion


def test_expansions_of_a_cubic_are_its_taylor_polynomials() -> None:
    def cubic(t: Any, y: Any, c: Any) -> Any:
        return y * c**3 + t

    with jax.enable_x64(True):
        y, c, d = jnp.float64(2.0), jnp.float64(1.5), jnp.float64(0.25)
        for order, expected in enumerate(
            (2 * 1.75**3, 2 * (1.5**3 + 3 * 1.5**2 * 0.25), 2 * (1.75**3 - 0.25**3))
        ):
            found = jax.jit(ctx.modulated(cubic, order))(0.5, y, (c + d, c))
            np.testing.assert_allclose(found, expected + 0.5, rtol=1e-14)


def test_the_error_of_an_expansion_falls_as_its_order_says() -> None:
    with jax.enable_x64(True):
        flow = field64()
        y, centre, way = jnp.ones(2), flow.contexts[0], flow.contexts[1]
        plain = lambda t, y, c: flow.field(t, y, flow.field.embed(c))  # noqa: E731

        @jax.jit
        def wrong(share: Any) -> Any:
            at = centre + share * way
            truth = plain(0.0, y, at)
            both = [ctx.modulated(plain, k)(0.0, y, (at, centre)) for k in (1, 2)]
            return jnp.stack([jnp.linalg.norm(b - truth) for b in both])

        errors = np.stack([wrong(s) for s in (0.08, 0.04, 0.02)])
    orders = np.log2(errors[:-1] / errors[1:])
    np.testing.assert_allclose(orders, [[2, 3]] * 2, atol=0.25)


@pytest.mark.parametrize("order", [0, 2])
def test_the_embedded_expansion_is_that_of_the_whole_field(order: int) -> None:
    with jax.enable_x64(True):
        flow = field64()
        y, aim = jnp.array([1.0, 0.5]), jnp.array([1.0, -2.0])
        plain = lambda t, y, c: flow.field(t, y, flow.field.embed(c))  # noqa: E731

        def embedded(contexts: Any) -> Any:
            jet = ctx.embedded_jet(flow.field, contexts[0], contexts[2], order)
            return jnp.sum(aim * ctx.Expanded(flow.field, order)(0.0, y, jet))

        def generic(contexts: Any) -> Any:
            both = (contexts[0], contexts[2])
            return jnp.sum(aim * ctx.modulated(plain, order)(0.0, y, both))

        (found, slope), (expected, other) = (
            jax.jit(jax.value_and_grad(f))(flow.contexts) for f in (embedded, generic)
        )
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(slope, other, rtol=1e-9, atol=1e-12)
    moves = np.any(np.asarray(slope) != 0, axis=1)
    assert moves.tolist() == [True, False, order > 0]  # both contexts get their gradient


def test_candidates_and_their_spread_follow_the_expansions() -> None:
    with jax.enable_x64(True):
        flow = field64()
        starts, times = jnp.ones((3, 2, 2)), jnp.array([0.0, 0.5, 0.7])
        plain = lambda t, y, c: flow.field(t, y, flow.field.embed(c))  # noqa: E731

        @jax.jit
        @jax.vmap
        def about(centre: Any) -> Any:
            args = (flow.contexts[1], centre)
            return ctx.runge_kutta(ctx.modulated(plain), jnp.ones(2), times, args, 2)

        each = np.asarray(about(flow.contexts))
        spread = jax.jit(lambda f: f.spread(f.contexts, starts, times, 1, 2))
        mean, deviation = (np.asarray(x) for x in spread(flow))
    np.testing.assert_allclose(mean[:, 1, 0], each.mean(0), rtol=1e-12)
    np.testing.assert_allclose(deviation[:, 1, 1], each.std(0), rtol=1e-6, atol=1e-14)
    assert np.min(deviation[1:, 1]) > 1e-6


# ---- the integrator


def test_runge_kutta_is_of_order_four_also_in_time() -> None:
    with jax.enable_x64(True):
        times = jnp.array([0.0, 0.4, 1.0])
        solve = jax.jit(
            lambda n: ctx.runge_kutta(lambda t, y, a: y * jnp.cos(t), jnp.ones(1), times, None, n),
            static_argnums=0,
        )
        errors = [float(jnp.abs(solve(n)[-1, 0] - np.exp(np.sin(1.0)))) for n in (2, 4, 8)]
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    np.testing.assert_allclose(orders, 4, atol=0.3)


# ---- turns


def test_sides_take_turns_and_remember_apart() -> None:
    flow = ctx.context_flow(2, 3, KEY, context=4, width=2)
    weights, _ = eqx.partition(flow, eqx.is_inexact_array)
    slope = jax.tree.map(jnp.ones_like, weights)
    optimizer = training.alternating(optax.sgd(0.5), optax.sgd(0.25), turn=2)
    state, moved, update = optimizer.init(weights), [], jax.jit(optimizer.update)
    for _ in range(5):
        move, state = update(slope, state, weights)
        moved.append((float(move.field.state.layers[0].bias[0]), float(move.contexts[0, 0])))
    assert moved == [(-0.5, 0), (-0.5, 0), (0, -0.25), (0, -0.25), (-0.5, 0)]


def test_the_proximal_term_pulls_back_to_where_the_turn_began() -> None:
    """beta / 2 mean (w - old)^2 after a step of -1: gradient beta / n * (w - old)."""
    flow = ctx.context_flow(2, 3, KEY, context=4, width=2)
    weights, _ = eqx.partition(flow, eqx.is_inexact_array)
    count = sum(leaf.size for leaf in jax.tree.leaves(weights.field))
    optimizer = training.alternating(optax.sgd(1.0), optax.sgd(1.0), turn=2, proximal=3.0)
    state = optimizer.init(weights)
    slope = jax.tree.map(jnp.zeros_like, weights)
    _, state = optimizer.update(slope, state, weights)
    away = jax.tree.map(lambda w: w - 1, weights)
    move, state = optimizer.update(slope, state, away)
    np.testing.assert_allclose(move.field.state.layers[0].bias, 3.0 / count, rtol=1e-5)
    np.testing.assert_array_equal(move.contexts, 0)
    move, state = optimizer.update(slope, state, away)  # a new turn: nothing to hold on to
    np.testing.assert_array_equal(move.contexts, 0)


def test_the_gradient_of_a_turn_is_that_of_its_side() -> None:
    flow = ctx.context_flow(2, 3, KEY, context=4, width=2)
    weights, frozen = eqx.partition(flow, eqx.is_inexact_array)

    def objective(weights: Any) -> Any:
        whole = eqx.combine(weights, frozen)
        return jnp.sum((whole.contexts + 1) ** 2) + jnp.sum(whole.field.state.layers[0].bias)

    gradient = training.TurnsGradient(2)
    first, later = (gradient(objective, weights, key=KEY, step=jnp.int32(k))[1] for k in (1, 2))
    assert np.all(first.contexts == 0)
    assert np.all(first.field.state.layers[0].bias == 1)
    assert np.all(later.contexts == 2)
    assert np.all(later.field.state.layers[0].bias == 0)


# ---- pools


def test_pools_draw_without_repetition_or_take_the_nearest() -> None:
    contexts = jnp.array([[0.0], [1.0], [1.1], [5.0]])
    drawn = np.asarray(training.random_pool(contexts, 3, KEY))
    assert drawn.shape == (4, 3)
    assert all(row.tolist() == drawn[0].tolist() for row in drawn)
    assert len(set(drawn[0])) == 3
    near = np.asarray(training.nearest_pool(contexts, 2, KEY))
    assert near.tolist() == [[0, 1], [1, 2], [2, 1], [3, 2]]


# ---- adaptation and the methods


def test_an_environment_adapts_alone_as_it_does_among_others() -> None:
    problem = tiny()
    flow = ctx.context_flow(2, 3, KEY, context=4, width=4)
    start = jax.random.normal(KEY, (2, 4))
    together = training.adapt(flow, problem.adapt, steps=8, key=KEY, start=start)
    second = Environments(problem.adapt.trajectories[1:], problem.adapt.times)
    alone = training.adapt(flow, second, steps=8, key=KEY, start=start[1:])
    np.testing.assert_allclose(alone[0], together[1], rtol=1e-4, atol=1e-5)
    assert np.max(np.abs(together - start)) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        training.ContextTraining(context=4, width=4, size=2, adaptation=30),
        OneForAll(width=4),
        OneForEach(width=4),
        CoDA(width=4, adaptation=30),
    ],
    ids=lambda m: type(m).__name__,
)
def test_methods_learn_and_are_charged(method: Any) -> None:
    from nearly.core.measure import run_trial

    problem = tiny()
    few, more = (run_trial(problem, method, n, 0)[0] for n in (2, 60))
    assert few.status == more.status == "ok", more.reason
    assert more.errors["in-domain"] < few.errors["in-domain"]
    assert more.work["nfe"] == 2 * 3 * 4  # known and new, three intervals, four stages
    assert more.setup_work["nfe vjps"] >= 60 * 3 * 4


@pytest.mark.slow
def test_order_two_trains_by_proximal_turns() -> None:
    method = training.ContextTraining(
        order=2, turn=3, proximal=10.0, context=4, width=4, pool=training.nearest_pool
    )
    first, last = (method.train(tiny(), n, key=KEY) for n in (3, 12))
    assert np.all(first.contexts == 0)  # not yet their turn
    assert np.any(np.asarray(last.contexts) != 0)


# ---- the problem


def test_environments_hold_what_they_say() -> None:
    problem = lotka_volterra_environments()
    assert problem.train.trajectories.shape == (9, 4, 20, 2)
    assert problem.adapt.trajectories.shape == (4, 1, 20, 2)
    assert problem.test.new.trajectories.shape == (4, 32, 20, 2)
    # Along a solution, delta x - gamma ln x + beta y - alpha ln y does not change.
    prey, predators = np.moveaxis(problem.test.new.trajectories[1].astype(np.float64), -1, 0)
    kept = 1.125 * prey - 0.5 * np.log(prey) + 0.625 * predators - 0.5 * np.log(predators)
    np.testing.assert_allclose(kept, kept[:, :1] * np.ones(20), atol=2e-6)


def test_selkov_rests_where_it_should() -> None:
    """At x = b, y = b / (a + b^2)."""
    rates, times = np.array([[0.3], [1.0]]), np.linspace(0, 2, 5)
    for b in rates[:, 0]:
        rest = np.array([[b, b / (0.1 + b**2)]])
        path = trajectories(_selkov, np.array([[b]]), rest, times)
        np.testing.assert_allclose(path[0, 0], np.broadcast_to(rest, (5, 2)), rtol=1e-12)
    assert selkov_environments().train.trajectories.shape == (9, 4, 20, 2)


def test_bad_settings_name_the_value() -> None:
    with pytest.raises(InputError, match="order 3"):
        ctx.modulated(lambda t, y, c: y, 3)
    with jax.enable_x64(True), pytest.raises(InputError, match="order -1"):
        ctx.embedded_jet(field64().field, jnp.ones(5), jnp.ones(5), -1)
    with pytest.raises(InputError, match="sizes"):
        ctx.perceptron([3], KEY)
    with pytest.raises(InputError, match="environments 0"):
        ctx.context_flow(2, 0, KEY)
    with pytest.raises(InputError, match="substeps 0"):
        ctx.runge_kutta(lambda t, y, a: y, jnp.ones(1), jnp.ones(2), None, 0)
    with pytest.raises(InputError, match="turn 0"):
        training.alternating(optax.sgd(1.0), optax.sgd(1.0), 0)
    with pytest.raises(InputError, match="proximal -1"):
        training.alternating(optax.sgd(1.0), optax.sgd(1.0), 1, -1.0)
    with pytest.raises(InputError, match="size 0"):
        training.ContextTraining(size=0)
