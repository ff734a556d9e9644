"""What every solver of ours must do: over the catalogue, so that a new line is tested too."""

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

from nearly.core import catalogue
from nearly.core.lazy import load
from nearly.dynamics.deferred import DeferredBDF2

LINES = {n: m for n, m in catalogue.methods("ode-solvers").items() if m.source == "ours"}
SOLVERS = {
    name: solver
    for name, line in LINES.items()
    if isinstance(solver := load(line.target), dfx.AbstractSolver)
}


def cases(*quick):
    """All solvers; but for those named the test is a slow one, as it compiles for long."""
    return [
        name
        if name in quick or not isinstance(SOLVERS[name], DeferredBDF2)
        else pytest.param(name, marks=pytest.mark.slow)
        for name in SOLVERS
    ]


SIZES = (24, 48, 96, 192, 384)


def field(t, y, args):
    """Solved by a = cos t, b = (1 / (1 + t), exp(-k t^2)), if k is the one of the start."""
    k = args
    first, second = y["b"][0], y["b"][1]
    return {
        "a": -2 * (y["a"] - jnp.cos(t)) - jnp.sin(t),
        "b": jnp.stack([-(first**2), -2 * k * t * second]),
    }


def solution(t, k=1.0):
    t = np.asarray(t, np.float64)
    return {"a": np.cos(t), "b": np.stack([1 / (1 + t), np.exp(-k * t**2)], -1)}


def flat(y, *index):
    return np.concatenate([np.ravel(np.asarray(leaf)[index]) for leaf in jax.tree.leaves(y)])


def start(t=0.0, dtype="float64"):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), solution(t))


@eqx.filter_jit
def fixed(solver, begin, end, step, y, k, times):
    return dfx.diffeqsolve(
        dfx.ODETerm(field),
        solver,
        begin,
        end,
        step,
        y,
        args=k,
        saveat=dfx.SaveAt(subs=[dfx.SubSaveAt(t1=True), dfx.SubSaveAt(ts=times)]),
        max_steps=512,
    ).ys


@eqx.filter_jit
@eqx.filter_vmap(in_axes=(None, 0, 0, None, None))
def adaptive(solver, y, k, level, tolerance):
    """To the event at which b_0 falls to a level: times, values, steps, and which result."""
    found = dfx.diffeqsolve(
        dfx.ODETerm(field),
        solver,
        0.0,
        1.0,
        0.05,
        y,
        args=k,
        stepsize_controller=dfx.PIDController(rtol=tolerance, atol=tolerance),
        event=dfx.Event(lambda t, y, args, **_: y["b"][0] - level, optx.Newton(1e-5, 1e-5)),
        max_steps=200,
        throw=False,
    )
    codes = jnp.stack([found.result == code for code in CODES])
    return found.ts[-1], found.ys, found.stats["num_steps"], jnp.argmax(codes)


CODES = (dfx.RESULTS.successful, dfx.RESULTS.event_occurred, dfx.RESULTS.max_steps_reached)
ENDED, STOPPED, RAN_OUT = range(3)


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("name", cases("deferred-bdf4"))
def test_order_dense_output_and_backward_time(name, double):
    solver = SOLVERS[name]
    order = solver.order(dfx.ODETerm(field))
    times = jnp.linspace(0.1, 1.0, 7, dtype="float64")
    k, zero, one = (jnp.asarray(x) for x in (1.0, 0.0, 1.0))  # arrays, so that all is compiled once
    steps, errors, between = 1 / np.array(SIZES), [], []
    for step in steps:
        end, dense = fixed(solver, zero, one, jnp.asarray(step), start(), k, times)
        errors.append(np.linalg.norm(flat(end, -1) - flat(solution(1.0))))
        between.append(
            max(np.abs(flat(dense, i) - flat(solution(t))).max() for i, t in enumerate(times))
        )
    assert abs(np.polyfit(np.log(steps), np.log(errors), 1)[0] - order) < 0.15
    # An output between steps may be one order worse, as its error does not pile up.
    assert np.polyfit(np.log(steps), np.log(between), 1)[0] > order - 0.3
    end, dense = fixed(solver, one, zero, jnp.asarray(-1 / 96), start(1.0), k, 1.0 - times + 0.1)
    np.testing.assert_allclose(flat(end, -1), flat(solution(0.0)), atol=30 * errors[2] + 1e-12)
    np.testing.assert_allclose(flat(dense, 0), flat(solution(1.0)), atol=1e-12)


@pytest.mark.parametrize("name", cases("deferred-bdf3"))
def test_adaptive_steps_in_single_precision_batches_events_and_results(name):
    solver = SOLVERS[name]
    many = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), start(dtype="float32"))
    k = jnp.asarray([1.0, 0.5, jnp.nan], jnp.float32)
    loose, tight, never = jnp.float32(3e-5), jnp.float32(1e-12), jnp.float32(-1)
    _, ys, steps, codes = adaptive(solver, many, k, never, loose)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(ys))
    np.testing.assert_array_equal(codes, [ENDED, ENDED, RAN_OUT])
    for lane in (0, 1):
        np.testing.assert_allclose(flat(ys, lane, -1), flat(solution(1.0, k[lane])), atol=2e-3)
    times, _, _, codes = adaptive(solver, many, k, jnp.float32(0.8), loose)
    np.testing.assert_array_equal(codes, [STOPPED, STOPPED, RAN_OUT])
    np.testing.assert_allclose(times[:2], 0.25, atol=2e-3)
    _, _, steps, codes = adaptive(solver, many, k, never, tight)
    np.testing.assert_array_equal(steps, 200)
    np.testing.assert_array_equal(codes, RAN_OUT)


@pytest.mark.parametrize(
    "name", [n if n == "msrktase2" else pytest.param(n, marks=pytest.mark.slow) for n in SOLVERS]
)
def test_gradients_are_those_of_the_solution(name, double):
    """d/dk of exp(-k t^2) at t = 1 and of the start, by reverse mode through the steps."""

    def last(k, y):
        end = dfx.diffeqsolve(
            dfx.ODETerm(field), SOLVERS[name], 0.0, 1.0, 1 / 64, y, args=k, max_steps=65
        ).ys
        return end["b"][-1, 1]

    by_k, by_y = jax.jit(jax.grad(last, argnums=(0, 1)))(1.0, start())
    np.testing.assert_allclose(by_k, -np.exp(-1.0), rtol=2e-3)
    np.testing.assert_allclose(by_y["b"], [0, np.exp(-1.0)], atol=1e-3)
    np.testing.assert_allclose(by_y["a"], 0, atol=1e-10)


@pytest.mark.filterwarnings("ignore:Complex dtype")
@pytest.mark.parametrize("name", ["msrktase3"])
def test_complex_values(name, double):
    end = dfx.diffeqsolve(
        dfx.ODETerm(lambda t, y, args: 1j * y**2), SOLVERS[name], 0.0, 1.0, 1 / 64, jnp.ones(1) + 0j
    ).ys
    np.testing.assert_allclose(end[-1], 1 / (1 - 1j), atol=1e-6)
