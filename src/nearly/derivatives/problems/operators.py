"""Differential operators of functions in many dimensions, judged against closed forms."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nearly.core.errors import InputError, UnknownName
from nearly.core.problem import Problem
from nearly.derivatives.grid_field import GridField
from nearly.derivatives.operators import D, Operator, laplacian, power_sum
from nearly.derivatives.problems.fields import circle_field, ring
from nearly.derivatives.stde import Estimate

POINTS = 4
DRAWS = 16  # independent estimates at every point, to tell bias from spread


class Case(eqx.Module):
    """A function with the operator asked of it: fields are its arrays."""

    @abstractmethod
    def __call__(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """The function, in any dimension that suits its arrays."""

    @abstractmethod
    def operator(self) -> Operator:
        """The linear operator that methods are given."""

    def complete(self, estimate: Estimate) -> Any:
        """The whole, possibly nonlinear, operator from the estimate of its linear part."""
        return estimate.value

    def points(self, draw: np.random.Generator, size: int) -> np.ndarray:
        """Where the operator is wanted, one point in a row: in the unit ball."""
        rays = draw.normal(size=(POINTS, size))
        rays /= np.linalg.norm(rays, axis=1, keepdims=True)
        return rays * draw.uniform(size=(POINTS, 1))

    @abstractmethod
    def truth(self, x: np.ndarray) -> float:
        """The whole operator at x, in float64."""


class Network(Case):
    """The Laplacian of a tanh network; its truth are the layers' own second derivatives."""

    weights: tuple[Array, ...]

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        *hidden, last = self.weights
        for weight in hidden:
            x = jnp.tanh(x @ weight)
        return x @ last

    def operator(self) -> Operator:
        return laplacian()

    def truth(self, x: np.ndarray) -> float:
        """Value, Jacobian and Laplacian of each layer in turn, by the chain rule in NumPy."""
        *hidden, last = (np.asarray(w, np.float64) for w in self.weights)
        value, jacobian, second = x, np.eye(x.size), np.zeros(x.size)
        for weight in hidden:
            value, jacobian, second = value @ weight, jacobian @ weight, second @ weight
            value = np.tanh(value)
            slope = 1 - value**2
            second = slope * second - 2 * value * slope * (jacobian**2).sum(0)
            jacobian = jacobian * slope
        return float(second @ last)


class TwoBody(Case):
    """u'' + u - u^3 summed over space (Allen-Cahn), of the paper's two-body solution (`stde`).

    u = (1 - |x|^2) sum over i of c_i sin(x_i + cos x_{i+1} + x_{i+1} cos x_i).
    """

    coefficients: Float[Array, " n"]

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        a, b = x[:-1], x[1:]
        return (1 - x @ x) * (self.coefficients @ jnp.sin(a + jnp.cos(b) + b * jnp.cos(a)))

    def operator(self) -> Operator:
        return laplacian()

    def complete(self, estimate: Estimate) -> Any:
        return estimate.value + estimate.function - estimate.function**3

    def truth(self, x: np.ndarray) -> float:
        value, second = two_body(np.asarray(self.coefficients, np.float64), x, np)
        return float(second + value - value**3)


def two_body(coefficients: Any, x: Any, library: Any = jnp) -> tuple[Any, Any]:
    """The two-body solution at x and its Laplacian, by hand: O(d) time and memory."""
    a, b = x[:-1], x[1:]
    phase = a + library.cos(b) + b * library.cos(a)
    along_a, along_b = 1 - b * library.sin(a), library.cos(a) - library.sin(b)
    sine, cosine = coefficients * library.sin(phase), coefficients * library.cos(phase)
    inner = sine.sum()
    second = -sine * (along_a**2 + along_b**2) - cosine * (b * library.cos(a) + library.cos(b))
    radial = (cosine * (a * along_a + b * along_b)).sum()
    outer = 1 - x @ x
    return outer * inner, outer * second.sum() - 4 * radial - 2 * x.size * inner


class Bell(Case):
    """The biharmonic operator of exp(-|x - c|^2 / 2)."""

    center: Float[Array, " d"]

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        return jnp.exp(-jnp.sum((x - self.center) ** 2) / 2)

    def operator(self) -> Operator:
        return laplacian() ** 2

    def truth(self, x: np.ndarray) -> float:
        d, square = x.size, float(np.sum((x - np.asarray(self.center, np.float64)) ** 2))
        return (square**2 - 2 * (d + 2) * square + d * (d + 2)) * np.exp(-square / 2)


class Waves(Case):
    """A KdV-type operator, of order four and mixed, of a sum of damped waves exp(a·x) sin(b·x).

    With q the sum of the space derivatives, t the time derivative and s_k the sum of the k-th
    powers of the space derivatives: t q + s_3 q + 2 s_2 + 3 t^2 (the linear part of the paper's
    two-dimensional KdV equation, in any dimension). The last coordinate is time.
    """

    growth: Float[Array, "m d"]
    frequency: Float[Array, "m d"]

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        return jnp.sum(jnp.exp(self.growth @ x) * jnp.sin(self.frequency @ x))

    def operator(self) -> Operator:
        space = power_sum(1, stop=-1)
        return (
            D(-1) * space + power_sum(3, stop=-1) * space + 2 * laplacian(stop=-1) + 3 * D(-1) ** 2
        )

    def truth(self, x: np.ndarray) -> float:
        """Each wave is the imaginary part of exp(z·x), of which the operator is a multiple."""
        z = np.asarray(self.growth, np.float64) + 1j * np.asarray(self.frequency, np.float64)
        space, time = z[:, :-1], z[:, -1]
        q = space.sum(1)
        symbol = time * q + (space**3).sum(1) * q + 2 * (space**2).sum(1) + 3 * time**2
        return float(np.imag(symbol * np.exp(z @ x)).sum())


class GridSdf(Case):
    """The Laplacian of the distance to a circle, known as grids of up to 128 cells fitted to it.

    What is interpolated linearly has no second derivatives of its own: only methods that look
    further than a cell find the curvature.
    """

    field: GridField

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        return self.field(x)

    def operator(self) -> Operator:
        return laplacian()

    def points(self, draw: np.random.Generator, size: int) -> np.ndarray:
        """Around the circle, where the distance is smooth."""
        return ring(draw, 16 * POINTS)

    def truth(self, x: np.ndarray) -> float:
        return float(1 / np.linalg.norm(x))


def _network(draw: np.random.Generator, d: int) -> Case:
    sizes = [(d, 64), (64, 64), (64,)]
    return Network(tuple(jnp.asarray(draw.normal(size=s) / np.sqrt(s[0])) for s in sizes))


def _two_body(draw: np.random.Generator, d: int) -> Case:
    return TwoBody(jnp.asarray(draw.normal(size=d - 1)))


def _bell(draw: np.random.Generator, d: int) -> Case:
    return Bell(jnp.asarray(draw.normal(size=d) / np.sqrt(d)))


def _waves(draw: np.random.Generator, d: int) -> Case:
    growth, frequency = draw.normal(size=(2, 5, d)) / np.sqrt(d)
    return Waves(jnp.asarray(growth), jnp.asarray(frequency))


def _grid_sdf(draw: np.random.Generator, d: int) -> Case:
    if d != 2:
        raise InputError(f"gridfield_sdf is a field in 2 dimensions, not {d}")
    return GridSdf(circle_field("float64"))


CASES: dict[str, tuple[Callable[[np.random.Generator, int], Case], int]] = {
    "laplacian_mlp": (_network, 100),
    "allen_cahn_twobody": (_two_body, 100),
    "biharmonic": (_bell, 10),
    "kdv_highorder": (_waves, 11),
    "gridfield_sdf": (_grid_sdf, 2),
}


class DerivativeOperator(Problem):
    """Apply a differential operator to a function at points in many dimensions.

    **Arguments:**

    - `case`: `laplacian_mlp`, `allen_cahn_twobody`, `biharmonic`, `kdv_highorder` or
      `gridfield_sdf`.
    - `dimension`: of the points; 0 for the case's own.
    - `dtype`: `float64` or `float32`.

    A method is `(operator, directions) -> transformation`, or `operator -> transformation` if it
    is exact, and a transformation `f -> ((x, key) -> Estimate)`. The dial is the number of
    directions. The error is the root mean square over points and draws, relative to that of the
    truth; beside it stand the bias (of the mean over draws), in the same units and in standard
    errors, and the spread. Truth is a closed form, in float64.

    Work is counted in flops of one estimate, as compiled (loops once).
    """

    case: str = "laplacian_mlp"
    dimension: int = 0
    dtype: str = "float64"

    error_name: ClassVar[str] = "relative error"
    work_name: ClassVar[str] = "flops"
    protocol: ClassVar[str] = "differential-operators"

    def __check_init__(self) -> None:
        if self.case not in CASES:
            raise UnknownName("case", self.case, CASES)
        if self.dimension and self.dimension < 2:
            raise InputError(f"dimension {self.dimension} must be at least 2, or 0 for the case's")

    @property
    def name(self) -> str:
        return self.case

    @property
    def size(self) -> int:
        """The dimension of the points."""
        return self.dimension or CASES[self.case][1]

    def function(self) -> Case:
        """The function, with its operator and its truth."""
        made = CASES[self.case][0](np.random.default_rng(0), self.size)
        return jax.tree.map(lambda a: jnp.asarray(a, self.dtype), made)

    def points(self) -> np.ndarray:
        """Where the operator is wanted, one point in a row."""
        return self.function().points(np.random.default_rng(1), self.size)

    def random(self, method: Any) -> bool:
        return takes_directions(method)

    def dials(self, method: Any) -> Sequence[Any]:
        return (1, 4, 16, 64) if takes_directions(method) else ("exact",)

    def build(self, method: Any, dial: Any, *, key: Any) -> Any:
        case = self.function()
        dials = [int(dial)] if takes_directions(method) else []
        transformation = method(case.operator(), *dials)
        return _Ready(case, transformation, jnp.asarray(self.points(), self.dtype))

    def apply(self, standin: Any, *, key: Any) -> Any:
        keys = jax.random.split(key, (DRAWS, len(standin.points)))
        at_points = jax.vmap(standin)
        return jax.vmap(at_points, (None, 0))(standin.points, keys)

    def errors(self, value: Any) -> Mapping[str, float]:
        found = np.asarray(value, np.float64)
        case = self.function()
        x = np.asarray(self.points().astype(self.dtype), np.float64)
        truth = np.array([case.truth(point) for point in x])
        scale = _root_mean_square(truth)
        spread = found.std(0, ddof=1)
        bias = found.mean(0) - truth
        return {
            self.error_name: _root_mean_square(found - truth) / scale,
            "bias": _root_mean_square(bias) / scale,
            "spread": _root_mean_square(spread) / scale,
        }

    def floor(self) -> float:
        return 1e-14 if self.dtype == "float64" else 1e-7

    def work(self, standin: Any) -> Mapping[str, float]:
        one = jax.jit(lambda ready, x, key: ready(x, key))
        compiled = one.lower(standin, standin.points[0], jax.random.key(0)).compile()
        analysis: Any = compiled.cost_analysis()
        return {"flops": float((analysis or {}).get("flops", np.nan))}


class _Ready(eqx.Module):
    """A transformation, the function it is for, and the points where it is wanted."""

    case: Case
    transformation: Callable[..., Callable[..., Estimate]] = eqx.field(static=True)
    points: Float[Array, "n d"]

    def __call__(self, x: Float[Array, " d"], key: Any) -> Any:
        return self.case.complete(self.transformation(self.case)(x, key))


def takes_directions(method: Any) -> bool:
    """Whether a method has a dial, the number of directions, and so is random."""
    return len(inspect.signature(method).parameters) > 1


def _root_mean_square(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))
