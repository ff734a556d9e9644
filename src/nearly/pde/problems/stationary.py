"""Stationary equations with known solutions."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from nearly.core.errors import InputError
from nearly.pde.equations import Jet, Manufactured, Point
from nearly.pde.problems.equation import Equation


class Helmholtz(Manufactured):
    """Lap u + k^2 u = q on [-1, 1]^2 with u = sin(a1 pi x) sin(a2 pi y), zero on the boundary.

    With k = 1 and (a1, a2) = (4, 1) or (10, 10), the equation of `physics-informed-gaussians`.
    """

    waves: tuple[int, int]
    wavenumber: float = 1.0
    lower: tuple[float, ...] = (-1.0, -1.0)
    upper: tuple[float, ...] = (1.0, 1.0)

    def operator(self, jet: Jet, x: Point) -> Float[Array, ""]:
        return jet.second.sum() + self.wavenumber**2 * jet.value

    def exact(self, x: Point) -> Float[Array, ""]:
        return jnp.prod(jnp.sin(math.pi * jnp.asarray(self.waves, x.dtype) * x))


class Poisson(Manufactured):
    """u'' = f on [0, 2 pi] with u = sin(frequency x): many waves of one height."""

    frequency: float = 100.0
    lower: tuple[float, ...] = (0.0,)
    upper: tuple[float, ...] = (2 * math.pi,)

    def operator(self, jet: Jet, x: Point) -> Float[Array, ""]:
        return jet.second.sum()

    def exact(self, x: Point) -> Float[Array, ""]:
        return jnp.sin(self.frequency * x[0])


class TwoPeaks(Manufactured):
    """Lap u = f on [-1, 1]^2 with u = exp(-s |x - c|^2) + exp(-s |x + c|^2), c = (1/2, 1/2)."""

    sharpness: float = 100.0
    lower: tuple[float, ...] = (-1.0, -1.0)
    upper: tuple[float, ...] = (1.0, 1.0)

    def operator(self, jet: Jet, x: Point) -> Float[Array, ""]:
        return jet.second.sum()

    def exact(self, x: Point) -> Float[Array, ""]:
        near, far = jnp.sum((x - 0.5) ** 2), jnp.sum((x + 0.5) ** 2)
        return jnp.exp(-self.sharpness * near) + jnp.exp(-self.sharpness * far)


class Cubic(Manufactured):
    """-Lap u + u^3 = f on [0, 1]^d, zero on the boundary: the minimum of int |grad u|^2/2 + u^4/4.

    u = amplitude prod_j sin(pi x_j). Its Lagrangian makes it one for `barron-nonlinear-pde`.
    """

    amplitude: float = 10.0
    lower: tuple[float, ...] = (0.0,)
    upper: tuple[float, ...] = (1.0,)

    def operator(self, jet: Jet, x: Point) -> Float[Array, ""]:
        return -jet.second.sum() + jet.value**3

    def exact(self, x: Point) -> Float[Array, ""]:
        return self.amplitude * jnp.prod(jnp.sin(math.pi * x))

    def lagrangian(self, x: Point, value: Array, gradient: Array) -> Float[Array, ""]:
        """L(x, u, grad u), whose integral minus that of f u the solution minimises."""
        return 0.5 * jnp.sum(gradient**2) + 0.25 * value**4


def helmholtz(
    waves: tuple[int, int] = (4, 1), wavenumber: float = 1.0, dtype: str = "float64"
) -> Equation:
    """The Helmholtz equation with `waves` half-waves a unit along the two coordinates."""
    equation = Helmholtz(waves=waves, wavenumber=wavenumber)
    return Equation(name=f"helmholtz-{waves[0]}-{waves[1]}", equation=equation, dtype=dtype)


def poisson(frequency: float = 100.0, dtype: str = "float64") -> Equation:
    """u'' = f with a sine of this frequency."""
    equation = Poisson(frequency=frequency)
    return Equation(name=f"poisson-sin{frequency:g}", equation=equation, dtype=dtype)


def two_peaks(sharpness: float = 100.0, dtype: str = "float64") -> Equation:
    """Poisson's equation with two narrow peaks; the literature's sharpness is 1000."""
    return Equation(name="two-peaks", equation=TwoPeaks(sharpness=sharpness), dtype=dtype)


def cubic(amplitude: float = 10.0, dimensions: int = 1, dtype: str = "float64") -> Equation:
    """A nonlinear, variational equation."""
    if dimensions < 1:
        raise InputError(f"dimensions={dimensions} must be at least 1")
    equation = Cubic(amplitude=amplitude, lower=(0.0,) * dimensions, upper=(1.0,) * dimensions)
    return Equation(name="cubic", equation=equation, dtype=dtype)
