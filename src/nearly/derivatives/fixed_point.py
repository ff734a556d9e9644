"""Two plain solvers for `implicit`: iterate the map, or Newton's method on the equations.

Any other solver does as well; these say clearly when they fail.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from nearly.core.errors import InputError

_EXPANDS = (
    "the fixed-point iteration did not converge: the map is no contraction near its fixed point, "
    "or max_steps is too small. Shorten its step, raise max_steps, or find the fixed point with "
    "another solver such as fixed_point.newton: the implicit derivative holds there all the same."
)
_NO_ROOT = (
    "Newton's method did not converge within max_steps: start closer to the solution, raise "
    "max_steps, or use a globally convergent solver."
)

Solver = Callable[..., PyTree]


def iterate(
    step: Callable[..., PyTree], *, tolerance: float | None = None, max_steps: int = 10_000
) -> Solver:
    """Solves x = T(x, *args) by x <- T(x, *args).

    **Arguments:**

    - `step`: the map T, (x, *args) -> x, on a pytree of real arrays.
    - `tolerance`: stop when a step changes x by less than this, relative to 1 + |x| (Euclidean
      norms); by default 100 times the spacing of x's dtype.
    - `max_steps`: the most steps.

    **Returns:** a solver `(init, *args) -> x`.

    **Raises:** `InputError` for a tolerance or max_steps that is not positive; at run time, if it
    has not converged or is no longer finite: then the map is no contraction there.

    **Cost:** about log(tolerance) / log(contraction factor) steps; memory of two x.
    """
    _check(tolerance, max_steps)

    def move(x: PyTree, args: tuple[Any, ...]) -> tuple[PyTree, PyTree]:
        following = step(x, *args)
        return following, jax.tree.map(jnp.subtract, following, x)

    return _repeat(move, tolerance, max_steps, _EXPANDS)


def newton(
    optimality: Callable[..., PyTree], *, tolerance: float | None = None, max_steps: int = 50
) -> Solver:
    """Solves F(x, *args) = 0 by Newton's method with full steps and a dense Jacobian.

    **Arguments, returns, raises:** as `iterate`; `optimality` is F, (x, *args) -> residual.

    **Cost:** per step n products with the Jacobian and n^3/3 operations for n unknowns.
    """
    _check(tolerance, max_steps)

    def move(x: PyTree, args: tuple[Any, ...]) -> tuple[PyTree, PyTree]:
        flat, unflatten = ravel_pytree(x)

        def residual(point: Array) -> Array:
            return ravel_pytree(optimality(unflatten(point), *args))[0]

        operator = lx.MatrixLinearOperator(jax.jacfwd(residual)(flat))
        update = lx.linear_solve(operator, residual(flat), lx.LU(), throw=False).value
        return unflatten(flat - update), unflatten(-update)

    return _repeat(move, tolerance, max_steps, _NO_ROOT)


def _check(tolerance: float | None, max_steps: int) -> None:
    if tolerance is not None and not tolerance > 0:
        raise InputError(f"tolerance {tolerance} must be positive, such as 1e-10")
    if max_steps < 1:
        raise InputError(f"max_steps {max_steps} must be at least 1")


def _repeat(
    move: Callable[[PyTree, tuple[Any, ...]], tuple[PyTree, PyTree]],
    tolerance: float | None,
    max_steps: int,
    failure: str,
) -> Solver:
    """Repeats a move until it changes x no more than the tolerance."""

    def solve(init: PyTree, /, *args: Any) -> PyTree:
        start = jax.tree.map(jnp.asarray, init)
        dtype = ravel_pytree(start)[0].dtype
        small = 100 * float(jnp.finfo(dtype).eps) if tolerance is None else tolerance

        def unfinished(state: Any) -> Array:
            _, size, steps = state
            return (size > small) & jnp.isfinite(size) & (steps < max_steps)

        def body(state: Any) -> Any:
            x, _, steps = state
            x, change = move(x, args)
            size = _norm(change) / (1 + _norm(x))
            # An overflow in both norms is an infinite change, not an unknown one.
            return x, jnp.where(jnp.isnan(size), jnp.inf, size), steps + 1

        first = jnp.asarray(jnp.finfo(dtype).max, dtype)
        x, size, _ = jax.lax.while_loop(unfinished, body, (start, first, 0))
        return eqx.error_if(x, ~(size <= small), failure)

    return solve


def _norm(tree: PyTree) -> Array:
    return jnp.linalg.norm(ravel_pytree(tree)[0])
