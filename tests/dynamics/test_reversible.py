"""`ReversibleAdjoint`: the gradient of the discrete solution, in flat memory."""

from __future__ import annotations

from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nearly.core.errors import InputError
from nearly.dynamics.brownian import GridBrownianPath
from nearly.dynamics.reversible import ReversibleAdjoint

OURS = ReversibleAdjoint()


def field(t: Any, y: Any, args: Any) -> Any:
    return jnp.tanh(args["w"] @ y + jnp.cos(t)) - 0.1 * y


def second(t: Any, y: Any, args: Any) -> Any:
    return -jnp.sin(args["w"] @ y) * (1 + 0.1 * t)


def noise(t: Any, y: Any, args: Any) -> Any:
    return 0.3 * jnp.sin(args["w"].T @ y)


def ordinary() -> Any:
    return dfx.ODETerm(field)


class Waves(dfx.AbstractBrownianPath[Any]):
    """A path that is compiled at once, for a real one in every other respect."""

    t0: float = 0.0
    t1: float = 1.0
    levy_area: Any = eqx.field(static=True, default=dfx.BrownianIncrement)

    def evaluate(self, t0: Any, t1: Any = None, left: bool = True, use_levy: bool = False) -> Any:
        first, last = (self.t0, t0) if t1 is None else (t0, t1)
        rise = jnp.sin(50 * last) - jnp.sin(50 * first)
        return dfx.BrownianIncrement(dt=last - first, W=rise) if use_levy else rise


def driven() -> Any:
    return dfx.MultiTerm(dfx.ODETerm(field), dfx.ControlTerm(noise, Waves()))


def stochastic() -> Any:
    path = GridBrownianPath(jax.random.key(2), 0.0, 1.0, 20, (), refinements=3)
    return dfx.MultiTerm(dfx.ODETerm(field), dfx.ControlTerm(noise, path))


def separable() -> Any:
    return dfx.ODETerm(field), dfx.ODETerm(second)


def arguments() -> Any:
    return {"w": jax.random.normal(jax.random.key(0), (3, 3), jnp.float64), "label": 7}


START = np.array([0.3, -0.5, 1.1])
TIMES = np.array([0.0, 0.13, 0.17, 0.5, 1.0])

CASES = {
    "heun-ode-saved-at-times": (
        *(ordinary, dfx.ReversibleHeun(), START),
        {"saveat": dfx.SaveAt(t0=True, ts=TIMES, t1=True), "dt0": 0.05},
    ),
    "heun-driven": (driven, dfx.ReversibleHeun(), START, {"dt0": 0.05}),
    "heun-sde": (stochastic, dfx.ReversibleHeun(), START, {"dt0": 0.05}),
    "heun-backwards": (
        *(driven, dfx.ReversibleHeun(), START),
        {"t0": 1.0, "t1": 0.0, "dt0": -0.05, "saveat": dfx.SaveAt(ts=TIMES[::-1])},
    ),
    "heun-adaptive-every-step": (
        *(ordinary, dfx.ReversibleHeun(), START),
        {
            "saveat": dfx.SaveAt(steps=True),
            "stepsize_controller": dfx.PIDController(1e-3, 1e-3),
            "dt0": 0.3,
            "max_steps": 64,
        },
    ),
    "leapfrog": (
        *(ordinary, dfx.LeapfrogMidpoint(), START),
        {"saveat": dfx.SaveAt(ts=TIMES), "dt0": 0.04},
    ),
    "symplectic": (separable, dfx.SemiImplicitEuler(), (START, START[::-1]), {"dt0": 0.05}),
}


def loss(adjoint: Any, make: Any, solver: Any, settings: Any) -> Any:
    """A function of everything that was saved, of start and parameters."""

    def value(start: Any, w: Any) -> Any:
        solution = dfx.diffeqsolve(
            make(),
            solver,
            y0=start,
            args={"w": w, "label": 7},
            adjoint=adjoint,
            **({"t0": 0.0, "t1": 1.0} | settings),
        )
        weights = jnp.cos(jnp.arange(len(solution.ts), dtype=jnp.float64))[:, None]
        finite = jnp.isfinite(solution.ts)[:, None]
        parts = jax.tree.leaves(solution.ys)
        return sum(jnp.sum(weights * jnp.where(finite, p, 0) ** 2) for p in parts)

    return value


LONG = ("heun-sde", "heun-backwards")


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=pytest.mark.slow) if c in LONG else c for c in CASES]
)
def test_the_gradient_is_that_of_the_discrete_solution(case: str) -> None:
    """Forward mode takes it through the same steps, and is the quickest to compile."""
    make, solver, start, settings = CASES[case]
    with jax.enable_x64(True):
        at = jax.tree.map(jnp.asarray, start), arguments()["w"]
        ours = jax.jit(jax.grad(loss(OURS, make, solver, settings), (0, 1)))(*at)
        forward = loss(dfx.ForwardMode(), make, solver, settings)
        usual = jax.jit(jax.jacfwd(forward, (0, 1)))(*at)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(usual), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)


def test_results_are_diffrax_s_own_also_in_batches_of_single_precision() -> None:
    @jax.jit
    @jax.vmap
    def run(start: Any, step: Any) -> Any:
        found = dfx.diffeqsolve(
            dfx.ODETerm(lambda t, y, args: -y),
            dfx.ReversibleHeun(),
            *(0.0, 1.0, step, start),
            stepsize_controller=dfx.PIDController(1e-3, 1e-3),
            adjoint=OURS,
            max_steps=32,
            throw=False,
        )
        codes = (dfx.RESULTS.successful, dfx.RESULTS.max_steps_reached)
        return found.ys[0], jnp.stack([found.result == code for code in codes])

    starts = jnp.array([1.0, 1.0, jnp.nan], jnp.float32)
    values, codes = run(starts, jnp.array([0.1, 1e-30, 0.1], jnp.float32))
    assert values.dtype == jnp.float32
    assert values[0] == pytest.approx(np.exp(-1), rel=1e-2)
    np.testing.assert_array_equal(codes, [[True, False], [False, True], [False, True]])


def scaled(t: Any, y: Any, args: Any) -> Any:
    return args * y


SCALED = dfx.SaveAt(t1=True, fn=scaled)


def test_parameters_within_the_terms_and_the_saved_function_count() -> None:
    """y' = -c y, saved as c y: by hand."""

    class Decay(eqx.Module):
        c: Any

        def __call__(self, t: Any, y: Any, args: Any) -> Any:
            return -self.c * y

    with jax.enable_x64(True):
        steps, h = 10, 0.1

        def ours(c: Any, scale: Any) -> Any:
            solution = dfx.diffeqsolve(
                dfx.ODETerm(Decay(c)),
                dfx.ReversibleHeun(),
                0.0,
                1.0,
                h,
                jnp.asarray(1.0),
                scale,
                adjoint=OURS,
                saveat=SCALED,
            )
            return solution.ys[0]

        def by_hand(c: Any, scale: Any) -> Any:
            y = z = jnp.asarray(1.0)
            for _ in range(steps):
                y, z = y - 0.5 * h * c * (z + 2 * y - z - h * c * z), 2 * y - z - h * c * z
            return scale * y

        for derivative in (lambda f: f, lambda f: jax.grad(f, (0, 1))):
            found = derivative(ours)(0.7, 1.3)
            np.testing.assert_allclose(found, derivative(by_hand)(0.7, 1.3), rtol=1e-12)


def memory(adjoint: Any, steps: int, start: Any) -> int:
    """Bytes of a gradient's program beside its arguments and its result."""
    w = jnp.eye(3, dtype=jnp.float32)

    def end(y0: Any) -> Any:
        solution = dfx.diffeqsolve(
            dfx.ODETerm(lambda t, y, args: jnp.tanh(y @ w)),
            dfx.ReversibleHeun(),
            *(0.0, 1.0, 1 / steps, y0),
            adjoint=adjoint,
            max_steps=steps,
        )
        return jnp.sum(solution.ys)

    return jax.jit(jax.grad(end)).lower(start).compile().memory_analysis().temp_size_in_bytes


def test_its_memory_does_not_hold_the_steps() -> None:
    start, steps = jnp.zeros((2000, 3), jnp.float32), 1000
    assert memory(OURS, steps, start) < 20 * start.nbytes + 8 * steps


@pytest.mark.slow
def test_its_memory_beside_that_of_checkpoints() -> None:
    start = jnp.zeros((2000, 3), jnp.float32)
    few, many = (memory(OURS, steps, start) for steps in (10, 1000))
    assert many - few <= 8 * 990 * 4
    assert memory(dfx.RecursiveCheckpointAdjoint(), 1000, start) > 4 * many


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"solver": dfx.Heun()}, "Heun cannot be run backwards: ReversibleAdjoint takes Rev"),
        ({"max_steps": None}, "max_steps=None"),
        ({"saveat": dfx.SaveAt(dense=True)}, "not dense=True"),
        ({"event": dfx.Event(lambda t, y, args, **_: t > 2)}, "event=None"),
    ],
)
def test_what_cannot_be_run_backwards_says_so(settings: dict[str, Any], message: str) -> None:
    usual = {"solver": dfx.ReversibleHeun(), "t0": 0.0, "t1": 1.0, "dt0": 0.5, "adjoint": OURS}
    with pytest.raises(InputError, match=message):
        dfx.diffeqsolve(ordinary(), y0=START, args={"w": jnp.eye(3)}, **(usual | settings))


def test_jumps_are_refused() -> None:
    controller = dfx.ClipStepSizeController(
        dfx.PIDController(1e-3, 1e-3), jump_ts=jnp.array([0.5], jnp.float32)
    )
    start = jnp.asarray(START, jnp.float32)
    with pytest.raises(InputError, match="jump times"):
        jax.grad(
            lambda y0: jnp.sum(
                dfx.diffeqsolve(
                    dfx.ODETerm(lambda t, y, args: -y),
                    dfx.ReversibleHeun(),
                    *(0.0, 1.0, 0.1, y0),
                    stepsize_controller=controller,
                    adjoint=OURS,
                ).ys
            )
        )(start)
