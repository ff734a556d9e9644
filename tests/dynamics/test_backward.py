"""Backward stochastic equations by networks: exit, tilt, quantiles, layers of adjustments."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from nearly.core import catalogue
from nearly.core.compare import compare
from nearly.core.errors import InputError
from nearly.core.lazy import load
from nearly.dynamics.backward_methods import BackwardRegression, TrainedValue
from nearly.dynamics.backward_paths import likelihood_ratio, simulate, target
from nearly.dynamics.bsde import DeepBSDE
from nearly.dynamics.exposure import LeastSquaresMonteCarlo, NestedMonteCarlo
from nearly.dynamics.market import Market, Obligor
from nearly.dynamics.problems.backward import (
    MARKETS,
    ValuationAdjustments,
    closed_adjustments,
    first_passage,
    hamilton_jacobi,
    logistic_wave,
    valuation_adjustments,
)
from nearly.dynamics.quantile import PinballRegression
from nearly.dynamics.xva import CleanValue, DeepXVA, Structure

KEY = jax.random.key(11)


@eqx.filter_jit
def paths_of(equation, steps, count, between=True):
    keys = jax.random.split(KEY, count)
    return jax.vmap(lambda key: simulate(equation, steps, key, between=between))(keys)


# ---- laws and closed forms


def test_survival_and_density_are_one_law() -> None:
    party = Obligor(barrier=0.8, volatility=0.3)
    with jax.enable_x64(True):
        for t in (0.3, 2.0):
            died = quad(lambda s: float(party.density(jnp.asarray(s), 0.03)), 0, t)[0]
            assert 1 - float(party.survival(jnp.asarray(t), 0.03)) == pytest.approx(died, rel=1e-7)


def test_the_first_passage_solves_its_equation() -> None:
    """u_t + drift u_x + sigma^2 / 2 u_xx = rate u, 1 on the barrier."""
    problem = first_passage()
    with jax.enable_x64(True):
        u = lambda t, x: problem.exact(t, x[None])[0]  # noqa: E731
        t, x = jnp.asarray(0.4), jnp.asarray(0.2)
        slope = jax.grad(u, 1)

        @jax.jit
        def moved(t, x):
            return jax.grad(u)(t, x) + 0.01 * slope(t, x) + 0.02 * jax.grad(slope, 1)(t, x)

        assert float(moved(t, x)) == pytest.approx(0.03 * float(u(t, x)), rel=1e-9)
        assert float(u(t, jnp.zeros(()))) == pytest.approx(1)


@pytest.mark.parametrize("make", [logistic_wave, hamilton_jacobi])
def test_exact_solutions_start_where_the_payoff_ends(make) -> None:
    problem = make(3, 1e-9)
    start = problem.equation.start
    payoff = problem.equation.payoff(1e-9, start, -1, jnp.zeros(0))
    np.testing.assert_allclose(problem.truths()["y0"], payoff[0], atol=1e-6)


def test_the_logistic_wave_solves_its_equation() -> None:
    problem = logistic_wave(3)
    with jax.enable_x64(True):
        u = lambda t, x: problem.exact(t, x)[0]  # noqa: E731
        t, x = jnp.asarray(0.3), jnp.asarray([0.1, -0.2, 0.5])
        slope, bend = jax.grad(u, 1)(t, x), jnp.trace(jax.hessian(u, 1)(t, x))
        z = 3**0.5 * slope
        drive = problem.equation.driver(t, x, u(t, x)[None], z[None], jnp.zeros(0))
        left = jax.grad(u)(t, x) + 3 / 2 * bend + jnp.sum(drive)
        assert float(left) == pytest.approx(0, abs=1e-12)


def test_adjustments_of_one_call_are_products() -> None:
    """CVA = loss * value * P(the counterparty defaults first), if nothing is posted."""
    market = dataclasses.replace(MARKETS["call"], bank=Obligor(barrier=1e-6))
    found = closed_adjustments(market)
    up = (0.03 + 0.02) * market.horizon**0.5 / 0.2
    root = 0.2 * market.horizon**0.5
    value = 100 * norm.cdf(up) - 100 * np.exp(-0.03 * market.horizon) * norm.cdf(up - root)
    assert found["value"] == pytest.approx(value, rel=1e-6)
    with jax.enable_x64(True):
        died = 1 - float(market.counterparty.survival(jnp.asarray(market.horizon), 0.03))
    assert found["cva"] == pytest.approx(0.6 * value * died, rel=1e-5)
    assert found["dva"] == found["colva"] == found["mva"] == found["margin"] == 0


def test_the_margin_is_a_quantile() -> None:
    market = MARKETS["basket"]
    with jax.enable_x64(True):
        draws = np.random.default_rng(0).standard_normal(200_000)
        drift = market.rate - market.carry - market.spread**2 / 2
        later = 90 * np.exp(drift * market.delay + market.spread * market.delay**0.5 * draws)
        t = jnp.full(later.shape, 0.3 + market.delay)
        at, here = jnp.full(1, 0.3), jnp.full(1, 90.0)
        gains = np.asarray(jax.jit(market.value)(t, jnp.asarray(later)))
        now = float(jax.jit(market.value)(at, here)[0])
        margin = float(jax.jit(market.margin)(at, here)[0])
    assert np.mean(gains - now <= margin) == pytest.approx(0.99, abs=0.001)


# ---- paths


def test_paths_stop_where_the_domain_ends() -> None:
    """Looked for at the steps only; between them too, as often as the continuous path leaves."""
    problem = first_passage(rate=0.0)
    paths = paths_of(problem.equation, 16, 20_000, between=False)
    outside = np.asarray(paths.states[..., 0]) <= 0
    first = np.where(outside.any(1), outside.argmax(1), 16)
    np.testing.assert_array_equal(paths.exit, first)
    np.testing.assert_array_equal(paths.side >= 0, outside.any(1))
    payoffs = jax.jit(jax.vmap(lambda path: target(problem.equation, path)))(paths)
    np.testing.assert_array_equal(payoffs[:, 0], outside.any(1))
    often = float(jnp.mean(paths_of(problem.equation, 16, 20_000).side >= 0))
    truth = problem.truths()["y0"]
    assert often == pytest.approx(truth, abs=0.007)  # three standard errors
    assert float(np.mean(outside.any(1))) < truth - 0.015


@pytest.mark.parametrize("steps", [1, 16])
def test_exits_have_the_time_and_place_of_the_continuous_path(steps: int) -> None:
    """However long the steps: on the boundary, at times of the law of the first passage."""
    paths = paths_of(first_passage(rate=0.0).equation, steps, 20_000)
    left = paths.side >= 0
    at = jnp.arange(20_000), paths.exit
    np.testing.assert_allclose(paths.states[..., 0][at][left], 0, atol=1e-6)
    times = np.asarray(paths.times[at][left])
    for horizon in (0.3, 0.6, 0.9):
        truth = first_passage(rate=0.0, horizon=horizon).truths()["y0"]
        assert np.sum(times <= horizon) / 20_000 == pytest.approx(truth, abs=0.006)


def test_what_does_not_leave_is_bridged_to_the_exit() -> None:
    """Two independent motions, the first of which ends the path: the second's variance is the
    time that it had, and its increment is that of its noise."""
    equation = dataclasses.replace(
        first_passage(rate=0.0).equation,
        start=jnp.array([0.1, 0.0]),
        noises=2,
        drift=lambda t, x: jnp.array([0.0, 0.5]),
        diffusion=lambda t, x: jnp.array([[0.2, 0.0], [0.18, 0.24]]),
        distances=lambda t, x: x[:1],
    )
    paths = paths_of(equation, 1, 20_000)
    left = paths.side >= 0
    waits, ends = paths.times[:, 1][left], paths.states[:, 1][left]
    drift, diffusion = equation.drift(0.0, None), equation.diffusion(0.0, None)
    moved = equation.start + waits[:, None] * drift + paths.noise[:, 0][left] @ diffusion.T
    np.testing.assert_allclose(ends, moved, atol=1e-5)
    # Of the second motion, 0.18 / 0.2 of the first and an independent part.
    rest = ends[:, 1] - 0.9 * (ends[:, 0] - 0.1) - 0.5 * waits
    assert float(jnp.mean(rest / jnp.sqrt(waits))) == pytest.approx(0, abs=0.01)
    assert float(jnp.std(rest / jnp.sqrt(waits))) == pytest.approx(0.24, abs=0.01)


def test_a_tilt_changes_the_paths_but_not_the_noise() -> None:
    """Under a tilt q the increments of W are normal about q dt, and the states follow them."""
    plain = first_passage(rate=0.0).equation
    equation = dataclasses.replace(plain, tilt=lambda t, x: jnp.full(1, -2.0))
    paths = paths_of(equation, 4, 4000)
    held = jax.vmap(lambda path: path.held)(paths)
    inside = held > 0
    changes = jnp.where(inside, paths.noise[..., 0] + 2 * held, 0)
    assert float(jnp.mean(jnp.sum(changes, axis=1))) == pytest.approx(0, abs=0.04)
    moved = jnp.diff(paths.states, axis=1)[..., 0]
    np.testing.assert_allclose(
        moved[inside], (-0.02 * held + 0.2 * paths.noise[..., 0])[inside], atol=1e-5
    )
    left, truth = paths.side >= 0, first_passage(rate=0.0).truths()["y0"]
    ratios = jax.jit(jax.vmap(lambda path: likelihood_ratio(equation, path)))(paths)
    assert float(jnp.mean(ratios)) == pytest.approx(1, abs=0.1)
    assert float(jnp.mean(ratios * left)) == pytest.approx(truth, rel=0.1)
    assert float(jnp.mean(left)) > 4 * truth


# ---- solutions


@pytest.mark.slow
def test_the_solution_reproduces_a_hedge() -> None:
    """A linear payoff with Z = sigma: nothing is left to chance, so training must find it."""
    problem = first_passage()
    equation = dataclasses.replace(
        problem.equation,
        distances=None,
        driver=lambda t, x, y, z, seen: jnp.zeros_like(y),
        payoff=lambda t, x, side, seen: 3 * x,
    )
    solution = DeepBSDE(5, (8,), 128, 300)(equation, key=KEY)
    truth = 3 * (0.35 + 0.01)
    assert float(solution.initial[0]) == pytest.approx(truth, rel=0.01)
    z = solution.control(jnp.float32(0.5), equation.start)
    assert float(z[0, 0]) == pytest.approx(0.6, rel=0.15)
    fine = simulate(equation, 20, KEY)
    assert float(solution.shortfall(fine)[0]) == pytest.approx(0, abs=0.1)


@pytest.mark.slow
def test_values_by_training_and_by_regression() -> None:
    problem = first_passage()
    truth = problem.truths()["y0"]
    found = TrainedValue(DeepBSDE(10, (16,), 256))(problem.equation, 300, key=KEY)
    assert float(found[0]) == pytest.approx(truth, rel=0.1)
    found = BackwardRegression(10)(problem.equation, 8192, key=KEY)
    assert float(found[0]) == pytest.approx(truth, rel=0.1)


@pytest.mark.slow
def test_nonlinear_drivers_by_regression() -> None:
    for problem in (logistic_wave(3), hamilton_jacobi(10)):
        found = BackwardRegression(10)(problem.equation, 8192, key=KEY)
        assert float(found[0]) == pytest.approx(problem.truths()["y0"], rel=0.1)


@pytest.mark.slow
def test_quantiles_of_a_known_law() -> None:
    inputs = jax.random.uniform(KEY, (8192, 1), minval=-1, maxval=1)
    noise = jax.random.normal(jax.random.key(1), (8192,))
    targets = inputs[:, 0] + (1 + 0.5 * inputs[:, 0]) * noise
    quantile = PinballRegression(0.9, (16,), 1024, 300)(inputs, targets, key=KEY)
    at = jnp.array([[-0.5], [0.0], [0.5]])
    truth = at[:, 0] + (1 + 0.5 * at[:, 0]) * norm.ppf(0.9)
    np.testing.assert_allclose(jax.vmap(quantile)(at), truth, atol=0.12)


@pytest.mark.parametrize("case", ["margined", pytest.param("forward", marks=pytest.mark.slow)])
def test_regressed_adjustments_meet_the_closed_forms(case: str) -> None:
    market, truth = MARKETS[case], closed_adjustments(MARKETS[case])
    found = LeastSquaresMonteCarlo()(market, 16384, key=KEY)
    for name, value in truth.items():
        noisy = 0.3 if name in ("cva", "dva", "fva") else 0.12
        assert float(found[name]) == pytest.approx(value, rel=noisy, abs=1e-3), name


@pytest.mark.slow
def test_nested_adjustments_meet_the_closed_forms() -> None:
    market, truth = MARKETS["margined"], closed_adjustments(MARKETS["margined"])
    found = NestedMonteCarlo()(market, 256, key=KEY)
    for name in ("value", "margin", "mva", "colva"):
        assert float(found[name]) == pytest.approx(truth[name], rel=0.15), name


@pytest.mark.slow
def test_wrong_way_losses_hang_neither_on_the_steps_nor_on_the_method() -> None:
    """Where a default comes as the portfolio gains; the clean value is known, so one step is
    enough for the loss, and three times that without correlation."""
    market = Market(wrong_way=-0.6, bank=Obligor(barrier=1e-6))
    equation = Structure(market).equation(CleanValue(market), outputs=1, defaultable=True)

    @jax.jit
    def loss(path):
        t, x = path.times[path.exit], path.states[path.exit]
        value = market.value(t, jnp.exp(x[0]))
        return jnp.where(path.side == 0, 0.6 * jnp.exp(-market.rate * t) * value, 0)

    one, many = (jnp.mean(jax.vmap(loss)(paths_of(equation, n, 40_000))) for n in (1, 16))
    assert float(one) == pytest.approx(float(many), abs=0.1)  # three standard errors
    found = LeastSquaresMonteCarlo()(market, 32768, key=KEY)["cva"]
    assert float(found) == pytest.approx(float(many), abs=0.1)
    found = DeepXVA()(market, 300, key=KEY).report()["cva"]
    assert float(found) == pytest.approx(float(many), abs=0.15)
    plain = dataclasses.replace(market, wrong_way=0.0)
    assert float(many) > 2.5 * closed_adjustments(plain)["cva"]


@pytest.mark.slow
def test_all_layers_meet_the_closed_forms() -> None:
    market = MARKETS["margined"]
    found, truth = DeepXVA()(market, 600, key=KEY).report(), closed_adjustments(market)
    for name in ("value", "margin", "colva", "cva", "mva"):
        assert float(found[name]) == pytest.approx(truth[name], rel=0.1), name


@pytest.mark.slow
def test_layers_are_stacked_and_steps_counted() -> None:
    """Little training: every figure is there, finite, and no step of a path is forgotten."""
    small = DeepXVA(solver=DeepBSDE(25, (8,), 16), refinement=1, margin_paths=32)
    problem = valuation_adjustments("margined")
    frontier = compare(problem, {"deep": small}, dials=[2], seeds=(0,), timed=False)
    (run,) = frontier.runs
    assert run.status == "ok", run.reason
    trained = 4 * (4096 + 2 * 16) * 25
    assert run.work["path steps"] == trained + 32 * 25


@pytest.mark.slow
def test_the_side_is_the_party_that_defaults_first() -> None:
    """At the rates of their first passages: the closed forms' densities."""
    market = MARKETS["forward"]
    equation = Structure(market).equation(CleanValue(market), outputs=1, defaultable=True)
    sides = np.asarray(paths_of(equation, 5, 20_000).side)
    with jax.enable_x64(True):
        times = jnp.linspace(1e-9, market.horizon, 2001)
        other = market.bank.survival(times, market.rate)
        flow = market.counterparty.density(times, market.rate) * other
        first = float(jnp.sum(flow) * (times[1] - times[0]))
    assert np.mean(sides == 0) == pytest.approx(first, abs=0.006)
    assert np.mean(sides == 1) == pytest.approx(first, abs=0.006)  # they are alike


@pytest.mark.parametrize("protocol", ["bsde-solvers", "xva-solvers"])
def test_the_catalogue_has_ours_and_peers(protocol: str) -> None:
    lines = catalogue.methods(protocol)
    assert {line.source for line in lines.values()} == {"ours", "peer"}
    for line in lines.values():
        assert callable(load(line.target))


def test_mistakes_name_value_and_remedy() -> None:
    equation = first_passage().equation
    with pytest.raises(InputError, match=r"barrier=2\.0 must lie between 0 and the assets"):
        Obligor(barrier=2.0)
    with pytest.raises(InputError, match="unknown portfolio 'put'"):
        Market(kind="put")
    with pytest.raises(InputError, match=r"correlation=-0\.5 of 4 assets must lie above -0\.333"):
        Market(assets=4, correlation=-0.5)
    with pytest.raises(InputError, match=r"wrong_way=0\.3: there is no closed form"):
        ValuationAdjustments(market=Market(wrong_way=0.3))
    with pytest.raises(InputError, match="active=3 is more than there are"):
        dataclasses.replace(equation, active=3)
    with pytest.raises(InputError, match="steps=0: give at least 1"):
        DeepBSDE(steps=0)
    with pytest.raises(InputError, match=r"level=1\.0 must lie between"):
        PinballRegression(1.0)
    with pytest.raises(InputError, match="4 paths are too few"):
        BackwardRegression()(equation, 4, key=KEY)
    odd = Market(margined=True, horizon=1.0)
    with pytest.raises(InputError, match="choose steps"):
        LeastSquaresMonteCarlo()(odd, 64, key=KEY)
    with pytest.raises(InputError, match="unknown market 'swap'"):
        valuation_adjustments("swap")
