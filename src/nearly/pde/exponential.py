"""Time steps for stiff semilinear equations with a diagonal linear part: u' = L u + N(u).

A scheme is a function `(symbol, nonlinear, dt) -> advance`, where `symbol` holds the eigenvalues
of L and `advance` maps a state to the one a step later.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Inexact

State = Inexact[Array, "*modes"]
Scheme = Callable[[Array, Callable[[Any], Any], Any], Callable[[Any], Any]]

# Points on the circle around h L over which the coefficients are averaged. The mean of an entire
# function over M points errs by about 1 / M!: nothing in float64 from 20 on.
CONTOUR = 32


class Etdrk4Coefficients(NamedTuple):
    """What a step of ETDRK4 multiplies by, elementwise over the modes."""

    full: Inexact[Array, "*modes"]
    half: Inexact[Array, "*modes"]
    stage: Inexact[Array, "*modes"]
    first: Inexact[Array, "*modes"]
    middle: Inexact[Array, "*modes"]
    last: Inexact[Array, "*modes"]


def etdrk4_coefficients(symbol: Inexact[Array, "*modes"], dt: Any) -> Etdrk4Coefficients:
    """The exponential weights of ETDRK4, as means over a circle around each eigenvalue.

    The quotients such as (e^z - 1) / z lose all digits near z = 0 when evaluated there; on a circle
    of radius 1 around z they do not, and their mean is the value at the centre. **Cost:** 16
    exponentials per mode (32 if L is complex) and about that many times the memory of one state,
    once per run.
    """
    z = dt * symbol
    whole = jnp.iscomplexobj(symbol)
    # If L is real the lower half of the circle only repeats the upper one's real parts.
    points = np.exp(2j * math.pi * (np.arange(CONTOUR) + 0.5) / CONTOUR)
    circle = jnp.asarray(
        points if whole else points[: CONTOUR // 2], jnp.result_type(z.dtype, jnp.complex64)
    )

    def mean(weight: Callable[[Array], Array]) -> Array:
        averaged = weight(z[..., None] + circle).mean(-1)
        return averaged if whole else averaged.real

    return Etdrk4Coefficients(
        full=jnp.exp(z),
        half=jnp.exp(z / 2),
        stage=dt * mean(lambda r: jnp.expm1(r / 2) / r),
        first=dt * mean(lambda r: (-4 - r + jnp.exp(r) * (4 - 3 * r + r**2)) / r**3),
        middle=dt * mean(lambda r: 2 * (2 + r + jnp.exp(r) * (r - 2)) / r**3),
        last=dt * mean(lambda r: (-4 - 3 * r - r**2 + jnp.exp(r) * (4 - r)) / r**3),
    )


def etdrk4(
    symbol: Inexact[Array, "*modes"], nonlinear: Callable[[State], State], dt: Any
) -> Callable[[State], State]:
    """Exponential time differencing of order 4 by Cox and Matthews, with Kassam's and Trefethen's
    contour means for its coefficients.

    The linear part is integrated exactly, so dt is limited by the nonlinear part alone.
    **Cost** of a step: four evaluations of `nonlinear`.
    """
    c = etdrk4_coefficients(symbol, dt)

    def advance(u: State) -> State:
        n = nonlinear(u)
        coasted = c.half * u
        a = coasted + c.stage * n
        n_a = nonlinear(a)
        b = coasted + c.stage * n_a
        n_b = nonlinear(b)
        n_c = nonlinear(c.half * a + c.stage * (2 * n_b - n))
        return c.full * u + c.first * n + c.middle * (n_a + n_b) + c.last * n_c

    return advance


def crank_nicolson_heun(
    symbol: Inexact[Array, "*modes"], nonlinear: Callable[[State], State], dt: Any
) -> Callable[[State], State]:
    """The trapezoidal rule for the linear part, Heun's method for the rest: order 2.

    Stable whatever the linear part is; for the rest dt must keep the Courant number below about
    1/2. **Cost** of a step: two evaluations of `nonlinear`.
    """
    explicit, implicit = 1 + dt * symbol / 2, 1 / (1 - dt * symbol / 2)

    def advance(u: State) -> State:
        n = nonlinear(u)
        coasted = explicit * u
        predicted = implicit * (coasted + dt * n)
        return implicit * (coasted + dt / 2 * (n + nonlinear(predicted)))

    return advance


def repeat(advance: Callable[[Any], Any], times: int) -> Callable[[Any], Any]:
    """`advance` applied a fixed number of times; differentiable in both modes."""
    return lambda state: jax.lax.fori_loop(0, times, lambda _, s: advance(s), state)
