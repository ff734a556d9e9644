"""Families without time: Darcy flow, Helmholtz in a random medium, Poisson, the antiderivative."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np

from nearly.core.errors import InputError
from nearly.datasets.random_fields import gaussian_random_field
from nearly.operators.data import Grid
from nearly.operators.family import Family
from nearly.pde.darcy import solve_darcy
from nearly.pde.elliptic import DiagonalInverse, solve_helmholtz, spectral_eigenvalues

SQUARE = Grid((1.0, 1.0), periodic=False)


class DarcyFamily(Family):
    """-div(a grad u) = 1 on the unit square, u = 0 around it; see `families.darcy`."""

    high: float = 12.0
    low: float = 3.0
    reference: int = 64
    name: ClassVar[str] = "darcy"
    resolutions: ClassVar[tuple[int, ...]] = (8, 16, 32, 64)

    def __check_init__(self) -> None:
        if not 0 < self.low < self.high:
            raise InputError(f"low={self.low} and high={self.high} must be positive, in this order")

    @property
    def grid(self) -> Grid:
        return SQUARE

    def draw(self, key: Any) -> Any:
        shape = (self.reference, self.reference)
        return gaussian_random_field(
            key, shape, alpha=2.0, tau=3.0, boundary="neumann", dtype=float
        )[None]

    def inputs(self, drawn: Any) -> Any:
        return jnp.where(drawn >= 0, self.high, self.low).astype(drawn.dtype)

    def restrict(self, field: Any, resolution: int) -> Any:
        """Means over the coarse cells; other sizes take the value at the coarse cells' centres."""
        points = field.shape[-1]
        if points % resolution == 0:
            block = points // resolution
            return field.reshape(-1, resolution, block, resolution, block).mean((2, 4))
        at = ((np.arange(resolution) + 0.5) * points / resolution).astype(int)
        return field[:, at][:, :, at]

    def solve(self, field: Any, parameters: Any) -> Any:
        del parameters
        return solve_darcy(field[0])[None]


class HelmholtzFamily(Family):
    """Laplacian(u) + k^2 (1 + q) u = f for a random medium q; see `families.helmholtz`."""

    wave_number: float = 8.0
    contrast: float = 0.1
    reference: int = 64
    name: ClassVar[str] = "helmholtz"
    resolutions: ClassVar[tuple[int, ...]] = (8, 12, 16, 24, 32)

    def __check_init__(self) -> None:
        if self.wave_number <= 0 or not 0 < self.contrast < 1:
            raise InputError(
                f"wave_number={self.wave_number} must be positive, contrast={self.contrast} "
                "between 0 and 1"
            )

    @property
    def grid(self) -> Grid:
        return SQUARE

    def draw(self, key: Any) -> Any:
        shape = (self.reference, self.reference)
        field = gaussian_random_field(
            key, shape, alpha=3.0, tau=8.0, boundary="dirichlet", dtype=float
        )
        return (self.contrast / _deviation(self.reference) * field)[None]

    def solve(self, field: Any, parameters: Any) -> Any:
        """GMRES on the equation multiplied by the inverse for the medium's mean, q = 0."""
        del parameters
        medium, dtype = field[0], field.dtype
        squared = self.wave_number**2
        eigenvalues = spectral_eigenvalues(medium.shape, (1.0, 1.0), dtype) - squared
        inverse = DiagonalInverse(eigenvalues)

        def scattered(u: Any) -> Any:
            return u - inverse(squared * medium * u)

        structure = jax.ShapeDtypeStruct(medium.shape, dtype)
        tolerance = 1e-6 if dtype == jnp.float32 else 1e-11
        found = lx.linear_solve(
            lx.FunctionLinearOperator(scattered, structure),
            -inverse(_antenna(medium.shape[-1], dtype)),
            lx.GMRES(tolerance, tolerance, restart=20),
            throw=False,
        )
        # A solve that did not converge must not look like one that did.
        converged = found.result == lx.RESULTS.successful
        return jnp.where(converged, found.value, jnp.nan)[None]


def _antenna(points: int, dtype: Any) -> Any:
    """A smooth source of width 0.08 off the middle, zero to many digits at the boundary."""
    x = SQUARE.axis(points)
    square = (x[:, None] - 0.35) ** 2 + (x[None] - 0.6) ** 2
    return jnp.asarray(100 * np.exp(-square / (2 * 0.08**2)), dtype)


@lru_cache(8)
def _deviation(points: int) -> float:
    """The root mean variance over the square of the medium's field before it is scaled."""
    k = math.pi * np.arange(1, points + 1)
    return math.sqrt(np.sum((k[:, None] ** 2 + k[None] ** 2 + 64.0) ** -3.0))


class PoissonFamily(Family):
    """-Laplacian(u) = f on the unit square, u = 0 around it; see `families.poisson`."""

    reference: int = 64
    name: ClassVar[str] = "poisson"
    resolutions: ClassVar[tuple[int, ...]] = (8, 16, 32)

    @property
    def grid(self) -> Grid:
        return SQUARE

    def draw(self, key: Any) -> Any:
        shape = (self.reference, self.reference)
        return gaussian_random_field(
            key, shape, alpha=2.5, tau=5.0, sigma=100.0, boundary="dirichlet", dtype=float
        )[None]

    def solve(self, field: Any, parameters: Any) -> Any:
        del parameters
        return -solve_helmholtz(field[0])[None]


class AntiderivativeFamily(Family):
    """s' = u on the unit interval, s(0) = 0; see `families.antiderivative`."""

    scale: float = 0.2
    reference: int = 256
    name: ClassVar[str] = "antiderivative"
    resolutions: ClassVar[tuple[int, ...]] = (8, 16, 32, 64)

    def __check_init__(self) -> None:
        if self.scale <= 0:
            raise InputError(f"scale={self.scale} must be positive, such as 0.2")

    @property
    def grid(self) -> Grid:
        return Grid((1.0,), periodic=False)

    def draw(self, key: Any) -> Any:
        root = jnp.asarray(_gaussian_process(self.reference, self.scale))
        return (root @ jax.random.normal(key, (root.shape[1],), root.dtype))[None]

    def solve(self, field: Any, parameters: Any) -> Any:
        """Sums of whole cells and half of the last one: second order."""
        del parameters
        return (jnp.cumsum(field, -1) - field / 2) / field.shape[-1]


@lru_cache(8)
def _gaussian_process(points: int, scale: float) -> np.ndarray:
    """[points, rank]: a root of the covariance exp(-d^2 / (2 scale^2)) at cell centres."""
    x = Grid((1.0,), periodic=False).axis(points)
    values, vectors = np.linalg.eigh(np.exp(-((x[:, None] - x) ** 2) / (2 * scale**2)))
    kept = values > 1e-13 * values[-1]
    return vectors[:, kept] * np.sqrt(values[kept])
