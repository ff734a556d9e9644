"""Catalogued instances of `LinearSystem`: grids whose size, key and precision can be chosen."""

from __future__ import annotations

from collections.abc import Callable

import jax
import lineax as lx

from nearly.linear import grids
from nearly.linear.problems.system import LinearSystem


def _instance(
    name: str, kind: str, dtype: str, make: Callable[[str], lx.AbstractLinearOperator]
) -> LinearSystem:
    with jax.enable_x64(dtype == "float64"):
        return LinearSystem(operator=make(dtype), kind=kind, name=name, dtype=dtype)


def poisson2d(size: int = 64, kind: str = "random", dtype: str = "float64") -> LinearSystem:
    """The five-point Laplacian on a square."""
    return _instance("poisson2d", kind, dtype, lambda d: grids.poisson2d(size, d))


def poisson3d(size: int = 16, kind: str = "random", dtype: str = "float64") -> LinearSystem:
    """The seven-point Laplacian on a cube."""
    return _instance("poisson3d", kind, dtype, lambda d: grids.poisson3d(size, d))


def poisson2d_obstacles(
    size: int = 64,
    obstacles: int = 4,
    seed: int = 0,
    kind: str = "random",
    dtype: str = "float64",
) -> LinearSystem:
    """The five-point Laplacian on a square with round holes, drawn from the seed."""

    def make(dtype: str) -> lx.AbstractLinearOperator:
        key = jax.random.key(seed)
        return grids.poisson_with_obstacles((size, size), key, dtype, obstacles=obstacles)

    return _instance("poisson2d-obstacles", kind, dtype, make)


def anisotropic2d(
    size: int = 64, ratio: float = 0.01, kind: str = "random", dtype: str = "float64"
) -> LinearSystem:
    """The Laplacian on a square, `ratio` times as strong along the second axis."""
    return _instance("anisotropic2d", kind, dtype, lambda d: grids.anisotropic2d(size, ratio, d))


def convection_diffusion2d(
    size: int = 64,
    peclet: float = 0.5,
    angle: float = 0.7,
    kind: str = "random",
    dtype: str = "float64",
) -> LinearSystem:
    """Diffusion in a constant wind on a square; not symmetric."""

    def make(dtype: str) -> lx.AbstractLinearOperator:
        return grids.convection_diffusion2d(size, peclet, angle, dtype)

    return _instance("convection-diffusion2d", kind, dtype, make)
