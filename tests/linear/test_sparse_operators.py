"""Sparse operators: every layout against the matrix it came from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.sparse as sp

from nearly.core.errors import InputError
from nearly.linear import grids
from nearly.linear.operators import CountedOperator, SparseOperator, as_scipy
from nearly.linear.operators.storage import Diagonals, Remainder, Rows, Slots


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def random(rows: int, columns: int, density: float, seed: int = 0) -> sp.csr_array:
    rng = np.random.default_rng(seed)
    held = rng.random((rows, columns)) < density
    return sp.csr_array(np.where(held, rng.normal(size=(rows, columns)), 0))


def arrow(size: int = 60) -> sp.csr_array:
    """Short rows, and one that is full."""
    matrix = random(size, size, 0.05).toarray()
    matrix[7] = np.random.default_rng(1).normal(size=size)
    return sp.csr_array(matrix)


MATRICES = {
    "diagonals": (lambda: as_scipy(grids.poisson2d(6)), (Diagonals,)),
    "wide diagonals": (lambda: sp.csr_array(sp.eye_array(5, 8, k=3)), (Diagonals,)),
    "tall diagonals": (lambda: sp.csr_array(sp.eye_array(8, 5, k=-2)), (Diagonals,)),
    "short rows": (lambda: random(50, 70, 0.05), (Slots,)),
    "long rows": (lambda: random(40, 60, 0.7), (Rows,)),
    "arrow": (arrow, (Slots, Remainder)),
    "one full row": (lambda: sp.csr_array(np.eye(40)[[3]].T @ np.ones((1, 40))), (Remainder,)),
    "nothing": (lambda: sp.csr_array((4, 3)), (Diagonals,)),
}


@pytest.mark.parametrize("name", MATRICES)
def test_products_are_those_of_the_matrix_in_every_layout(name: str) -> None:
    make, layout = MATRICES[name]
    matrix = make()
    operator = SparseOperator.from_scipy(matrix)
    assert {type(part) for part in operator.parts} <= set(layout) | {Remainder}
    assert layout[0] in {type(part) for part in operator.parts}
    rng = np.random.default_rng(2)
    x, y = (jnp.asarray(rng.normal(size=n)) for n in reversed(matrix.shape))
    np.testing.assert_allclose(operator.mv(x), matrix @ np.asarray(x), atol=1e-13)
    np.testing.assert_allclose(operator.T.mv(y), matrix.T @ np.asarray(y), atol=1e-13)
    np.testing.assert_allclose(operator.T.T.mv(x), operator.mv(x))
    np.testing.assert_array_equal(as_scipy(operator).toarray(), matrix.toarray())
    np.testing.assert_allclose(operator.as_matrix(), matrix.toarray())
    np.testing.assert_allclose(operator.T.as_matrix(), matrix.toarray().T)
    np.testing.assert_array_equal(lx.diagonal(operator), matrix.diagonal())


@pytest.mark.parametrize("name", ["diagonals", "short rows", "long rows", "arrow"])
def test_products_are_differentiable_in_the_values(name: str) -> None:
    matrix = MATRICES[name][0]()
    operator = SparseOperator.from_scipy(matrix)
    rng = np.random.default_rng(3)
    x, y = (jnp.asarray(rng.normal(size=n)) for n in reversed(matrix.shape))
    gradient = eqx.filter_grad(lambda op: jnp.vdot(y, op.mv(x)))(operator)
    # The derivative of y.(A x) with respect to A_ij is y_i x_j; here it is read back as a matrix.
    full = np.zeros(matrix.shape)
    for part, slope in zip(operator.parts, gradient.parts, strict=True):
        moved = eqx.tree_at(lambda p: p.values, part, jnp.ones_like(part.values))
        rows, columns, _ = moved.entries()
        np.testing.assert_allclose(
            eqx.tree_at(lambda p: p.values, part, slope.values).entries()[2],
            np.asarray(y)[rows] * np.asarray(x)[columns],
            rtol=1e-12,
        )
        full[rows, columns] = 1
    assert np.all(full[matrix.nonzero()] == 1)


def test_float32_stays_float32() -> None:
    operator = SparseOperator.from_scipy(arrow(), "float32")
    assert operator.mv(jnp.ones(60, "float32")).dtype == jnp.float32
    assert operator.in_structure().dtype == jnp.float32


def test_solvers_take_sparse_operators_and_differentiate_through_them() -> None:
    matrix = sp.csr_array(random(30, 30, 0.1) + 10 * sp.eye_array(30))
    operator = SparseOperator.from_scipy(matrix)
    side = jnp.asarray(np.random.default_rng(0).normal(size=30))
    solver = lx.GMRES(1e-12, 1e-12)

    def value(b: Any) -> Any:
        return jnp.sum(lx.linear_solve(operator, b, solver).value)

    expected = np.linalg.solve(matrix.toarray().T, np.ones(30))
    np.testing.assert_allclose(jax.grad(value)(side), expected, rtol=1e-8)
    counted = CountedOperator(operator, "matvecs")
    np.testing.assert_allclose(
        lx.linear_solve(counted, side, lx.LU()).value, np.linalg.solve(matrix.toarray(), side)
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: grids.poisson_with_obstacles((7, 9), jax.random.key(3)),
        lambda: grids.laplacian((3, 4, 5), "float64"),
        lambda: grids.convection_diffusion2d(5).transpose(),
        lambda: lx.TaggedLinearOperator(grids.poisson2d(3), lx.symmetric_tag),
        lambda: lx.MatrixLinearOperator(jnp.arange(6.0).reshape(2, 3)),
    ],
)
def test_operators_become_scipy_matrices(make: Any) -> None:
    operator = make()
    np.testing.assert_array_equal(as_scipy(operator).toarray(), operator.as_matrix())


@pytest.mark.parametrize(
    ("matrix", "says"),
    [
        (np.eye(2) * 1j, "complex"),
        (np.array([[1.0, np.nan]]), "not finite"),
        (np.zeros((0, 3)), r"\(0, 3\)"),
        ("eye", "str is no matrix"),
    ],
)
def test_what_is_no_matrix_is_refused(matrix: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        SparseOperator.from_scipy(matrix)
