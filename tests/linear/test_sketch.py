"""Sketches: linear, unbiased, as fast and as small as they say."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.linalg

from nearly.core.errors import InputError
from nearly.linear import sketch

ROWS, SIZE = 12, 45
DRAWS = {
    "hadamard": sketch.hadamard_sketch,
    "osnap": sketch.sparse_sketch,
    "count": sketch.count_sketch,
    "gaussian": sketch.gaussian_sketch,
    "kronecker": lambda key, rows, size, dtype: sketch.kronecker_sketch(key, rows, (5, 9), dtype),
}


@pytest.mark.parametrize("n", [1, 2, 8, 64, 128])
def test_walsh_hadamard_is_the_hadamard_matrix(n: int) -> None:
    x = np.random.default_rng(n).normal(size=(n, 3)).astype("float32")
    expected = scipy.linalg.hadamard(n) @ x
    np.testing.assert_allclose(sketch.walsh_hadamard(jnp.asarray(x)), expected, atol=1e-4)
    np.testing.assert_allclose(
        sketch.walsh_hadamard(jnp.asarray(x[:, 0])), expected[:, 0], atol=1e-4
    )


def test_walsh_hadamard_costs_n_log_n() -> None:
    def additions(n: int) -> int:
        x = jax.ShapeDtypeStruct((n,), jnp.float32)
        equations = jax.make_jaxpr(sketch.walsh_hadamard)(x).eqns
        return sum(e.outvars[0].aval.size for e in equations if e.primitive.name in ("add", "sub"))

    for log in (4, 8, 12):
        assert additions(2**log) == log * 2**log


def test_walsh_hadamard_refuses_other_sizes() -> None:
    with pytest.raises(InputError, match="got 6: pad with zeros"):
        sketch.walsh_hadamard(jnp.ones(6))


@pytest.mark.parametrize("name", DRAWS)
def test_a_sketch_is_one_matrix_in_all_its_uses(name: str) -> None:
    operator = DRAWS[name](jax.random.key(1), ROWS, SIZE, "float32")
    matrix = operator.as_matrix()
    random = np.random.default_rng(0)
    x, y = random.normal(size=SIZE), random.normal(size=ROWS)
    x, y = jnp.asarray(x, "float32"), jnp.asarray(y, "float32")
    assert matrix.shape == (ROWS, SIZE)
    np.testing.assert_allclose(operator.mv(x), matrix @ x, atol=1e-5)
    np.testing.assert_allclose(operator.T.mv(y), matrix.T @ y, atol=1e-5)
    np.testing.assert_allclose(lx.materialise(operator).as_matrix(), matrix)
    np.testing.assert_allclose(
        (lx.conj(operator) @ operator.T).mv(y), matrix @ matrix.T @ y, rtol=1e-3
    )
    assert not lx.is_symmetric(operator)


@pytest.mark.parametrize("name", DRAWS)
def test_a_sketch_keeps_lengths_on_average(name: str) -> None:
    draws = 1000

    @jax.jit
    @partial(jax.vmap)
    def gram(key: jax.Array) -> jax.Array:
        matrix = DRAWS[name](key, ROWS, SIZE, "float32").as_matrix()
        return matrix.T @ matrix

    mean = jnp.mean(gram(jax.random.split(jax.random.key(2), draws)), axis=0)
    # An entry of S^T S has a standard deviation of at most sqrt(2 / ROWS).
    assert np.max(np.abs(mean - np.eye(SIZE))) < 6 * np.sqrt(2 / ROWS / draws)


def test_all_rows_of_a_hadamard_sketch_lose_nothing() -> None:
    operator = sketch.hadamard_sketch(jax.random.key(0), 64, SIZE)
    matrix = operator.as_matrix()
    np.testing.assert_allclose(matrix.T @ matrix, np.eye(SIZE), atol=1e-5)


@pytest.mark.parametrize("sparsity", [1, 3])
def test_a_sparse_sketch_has_so_many_entries_a_column(sparsity: int) -> None:
    operator = sketch.sparse_sketch(jax.random.key(0), ROWS, SIZE, sparsity=sparsity)
    matrix = np.asarray(operator.as_matrix())
    assert np.all(np.sum(matrix != 0, axis=0) == sparsity)
    np.testing.assert_allclose(np.abs(matrix[matrix != 0]), sparsity**-0.5, rtol=1e-6)


def test_a_kronecker_sketch_never_forms_the_product() -> None:
    operator = sketch.kronecker_sketch(jax.random.key(0), ROWS, (5, 9))
    random = np.random.default_rng(1)
    left, right = random.normal(size=(5, 2)), random.normal(size=(9, 3))
    left, right = jnp.asarray(left, "float32"), jnp.asarray(right, "float32")
    expected = operator.matmat(jnp.kron(left, right))
    np.testing.assert_allclose(operator.product(left, right), expected, atol=1e-5)


def test_float64_sketches_are_float64() -> None:
    with jax.enable_x64(True):
        for draw in (DRAWS["hadamard"], DRAWS["osnap"], DRAWS["gaussian"]):
            operator = draw(jax.random.key(0), ROWS, SIZE, "float64")
            assert operator.mv(jnp.ones(SIZE, "float64")).dtype == jnp.float64


def test_what_cannot_be_drawn_says_why() -> None:
    key = jax.random.key(0)
    with pytest.raises(InputError, match="65 rows of a sketch of 45 coordinates must be 1 to 64"):
        sketch.hadamard_sketch(key, 65, SIZE)
    with pytest.raises(InputError, match="sparsity 13 must lie between 1 and the 12 rows"):
        sketch.sparse_sketch(key, ROWS, SIZE, sparsity=13)
    with pytest.raises(InputError, match="0 rows"):
        sketch.gaussian_sketch(key, 0, SIZE)
