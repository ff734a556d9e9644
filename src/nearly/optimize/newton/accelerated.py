"""Accelerated cubic Newton with inexact gradients and Hessians (`inexact-accelerated-tensor`).

Three sequences: x, the iterates; y, the minimiser of an estimating function of all gradients so
far; v, between them, where the cubic model is made. With alpha_t = 3 / (t + 3) and A_t = 6 / ((t +
1)(t + 2)(t + 3)):

    v  = (1 - alpha_t) x + alpha_t y
    x+ = v + argmin g.h + h.(B + d_t)h / 2 + M |h|^3 / 6
    s+ = s + (alpha_t / A_t) grad f(x+)
    y+ = x_0 - r s+ / |s+|,  where c_2 r + c_3 r^2 / 2 = |s+|

    d_t = 2 delta + (sigma + tau) (t + 3)^1.5 / R
    c_2 = 2 d_t alpha_+^2 / A_+ + (sigma / R)(t + 4)^2.5,  c_3 = (8 M / 3) alpha_+^3 / A_+
"""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import PyTree

from nearly.core.errors import InputError
from nearly.optimize.newton.base import (
    Evaluate,
    Moved,
    NewtonMinimiser,
    Point,
    State,
    check_tolerances,
)
from nearly.optimize.newton.factor import Hessian, Scalar, Vector, exact


class Estimate(eqx.Module):
    """Where the run began, the next v, and the weighted sum of gradients."""

    origin: Vector
    between: Point
    total: Vector


class AcceleratedCubicNewton(NewtonMinimiser[Estimate]):
    """Cubic Newton with the rate sigma R / sqrt(T) + delta R^2 / T^2 + L R^3 / T^3; convex only.

    **Arguments:**

    - `constant`: M, at least the Lipschitz constant L of the Hessian (theory asks for 2 L). Fixed.
    - `rtol`, `atol`, `norm`, `hessian`: as `GradientNormalizedNewton`'s; `hessian` may be inexact.
    - `noise`: sigma, the size of the gradient's noise (step the minimiser yourself and give each
      step its own `args`; the gradients at x+ and at the next v share them). `inexactness`: delta,
      in the norm of the Hessian's error. `radius`: R, how far the minimum is from the start;
      it matters only with noise.

    Advice: ahead of plain cubic Newton only after many steps, on badly conditioned convex problems;
    stop by the number of steps, the values need not fall. Costs a Hessian, a factorisation and two
    gradients per step. The cubic model is minimised to rounding, so tau is 0.
    """

    rtol: float
    atol: float
    norm: Callable[[PyTree], Scalar] = optx.max_norm
    hessian: Hessian = exact
    constant: float = eqx.field(kw_only=True)
    noise: float = 0.0
    inexactness: float = 0.0
    radius: float = 1.0

    def __check_init__(self) -> None:
        check_tolerances(self)
        for name in ("constant", "radius"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} {getattr(self, name)} must be positive, such as 1.0")
        for name in ("noise", "inexactness"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} {getattr(self, name)} must be at least 0")

    def begin(self, point: Point) -> Estimate:
        return Estimate(point.x, point, jnp.zeros_like(point.x))

    def anchor(self, state: State[Estimate]) -> Point:
        return state.memory.between

    def move(self, evaluate: Evaluate, state: State[Estimate]) -> Moved[Estimate]:
        memory, between = state.memory, state.memory.between
        t = state.count.astype(between.f.dtype)
        constant = jnp.asarray(self.constant, between.f.dtype)
        shift = 2 * self.inexactness + self.noise * (t + 3) ** 1.5 / self.radius
        to = evaluate(between.x + state.factor.cubic_step(constant, between.g, shift))
        total = memory.total + _alpha(t) / _product(t) * to.g
        size = jnp.linalg.norm(total)
        c2 = 2 * shift * _alpha(t + 1) ** 2 / _product(t + 1)
        c2 += self.noise / self.radius * (t + 4) ** 2.5
        c3 = 8 * constant / 3 * _alpha(t + 1) ** 3 / _product(t + 1)
        length = 2 * size / (c2 + jnp.sqrt(c2**2 + 2 * c3 * size))
        mirror = memory.origin - length * jnp.where(size == 0, 0, total / size)
        ahead = (1 - _alpha(t + 1)) * to.x + _alpha(t + 1) * mirror
        memory = Estimate(memory.origin, evaluate(ahead), total)
        return Moved(to, memory, jnp.isfinite(to.f))


def _alpha(t: Scalar) -> Scalar:
    return 3 / (t + 3)


def _product(t: Scalar) -> Scalar:
    return 6 / ((t + 1) * (t + 2) * (t + 3))
