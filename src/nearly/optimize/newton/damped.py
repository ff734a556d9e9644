"""Newton's direction with a step size: closed forms, backtracking, and Armijo's rule to beat.

All but Armijo's measure the direction `n = H^-1 g` in the local norm `r = sqrt(g.n)`, which no
change of variables moves (`damped-newton`).
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Bool, PyTree

from nearly.core.errors import InputError
from nearly.optimize.newton.base import (
    Evaluate,
    Moved,
    NewtonMinimiser,
    Point,
    State,
    check_tolerances,
    search,
)
from nearly.optimize.newton.factor import Hessian, Scalar, Vector, exact

TRIES = 60
CURVED = 1e-10  # eigenvalues below this share of the gradient's scale are lifted, by Armijo's rule


class _ClosedForm(NewtonMinimiser[tuple[()]]):
    """A step size that is a function of the local norm."""

    @abc.abstractmethod
    def stepsize(self, local_norm: Scalar) -> Scalar:
        """Between 0 and 1."""

    def begin(self, point: Point) -> tuple[()]:
        del point
        return ()

    def move(self, evaluate: Evaluate, state: State[tuple[()]]) -> Moved[tuple[()]]:
        at = state.point
        newton, local_norm, convex = _direction(state)
        point = evaluate(at.x - self.stepsize(local_norm) * newton)
        return Moved(point, (), convex)


class RootNewton(_ClosedForm):
    """Damped Newton with the step `1 / (1 + (9 M)^(1/(q-1)) r^((q-2)/(q-1)))`; needs its constant.

    **Arguments:** `rtol`, `atol`, `norm`, `hessian` as `GradientNormalizedNewton`'s; `constant` is
    M, `order` is q in [2, 4]: 3 gives a global rate of k^-2, 4 of k^-3, for convex functions.

    Advice: without its constant it is of no use: too small a one diverges, too large a one crawls.
    `UniversalNewton` finds it. Costs a Hessian, a factorisation and a gradient per step. Stops with
    `nonlinear_divergence` where the function is not convex. Paper: `damped-newton` (RN).
    """

    rtol: float
    atol: float
    norm: Callable[[PyTree], Scalar] = optx.max_norm
    hessian: Hessian = exact
    constant: float = eqx.field(kw_only=True)
    order: float = 3.0

    def __check_init__(self) -> None:
        check_tolerances(self)
        _check_constant(self.constant)
        if not 2 <= self.order <= 4:
            raise InputError(f"order {self.order} must lie between 2 and 4, such as 3")

    def stepsize(self, local_norm: Scalar) -> Scalar:
        power = 1 / (self.order - 1)
        return 1 / (1 + (9 * self.constant) ** power * local_norm ** ((self.order - 2) * power))


class AffineInvariantCubicNewton(_ClosedForm):
    """Damped Newton with the step `(sqrt(1 + 2 L r) - 1) / (L r)`: the peer of `damped-newton`.

    **Arguments:** as `RootNewton`'s; `constant` is L, the constant of semi-strong self-concordance.
    """

    rtol: float
    atol: float
    norm: Callable[[PyTree], Scalar] = optx.max_norm
    hessian: Hessian = exact
    constant: float = eqx.field(kw_only=True)

    def __check_init__(self) -> None:
        check_tolerances(self)
        _check_constant(self.constant)

    def stepsize(self, local_norm: Scalar) -> Scalar:
        # (sqrt(1 + 2 a) - 1) / a without cancellation
        return 2 / (1 + jnp.sqrt(1 + 2 * self.constant * local_norm))


class UniversalNewton(NewtonMinimiser[Scalar]):
    """Damped Newton that finds its constant; one factorisation serves the whole search.

    **Arguments:** `rtol`, `atol`, `norm`, `hessian` as `GradientNormalizedNewton`'s; `power` is
    beta in [2/3, 1]; `growth` is how a rejected damping grows, above 1; `constant` the first one.

    The step is `1 / (1 + theta)` with `theta = sigma r^beta`; accepted if `2 theta / (1 + theta)
    g(x+).n >= g(x+).H^-1 g(x+)`. After a search of j rejections sigma is multiplied by
    `growth^(j-1)`. For convex functions; stops with `nonlinear_divergence` where the Hessian has a
    negative eigenvalue. Costs a Hessian and a factorisation per step, a gradient and O(d^2) per
    trial.

    Paper: `damped-newton` (UN). `growth` must exceed 1: a public code's default of 1 repeats the
    same trial until its cap.
    """

    rtol: float
    atol: float
    norm: Callable[[PyTree], Scalar] = optx.max_norm
    hessian: Hessian = exact
    power: float = 2 / 3
    growth: float = 2.0
    constant: float = 1.0

    def __check_init__(self) -> None:
        check_tolerances(self)
        _check_constant(self.constant)
        if not 2 / 3 <= self.power <= 1:
            raise InputError(f"power {self.power} must lie between 2/3 and 1, such as 2/3")
        if not self.growth > 1:
            raise InputError(f"growth {self.growth} must exceed 1, such as 2: smaller never grows")

    def begin(self, point: Point) -> Scalar:
        return jnp.asarray(self.constant, point.f.dtype)

    def move(self, evaluate: Evaluate, state: State[Scalar]) -> Moved[Scalar]:
        at, factor = state.point, state.factor
        newton, local_norm, convex = _direction(state)
        scale = local_norm**self.power

        def propose(sigma: Scalar) -> Point:
            return evaluate(at.x - newton / (1 + sigma * scale))

        def accept(sigma: Scalar, to: Point) -> Bool[Array, ""]:
            theta = sigma * scale
            still = to.g @ factor.solve(jnp.zeros_like(scale), to.g)
            return 2 * theta / (1 + theta) * (to.g @ newton) + at.slack() >= still

        sigma, point, found = search(propose, accept, state.memory, self.growth, TRIES)
        return Moved(point, sigma / self.growth, found & convex)


class ArmijoNewton(NewtonMinimiser[tuple[()]]):
    """Newton's method with Armijo's backtracking: the textbook's, and the one to beat.

    **Arguments:** `rtol`, `atol`, `norm`, `hessian` as `GradientNormalizedNewton`'s; `decrease` is
    Armijo's constant, `shrink` the factor of backtracking.

    Where the Hessian is not positive definite its eigenvalues are shifted above a small share of
    the gradient's norm. Costs a Hessian and a factorisation per step, a value and a gradient per
    trial.
    """

    rtol: float
    atol: float
    norm: Callable[[PyTree], Scalar] = optx.max_norm
    hessian: Hessian = exact
    decrease: float = 1e-4
    shrink: float = 0.5

    def __check_init__(self) -> None:
        check_tolerances(self)
        for name in ("decrease", "shrink"):
            if not 0 < getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)} must lie between 0 and 1")

    def begin(self, point: Point) -> tuple[()]:
        del point
        return ()

    def move(self, evaluate: Evaluate, state: State[tuple[()]]) -> Moved[tuple[()]]:
        at, factor = state.point, state.factor
        least = factor.least()
        lifted = 1e-3 * jnp.linalg.norm(at.g) - least
        shift = jnp.where(least > CURVED * jnp.linalg.norm(at.g), 0, lifted)
        direction = factor.solve(shift, at.g)
        slope = at.g @ direction

        def propose(size: Scalar) -> Point:
            return evaluate(at.x - size * direction)

        def accept(size: Scalar, to: Point) -> Bool[Array, ""]:
            return at.f - to.f + at.slack() >= self.decrease * size * slope

        _, point, found = search(propose, accept, jnp.ones_like(at.f), self.shrink, TRIES)
        return Moved(point, (), found)


def _direction(state: State[Any]) -> tuple[Vector, Scalar, Bool[Array, ""]]:
    """`H^-1 g`, its local norm, and whether the Hessian is positive semidefinite up to rounding."""
    gradient, least = state.point.g, state.factor.least()
    newton = state.factor.solve(jnp.zeros_like(least), gradient)
    square = gradient @ newton
    rounding = jnp.sqrt(jnp.finfo(least.dtype).eps) * jnp.maximum(jnp.abs(least), 1)
    return newton, jnp.sqrt(jnp.maximum(square, 0)), (least > -rounding) & (square >= 0)


def _check_constant(constant: float) -> None:
    if not constant > 0:
        raise InputError(f"constant {constant} must be positive, such as 1.0")
