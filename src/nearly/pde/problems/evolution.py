"""Initial value problems on periodic boxes, with closed solutions or converged references."""

from __future__ import annotations

import math
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nearly.pde import semilinear
from nearly.pde.equations import InitialValueProblem, Jet, Point
from nearly.pde.problems.equation import Equation
from nearly.pde.semilinear import Semilinear

FULL_TURN = 2 * math.pi


class Heat(InitialValueProblem):
    """u_t = D Lap u on [0, 2 pi]^2 from u = sin x exp(cos y); its Fourier modes decay exactly."""

    diffusivity: float = 0.1
    duration: float = 1.0
    lengths: tuple[float, ...] = (FULL_TURN, FULL_TURN)

    def right_hand_side(self, jet: Jet, x: Point) -> Float[Array, ""]:
        return self.diffusivity * jet.second.sum()

    def initial(self, x: Point) -> Float[Array, ""]:
        return jnp.sin(x[0]) * jnp.exp(jnp.cos(x[1]))

    def truth(self, points: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
        """exp(cos y) = sum_k I_k(1) cos(k y) with Bessel's I_k; mode (1, k) decays as 1 + k^2."""
        from scipy.special import iv

        x, y = np.asarray(points, np.float64).T
        total = np.zeros_like(x)
        for k in range(24):  # I_24(1) is 1e-31
            decay = np.exp(-self.diffusivity * (1 + k * k) * self.duration)
            total += (1 if k == 0 else 2) * iv(k, 1.0) * decay * np.cos(k * y)
        return np.sin(x) * total

    def semilinear(self) -> Semilinear:
        return semilinear.AllenCahn(self.diffusivity, 0.0, self.lengths)


class ReferencedEvolution(InitialValueProblem):
    """An evolution whose truth is a spectral solution on `REFERENCE` points a coordinate."""

    def truth(self, points: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
        return _interpolated(_reference(self, REFERENCE), points)


REFERENCE = 128


@lru_cache(32)
def _reference(equation: InitialValueProblem, size: int) -> np.ndarray:
    """Fourier collocation in space and Dormand-Prince 8 in time at a tolerance of 1e-12."""
    from nearly.pde.peers import fourier_lines

    with jax.enable_x64(True):
        return np.asarray(fourier_lines(equation, size, rtol=1e-12).values)


def _interpolated(values: np.ndarray, points: np.ndarray) -> np.ndarray:
    from nearly.pde.grid_functions import Fourier, GridFunction

    with jax.enable_x64(True):
        axes = tuple(Fourier(n, FULL_TURN) for n in values.shape)
        function = GridFunction(jnp.asarray(values), axes)
        return np.asarray(function(jnp.asarray(points, jnp.float64)))


class Burgers(ReferencedEvolution):
    """u_t + u u_x = nu u_xx on [0, 2 pi] from u = sin x + cos(2 x) / 2."""

    viscosity: float = 0.1
    duration: float = 1.0
    lengths: tuple[float, ...] = (FULL_TURN,)

    def right_hand_side(self, jet: Jet, x: Point) -> Float[Array, ""]:
        return self.viscosity * jet.second.sum() - jet.value * jet.gradient.sum()

    def initial(self, x: Point) -> Float[Array, ""]:
        return jnp.sin(x[0]) + 0.5 * jnp.cos(2 * x[0])

    def semilinear(self) -> Semilinear:
        return semilinear.Burgers(self.viscosity, self.lengths)


class AllenCahn(ReferencedEvolution):
    """u_t = D u_xx + u - u^3 on [0, 2 pi] from u = sin(x) / 2 + cos(2 x) / 4."""

    diffusivity: float = 0.1
    duration: float = 1.0
    lengths: tuple[float, ...] = (FULL_TURN,)

    def right_hand_side(self, jet: Jet, x: Point) -> Float[Array, ""]:
        return self.diffusivity * jet.second.sum() + jet.value - jet.value**3

    def initial(self, x: Point) -> Float[Array, ""]:
        return 0.5 * jnp.sin(x[0]) + 0.25 * jnp.cos(2 * x[0])

    def semilinear(self) -> Semilinear:
        return semilinear.AllenCahn(self.diffusivity, 1.0, self.lengths)


def heat2d(diffusivity: float = 0.1, duration: float = 1.0, dtype: str = "float64") -> Equation:
    """The heat equation in the plane."""
    equation = Heat(diffusivity=diffusivity, duration=duration)
    return Equation(name="heat2d", equation=equation, dtype=dtype)


def burgers(viscosity: float = 0.1, duration: float = 1.0, dtype: str = "float64") -> Equation:
    """Burgers' equation, before its shock is more than steep."""
    equation = Burgers(viscosity=viscosity, duration=duration)
    return Equation(name="burgers-evolution", equation=equation, dtype=dtype)


def allen_cahn(diffusivity: float = 0.1, duration: float = 1.0, dtype: str = "float64") -> Equation:
    """The Allen-Cahn equation."""
    equation = AllenCahn(diffusivity=diffusivity, duration=duration)
    return Equation(name="allen-cahn-evolution", equation=equation, dtype=dtype)
