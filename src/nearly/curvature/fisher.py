"""Inverse products with the empirical Fisher matrix of m stored gradients: M-FAC (`m-fac`).

The matrix is F = lam I + (1/m) sum_i g_i g_i^T, of any dimension d; only the m gradients, the rows
of G [m, d], are held. Three ways to F^-1 x:

- `woodbury`: F^-1 x = (x - G^T (m lam I + G G^T)^-1 G x) / lam, by a Cholesky factorisation of the
  m x m matrix. Set-up m^2 d as one matrix product: nearly always the one to take.
- `static`: rank one after the other, v_i = F_{i-1}^-1 g_i and q_i = m + g_i . v_i, so that
  F^-1 x = x/lam - sum_i v_i (v_i . x)/q_i. Set-up m^2 d too, in m steps that read all before them;
  it pays where single entries are wanted: F^-1_jj and F^-1 e_j cost m and m d.
- `Window`: m gradients in a ring. A new one replaces the oldest at the cost of one product G g.
  The gradients' inner products divided by lam, plus m on the diagonal, are factored without
  pivoting as L U; U's diagonal is q, and triangular solves give the coefficients of the result.

Where this differs from the paper: everything is written on blocks of columns (`width`), of which
the whole matrix is one. Inner products, factors and results are computed in float64 wherever JAX
computes in it (`jax.enable_x64`), whatever the gradients are stored in, because F^-1 has the
condition |G|^2/(m lam): at lam = 1e-5 a vector in the span of the gradients leaves x/lam minus
nearly all of it, which in float32 errs by a hundredth. An optimizer does not mind; a solve does.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float, Int, PyTree

from nearly.core.errors import InputError
from nearly.curvature.operators import SymmetricOperator

Gradients = Float[Array, "m d"]
Vector = Float[Array, " d"]


class InverseFisher(SymmetricOperator):
    """The inverse empirical Fisher matrix by Cholesky factors of the gradients' inner products.

    A lineax operator on pytrees like `parameters`. Made by `woodbury`.
    """

    parameters: PyTree
    gradients: Float[Array, "blocks m width"]
    factor: Float[Array, "blocks m m"]  # L with L L^T = m lam I + G G^T
    damping: float = eqx.field(static=True)

    @property
    def like(self) -> PyTree:
        return self.parameters

    def mv(self, vector: PyTree) -> PyTree:
        """The product; costs 2 m d and m^2 for each block."""
        return _on_blocks(self._block, self.gradients, self.factor, vector)

    def _block(self, gradients: Array, factor: Array, x: Array) -> Array:
        wide = _wide(gradients)
        c = jax.scipy.linalg.cho_solve((factor, True), wide @ _wide(x))
        return (_wide(x) - c @ wide) / self.damping

    def diagonal(self) -> PyTree:
        """The diagonal, as a pytree like the parameters; costs m^2 d, as the set-up does."""

        def block(gradients: Array, factor: Array, x: Array) -> Array:
            half = solve_triangular(factor, _wide(gradients), lower=True)
            return (1 - jnp.sum(half**2, axis=0)) / self.damping

        return _on_blocks(block, self.gradients, self.factor, self.parameters)


class SequentialInverseFisher(SymmetricOperator):
    """The inverse empirical Fisher matrix as M-FAC's static algorithm stores it.

    A lineax operator on pytrees like `parameters`. Made by `static`.
    """

    parameters: PyTree
    vectors: Float[Array, "blocks m width"]  # v_i
    pivots: Float[Array, "blocks m"]  # q_i
    damping: float = eqx.field(static=True)

    @property
    def like(self) -> PyTree:
        return self.parameters

    def mv(self, vector: PyTree) -> PyTree:
        """The product; costs 2 m d."""

        def block(vectors: Array, pivots: Array, x: Array) -> Array:
            return _wide(x) / self.damping - ((vectors @ _wide(x)) / pivots) @ vectors

        return _on_blocks(block, self.vectors, self.pivots, vector)

    def diagonal(self) -> PyTree:
        """The diagonal, as a pytree like the parameters; costs m d."""

        def block(vectors: Array, pivots: Array, x: Array) -> Array:
            return 1 / self.damping - jnp.sum(vectors**2 / pivots[:, None], axis=0)

        return _on_blocks(block, self.vectors, self.pivots, self.parameters)

    def element(self, i: int | Int[Array, ""], j: int | Int[Array, ""]) -> Float[Array, ""]:
        """One entry, of the flattened parameters; costs m. Entries of two blocks are zero."""
        width = self.vectors.shape[-1]
        (a, row), (b, column) = divmod(jnp.asarray(i), width), divmod(jnp.asarray(j), width)
        products = self.vectors[a, :, row] * self.vectors[a, :, column] / self.pivots[a]
        entry = jnp.where(row == column, 1 / self.damping, 0) - jnp.sum(products)
        return jnp.where(a == b, entry, 0)


def woodbury(
    gradients: Gradients, parameters: PyTree, *, damping: float = 1e-5, width: int | None = None
) -> InverseFisher:
    """The inverse of lam I + (1/m) G^T G by the matrix inversion lemma.

    **Arguments:**

    - `gradients`: one a row, flattened as `ravel_pytree(parameters)` is. Batch gradients are
      smaller than per-sample ones by the root of the batch where noise dominates: damping is
      relative to what is stored.
    - `parameters`: the structure of the vectors that the operator takes.
    - `damping`: lam. `width`: columns of a block; None is the whole matrix, else blocks are
      taken as uncorrelated (the paper prunes large networks so).

    Raises `InputError` for a damping or width that is not positive, or rows of another length.

    **Cost:** m^2 d, and m^3/3 for each block; memory of the gradients, of m^2 for each block.
    """
    blocks = _blocks(gradients, parameters, damping, width)
    m = gradients.shape[0]

    def factor(rows: Array) -> Array:
        products = _wide(rows) @ _wide(rows).T
        return jnp.linalg.cholesky(products + m * damping * jnp.eye(m, dtype=products.dtype))

    return InverseFisher(parameters, blocks, jax.vmap(factor)(blocks), damping)


def static(
    gradients: Gradients, parameters: PyTree, *, damping: float = 1e-5, width: int | None = None
) -> SequentialInverseFisher:
    """M-FAC's static algorithm: one rank-one update of the inverse per gradient.

    Takes the arguments of `woodbury`, and gives the same operator. Its set-up is m dependent
    steps of 4 m d each, bound by memory, where `woodbury`'s is one matrix product. Take it for
    single entries.
    """
    blocks = _blocks(gradients, parameters, damping, width)
    m = gradients.shape[0]

    def vectors(rows: Array) -> tuple[Array, Array]:
        wide = _wide(rows)

        def step(state: tuple[Array, Array], i: Array) -> tuple[tuple[Array, Array], None]:
            v, q = state  # rows from i on are still zero, and drop out of the sum
            new = wide[i] / damping - ((v @ wide[i]) / q) @ v
            return (v.at[i].set(new), q.at[i].set(m + wide[i] @ new)), None

        start = (jnp.zeros_like(wide), jnp.ones((m,), wide.dtype))
        return jax.lax.scan(step, start, jnp.arange(m))[0]

    found, pivots = jax.vmap(vectors)(blocks)
    return SequentialInverseFisher(parameters, found, pivots, damping)


# ------------------------------------------------------------------ the ring


class Window(eqx.Module):
    """The last m gradients and their inner products, oldest replaced first.

    Made by `Window.empty`; rows that were never written are zero, and count in m.
    """

    gradients: Gradients
    products: Float[Array, "m m"]  # G G^T
    oldest: Int[Array, ""]

    @staticmethod
    def empty(m: int, dimension: int, dtype: Any = jnp.float32) -> Window:
        """A window of m gradients of the given dimension, all zero."""
        if m < 1:
            raise InputError(f"a window of {m} gradients is empty: at least 1")
        wide = jax.dtypes.canonicalize_dtype(jnp.float64)
        return Window(
            jnp.zeros((m, dimension), dtype), jnp.zeros((m, m), wide), jnp.zeros((), jnp.int32)
        )

    def push(self, gradient: Vector) -> Window:
        """The window with its oldest gradient replaced; costs m d."""
        gradients = self.gradients.at[self.oldest].set(gradient)
        row = _wide(gradients) @ _wide(gradient)
        products = self.products.at[self.oldest].set(row).at[:, self.oldest].set(row)
        return Window(gradients, products, (self.oldest + 1) % len(gradients))

    def pivots(self, damping: float) -> Float[Array, " m"]:
        """The q_i of the static algorithm on the rows in the order they are held."""
        return jnp.diagonal(self._factor(damping)) ** 2

    def solve(self, vector: Vector, damping: float) -> Vector:
        """F^-1 x; costs 2 m d and m^3/3."""
        # U of L U without pivoting is the transposed Cholesky factor with its rows scaled by the
        # roots of q: the matrix is symmetric and definite.
        factor = self._factor(damping)
        wide, x = _wide(self.gradients), _wide(vector)
        c = jax.scipy.linalg.cho_solve((factor, True), wide @ x) / damping
        return ((x - c @ wide) / damping).astype(vector.dtype)

    def _factor(self, damping: float) -> Array:
        m = len(self.gradients)
        identity = jnp.eye(m, dtype=self.products.dtype)
        return jnp.linalg.cholesky(self.products / damping + m * identity)


class MfacState(NamedTuple):
    """The state of `scale_by_mfac`."""

    window: Window


def scale_by_mfac(window: int = 1024, damping: float = 1e-5) -> optax.GradientTransformation:
    """Multiply gradients by the inverse empirical Fisher matrix of the last ones, an optax chain's
    link.

    **Arguments:**

    - `window`: gradients held, of the steps themselves; memory of as many copies of the model.
    - `damping`: lam. Both defaults are the paper's (its ResNet-20 takes 512 gradients).

    The first `window` steps see zero rows: the matrix is then the damping and a part of the
    curvature, and grows into its place.
    """
    _check_damping(damping)

    def init(params: Any) -> Any:
        flat, _ = ravel_pytree(params)
        return MfacState(Window.empty(window, flat.size, flat.dtype))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        gradient, unflatten = ravel_pytree(updates)
        held = state.window.push(gradient)
        return unflatten(held.solve(gradient, damping)), MfacState(held)

    return optax.GradientTransformation(init, update)


def mfac(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    *,
    window: int = 1024,
    damping: float = 1e-5,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """The M-FAC optimizer: preconditioned by its own last gradients, with momentum.

    Weight decay is added before a gradient is stored, momentum is taken of the preconditioned
    direction, as in the authors' program. Cost per step: 4 m d and m^3/3 on top of the gradient's.
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        scale_by_mfac(window, damping),
        optax.trace(momentum),
        optax.scale_by_learning_rate(learning_rate),
    )


# ------------------------------------------------------------------ pruning


class Pruned(NamedTuple):
    """The weights after pruning, and which were kept."""

    parameters: PyTree
    kept: PyTree


def prune(
    parameters: PyTree, inverse: InverseFisher | SequentialInverseFisher, sparsity: float
) -> Pruned:
    """Remove the weights that the loss needs least, and adjust the others (optimal brain surgeon).

    **Arguments:**

    - `parameters`: of a trained model. `inverse`: of its empirical Fisher matrix there.
    - `sparsity`: the fraction to remove, over all parameters.

    Saliency is w_i^2 / (2 F^-1_ii); the rest moves by -F^-1 sum_i e_i w_i/F^-1_ii over what is
    removed, all at once: the paper's one-shot form, which ignores that the removed correct each
    other.

    Raises `InputError` for a sparsity that is not in [0, 1).
    """
    flat, unflatten = ravel_pytree(parameters)
    diagonal = ravel_pytree(inverse.diagonal())[0]
    removed = _smallest(flat**2 / (2 * diagonal), sparsity)
    amounts = jnp.where(removed, flat / diagonal, 0)
    moved = flat - ravel_pytree(inverse.mv(unflatten(amounts)))[0]
    kept = ~removed
    return Pruned(unflatten(jnp.where(kept, moved, 0)), _masks(kept, parameters))


def prune_by(parameters: PyTree, saliency: PyTree, sparsity: float) -> Pruned:
    """Remove the weights of least saliency and leave the others as they are.

    With `|w|` this is magnitude pruning, with `w^2 F_ii` that of the diagonal Fisher matrix.
    """
    flat, unflatten = ravel_pytree(parameters)
    kept = ~_smallest(ravel_pytree(saliency)[0], sparsity)
    return Pruned(unflatten(jnp.where(kept, flat, 0)), _masks(kept, parameters))


def _smallest(saliency: Array, sparsity: float) -> Array:
    """Which entries are among the smallest: as many as the fraction says, ties by place."""
    if not 0 <= sparsity < 1:
        raise InputError(f"sparsity {sparsity} must lie in [0, 1): the fraction to remove")
    count = round(sparsity * saliency.size)
    return jnp.argsort(jnp.argsort(saliency)) < count


def _masks(kept: Array, parameters: PyTree) -> PyTree:
    leaves, structure = jax.tree.flatten(parameters)
    masks: list[Array] = []
    start = 0
    for leaf in leaves:
        masks.append(jnp.reshape(kept[start : start + leaf.size], leaf.shape))
        start += leaf.size
    return jax.tree.unflatten(structure, masks)


# ------------------------------------------------------------------ blocks


def _blocks(
    gradients: Array, parameters: PyTree, damping: float, width: int | None
) -> Float[Array, "blocks m width"]:
    """The gradients in blocks of columns, the last one filled up with zeros."""
    _check_damping(damping)
    m, dimension = gradients.shape
    size = sum(leaf.size for leaf in jax.tree.leaves(parameters))
    if size != dimension:
        raise InputError(f"gradients of length {dimension} do not fit {size} parameters")
    if width is not None and width < 1:
        raise InputError(f"width = {width} must be at least 1 column, or None for one block")
    columns = min(width or dimension, dimension)
    count = -(-dimension // columns)
    filled = jnp.pad(gradients, ((0, 0), (0, count * columns - dimension)))
    return jnp.swapaxes(jnp.reshape(filled, (m, count, columns)), 0, 1)


def _on_blocks(function: Any, first: Array, second: Array, vector: PyTree) -> PyTree:
    """A function of each block's two arrays and its part of a vector, put together again."""
    flat, unflatten = ravel_pytree(vector)
    count, _, columns = first.shape
    parts = jnp.reshape(jnp.pad(flat, (0, count * columns - flat.size)), (count, columns))
    result = jnp.reshape(jax.vmap(function)(first, second, parts), (-1,))
    return unflatten(result[: flat.size].astype(flat.dtype))


def _wide(x: Array) -> Array:
    """In float64, where JAX computes in it."""
    return x.astype(jax.dtypes.canonicalize_dtype(jnp.float64))


def _check_damping(damping: float) -> None:
    if not 0 < damping < float("inf"):
        raise InputError(f"damping {damping} must be positive and finite, such as 1e-5")
