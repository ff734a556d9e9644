"""The face of the engine: power series of functions of any structure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nearly.core.errors import InputError
from nearly.derivatives.taylor import (
    bessel,
    control_flow,
    elementary,
    linear_algebra,
    structural,
)
from nearly.derivatives.taylor.interpreter import evaluate_closed
from nearly.derivatives.taylor.series import Term, Value, filled, from_terms, primal

# Importing them registered their rules.
WITH_RULES = (bessel, control_flow, elementary, linear_algebra, structural)


def jet(
    function: Callable[..., Any],
    primals: Sequence[Any],
    series: Sequence[Any],
    factorial_scaled: bool = True,
) -> tuple[Any, list[Any]]:
    """The power series of `function` along a curve, to the order to which the curve is given.

    **Arguments:**

    - `function`: of as many arguments as there are primals, to any pytree of arrays. It is traced.
    - `primals`: the point of the curve at t = 0: arguments of any structure, such as an array, a
      dictionary or an equinox module.
    - `series`: for each primal the derivatives of the curve of orders 1 … K, each with the
      structure of the primal. `None`, for a derivative, a leaf of one, or a whole argument, is
      zero and costs nothing. Integers, and leaves that are no arrays, cannot move.
    - `factorial_scaled`: whether the series hold derivatives; otherwise Taylor coefficients.

    **Returns:** the value, and a list of K derivatives (or coefficients), each of its structure.

    Raises `InputError` if structures, shapes or orders do not fit, and, naming the primitive, if
    the function uses one that has no rule here and no derivative in JAX.

    Costs K + 1 evaluations of every linear operation and up to (K + 1)(K + 2)/2 of every product
    of two things that move, in time; K + 1 times the memory. A loop takes as many steps, and a
    branch, a maximum or a permutation is chosen, as at t = 0. A `jax.custom_jvp` function is
    expanded by its rule, a `jax.custom_vjp` function, which has none in this direction, by what
    it computes.

    Called as `jax.experimental.jet.jet` is, and for arrays the result has the same form. It
    differs in that structures are allowed, in that zeros are not multiplied (a constant weight is
    applied K + 1 times), and in what it can expand (`higher-order-ad`).
    """
    order = _order(primals, series)
    arguments = [_flat(i, x, s, order) for i, (x, s) in enumerate(zip(primals, series))]
    factorials = [math.factorial(k) if factorial_scaled else 1 for k in range(order + 1)]
    value, coefficients = _expanded(function, arguments, order, factorials)
    higher = [
        jax.tree.map(lambda c, f=f: c if _is_float0(c) else c * jnp.asarray(f, c.dtype), tree)
        for tree, f in zip(coefficients, factorials[1:], strict=True)
    ]
    return value, higher


def directional_derivatives(
    function: Callable[[Any], Any], x: Any, direction: Any, order: int
) -> Any:
    """The derivatives of t -> function(x + t direction) at 0 of orders 0 … `order`, stacked.

    **Arguments:**

    - `function`: of one argument of any structure, to any pytree of arrays.
    - `x`, `direction`: of one structure; where the direction is `None`, x holds still.
    - `order`: K >= 1.

    **Returns:** the function's structure, every array with a new leading axis of length K + 1;
    entry k is the k-th derivative, applied to the direction k times.

    Raises and costs as `jet` does.
    """
    value, higher = jet(function, (x,), (_line(direction, order),))
    return jax.tree.map(lambda *terms: jnp.stack(terms), value, *higher)


def taylor(function: Callable[[Any], Any], x: Any, direction: Any, order: int) -> Any:
    """The Taylor coefficients of t -> function(x + t direction) at 0, stacked.

    As `directional_derivatives`, whose entry k is k! times that of this one.
    """
    value, higher = jet(function, (x,), (_line(direction, order),), factorial_scaled=False)
    return jax.tree.map(lambda *terms: jnp.stack(terms), value, *higher)


def _line(direction: Any, order: int) -> list[Any]:
    if order < 1:
        raise InputError(f"order {order} of an expansion: it must be at least 1")
    return [direction, *[None] * (order - 1)]


def _order(primals: Sequence[Any], series: Sequence[Any]) -> int:
    if len(primals) != len(series):
        raise InputError(
            f"{len(primals)} primals, but series for {len(series)}: give one for each, or None"
        )
    orders = {len(s) for s in series if s is not None}
    if len(orders) != 1 or 0 in orders:
        raise InputError(
            f"series of orders {sorted(orders)}: all arguments that move need the same number of "
            "derivatives, at least one (None stands for one that is zero)"
        )
    return orders.pop()


# One argument: its structure, and for each leaf the coefficients, or [leaf] if it is no array.
_Flat = tuple[Any, list[list[Any]]]


def _flat(position: int, x: Any, series: Any, order: int) -> _Flat:
    leaves, structure = jax.tree.flatten(x)
    columns: list[list[Any]] = []
    for k, term in enumerate([None] * order if series is None else series, start=1):
        columns.append(_unflattened(position, k, structure, term))
    rows = zip(*columns, strict=True) if leaves else ()
    return structure, [
        _coefficients(position, leaf, row) for leaf, row in zip(leaves, rows, strict=True)
    ]


def _unflattened(position: int, k: int, structure: Any, term: Any) -> list[Any]:
    if term is None:
        return [None] * structure.num_leaves
    try:
        return structure.flatten_up_to(term)
    except ValueError as error:
        raise InputError(
            f"the derivative of order {k} of argument {position} is not of its structure, "
            f"{structure}: {error}"
        ) from None


def _coefficients(position: int, leaf: Any, row: Sequence[Any]) -> list[Any]:
    """The leaf as an array and its derivatives, or the leaf alone if it is no array."""
    moves = [c is not None and not _is_float0(c) for c in row]
    if isinstance(leaf, (float, complex)) or (any(moves) and isinstance(leaf, int)):
        leaf = jnp.asarray(leaf)
    if not isinstance(leaf, (jax.Array, np.ndarray, np.generic)):
        if any(moves):
            raise InputError(
                f"argument {position} has a leaf {leaf!r} that is no array and cannot move: "
                "its derivatives must be None"
            )
        return [leaf]
    leaf = jnp.asarray(leaf)
    terms = [c if moving else None for c, moving in zip(row, moves, strict=True)]
    return [leaf, *(_checked(position, leaf, c) for c in terms)]


def _is_float0(term: Any) -> bool:
    return getattr(term, "dtype", None) == jax.dtypes.float0


def _checked(position: int, leaf: jax.Array, term: Any) -> Any:
    if term is None:
        return None
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        raise InputError(
            f"argument {position} has type {leaf.dtype} and cannot move: convert it to a "
            "floating-point type, or give None for its derivatives"
        )
    term = jnp.asarray(term)
    if term.shape != leaf.shape:
        raise InputError(
            f"a derivative of argument {position} has shape {term.shape}, its primal {leaf.shape}"
        )
    if jnp.iscomplexobj(term) and not jnp.iscomplexobj(leaf):
        raise InputError(
            f"argument {position} is real and its derivative complex: make the primal complex"
        )
    return term.astype(leaf.dtype)


def _expanded(
    function: Callable[..., Any], arguments: Sequence[_Flat], order: int, factorials: Sequence[int]
) -> tuple[Any, list[Any]]:
    leaves = [leaf for _, rows in arguments for leaf in rows]
    traced = [len(leaf) > 1 for leaf in leaves]

    def on_arrays(*arrays: Any) -> Any:
        fresh = iter(arrays)
        parts = iter([next(fresh) if t else leaf[0] for t, leaf in zip(traced, leaves)])
        whole = [jax.tree.unflatten(tree, [next(parts) for _ in rows]) for tree, rows in arguments]
        return function(*whole)

    inputs = [leaf for t, leaf in zip(traced, leaves) if t]
    program, shape = jax.make_jaxpr(on_arrays, return_shape=True)(*(leaf[0] for leaf in inputs))
    results = evaluate_closed(program, [_scaled(leaf, factorials) for leaf in inputs])
    rows = [_written_out(y, order) for y in results]
    structure = jax.tree.structure(shape)
    value, *higher = (jax.tree.unflatten(structure, list(row)) for row in zip(*rows, strict=True))
    return value, higher


def _written_out(y: Value, order: int) -> Sequence[Any]:
    if jnp.issubdtype(primal(y).dtype, jax.dtypes.prng_key):  # for which there is no zero
        return [y, *[np.zeros(jnp.shape(y), jax.dtypes.float0)] * order]
    return [jnp.asarray(c) for c in filled(y, order).terms]


def _scaled(terms: Sequence[Term], factorials: Sequence[int]) -> Value:
    scaled = [None if c is None else c / f for c, f in zip(terms[1:], factorials[1:], strict=True)]
    return from_terms([terms[0], *scaled])
