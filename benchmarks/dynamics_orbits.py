"""Bounds on averages and periodic orbits: seconds beside what one would write without them.

    python benchmarks/dynamics_orbits.py [NAME...]

Ratios are medians of pairs that alternate between the two in one process, after compilation.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from alternating import Row, main, milliseconds, pairs
from scipy.integrate import solve_ivp
from scipy.optimize import root

from nearly.dynamics.orbits import shoot
from nearly.dynamics.problems.time_average import LORENZ, lorenz_field, shear_flow_system
from nearly.dynamics.rational_proof import prove_bound
from nearly.dynamics.sum_of_squares import one_block, sum_of_squares

START, PERIOD = (-13.8, -19.6, 27.0), 1.55


def bounds() -> list[Row]:
    """The semidefinite program in blocks by sign symmetry, against the same in one block."""
    rows: list[Row] = []
    for system, degrees in ((LORENZ, (4, 6, 8)), (shear_flow_system(), (2, 4))):
        for degree in degrees:
            ours, whole = sum_of_squares(system, degree), one_block(system, degree)
            size = {"unknowns": ours.size, "in one block": whole.size}
            timed = pairs(ours.solve, whole.solve, 3 if degree < 8 else 1).row
            rows.append({"system": system.name, "degree": degree, **size, **timed})
    return rows


def proofs() -> list[Row]:
    """Seconds of a proof in rationals, all in."""
    return [
        {
            "degree": degree,
            "proof ms": milliseconds(lambda d=degree: prove_bound(LORENZ, d, margin=1e-3)),
            "program ms": milliseconds(lambda d=degree: sum_of_squares(LORENZ, d).solve()),
        }
        for degree in (4, 6)
    ]


def shooting() -> list[Row]:
    """Lorenz's shortest orbit by Newton's method, against SciPy's `root` over DOP853."""
    with jax.enable_x64(True):
        start = jnp.asarray(START)
        compiled = eqx.filter_jit(lambda y, t: shoot(LORENZ, y, t))
        ours = compiled(start, jnp.asarray(PERIOD))
        theirs = _scipy_orbit()
        both = {"period": float(ours.period), "peer's period": float(theirs[-1])}
        timed = pairs(lambda: compiled(start, jnp.asarray(PERIOD)), _scipy_orbit, 5).row
    return [{**both, **timed}]


def _scipy_orbit() -> Any:
    parameters = (10.0, 28.0, 8 / 3)
    reference = np.array(START)
    along = np.array(lorenz_field(reference, parameters))

    def closing(unknowns: np.ndarray) -> np.ndarray:
        solution = solve_ivp(
            lambda t, y: lorenz_field(y, parameters),
            (0, unknowns[-1]),
            unknowns[:-1],
            method="DOP853",
            rtol=1e-12,
            atol=1e-12,
        )
        end = solution.y[:, -1] - unknowns[:-1]
        return np.append(end, along @ (unknowns[:-1] - reference))

    return root(closing, [*START, PERIOD], tol=1e-11).x


BENCHMARKS = {"bounds": bounds, "proofs": proofs, "shooting": shooting}

if __name__ == "__main__":
    main(BENCHMARKS, __doc__)
