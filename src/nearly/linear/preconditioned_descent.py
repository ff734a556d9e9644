"""Gradient methods in the metric of a preconditioner, as optimistix minimisers.

For f with mu B <= Hess f <= L B, a fixed positive semidefinite B (of a generalised linear model:
A^T A), the preconditioner is made of B once and costs no gradient (`polynomial-preconditioning`).
All three find L by doubling and halving, so there is no step size to set.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import optimistix as optx
from jaxtyping import Array, Bool, Float, PyTree

from nearly.core.errors import InputError
from nearly.linear.iteration import axpy, tree_dot, tree_norm
from nearly.linear.krylov import lanczos

Norm = Callable[[PyTree], Array]
DOUBLINGS = 60


class Descent(eqx.Module):
    """The state of a minimiser: what is known at the current point."""

    value: Array
    gradient: PyTree[Array]
    aux: PyTree
    smoothness: Array
    finished: Bool[Array, ""]
    broken: Bool[Array, ""]
    momentum: Any = None


class _Minimiser(optx.AbstractMinimiser[Any, Any, Descent]):
    """What the minimisers share: the first gradient, the step, termination, backtracking."""

    rtol: float = 1e-6
    atol: float = 1e-6
    norm: Norm = eqx.field(default=optx.max_norm, static=True)

    def __check_init__(self) -> None:
        if self.rtol < 0 or self.atol < 0:
            raise InputError(f"rtol {self.rtol} and atol {self.atol} must not be negative")

    @abstractmethod
    def direction(self, gradient: PyTree[Array]) -> PyTree[Array]:
        """P g, the step for M = 1."""

    def init(
        self,
        fn: Any,
        y: Any,
        args: Any,
        options: dict[str, Any],
        f_struct: Any,
        aux_struct: Any,
        tags: frozenset[object],
    ) -> Descent:
        (value, aux), gradient = _value_and_gradient(fn, y, args)
        aux = jax.tree.map(lambda a: a if eqx.is_array(a) else jnp.asarray(a), aux)
        one, no = jnp.ones((), value.dtype), jnp.asarray(False)
        return Descent(value, gradient, aux, one, no, no, self.start(y, value))

    def start(self, y: Any, value: Array) -> Any:
        """The momentum to begin with."""
        return None

    def step(
        self,
        fn: Any,
        y: Any,
        args: Any,
        options: dict[str, Any],
        state: Descent,
        tags: frozenset[object],
    ) -> tuple[Any, Descent, Any]:
        """One step of gradient descent along `direction`, with backtracking."""
        along = self.direction(state.gradient)
        slope = tree_dot(state.gradient, along)

        def attempt(smoothness: Array) -> tuple[Any, ...]:
            after = axpy(-1 / smoothness, along, y)
            f_after = fn(after, args)[0]
            return _fits(state.value, f_after, slope, smoothness, state.smoothness), after

        smoothness, broken, (_, after) = _search(attempt, state.smoothness)
        (value, aux), gradient = _value_and_gradient(fn, after, args)
        finished = self.settled(y, after, state.value, value)
        made = Descent(value, gradient, aux, smoothness, finished, broken | (slope < 0))
        return after, made, aux

    def terminate(
        self,
        fn: Any,
        y: Any,
        args: Any,
        options: dict[str, Any],
        state: Descent,
        tags: frozenset[object],
    ) -> tuple[Bool[Array, ""], optx.RESULTS]:
        failed = optx.RESULTS.nonlinear_divergence
        result = optx.RESULTS.where(state.broken, failed, optx.RESULTS.successful)
        return state.finished | state.broken, result

    def postprocess(
        self,
        fn: Any,
        y: Any,
        aux: Any,
        args: Any,
        options: dict[str, Any],
        state: Descent,
        tags: frozenset[object],
        result: optx.RESULTS,
    ) -> tuple[Any, Any, dict[str, Any]]:
        return y, aux, {"smoothness": state.smoothness}

    def settled(self, before: PyTree, after: PyTree, f_before: Array, f_after: Array) -> Array:
        """optimistix's criterion: neither y nor f changes by more than the tolerances."""

        def small(change: PyTree, size: PyTree) -> Array:
            scale = jax.tree.map(lambda s: self.atol + self.rtol * jnp.abs(s), size)
            return self.norm(jax.tree.map(lambda c, s: jnp.abs(c) / s, change, scale)) < 1

        change = axpy(-1.0, before, after)
        return small(change, after) & small(f_after - f_before, f_after)


class PreconditionedGradientDescent(_Minimiser):
    """y <- y - P grad f(y) / M, M doubled until f falls by <g, P g> / (2 M), halved after.

    **Arguments:**

    - `preconditioner`: P, a positive definite lineax operator of y's structure, such as
      `symmetric_polynomial(B, degree)`; `lineax.IdentityLinearOperator` is gradient descent.
    - `rtol`, `atol`, `norm`: as in optimistix.

    One gradient, about two values of f and one application of P a step. A direction that P turns
    uphill ends the run as diverged: P is not positive definite. Pass `max_steps` to `minimise`.
    """

    preconditioner: lx.AbstractLinearOperator = eqx.field(kw_only=True)

    def direction(self, gradient: PyTree[Array]) -> PyTree[Array]:
        return self.preconditioner.mv(gradient)


class KrylovGradientDescent(_Minimiser):
    """As `PreconditionedGradientDescent`, with the best polynomial in B of a degree for each step.

    The step minimises the model -<g, d> + <d, B d> / 2 over the Krylov subspace of g: it is what
    `degree` + 1 steps of conjugate gradients on B d = g give, found here by Lanczos with
    reorthogonalisation (the paper solves in the powers of B, which are nearly dependent).

    **Arguments:**

    - `operator`: B, positive semidefinite, of y's structure.
    - `degree`: of the polynomial, at least 0 (then a scaled gradient step).
    - `rtol`, `atol`, `norm`: as in optimistix.

    One gradient and `degree` + 1 products with B a step.
    """

    operator: lx.AbstractLinearOperator = eqx.field(kw_only=True)
    degree: int = eqx.field(default=4, static=True, kw_only=True)

    def __check_init__(self) -> None:
        if not 0 <= self.degree < self.operator.in_size():
            most = self.operator.in_size() - 1
            raise InputError(f"degree {self.degree} must be from 0 to {most}")

    def direction(self, gradient: PyTree[Array]) -> PyTree[Array]:
        size = tree_norm(gradient)
        start = jax.tree.map(lambda g: jnp.where(size > 0, g, 1), gradient)
        krylov = lanczos(self.operator, start, self.degree + 1)
        # What is left of an exhausted subspace may lie where B vanishes; g has no part in it.
        ridge = jnp.finfo(size.dtype).eps * jnp.max(krylov.diagonal)
        first = jnp.zeros_like(krylov.diagonal).at[0].set(size)
        matrix = krylov.matrix + ridge * jnp.eye(len(first), dtype=first.dtype)
        weights = jnp.linalg.solve(matrix, first)
        return jax.tree.map(lambda v: jnp.tensordot(weights, v, axes=1), krylov.basis)


class PreconditionedFastGradient(_Minimiser):
    """Nesterov's accelerated method in the metric of P^-1, restarted where f rises.

    **Arguments:** as for `PreconditionedGradientDescent`. Each trial of M takes a gradient of its
    own, about two a step. The paper's needs the strong convexity; restarting (which it does not
    have) adapts to it.
    """

    preconditioner: lx.AbstractLinearOperator = eqx.field(kw_only=True)

    def direction(self, gradient: PyTree[Array]) -> PyTree[Array]:
        return self.preconditioner.mv(gradient)

    def start(self, y: Any, value: Array) -> Any:
        return y, jnp.zeros_like(value)

    def step(
        self,
        fn: Any,
        y: Any,
        args: Any,
        options: dict[str, Any],
        state: Descent,
        tags: frozenset[object],
    ) -> tuple[Any, Descent, Any]:
        anchor, weight = state.momentum

        def attempt(smoothness: Array) -> tuple[Any, ...]:
            share = _share(weight, smoothness)
            total = weight + share
            middle = jax.tree.map(lambda a, b: (weight * a + share * b) / total, y, anchor)
            (value, _), gradient = _value_and_gradient(fn, middle, args)
            step = self.direction(gradient)
            slope = tree_dot(gradient, step)
            after = axpy(-1 / smoothness, step, middle)
            f_after, aux = fn(after, args)
            fits = _fits(value, f_after, slope, smoothness, state.smoothness)
            return fits, after, f_after, aux, axpy(-share, step, anchor), total, slope

        found = _search(attempt, state.smoothness)
        smoothness, broken, (_, after, f_after, aux, anchor, total, slope) = found
        rises = f_after > state.value
        restart = (y, jnp.zeros_like(total))
        momentum = jax.tree.map(lambda a, b: jnp.where(rises, a, b), restart, (anchor, total))
        kept = jax.tree.map(lambda a, b: jnp.where(rises, a, b), y, after)
        value = jnp.where(rises, state.value, f_after)
        aux = jax.tree.map(lambda a, b: jnp.where(rises, a, b), state.aux, aux)
        # A plain step from y follows a restart; where that does not lower f either, it is the end.
        plain = weight == 0
        stands = (self.settled(y, after, state.value, f_after) & ~rises) | (rises & plain)
        broken = broken | (slope < 0)
        made = Descent(value, state.gradient, aux, smoothness, stands, broken, momentum)
        return kept, made, aux


def _search(attempt: Callable[[Array], tuple[Any, ...]], smoothness: Array) -> tuple[Any, ...]:
    """From half of M, double until the attempt fits: M, whether none did, and the attempt."""
    start = smoothness / 2

    def unfinished(carry: tuple[Any, ...]) -> Array:
        count, _, trial = carry
        return (count < DOUBLINGS) & ~trial[0]

    def double(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        count, last, _ = carry
        return count + 1, 2 * last, attempt(2 * last)

    first = (jnp.asarray(0), start, attempt(start))
    _, found, trial = jax.lax.while_loop(unfinished, double, first)
    return found, ~trial[0], trial


def _fits(before: Array, after: Array, slope: Array, smoothness: Array, last: Array) -> Array:
    """Whether f fell by slope / (2 M), up to the rounding of its values.

    Where that fall is lost in rounding M must not shrink: any M would fit, and the steps with it
    would keep y from settling.
    """
    fall, rounding = slope / (2 * smoothness), 10 * jnp.finfo(before.dtype).eps * jnp.abs(before)
    seen = (fall > rounding) | (smoothness >= last)
    return jnp.isfinite(after) & (after <= before - fall + rounding) & seen


def _share(weight: Float[Array, ""], smoothness: Float[Array, ""]) -> Float[Array, ""]:
    """The positive a with M a^2 = A + a."""
    return (1 + jnp.sqrt(1 + 4 * smoothness * weight)) / (2 * smoothness)


def _value_and_gradient(fn: Any, y: Any, args: Any) -> Any:
    return jax.value_and_grad(lambda p: fn(p, args), has_aux=True)(y)
