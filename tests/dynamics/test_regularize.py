"""Penalties of solvers' estimates: values by hand, gradients, any solver, any adjoint."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nearly.core.errors import InputError, UnknownName
from nearly.dynamics.brownian import GridBrownianPath
from nearly.dynamics.lamba import LambaEulerHeun
from nearly.dynamics.regularize import (
    ErrorEstimate,
    Heuristics,
    StiffnessEstimate,
    accumulated,
    local_penalty,
    stability,
    uniform_end,
    uniform_step,
    uniform_time,
)
from nearly.dynamics.regularizers import (
    GlobalEstimate,
    KineticRate,
    LocalEstimate,
    LocalEstimateAtSteps,
    RandomEnd,
    Solve,
    TaylorRate,
    Unregularized,
)
from nearly.dynamics.reversible import ReversibleAdjoint

RTOL, ATOL = 0.1, 0.01
ERROR = ErrorEstimate(RTOL, ATOL)
TIMES = np.array([0.0, 0.3, 0.4, 1.0])


def growth(t: Any, y: Any, rate: Any) -> Any:
    return rate * y


LINEAR = dfx.ODETerm(growth)


def heun_by_hand(rate: float) -> tuple[list[float], list[float]]:
    """E h of each step of Heun's method on y' = c y, and where it goes: h^2 c^2 y / 2 is missed."""
    y, found, values = 1.0, [], [1.0]
    for h in np.diff(TIMES):
        missed = abs((h * rate) ** 2 * y / 2)
        after = y * (1 + h * rate + (h * rate) ** 2 / 2)
        found.append(missed / (ATOL + RTOL * max(abs(y), abs(after))) * h)
        y = after
        values.append(y)
    return found, values


def along_heun(rate: Any, adjoint: Any) -> Any:
    """The error estimates of Heun's method on y' = c y, accumulated over fixed steps."""
    solution = dfx.diffeqsolve(
        LINEAR,
        Heuristics(dfx.Heun(), ERROR),
        *(0.0, 1.0, None, jnp.ones(1), rate),
        stepsize_controller=dfx.StepTo(ts=TIMES),
        saveat=dfx.SaveAt(t1=True, solver_state=True),
        adjoint=adjoint,
        max_steps=4,
    )
    return accumulated(solution)


def test_the_error_estimates_are_those_by_hand() -> None:
    with jax.enable_x64(True):
        found = along_heun(jnp.float64(1.5), dfx.ForwardMode())
        mean = found.mean
    by_hand = heun_by_hand(1.5)[0]
    np.testing.assert_allclose(found.total, sum(by_hand), rtol=1e-12)
    np.testing.assert_allclose(found.maximum, max(by_hand), rtol=1e-12)
    np.testing.assert_allclose(mean, np.mean(by_hand), rtol=1e-12)
    assert int(found.steps) == 3


@pytest.mark.slow
def test_the_gradient_of_the_error_estimates_is_that_by_hand() -> None:
    with jax.enable_x64(True):
        adjoint = dfx.RecursiveCheckpointAdjoint()
        slope = jax.jit(jax.grad(lambda rate: along_heun(rate, adjoint).total))(1.5)
    ends = [sum(heun_by_hand(1.5 + d)[0]) for d in (-1e-5, 1e-5)]
    np.testing.assert_allclose(slope, (ends[1] - ends[0]) / 2e-5, rtol=1e-7)


@pytest.mark.parametrize(
    "solver",
    [dfx.Tsit5(), pytest.param(dfx.Dopri8(), marks=pytest.mark.slow)],
    ids=["tsit5", "dopri8"],
)
def test_the_stiffness_estimate_of_a_linear_equation_is_its_rate(solver: Any) -> None:
    with jax.enable_x64(True):
        found = local_penalty(
            *(LINEAR, solver, StiffnessEstimate(), 0.2, 1.0, jnp.array([1.0, -2.0])),
            jnp.float64(-7.0),
            dt0=0.1,
        )
    np.testing.assert_allclose(float(found) * stability(type(solver)), 7.0, rtol=1e-6)


def test_stability_intervals() -> None:
    """Tsitouras' by the authors' number; Heun's is 2; that of an A-stable method has no end."""
    assert stability(dfx.Tsit5) == pytest.approx(3.5068, abs=1e-4)
    assert stability(dfx.Dopri5) == pytest.approx(3.3066, abs=1e-4)
    assert stability(dfx.Heun) == pytest.approx(2, abs=1e-9)
    assert stability(dfx.Kvaerno3) == 1.0


@pytest.mark.parametrize(
    ("solver", "measure", "adjoint"),
    [
        (dfx.Tsit5(), StiffnessEstimate(), dfx.DirectAdjoint()),
        pytest.param(
            *(dfx.Kvaerno3(), StiffnessEstimate(), dfx.RecursiveCheckpointAdjoint()),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *(dfx.HalfSolver(dfx.Heun()), ERROR, dfx.RecursiveCheckpointAdjoint()),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["explicit", "implicit", "halved"],
)
def test_the_solver_is_left_as_it_is(solver: Any, measure: Any, adjoint: Any) -> None:
    def solved(solver: Any, **also: Any) -> Any:
        return dfx.diffeqsolve(
            dfx.ODETerm(lambda t, y, args: -(y**3)),
            solver,
            *(0.0, 1.0, 0.5, jnp.array([3.0, 1.0])),
            stepsize_controller=dfx.PIDController(1e-3, 1e-3),
            saveat=dfx.SaveAt(t1=True, **also),
            adjoint=adjoint,
            max_steps=64,
        )

    plain, measured = solved(solver), solved(Heuristics(solver, measure), solver_state=True)
    np.testing.assert_array_equal(plain.ys, measured.ys)
    assert plain.stats["num_steps"] == measured.stats["num_steps"]
    assert plain.stats["num_rejected_steps"] > 0
    found = accumulated(measured)
    assert int(found.steps) == plain.stats["num_accepted_steps"]
    assert 0 < float(found.mean) <= float(found.maximum) < float(found.total)


def test_a_local_penalty_has_the_gradient_of_its_step_alone() -> None:
    """E h from y = 2 is h^3 c^2 / 2 y / (atol + rtol y1); nothing comes from y, t, h."""
    h = 0.25

    def penalty(rate: Any, y: Any, t: Any) -> Any:
        return local_penalty(LINEAR, dfx.Heun(), ERROR, t, 1.0, y, rate, dt0=h)

    def by_hand(rate: Any) -> Any:
        y1 = 2 * (1 + h * rate + (h * rate) ** 2 / 2)
        return h**3 * rate**2 / (ATOL + RTOL * y1)

    with jax.enable_x64(True):
        pulled = jax.jit(jax.value_and_grad(penalty, (0, 1, 2)))
        rate, y = jnp.float64(1.5), jnp.array([2.0])
        value, slopes = pulled(rate, y, jnp.float64(0.5))
        np.testing.assert_allclose(value, by_hand(1.5), rtol=1e-12)
        np.testing.assert_allclose(slopes[0], jax.grad(by_hand)(rate), rtol=1e-12)
        assert not slopes[1].any()
        assert not slopes[2]
        cut, _ = pulled(rate, y, jnp.float64(0.875))
        y1 = 2 * (1 + 0.1875 + 0.1875**2 / 2)
        np.testing.assert_allclose(cut, 0.125**3 * 1.5**2 / (ATOL + RTOL * y1), rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("solver", "adjoint"),
    [(dfx.Heun(), dfx.BacksolveAdjoint()), (dfx.ReversibleHeun(), ReversibleAdjoint())],
    ids=["backsolve", "reversible"],
)
def test_a_local_penalty_goes_with_any_adjoint(solver: Any, adjoint: Any) -> None:
    """The end is e^c, from y = e^(c t) Heun's step misses h^2 c^2 y / 2: their derivatives."""
    h, rtol = 0.3, 1e-6
    key = jax.random.key(0)

    def loss(rate: Any) -> Any:
        solve = Solve(
            *(LINEAR, solver, jnp.float64(0.0), jnp.float64(1.0), jnp.array([1.0]), rate),
            rtol=rtol,
            atol=rtol,
            adjoint=adjoint,
            max_steps=4096,
        )
        value, penalty = LocalEstimate(dt0=h)(solve, rtol, key=key)
        return value[0] + penalty

    def by_hand(rate: Any, y: Any) -> Any:
        y1 = y * (1 + h * rate + (h * rate) ** 2 / 2)
        return jnp.exp(rate) + h**3 * rate**2 / 2 * y / (1 + y1)

    with jax.enable_x64(True):
        rate = jnp.float64(0.7)
        found = jax.jit(jax.grad(loss))(rate)
        time = uniform_time(key, jnp.float64(0.0), jnp.float64(1.0))
        assert time < 1 - h
        expected = jax.grad(by_hand)(rate, jnp.exp(rate * time))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("ts", [None, np.array([0.2, 0.6, 1.0])], ids=["end", "times"])
def test_regularizers_hand_on_the_values_of_the_plain_solve(ts: Any) -> None:
    """Whatever random time is saved between; the penalties are positive and scale."""
    with jax.enable_x64(True):
        solve = Solve(
            *(LINEAR, dfx.Tsit5(), jnp.float64(0.0), jnp.float64(1.0), jnp.array([1.0, 2.0])),
            args=jnp.float64(0.7),
            ts=None if ts is None else jnp.asarray(ts),
        )
        plain, none = Unregularized()(solve, 1.0, key=None)
        assert none == 0
        for regularizer in (
            GlobalEstimate("stiffness", "maximum"),
            LocalEstimate(),
            LocalEstimateAtSteps(dt0=0.2),
            TaylorRate(),
            KineticRate(),
        ):
            for seed in range(3):
                key = jax.random.key(seed)
                values, penalty = regularizer(solve, 2.0, key=key)
                np.testing.assert_allclose(values, plain, rtol=1e-5)
                single = regularizer(solve, 1.0, key=key)[1]
                assert 0 < 2 * single == pytest.approx(float(penalty))
        short = dataclasses.replace(solve, max_steps=1)()
        assert np.isnan(short).any()


@pytest.mark.slow
def test_random_ends_end_where_they_were_drawn() -> None:
    """y' = 1 tells the time."""
    clock = dfx.ODETerm(lambda t, y, args: jnp.ones_like(y))
    solve = Solve(clock, dfx.Tsit5(), 0.0, jnp.ones(()), jnp.zeros(1))
    for seed in range(3):
        key = jax.random.key(seed)
        value, penalty = RandomEnd()(solve, 0.5, key=key)
        np.testing.assert_allclose(value[0], uniform_end(key, jnp.ones(()), 0.5), rtol=1e-5)
        assert penalty == 0


@pytest.mark.slow
def test_euler_heun_with_an_estimate_converges_and_adapts() -> None:
    """dy = y o dW: e^W at the end, strong order 1 for one noise; a finer tolerance errs less."""

    def solved(key: Any, dt0: Any, controller: Any) -> Any:
        path = GridBrownianPath(key, 0.0, 1.0, 1024, (), refinements=4)
        terms = dfx.MultiTerm(
            dfx.ODETerm(lambda t, y, args: jnp.zeros_like(y)),
            dfx.ControlTerm(lambda t, y, args: y, path),
        )
        found = dfx.diffeqsolve(
            *(terms, LambaEulerHeun(), 0.0, 1.0, dt0, jnp.float64(1.0)),
            stepsize_controller=controller,
            max_steps=None,
            adjoint=dfx.ForwardMode(),
        )
        assert found.ys is not None
        return found.ys[0] - jnp.exp(path.evaluate(0.0, 1.0)), found.stats["num_steps"]

    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), 400)
        sizes = [2.0**-k for k in range(3, 9)]
        fixed = jax.jit(jax.vmap(lambda k, dt: solved(k, dt, dfx.ConstantStepSize()), (0, None)))
        wrong = [np.sqrt(np.mean(fixed(keys, dt)[0] ** 2)) for dt in sizes]
        slope = np.polyfit(np.log(sizes), np.log(wrong), 1)[0]
        assert slope == pytest.approx(1, abs=0.15)

        def adapted(key: Any, tolerance: Any) -> Any:
            controller = dfx.PIDController(tolerance, tolerance, dtmin=2.0**-14)
            return solved(key, 0.01, controller)

        adaptive = jax.jit(jax.vmap(adapted, (0, None)))
        (coarse, few), (fine, many) = adaptive(keys, 1e-1), adaptive(keys, 1e-3)
        assert np.mean(fine**2) < 0.2 * np.mean(coarse**2)
        assert np.mean(many) > 3 * np.mean(few)


def test_random_times() -> None:
    times = np.array([0.0, 0.2, 0.5, 1.0, np.inf, np.inf])
    solution = SimpleNamespace(ts=jnp.asarray(times), ys=jnp.arange(6.0))
    keys = jax.random.split(jax.random.key(0), 3000)
    found, values = jax.vmap(lambda key: uniform_step(key, solution))(keys)
    shares = [np.mean(np.isclose(found, t)) for t in (0.0, 0.2, 0.5)]
    np.testing.assert_allclose(shares, 1 / 3, atol=0.04)
    np.testing.assert_array_equal(np.asarray(times, np.float32)[values.astype(int)], found)
    drawn = jax.vmap(lambda key: uniform_time(key, 1.0, 3.0))(keys)
    assert 1 <= drawn.min() < 1.1 < 2.9 < drawn.max() < 3
    ends = jax.vmap(lambda key: uniform_end(key, 1.0, 0.5))(keys)
    assert 0.5 <= ends.min() < 0.55 < 1.45 < ends.max() < 1.5


def test_integrated_rates_are_those_by_hand() -> None:
    """y' = t y has y'' = (1 + t^2) y and y''' = (3 t + t^3) y; a linear field has its transpose."""
    y = jnp.array([1.0, -3.0])
    for order, factor in ((2, 1 + 0.25), (3, 1.5 + 0.125)):
        slope, rate = TaylorRate(order=order).rate(lambda t, y, args: t * y, 0.5, y, None, None)
        np.testing.assert_allclose(slope, 0.5 * y, rtol=1e-6)
        np.testing.assert_allclose(rate, np.mean((factor * y) ** 2), rtol=1e-5)
    matrix, noise = jnp.array([[1.0, 2.0], [0.0, -1.0]]), jnp.array([0.3, 0.7])
    slope, rate = KineticRate(jacobian=2.0).rate(lambda t, y, args: matrix @ y, 0.0, y, None, noise)
    by_hand = np.mean((matrix @ y) ** 2) + 2 * np.mean((matrix.T @ noise) ** 2)
    np.testing.assert_allclose(rate, by_hand, rtol=1e-6)


def test_the_estimate_of_euler_heun_is_that_by_hand() -> None:
    """For dy = a y dt + b y o dW: h^2 a^2 y / 2 + b^2 y dW^2 / 2, and one step of Heun."""
    a, b, h, dw, y = -1.3, 0.4, 0.2, 0.35, 1.7
    drift = dfx.ODETerm(lambda t, y, args: a * y)
    noise = dfx.ControlTerm(lambda t, y, args: b * y, lambda t0, t1: jnp.asarray(dw))
    terms = dfx.MultiTerm(drift, noise)
    solver = LambaEulerHeun(delta=0.5)
    with jax.enable_x64(True):
        y1, error, *_ = solver.step(terms, 0.0, h, jnp.asarray(y), None, None, False)
    step = a * h + b * dw
    np.testing.assert_allclose(y1, y * (1 + step + step**2 / 2), rtol=1e-12)
    np.testing.assert_allclose(error, 0.5 * h**2 * a**2 * y / 2 + b**2 * y * dw**2 / 2, rtol=1e-12)


PATH = dfx.VirtualBrownianTree(0.0, 1.0, 1e-2, (), jax.random.key(0))
NOISY = dfx.MultiTerm(LINEAR, dfx.ControlTerm(growth, PATH))
POINT = (0.0, 1.0, jnp.ones(1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ERROR.check(dfx.Euler(), LINEAR), "Euler estimates no error: take an adaptive"),
        (lambda: StiffnessEstimate().check(dfx.Bosh3(), LINEAR), "no two stages at the same time"),
        (
            lambda: StiffnessEstimate().check(dfx.HalfSolver(dfx.Tsit5()), LINEAR),
            "shows no Runge-Kutta stages",
        ),
        (lambda: StiffnessEstimate().check(dfx.Tsit5(), NOISY), "for ordinary"),
        (lambda: ErrorEstimate(-1.0, 1.0), "rtol=-1.0 must not be negative"),
        (lambda: accumulated(SimpleNamespace(solver_state=None)), "holds no measure: solve with"),
        (
            lambda: local_penalty(LINEAR, dfx.Tsit5(), ERROR, *POINT, 1.0),
            "dt0=None: give the length",
        ),
        (
            lambda: local_penalty(LINEAR, dfx.Kvaerno3(), ERROR, *POINT, 1.0, dt0=0.1),
            "Kvaerno3 needs tolerances of its own",
        ),
        (
            lambda: GlobalEstimate()(
                Solve(LINEAR, dfx.Tsit5(), *POINT, adjoint=dfx.BacksolveAdjoint()), 1.0, key=None
            ),
            "BacksolveAdjoint has no gradient of what the solver carries",
        ),
        (lambda: uniform_step(jax.random.key(0), SimpleNamespace(ts=None)), "needs every step"),
        (lambda: TaylorRate(order=1), "order=1 must be at least 2"),
        (
            lambda: KineticRate()(Solve(NOISY, dfx.Tsit5(), *POINT), 1.0, key=jax.random.key(0)),
            "beside one ODETerm, not a MultiTerm",
        ),
        (
            lambda: RandomEnd()(
                Solve(LINEAR, dfx.Tsit5(), *POINT, ts=jnp.ones(1)), 0.1, key=jax.random.key(0)
            ),
            "cannot serve fixed times",
        ),
    ],
)
def test_what_cannot_be_done_says_so(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_unknown_kinds() -> None:
    for make in (GlobalEstimate, LocalEstimate, LocalEstimateAtSteps):
        with pytest.raises(UnknownName, match="did you mean 'stiffness'"):
            make("stifness")
    with pytest.raises(UnknownName, match="unknown summary 'sum'"):
        GlobalEstimate(summary="sum")
