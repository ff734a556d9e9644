"""Stochastic paths and reversible gradients against diffrax's own: seconds side by side.

    python benchmarks/dynamics_stochastic.py [NAME...]

Ratios are medians of pairs that alternate between the two in one process, after compilation.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from typing import Any

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
from alternating import Row, main, pairs

from nearly.dynamics.brownian import GridBrownianPath
from nearly.dynamics.cir import DIE, CIRStepSize, HOStS
from nearly.dynamics.claims.stochastic import euler, grid, tree
from nearly.dynamics.problems.stochastic import cir
from nearly.dynamics.reversible import ReversibleAdjoint

STEPS = 1000
AREAS = (dfx.BrownianIncrement, dfx.SpaceTimeLevyArea, dfx.SpaceTimeTimeLevyArea)


def brownian_paths() -> list[Row]:
    """1,000 Euler steps along 1,000 paths, drawn in the same program: bar 250 ms for ours."""
    ours = euler(grid)
    rivals = {
        "VirtualBrownianTree": euler(tree),
        "UnsafeBrownianPath": euler(lambda key: dfx.UnsafeBrownianPath((), key)),
        "a scan that draws as it goes": _drawing_scan(),
    }
    if importlib.util.find_spec("torchsde"):
        rivals["torchsde's BrownianInterval"] = _torch_euler()
    else:
        print("\ntorchsde is not installed: its BrownianInterval is not run")
    return [{"peer": name, **pairs(ours, use, 5).row} for name, use in rivals.items()]


def _drawing_scan() -> Callable[[], Any]:
    """What one writes without a path: neither queried twice nor refined."""

    def one(key: Any) -> Any:
        def step(y: Any, key: Any) -> Any:
            return y + 0.1 * y / STEPS + 0.3 * y * jax.random.normal(key) / STEPS**0.5, None

        return jax.lax.scan(step, jnp.float32(1), jax.random.split(key, STEPS))[0]

    keys = jax.random.split(jax.random.key(0), 1000)
    compiled = jax.jit(jax.vmap(one)).lower(keys).compile()
    return lambda: compiled(keys)


def _torch_euler() -> Callable[[], Any]:
    """The same equation by torchsde, along paths that one seed makes anew at every use."""
    import torch
    import torchsde

    torch.set_num_threads(1)

    class Geometric(torch.nn.Module):
        noise_type, sde_type = "diagonal", "ito"

        def f(self, t: Any, y: Any) -> Any:
            return 0.1 * y

        def g(self, t: Any, y: Any) -> Any:
            return 0.3 * y

    equation, start, times = Geometric(), torch.ones(1000, 1), torch.tensor([0.0, 1.0])

    def use() -> Any:
        path = torchsde.BrownianInterval(0.0, 1.0, (1000, 1), entropy=0, dt=1 / STEPS)
        with torch.no_grad():
            found = torchsde.sdeint(equation, start, times, bm=path, method="euler", dt=1 / STEPS)
        return found.numpy()

    return use


def adaptive_queries() -> list[Row]:
    """200 paths queried at 200 irregular times at least 2^-14 apart, with each kind of area."""
    rows: list[Row] = []
    for area in AREAS:
        ours, tree = (
            _queries(
                lambda key, a=area: GridBrownianPath(key, 0.0, 1.0, 256, (), a, refinements=6)
            ),
            _queries(lambda key, a=area: dfx.VirtualBrownianTree(0.0, 1.0, 2**-14, (), key, a)),
        )
        rows.append({"area": area.__name__, "peer": "tree", **pairs(ours, tree, 5).row})
    return rows


def _queries(make: Callable[[Any], Any]) -> Callable[[], Any]:
    times = jnp.sort(jax.random.uniform(jax.random.key(1), (201,)))

    def one(key: Any) -> Any:
        path = make(key)

        def step(total: Any, ends: Any) -> Any:
            return total + path.evaluate(*ends), None

        return jax.lax.scan(step, jnp.float32(0), (times[:-1], times[1:]))[0]

    keys = jax.random.split(jax.random.key(0), 200)
    compiled = jax.jit(jax.vmap(one)).lower(keys).compile()
    return lambda: compiled(keys)


def reversible_gradients() -> list[Row]:
    """Gradient of a 32-component neural ODE over 64 trajectories, reversible Heun."""
    rows: list[Row] = []
    for steps in (100, 1000):
        ours, usual = (
            _gradient(steps, adjoint)
            for adjoint in (ReversibleAdjoint(), dfx.RecursiveCheckpointAdjoint())
        )
        rows.append({"steps": steps, "peer": "checkpoints", **pairs(ours, usual, 5).row})
    return rows


def _gradient(steps: int, adjoint: Any) -> Callable[[], Any]:
    inner, outer = (
        jax.random.normal(key, (32, 32)) / 6 for key in jax.random.split(jax.random.key(0))
    )

    def loss(weights: Any, start: Any) -> Any:
        field = dfx.ODETerm(lambda t, y, args: jnp.tanh(jnp.tanh(y @ args[0]) @ args[1]))
        solution = dfx.diffeqsolve(
            field,
            dfx.ReversibleHeun(),
            *(0.0, 1.0, 1 / steps, start, weights),
            adjoint=adjoint,
            max_steps=steps,
        )
        assert solution.ys is not None
        return jnp.sum(solution.ys**2)

    start = jax.random.normal(jax.random.key(1), (64, 32))
    compiled = jax.jit(jax.grad(loss)).lower((inner, outer), start).compile()
    return lambda: compiled((inner, outer), start)


def cir_crossing() -> list[Row]:
    """Cox-Ingersoll-Ross at high volatility: mean steps and strong errors, one set of paths.

    Each solver is judged by the other's finer solution, whose uncertainty is the last row: loose
    tolerances lose to as many constant steps, fine ones win.
    """
    rows: list[Row] = []
    for name, solver, judge, fine in (
        ("HOStS", HOStS(), "die", 2.0**-13),
        ("drift-implicit Euler", DIE(), "hosts", 2.0**-12),
    ):
        problem = cir(2.2, 64, 2**14, 3, seed=5, judge=judge, tolerances=(fine, 2 * fine))
        method = {"solver": solver, "stepsize_controller": CIRStepSize(1.0, 2.0**-15, 1.0)}
        dials = [(solver, 2.0**k) for k in range(6, 14)]
        dials += [(method, 2.0**-k) for k in range(3, 12)]
        for form, dial in dials:
            value = problem.solution(form, dial)
            rows.append(
                {
                    "solver": name,
                    "steps": "constant" if form is solver else f"tolerance 2^{math.log2(dial):.0f}",
                    "mean steps": float(np.mean(value[1])),
                    "strong error": problem.errors(value)["strong"],
                }
            )
        rows.append({"solver": name, "steps": "the judge", "strong error": problem.floor()})
    return rows


BENCHMARKS = {
    "brownian-paths": brownian_paths,
    "adaptive-queries": adaptive_queries,
    "reversible-gradients": reversible_gradients,
    "cir-crossing": cir_crossing,
}

if __name__ == "__main__":
    main(BENCHMARKS, __doc__)
