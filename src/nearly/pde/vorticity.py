"""Incompressible flow on a periodic square, by vorticity."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float

from nearly.core.errors import InputError
from nearly.pde.checks import check_not_negative, check_positive, is_concrete
from nearly.pde.exponential import Scheme, crank_nicolson_heun, etdrk4
from nearly.pde.semilinear import QUADRATIC, Discrete, Scalar, Semilinear
from nearly.pde.semilinear import integrate as integrate
from nearly.pde.spectral_grid import SpectralGrid, box

Forcing = Callable[[Float[Array, "*grid"], Float[Array, "*grid"]], Float[Array, "*grid"]]

# Cells crossed in a step up to which the schemes do not blow up. The kept wave numbers reach 2/3 of
# the grid's, so a cell a step turns the fastest wave by 2 pi / 3: the fourth order is stable up to
# 2.8 on the imaginary axis, Heun's method nowhere, but it grows by no more than the viscosity of a
# resolved flow takes away up to about 1.
COURANT_LIMITS: dict[Scheme, float] = {etdrk4: 1.3, crank_nicolson_heun: 0.5}


def diagonal_forcing(x: Float[Array, "*grid"], y: Float[Array, "*grid"]) -> Float[Array, "*grid"]:
    """0.1 (sin 2 pi (x + y) + cos 2 pi (x + y)), the usual one of solution operators (`fno`)."""
    wave = 2 * math.pi * (x + y)
    return 0.1 * (jnp.sin(wave) + jnp.cos(wave))


class KolmogorovForcing(eqx.Module):
    """The curl of the force amplitude (sin(waves 2 pi y / length), 0) of Kolmogorov flow.

    **Arguments:** `waves`, how many over the box; `amplitude` of the force; `length` of the box.
    """

    waves: int = eqx.field(default=4, static=True)
    amplitude: Scalar = 1.0
    length: float = eqx.field(default=2 * math.pi, static=True)

    def __call__(self, x: Float[Array, "*grid"], y: Float[Array, "*grid"]) -> Float[Array, "*grid"]:
        k = 2 * math.pi * self.waves / self.length
        return -self.amplitude * k * jnp.cos(k * y)


class NavierStokes2D(Semilinear):
    """w_t + u . grad w = viscosity Laplacian(w) - drag w + forcing, div u = 0, w = curl u.

    **Arguments:**

    - `viscosity`: positive; 1e-3 to 1e-5 are usual on the unit square.
    - `forcing`: a function of the coordinates x and y, each `[n, m]`, or None.
    - `drag`: the rate at which all scales are slowed; keeps forced flows from growing.
    - `length`: of the square, or of its two sides.

    Fields are vorticities `[n, m]`; the velocity is u = (psi_y, -psi_x) with -Laplacian(psi) = w
    (`velocity`). Products are free of aliasing by the 2/3 rule. The default scheme is
    Crank-Nicolson for viscosity with Heun's method for the rest, of order 2: the published data of
    `fno` take Euler's for the rest. `integrate(..., scheme=etdrk4)` has order 4 at twice the price
    a step.
    """

    viscosity: Scalar
    forcing: Forcing | None = diagonal_forcing
    drag: Scalar = 0.0
    length: float | tuple[float, float] = eqx.field(default=1.0, static=True)

    dimensions: ClassVar[tuple[int, ...]] = (2,)
    scheme: ClassVar[Scheme] = staticmethod(crank_nicolson_heun)

    def __check_init__(self) -> None:
        check_not_negative("viscosity", self.viscosity)
        check_not_negative("drag", self.drag)
        check_positive("length", self.length)

    def lengths(self, dimension: int) -> tuple[float, ...]:
        return box(self.length, dimension)

    def discretise(self, grid: SpectralGrid) -> Discrete:
        kept = grid.below(QUADRATIC)
        along_x, along_y = grid.derivative(0), grid.derivative(1)
        to_stream = _inverse_laplacian(grid)
        force = jnp.zeros((), along_x.dtype)
        if self.forcing is not None:
            force = grid.transform(self.forcing(*grid.points()))

        def nonlinear(vorticity: Array) -> Array:
            w = jnp.where(kept, vorticity, 0)
            stream = to_stream * w
            u, v = grid.values(along_y * stream), grid.values(-along_x * stream)
            advected = u * grid.values(along_x * w) + v * grid.values(along_y * w)
            return force - jnp.where(kept, grid.transform(advected), 0)

        return -self.viscosity * grid.square() - self.drag, nonlinear

    def velocity(self, vorticity: Float[Array, "n m"]) -> Float[Array, "2 n m"]:
        """The two components of the velocity of zero mean."""
        grid = self.grid(vorticity.shape, vorticity.dtype)
        stream = _inverse_laplacian(grid) * grid.transform(vorticity)
        return jnp.stack(
            [
                grid.values(grid.derivative(1) * stream),
                grid.values(-grid.derivative(0) * stream),
            ]
        )

    def courant_number(self, vorticity: Float[Array, "n m"], dt: Scalar) -> Float[Array, ""]:
        """Cells crossed in a step by the fastest point, summed over the two directions."""
        u, v = self.velocity(vorticity)
        grid = self.grid(vorticity.shape, vorticity.dtype)
        return dt * jnp.max(jnp.abs(u) / grid.steps[0] + jnp.abs(v) / grid.steps[1])

    def check(self, initial: Float[Array, "*grid"], dt: Scalar, scheme: Scheme) -> None:
        limit = COURANT_LIMITS.get(scheme)
        if limit is None or not (is_concrete(initial) and is_concrete(dt)):
            return
        crossed = self.courant_number(initial, dt)
        if is_concrete(crossed) and crossed > limit:
            raise InputError(
                f"dt={float(dt):g} is too large: the initial flow crosses {float(crossed):.3g} "
                f"cells a step, {scheme_name(scheme)} bears {limit}: use dt <= "
                f"{_round_down(float(dt) * limit / float(crossed))}"
            )


def scheme_name(scheme: Scheme) -> str:
    """A scheme's name in messages."""
    return getattr(scheme, "__name__", str(scheme))


def _inverse_laplacian(grid: SpectralGrid) -> Complex[Array, "*modes"] | Any:
    """1 / |k|^2, zero for the mean."""
    square = grid.square()
    return jnp.where(square > 0, 1 / jnp.where(square > 0, square, 1), 0)


def _round_down(number: float) -> str:
    power = 10.0 ** (math.floor(math.log10(number)) - 1)
    return f"{math.floor(number / power) * power:g}"
