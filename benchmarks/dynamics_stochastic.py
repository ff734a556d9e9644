"""Stochastic paths and reversible gradients against diffrax's own: seconds side by side.

    python benchmarks/dynamics_stochastic.py [NAME...]

Ratios are medians of pairs that alternate between the two in one process, after compilation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffrax as dfx
import jax
import jax.numpy as jnp
from alternating import Row, main, pairs

from nearly.dynamics.brownian import GridBrownianPath
from nearly.dynamics.claims.stochastic import euler, grid, tree
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


BENCHMARKS = {
    "brownian-paths": brownian_paths,
    "adaptive-queries": adaptive_queries,
    "reversible-gradients": reversible_gradients,
}

if __name__ == "__main__":
    main(BENCHMARKS, __doc__)
