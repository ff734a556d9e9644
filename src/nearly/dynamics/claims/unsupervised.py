"""What solving initial-value problems by networks alone promises, rerun beside an integrator."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from nearly.core.claim import Expected, claim
from nearly.core.tally import tally
from nearly.dynamics.problems.equations import henon_heiles
from nearly.dynamics.problems.initial_value import ORACLE, InitialValueProblem, Stacked
from nearly.dynamics.problems.mechanics import pendulum
from nearly.dynamics.unsupervised import Unsupervised

SEEDS = range(3)
PAPER = "unsupervised-ivp"
MOTION = Unsupervised(order=2)


@eqx.filter_jit
def _applied(problem: Any, standin: Any) -> Any:
    return problem.apply(standin, key=None)


def _values(problem: InitialValueProblem, method: Any, dial: float = 0.0) -> np.ndarray:
    with jax.enable_x64(True):
        return np.asarray(_applied(problem, problem.build(method, dial, key=None)))


def seeded(settings: Unsupervised, seed: int) -> Unsupervised:
    """The seed an array: one program for all."""
    return replace(settings, seed=jnp.asarray(seed, jnp.int32))


def pendulum_error(settings: Unsupervised) -> float:
    """Over the times, relative to the largest angle and speed."""
    problem = pendulum()
    return problem.errors(_values(problem, settings))["l2"]


@claim(
    PAPER,
    "rectifiers-cannot",
    cost="medium",
    expected=Expected(
        "error of the pendulum's motion by networks of ReLUs over that by x F(x) with the normal "
        "distribution F",
        ">=",
        100.0,
        "abstract: probabilistic activation functions are required to learn any solutions in their "
        "strictest sense; derived: without a second derivative the error is of the motion's own "
        "size, against 1% or less",
        scaled="a pendulum let go at 1 radian, 6 units of time (a period is 6.7)",
    ),
)
def rectifiers_cannot() -> list[float]:
    rectified = replace(MOTION, activation=jax.nn.relu)
    return [pendulum_error(seeded(rectified, s)) / pendulum_error(seeded(MOTION, s)) for s in SEEDS]


def energy(states: np.ndarray) -> np.ndarray:
    """Of Henon and Heiles."""
    x, y, u, v = states.T
    return (u**2 + v**2 + x**2 + y**2) / 2 + x**2 * y - y**3 / 3


def henon_heiles_motion() -> InitialValueProblem:
    """From an energy of 1/12, for 10 units of time."""
    y, level = 0.1, 1 / 12
    speed = np.sqrt(2 * level - y**2 + 2 * y**3 / 3)
    return InitialValueProblem(
        field=Stacked(henon_heiles),
        start=np.array([0.0, y, speed, 0.0]),
        times=np.linspace(0, 10, 101)[1:],
        stiff=False,
        name="henon-heiles",
    )


@claim(
    PAPER,
    "energy-is-kept",
    cost="medium",
    expected=Expected(
        "largest change of the energy along the motion, over the energy, Henon-Heiles system",
        "<=",
        0.01,
        "abstract: trajectories which conserve physical properties such as energy; derived: within "
        "1%, as a plot shows no less",
        scaled="an energy of 1/12, 10 units of time",
    ),
    limits="training is slow to end: on another orbit of the system 300 steps of L-BFGS leave 7%, "
    "1,000 leave 4%; a start that holds by construction, or weighs 100 times more, leaves networks "
    "in a minimum with a drift above 100%",
)
def energy_is_kept() -> list[float]:
    problem = henon_heiles_motion()
    drifts: list[float] = []
    for seed in SEEDS:
        levels = energy(_values(problem, seeded(MOTION, seed)))
        start = energy(problem.start[None])[0]
        drifts.append(float(np.max(np.abs(levels - start)) / start))
    return drifts


@claim(
    PAPER,
    "calls-beside-dopri5",
    cost="medium",
    expected=Expected(
        "calls of the field and its derivatives by the networks, over those of Dopri5 at the same "
        "error or a smaller one, the pendulum's motion",
        ">=",
        1000.0,
        "derived: 2500 steps at 64 times, forwards and backwards, against some hundred calls",
    ),
)
def calls_beside_dopri5() -> list[float]:
    ratios: list[float] = []
    for seed in SEEDS:
        error, calls = _spent(seeded(MOTION, seed), 0.0)
        rivals = (_spent(dfx.Dopri5(), 10.0**-k) for k in range(1, 13))
        ratios.append(calls / next(theirs for found, theirs in rivals if found <= error))
    return ratios


def _spent(method: Any, dial: float) -> tuple[float, float]:
    """The error over the times, and the calls."""
    problem = pendulum()
    with tally() as counts:
        values = _values(problem, method, dial)
    used = counts.read()
    calls = sum(used.get(f"{ORACLE}{kind}", 0) for kind in ("", " jvps", " vjps"))
    return problem.errors(values)["l2"], float(calls)
