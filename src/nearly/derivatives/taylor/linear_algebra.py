"""Rules for solves and factorisations: the defining equation, order by order, in O(K^2) products.

Coefficient k of an equation such as A x = b or A = L L^T is linear in the unknown's coefficient k,
with the matrices at t = 0 and what is known from lower orders on the right: all orders share one
factorisation. The rules are JAX's own conventions where a factorisation is not unique. Those not
named here (svd, and lu and qr of other than tall or square matrices) are expanded by their
derivative rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.extend.core import JaxprEqn

from nearly.derivatives.taylor.interpreter import bind, by_jvp, evaluate_closed, rule
from nearly.derivatives.taylor.series import (
    Term,
    Value,
    convolution,
    from_terms,
    order_of,
    primal,
    terms_of,
    total,
    truncated,
)

_product = partial(jnp.matmul, precision=lax.Precision.HIGHEST)
_solve = partial(lax.linalg.triangular_solve)


def _adjoint(x: Any) -> Any:
    return jnp.conj(jnp.swapaxes(x, -1, -2))


def _minus(a: Term, b: Term) -> Term:
    return total([a, None if b is None else -b])


def _inner(a: Sequence[Term], b: Sequence[Term], k: int) -> Term:
    """What orders below k contribute to coefficient k of a product."""
    return convolution(a, b, k, start=1, stop=k, product=_product)


# ---- solves


@rule("custom_linear_solve")
def _linear_solve(equation: JaxprEqn, arguments: Sequence[Value]) -> list[Value]:
    """A x = b: A_0 x_k = b_k - (A_1 x_(k-1) + … + A_k x_0), by the solver that was given."""
    count = sum(equation.params["const_lengths"])
    constants, sides = arguments[:count], arguments[count:]
    matrix = constants[: equation.params["const_lengths"].matvec]
    order = order_of(*arguments)
    fixed = [primal(c) for c in constants]
    missing = [terms_of(b, order) for b in sides]
    columns: list[list[Term]] = []
    for k in range(order + 1):
        columns.append(_solved(equation, fixed, [column[k] for column in missing]))
        if k < order and order_of(*matrix) and columns[k][0] is not None:
            _move_to_the_right(equation, matrix, columns[k], missing, k, order)
    return [from_terms(terms) for terms in zip(*columns, strict=True)]


def _solved(equation: JaxprEqn, fixed: Sequence[Any], sides: Sequence[Term]) -> list[Term]:
    if all(b is None for b in sides):
        return [None] * len(sides)
    avals = [v.aval for v in equation.outvars]
    known = [
        jnp.zeros(getattr(a, "shape"), getattr(a, "dtype")) if b is None else b  # noqa: B009
        for b, a in zip(sides, avals, strict=True)
    ]
    return bind(equation, [*fixed, *known])


def _move_to_the_right(
    equation: JaxprEqn,
    matrix: Sequence[Value],
    found: Sequence[Term],
    missing: Sequence[list[Term]],
    k: int,
    order: int,
) -> None:
    """Subtract (A - A_0) x_k t^k from the right-hand sides of the orders to come."""
    moving = [truncated(c, order - k) for c in matrix]
    images = evaluate_closed(equation.params["jaxprs"].matvec, [*moving, *found])
    for column, image in zip(missing, images, strict=True):
        for j, term in enumerate(terms_of(image, order - k)[1:], start=k + 1):
            column[j] = _minus(column[j], term)


@rule("triangular_solve")
def _triangular_solve(equation: JaxprEqn, arguments: Sequence[Value]) -> list[Value]:
    a, b = arguments
    order = order_of(a, b)
    matrices = [None if c is None else _effective(c, equation.params) for c in terms_of(a, order)]
    sides, fixed = terms_of(b, order), primal(a)
    left = equation.params["left_side"]

    def product(m: Any, x: Any) -> Any:
        return _product(m, x) if left else _product(x, m)

    found: list[Term] = []
    for k in range(order + 1):
        rest = convolution(matrices, [*found, None], k, start=1, product=product)
        side = _minus(sides[k], rest)
        found.append(None if side is None else bind(equation, [fixed, side])[0])
    return [from_terms(found)]


def _effective(coefficient: Any, parameters: Any) -> Any:
    """What a higher coefficient of the matrix multiplies by: its triangle, transposed if asked."""
    offset = 1 if parameters["unit_diagonal"] else 0
    lower = parameters["lower"]
    kept = jnp.tril(coefficient, -offset) if lower else jnp.triu(coefficient, offset)
    kept = jnp.swapaxes(kept, -1, -2) if parameters["transpose_a"] else kept
    return jnp.conj(kept) if parameters["conjugate_a"] else kept


# ---- factorisations


@rule("cholesky")
def _cholesky(equation: JaxprEqn, arguments: Sequence[Value]) -> list[Value]:
    """A = L L^H. The primitive reads the lower triangle, and leaves anything in the upper one."""
    (a,) = arguments
    first = jnp.tril(bind(equation, [a.primal])[0])
    factor: list[Term] = [first]
    for k in range(1, a.order + 1):
        rest = _inner(factor, [None if c is None else _adjoint(c) for c in factor], k)
        below = a.terms[k]
        hermitian = None if below is None else jnp.tril(below) + _adjoint(jnp.tril(below, -1))
        side = _minus(hermitian, rest)
        factor.append(None if side is None else _product(first, _half_lower(first, side)))
    return [from_terms(factor)]


def _half_lower(factor: Any, side: Any) -> Any:
    """The lower triangle of L^-1 M L^-H, its diagonal halved."""
    inner = _solve(factor, side, left_side=True, lower=True)
    inner = _solve(factor, inner, left_side=False, lower=True, transpose_a=True, conjugate_a=True)
    return jnp.tril(inner, -1) + jnp.tril(jnp.triu(inner)) / 2


@rule("lu")
def _lu(equation: JaxprEqn, arguments: Sequence[Value]) -> list[Value]:
    """P A = L U, with the pivots of t = 0."""
    (a,) = arguments
    if a.primal.shape[-1] != a.primal.shape[-2]:
        return by_jvp(equation, arguments)
    packed, pivots, permutation = bind(equation, [a.primal])
    lower: list[Term] = [jnp.tril(packed, -1) + jnp.eye(packed.shape[-1], dtype=packed.dtype)]
    upper: list[Term] = [jnp.triu(packed)]
    together: list[Term] = [packed]
    for k in range(1, a.order + 1):
        rows = a.terms[k]
        if rows is not None:
            rows = jnp.take_along_axis(rows, permutation[..., None], axis=-2)
        side = _minus(rows, _inner(lower, upper, k))
        if side is None:
            for terms in (lower, upper, together):
                terms.append(None)
            continue
        inner = _solve(packed, side, left_side=True, lower=True, unit_diagonal=True)
        inner = _solve(packed, inner, left_side=False, lower=False)
        lower.append(_product(lower[0], jnp.tril(inner, -1)))
        upper.append(_product(jnp.triu(inner), upper[0]))
        together.append(lower[k] + upper[k])
    return [from_terms(together), pivots, permutation]


@rule("qr")
def _qr(equation: JaxprEqn, arguments: Sequence[Value]) -> list[Value]:
    """A = Q R with Q^H Q = I; the diagonal of R stays real."""
    (a,) = arguments
    rows, columns = a.primal.shape[-2:]
    full = equation.params["full_matrices"] and rows != columns
    if rows < columns or full or equation.params["pivoting"]:
        return by_jvp(equation, arguments)
    q0, r0 = bind(equation, [a.primal])[:2]
    q, r = [q0], [r0]
    for k in range(1, a.order + 1):
        side = _minus(a.terms[k], _inner(q, r, k))
        overlap = _inner([None if c is None else _adjoint(c) for c in q], q, k)
        if side is None and overlap is None:
            q.append(None)
            r.append(None)
            continue
        scaled = _solve(r0, jnp.zeros_like(q0) if side is None else side, left_side=False)
        inner = _product(_adjoint(q0), scaled)
        sums = total([inner, _adjoint(inner), overlap])
        change = jnp.triu(sums, 1) + jnp.tril(jnp.triu(sums)) / 2
        q.append(scaled - _product(q0, change))
        r.append(_product(change, r0))
    return [from_terms(q), from_terms(r)]


@rule("eigh")
def _eigh(equation: JaxprEqn, arguments: Sequence[Value]) -> list[Value]:
    """V' = V C and w' = diag(G), with G = V^H A' V and C_ij = G_ij / (w_j - w_i) off the diagonal.

    As JAX's rule: the eigenvalues must be apart.
    """
    (a,) = arguments
    if equation.params["subset_by_index"] is not None:
        return by_jvp(equation, arguments)
    vectors, values = ([x] for x in bind(equation, [a.primal]))
    speeds = [None if c is None else k * c for k, c in enumerate(a.terms)][1:]
    turning: list[Term] = []
    images: list[Term] = []
    for k in range(a.order):
        images.append(convolution(speeds, vectors, k, product=_product))
        adjoints = [None if c is None else _adjoint(c) for c in vectors]
        moved = convolution(adjoints, images, k, product=_product)
        turning.append(_turning(moved, values, turning, k))
        turned = convolution(vectors, turning, k, product=_product)
        vectors.append(None if turned is None else turned / (k + 1))
        stretch = None if moved is None else jnp.real(jnp.diagonal(moved, axis1=-2, axis2=-1))
        values.append(None if stretch is None else stretch / (k + 1))
    return [from_terms(vectors), from_terms(values)]


def _differences(values: Term) -> Term:
    return None if values is None else values[..., None, :] - values[..., :, None]


def _turning(moved: Term, values: Sequence[Term], turning: Sequence[Term], k: int) -> Term:
    """Coefficient k of C, from G = D C entry by entry, D_ij = w_j - w_i."""
    gaps: list[Term] = [_differences(w) for w in values]
    rest = convolution(gaps, [*turning, None], k, start=1)
    top = _minus(moved, rest)
    if top is None:
        return None
    identity = jnp.eye(top.shape[-1], dtype=bool)
    return jnp.where(identity, 0, top / jnp.where(identity, 1, gaps[0]))


@rule("eig")
def _eigenvalues(equation: JaxprEqn, arguments: Sequence[Value]) -> list[Value]:
    """B P = P W with B = V_0^-1 A V_0 and P_0 = I: the eigenvalues, whatever scales the vectors.

    Series of the vectors themselves depend on how they are scaled, and are left to JAX's rule.
    """
    (a,) = arguments
    parameters = equation.params
    if parameters["compute_left_eigenvectors"] or parameters["compute_right_eigenvectors"]:
        return by_jvp(equation, arguments)
    first, vectors = lax.linalg.eig(
        a.primal,
        compute_left_eigenvectors=False,
        compute_right_eigenvectors=True,
        implementation=parameters["implementation"],
        enable_eigvec_derivs=True,  # of what does not depend on their scale
    )
    matrices: list[Term] = [None if c is None else _similar(vectors, c) for c in a.terms]
    identity = jnp.eye(vectors.shape[-1], dtype=bool)
    gaps = jnp.where(identity, 1, first[..., None, :] - first[..., :, None])
    changes: list[Term] = [identity.astype(first.dtype)]
    values: list[Term] = [first]
    for k in range(1, a.order + 1):
        forward = convolution(matrices, [*changes, None], k, start=1, product=_product)
        known = convolution(changes, values, k, start=1, stop=k, product=_scale_columns)
        side = _minus(forward, known)
        values.append(None if side is None else jnp.diagonal(side, axis1=-2, axis2=-1))
        changes.append(None if side is None else jnp.where(identity, 0, side / gaps))
    return [from_terms(values)]


def _similar(vectors: Any, matrix: Any) -> Any:
    return jnp.linalg.solve(vectors, _product(matrix.astype(vectors.dtype), vectors))


def _scale_columns(matrix: Any, factors: Any) -> Any:
    return matrix * factors[..., None, :]
