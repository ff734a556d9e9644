"""Newton's method with a shift in proportion to the gradient: global, and no constant to know.

`GradientNormalizedNewton` (`gradient-normalized-smoothness`) and, as a baseline, the
super-universal method with a fixed power of the gradient's norm.
"""

from __future__ import annotations

from collections.abc import Callable

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
from nearly.optimize.newton.factor import Hessian, Scalar, exact

TRIES = 60


class GradientNormalizedNewton(NewtonMinimiser[Scalar]):
    """Regularised Newton that measures smoothness on the go; exact or approximate Hessians.

    **Arguments:**

    - `rtol`, `atol`: when to stop: the changes of `y` and `f` are within them.
    - `norm`: of the change. `hessian`: `exact`, `GaussNewton`, `Fisher` or your own.
    - `smoothness`: the first guess of gamma, in the units of `y`.

    The step is `h = -(H + |g| / gamma)^-1 g`. It is accepted if `f(x) - f(x + h) >= |g(x+h)|^2 /
    (8 |g| / gamma)`, and then gamma doubles; otherwise, or where the shifted matrix is not positive
    definite, gamma halves.

    Advice: the best default among these for smooth problems of up to a few hundred unknowns, convex
    or not. Costs a Hessian and a factorisation per step, a gradient and O(d^2) per trial.

    Paper: `gradient-normalized-smoothness`. Unlike its code, an indefinite matrix halves gamma
    instead of ending the run, all trials share one factorisation, and rounding is allowed for.
    """

    rtol: float
    atol: float
    norm: Callable[[PyTree], Scalar] = optx.max_norm
    hessian: Hessian = exact
    smoothness: float = 1.0

    def __check_init__(self) -> None:
        check_tolerances(self)
        if not self.smoothness > 0:
            raise InputError(f"smoothness {self.smoothness} must be positive, such as 1.0")

    def begin(self, point: Point) -> Scalar:
        return jnp.asarray(self.smoothness, point.f.dtype)

    def move(self, evaluate: Evaluate, state: State[Scalar]) -> Moved[Scalar]:
        at, factor = state.point, state.factor
        size = jnp.linalg.norm(at.g)

        def propose(gamma: Scalar) -> Point:
            return evaluate(at.x - factor.solve(size / gamma, at.g))

        def accept(gamma: Scalar, to: Point) -> Bool[Array, ""]:
            shift = size / gamma
            enough = at.f - to.f + at.slack() >= to.g @ to.g / (8 * shift)
            return enough & (factor.least() + shift > 0)

        gamma, point, found = search(propose, accept, state.memory, 0.5, TRIES)
        return Moved(point, 2 * gamma, found)


class SuperUniversalNewton(NewtonMinimiser[Scalar]):
    """Regularised Newton with the shift `H |g|^power`, H found by backtracking; for convex ones.

    **Arguments:** as `GradientNormalizedNewton`'s; `constant` is the first H; `power` lies in
    [1/2, 1] (2/3 serves all smoothness classes from Hoelder Hessians to Lipschitz third ones).

    Accepted if `-g(x+h).h >= |g(x+h)|^2 / (4 H |g|^power)`; H is divided by 4 after each step and
    multiplied by 4 after each failure. The baseline of `gradient-normalized-smoothness`.
    """

    rtol: float
    atol: float
    norm: Callable[[PyTree], Scalar] = optx.max_norm
    hessian: Hessian = exact
    constant: float = 1.0
    power: float = 2 / 3

    def __check_init__(self) -> None:
        check_tolerances(self)
        if not self.constant > 0:
            raise InputError(f"constant {self.constant} must be positive, such as 1.0")
        if not 0.5 <= self.power <= 1:
            raise InputError(f"power {self.power} must lie between 1/2 and 1, such as 2/3")

    def begin(self, point: Point) -> Scalar:
        return jnp.asarray(1 / self.constant, point.f.dtype)

    def move(self, evaluate: Evaluate, state: State[Scalar]) -> Moved[Scalar]:
        at, factor = state.point, state.factor
        size = jnp.linalg.norm(at.g) ** self.power

        def propose(inverse: Scalar) -> Point:
            return evaluate(at.x - factor.solve(size / inverse, at.g))

        def accept(inverse: Scalar, to: Point) -> Bool[Array, ""]:
            shift = size / inverse
            enough = to.g @ (at.x - to.x) + at.slack() >= to.g @ to.g / (4 * shift)
            return enough & (factor.least() + shift > 0)

        inverse, point, found = search(propose, accept, state.memory, 0.25, TRIES // 2)
        return Moved(point, 4 * inverse, found)
