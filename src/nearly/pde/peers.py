"""Classical solvers of one equation: what every network is shown beside.

Stationary equations are collocated on a basis and solved by Newton's method; evolutions are
Fourier-collocated in space and integrated by diffrax.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from jaxtyping import Array, Float
from scipy.sparse.linalg import splu

from nearly.core.errors import InputError
from nearly.core.tally import counted
from nearly.pde.equations import (
    UNIT,
    BoundaryValueProblem,
    InitialValueProblem,
    Jet,
    working_dtype,
)
from nearly.pde.grid_functions import Axis, Chebyshev, Fourier, GridFunction, Uniform
from nearly.pde.semilinear import integrate

NEWTON_STEPS = 30


@dataclass(frozen=True)
class Basis:
    """Linear maps from coefficients to a function's jet at its collocation points.

    **Fields:** `points`: `[m, d]`. `value`, `gradient` and `second` (one for each coordinate):
    matrices `[m, coefficients]`, SciPy sparse or NumPy. `at_boundary`: which points carry data.
    """

    points: np.ndarray
    value: Any
    gradient: Sequence[Any]
    second: Sequence[Any]
    at_boundary: np.ndarray


def newton(equation: BoundaryValueProblem, basis: Basis) -> Float[np.ndarray, " coefficients"]:
    """Coefficients whose function meets the equation inside and the data on the boundary.

    Square systems by a (sparse) LU, others in the least-squares sense. A linear equation takes one
    step. Raises `InputError` if a nonlinear one takes more than `NEWTON_STEPS`.

    **Cost:** one evaluation of the residual and one factorisation a step.
    """
    inner = np.flatnonzero(~basis.at_boundary)
    edge = np.flatnonzero(basis.at_boundary)
    points = jnp.asarray(basis.points[inner])
    data = np.asarray(jax.vmap(equation.boundary)(jnp.asarray(basis.points[edge])))
    maps = [m[inner] for m in (basis.value, *basis.gradient, *basis.second)]
    coefficients = np.zeros(basis.value.shape[1])
    scale, before = 0.0, np.inf
    for _ in range(NEWTON_STEPS):
        columns = np.stack([m @ coefficients for m in maps])
        residual, slopes = map(np.asarray, _linearised(equation, points, jnp.asarray(columns)))
        tangent = sum(_scaled(m, s) for m, s in zip(maps, slopes, strict=True))
        rows = _stacked(tangent, basis.value[edge])
        missing = np.concatenate([residual, basis.value[edge] @ coefficients - data])
        step = _solve(rows, missing)
        coefficients = coefficients - step
        change = float(np.max(np.abs(basis.value @ step)))
        scale = max(scale, float(np.max(np.abs(basis.value @ coefficients))))
        # Rounding ends the decrease somewhere above eps for ill-conditioned bases.
        if change <= 1e-13 * scale or (change <= 1e-7 * scale and change >= before / 2):
            return coefficients
        before = change
    raise InputError(
        f"Newton's method moved by {before:.1e} in step {NEWTON_STEPS}: take more points"
    )


@eqx.filter_jit
def _linearised(
    equation: BoundaryValueProblem, points: Float[Array, "m d"], columns: Float[Array, "e m"]
) -> tuple[Float[Array, " m"], Float[Array, "e m"]]:
    """Residuals at points, and their derivatives by the 1 + 2 d entries of the jets there."""
    dimension = equation.dimension
    oracle = counted(equation.residual, UNIT)

    def at(x: Array, entries: Array) -> Any:
        jet = Jet(entries[0], entries[1 : 1 + dimension], entries[1 + dimension :])
        return oracle(jet, x)

    return jax.vmap(jax.value_and_grad(at, argnums=1), (0, 1), (0, 1))(points, columns)


def _scaled(matrix: Any, rows: np.ndarray) -> Any:
    return sp.diags_array(rows) @ matrix if sp.issparse(matrix) else rows[:, None] * matrix


def _stacked(upper: Any, lower: Any) -> Any:
    return sp.vstack([upper, lower]) if sp.issparse(upper) else np.vstack([upper, lower])


def _solve(rows: Any, values: np.ndarray) -> np.ndarray:
    if sp.issparse(rows):
        return splu(sp.csc_array(rows)).solve(values)
    if rows.shape[0] == rows.shape[1]:
        return np.linalg.solve(rows, values)
    return np.linalg.lstsq(rows, values, rcond=None)[0]


# ---- on grids


def tensor_basis(axes: Sequence[Axis], *, sparse: bool) -> Basis:
    """Values at the nodes of a tensor grid, and what differences or polynomials say of them."""

    def product(orders: Sequence[int]) -> Any:
        matrices = [
            axis.derivative(order) if order else np.eye(axis.count)
            for axis, order in zip(axes, orders, strict=True)
        ]
        if not sparse:
            return reduce(np.kron, matrices)
        return sp.csr_array(reduce(sp.kron, [sp.csr_array(m) for m in matrices]))

    def along(coordinate: int, order: int) -> Any:
        return product([order if a == coordinate else 0 for a in range(len(axes))])

    mesh = np.meshgrid(*[axis.nodes() for axis in axes], indexing="ij")
    ends = [np.isin(np.arange(axis.count), (0, axis.count - 1)) for axis in axes]
    outside = np.meshgrid(*ends, indexing="ij")
    return Basis(
        np.stack([m.ravel() for m in mesh], axis=1),
        product([0] * len(axes)),
        [along(a, 1) for a in range(len(axes))],
        [along(a, 2) for a in range(len(axes))],
        reduce(np.logical_or, outside).ravel(),
    )


class FiniteDifferences(eqx.Module):
    """Second-order differences on a uniform grid, sparse LU. The dial: nodes a coordinate."""

    dials: tuple[int, ...] = eqx.field(default=(33, 65, 129, 257), static=True)
    random: bool = eqx.field(default=False, static=True)

    def __call__(self, equation: BoundaryValueProblem, dial: int, *, key: Any) -> GridFunction:
        ends = zip(equation.lower, equation.upper, strict=True)
        axes = tuple(Uniform(int(dial), a, b) for a, b in ends)
        return _on_grid(equation, axes, sparse=True)


class ChebyshevCollocation(eqx.Module):
    """Polynomials in each coordinate, collocated at Chebyshev points. The dial: nodes of each.

    O(dial^(3 d)) in time, O(dial^(2 d)) in memory: dense.
    """

    dials: tuple[int, ...] = eqx.field(default=(9, 17, 25, 33), static=True)
    random: bool = eqx.field(default=False, static=True)

    def __call__(self, equation: BoundaryValueProblem, dial: int, *, key: Any) -> GridFunction:
        ends = zip(equation.lower, equation.upper, strict=True)
        axes = tuple(Chebyshev(int(dial), a, b) for a, b in ends)
        return _on_grid(equation, axes, sparse=False)


def _on_grid(
    equation: BoundaryValueProblem, axes: tuple[Axis, ...], *, sparse: bool
) -> GridFunction:
    if any(equation.periodic):
        raise InputError("differences and Chebyshev points are for boxes with data on all faces")
    values = newton(equation, tensor_basis(axes, sparse=sparse))
    return GridFunction(jnp.asarray(values.reshape([a.count for a in axes])), axes)


# ---- radial basis functions


class RadialFunctions(eqx.Module):
    """sum_k c_k exp(-|x - centre_k|^2 / (2 width^2)), a function of points `[n, d] -> [n]`."""

    centres: Float[Array, "k d"]
    coefficients: Float[Array, " k"]
    width: float

    def __call__(self, points: Float[Array, "n d"]) -> Float[Array, " n"]:
        def row(x: Array) -> Array:
            square = jnp.sum((x - self.centres) ** 2, axis=1)
            return jnp.exp(-square / (2 * self.width**2)) @ self.coefficients

        return jax.lax.map(row, points, batch_size=256)


class GaussianCollocation(eqx.Module):
    """Kansa's collocation: Gaussians of one fixed width on a grid, collocated at their centres.

    The dial: Gaussians a coordinate, so dial^d parameters. `width`: in spacings of the centres;
    the wider, the more accurate and the worse conditioned.
    """

    width: float = eqx.field(default=2.0, static=True)
    dials: tuple[int, ...] = eqx.field(default=(15, 30, 45), static=True)
    random: bool = eqx.field(default=False, static=True)

    def __check_init__(self) -> None:
        if not self.width > 0:
            raise InputError(f"width={self.width} must be positive, such as 2 spacings")

    def __call__(self, equation: BoundaryValueProblem, dial: int, *, key: Any) -> RadialFunctions:
        count = int(dial)
        if count < 3:
            raise InputError(f"{count} Gaussians a coordinate are too few: take at least 3")
        lower, upper = np.asarray(equation.lower), np.asarray(equation.upper)
        width = self.width * float(np.max(upper - lower)) / (count - 1)
        centres = _mesh(lower, upper, count)
        coefficients = newton(equation, gaussian_basis(centres, centres, width, lower, upper))
        return RadialFunctions(jnp.asarray(centres), jnp.asarray(coefficients), width)


def gaussian_basis(
    points: np.ndarray, centres: np.ndarray, width: float, lower: np.ndarray, upper: np.ndarray
) -> Basis:
    """Gaussians at `centres` of one width, and their derivatives at `points`."""
    gaps = (points[:, None] - centres[None]) / width
    value = np.exp(-0.5 * (gaps**2).sum(-1))
    return Basis(
        points,
        value,
        [-gaps[..., j] / width * value for j in range(points.shape[1])],
        [(gaps[..., j] ** 2 - 1) / width**2 * value for j in range(points.shape[1])],
        np.any((points == lower) | (points == upper), axis=1),
    )


def _mesh(lower: np.ndarray, upper: np.ndarray, count: int) -> np.ndarray:
    axes = [np.linspace(a, b, count) for a, b in zip(lower, upper, strict=True)]
    return np.array(list(itertools.product(*axes)))


# ---- evolutions


class Lines(eqx.Module):
    """Fourier collocation of the right-hand side: a vector field of values on the grid."""

    equation: InitialValueProblem
    first: tuple[Float[Array, "m m"], ...]
    second: tuple[Float[Array, "m m"], ...]
    points: Float[Array, "n d"]

    def __call__(self, t: Any, values: Float[Array, "*grid"], args: Any) -> Float[Array, "*grid"]:
        oracle = counted(self.equation.right_hand_side, UNIT)

        def along(matrix: Array, axis: int) -> Array:
            return jnp.moveaxis(jnp.tensordot(matrix, values, (1, axis)), 0, axis).ravel()

        def all_along(matrices: tuple[Array, ...]) -> Array:
            return jnp.stack([along(m, axis) for axis, m in enumerate(matrices)], axis=1)

        jet = Jet(values.ravel(), all_along(self.first), all_along(self.second))
        return jax.vmap(oracle)(jet, self.points).reshape(values.shape)


def fourier_lines(equation: InitialValueProblem, size: int, *, rtol: float = 1e-10) -> GridFunction:
    """The field at the final time: spectral in space, Dormand-Prince 8 at `rtol` in time.

    Explicit, so the number of steps grows with size^2 once diffusion decides it. Raises
    `InputError` if the field does not stay finite.
    """
    axes = tuple(Fourier(size, length) for length in equation.lengths)
    points = equation.grid(size, working_dtype())
    initial = jax.vmap(equation.initial)(points).reshape((size,) * equation.dimension)
    first, second = ([jnp.asarray(a.derivative(o)) for a in axes] for o in (1, 2))
    lines = Lines(equation, tuple(first), tuple(second), points)
    least = 1e-5 if points.dtype == jnp.float32 else 1e-13
    values = _integrated(lines, initial, equation.duration, max(rtol, least))
    if not bool(jnp.isfinite(values).all()):
        raise InputError(f"{size} points a coordinate do not resolve the field: take more")
    return GridFunction(values, axes)


@eqx.filter_jit
def _integrated(lines: Lines, initial: Array, duration: float, rtol: float) -> Array:
    found = diffrax.diffeqsolve(
        diffrax.ODETerm(lines),
        diffrax.Dopri8(),
        0.0,
        duration,
        None,
        initial,
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=rtol),
        max_steps=100_000,
    )
    assert found.ys is not None
    return found.ys[0]


class FourierLines(eqx.Module):
    """`fourier_lines` as a method. The dial: points a coordinate. `rtol`: the error in time."""

    rtol: float = eqx.field(default=1e-8, static=True)
    dials: tuple[int, ...] = eqx.field(default=(8, 16, 32, 64), static=True)
    random: bool = eqx.field(default=False, static=True)

    def __call__(self, equation: InitialValueProblem, dial: int, *, key: Any) -> GridFunction:
        return fourier_lines(equation, int(dial), rtol=self.rtol)


class ExponentialSteps(eqx.Module):
    """ETDRK4 of `nearly.pde.semilinear`, for equations that have a `semilinear`: the reference.

    The dial: points a coordinate; as many time steps as `steps` times that. Its right-hand side is
    not the equation's own, so no residual is counted.
    """

    steps: int = eqx.field(default=4, static=True)
    dials: tuple[int, ...] = eqx.field(default=(16, 32, 64, 128), static=True)
    random: bool = eqx.field(default=False, static=True)

    def __check_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"steps={self.steps} must be at least 1 a point")

    def __call__(self, equation: InitialValueProblem, dial: int, *, key: Any) -> GridFunction:
        size, count = int(dial), self.steps * int(dial)
        points = equation.grid(size, working_dtype())
        initial = jax.vmap(equation.initial)(points).reshape((size,) * equation.dimension)
        field = integrate(
            equation.semilinear(), initial, dt=equation.duration / count, steps=count, every=count
        )[-1]
        return GridFunction(field, tuple(Fourier(size, length) for length in equation.lengths))


exponential_steps = ExponentialSteps()
finite_differences = FiniteDifferences()
chebyshev_collocation = ChebyshevCollocation()
gaussian_collocation = GaussianCollocation()
lines = FourierLines()
