"""What every solver of ours for stochastic equations must do, over the catalogue."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

from nearly.core import catalogue
from nearly.core.lazy import load
from nearly.dynamics.brownian import GridBrownianPath
from nearly.dynamics.cir import CIRTerm, HOStS
from nearly.dynamics.problems.stochastic import arguments, is_adaptive

LINES = {n: m for n, m in catalogue.methods("sde-solvers").items() if m.source == "ours"}
METHODS = {name: arguments(load(line.target)) for name, line in LINES.items()}
SOLVERS = {name: given["solver"] for name, given in METHODS.items() if not is_adaptive(given)}
SIZES = (8, 16, 32, 64, 128)
AREA = dfx.SpaceTimeLevyArea
PATHS = 60
CELLS = 1023  # odd: no tree to halve, which compiles soonest


def quick(*names: str, of: Any = SOLVERS) -> list[Any]:
    """All of them; those that are not named in the slow tests, as each compiles for seconds."""
    return [n if n in names else pytest.param(n, marks=pytest.mark.slow) for n in of]


@pytest.fixture
def double() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def path() -> GridBrownianPath:
    """Of two leaves, so that every solver is given a pytree."""
    shape = {
        "x": jax.ShapeDtypeStruct((PATHS,), jnp.float64),
        "y": jax.ShapeDtypeStruct((2, PATHS), jnp.float64),
    }
    with jax.enable_x64(True):
        return GridBrownianPath(jax.random.key(0), 0.0, 1.0, CELLS, shape, AREA)


@eqx.filter_jit
def fixed(solver: Any, path: Any, begin: Any, end: Any, count: Any, y: Any) -> Any:
    """Equal steps of an equation of low volatility: the value at the end, and dense output."""
    term = CIRTerm(1.0, {"x": 1.0, "y": 1.2}, 0.6, path)
    step = (end - begin) / count
    times = begin + step * np.arange(3) / 2
    saved = dfx.SaveAt(subs=[dfx.SubSaveAt(t1=True), dfx.SubSaveAt(ts=times)])
    last, first = dfx.diffeqsolve(
        term, solver, begin, end, step, y, saveat=saved, max_steps=1024
    ).ys
    return jax.tree.map(lambda leaf: leaf[-1], last), first


def flat(y: Any) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(y)])


@pytest.mark.parametrize("name", quick("hosts"))
def test_strong_order_dense_output_and_backward_time(name: str, path: Any, double: Any) -> None:
    solver = SOLVERS[name]
    start = {"x": jnp.ones(PATHS), "y": jnp.full((2, PATHS), 0.8)}
    forward, back = np.array([0.0, 1.0]), np.array([1.0, 0.0])
    truth, _ = fixed(HOStS(), path, *forward, np.array(float(CELLS)), start)

    def distance(a: Any, b: Any) -> float:
        return float(np.sqrt(np.mean((flat(a) - flat(b)) ** 2)))

    def order(times: np.ndarray, begin: Any, end: Any) -> float:
        errors = [
            distance(fixed(solver, path, *times, np.array(float(n)), begin)[0], end) for n in SIZES
        ]
        return -float(np.polyfit(np.log(SIZES), np.log(errors), 1)[0])

    stated = solver.strong_order(CIRTerm(1.0, 1.0, 0.6, path))
    assert order(forward, start, truth) == pytest.approx(stated, abs=0.15)
    # The flow of a Stratonovich equation along a path can be run back.
    assert order(back, truth, start) == pytest.approx(stated, abs=0.25)
    # Between steps the path is not asked: output is linear there.
    _, first = fixed(solver, path, *forward, np.array(8.0), start)
    at, between, after = (flat(jax.tree.map(lambda leaf, i=i: leaf[i], first)) for i in range(3))
    np.testing.assert_array_equal(at, flat(start))
    np.testing.assert_allclose(between, (at + after) / 2, rtol=1e-13)


def test_hosts_undoes_its_own_steps(path: Any, double: Any) -> None:
    start = {"x": jnp.ones(PATHS), "y": jnp.full((2, PATHS), 0.8)}
    forward, back = np.array([0.0, 1.0]), np.array([1.0, 0.0])
    end, _ = fixed(HOStS(), path, *forward, np.array(64.0), start)
    again, _ = fixed(HOStS(), path, *back, np.array(64.0), end)
    np.testing.assert_allclose(flat(again), flat(start), rtol=1e-11)


def dialled(given: Any, dial: Any) -> dict[str, Any]:
    """The step, or what a controller's tolerance is."""
    controller = given["stepsize_controller"]
    if not is_adaptive(given):
        return {**given, "dt0": dial}
    return {
        **given,
        "dt0": None,
        "stepsize_controller": dataclasses.replace(controller, tolerance=dial, smallest=2.0**-11),
    }


@pytest.mark.parametrize("name", quick("hosts-adaptive", of=METHODS))
def test_single_precision_batches_events_and_results(name: str) -> None:
    """Values fall from 1 towards .1, so that they pass .6 on the way."""
    given = METHODS[name]

    @jax.jit
    def run(dial: Any, volatility: Any, level: Any) -> Any:
        def one(key: Any, volatility: Any) -> Any:
            path = GridBrownianPath(key, 0.0, 1.0, 63, (), AREA, refinements=6)
            found = dfx.diffeqsolve(
                CIRTerm(2.0, 0.1, volatility, path),
                **dialled(given, dial),
                t0=0.0,
                t1=1.0,
                y0=jnp.float32(1),
                event=dfx.Event(lambda t, y, args, **_: y - level, optx.Newton(1e-5, 1e-5)),
                max_steps=64,
                throw=False,
            )
            codes = [
                found.result == code
                for code in (
                    dfx.RESULTS.successful,
                    dfx.RESULTS.event_occurred,
                    dfx.RESULTS.max_steps_reached,
                )
            ]
            return (
                found.ts[-1],
                found.ys[-1],
                jnp.argmax(jnp.stack(codes)),
                found.stats["num_steps"],
            )

        return jax.vmap(one)(jax.random.split(jax.random.key(1), 3), volatility)

    loose, tight = (0.3, 1e-4) if is_adaptive(given) else (1 / 32, 1 / 256)
    spread = jnp.array([0.2, 0.3, jnp.nan], jnp.float32)
    times, values, codes, steps = run(jnp.float32(loose), spread, jnp.float32(-1))
    assert values.dtype == jnp.float32
    np.testing.assert_array_equal(codes[:2], 0)
    assert np.all(times[:2] == 1) and np.all(steps[:2] < 64) and np.all(values[:2] > 0)
    if is_adaptive(given):  # it takes no step to a value that is none
        assert codes[2] == 2
    _, _, codes, steps = run(jnp.float32(tight), spread, jnp.float32(-1))
    np.testing.assert_array_equal(codes[:2], 2)
    np.testing.assert_array_equal(steps[:2], 64)
    times, values, codes, _ = run(jnp.float32(loose), spread, jnp.float32(0.6))
    np.testing.assert_array_equal(codes[:2], 1)
    np.testing.assert_allclose(values[:2], 0.6, atol=1e-3)
    assert np.all((times[:2] > 0.05) & (times[:2] < 0.8))


@pytest.mark.slow
@pytest.mark.parametrize("name", SOLVERS)
def test_equal_steps_of_nan_end_as_those_of_diffrax_s_own_solver(name: str) -> None:
    path = GridBrownianPath(jax.random.key(1), 0.0, 1.0, 7, (), AREA)
    ours, theirs = (
        dfx.diffeqsolve(
            CIRTerm(1.0, 1.0, 0.5, path), solver, 0.0, 1.0, 1 / 8, jnp.float32(jnp.nan), throw=False
        )
        for solver in (SOLVERS[name], dfx.Heun())
    )
    assert np.isnan(ours.ys[-1]) and np.isnan(theirs.ys[-1])
    assert ours.result == theirs.result


@pytest.mark.parametrize("name", quick("drift-implicit-euler"))
def test_gradients_are_those_of_the_steps(name: str, double: Any) -> None:
    path = GridBrownianPath(jax.random.key(3), 0.0, 1.0, 7, (5,), AREA)

    @jax.jit
    @jax.value_and_grad
    def square(at: Any) -> Any:
        ends = dfx.diffeqsolve(
            CIRTerm(1.0, 1.0, at[0], path),
            SOLVERS[name],
            *(0.0, 1.0, 1 / 8, jnp.full(5, at[1])),
            max_steps=8,
        ).ys
        return jnp.mean(ends**2)

    at, step = jnp.array([0.8, 1.3]), 1e-6
    slopes = [
        (square(at + step * unit)[0] - square(at - step * unit)[0]) / (2 * step)
        for unit in np.eye(2)
    ]
    np.testing.assert_allclose(square(at)[1], slopes, rtol=1e-6)


@pytest.mark.parametrize("name", SOLVERS)
def test_without_an_estimate_of_the_error_a_controller_is_refused(name: str, double: Any) -> None:
    path = GridBrownianPath(jax.random.key(0), 0.0, 1.0, 7, (), AREA)
    with pytest.raises(RuntimeError, match="error estimate"):
        dfx.diffeqsolve(
            CIRTerm(1.0, 1.0, 0.5, path),
            SOLVERS[name],
            *(0.0, 1.0, 0.1, jnp.ones(())),
            stepsize_controller=dfx.PIDController(1e-2, 1e-2),
        )


@pytest.mark.parametrize("name", quick())
def test_halved_steps_give_one(name: str, double: Any) -> None:
    """`HalfSolver` compares a step with two halves; then diffrax's own controller serves."""
    path = GridBrownianPath(jax.random.key(4), 0.0, 1.0, 63, (), AREA, refinements=7)

    @jax.jit
    def run(tolerance: Any) -> Any:
        found = dfx.diffeqsolve(
            CIRTerm(1.0, 1.0, 0.5, path),
            dfx.HalfSolver(SOLVERS[name]),
            *(0.0, 1.0, None, jnp.ones(())),
            stepsize_controller=dfx.PIDController(tolerance, tolerance, dtmin=2.0**-11),
            max_steps=2048,
        )
        return found.ys[-1], found.stats["num_accepted_steps"]

    (end, few), (better, many) = run(1e-3), run(1e-5)
    assert 1 < few < many / 3
    np.testing.assert_allclose(end, better, atol=2e-2)
