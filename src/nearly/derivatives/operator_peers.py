"""What else computes or estimates a Laplacian: peers of `stde`, for second order only.

Functions of the protocol "differential-operators". Nested AD is the honest rival at order 2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nearly.core.errors import InputError, MissingDependency
from nearly.derivatives.operators import Coordinates, Operator
from nearly.derivatives.samplers import draw_subset
from nearly.derivatives.stde import Estimate

Transformation = Callable[[Callable[..., Any]], Callable[..., Estimate]]


def _must_be_laplacian(operator: Operator, who: str) -> None:
    terms = [(t.slots, t.powers, t.coefficient) for t in operator.terms]
    known = len(terms) == 1 and terms[0][1:] == ((2,), 1.0)
    slot = terms[0][0][0] if known else None
    if not isinstance(slot, Coordinates) or slot != Coordinates():
        raise InputError(f"{who} knows the Laplacian only: use stde for other operators")


def _exactly(value: Any, function: Any) -> Estimate:
    return Estimate(value, jnp.zeros_like(value), function, 0)


def hessian_trace(operator: Operator) -> Transformation:
    """The trace of `jax.hessian`: d^2 numbers, of which d are wanted."""
    _must_be_laplacian(operator, "hessian-trace")

    def transformation(f: Callable[..., Any]) -> Callable[..., Estimate]:
        return lambda x, key: _exactly(jnp.trace(jax.hessian(f)(x)), f(x))

    return transformation


def jvp_of_grad(operator: Operator) -> Transformation:
    """One Hessian-vector product for each axis, forward over reverse, linearised once."""
    _must_be_laplacian(operator, "jvp-of-grad")

    def transformation(f: Callable[..., Any]) -> Callable[..., Estimate]:
        def estimate(x: Any, key: Any) -> Estimate:
            product = jax.linearize(jax.grad(f), x)[1]
            diagonal = jax.vmap(lambda e: jnp.vdot(e, product(e)))(jnp.eye(x.size, dtype=x.dtype))
            return _exactly(diagonal.sum(), f(x))

        return estimate

    return transformation


def forward_laplacian(operator: Operator) -> Transformation:
    """folx's forward Laplacian: value, gradient and Laplacian pushed through together.

    Raises `MissingDependency` if folx is not installed.
    """
    _must_be_laplacian(operator, "folx")
    try:
        import folx  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingDependency("folx is not installed: pip install folx") from error

    def transformation(f: Callable[..., Any]) -> Callable[..., Estimate]:
        def estimate(x: Any, key: Any) -> Estimate:
            found: Any = folx.forward_laplacian(f, sparsity_threshold=0)(x)
            return _exactly(jnp.asarray(found.laplacian), jnp.asarray(found.x))

        return estimate

    return transformation


def sdgd(operator: Operator, directions: int) -> Transformation:
    """Stochastic dimension gradient descent: some diagonal entries of the Hessian, nested AD."""
    _must_be_laplacian(operator, "sdgd")

    def transformation(f: Callable[..., Any]) -> Callable[..., Estimate]:
        def estimate(x: Any, key: Any) -> Estimate:
            axes = draw_subset(key, x.size, min(directions, x.size))
            product = jax.linearize(jax.grad(f), x)[1]
            entries = jax.vmap(lambda i: product(jnp.zeros_like(x).at[i].set(1))[i])(axes)
            return _mean(x.size * entries, f(x), 1 - len(axes) / x.size)

        return estimate

    return transformation


def hutchinson(operator: Operator, directions: int) -> Transformation:
    """Hutchinson's trace estimator: v·Hv for Rademacher vectors, forward over reverse."""
    _must_be_laplacian(operator, "hutchinson")

    def transformation(f: Callable[..., Any]) -> Callable[..., Estimate]:
        def estimate(x: Any, key: Any) -> Estimate:
            vectors = jax.random.rademacher(key, (directions, x.size), x.dtype)
            product = jax.linearize(jax.grad(f), x)[1]
            return _mean(jax.vmap(lambda v: jnp.vdot(v, product(v)))(vectors), f(x), 1.0)

        return estimate

    return transformation


def _mean(values: Any, function: Any, correction: float) -> Estimate:
    count = len(values)
    variance = jnp.sum((values - values.mean()) ** 2) / (count - 1 if count > 1 else jnp.nan)
    error = jnp.sqrt(correction * variance / count) if correction else jnp.zeros_like(values[0])
    return Estimate(values.mean(), error, function, 0)
