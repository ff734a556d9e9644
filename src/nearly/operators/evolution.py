"""Families in time: Burgers, Kuramoto-Sivashinsky, Korteweg-de Vries, Allen-Cahn, Navier-Stokes."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nearly.core.errors import InputError
from nearly.datasets.random_fields import gaussian_random_field
from nearly.operators.data import Grid
from nearly.operators.family import Evolution
from nearly.pde import semilinear
from nearly.pde.exponential import etdrk4
from nearly.pde.propagators import heat
from nearly.pde.vorticity import NavierStokes2D

Range = float | tuple[float, float]


def check_range(name: str, value: Range) -> None:
    """Raise `InputError` unless a number, or both ends of a range in order, are positive."""
    low, high = value if isinstance(value, tuple) else (value, value)
    if not 0 < low <= high:
        raise InputError(f"{name}={value} must be positive: a number, or a range (low, high)")


def draw_range(value: Range, key: Any) -> Float[Array, " parameters"]:
    """One number whose logarithm is uniform in a range; none if there is no range."""
    if not isinstance(value, tuple):
        return jnp.zeros(0)
    low, high = math.log(value[0]), math.log(value[1])
    return jnp.exp(jax.random.uniform(key, (1,), minval=low, maxval=high))


def of_range(value: Range, parameters: Any) -> Any:
    """The number that is in force: the sample's own parameter where it varies."""
    return parameters[0] if isinstance(value, tuple) else value


class BurgersFamily(Evolution):
    """u_t + (u^2/2)_x = viscosity u_xx on the periodic unit interval; see `families.burgers`."""

    viscosity: Range = 0.1
    dt: float = 0.1
    frames: int = 10
    reference: int = 512
    courant: float = 1.5
    name: ClassVar[str] = "burgers"
    resolutions: ClassVar[tuple[int, ...]] = (8, 16, 32, 64)

    def __check_init__(self) -> None:
        check_range("viscosity", self.viscosity)

    @property
    def grid(self) -> Grid:
        return Grid((1.0,), periodic=True)

    def parameters(self, key: Any) -> Any:
        return draw_range(self.viscosity, key)

    def draw(self, key: Any) -> Any:
        shape = (self.reference,)
        field = gaussian_random_field(key, shape, alpha=2.0, tau=5.0, sigma=25.0, dtype=float)
        return (field - field.mean())[None]

    def evolve(self, state: Any, parameters: Any, frames: int) -> Any:
        equation = semilinear.Burgers(of_range(self.viscosity, parameters))
        # Initial fields of this measure seldom exceed 1 in size: that is the speed assumed.
        inside = max(2, math.ceil(self.dt * state.shape[-1] / self.courant))
        later = semilinear.integrate(
            equation, state[0], dt=self.dt / inside, steps=frames * inside, every=inside
        )
        return later[:, None]


class KuramotoSivashinskyFamily(Evolution):
    """u_t + (u^2/2)_x + u_xx + u_xxxx = 0, chaotic; see `families.kuramoto_sivashinsky`."""

    length: float = 32.0
    dt: float = 0.8
    frames: int = 1
    reference: int = 128
    warm_up: float = 60.0
    courant: float = 0.8
    resolutions: tuple[int, ...] = (24, 32, 40, 48)
    name: ClassVar[str] = "kuramoto-sivashinsky"

    def __check_init__(self) -> None:
        if self.length <= 0 or self.dt <= 0:
            raise InputError(f"length={self.length} and dt={self.dt} must be positive")

    @property
    def grid(self) -> Grid:
        return Grid((self.length,), periodic=True)

    def draw(self, key: Any) -> Any:
        shape = (self.reference,)
        field = gaussian_random_field(key, shape, alpha=3.0, tau=20.0, sigma=4e3, dtype=float)
        # The mean is conserved and moves the whole pattern: without it all samples are alike.
        return (field - field.mean())[None]

    def start(self, drawn: Any, parameters: Any) -> Any:
        return self._march(drawn, self.warm_up, 1)[-1]

    def evolve(self, state: Any, parameters: Any, frames: int) -> Any:
        return self._march(state, self.dt, frames)

    def _march(self, state: Any, time: float, frames: int) -> Any:
        inside = math.ceil(time * state.shape[-1] * 2 / (self.length * self.courant))
        equation = semilinear.KuramotoSivashinsky(self.length)
        later = semilinear.integrate(
            equation, state[0], dt=time / inside, steps=frames * inside, every=inside
        )
        return later[:, None]


class KortewegDeVriesFamily(Evolution):
    """u_t + 6 u u_x + u_xxx = 0 from smooth random waves; see `families.korteweg_de_vries`."""

    length: float = 32.0
    dt: float = 0.5
    frames: int = 4
    reference: int = 256
    courant: float = 0.05
    name: ClassVar[str] = "korteweg-de-vries"
    resolutions: ClassVar[tuple[int, ...]] = (24, 32, 48, 64)

    @property
    def grid(self) -> Grid:
        return Grid((self.length,), periodic=True)

    def draw(self, key: Any) -> Any:
        shape = (self.reference,)
        field = gaussian_random_field(key, shape, alpha=4.0, tau=25.0, sigma=1.2e5, dtype=float)
        return field[None]

    def evolve(self, state: Any, parameters: Any, frames: int) -> Any:
        inside = math.ceil(self.dt * state.shape[-1] / (self.length * self.courant))
        equation = semilinear.KortewegDeVries(self.length)
        later = semilinear.integrate(
            equation, state[0], dt=self.dt / inside, steps=frames * inside, every=inside
        )
        return later[:, None]


class HeatFamily(Evolution):
    """u_t = diffusivity Laplacian(u) on the periodic unit box, exactly; see `families.heat`."""

    diffusivity: Range = 0.01
    dims: int = 1
    dt: float = 0.1
    frames: int = 5
    reference: int = 128
    name: ClassVar[str] = "heat"
    resolutions: ClassVar[tuple[int, ...]] = (8, 16, 32)

    def __check_init__(self) -> None:
        check_range("diffusivity", self.diffusivity)

    @property
    def grid(self) -> Grid:
        return Grid((1.0,) * self.dims, periodic=True)

    def parameters(self, key: Any) -> Any:
        return draw_range(self.diffusivity, key)

    def draw(self, key: Any) -> Any:
        shape = (self.reference,) * self.dims
        return gaussian_random_field(key, shape, alpha=2.5, tau=5.0, sigma=50.0, dtype=float)[None]

    def evolve(self, state: Any, parameters: Any, frames: int) -> Any:
        diffusivity = of_range(self.diffusivity, parameters)
        times = self.dt * jnp.arange(1, frames + 1, dtype=state.dtype)
        return jax.vmap(lambda t: heat(state[0], t, diffusivity=diffusivity))(times)[:, None]


class NavierStokesFamily(Evolution):
    """Vorticity of a forced flow on the periodic unit square; see `families.navier_stokes_2d`."""

    viscosity: Range = 1e-3
    dt: float = 1.0
    frames: int = 5
    reference: int = 64
    warm_up: float = 0.0
    courant: float = 1.2  # cells a step at a speed of 1, about the fastest such flows reach
    name: ClassVar[str] = "navier-stokes-2d"
    resolutions: ClassVar[tuple[int, ...]] = (8, 12, 16, 24, 32)

    def __check_init__(self) -> None:
        check_range("viscosity", self.viscosity)

    @property
    def grid(self) -> Grid:
        return Grid((1.0, 1.0), periodic=True)

    def parameters(self, key: Any) -> Any:
        return draw_range(self.viscosity, key)

    def draw(self, key: Any) -> Any:
        shape = (self.reference, self.reference)
        sigma = math.sqrt(2) * 7**1.5
        return gaussian_random_field(key, shape, alpha=2.5, tau=7.0, sigma=sigma, dtype=float)[None]

    def start(self, drawn: Any, parameters: Any) -> Any:
        if not self.warm_up:
            return drawn
        return self._march(drawn, parameters, self.warm_up, 1)[-1]

    def evolve(self, state: Any, parameters: Any, frames: int) -> Any:
        return self._march(state, parameters, self.dt, frames)

    def _march(self, state: Any, parameters: Any, time: float, frames: int) -> Any:
        inside = math.ceil(time * state.shape[-1] / self.courant)
        equation = NavierStokes2D(of_range(self.viscosity, parameters))
        later = semilinear.integrate(
            equation, state[0], dt=time / inside, steps=frames * inside, every=inside, scheme=etdrk4
        )
        return later[:, None]
