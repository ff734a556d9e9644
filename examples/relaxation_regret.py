"""What it costs to learn a relaxation factor: the regret of SOR over a sequence of systems."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from nearly.linear import autotune
from nearly.linear.problems.sequence import SystemSequence, shifted_poisson_sequence

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "relaxation-regret.png"
LEARNERS = {
    "Tsallis-INF": autotune.tsallis_sor,
    "Tsallis-INF in five bins of the context": autotune.binned_sor,
    "ChebCB, told the context": autotune.chebyshev_sor,
}
RTOL = 1e-8


def iterations(problem: SystemSequence, learner: Any, keys: Any) -> np.ndarray:
    """Iterations of every system, shape (keys, systems)."""
    one = jax.vmap(lambda key: problem.apply((learner, jnp.asarray(RTOL)), key=key).iterations)
    return np.asarray(jax.jit(one)(keys), np.float64)


def best_fixed(problem: SystemSequence, keys: Any, arms: int) -> np.ndarray:
    """Iterations with the factor of least total cost, chosen in hindsight for each key."""

    @jax.jit
    def run(omega: Any, key: Any) -> Any:
        learner = problem.learner(autotune.sor(omega))
        return problem.apply((learner, jnp.asarray(RTOL)), key=key).iterations

    factors = autotune.relaxation_factors("float64")[:: autotune.ARMS // arms]
    costs = np.array([[run(omega, key) for key in keys] for omega in factors], np.float64)
    best = costs.sum(axis=2).argmin(axis=0)
    return costs[best, np.arange(len(keys))]


def main(
    length: int = 1000, seeds: int = 5, arms: int = autotune.ARMS, picture: Path = PICTURE
) -> dict[str, np.ndarray]:
    """Draws the regret against the best fixed factor; returns it, shape (seeds, systems)."""
    with jax.enable_x64(True):
        problem = shifted_poisson_sequence(length=length)
        keys = jax.random.split(jax.random.key(0), seeds)
        fixed = best_fixed(problem, keys, arms)
        regret = {
            name: np.cumsum(iterations(problem, problem.learner(make), keys) - fixed, axis=1)
            for name, make in LEARNERS.items()
        }
    draw(regret, picture)
    return regret


def draw(regret: dict[str, np.ndarray], picture: Path) -> None:
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for colour, (name, curves) in zip(("#1668b8", "#7b3fb5", "#c8500a"), regret.items()):
        systems = np.arange(1, curves.shape[1] + 1)
        axes.fill_between(systems, curves.min(0), curves.max(0), color=colour, alpha=0.15, lw=0)
        axes.plot(systems, np.median(curves, axis=0), color=colour, label=name)
    axes.axhline(0, color="#8e97a1", lw=1, label="the best fixed factor, known beforehand")
    axes.set_xlabel("systems solved")
    axes.set_ylabel("iterations more than with the best fixed factor")
    axes.legend(frameon=False)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=130)


if __name__ == "__main__":
    for name, curves in main().items():
        print(f"{name}: {np.median(curves[:, -1]):.0f} iterations of regret")
