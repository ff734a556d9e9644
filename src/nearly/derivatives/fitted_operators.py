"""Differential operators of noisy functions, by local fits: the protocol of `stde`."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from nearly.core.errors import InputError
from nearly.derivatives.local_fit import Fitted, local_polynomial, sobol_stencil
from nearly.derivatives.operators import Axis, Columns, Coordinates, Direction, Operator, Slot, Term
from nearly.derivatives.stde import Estimate


def fitted_operator(
    operator: Operator, samples: int, sigma: float = 0.02
) -> Callable[[Callable[..., Any]], Callable[..., Estimate]]:
    """An operator of at most second order from a quadratic fit (`hybrid-field-derivatives`).

    **Arguments:** `samples`: evaluations of the function, in a fixed stencil of size `sigma`; that
    should be near the function's grid cell (`choose_sigma` finds it), .02 suits 128 cells on
    [-1, 1].

    **Returns:** a transformation f -> ((x, key) -> `Estimate`); nothing is random, the key is
    there for the protocol. `function` is f(x) itself.

    Raises `InputError` for operators of higher order and for fewer samples than coefficients.
    """
    if operator.order > 2:
        raise InputError(f"a quadratic fit has no derivatives of order {operator.order}: use stde")

    def transformation(f: Callable[..., Any]) -> Callable[..., Estimate]:
        def estimate(x: Float[Array, " d"], key: Key[Array, ""]) -> Estimate:
            fitted = local_polynomial(f, sobol_stencil(samples, x.size, x.dtype), sigma)(x)
            weights = sum(_weights(term, fitted, x) for term in operator.terms)
            value = weights @ fitted.coefficients
            error = fitted.noise * jnp.linalg.norm(weights @ fitted.filter)
            return Estimate(value, error, f(x), 0)

        return estimate

    return transformation


def _weights(term: Term, fitted: Fitted, x: Float[Array, " d"]) -> Float[Array, " n"]:
    """A term as a combination of the fit's coefficients."""
    value, vector, matrix = (
        jnp.zeros(1, x.dtype),
        jnp.zeros_like(x),
        jnp.zeros((x.size,) * 2, x.dtype),
    )
    if term.order == 0:
        value = jnp.ones(1, x.dtype)
    elif term.order == 1:
        vector = _vector(term.slots[0], x)
    elif term.powers == (2,):
        matrix = _squared(term.slots[0], x)
    else:
        one, other = (_vector(slot, x) for slot in term.slots)
        matrix = jnp.outer(one, other)
    pairs = list(combinations(range(x.size), 2))
    mixed = [matrix[i, j] + matrix[j, i] for i, j in pairs]
    second = jnp.concatenate([jnp.diag(matrix), jnp.asarray(mixed, x.dtype)])
    parts = [value, vector / fitted.sigma, second / fitted.sigma**2]
    return term.coefficient * jnp.concatenate(parts)


def _vector(slot: Slot, x: Float[Array, " d"]) -> Float[Array, " d"]:
    """The vector of a slot, summed over if it is a sum."""
    if isinstance(slot, Direction):
        return slot.vector.astype(x.dtype)
    if isinstance(slot, Columns):
        return slot.matrix.sum(1).astype(x.dtype)
    return _entries(slot, x)


def _squared(slot: Slot, x: Float[Array, " d"]) -> Float[Array, "d d"]:
    """The sum of the outer squares of a slot's vectors."""
    if isinstance(slot, Columns):
        return (slot.matrix @ slot.matrix.T).astype(x.dtype)
    if isinstance(slot, Direction):
        return jnp.outer(slot.vector, slot.vector).astype(x.dtype)
    return jnp.diag(_entries(slot, x))


def _entries(slot: Axis | Coordinates, x: Float[Array, " d"]) -> Float[Array, " d"]:
    """The weights of the axes that a slot names, 0 for the others."""
    if isinstance(slot, Axis):
        return jnp.zeros_like(x).at[slot.resolve(x.size)].set(1)
    axes = slot.axes(x.size)
    weights = 1.0 if slot.weights is None else slot.weights.astype(x.dtype)
    return jnp.zeros_like(x).at[axes.start : axes.stop].set(weights)
