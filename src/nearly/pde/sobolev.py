"""Descent in Sobolev's inner product for variational elliptic equations (`barron-nonlinear-pde`).

The gradient of E(u) = int L(x, u, grad u) - f u in L^2 stiffens as the mesh is refined, so plain
descent needs steps of the order of the spacing squared. In the inner product of H^1 the gradient is
(-Lap)^-1 of it, or (s - Lap)^-1, and one step size serves all meshes. The paper proves with this
iteration that networks can represent the solutions; here it is a solver, and an optimistix one.
"""

import itertools
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
from jaxtyping import Array, Float

from nearly.core.errors import InputError
from nearly.core.tally import counted
from nearly.pde.equations import BoundaryValueProblem, working_dtype
from nearly.pde.grid_functions import GridFunction, Uniform

GRADIENTS = "energies"

# ---- the energy


class Energy(eqx.Module):
    """int L(x, u, grad u) - f u on a uniform grid, a function of the inner values `[n] * d`.

    Each cell takes the mean over its corners, with the differences along the edges that meet
    there: of second order, and for L = |grad u|^2 / 2 the usual five-point Laplacian.
    `args` is optimistix's, and unused.
    """

    lagrangian: Callable[[Array, Array, Array], Array]
    nodes: Float[Array, "*nodes d"]
    source: Float[Array, "*nodes"]
    frame: Float[Array, "*nodes"]

    @property
    def spacing(self) -> tuple[Any, ...]:
        """The distance of two nodes, along each coordinate."""
        d = self.nodes.shape[-1]
        first = self.nodes[(0,) * d]
        return tuple(self.nodes[tuple(np.eye(d, dtype=int)[j])][j] - first[j] for j in range(d))

    @property
    def volume(self) -> Any:
        """Of a cell."""
        return jnp.prod(jnp.stack(self.spacing))

    def full(self, inner: Float[Array, "*inner"]) -> Float[Array, "*nodes"]:
        """All values: the inner ones within the boundary's."""
        return self.frame.at[(slice(1, -1),) * inner.ndim].set(inner)

    def __call__(self, inner: Float[Array, "*inner"], args: Any = None) -> Float[Array, ""]:
        oracle = counted(self.value, GRADIENTS)
        return oracle(inner)

    def value(self, inner: Float[Array, "*inner"]) -> Float[Array, ""]:
        """The energy, uncounted."""
        values, d = self.full(inner), inner.ndim
        total = jnp.zeros((), inner.dtype)
        for corner in itertools.product((0, 1), repeat=d):
            here = tuple(slice(c, c - 1 or None) for c in corner)
            gradient = jnp.stack([self._edges(values, corner, axis) for axis in range(d)], axis=-1)
            density = self.lagrangian
            for _ in range(d):
                density = jax.vmap(density)
            inside = density(self.nodes[here], values[here], gradient)
            total = total + jnp.sum(inside - self.source[here] * values[here])
        return total * self.volume / 2**d

    def _edges(self, values: Array, corner: tuple[int, ...], axis: int) -> Array:
        """Slopes of the edges along an axis that start or end in one corner of each cell."""
        slopes = jnp.diff(values, axis=axis) / self.spacing[axis]
        place = tuple(
            slice(None) if a == axis else slice(c, c - 1 or None) for a, c in enumerate(corner)
        )
        return slopes[place]


def energy(equation: BoundaryValueProblem, count: int) -> tuple[Energy, tuple[Uniform, ...]]:
    """A variational equation's energy with `count` inner nodes a coordinate, and the grid's axes.

    The equation must have a `lagrangian(x, value, gradient)` and a `source(x)`. Raises `InputError`
    if it has not, or if `count` is below 3.
    """
    if not (hasattr(equation, "lagrangian") and hasattr(equation, "source")):
        raise InputError(
            f"{type(equation).__name__} has no lagrangian and source: descent is for equations "
            "that minimise an energy"
        )
    if count < 3:
        raise InputError(f"{count} inner nodes a coordinate are too few: take at least 3")
    ends = zip(equation.lower, equation.upper, strict=True)
    axes = tuple(Uniform(count + 2, a, b) for a, b in ends)
    mesh = np.stack(np.meshgrid(*[a.nodes() for a in axes], indexing="ij"), axis=-1)
    nodes = jnp.asarray(mesh, working_dtype())
    rows = nodes.reshape(-1, len(axes))
    shape = nodes.shape[:-1]
    source = jax.vmap(equation.source)(rows).reshape(shape)  # pyright: ignore
    data = jax.vmap(equation.boundary)(rows).reshape(shape)
    frame = data.at[(slice(1, -1),) * len(axes)].set(0)
    return Energy(equation.lagrangian, nodes, source, frame), axes  # pyright: ignore


# ---- inner products


class InnerProduct(eqx.Module):
    """Turns the derivative of an energy into a gradient: Riesz's map of a space of functions."""

    @abstractmethod
    def __call__(self, derivative: Float[Array, "*inner"]) -> Float[Array, "*inner"]:
        """The gradient, from derivatives by nodal values divided by the volume of a cell."""


class Lebesgue(InnerProduct):
    """L^2: the gradient is the derivative. Plain descent."""

    def __call__(self, derivative: Float[Array, "*inner"]) -> Float[Array, "*inner"]:
        return derivative


class Sobolev(InnerProduct):
    """H^1 of functions that vanish on the boundary: (shift - Lap)^-1 by fast sine transforms.

    `shift` 1 is the paper's I - Lap, 0 its form with zero boundary data.
    **Cost:** O(N log N) for N nodes.
    """

    spacing: tuple[Any, ...]
    shift: float = 0.0

    def __check_init__(self) -> None:
        if not self.shift >= 0:
            raise InputError(f"shift={self.shift} must not be negative: 0 or 1")

    def __call__(self, derivative: Float[Array, "*inner"]) -> Float[Array, "*inner"]:
        spectrum = derivative
        for axis in range(derivative.ndim):
            spectrum = sine_transform(spectrum, axis)
        spectrum = spectrum / (self.shift + _minus_laplacian(derivative.shape, self.spacing))
        for axis in range(derivative.ndim):
            spectrum = sine_transform(spectrum, axis)
        return spectrum


def sine_transform(values: Float[Array, "*n"], axis: int = -1) -> Float[Array, "*n"]:
    """sqrt(2 / (n + 1)) sum_j sin(pi j k / (n + 1)) values_j, for k = 1..n: its own inverse."""
    n = values.shape[axis]
    values = jnp.moveaxis(values, axis, -1)
    zero = jnp.zeros_like(values[..., :1])
    odd = jnp.concatenate([zero, values, zero, -values[..., ::-1]], axis=-1)
    sines = -jnp.fft.rfft(odd, axis=-1).imag[..., 1 : n + 1] / jnp.sqrt(2.0 * (n + 1))
    return jnp.moveaxis(sines.astype(values.dtype), -1, axis)


def _minus_laplacian(shape: tuple[int, ...], spacing: tuple[Any, ...]) -> Array:
    """The eigenvalues of minus the second differences, on the grid of sines."""
    total = jnp.zeros(())
    for axis, (n, h) in enumerate(zip(shape, spacing, strict=True)):
        sines = jnp.sin(jnp.pi * jnp.arange(1, n + 1) / (2 * (n + 1)))
        own = (2 / h * sines) ** 2
        total = total + own.reshape([-1 if a == axis else 1 for a in range(len(shape))])
    return total


# ---- descent, as an optimistix minimiser


class _Direction(eqx.Module):
    gradient: Any


class RieszDescent(optx.AbstractDescent[Any, Any, Any]):
    """The gradient in an inner product, in place of the derivative: optimistix's `descent`."""

    inner: InnerProduct
    volume: Any

    def init(self, y: Any, f_info_struct: Any) -> _Direction:
        return _Direction(y)

    def query(self, y: Any, f_info: Any, state: Any) -> _Direction:
        return _Direction(self.inner(f_info.grad / self.volume))

    def step(self, step_size: Any, state: _Direction) -> tuple[Any, optx.RESULTS]:
        return -step_size * state.gradient, optx.RESULTS.successful


class SobolevDescent(optx.AbstractGradientDescent[Any, Any]):
    """u <- u - step gradient, the gradient taken in an inner product; for `optimistix.minimise`.

    **Arguments:** `step`: below 2 over the largest eigenvalue of the Hessian in that product, see
    `stable_step`. `rtol`, `atol`: it stops once no value changes by more than atol + rtol |value|.
    """

    rtol: float
    atol: float
    norm: Callable[[Any], Any]
    descent: RieszDescent
    search: optx.LearningRate[Any]
    autodiff_mode: str = eqx.field(static=True)

    def __init__(
        self,
        step: Any,
        inner: InnerProduct,
        volume: Any,
        rtol: float = 1e-10,
        atol: float = 1e-10,
    ) -> None:
        self.rtol, self.atol, self.norm = rtol, atol, optx.max_norm
        self.descent = RieszDescent(inner, volume)
        self.search = optx.LearningRate(step)
        self.autodiff_mode = "bwd"


def stable_step(
    function: Energy, inner: InnerProduct, values: Float[Array, "*inner"], iterations: int = 30
) -> Float[Array, ""]:
    """2 over the largest eigenvalue of an energy's Hessian at `values`, in an inner product.

    A larger step makes descent oscillate there. By power iteration from the first sine: a lower
    bound of the eigenvalue, close after `iterations` products with the Hessian.
    """
    slope = jax.grad(function.value)

    def iterate(direction: Array, _: None) -> tuple[Array, Array]:
        direction = direction / jnp.sqrt(jnp.sum(direction**2))
        bent = inner(jax.jvp(slope, (values,), (direction,))[1] / function.volume)
        return bent, jnp.sum(direction * bent)

    wave = jnp.sin(jnp.arange(1, values.size + 1, dtype=values.dtype) ** 2)
    start = inner(wave.reshape(values.shape)) + wave.reshape(values.shape)
    _, quotients = jax.lax.scan(iterate, start, None, length=iterations)
    return 2 / quotients[-1]


# ---- methods


def descend(
    equation: BoundaryValueProblem,
    count: int,
    solver: Callable[[Energy], optx.AbstractMinimiser[Any, Any, Any]],
    *,
    most: int = 10_000,
) -> tuple[GridFunction, int, bool]:
    """Minimise an equation's energy from zero: the solution, steps taken, and whether it ended.

    A step that is too large for a nonlinear equation oscillates and stays bounded; it then has not
    ended after `most` steps.
    """
    function, axes = energy(equation, count)
    start = jnp.zeros((count,) * len(axes), function.source.dtype)
    found = _minimised(function, solver(function), start, most)
    values = function.full(found.value)
    ended = bool(found.result == optx.RESULTS.successful) and bool(jnp.isfinite(values).all())
    return GridFunction(values, axes), int(found.stats["num_steps"]), ended


@eqx.filter_jit
def _minimised(function: Energy, solver: Any, start: Array, most: int) -> Any:
    return optx.minimise(function, solver, start, max_steps=most, throw=False)


class VariationalDescent(eqx.Module):
    """Sobolev descent as a method. The dial: inner nodes a coordinate.

    **Arguments:** `step`: its size; the iterations to an accuracy depend on it, not on the mesh.
    `shift`: of the inner product. `most`: steps it may take.

    Raises `InputError` if it has not converged by then, with the step that would be stable.
    """

    step: float = 0.05
    shift: float = 0.0
    most: int = eqx.field(default=10_000, static=True)
    dials: tuple[int, ...] = eqx.field(default=(31, 63, 127, 255), static=True)
    random: bool = eqx.field(default=False, static=True)

    def __check_init__(self) -> None:
        if not self.step > 0 or self.most < 1:
            raise InputError(f"step={self.step} and most={self.most} must be positive")

    def solver(self, function: Energy) -> SobolevDescent:
        """The minimiser for an energy."""
        inner = Sobolev(function.spacing, self.shift)
        return SobolevDescent(self.step, inner, function.volume)

    def __call__(self, equation: BoundaryValueProblem, dial: int, *, key: Any) -> GridFunction:
        found, steps, ended = descend(equation, int(dial), self.solver, most=self.most)
        if not ended:
            function, axes = energy(equation, int(dial))
            inside = found.values[(slice(1, -1),) * len(axes)]
            limit = float(stable_step(function, Sobolev(function.spacing, self.shift), inside))
            raise InputError(
                f"not converged after {steps} steps of {self.step}: where it stands, steps below "
                f"{limit:.3g} are stable"
            )
        return found


class QuasiNewton(eqx.Module):
    """optimistix's BFGS on the same energy: the peer. The dial: inner nodes a coordinate."""

    most: int = eqx.field(default=2000, static=True)
    dials: tuple[int, ...] = eqx.field(default=(31, 63), static=True)
    random: bool = eqx.field(default=False, static=True)

    def __call__(self, equation: BoundaryValueProblem, dial: int, *, key: Any) -> GridFunction:
        def solver(function: Energy) -> optx.AbstractMinimiser[Any, Any, Any]:
            return optx.BFGS(rtol=1e-8, atol=1e-8)

        found, steps, ended = descend(equation, int(dial), solver, most=self.most)
        if not ended:
            raise InputError(f"BFGS has not converged after {steps} steps: raise most")
        return found


sobolev_descent = VariationalDescent()
quasi_newton = QuasiNewton()
