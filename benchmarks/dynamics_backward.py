"""Backward equations and their parabolic counterparts beside simulation: seconds side by side.

    python benchmarks/dynamics_backward.py [NAME...]

Ratios are medians of pairs that alternate between the two in one process, after compilation.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from alternating import Row, main, pairs

from nearly.core.tally import tally
from nearly.dynamics.exposure import LeastSquaresMonteCarlo, NestedMonteCarlo
from nearly.dynamics.feynman_kac import crank_nicolson, monte_carlo, quasi_monte_carlo
from nearly.dynamics.peers import scipy_lines
from nearly.dynamics.problems.backward import valuation_adjustments
from nearly.dynamics.problems.feynman_kac import feynman_kac
from nearly.dynamics.xva import DeepXVA

KEY = jax.random.key(0)


def grid_beside_the_rest() -> list[Row]:
    """u at three points, `feynman-kac-exponent-bump`: Crank-Nicolson with 128 intervals."""
    problem = feynman_kac("exponent-bump")
    with jax.enable_x64(True):
        points = jnp.asarray(problem.points, jnp.float64)
        ours, error = _solver(crank_nicolson, 128, points)
        rows: list[Row] = []
        for name, method, dial in (
            ("SciPy's LSODA along lines", scipy_lines, 128),
            ("Monte Carlo", monte_carlo, 2**14),
            ("quasi-Monte Carlo", quasi_monte_carlo, 2**12),
        ):
            theirs, other = _solver(method, dial, points)
            errors = {"our error": error, "peer's error": other}
            rows.append({"peer": name, "dial": dial, **errors, **pairs(ours, theirs, 7).row})
    return rows


def _solver(method: Any, dial: int, points: Any) -> tuple[Callable[[], Any], float]:
    problem = feynman_kac("exponent-bump")
    solver = method(problem.equation, dial, key=KEY)
    if isinstance(solver, eqx.Module):
        compiled = eqx.filter_jit(solver)
        use = lambda: compiled(points, key=KEY)  # noqa: E731
    else:
        use = lambda: solver(np.asarray(points), key=KEY)  # noqa: E731
    return use, problem.errors(use())["largest error"]


def layers_beside_simulation() -> list[Row]:
    """`xva-margined`: errors, path steps and seconds (once, with compilation) for all figures."""
    problem = valuation_adjustments("margined")
    methods = (
        ("deep, 250 steps of training", DeepXVA(), 250),
        ("deep, 1,000 steps of training", DeepXVA(), 1000),
        ("regression, 4,096 paths", LeastSquaresMonteCarlo(), 4096),
        ("regression, 65,536 paths", LeastSquaresMonteCarlo(), 65536),
        ("nested, 64 outer paths", NestedMonteCarlo(), 64),
        ("nested, 1,024 outer paths", NestedMonteCarlo(), 1024),
    )
    rows: list[Row] = []
    for name, method, dial in methods:
        begun = time.perf_counter()
        with tally() as counts:
            found = problem.solved(method, dial, KEY)
            errors = problem.errors({n: float(v) for n, v in found.items()})
        seconds = time.perf_counter() - begun
        steps = float(counts.read()["path steps"])
        rows.append({"method": name, "path steps": steps, "seconds": seconds, **errors})
    return rows


BENCHMARKS = {
    "feynman-kac": grid_beside_the_rest,
    "adjustments": layers_beside_simulation,
}

if __name__ == "__main__":
    main(BENCHMARKS, __doc__)
