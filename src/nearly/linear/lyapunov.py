"""The linear equations behind the derivatives of matrix roots (`fast-matrix-square-root`).

`S X + X S = G` by the Newton-Schulz iteration for the sign of [[S, G], [0, -S]], in products only;
and `sum_k Y^k X Y^(p-1-k) = G`, which is a chain of such equations for p a power of two.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Lyapunov = Callable[[Array, Array], Array]  # (S, G) -> X with S X + X S = G


def fixed_lyapunov(
    root: Float[Array, "*batch n n"], rhs: Float[Array, "*batch n n"], *, steps: int = 8
) -> Float[Array, "*batch n n"]:
    """`steps` steps, as published: wrong where S has a condition number above about ten.

    The smallest eigenvalue of S / |S|_F grows by 3/2 a step and must come near 1. Six products a
    step. Unlike the published code, each matrix of a batch is scaled by its own norm.
    """
    iterate = jax.lax.fori_loop(0, steps, lambda _, bc: _step(*bc), _start(root, rhs))
    return 0.5 * iterate[1]


def converged_lyapunov(
    root: Float[Array, "*batch n n"], rhs: Float[Array, "*batch n n"], *, most: int = 60
) -> Float[Array, "*batch n n"]:
    """As many steps as the worst matrix of the batch needs: to rounding error.

    log(sqrt(n) cond(S)) / log(3/2) steps and some five more, `most` at most. What is watched is
    B^2 - I: once it is below the root of the rounding unit, one more step makes it the unit.
    """
    goal = jnp.finfo(root.dtype).eps ** 0.5 * root.shape[-1] ** 0.5
    identity = jnp.eye(root.shape[-1], dtype=root.dtype)

    def unfinished(state: tuple[Array, Array, Array, Array]) -> Array:
        count, gap, _, _ = state
        return (count < most) & (gap > goal)

    def step(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        count, _, b, c = state
        gap = jnp.max(jnp.linalg.norm(b @ b - identity, axis=(-2, -1)))
        return count + 1, gap, *_step(b, c)

    start = (jnp.asarray(0), jnp.asarray(jnp.inf, root.dtype), *_start(root, rhs))
    return 0.5 * jax.lax.while_loop(unfinished, step, start)[3]


def _start(root: Array, rhs: Array) -> tuple[Array, Array]:
    norm = jnp.linalg.norm(root, axis=(-2, -1), keepdims=True)
    return root / norm, rhs / norm


def _step(b: Array, c: Array) -> tuple[Array, Array]:
    """One step of M <- M (3 - M^2) / 2 for M = [[B, C], [0, -B]]."""
    square = b @ b
    mixed = 3 * c - c @ square - square @ c + b @ c @ b
    return 1.5 * b - 0.5 * b @ square, 0.5 * mixed


def solve_lyapunov(
    root: Float[Array, "*batch n n"],
    rhs: Float[Array, "*batch n n"],
    method: Lyapunov = converged_lyapunov,
) -> Float[Array, "*batch n n"]:
    """X with S X + X S = G for symmetric positive definite S; differentiable to any order.

    The equation is its own transpose, so the same iteration serves forward and reverse mode and
    is never differentiated itself.
    """
    return jax.lax.custom_linear_solve(
        lambda x: root @ x + x @ root,
        rhs,
        lambda _, g: method(jax.lax.stop_gradient(root), g),
        symmetric=True,
    )


def solve_power_equation(
    root: Float[Array, "*batch n n"],
    rhs: Float[Array, "*batch n n"],
    order: int,
    method: Lyapunov = converged_lyapunov,
) -> Float[Array, "*batch n n"]:
    """X with sum_k Y^k X Y^(p-1-k) = G, the derivative of Y^p = A: for symmetric Y > 0.

    An even p is a Lyapunov equation for the derivative of Y^(p/2), followed by the equation of
    p/2. An odd one is solved by conjugate gradients, in about cond(Y)^((p-1)/2) steps of p
    products.
    """
    if order == 1:
        return rhs
    if order % 2 == 0:
        half = _integer_power(root, order // 2)
        return solve_power_equation(root, solve_lyapunov(half, rhs, method), order // 2, method)
    norm = jax.lax.stop_gradient(jnp.linalg.norm(root, axis=(-2, -1), keepdims=True))
    unit = root / norm
    equation = partial(_power_sum, unit, order)
    return jax.lax.custom_linear_solve(equation, rhs, _conjugate_gradients, symmetric=True) / (
        norm ** (order - 1)
    )


def _power_sum(root: Array, order: int, x: Array) -> Array:
    """sum_k Y^k X Y^(p-1-k), by Horner's rule on both sides."""
    left, total = x, x
    for _ in range(order - 1):
        left = root @ left
        total = total @ root + left
    return total


def _conjugate_gradients(equation: Callable[[Array], Array], rhs: Array) -> Array:
    """On each matrix of a batch apart, to rounding error or 10 n steps."""

    def inner(a: Array, b: Array) -> Array:
        return jnp.sum(a * b, axis=(-2, -1), keepdims=True)

    goal = (jnp.finfo(rhs.dtype).eps * 4) ** 2 * inner(rhs, rhs)

    def unfinished(state: tuple[Array, ...]) -> Array:
        count, _, _, _, size = state
        return (count < 10 * rhs.shape[-1]) & jnp.any(size > goal)

    def step(state: tuple[Array, ...]) -> tuple[Array, ...]:
        count, x, residual, direction, size = state
        image = equation(direction)
        active = size > goal
        length = jnp.where(active, size / jnp.where(active, inner(direction, image), 1), 0)
        residual = residual - length * image
        after = inner(residual, residual)
        turn = jnp.where(active, after / jnp.where(active, size, 1), 0)
        return count + 1, x + length * direction, residual, residual + turn * direction, after

    start = (jnp.asarray(0), jnp.zeros_like(rhs), rhs, rhs, inner(rhs, rhs))
    return jax.lax.while_loop(unfinished, step, start)[1]


def _integer_power(matrix: Array, exponent: int) -> Array:
    result = matrix
    for _ in range(exponent - 1):
        result = result @ matrix
    return result
