"""Ways to differentiate the limit of an iteration: functions `(step, start, steps) -> solve`.

See `problems.sensitivity.Sensitivity` for the protocol. `implicit` is ours; the rest are what
people do instead.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optimistix as optx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Int, PyTree

from nearly.core.errors import MissingDependency
from nearly.derivatives.implicit import implicit_fixed_point

Step = Callable[[PyTree, PyTree], PyTree]
Steps = int | Int[Array, ""]  # an array only where nothing is differentiated in reverse mode
Solve = Callable[[PyTree], PyTree]


def _iterate(step: Step, start: PyTree, steps: Steps, theta: PyTree) -> PyTree:
    return jax.lax.fori_loop(0, steps, lambda _, x: step(x, theta), start)


def implicit(step: Step, start: PyTree, steps: Steps) -> Solve:
    """The implicit derivative at the last iterate. Paper: `implicit-differentiation`."""

    def solve(theta: PyTree) -> PyTree:
        x = _iterate(step, start, steps, jax.lax.stop_gradient(theta))
        return implicit_fixed_point(step, x, theta)

    return solve


def unrolled(step: Step, start: PyTree, steps: Steps) -> Solve:
    """Differentiates the iteration itself. Reverse mode keeps every iterate."""
    return lambda theta: _iterate(step, start, steps, theta)


def unrolled_checkpointed(step: Step, start: PyTree, steps: Steps) -> Solve:
    """As `unrolled`; reverse mode keeps x alone of every step, and computes the rest again."""
    return unrolled(jax.checkpoint(lambda x, theta: step(x, theta)), start, steps)


def one_step(step: Step, start: PyTree, steps: Steps) -> Solve:
    """Differentiates the last step alone, as if the iterate before it were a constant.

    One derivative of a step and no solve; its error does not vanish, but is that of the step's
    contraction factor.
    """

    def solve(theta: PyTree) -> PyTree:
        fixed = jax.lax.stop_gradient(theta)
        return step(_iterate(step, start, steps - 1, fixed), theta)

    return solve


def lax_custom_root(step: Step, start: PyTree, steps: Steps) -> Solve:
    """`jax.lax.custom_root`, with the dense tangent solve that its documentation shows."""

    def solve(theta: PyTree) -> PyTree:
        def residual(x: PyTree) -> PyTree:
            return jax.tree.map(jnp.subtract, x, step(x, theta))

        def find(_: Any, guess: PyTree) -> PyTree:
            return _iterate(step, guess, steps, jax.lax.stop_gradient(theta))

        return jax.lax.custom_root(residual, start, find, _tangent_solve)

    return solve


def _tangent_solve(linear: Callable[[PyTree], PyTree], right: PyTree) -> PyTree:
    flat, unflatten = ravel_pytree(right)
    matrix = jax.jacobian(lambda v: ravel_pytree(linear(unflatten(v)))[0])(flat)
    return unflatten(jnp.linalg.solve(matrix, flat))


def optimistix_implicit(step: Step, start: PyTree, steps: int) -> Solve:
    """`optimistix.fixed_point` with its `ImplicitAdjoint`, stopped after the same steps."""
    solver = optx.FixedPointIteration(rtol=0.0, atol=0.0)

    def solve(theta: PyTree) -> PyTree:
        return optx.fixed_point(step, solver, start, theta, max_steps=steps, throw=False).value

    return solve


def jaxopt_fixed_point(step: Step, start: PyTree, steps: Steps) -> Solve:
    """JAXopt's `custom_fixed_point`: reverse mode only. The package is no longer maintained."""
    try:
        decorate: Any = importlib.import_module("jaxopt.implicit_diff").custom_fixed_point(step)
    except ImportError:
        raise MissingDependency("jaxopt is not installed; it is no longer maintained") from None

    def solver(init: PyTree, theta: PyTree) -> PyTree:
        return _iterate(step, init, steps, theta)

    solved = decorate(solver)
    return lambda theta: solved(start, theta)
