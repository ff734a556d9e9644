"""One equation as methods see it: a domain, a residual, data on its boundary, and a solution.

`BoundaryValueProblem` is stationary, on a box; `InitialValueProblem` evolves a periodic field.
Both speak in jets: a value with its gradient and its pure second derivatives, so that a method may
bring analytic derivatives (its module then has a `jet`) or leave them to automatic ones.
"""

import itertools
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nearly.core.errors import InputError
from nearly.core.tally import counted
from nearly.pde.semilinear import Semilinear

Point = Float[Array, " d"]
Field = Callable[[Any], Any]

UNIT = "residual evaluations"


class Jet(NamedTuple):
    """A function at a point: its value, its gradient `[d]` and its second derivatives `[d]`.

    Only the pure ones, d^2 u / d x_j^2: no equation of this room has mixed derivatives.
    """

    value: Any
    gradient: Any
    second: Any


def jet(function: Field, x: Point) -> Jet:
    """The jet of a scalar function of one point: its own `jet` if it has one, else automatic.

    **Cost:** forward over forward: about 4 d times the function.
    """
    own = getattr(function, "jet", None)
    if own is not None:
        return own(x)

    def along(axis: Point) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
        return jax.jvp(lambda y: jax.jvp(function, (y,), (axis,)), (x,), (axis,))

    (value, first), (_, second) = jax.vmap(along)(jnp.eye(x.size, dtype=x.dtype))
    return Jet(value[0], first, second)


def jets(function: Field, points: Float[Array, "n d"]) -> Jet:
    """The jets at many points: arrays `[n]`, `[n, d]`, `[n, d]`."""
    return jax.vmap(lambda x: jet(function, x))(points)


class BoundaryValueProblem(eqx.Module):
    """residual(jet of u, x) = 0 in a box, u = boundary(x) on its faces.

    **Fields:** `lower`, `upper`: the box, one number for each coordinate.

    Raises `InputError` for an empty box.
    """

    lower: eqx.AbstractVar[tuple[float, ...]]
    upper: eqx.AbstractVar[tuple[float, ...]]

    def __check_init__(self) -> None:
        pairs = list(zip(self.lower, self.upper, strict=False))
        if len(self.lower) != len(self.upper) or not all(a < b for a, b in pairs):
            raise InputError(f"the box {self.lower} to {self.upper} is empty: lower < upper")

    @abstractmethod
    def residual(self, jet: Jet, x: Point) -> Float[Array, ""]:
        """What vanishes where u solves the equation."""

    @abstractmethod
    def boundary(self, x: Point) -> Float[Array, ""]:
        """The values on the faces that carry data."""

    @abstractmethod
    def exact(self, x: Point) -> Float[Array, ""]:
        """The solution: closed, or a trusted solver's."""

    @property
    def dimension(self) -> int:
        return len(self.lower)

    @property
    def periodic(self) -> tuple[bool, ...]:
        """Which coordinates are periodic; the faces across them carry no data."""
        return (False,) * self.dimension

    @property
    def faces(self) -> tuple[tuple[int, int], ...]:
        """(coordinate, 0 or 1) of the faces that carry data: all of those not periodic."""
        closed = [axis for axis, wraps in enumerate(self.periodic) if not wraps]
        return tuple(itertools.product(closed, (0, 1)))

    def held_out(self, most: int = 10_201) -> Float[np.ndarray, "n d"]:
        """The grid of cell midpoints, at most so many, on which errors are judged."""
        return midpoints(self.lower, self.upper, most)

    def truth(self, points: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
        """The solution at points, on the host."""
        return np.asarray(jax.vmap(self.exact)(jnp.asarray(points)))


class Manufactured(BoundaryValueProblem):
    """An equation whose right-hand side is made so that `exact` solves it."""

    @abstractmethod
    def operator(self, jet: Jet, x: Point) -> Float[Array, ""]:
        """The left-hand side."""

    def source(self, x: Point) -> Float[Array, ""]:
        """The right-hand side: the operator of the solution, by automatic differentiation."""
        return self.operator(jet(self.exact, x), x)

    def residual(self, jet: Jet, x: Point) -> Float[Array, ""]:
        return self.operator(jet, x) - self.source(x)

    def boundary(self, x: Point) -> Float[Array, ""]:
        return self.exact(x)


class InitialValueProblem(eqx.Module):
    """u_t = right_hand_side(jet of u, x) on a periodic box [0, L)^d, from u = initial(x) at t = 0.

    **Fields:** `lengths`: of the box. `duration`: when the solution is wanted.

    Raises `InputError` unless all are positive.
    """

    lengths: eqx.AbstractVar[tuple[float, ...]]
    duration: eqx.AbstractVar[float]

    def __check_init__(self) -> None:
        if not all(v > 0 for v in (*self.lengths, self.duration)):
            raise InputError(
                f"lengths {self.lengths} and duration {self.duration} must be positive"
            )

    @abstractmethod
    def right_hand_side(self, jet: Jet, x: Point) -> Float[Array, ""]:
        """The derivative in time."""

    @abstractmethod
    def initial(self, x: Point) -> Float[Array, ""]:
        """The field at t = 0."""

    @abstractmethod
    def truth(self, points: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
        """The field at t = duration, on the host: closed, or a converged reference."""

    def semilinear(self) -> Semilinear:
        """The equation as the exponential integrators of this room take it.

        Raises `InputError` unless a subclass says how.
        """
        raise InputError(f"{type(self).__name__} does not say how it is semilinear: use `lines`")

    @property
    def dimension(self) -> int:
        return len(self.lengths)

    def held_out(self, most: int = 10_201) -> Float[np.ndarray, "n d"]:
        return midpoints((0.0,) * self.dimension, self.lengths, most)

    def grid(self, size: int, dtype: Any) -> Float[Array, "n d"]:
        """The periodic grid of `size` points along each coordinate, as rows."""
        axes = [np.arange(size) * (length / size) for length in self.lengths]
        return jnp.asarray(_rows(axes), dtype)


class SpaceTime(BoundaryValueProblem):
    """An initial value problem as a boundary value problem in z = (x, t): data at t = 0 only."""

    evolution: InitialValueProblem
    lower: tuple[float, ...]
    upper: tuple[float, ...]

    @property
    def periodic(self) -> tuple[bool, ...]:
        return (True,) * self.evolution.dimension + (False,)

    @property
    def faces(self) -> tuple[tuple[int, int], ...]:
        return ((self.evolution.dimension, 0),)

    def residual(self, jet: Jet, x: Point) -> Float[Array, ""]:
        inside = Jet(jet.value, jet.gradient[:-1], jet.second[:-1])
        return jet.gradient[-1] - self.evolution.right_hand_side(inside, x[:-1])

    def boundary(self, x: Point) -> Float[Array, ""]:
        return self.evolution.initial(x[:-1])

    def exact(self, x: Point) -> Float[Array, ""]:
        raise InputError("the solution is known at the final time only: see InitialValueProblem")


def space_time(evolution: InitialValueProblem) -> SpaceTime:
    """An initial value problem as an equation on [0, L]^d x [0, duration]."""
    lower = (0.0,) * (evolution.dimension + 1)
    upper = (*evolution.lengths, evolution.duration)
    return SpaceTime(evolution=evolution, lower=lower, upper=upper)


def residuals(
    equation: BoundaryValueProblem, function: Field, points: Float[Array, "n d"]
) -> Float[Array, " n"]:
    """The residual of a function at points; counted as so many residual evaluations."""
    oracle = counted(equation.residual, UNIT)
    return jax.vmap(oracle)(jets(function, points), points)


def velocities(
    equation: InitialValueProblem, function: Field, points: Float[Array, "n d"]
) -> Float[Array, " n"]:
    """u_t of a function at points; counted as so many residual evaluations."""
    oracle = counted(equation.right_hand_side, UNIT)
    return jax.vmap(oracle)(jets(function, points), points)


def working_dtype() -> str:
    """The precision that the surrounding `jax.enable_x64` asks for."""
    return "float64" if jax.config.read("jax_enable_x64") else "float32"


def midpoints(
    lower: tuple[float, ...], upper: tuple[float, ...], most: int
) -> Float[np.ndarray, "n d"]:
    """The midpoints of a uniform grid of at most `most` cells, as rows."""
    count = int(most ** (1 / len(lower)))
    cells = (np.arange(count) + 0.5) / count
    return _rows([a + (b - a) * cells for a, b in zip(lower, upper, strict=True)])


def _rows(axes: list[np.ndarray]) -> np.ndarray:
    mesh = np.meshgrid(*axes, indexing="ij")
    return np.stack([m.ravel() for m in mesh], axis=1)
