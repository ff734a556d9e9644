"""What a surrogate has to beat: the same solver on a coarser grid, for Burgers' equation."""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import nearly
from nearly.datasets import gaussian_random_field
from nearly.pde import Burgers, Semilinear, crank_nicolson_heun, etdrk4, integrate

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "coarse-solvers.png"
VISCOSITY, DURATION = 0.01, 0.5
STAGES = {etdrk4: 4, crank_nicolson_heun: 2}


class Differences(Burgers):
    """Burgers' equation by second differences: the symbol of the stencil, and fluxes by shifts."""

    scheme: ClassVar[Any] = staticmethod(crank_nicolson_heun)

    def discretise(self, grid: Any) -> Any:
        (step,), (k,) = grid.steps, grid.integers()
        symbol = -self.viscosity * (2 / step * jnp.sin(math.pi * k / grid.shape[0])) ** 2

        def nonlinear(spectrum: Any) -> Any:
            flux = grid.values(spectrum) ** 2 / 2
            return -grid.transform((jnp.roll(flux, -1) - jnp.roll(flux, 1)) / (2 * step))

        return symbol, nonlinear


class Coarse(eqx.Module):
    """A solver on a grid of its own, with the initial fields there."""

    starts: jax.Array
    equation: Semilinear
    scheme: Any = eqx.field(static=True)
    steps: int = eqx.field(static=True)

    def __call__(self) -> jax.Array:
        n, dt = self.steps, DURATION / self.steps

        def one(start: jax.Array) -> jax.Array:
            return integrate(self.equation, start, dt=dt, steps=n, every=n, scheme=self.scheme)[-1]

        return jax.vmap(one)(self.starts)


class CoarseSolvers(nearly.Problem):
    """u(0.5) of Burgers' equation from Gaussian initial fields; the dial is the number of points.

    A method is an equation, as discretised, and a time scheme; steps grow with the points.
    """

    batch: int = 16
    finest: int = 512
    dtype: str = "float64"
    name: ClassVar[str] = "coarse-solvers"
    error_name: ClassVar[str] = "relative L2"
    work_name: ClassVar[str] = "point updates"
    protocol: ClassVar[str] = "own"

    def dials(self, method: Any) -> Sequence[int]:
        return [n for n in (32, 64, 128, 256, 512) if n <= self.finest]

    def build(self, method: Any, dial: Any, *, key: Any) -> Coarse:
        equation, scheme = method

        def draw(key: jax.Array) -> jax.Array:  # the same functions on every grid
            return gaussian_random_field(
                key, (int(dial),), alpha=4, tau=5, sigma=600, dtype=jnp.float64
            )

        starts = jax.vmap(draw)(jax.random.split(jax.random.key(0), self.batch))
        return Coarse(starts, equation, scheme, 2 * int(dial))

    def apply(self, standin: Coarse, *, key: Any) -> jax.Array:
        return standin()

    def random(self, method: Any) -> bool:
        return False

    def work(self, standin: Coarse) -> Mapping[str, float]:
        points = standin.starts.shape[1]
        return {self.work_name: STAGES[standin.scheme] * points * standin.steps}

    def errors(self, value: Any) -> Mapping[str, float]:
        truth = reference(self.batch, 2 * self.finest)
        fine = resampled(value, truth.shape[1])
        errors = np.linalg.norm(fine - truth, axis=1) / np.linalg.norm(truth, axis=1)
        return {"relative L2": float(errors.mean())}


@lru_cache(1)
def reference(batch: int, points: int) -> np.ndarray:
    """The trusted solver on a grid finer than any that is judged."""
    with jax.enable_x64(True):
        problem = CoarseSolvers(batch=batch)
        standin = problem.build((Burgers(VISCOSITY), etdrk4), points, key=None)
        return np.asarray(jax.jit(standin.__call__)())


def resampled(values: np.ndarray, points: int) -> np.ndarray:
    """The trigonometric polynomial through the values, at more points."""
    n = values.shape[1]
    spectrum = np.fft.rfft(values, axis=1)
    spectrum[:, n // 2] /= 2  # on a finer grid the highest wave number has a partner
    return np.fft.irfft(spectrum, points, axis=1) * (points / n)


METHODS = {
    "spectral, ETDRK4": (Burgers(VISCOSITY), etdrk4),
    "spectral, Crank-Nicolson and Heun": (Burgers(VISCOSITY), crank_nicolson_heun),
    "second differences, Crank-Nicolson and Heun": (Differences(VISCOSITY), crank_nicolson_heun),
}


def main(problem: nearly.Problem | None = None, picture: Path = PICTURE) -> nearly.Frontier:
    frontier = nearly.compare(problem or CoarseSolvers(), METHODS)
    frontier.plot(picture)
    return frontier


if __name__ == "__main__":
    frontier = main()
    for tolerance in (1e-2, 1e-4):
        run = frontier.within(tolerance)
        print(f"within {tolerance:g}: {run.method} on {run.dial} points")
