"""Solvers of one equation against each other: seconds, iterations and errors, side by side.

    python benchmarks/equations.py [NAME...]

Seconds are those of finding the solution, after compilation. Ratios are medians of alternating
pairs in one process.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
from alternating import Row, main, milliseconds, pairs

from nearly.core.errors import InputError
from nearly.pde import peers
from nearly.pde.equations import InitialValueProblem, jet, jets
from nearly.pde.gaussian_features import GaussianMesh, RotatedMesh
from nearly.pde.natural_gradient import (
    AdamProjection,
    Heun,
    Marching,
    Step,
    TdvpRungeKutta,
)
from nearly.pde.problems.evolution import Burgers, Heat
from nearly.pde.problems.stationary import Cubic, Helmholtz
from nearly.pde.sobolev import Energy, Sobolev, SobolevDescent, descend

PAIRS = 15
STEPS = 20


def marching() -> list[Row]:
    """A network marched through time beside the reference solvers, each at its own setting.

    `start` is the fit of the first field, `march` the 20 steps after it; a classical solver has
    the second alone.
    """
    methods: dict[str, Step] = {
        "teng-heun": Heun(),
        "variational-principle": TdvpRungeKutta(),
        "optimised-steps": Heun(AdamProjection()),
    }
    rows: list[Row] = []
    with jax.enable_x64(True):
        for equation, points, size in ((Burgers(), 128, 128), (Heat(), 16, 32)):
            name = type(equation).__name__
            rows += [_marched(name, equation, n, s, points) for n, s in methods.items()]
            for method in (peers.exponential_steps, peers.lines):
                rows.append(_classical(name, equation, method, size))
    return rows


def _marched(name: str, equation: InitialValueProblem, method: str, step: Step, points: int) -> Row:
    marching = Marching(step, points=points)
    key = jax.random.key(0)
    space, start, missing = marching.start(equation, key)
    starting = milliseconds(lambda: marching.start(equation, key)[1])
    try:
        found = space.at_points(marching.march(space, start, STEPS, key))  # compiles, too
    except InputError as lost:
        return {"equation": name, "method": method, "error": f"lost: {lost}"}
    seconds = milliseconds(lambda: marching.march(space, start, STEPS, key)) / 1e3
    return {
        "equation": name,
        "method": method,
        "error": _error(equation, found),
        "start s": starting / 1e3,
        "march s": seconds,
        "first field's error": missing,
    }


def _classical(name: str, equation: InitialValueProblem, method: Any, size: int) -> Row:
    def solve() -> Any:
        return method(equation, size, key=jax.random.key(0))

    found = solve()
    return {
        "equation": name,
        "method": f"{type(method).__name__}, {size} points",
        "error": _error(equation, found),
        "march s": min(milliseconds(lambda: solve().values) for _ in range(5)) / 1e3,
    }


def _error(equation: InitialValueProblem, function: Callable[[Any], Any]) -> float:
    points = equation.held_out()
    truth = equation.truth(points)
    gap = np.asarray(function(jnp.asarray(points))) - truth
    return float(np.linalg.norm(gap) / np.linalg.norm(truth))


def gaussian_derivatives() -> list[Row]:
    """Derivatives of Gaussians written out against automatic ones: 4 x 100 at 1,024 points, and
    their gradient by all parameters."""
    rows: list[Row] = []
    with jax.enable_x64(True):
        equation = Helmholtz(waves=(4, 1))
        points = jnp.asarray(equation.held_out(1024))
        for mesh in (GaussianMesh(), RotatedMesh()):
            network = mesh(equation, key=jax.random.key(0), dtype=jnp.float64)

            def written_out(network: Any) -> Any:
                return jnp.sum(jets(network, points).second ** 2)

            def automatic(network: Any) -> Any:
                second = jax.vmap(lambda x: jet(lambda y: network(y), x).second)(points)
                return jnp.sum(second**2)

            for what, wrap in (("value", eqx.filter_jit), ("gradient", _gradient)):
                ours, theirs = wrap(written_out), wrap(automatic)
                found = pairs(partial(ours, network), partial(theirs, network), PAIRS)
                rows.append({"mesh": type(mesh).__name__, "of": what, **found.row})
    return rows


def _gradient(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return eqx.filter_jit(eqx.filter_grad(function))


def variational_descent() -> list[Row]:
    """-u'' + u^3 = f from zero to changes of 1e-10: iterations and seconds by inner nodes."""
    rows: list[Row] = []
    with jax.enable_x64(True):
        for count in (31, 127, 511):
            for name, solver in (("sobolev-descent", _sobolev), ("optimistix BFGS", _bfgs)):
                _, steps, ended = descend(Cubic(), count, solver)

                def solve(solver: Any = solver, count: int = count) -> Any:
                    return descend(Cubic(), count, solver)[0].values

                least = min(milliseconds(solve) for _ in range(3))
                rows.append(
                    {
                        "nodes": count,
                        "method": name,
                        "iterations": steps,
                        "ended": ended,
                        "ms": least,
                    }
                )
            newton = min(milliseconds(lambda n=count: _newton(n)) for _ in range(3))
            rows.append({"nodes": count, "method": "sparse Newton", "ended": True, "ms": newton})
    return rows


def _newton(count: int) -> Any:
    return peers.finite_differences(Cubic(), count + 2, key=jax.random.key(0)).values


def _sobolev(function: Energy) -> SobolevDescent:
    return SobolevDescent(0.05, Sobolev(function.spacing), function.volume)


def _bfgs(function: Energy) -> optx.AbstractMinimiser[Any, Any, Any]:
    return optx.BFGS(rtol=1e-10, atol=1e-10)


if __name__ == "__main__":
    main(
        {
            "marching": marching,
            "gaussian-derivatives": gaussian_derivatives,
            "variational-descent": variational_descent,
        },
        __doc__,
    )
