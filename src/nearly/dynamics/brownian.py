"""Brownian paths with their time integrals: a stored grid over a refinable tree.

Over an interval of length h from s, with W the increment, the two areas are

    H = (1/h)   int_0^h (W_v - (v/h) W) dv                 variance h/12
    K = (1/h^2) int_0^h (W_v - (v/h) W) (h/2 - v) dv       variance h/720

where W_v is the path minus its value at s; W, H, K are independent. Two more views of the same
three numbers are used below: the moments W, P = int W_v dv, Q = int v W_v dv, in which
neighbouring intervals compose, and the unit of an interval, in which h = 1.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array

from nearly.core.errors import InputError

Area = type[diffrax.BrownianIncrement | diffrax.SpaceTimeLevyArea | diffrax.SpaceTimeTimeLevyArea]
Values = tuple[Array, ...]  # W, or W and H, or W and H and K; or the moments W, P, Q in their place

_COMPONENTS = {
    diffrax.BrownianIncrement: 1,
    diffrax.SpaceTimeLevyArea: 2,
    diffrax.SpaceTimeTimeLevyArea: 3,
}
_VARIANCES = (1.0, 1 / 12, 1 / 720)  # of W, H, K over a unit of time


class GridBrownianPath(diffrax.AbstractBrownianPath[Any]):
    """A Brownian path from one key whose nodes on a grid are read by index: for fixed steps.

    **Arguments:**

    - `key`: a random key; it fixes the whole path.
    - `t0`, `t1`: the interval, `t0 < t1`.
    - `n`: the number of equal cells. All their increments are drawn when the path is made, in one
      vectorised sweep per level of the tree; a query at nodes reads them.
    - `shape`: of the path's values, a tuple of integers (default floating-point type) or a pytree
      of `jax.ShapeDtypeStruct`.
    - `levy_area`: `diffrax.BrownianIncrement`, `SpaceTimeLevyArea` or `SpaceTimeTimeLevyArea`:
      which of W, H, K a query with `use_levy=True` returns.
    - `refinements`: how often a cell is halved before a query between nodes is answered by the
      exact conditional law (a bridge). Queries have the joint law of Brownian motion and its
      integrals if those between nodes are at least `(t1 - t0) / n / 2**refinements` apart. 0
      serves steps of one cell or more; for adaptive steps take it so that the smallest step is
      longer than that.

    **Raises:** `InputError` for a bad `n`, `shape`, `levy_area` or `refinements`.

    **Cost:** `n` normals (times 1, 2, 3 areas) and values of memory, times twice that for prefix
    sums; a query at nodes is a read, one between nodes takes `refinements + 1` draws.

    From `virtual-brownian-tree-integrals`; its tree, `diffrax.VirtualBrownianTree`, holds nothing
    and descends from the root at every query. This one keeps the first levels of the same tree,
    key by key: with `n` a power of two both give the same path (as JAX splits keys by default:
    `jax_threefry_partitionable`). With n = m 2^L, m odd, the path is
    m such trees side by side, so that 1,000 equal steps fall on nodes too; doubling `n` leaves the
    path as it was at the old nodes. Only where K is asked for between nodes do the values differ,
    not their law: the bridge is a Cholesky factor there, not a singular value decomposition.
    H and K of one cell are read as drawn; of several cells they are differences of prefix sums,
    which in float32 lose K over less than a hundredth of the interval (the tree does so for any
    two times). A query within `16 n eps` cells of a node is answered by the node: that is what
    rounding of times amounts to. Queries are constants to differentiation, as in diffrax.
    """

    t0: Any
    t1: Any
    n: int = eqx.field(static=True)
    shape: Any = eqx.field(static=True)
    levy_area: Area = eqx.field(static=True)  # pyright: ignore[reportIncompatibleVariableOverride]
    refinements: int = eqx.field(static=True)
    grids: tuple[_Grid, ...]

    def __init__(
        self,
        key: Any,
        t0: Any,
        t1: Any,
        n: int,
        shape: Any = (),
        levy_area: Any = diffrax.BrownianIncrement,
        *,
        refinements: int = 0,
    ) -> None:
        _check(n, levy_area, refinements)
        self.t0, self.t1 = (_time(t) for t in (t0, t1))
        self.n, self.levy_area, self.refinements = n, levy_area, refinements
        self.shape = _structure(shape)
        leaves = jax.tree.leaves(self.shape)
        cell = (self.t1 - self.t0) / n
        draw = partial(_draw, cells=n, components=_COMPONENTS[levy_area], cell=cell)
        keys = jr.split(_typed(key), len(leaves))
        self.grids = tuple(draw(k, leaf=leaf) for k, leaf in zip(keys, leaves, strict=True))

    @eqx.filter_jit
    def evaluate(self, t0: Any, t1: Any = None, left: bool = True, use_levy: bool = False) -> Any:
        """The increment from `t0` to `t1`, or from the path's start to `t0`; with its areas if
        `use_levy`; NaN if a time lies outside of the path's interval.
        """
        del left
        first, last = (self.t0, t0) if t1 is None else (t0, t1)
        first, last = (jax.lax.stop_gradient(_time(t)) for t in (first, last))
        found = [self._between(grid, first, last) for grid in self.grids]
        tree = jax.tree.structure(self.shape)
        parts = [tree.unflatten(part) for part in zip(*found, strict=True)]
        if not use_levy:
            return parts[0]
        steps = [jnp.asarray(last - first, grid.dtype) for grid in self.grids]
        return self.levy_area(tree.unflatten(steps), *parts)

    def _between(self, grid: _Grid, first: Array, last: Array) -> Values:
        i, before = self._locate(first)
        j, after = self._locate(last)
        cell = jnp.asarray((self.t1 - self.t0) / self.n, grid.dtype)
        before, after = (jnp.asarray(d, grid.dtype) for d in (before, after))
        # One step of one cell, the commonest query, is a read and nothing else.
        moments = jax.lax.cond(
            (before == 0) & (after == 0) & (j == i + 1),
            lambda: grid.cell(i),
            lambda: self._composed(grid, i, before, j, after, cell),
        )
        inside = (first >= self.t0 - cell / 8) & (last <= self.t1 + cell / 8)
        areas = jax.lax.stop_gradient(_areas(moments, (j - i) * cell + after - before))
        return tuple(jnp.where(inside, part, jnp.nan) for part in areas)

    def _composed(
        self, grid: _Grid, i: Array, before: Array, j: Array, after: Array, cell: Array
    ) -> Values:
        """The moments from some time after node i until some time after node j."""
        nodes = grid.nodes_between(i, j, cell)
        to_last = _compose(nodes, self._within(grid, j, after), (j - i) * cell, after)
        length = (j - i) * cell + after - before
        return _remove(to_last, self._within(grid, i, before), length, before)

    def _locate(self, time: Array) -> tuple[Array, Array]:
        """The node at or before a time, and how far after it the time lies: 0 if as good as on."""
        cell = (self.t1 - self.t0) / self.n
        position = jnp.clip((time - self.t0) / cell, 0, self.n)
        nearest = jnp.round(position)
        slack = min(0.125, 16 * self.n * float(jnp.finfo(position.dtype).eps))
        on_node = jnp.abs(position - nearest) <= slack
        index = jnp.where(on_node, nearest, jnp.floor(position))
        after = jnp.where(on_node, 0, (position - index) * cell)
        return index.astype(jnp.int32), after

    def _within(self, grid: _Grid, index: Array, after: Array) -> Values:
        """The moments from a node until a time inside of the cell that it begins."""
        zero = tuple(jnp.zeros_like(part[0]) for part in grid.cells)
        cell = jnp.asarray((self.t1 - self.t0) / self.n, grid.dtype)
        descend = partial(_descend, levels=self.refinements)
        return jax.lax.cond(
            after == 0,
            lambda: zero,
            lambda: descend(grid.key(index), grid.cell(index), cell, after),
        )


class _Grid(eqx.Module):
    """One leaf of a path: the moments of its cells, those from t0 to its nodes, and keys.

    The keys are those of pairs of cells, where a tree has any: most are never asked for more.
    """

    keys: Array
    cells: Values
    nodes: Values

    @property
    def dtype(self) -> Any:
        return self.cells[0].dtype

    def cell(self, index: Array) -> Values:
        return tuple(part[index] for part in self.cells)

    def key(self, index: Array) -> Array:
        if self.keys.shape[0] == self.cells[0].shape[0]:
            return self.keys[index]
        return _children(self.keys[index // 2])[index % 2]

    def nodes_between(self, i: Array, j: Array, cell: Array) -> Values:
        """The moments between two nodes; one cell is read as it was drawn."""
        upto = [tuple(part[k] for part in self.nodes) for k in (i, j)]
        several = _remove(upto[1], upto[0], (j - i) * cell, i * cell)
        one = self.cell(i)
        return tuple(jnp.where(j == i + 1, a, b) for a, b in zip(one, several, strict=True))


# ---- drawing the tree


@partial(jax.jit, static_argnames=("leaf", "cells", "components"))
def _draw(key: Array, *, leaf: jax.ShapeDtypeStruct, cells: int, components: int, cell: Any) -> Any:
    """All cells of a leaf: the keys of every level, all normals at once, the values level by level.

    One call for the normals of all levels, because each such call takes long to compile.
    """
    levels = (cells & -cells).bit_length() - 1
    roots = cells >> levels
    cell = jnp.asarray(cell, leaf.dtype)
    keys = key[None] if roots == 1 else jr.split(key, roots)
    keys, values = jax.vmap(partial(_root, leaf=leaf, components=components))(keys)
    values = tuple(jnp.sqrt(cell * 2.0**levels) * value for value in values)
    middles: list[Array] = []
    for level in range(levels):
        keys = jax.vmap(_children)(keys).reshape(-1) if level else keys
        middles.append(jax.vmap(_middle)(keys))
    if middles:
        draw = partial(_normals, like=values[0][0], count=components)
        noise = jax.vmap(draw)(jnp.concatenate(middles))
        for level, middle in enumerate(middles):
            start, stop = roots * (2**level - 1), roots * (2 ** (level + 1) - 1)
            assert stop - start == middle.shape[0]
            root_size = jnp.sqrt(cell * 2.0 ** (levels - level))
            halves = _halve(values, tuple(root_size * draw[start:stop] for draw in noise))
            values = tuple(_interleave(a, b) for a, b in zip(*halves, strict=True))
    moments = _moments(values, cell)
    return _Grid(keys, moments, _prefix(moments, cell))


def _root(key: Array, *, leaf: jax.ShapeDtypeStruct, components: int) -> tuple[Array, Values]:
    """The key and the areas of a whole tree over a unit of time."""
    own, *parts = jr.split(key, 1 + components)
    values = (
        math.sqrt(variance) * jr.normal(part, leaf.shape, leaf.dtype)
        for variance, part in zip(_VARIANCES, parts, strict=False)
    )
    return own, tuple(values)


# The right half's key, the middle's and the left half's are the three that diffrax splits an
# interval's into; one by one, since all three are seldom wanted.
_RIGHT, _MIDDLE, _LEFT = range(3)


def _children(key: Array) -> Array:
    """The keys of an interval's left and right half."""
    return jnp.stack([jr.fold_in(key, _LEFT), jr.fold_in(key, _RIGHT)])


def _middle(key: Array) -> Array:
    """The key of what is drawn to halve an interval."""
    return jr.fold_in(key, _MIDDLE)


def _normals(key: Array, *, like: Array, count: int) -> Values:
    draws = jr.split(key, count) if count > 1 else key[None]
    return tuple(jr.normal(draw, like.shape, like.dtype) for draw in draws)


def _halve(values: Values, noise: Values) -> tuple[Values, Values]:
    """The areas of the two halves of an interval, whose noise has the variance of its length.

    A half's mean given the whole, plus what has opposite signs in W, equal ones in H.
    """
    w = values[0]
    if len(values) == 1:
        return (w / 2 + noise[0] / 2,), (w / 2 - noise[0] / 2,)
    h = values[1]
    z = noise[0] / 4
    across, along = 1.5 * h + z, h / 4 - z / 2
    if len(values) == 2:
        tilt = noise[1] / math.sqrt(48)
        return (w / 2 + across, along + tilt), (w / 2 - across, along - tilt)
    k = values[2]
    x, y = noise[1] / math.sqrt(768), noise[2] / math.sqrt(2880)
    tilt, mean = 3.75 * k + x, k / 8 - x / 2
    left = (w / 2 + across, along + tilt, mean + y)
    return left, (w / 2 - across, along - tilt, mean - y)


def _interleave(left: Array, right: Array) -> Array:
    return jnp.stack([left, right], axis=1).reshape(-1, *left.shape[1:])


def _descend(key: Array, moments: Values, cell: Array, after: Array, *, levels: int) -> Values:
    """The moments of a cell's first part: halve towards its end, then bridge."""

    def step(_: Any, state: Any) -> Any:
        key, values, size, done, before = state
        children = _children(key)
        noise = _normals(_middle(key), like=values[0], count=len(values))
        left, right = _halve(values, tuple(jnp.sqrt(size) * draw for draw in noise))
        size = size / 2
        beyond = after > done + size
        taken = _compose(before, _moments(left, size), done, size)
        values, before = (
            tuple(jnp.where(beyond, a, b) for a, b in zip(x, y, strict=True))
            for x, y in ((right, left), (taken, before))
        )
        key = jnp.where(beyond, children[1], children[0])
        return key, values, size, jnp.where(beyond, done + size, done), before

    zero = tuple(jnp.zeros_like(part) for part in moments)
    start = (key, _areas(moments, cell), cell, jnp.zeros_like(cell), zero)
    key, values, size, done, before = jax.lax.fori_loop(0, levels, step, start)
    part = after - done
    return _compose(before, _moments(_bridge(key, values, size, part), part), done, part)


def _bridge(key: Array, values: Values, size: Array, part: Array) -> Values:
    """Areas of the first part of an interval, given those of the whole.

    In the unit of the interval the whole is A x + B y, x and y the areas of the parts, A of the
    fraction r as below. As x and the whole have the diagonal covariances r D and D, x given the
    whole has the mean r D A' D^-1 (whole) and the covariance r D - r^2 D A' D^-1 A D.
    """
    count = len(values)
    r = jnp.clip(part / size, 0, 1)
    variances = jnp.asarray(_VARIANCES[:count], r.dtype)
    rows = [
        [jnp.ones_like(r), jnp.zeros_like(r), jnp.zeros_like(r)],
        [(1 - r) / 2, r, jnp.zeros_like(r)],
        [(1 - r) * (1 - 2 * r) / 12, r * (1 - r) / 2, r**2],
    ]
    share = jnp.stack([jnp.stack(row[:count]) for row in rows[:count]])
    gain = r * variances[:, None] * share.T / variances
    covariance = jnp.diag(r * variances) - gain @ (variances[:, None] * gain.T)
    factor = _cholesky(covariance)
    noise = [jnp.sqrt(size) * draw for draw in _normals(key, like=values[0], count=count)]
    return tuple(
        sum(gain[i, j] * values[j] + factor[i][j] * noise[j] for j in range(count))  # pyright: ignore
        for i in range(count)
    )


def _cholesky(matrix: Array) -> list[list[Array]]:
    """Of a small matrix that may be singular, as it is at both ends of an interval."""
    size = matrix.shape[0]
    zero = jnp.zeros((), matrix.dtype)
    factor = [[zero] * size for _ in range(size)]
    for j in range(size):
        pivot = matrix[j, j] - sum((factor[j][k] ** 2 for k in range(j)), zero)
        root = jnp.sqrt(jnp.maximum(pivot, 0))
        factor[j][j] = root
        inverse = jnp.where(root > 0, 1 / jnp.where(root > 0, root, 1), 0)
        for i in range(j + 1, size):
            rest = matrix[i, j] - sum((factor[i][k] * factor[j][k] for k in range(j)), zero)
            factor[i][j] = rest * inverse
    return factor


# ---- moments


def _moments(areas: Values, size: Array) -> Values:
    """W, P, Q from W, H, K."""
    w, *rest = areas
    if not rest:
        return (w,)
    h, *rest = rest
    first = size * (w / 2 + h)
    if not rest:
        return w, first
    return w, first, size**2 * (w / 3 + h / 2 - rest[0])


def _areas(moments: Values, size: Array) -> Values:
    """W, H, K from W, P, Q; zero over an interval of no length."""
    w, *rest = moments
    if not rest:
        return (w,)
    inverse = jnp.where(size > 0, 1 / jnp.where(size > 0, size, 1), 0)
    h = inverse * rest[0] - w / 2
    if len(rest) == 1:
        return w, h
    return w, h, w / 3 + h / 2 - inverse**2 * rest[1]


def _compose(first: Values, second: Values, d1: Array, d2: Array) -> Values:
    """The moments of two intervals, of lengths d1 and d2, one after the other."""
    return tuple(a + b for a, b in zip(first, _moved(first, second, d1, d2), strict=True))


def _remove(whole: Values, first: Values, d2: Array, d1: Array) -> Values:
    """The moments of what is left of an interval after its first part."""
    w = whole[0] - first[0]
    if len(whole) == 1:
        return (w,)
    p = whole[1] - first[1] - d2 * first[0]
    if len(whole) == 2:
        return w, p
    return w, p, whole[2] - first[2] - first[0] * (d1 * d2 + d2**2 / 2) - d1 * p


def _moved(first: Values, second: Values, d1: Array, d2: Array) -> Values:
    """What an interval adds to the moments of one before it."""
    w, *rest = second
    if not rest:
        return (w,)
    p = d2 * first[0] + rest[0]
    if len(rest) == 1:
        return w, p
    return w, p, rest[1] + first[0] * (d1 * d2 + d2**2 / 2) + d1 * rest[0]


def _prefix(cells: Values, cell: Array) -> Values:
    """The moments from the start of the path to each node, the first included."""
    w = _sums(cells[0])
    nodes = [w]
    if len(cells) > 1:
        nodes.append(_sums(cell * w[:-1] + cells[1]))
    if len(cells) > 2:
        count = cells[0].shape[0]
        times = cell * jnp.arange(count, dtype=w.dtype).reshape(-1, *[1] * (w.ndim - 1))
        nodes.append(_sums(cells[2] + w[:-1] * (times * cell + cell**2 / 2) + times * cells[1]))
    return tuple(nodes)


def _sums(parts: Array) -> Array:
    return jnp.concatenate([jnp.zeros_like(parts[:1]), jnp.cumsum(parts, axis=0)])


# ---- what the caller gave


def _check(n: int, levy_area: Any, refinements: int) -> None:
    if n < 1:
        raise InputError(f"a path of n={n} cells: give at least 1")
    if levy_area not in _COMPONENTS:
        names = ", ".join(f"diffrax.{area.__name__}" for area in _COMPONENTS)
        raise InputError(f"levy_area={levy_area!r} is not one of {names}")
    if not 0 <= refinements <= 60:
        raise InputError(f"refinements={refinements}: give between 0 and 60 halvings of a cell")


def _structure(shape: Any) -> Any:
    if isinstance(shape, tuple) and all(isinstance(size, int) for size in shape):
        return jax.ShapeDtypeStruct(shape, jnp.result_type(float))
    for leaf in jax.tree.leaves(shape):
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            raise InputError(f"a path of {leaf!r}: give shapes of real floating-point arrays")
    return shape


def _time(time: Any) -> Array:
    return jnp.asarray(time, jnp.result_type(float, time))


def _typed(key: Any) -> Array:
    if jnp.issubdtype(jnp.asarray(key).dtype, jax.dtypes.prng_key):
        return key
    return jr.wrap_key_data(key)
