"""Solves and factorisations as series: their defining equations hold at every order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import comb
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from nearly.derivatives.taylor import directional_derivatives

ORDER = 4


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def moving(*shape: int, complex_valued: bool = False) -> Callable[[Any], Any]:
    """A matrix, or a stack of them, that moves with t: well-conditioned, every entry curved."""
    draw = np.random.default_rng(sum(shape))
    a, b, c = draw.normal(size=(3, *shape)) / 2
    base = 2 * np.eye(*shape[-2:]) * np.arange(1, shape[-1] + 1)

    def matrix(t: Any) -> Any:
        real = base + a + b * jnp.sin(t) + c * t
        return real * jnp.exp(1j * a * t) if complex_valued else real

    return matrix


def hermitian(matrix: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda t: matrix(t) + jnp.conj(jnp.swapaxes(matrix(t), -1, -2))


def positive(matrix: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda t: matrix(t) @ jnp.conj(jnp.swapaxes(matrix(t), -1, -2))


def expand(function: Callable[[Any], Any]) -> Any:
    start = jnp.asarray(0.2)
    return directional_derivatives(function, start, jnp.ones(()), ORDER)


def product(a: Any, b: Any) -> np.ndarray:
    """Derivatives of a product from those of its factors, by Leibniz' rule in NumPy."""
    a, b = np.asarray(a), np.asarray(b)
    terms = [sum(comb(k, j) * a[j] @ b[k - j] for j in range(k + 1)) for k in range(len(a))]
    return np.stack(terms)


def adjoint(a: Any) -> np.ndarray:
    return np.conj(np.swapaxes(np.asarray(a), -1, -2))


def same(a: Any, b: Any) -> None:
    a, b = np.asarray(a), np.asarray(b)
    sizes = np.max(np.abs(b), axis=tuple(range(1, b.ndim)), keepdims=True) + 1
    np.testing.assert_allclose(a / sizes, b / sizes, atol=1e-11)


def constant(value: Any) -> np.ndarray:
    return np.stack([value, *[0 * value] * ORDER])


@pytest.mark.parametrize("complex_valued", [False, True])
@pytest.mark.parametrize("shape", [(3, 3), (2, 3, 3)])
def test_a_solve(shape: tuple[int, ...], complex_valued: bool) -> None:
    matrix, side = moving(*shape, complex_valued=complex_valued), moving(*shape)
    x = expand(lambda t: jnp.linalg.solve(matrix(t), side(t)))
    same(product(expand(matrix), x), expand(side))


def test_a_solve_whose_matrix_holds_still_or_whose_side_does() -> None:
    matrix, side = moving(3, 3), moving(3, 3)
    held = matrix(0.2)
    same(product(constant(held), expand(lambda t: jnp.linalg.solve(held, side(t)))), expand(side))
    held = side(0.2)
    x = expand(lambda t: jnp.linalg.solve(matrix(t), held))
    same(product(expand(matrix), x), constant(held))


def test_an_iterative_solve() -> None:
    matrix = positive(moving(3, 3))
    x = expand(
        lambda t: jax.scipy.sparse.linalg.cg(lambda y: matrix(t) @ y, jnp.full(3, t), tol=1e-14)[0]
    )
    side = expand(lambda t: jnp.full(3, t))
    same(product(expand(matrix), x[..., None])[..., 0], side)


@pytest.mark.parametrize("left_side", [True, False])
@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("transpose", [(False, False), (True, False), (True, True)])
def test_a_triangular_solve(left_side: bool, lower: bool, transpose: tuple[bool, bool]) -> None:
    matrix, side = moving(3, 3, complex_valued=True), moving(3, 3)
    transpose_a, conjugate_a = transpose
    unit = lower
    x = expand(
        lambda t: lax.linalg.triangular_solve(
            matrix(t),
            side(t) + 0j,
            left_side=left_side,
            lower=lower,
            transpose_a=transpose_a,
            conjugate_a=conjugate_a,
            unit_diagonal=unit,
        )
    )
    a = np.asarray(expand(matrix))
    a = np.tril(a) if lower else np.triu(a)
    if unit:
        a = np.tril(a, -1) + constant(np.eye(3))
    a = np.swapaxes(a, -1, -2) if transpose_a else a
    a = np.conj(a) if conjugate_a else a
    same(product(a, x) if left_side else product(x, a), expand(side))


@pytest.mark.parametrize("complex_valued", [False, True])
def test_cholesky(complex_valued: bool) -> None:
    matrix = positive(moving(3, 3, complex_valued=complex_valued))
    factor = np.asarray(expand(lambda t: jnp.linalg.cholesky(matrix(t))))
    same(product(factor, adjoint(factor)), expand(matrix))
    assert not np.any(np.triu(factor, 1))
    np.testing.assert_allclose(np.imag(np.diagonal(factor, axis1=-2, axis2=-1)), 0, atol=1e-13)


@pytest.mark.parametrize("shape", [(3, 3), (2, 3, 3), (4, 3)])
def test_lu(shape: tuple[int, ...]) -> None:
    matrix = moving(*shape)
    packed = np.asarray(expand(lambda t: lax.linalg.lu(matrix(t)[..., ::-1, :])[0]))
    permutation = np.asarray(lax.linalg.lu(matrix(0.2)[..., ::-1, :])[2])
    n = shape[-1]
    identity = np.broadcast_to(np.eye(*shape[-2:]), shape)
    lower = np.tril(packed, -1)[..., :n] + constant(identity)
    upper = np.triu(packed)[..., :n, :]
    rows = np.asarray(expand(matrix))[..., ::-1, :]
    same(product(lower, upper), np.take_along_axis(rows, permutation[None, ..., None], axis=-2))


@pytest.mark.parametrize("complex_valued", [False, True])
@pytest.mark.parametrize("shape", [(3, 3), (2, 4, 3)])
def test_qr(shape: tuple[int, ...], complex_valued: bool) -> None:
    matrix = moving(*shape, complex_valued=complex_valued)
    q, r = expand(lambda t: tuple(jnp.linalg.qr(matrix(t))))
    same(product(q, r), expand(matrix))
    identity = np.broadcast_to(np.eye(3), (*shape[:-2], 3, 3))
    same(product(adjoint(q), q), constant(identity))
    assert not np.any(np.tril(r, -1))


@pytest.mark.parametrize("complex_valued", [False, True])
@pytest.mark.parametrize("shape", [(3, 3), (2, 3, 3)])
def test_eigh(shape: tuple[int, ...], complex_valued: bool) -> None:
    matrix = hermitian(moving(*shape, complex_valued=complex_valued))
    values, vectors = expand(lambda t: tuple(jnp.linalg.eigh(matrix(t))))
    diagonal = np.asarray(values)[..., None] * np.eye(3)
    same(product(expand(matrix), vectors), product(vectors, diagonal))
    same(product(adjoint(vectors), vectors), constant(np.broadcast_to(np.eye(3), shape)))


def test_svd() -> None:
    matrix = moving(4, 3)
    u, s, v = expand(lambda t: tuple(jnp.linalg.svd(matrix(t), full_matrices=False)))
    diagonal = np.asarray(s)[..., None] * np.eye(3)
    same(product(product(u, diagonal), v), expand(matrix))
    same(product(adjoint(u), u), constant(np.eye(3)))


def test_eigenvalues_of_a_matrix_without_symmetry() -> None:
    """Newton's identities in reverse: power sums of the eigenvalues are traces of powers."""
    turning = jnp.asarray([[0.0, 3.0, 0.0], [-3.0, 0.0, 0.0], [0.0, 0.0, 9.0]])
    matrix = moving(3, 3)

    def shifted(t: Any) -> Any:
        return matrix(t) + turning  # two eigenvalues are complex

    for power in (1, 2, 3):
        sums = expand(lambda t, p=power: jnp.sum(jnp.linalg.eigvals(shifted(t)) ** p))
        same(sums, expand(lambda t, p=power: jnp.trace(jnp.linalg.matrix_power(shifted(t), p))))


def test_the_gradient_of_a_high_order_term_passes_through_a_solve() -> None:
    matrix, h = moving(3, 3), 1e-5

    def third(scale: Any) -> Any:
        x = expand(lambda t: jnp.linalg.solve(scale * matrix(t), jnp.ones(3)))
        return jnp.sum(x[3])

    slope = jax.grad(third)(1.3)
    np.testing.assert_allclose(slope, (third(1.3 + h) - third(1.3 - h)) / (2 * h), rtol=1e-7)
