"""`SystemSequence`: systems that come one after the other, as in a time stepper."""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Float, Int

from nearly.core.errors import InputError
from nearly.core.problem import Problem
from nearly.linear.grids import laplacian, random_side
from nearly.linear.operators import CountedOperator

Scalar = Float[Array, ""]
MATVECS = "matvecs"
TOLERANCES = tuple(10.0**-k for k in (2, 4, 6, 8))


class System(eqx.Module):
    """One system of a sequence: operator, right-hand side, first guess; a number that says how it
    differs from the others (its context)."""

    operator: lx.AbstractLinearOperator
    side: Array
    guess: Array
    context: Scalar


class Systems(eqx.Module):
    """A rule that makes systems, one after the other; each may depend on the solution before.

    All are pure, and the systems of one rule have the same structure and shapes.
    """

    length: eqx.AbstractVar[int]
    contexts: eqx.AbstractVar[tuple[float, float]]
    """Between which numbers the contexts lie."""

    @abc.abstractmethod
    def start(self, dtype: Any) -> Array:
        """The solution before the first system."""

    @abc.abstractmethod
    def system(self, index: Int[Array, ""], before: Array, key: Any) -> System:
        """The system at an index from 0 on, after a solution; `key` is this system's own."""


class ShiftedPoisson(Systems):
    """The Laplacian plus a random multiple c of the identity, random right-hand sides.

    The instance of `learning-to-relax`: `c = -0.15 + 0.6 Beta(alpha, beta)` on a 10 x 10 grid,
    where -0.15 is nearly singular. The context is c. The first guess is zero.

    **Arguments:** `size` along a side; `length`; the parameters of the Beta distribution, (0.5,
    1.5) for much variance and (2, 6) for little.
    """

    size: int = 10
    length: int = 2000
    alpha: float = 0.5
    beta: float = 1.5
    contexts: ClassVar[tuple[float, float]] = (-0.15, 0.45)

    def __check_init__(self) -> None:
        lowest = 4 - 4 * math.cos(math.pi / (self.size + 1))
        if self.size < 2 or lowest + self.contexts[0] <= 0:
            raise InputError(
                f"size = {self.size}: shifts down to -0.15 need a lowest eigenvalue above 0.15; "
                "give 2 to 10"
            )
        if min(self.alpha, self.beta) <= 0:
            raise InputError(f"Beta({self.alpha}, {self.beta}) needs positive parameters")

    def start(self, dtype: Any) -> Array:
        return jnp.zeros((self.size, self.size), dtype)

    def system(self, index: Int[Array, ""], before: Array, key: Any) -> System:
        del index
        shape, dtype = before.shape, before.dtype
        for_shift, for_side = jax.random.split(key)
        low, high = self.contexts
        drawn = jax.random.beta(for_shift, self.alpha, self.beta, (), dtype)
        shift = low + (high - low) * drawn
        operator = laplacian(shape, dtype).plus(shift)
        return System(operator, random_side(shape, for_side, dtype), jnp.zeros_like(before), shift)


class HeatSteps(Systems):
    """Crank-Nicolson steps of the heat equation with a diffusivity that changes with time.

    `u_t = k(t) Laplacian u + f(t, x)` on the unit square, zero on its boundary, with
    `k = max(0.1 sin 2 pi t, -10 sin 2 pi t)`: half of each unit of time hardly anything diffuses,
    then a hundred times as much (`learning-to-relax`). The source f is a bump that goes round in a
    circle. A step solves `(I + m L) u = ...` with `m = k dt / (2 h^2)` and L the five-point
    Laplacian, starting from the step before. The context is `4 m / (1 + 4 m)`, the share of the
    neighbours in the diagonal.

    **Arguments:** `size` along a side; `length`, the number of steps; `duration` they cover.
    """

    size: int = 25
    length: int = 5000
    duration: float = 5.0
    contexts: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __check_init__(self) -> None:
        if self.size < 2 or self.length < 1 or not self.duration > 0:
            raise InputError(
                f"size = {self.size}, length = {self.length}, duration = {self.duration}; give a "
                "size from 2, one step or more and a positive duration"
            )

    def start(self, dtype: Any) -> Array:
        x = self._points(dtype)
        return jnp.outer(jnp.sin(jnp.pi * x), jnp.sin(jnp.pi * x))

    def _points(self, dtype: Any) -> Array:
        return jnp.arange(1, self.size + 1, dtype=dtype) / (self.size + 1)

    def _strength(self, time: Scalar) -> Scalar:
        wave = jnp.sin(2 * jnp.pi * time)
        diffusivity = jnp.maximum(0.1 * wave, -10 * wave)
        return diffusivity * (self.duration / self.length) * (self.size + 1) ** 2 / 2

    def _source(self, time: Scalar, dtype: Any) -> Array:
        x = self._points(dtype)
        across = jnp.exp(-32 * (x - 0.5 - jnp.cos(2 * jnp.pi * time) / 4) ** 2)
        along = jnp.exp(-32 * (x - 0.5 - jnp.sin(2 * jnp.pi * time) / 4) ** 2)
        return 32 * jnp.outer(across, along)

    def system(self, index: Int[Array, ""], before: Array, key: Any) -> System:
        del key
        dtype = before.dtype
        step = self.duration / self.length
        time = index.astype(dtype) * step
        old, new = self._strength(time), self._strength(time + step)
        poisson = laplacian(before.shape, dtype)
        scaled = eqx.tree_at(lambda a: a.coefficients, poisson, new * poisson.coefficients)
        source = (self._source(time, dtype) + self._source(time + step, dtype)) * step / 2
        side = before - old * poisson.mv(before) + source
        return System(scaled.plus(1), side, before, 4 * new / (1 + 4 * new))


class Fixed(eqx.Module):
    """The learner that always suggests the same solver."""

    solver: lx.AbstractLinearSolver[Any]

    def init(self, key: Any) -> tuple[()]:
        del key
        return ()

    def suggest(self, state: tuple[()], context: Any = 0.0) -> tuple[Any, tuple[()]]:
        del context
        return self.solver, state

    def update(self, state: tuple[()], outcome: Any) -> tuple[()]:
        del outcome
        return state


class Record(eqx.Module):
    """What happened on the way: for each system the iterations, the relative residual, the
    context; and the last solution."""

    iterations: Array
    residuals: Array
    contexts: Array
    last: Array


class SystemSequence(Problem):
    """Solve systems one after the other; the dial is the solver's relative tolerance.

    A method (protocol `linear-sequences`) is one of

    - a lineax solver with an `rtol`, used for all systems;
    - a learner: `init(key) -> state`, `suggest(state, context) -> (solver, state)`,
      `update(state, outcome) -> state`, where `solver` is a lineax solver with an `rtol` whose
      `stats` have `num_steps`, and `outcome` how many steps it took (a number, at least one);
    - a function from the `Systems` to either.

    Work is counted in products with the systems' operators; applications of preconditioners are a
    unit of their own. The first error is the worst relative residual of all systems: it needs no
    reference. Beside it stand the mean number of iterations for a system, over all and over the
    second half.
    """

    systems: Systems
    name: str = "system-sequence"
    dtype: str = "float64"
    error_name: ClassVar[str] = "relative residual"
    work_name: ClassVar[str] = MATVECS
    protocol: ClassVar[str] = "linear-sequences"

    def __check_init__(self) -> None:
        if self.dtype not in ("float32", "float64"):
            raise InputError(f"dtype {self.dtype!r} must be float32 or float64")

    def dials(self, method: Any) -> Sequence[float]:
        return TOLERANCES[: 2 if self.dtype == "float32" else None]

    def floor(self) -> float:
        return float(np.finfo(self.dtype).eps)

    def build(self, method: Any, dial: Any, *, key: Any) -> Any:
        return self.learner(method), jnp.asarray(dial, self.dtype)

    def learner(self, method: Any) -> Any:
        """A method as a learner."""
        if isinstance(method, lx.AbstractLinearSolver):
            return Fixed(cast("lx.AbstractLinearSolver[Any]", method))
        if hasattr(method, "suggest"):
            return method
        if not callable(method):
            raise InputError(
                f"a {type(method).__name__} is no method for a sequence of systems: give a lineax "
                "solver, a learner with init, suggest and update, or a function that makes one"
            )
        return self.learner(method(self.systems))

    def apply(self, standin: Any, *, key: Any) -> Record:
        learner, rtol = standin
        for_learner, for_systems = jax.random.split(key)

        def advance(carry: Any, index: Array) -> tuple[Any, Any]:
            state, before = carry
            own = jax.random.fold_in(for_systems, index)
            system = self.systems.system(index, before, own)
            solver, state = learner.suggest(state, system.context)
            solver = eqx.tree_at(lambda s: s.rtol, solver, rtol)
            solution = lx.linear_solve(
                CountedOperator(system.operator, MATVECS),
                system.side,
                solver,
                options={"y0": system.guess},
                throw=False,
            )
            x, steps = solution.value, jnp.asarray(solution.stats["num_steps"])
            state = learner.update(state, jnp.maximum(steps, 1).astype(self.dtype))
            left = jnp.linalg.norm((system.side - system.operator.mv(x)).ravel())
            relative = left / jnp.linalg.norm(system.side.ravel())
            return (state, x), (steps, relative, system.context)

        first = (learner.init(for_learner), self.systems.start(self.dtype))
        (_, last), seen = jax.lax.scan(advance, first, jnp.arange(self.systems.length))
        iterations, residuals, contexts = seen
        return Record(iterations, residuals, contexts, last)

    def errors(self, value: Record) -> Mapping[str, float]:
        steps = np.asarray(value.iterations, np.float64)
        return {
            "relative residual": float(np.max(value.residuals)),
            "iterations per system": float(np.mean(steps)),
            "iterations per system, second half": float(np.mean(steps[steps.size // 2 :])),
        }


def heat2d_sequence(
    size: int = 25, length: int = 1000, duration: float = 1.0, dtype: str = "float64"
) -> SystemSequence:
    """Crank-Nicolson steps of the heat equation; see `HeatSteps`."""
    systems = HeatSteps(size=size, length=length, duration=duration)
    return SystemSequence(systems=systems, name="heat2d-sequence", dtype=dtype)


def shifted_poisson_sequence(
    size: int = 10,
    length: int = 500,
    alpha: float = 0.5,
    beta: float = 1.5,
    dtype: str = "float64",
) -> SystemSequence:
    """The Laplacian with random shifts; see `ShiftedPoisson`."""
    systems = ShiftedPoisson(size=size, length=length, alpha=alpha, beta=beta)
    return SystemSequence(systems=systems, name="shifted-poisson-sequence", dtype=dtype)
