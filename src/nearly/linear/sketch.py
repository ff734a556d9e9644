"""Sketches: random operators of few rows that keep the geometry of a tall matrix.

|S A x| is |A x| to some percent for every x, and S A is small. `sketched_regression` solves least
squares by means of them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Float, Int

from nearly.core.errors import InputError
from nearly.linear.operators.registration import register

Draw = Callable[..., "AbstractSketch"]  # (key, rows, size, dtype) -> a sketch


def walsh_hadamard(x: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
    """H x along the leading axis, H the Hadamard matrix of +1 and -1 (so H H = n I).

    Butterflies of radix 4, each a reshape and eight additions, so that XLA makes one pass over
    the data for two levels. O(n log n) additions per column, two copies of x in memory. Raises
    `InputError` unless n is a power of two.
    """
    n, rest = x.shape[0], x.shape[1:]
    if n < 1 or n & (n - 1):
        raise InputError(f"a Hadamard transform needs a power of two rows, got {n}: pad with zeros")
    stride = 1
    while stride < n:
        radix = 4 if 4 * stride <= n else 2
        parts = x.reshape(n // (radix * stride), radix, stride, *rest)
        x = jnp.stack(_butterfly([parts[:, i] for i in range(radix)]), axis=1)
        stride *= radix
    return x.reshape(n, *rest)


def _butterfly(parts: list[Array]) -> list[Array]:
    if len(parts) == 2:
        return [parts[0] + parts[1], parts[0] - parts[1]]
    (a, b), (c, d) = _butterfly(parts[:2]), _butterfly(parts[2:])
    return [a + c, b + d, a - c, b - d]


class AbstractSketch(lx.AbstractLinearOperator):
    """A random operator with E[S^T S] = I from `size` to `rows` coordinates.

    A subclass defines `matmat`; everything lineax asks of an operator follows from it.
    """

    rows: eqx.AbstractVar[int]
    size: eqx.AbstractVar[int]
    dtype: eqx.AbstractVar[str]
    tags: ClassVar[frozenset[object]] = frozenset()

    @abstractmethod
    def matmat(self, matrix: Float[Array, "size k"]) -> Float[Array, "rows k"]:
        """S times a matrix, all columns at once."""

    def mv(self, vector: Float[Array, " size"]) -> Float[Array, " rows"]:
        return self.matmat(vector[:, None])[:, 0]

    def as_matrix(self) -> Float[Array, "rows size"]:
        return self.matmat(jnp.eye(self.size, dtype=self.dtype))

    def transpose(self) -> lx.AbstractLinearOperator:
        return lx.FunctionLinearOperator(self.mv, self.in_structure()).T

    def in_structure(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((self.size,), jnp.dtype(self.dtype))

    def out_structure(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((self.rows,), jnp.dtype(self.dtype))


register(AbstractSketch)


class HadamardSketch(AbstractSketch):
    """The subsampled randomised Hadamard transform: random signs, H, a uniform sample of rows."""

    rows: int = eqx.field(static=True)
    size: int = eqx.field(static=True)
    dtype: str = eqx.field(static=True)
    signs: Float[Array, " size"]
    sample: Int[Array, " rows"]

    def matmat(self, matrix: Float[Array, "size k"]) -> Float[Array, "rows k"]:
        padded = _pad(self.signs[:, None] * matrix)
        return walsh_hadamard(padded)[self.sample] / jnp.sqrt(jnp.asarray(self.rows, self.dtype))


class KroneckerSketch(AbstractSketch):
    """(H D1 ⊗ H D2), sampled: a Hadamard sketch for A1 ⊗ A2 that never forms that product."""

    rows: int = eqx.field(static=True)
    size: int = eqx.field(static=True)
    dtype: str = eqx.field(static=True)
    left_signs: Float[Array, " left"]
    right_signs: Float[Array, " right"]
    sample: Int[Array, "rows 2"]

    def matmat(self, matrix: Float[Array, "size k"]) -> Float[Array, "rows k"]:
        left, right = self.left_signs.size, self.right_signs.size
        signed = matrix.reshape(left, right, -1) * self.left_signs[:, None, None]
        mixed = walsh_hadamard(_pad(signed)) * self.right_signs[:, None]
        mixed = walsh_hadamard(_pad(jnp.moveaxis(mixed, 1, 0)))
        return mixed[self.sample[:, 1], self.sample[:, 0]] * self._scale

    def product(
        self, left: Float[Array, "n1 d1"], right: Float[Array, "n2 d2"]
    ) -> Float[Array, "rows columns"]:
        """S (left ⊗ right), from the transforms of the two factors.

        O(n1 d1 log n1 + n2 d2 log n2 + rows d1 d2) instead of O(n1 n2 d1 d2 log(n1 n2)).
        """
        rows = []
        for factor, signs, sample in zip((left, right), self._signs, self.sample.T):
            rows.append(walsh_hadamard(_pad(signs[:, None] * factor))[sample])
        outer = rows[0][:, :, None] * rows[1][:, None, :]
        return outer.reshape(self.rows, -1) * self._scale

    @property
    def _signs(self) -> tuple[Array, Array]:
        return self.left_signs, self.right_signs

    @property
    def _scale(self) -> Array:
        return 1 / jnp.sqrt(jnp.asarray(self.rows, self.dtype))


class SparseSketch(AbstractSketch):
    """`sparsity` entries of ±1/sqrt(sparsity) in each column: OSNAP, or CountSketch with one.

    The rows are cut into `sparsity` blocks and each column has one entry in each of them. O(nnz)
    to apply. Too sparse for the sup-norm guarantee of `linf-sketched-regression`.
    """

    rows: int = eqx.field(static=True)
    size: int = eqx.field(static=True)
    dtype: str = eqx.field(static=True)
    buckets: Int[Array, "sparsity size"]
    signs: Float[Array, "sparsity size"]

    def matmat(self, matrix: Float[Array, "size k"]) -> Float[Array, "rows k"]:
        result = jnp.zeros((self.rows, matrix.shape[1]), matrix.dtype)
        for buckets, signs in zip(self.buckets, self.signs, strict=True):
            result = result.at[buckets].add(signs[:, None] * matrix)
        return result / jnp.sqrt(jnp.asarray(len(self.buckets), self.dtype))


class GaussianSketch(AbstractSketch):
    """Independent normal entries of variance 1/rows. O(rows · size) per column."""

    rows: int = eqx.field(static=True)
    size: int = eqx.field(static=True)
    dtype: str = eqx.field(static=True)
    matrix: Float[Array, "rows size"]

    def matmat(self, matrix: Float[Array, "size k"]) -> Float[Array, "rows k"]:
        return self.matrix @ matrix


def hadamard_sketch(key: Any, rows: int, size: int, dtype: str = "float32") -> HadamardSketch:
    """Draw a subsampled randomised Hadamard transform (`linf-sketched-regression`).

    Its error is spread evenly over the coefficients of a regression. O(size log size) a column.
    Rows are drawn without replacement (the paper's are independent): the variance is smaller, and
    none is left when all rows are taken. Raises `InputError` for more rows than the padded size.
    """
    padded = _power_of_two(size)
    _check(rows, size, padded)
    first, second = jax.random.split(key)
    signs = jax.random.rademacher(first, (size,), jnp.dtype(dtype))
    sample = jax.random.choice(second, padded, (rows,), replace=False)
    return HadamardSketch(rows, size, dtype, signs, sample)


def kronecker_sketch(
    key: Any, rows: int, shape: tuple[int, int], dtype: str = "float32"
) -> KroneckerSketch:
    """Draw a sketch for matrices A1 ⊗ A2 whose factors have `shape` rows.

    Raises `InputError` for more rows than the padded product has.
    """
    padded = _power_of_two(shape[0]), _power_of_two(shape[1])
    _check(rows, shape[0] * shape[1], padded[0] * padded[1])
    first, second, third = jax.random.split(key, 3)
    signs = [
        jax.random.rademacher(k, (n,), jnp.dtype(dtype))
        for k, n in zip((first, second), shape, strict=True)
    ]
    flat = jax.random.choice(third, padded[0] * padded[1], (rows,), replace=False)
    sample = jnp.stack([flat // padded[1], flat % padded[1]], axis=1)
    return KroneckerSketch(rows, shape[0] * shape[1], dtype, signs[0], signs[1], sample)


def sparse_sketch(
    key: Any, rows: int, size: int, dtype: str = "float32", *, sparsity: int = 4
) -> SparseSketch:
    """Draw an OSNAP embedding: `sparsity` entries a column, one in each block of rows.

    Raises `InputError` unless 1 <= sparsity <= rows.
    """
    _check(rows, size, rows)
    if not 1 <= sparsity <= rows:
        raise InputError(f"sparsity {sparsity} must lie between 1 and the {rows} rows")
    first, second = jax.random.split(key)
    edges = np.linspace(0, rows, sparsity + 1).astype(int)
    blocks = [
        jax.random.randint(k, (size,), int(low), int(high))
        for k, low, high in zip(jax.random.split(first, sparsity), edges, edges[1:])
    ]
    signs = jax.random.rademacher(second, (sparsity, size), jnp.dtype(dtype))
    return SparseSketch(rows, size, dtype, jnp.stack(blocks), signs)


def count_sketch(key: Any, rows: int, size: int, dtype: str = "float32") -> SparseSketch:
    """Draw a CountSketch: one entry of ±1 a column. The cheapest, and the least even."""
    return sparse_sketch(key, rows, size, dtype, sparsity=1)


def gaussian_sketch(key: Any, rows: int, size: int, dtype: str = "float32") -> GaussianSketch:
    """Draw a Gaussian sketch: the best embedding, at rows x size entries."""
    _check(rows, size, rows)
    entries = jax.random.normal(key, (rows, size), jnp.dtype(dtype))
    return GaussianSketch(rows, size, dtype, entries / np.sqrt(rows))


def _check(rows: int, size: int, most: int) -> None:
    if size < 1 or not 1 <= rows <= most:
        raise InputError(f"{rows} rows of a sketch of {size} coordinates must be 1 to {most}")


def _power_of_two(size: int) -> int:
    return 1 << max(size - 1, 0).bit_length()


def _pad(x: Float[Array, "n ..."]) -> Float[Array, "padded ..."]:
    """Zeros below, up to a power of two rows."""
    missing = _power_of_two(x.shape[0]) - x.shape[0]
    return jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1))
