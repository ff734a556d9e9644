"""What the papers of oscillatory equations promise, rerun."""

from __future__ import annotations

from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from nearly.core.claim import Expected, claim
from nearly.core.tally import tally
from nearly.dynamics.problems.initial_value import ORACLE, airy
from nearly.dynamics.problems.known import airy_values
from nearly.dynamics.wkb import oscillator_solver, truncated_wkb

GRID = np.linspace(1, 2, 33)


def airy_error(epsilon: float, order: int | None = None) -> float:
    """The largest error of truncated WKB for Airy's equation on [1, 2], relative to |u|."""
    truth = airy_values(GRID, epsilon)
    u = truth[:, 0] + 1j * truth[:, 2]
    start = (u[0], truth[0, 1] + 1j * truth[0, 3])
    solution = truncated_wkb(_itself, epsilon, (1.0, 2.0), start, order=order)
    found, _ = solution(jnp.asarray(GRID))
    return float(np.max(np.abs(np.asarray(found) - u) / np.abs(u)))


def _itself(x: Any) -> Any:
    return x


@claim(
    "truncated-wkb",
    "error-of-a-fixed-order",
    cost="medium",
    expected=Expected(
        "fitted power of epsilon in the error less N, for N = 1, 2, 3, Airy's equation on [1, 2], "
        "epsilon = 1/32 to 1/512",
        "within",
        (-0.25, 0.25),
        "abstract: the error is of magnitude O(epsilon^N)",
    ),
)
def error_of_a_fixed_order() -> list[float]:
    sizes = [2.0**-k for k in range(5, 10)]
    with jax.enable_x64(True):
        return [
            float(np.polyfit(np.log(sizes), np.log([airy_error(e, n) for e in sizes]), 1)[0]) - n
            for n in (1, 2, 3)
        ]


@claim(
    "truncated-wkb",
    "exponentially-accurate",
    cost="medium",
    expected=Expected(
        "c in an error like exp(-c / epsilon), fitted over epsilon = 1/4 to 1/16 at the optimal "
        "order, Airy's equation on [1, 2]",
        "within",
        (1.0, 1.67),
        "derived: the smallest term is exp(-2 / epsilon times the action from 1 to the turning "
        "point), so c = 4/3; a quarter either way for the power of epsilon in front",
    ),
)
def exponentially_accurate() -> float:
    inverse = [4.0, 6.0, 8.0, 10.0, 12.0, 14.0, 16.0]
    with jax.enable_x64(True):
        errors = [airy_error(1 / k) for k in inverse]
    return -float(np.polyfit(inverse, np.log(errors), 1)[0])


@claim(
    "truncated-wkb",
    "cheaper-than-dopri8",
    cost="medium",
    expected=Expected(
        "calls of a and its derivatives by Dopri8 over those by truncated WKB until the error at "
        "the end is 1e-8, Airy's equation on [1, 2], epsilon = .001",
        ">=",
        10.0,
        "derived: 200 oscillations take Dopri8 some 200 steps and more of 13 calls, against the "
        "same 32 expansions to order 31 for any epsilon",
    ),
)
def cheaper_than_dopri8() -> float:
    return _calls(dfx.Dopri8()) / _calls(oscillator_solver)


def _calls(method: Any) -> float:
    problem = airy(0.001)
    with jax.enable_x64(True):
        apply = eqx.filter_jit(lambda standin: problem.apply(standin, key=None))
        for dial in (10.0**-k for k in range(4, 13)):
            with tally() as counts:
                value = np.asarray(apply(problem.build(method, dial, key=None)))
            if problem.errors(value)["final"] <= 1e-8:
                used = counts.read()
                return float(used[ORACLE] + used[f"{ORACLE} jvps"])
    return float("inf")
