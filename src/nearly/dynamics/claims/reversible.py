"""What reversible solvers promise: exact gradients in memory that steps do not fill."""

from __future__ import annotations

from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np

from nearly.core.claim import Expected, claim
from nearly.dynamics.brownian import GridBrownianPath
from nearly.dynamics.reversible import ReversibleAdjoint

PAPER = "neural-differential-equations"
SIZE = 16
EXACT = dfx.RecursiveCheckpointAdjoint()


class Network(eqx.Module):
    """One hidden layer; of time too, and bounded by its last tanh."""

    inner: Any
    outer: Any

    def __init__(self, key: Any, dtype: Any) -> None:
        first, last = jax.random.split(key)
        self.inner = jax.random.normal(first, (32, SIZE + 1), dtype) / 4
        self.outer = jax.random.normal(last, (SIZE, 32), dtype) / 6

    def __call__(self, t: Any, y: Any, args: Any) -> Any:
        del args
        hidden = jnp.tanh(self.inner @ jnp.append(y, jnp.asarray(t, y.dtype)))
        return jnp.tanh(self.outer @ hidden)


class Diagonal(eqx.Module):
    """A network's values as a diagonal diffusion."""

    network: Network

    def __call__(self, t: Any, y: Any, args: Any) -> Any:
        return lx.DiagonalLinearOperator(self.network(t, y, args))


class Batched(eqx.Module):
    """A network along many trajectories at once."""

    network: Network

    def __call__(self, t: Any, y: Any, args: Any) -> Any:
        return jax.vmap(lambda x: self.network(t, x, args))(y)


def neural_sde(seed: int, dtype: Any) -> tuple[Any, Any, Any, Any]:
    """Drift, diagonal diffusion, a start, and a key for the path."""
    drift, diffusion, start, path = jax.random.split(jax.random.key(seed), 4)
    return (
        Network(drift, dtype),
        Network(diffusion, dtype),
        jax.random.normal(start, (SIZE,), dtype),
        path,
    )


def gradient(seed: int, steps: int, solver: Any, adjoint: Any) -> Any:
    """Of the end's squared length, by both networks and the start; one vector."""
    drift, diffusion, start, key = neural_sde(seed, jnp.float64)
    path = GridBrownianPath(key, 0.0, 1.0, steps, (SIZE,), refinements=4)

    @eqx.filter_jit
    @eqx.filter_grad
    def pulled(moving: Any) -> Any:
        drift, diffusion, start = moving
        noise = dfx.ControlTerm(Diagonal(diffusion), path)
        solution = dfx.diffeqsolve(
            dfx.MultiTerm(dfx.ODETerm(drift), noise),
            solver,
            *(0.0, 1.0, 1 / steps, start),
            adjoint=adjoint,
        )
        assert solution.ys is not None
        return jnp.sum(solution.ys**2)

    leaves = jax.tree.leaves(pulled((drift, diffusion, start)))
    return np.concatenate([np.asarray(leaf).ravel() for leaf in leaves])


def wrong(found: Any, truth: Any) -> float:
    """The relative error of a gradient, in the sum of absolute values."""
    return float(np.sum(np.abs(found - truth)) / np.sum(np.abs(truth)))


@claim(
    PAPER,
    "reversible-gradients-are-exact",
    cost="medium",
    expected=Expected(
        "relative error (L1) of ReversibleAdjoint's gradient of a neural SDE from that of "
        "discretise-then-optimise, largest over 10, 100 and 1000 steps of reversible Heun",
        "<=",
        1e-12,
        "derived: the thesis says the gradients are those of the discrete solution but for "
        "floating-point error; 1000 steps of 2e-16 that add up are 2e-13",
        scaled="16 components, two networks of 32 hidden units, float64",
    ),
)
def reversible_gradients_are_exact() -> list[float]:
    heun = dfx.ReversibleHeun()
    with jax.enable_x64(True):
        return [
            max(
                wrong(
                    gradient(seed, steps, heun, ReversibleAdjoint()),
                    gradient(seed, steps, heun, EXACT),
                )
                for steps in (10, 100, 1000)
            )
            for seed in range(3)
        ]


@claim(
    PAPER,
    "backsolved-gradients-are-not",
    cost="medium",
    expected=Expected(
        "relative error (L1) of BacksolveAdjoint's gradient (Heun, 100 steps) over that of "
        "ReversibleAdjoint (reversible Heun, 100 steps), each from its own solver's "
        "discretise-then-optimise, on the same path",
        ">=",
        1e6,
        "derived: solving the adjoint equation by a second-order method at h = 0.01 errs by about "
        "h^2 = 1e-4; rounding of 100 steps is 2e-14; with a thousand in reserve",
        scaled="16 components, two networks of 32 hidden units, float64",
    ),
)
def backsolved_gradients_are_not() -> list[float]:
    heun, reversible = dfx.Heun(), dfx.ReversibleHeun()
    with jax.enable_x64(True):
        ratios: list[float] = []
        for seed in range(3):
            theirs = wrong(
                gradient(seed, 100, heun, dfx.BacksolveAdjoint()),
                gradient(seed, 100, heun, EXACT),
            )
            ours = wrong(
                gradient(seed, 100, reversible, ReversibleAdjoint()),
                gradient(seed, 100, reversible, EXACT),
            )
            ratios.append(theirs / ours)
        return ratios


def gradient_bytes(steps: int, adjoint: Any) -> float:
    """Temporary bytes of the compiled gradient of 256 trajectories of a neural ODE."""
    field, _, _, _ = neural_sde(0, jnp.float32)

    def loss(moving: Any) -> Any:
        field, start = moving
        solution = dfx.diffeqsolve(
            dfx.ODETerm(Batched(field)),
            dfx.ReversibleHeun(),
            *(0.0, 1.0, 1 / steps, start),
            adjoint=adjoint,
            max_steps=steps,
        )
        assert solution.ys is not None
        return jnp.sum(solution.ys**2)

    start = jnp.zeros((256, SIZE), jnp.float32)
    compiled = jax.jit(jax.grad(loss)).lower((field, start)).compile()
    analysis = compiled.memory_analysis()
    assert analysis is not None
    return float(analysis.temp_size_in_bytes)


@claim(
    PAPER,
    "memory-is-flat-in-the-steps",
    cost="medium",
    expected=Expected(
        "temporary memory of a compiled gradient with ReversibleAdjoint, 4096 steps over 64 steps",
        "<=",
        1.1,
        "derived: one number of 4 bytes more a step, 16 KB, beside states, stages and cotangents "
        "of 256 trajectories and their hidden layers, each of 16 to 32 KB, of which a step's "
        "pullback holds a dozen",
        scaled="256 trajectories of 16 components, float32",
    ),
)
def memory_is_flat_in_the_steps() -> float:
    ours = [gradient_bytes(steps, ReversibleAdjoint()) for steps in (4096, 64)]
    return ours[0] / ours[1]


@claim(
    PAPER,
    "memory-beside-checkpoints",
    cost="medium",
    expected=Expected(
        "temporary memory of a compiled gradient, RecursiveCheckpointAdjoint over "
        "ReversibleAdjoint, 4096 steps of reversible Heun",
        ">=",
        5.0,
        "derived: checkpoints of three states at sqrt(2 * 4096) = 90 steps are 270 states; "
        "reversing holds two sets of three, their cotangents and a step's pullback, about 30; "
        "half of that",
        scaled="256 trajectories of 16 components, float32",
    ),
)
def memory_beside_checkpoints() -> float:
    return gradient_bytes(4096, EXACT) / gradient_bytes(4096, ReversibleAdjoint())
