"""Make the solutions that the dynamics room measures against: `problems/truths.json`.

    python scripts/dynamics_truths.py [NAME...]

Collocation at the Radau points (Radau IIA) in 80-bit arithmetic, stages solved to rounding by
Newton's method with a double-precision Jacobian. Each step is taken with 5 and with 7 stages
(orders 9 and 13); the step is chosen by their difference and the better one is kept. The
uncertainty that is shipped is the largest difference between this run and one at a tolerance 30
times looser, relative to the size of each component.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import scipy.linalg

from nearly.dynamics.problems.equations import CASES, Case

TARGET = Path(__file__).parents[1] / "src" / "nearly" / "dynamics" / "problems" / "truths.json"
Real = np.longdouble
Solve = Callable[[np.ndarray], np.ndarray]


def extended(x: mpmath.mpf) -> np.longdouble:
    """An mpmath number in 80 bits."""
    return Real(mpmath.nstr(x, 30))


@cache
def radau(stages: int) -> tuple[np.ndarray, np.ndarray]:
    """The nodes and the matrix of Radau IIA."""
    with mpmath.workdps(50):
        # The nodes are 1 and the roots of the derivative of x^(s-1) (1-x)^s of order s - 1.
        s = stages
        coefficients = [mpmath.mpf(0)] * (2 * s)
        for k in range(s + 1):
            coefficients[s - 1 + k] = mpmath.binomial(s, k) * (-1) ** k
        for _ in range(s - 1):
            coefficients = [k * c for k, c in enumerate(coefficients)][1:]
        roots = mpmath.polyroots(coefficients[::-1], maxsteps=500, extraprec=500)
        nodes = sorted(mpmath.re(root) for root in roots)
        powers = mpmath.matrix(s, s)
        integrals = mpmath.matrix(s, s)
        for i in range(s):
            for k in range(s):
                powers[k, i] = nodes[i] ** k
                integrals[k, i] = nodes[i] ** (k + 1) / (k + 1)
        matrix = (powers**-1 * integrals).T
        a = np.array([[extended(matrix[i, j]) for j in range(s)] for i in range(s)])
        return np.array([extended(x) for x in nodes]), a


class Stepper:
    """One case, with its Jacobian."""

    def __init__(self, case: Case) -> None:
        self.case = case
        stacked = lambda y: jnp.stack(case.function(0.0, y))  # noqa: E731
        self.jacobian = jax.jit(jax.jacfwd(stacked))

    def field(self, y: np.ndarray) -> np.ndarray:
        return np.array([Real(x) for x in self.case.function(Real(0), y)])

    def step(self, y: np.ndarray, h: np.longdouble, stages: int) -> np.ndarray | None:
        """The value a step later, or None where Newton's method does not settle."""
        _, a = radau(stages)
        size = len(y)
        j = np.asarray(self.jacobian(jnp.asarray(y.astype(float))))
        system = np.eye(stages * size) - float(h) * np.kron(a.astype(float), j)
        factors = scipy.linalg.lu_factor(system)
        z, before = np.zeros((stages, size), Real), np.inf
        scale = np.abs(y) + Real(self.case.absolute) * Real(1e-3)
        for _ in range(30):
            slopes = np.array([self.field(y + z[i]) for i in range(stages)])
            residual = z - h * (a @ slopes)
            # The residual is scaled up before it is rounded to double.
            size_of = float(np.max(np.abs(residual))) or 1.0
            shift = scipy.linalg.lu_solve(factors, (residual / size_of).astype(float).ravel())
            change = shift.reshape(z.shape).astype(Real) * Real(size_of)
            z = z - change
            moved = float(np.max(np.abs(change) / scale))
            if not np.isfinite(moved) or (moved > 0.9 * before and moved > 1e-17):
                return None
            if moved < 1e-19 or moved > 0.9 * before:
                return y + z[-1]
            before = moved
        return None


def solve(case: Case, tolerance: float) -> np.ndarray:
    """The solution at the case's times."""
    stepper = Stepper(case)
    y, t, h = np.array([Real(x) for x in case.start]), Real(0), Real(case.times[0]) * Real(1e-3)
    found: list[np.ndarray] = []
    for end in case.times:
        end = Real(end)
        while t < end:
            last = t + h * Real(1.0001) >= end
            used = end - t if last else h
            good, rough = stepper.step(y, used, 7), stepper.step(y, used, 5)
            if good is None or rough is None:
                h = used / 4
                continue
            scale = np.maximum(np.abs(y), np.abs(good)) + Real(case.absolute)
            error = float(np.max(np.abs(good - rough) / scale)) / tolerance
            factor = Real(min(3.0, max(0.2, 0.8 * max(error, 1e-12) ** -0.1)))
            if error <= 1:
                t, y = (end if last else t + used), good
                h = max(h, used * factor) if last else used * factor
            else:
                h = used * factor
        found.append(y)
    return np.array(found)


def main(names: list[str]) -> None:
    truths = json.loads(TARGET.read_text()) if TARGET.exists() else {}
    for name in names or list(CASES):
        case = CASES[name]
        with jax.enable_x64(True):
            values, looser = solve(case, 3e-15), solve(case, 1e-13)
        scale = np.max(np.abs(values), axis=0)
        uncertainty = float(np.max(np.abs(values - looser) / scale))
        print(f"{name}: end {values[-1].astype(float)}, uncertainty {uncertainty:.1e}", flush=True)
        truths[name] = {"uncertainty": uncertainty, "values": values.astype(float).tolist()}
        lines = ",\n".join(f' "{n}": {json.dumps(t)}' for n, t in sorted(truths.items()))
        TARGET.write_text("{\n" + lines + "\n}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
