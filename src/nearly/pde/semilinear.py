"""Semilinear equations on periodic boxes, by Fourier spectra and exponential time steps.

    u_t = L u + N(u),  L diagonal in Fourier space

An equation gives the symbol of L and a function for N (`discretise`); `integrate` marches it in
time. Everything is pure: `jax.vmap` maps over initial fields and over the equation's parameters,
`jax.grad` differentiates with respect to both.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact

from nearly.core.errors import InputError
from nearly.pde.checks import check_field, check_not_negative, check_positive
from nearly.pde.exponential import Scheme, etdrk4, repeat
from nearly.pde.spectral_grid import SpectralGrid, box

Scalar = float | Float[Array, ""]
Discrete = tuple[Inexact[Array, "*modes"], Callable[[Any], Any]]

QUADRATIC, CUBIC = 2 / 3, 1 / 2


class Semilinear(eqx.Module):
    """An equation on a periodic box whose linear part is diagonal in Fourier space.

    `dimensions`: the numbers of axes a field may have. `scheme`: how it is marched unless
    `integrate` is told otherwise.
    """

    dimensions: eqx.AbstractClassVar[tuple[int, ...]]
    scheme: eqx.AbstractClassVar[Scheme]

    @abc.abstractmethod
    def lengths(self, dimension: int) -> tuple[float, ...]:
        """The sides of the box."""

    @abc.abstractmethod
    def discretise(self, grid: SpectralGrid) -> Discrete:
        """The symbol of the linear part, and the rest as a function of the spectrum."""

    def check(self, initial: Float[Array, "*grid"], dt: Scalar, scheme: Scheme) -> None:
        """`InputError` where concrete values say that the run cannot be right."""

    def grid(self, shape: tuple[int, ...], dtype: Any) -> SpectralGrid:
        """The spectral grid of fields of this shape."""
        return SpectralGrid(shape, self.lengths(len(shape)), jnp.dtype(dtype))


def integrate(
    equation: Semilinear,
    initial: Float[Array, "*grid"],
    *,
    dt: Scalar,
    steps: int,
    every: int = 1,
    scheme: Scheme | None = None,
) -> Float[Array, " frames *grid"]:
    """March an equation in time with steps of one size.

    **Arguments:**

    - `equation`: a `Semilinear` equation; its numbers may be traced.
    - `initial`: the field at time 0, one sample; map over batches with `jax.vmap`.
    - `dt`, `steps`: the size of a step and how many; `every` of them lie between kept frames.
    - `scheme`: `etdrk4`, `crank_nicolson_heun`, or a function like them; default: the equation's.

    **Returns:** the fields at times every dt, 2 every dt, …, of shape `[steps // every, *grid]`;
    the initial field is not among them. A run that diverges has frames that are not finite from
    then on: `nearly.pde.metrics.divergence_time` says when.

    **Raises:** `InputError` if `every` does not divide `steps`, for an initial field of the wrong
    rank or dtype, and, where values can be looked at (not under `jit`), for one that is not finite
    or a step that the equation's `check` finds too large.

    **Cost:** of a step, as the scheme says in evaluations, each two to four fast Fourier
    transforms; O(frames · grid) memory. Reverse mode keeps every step: wrap the call in
    `jax.checkpoint` or differentiate forward over few parameters if that is too much.
    """
    check_field("the initial field", initial, equation.dimensions)
    check_positive("dt", dt)
    if steps < 1 or every < 1 or steps % every:
        raise InputError(
            f"every={every} must divide steps={steps}, both positive: change either, so that the "
            "last frame is the last step"
        )
    how = type(equation).scheme if scheme is None else scheme
    equation.check(initial, dt, how)
    dtype = initial.dtype
    traced = jax.tree.map(lambda leaf: _cast(leaf, dtype), equation)
    return _march(traced, initial, jnp.asarray(dt, dtype), steps, every, how)


@eqx.filter_jit
def _march(
    equation: Semilinear, initial: Array, dt: Array, steps: int, every: int, scheme: Scheme
) -> Array:
    grid = equation.grid(initial.shape, initial.dtype)
    symbol, nonlinear = equation.discretise(grid)
    between = repeat(scheme(symbol, nonlinear, dt), every)

    def frame(spectrum: Array, _: None) -> tuple[Array, Array]:
        spectrum = between(spectrum)
        return spectrum, grid.values(spectrum)

    _, frames = jax.lax.scan(frame, grid.transform(initial), None, length=steps // every)
    return frames


def _cast(leaf: Any, dtype: Any) -> Any:
    """Python numbers become inputs of the compiled program, so that it serves all their values."""
    number = isinstance(leaf, int | float) or eqx.is_inexact_array(leaf)
    return jnp.asarray(leaf, dtype) if number else leaf


def _convection(grid: SpectralGrid, factor: float) -> Callable[[Any], Any]:
    """Minus factor times the sum of the derivatives of u^2, free of aliasing."""
    kept = grid.below(QUADRATIC)
    symbol = functools.reduce(jnp.add, map(grid.derivative, range(len(grid.shape))))
    weight = jnp.where(kept, -factor * symbol, 0)

    def nonlinear(spectrum: Array) -> Array:
        u = grid.values(jnp.where(kept, spectrum, 0))
        return weight * grid.transform(u**2)

    return nonlinear


class Burgers(Semilinear):
    """u_t + sum_i (u^2 / 2)_{x_i} = viscosity Laplacian(u), in one to three dimensions.

    **Arguments:** `viscosity`, positive (with 0 a shock forms that no grid resolves); `length` of
    the box.
    """

    viscosity: Scalar
    length: float | tuple[float, ...] = eqx.field(default=1.0, static=True)

    dimensions: ClassVar[tuple[int, ...]] = (1, 2, 3)
    scheme: ClassVar[Scheme] = staticmethod(etdrk4)

    def __check_init__(self) -> None:
        check_not_negative("viscosity", self.viscosity)
        check_positive("length", self.length)

    def lengths(self, dimension: int) -> tuple[float, ...]:
        return box(self.length, dimension)

    def discretise(self, grid: SpectralGrid) -> Discrete:
        return -self.viscosity * grid.square(), _convection(grid, 0.5)


class KuramotoSivashinsky(Semilinear):
    """u_t + (u^2 / 2)_x + u_xx + viscosity u_xxxx = 0: chaotic on boxes longer than about 20.

    **Arguments:** `length` of the box; `viscosity`, the factor of the fourth derivative.

    The leading Lyapunov exponent is about 0.1 on long boxes: errors grow tenfold every 25 units of
    time, whatever the solver.
    """

    length: float = eqx.field(default=64.0, static=True)
    viscosity: Scalar = 1.0

    dimensions: ClassVar[tuple[int, ...]] = (1,)
    scheme: ClassVar[Scheme] = staticmethod(etdrk4)

    def __check_init__(self) -> None:
        check_positive("viscosity", self.viscosity)
        check_positive("length", self.length)

    def lengths(self, dimension: int) -> tuple[float, ...]:
        return box(self.length, dimension)

    def discretise(self, grid: SpectralGrid) -> Discrete:
        square = grid.square()
        return square - self.viscosity * square**2, _convection(grid, 0.5)


class KortewegDeVries(Semilinear):
    """u_t + 6 u u_x + u_xxx = 0: waves that keep their shape, c/2 sech^2(sqrt(c)/2 (x - c t)).

    **Arguments:** `length` of the box.
    """

    length: float = eqx.field(default=32.0, static=True)

    dimensions: ClassVar[tuple[int, ...]] = (1,)
    scheme: ClassVar[Scheme] = staticmethod(etdrk4)

    def __check_init__(self) -> None:
        check_positive("length", self.length)

    def lengths(self, dimension: int) -> tuple[float, ...]:
        return box(self.length, dimension)

    def discretise(self, grid: SpectralGrid) -> Discrete:
        return -(grid.derivative(0) ** 3), _convection(grid, 3.0)


class AllenCahn(Semilinear):
    """u_t = diffusivity Laplacian(u) + reaction (u - u^3): phases at -1 and 1 that separate.

    **Arguments:** `diffusivity`, positive: walls are sqrt(2 diffusivity / reaction) thick;
    `reaction`, its rate; `length` of the box, in one to three dimensions.
    """

    diffusivity: Scalar = 1e-3
    reaction: Scalar = 1.0
    length: float | tuple[float, ...] = eqx.field(default=1.0, static=True)

    dimensions: ClassVar[tuple[int, ...]] = (1, 2, 3)
    scheme: ClassVar[Scheme] = staticmethod(etdrk4)

    def __check_init__(self) -> None:
        check_not_negative("diffusivity", self.diffusivity)
        check_not_negative("reaction", self.reaction)
        check_positive("length", self.length)

    def lengths(self, dimension: int) -> tuple[float, ...]:
        return box(self.length, dimension)

    def discretise(self, grid: SpectralGrid) -> Discrete:
        kept = grid.below(CUBIC)

        def nonlinear(spectrum: Array) -> Array:
            u = grid.values(jnp.where(kept, spectrum, 0))
            return jnp.where(kept, -self.reaction * grid.transform(u**3), 0)

        return self.reaction - self.diffusivity * grid.square(), nonlinear
