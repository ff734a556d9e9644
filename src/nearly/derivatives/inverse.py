"""Inverses of monotone functions, with derivatives from the function and not from the search.

    arcsine = invert(jnp.sin, multi_bin_bisection(-jnp.pi / 2, jnp.pi / 2))
    jax.grad(arcsine)(0.5)

Where f(x, theta) = y defines x, the inverse-function rule gives dx = (dy - f_theta dtheta) / f_x.
Differentiating the search instead gives 0 for bisection, whose result moves with nothing.

How it differs from the paper's code: one rule for tangents in terms of f alone, so that both modes
and all orders follow (there: cotangents, first order), and the derivatives of the log-determinant
are those of log f_x at the inverse, by the same rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, ArrayLike, Float

from nearly.core.errors import InputError
from nearly.derivatives.implicit import implicit_root

Elementwise = Callable[..., Array]
Search = Callable[[Callable[[Array], Array], Array], Array]


def invert(function: Elementwise, search: Search) -> Elementwise:
    """The inverse of a monotone function, differentiable in the value and in all parameters.

    **Arguments:**

    - `function`: (x, *parameters) -> y, elementwise in x and strictly monotone.
    - `search`: (f, y) -> x with f(x) = y, elementwise; such as `multi_bin_bisection(0.0, 1.0)`.
      It is not differentiated.

    **Returns:** `inverse(y, *parameters) -> x`. Derivatives solve f_x dx = dy - f_theta dtheta, in
    both modes and to any order; `parameters` are pytrees, and what `function` closes over is
    differentiated too.

    **Raises:** at run time, where a derivative is asked for and f_x is 0.

    **Cost:** that of the search; a derivative takes one jvp of `function` more than its own.
    Paper: `smooth-normalizing-flows`.
    """

    def residual(x: Array, y: Array, *parameters: Any) -> Array:
        return function(x, *parameters) - y

    def inverse(y: ArrayLike, *parameters: Any) -> Array:
        y = jnp.asarray(y)
        fixed = jax.tree.map(
            lambda leaf: jax.lax.stop_gradient(leaf) if eqx.is_array(leaf) else leaf, parameters
        )
        x = search(lambda x: function(x, *fixed), jax.lax.stop_gradient(y))
        slopes = lx.diagonal_tag
        return implicit_root(
            residual, x, y, *parameters, solve=lx.Diagonal(well_posed=True), tags=(slopes,)
        )

    return inverse


def invert_with_log_slope(
    function: Elementwise, search: Search
) -> Callable[..., tuple[Array, Array]]:
    """As `invert`, with the log-determinant: `(y, *parameters) -> (x, log |dx/dy|)`, elementwise.

    The second is -log |f_x| at x; its derivatives are -f_xx / f_x^2 in y and
    -f_xtheta / f_x + f_xx f_theta / f_x^2 in theta, which follow from `invert` by themselves.
    """
    inverse = invert(function, search)

    def both(y: ArrayLike, *parameters: Any) -> tuple[Array, Array]:
        x = inverse(y, *parameters)
        _, slope = jax.jvp(lambda x: function(x, *parameters), (x,), (jnp.ones_like(x),))
        return x, -jnp.log(jnp.abs(slope))

    return both


class MultiBinBisection(eqx.Module):
    """Finds f(x) = y in an interval by evaluating f at the edges of many bins at once.

    **Arguments:**

    - `low`, `high`: the interval; y beyond f's values on it is answered by the nearer end.
    - `bins`: into how many the interval is cut in each round; 2 is plain bisection.
    - `tolerance`: the length of the interval left at the end, as a part of the whole.
    - `polish`: Newton steps from its middle, kept inside it; two double the digits twice.

    **Cost:** `rounds` = log(1 / tolerance) / log(bins) calls of f one after the other, on bins - 1
    points each. So it is for machines on which a wide call costs as much as a narrow one; where
    calls cost by the point, 3 bins or 2 are the cheapest.

    Paper: `smooth-normalizing-flows`; polishing is ours.
    """

    low: float
    high: float
    bins: int = 32
    tolerance: float = 1e-8
    polish: int = 2

    def __check_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise InputError(
                f"the interval from {self.low} to {self.high} must be finite, not empty"
            )
        if self.bins < 2:
            raise InputError(f"bins {self.bins} must be at least 2")
        if not 0 < self.tolerance < 1:
            raise InputError(f"tolerance {self.tolerance} must lie between 0 and 1, such as 1e-8")
        if self.polish < 0:
            raise InputError(f"polish {self.polish} must be 0 or more Newton steps")

    @property
    def rounds(self) -> int:
        """How many times f is called on bins - 1 points."""
        exact = math.log(1 / self.tolerance) / math.log(self.bins)
        return max(1, math.ceil(exact - 1e-9))

    def __call__(
        self, function: Callable[[Array], Array], y: Float[Array, "*shape"]
    ) -> Float[Array, "*shape"]:
        ends = jnp.full_like(y, self.low), jnp.full_like(y, self.high)
        rising = function(ends[1]) > function(ends[0])

        def below(x: Array) -> Array:
            """Whether the solution lies above x."""
            value = function(x)
            return jnp.where(rising, value < y, value > y)

        def narrow(_: Any, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
            left, right = bracket
            width = (right - left) / self.bins
            inner = jnp.arange(1, self.bins, dtype=y.dtype)
            passed = jax.vmap(lambda k: below(left + k * width))(inner)
            index = jnp.sum(passed, 0).astype(y.dtype)
            return left + index * width, jnp.minimum(left + (index + 1) * width, right)

        left, right = jax.lax.fori_loop(0, self.rounds, narrow, ends)

        def newton(_: Any, x: Array) -> Array:
            value, slope = jax.jvp(function, (x,), (jnp.ones_like(x),))
            flat = slope == 0
            step = jnp.where(flat, 0, (value - y) / jnp.where(flat, 1, slope))
            # In the bracket widened by one: its ends are rounded as f's own values are.
            return jnp.clip(x - step, 2 * left - right, 2 * right - left)

        x = jax.lax.fori_loop(0, self.polish, newton, (left + right) / 2)
        return jnp.clip(x, self.low, self.high)


def multi_bin_bisection(
    low: float, high: float, *, bins: int = 32, tolerance: float = 1e-8, polish: int = 2
) -> MultiBinBisection:
    """A search for `invert`; see `MultiBinBisection`."""
    return MultiBinBisection(low, high, bins, tolerance, polish)
