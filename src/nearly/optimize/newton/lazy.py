"""Lazy Hessians: one Hessian, one factorisation, many steps (`lazy-hessians`).

A cycle of `period` steps shares the factor taken at its start. Its regularisation M is judged at
its end by how much the function fell:

    f(z) - f(x_m) >= (1/6) M^(-1/2) sum |g(x_i)|^(3/2)

If it fell less, M doubles and the cycle starts over from z with the same factor; otherwise the next
cycle begins with M / 4. (Its sum follows from the step's optimality and the Lipschitz Hessian for
M >= 6 m L, with a constant of 0.19 that we rounded down; the paper's own constant may differ.) A
cycle that reaches the gradient's rounding ends early.
"""

from __future__ import annotations

import abc
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Int, PyTree

from nearly.core.errors import InputError
from nearly.optimize.newton.base import (
    Evaluate,
    Moved,
    NewtonMinimiser,
    Point,
    State,
    check_tolerances,
)
from nearly.optimize.newton.factor import Factor, Hessian, Scalar, Vector, exact

DECREASE = 1 / 6


class Cycle(eqx.Module):
    """Where the cycle began, its M, how far it is, the sum that its decrease is held against."""

    start: Point
    constant: Scalar
    length: Int[Array, ""]
    owed: Scalar


class _Lazy(NewtonMinimiser[Cycle]):
    """The cycle around a regularised step."""

    period: eqx.AbstractVar[int]
    constant: eqx.AbstractVar[float]

    @abc.abstractmethod
    def regularised_step(self, factor: Factor, gradient: Vector, constant: Scalar) -> Vector:
        """The step from a gradient and an older Hessian."""

    def __check_init__(self) -> None:
        check_tolerances(self)
        if self.period < 1:
            raise InputError(f"period {self.period} must be at least 1: steps per Hessian")
        if not self.constant > 0:
            raise InputError(f"constant {self.constant} must be positive, such as 1.0")

    def begin(self, point: Point) -> Cycle:
        constant = jnp.asarray(self.constant, point.f.dtype)
        return Cycle(point, constant, jnp.zeros((), jnp.int32), jnp.zeros_like(constant))

    def move(self, evaluate: Evaluate, state: State[Cycle]) -> Moved[Cycle]:
        at, cycle = state.point, state.memory
        to = evaluate(at.x + self.regularised_step(state.factor, at.g, cycle.constant))
        to = jax.tree.map(lambda new, old: jnp.where(jnp.isfinite(to.f), new, old), to, at)
        failed = ~jnp.isfinite(to.f) | jnp.any(~jnp.isfinite(to.g))
        owed = cycle.owed + jnp.linalg.norm(to.g) ** 1.5
        length = cycle.length + 1
        fell = cycle.start.f - to.f + cycle.start.slack() >= DECREASE * owed / jnp.sqrt(
            cycle.constant
        )
        # A point above the start cannot be made good for: do not wait for the cycle's end.
        lost = failed | (to.f > cycle.start.f + cycle.start.slack())
        ended = (length >= self.period) | lost | self.is_small(at, to)
        kept, again = ended & fell & ~lost, ended & ~(fell & ~lost)
        point = jax.tree.map(lambda z, x: jnp.where(again, z, x), cycle.start, to)
        constant = cycle.constant * jnp.where(again, 2, jnp.where(kept, 0.25, 1))
        memory = Cycle(
            jax.tree.map(lambda new, old: jnp.where(kept, new, old), point, cycle.start),
            constant,
            jnp.where(ended, 0, length),
            jnp.where(ended, 0, owed),
        )
        return Moved(point, memory, jnp.isfinite(constant), fresh=kept, forward=~again)


class LazyCubicNewton(_Lazy):
    """Cubic Newton that takes a new Hessian every `period` steps.

    **Arguments:** `rtol`, `atol`, `norm`, `hessian` as `GradientNormalizedNewton`'s; `period` is m;
    `constant` is the first M, found by doubling from there.

    Advice: `period` of the order of the number of unknowns d makes the gradients cost as much as
    the Hessians, when a Hessian costs d gradients; for functions that are far from quadratic, less.
    `period=1` is adaptive cubic Newton. Not restricted to convex functions.

    Costs a gradient and O(d^2) per step, a Hessian and a factorisation per kept cycle.
    """

    rtol: float
    atol: float
    norm: Callable[[PyTree], Scalar] = optx.max_norm
    hessian: Hessian = exact
    period: int = 10
    constant: float = 1.0

    def regularised_step(self, factor: Factor, gradient: Vector, constant: Scalar) -> Vector:
        return factor.cubic_step(constant, gradient, jnp.zeros_like(constant))


class LazyRegularizedNewton(_Lazy):
    """The convex variant: `h = -(H + sqrt(M |g|))^-1 g`, one linear solve instead of a cubic model.

    **Arguments, cost:** as `LazyCubicNewton`'s. For convex functions.
    """

    rtol: float
    atol: float
    norm: Callable[[PyTree], Scalar] = optx.max_norm
    hessian: Hessian = exact
    period: int = 10
    constant: float = 1.0

    def regularised_step(self, factor: Factor, gradient: Vector, constant: Scalar) -> Vector:
        shift = jnp.sqrt(constant * jnp.linalg.norm(gradient))
        return -factor.solve(jnp.maximum(shift, -2 * factor.least()), gradient)
