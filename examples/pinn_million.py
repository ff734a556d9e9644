"""A million dimensions on a laptop: the Allen-Cahn equation solved by a network and few jets.

    python examples/pinn_million.py [--dimension 1000000] [--steps 100] [--block 50]

Laplacian u + u - u^3 = g in the unit ball, u = 0 on its surface, of which the solution is the
two-body function of the paper (`stde`), its coefficients scaled such that u is of order 1. A step
looks at 4 points and at 32 of the second derivatives there: what it costs beside handling the
points themselves does not depend on the dimension.
"""

import argparse
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from nearly.derivatives.operators import laplacian
from nearly.derivatives.pinn import BallPoints, ball_network, unbiased_residual_loss
from nearly.derivatives.problems.operators import two_body
from nearly.derivatives.samplers import Sparse
from nearly.training import fit

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "pinn-million.png"
POINTS = 4


class Equation(eqx.Module):
    """The network with the coefficients of the solution, which say the right-hand side."""

    network: Any
    coefficients: jax.Array

    def residual(self, found: Any, x: Any) -> Any:
        u, second = two_body(self.coefficients, x)
        u, second = jax.lax.stop_gradient((u, second))
        wanted = second + u - u**3
        return (found.value + found.function - found.function**3 - wanted) / x.size


@dataclass(frozen=True)
class Solved:
    """Relative error by step, and what it took; the seconds include compilation."""

    dimension: int
    errors: dict[int, float]
    seconds_per_step: float
    parameters: int


def solve(dimension: int, steps: int = 100, block: int = 50, seed: int = 0) -> Solved:
    """Train on a fresh batch of points each step; the error is measured on 16 other points."""
    start, draw, test, training = jax.random.split(jax.random.key(seed), 4)
    coefficients = jax.random.normal(draw, (dimension - 1,), "float32") / dimension**0.5
    equation = Equation(ball_network(dimension, start, block=block), coefficients)
    points = BallPoints(16, dimension)(test)
    truth = jax.lax.map(lambda x: two_body(coefficients, x)[0], points)

    def error(model: Equation) -> Any:
        values = jax.lax.map(model.network, points)
        return jnp.linalg.norm(values - truth) / jnp.linalg.norm(truth)

    def loss(model: Equation, batch: Any, key: Any) -> Any:
        squared = unbiased_residual_loss(laplacian(), model.residual, Sparse(16))
        return squared(model.network, batch, key)

    began = time.perf_counter()
    trained = fit(
        loss,
        equation,
        BallPoints(POINTS, dimension),
        optimizer=optax.adam(optax.linear_schedule(1e-3, 0, steps)),
        steps=steps,
        key=training,
        trainable=eqx.tree_at(
            lambda e: e.coefficients, jax.tree.map(eqx.is_inexact_array, equation), False
        ),
        validate=error,
        every=max(1, steps // 20),
    )
    seconds = (time.perf_counter() - began) / steps
    weights = jax.tree.leaves(eqx.filter(equation.network, eqx.is_inexact_array))
    return Solved(dimension, trained.validations, seconds, sum(w.size for w in weights))


def draw(solved: Sequence[Solved], picture: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4))
    for each in solved:
        axes.semilogy(
            list(each.errors),
            np.asarray(list(each.errors.values())),
            label=f"d = {each.dimension:,}: {each.seconds_per_step:.2g} s a step",
        )
    axes.set(xlabel="step", ylabel="relative error of the solution")
    axes.legend(title="seconds with compilation")
    figure.savefig(picture, dpi=150, bbox_inches="tight")
    plt.close(figure)


def main(
    dimensions: Sequence[int] = (100, 10_000, 1_000_000),
    steps: int = 100,
    block: int = 50,
    picture: Path = PICTURE,
) -> list[Solved]:
    solved = [solve(d, steps, block) for d in dimensions]
    draw(solved, picture)
    return solved


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--dimension", type=int, action="append")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--block", type=int, default=50)
    asked = parser.parse_args()
    for each in main(asked.dimension or (100, 10_000, 1_000_000), asked.steps, asked.block):
        print(
            f"d = {each.dimension:,}: error {each.errors[0]:.2g} -> "
            f"{each.errors[max(each.errors)]:.2g} in {asked.steps} steps of "
            f"{1e3 * each.seconds_per_step:.0f} ms, {each.parameters:,} weights"
        )
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GB")
