"""Shampoo, as it is run at scale: blocks, lazy roots, grafting (`distributed-shampoo`).

For every block G (n_1 x ... x n_k) of an array, in every step

    L_i = b2 L_i + (1 - b2) G_(i) G_(i)^T      G_(i): axis i first, the others flattened

in every `every`-th step, from step `start` on,

    R_i = (L_i + ridge largest(L_i) I)^(-1 / 2k)

and P = G multiplied by R_i along each axis. The step has P's direction and, array by array, the
norm of the step that another optimizer would take ("grafting"); before `start` it is that step.

Where this differs from the authors' program: blocks of an array are of equal size (`blocks`); roots
are not computed before they are used; momentum is one average, of the steps taken, where theirs
keeps a second one for the steps not taken, and it is a mean, not a sum, so that a learning rate
means what it means to the grafted optimizer; the ridge is relative alone, without the absolute
1e-6 that the statistics start from there, so that the scale of the loss is immaterial. Roots
that come out infinite or undefined leave those before in place, as there.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from nearly.core.errors import InputError, UnknownName
from nearly.optimize.adaptive.settings import (
    Rate,
    check_decays,
    check_not_negative,
    check_positive,
    correction,
)
from nearly.optimize.kronecker.blocks import Partition, along, second_moment
from nearly.optimize.kronecker.roots import InverseRoot, eigh_inverse_root

Grafting = str | optax.GradientTransformation | None

GRAFTINGS: dict[str, optax.GradientTransformation] = {
    "sgd": optax.identity(),
    "adagrad": optax.scale_by_rss(initial_accumulator_value=0.0, eps=1e-10),
    "rmsprop": optax.scale_by_rms(decay=0.999),
    # Without a mean of its own: momentum follows for all of them.
    "adam": optax.scale_by_adam(b1=0.0, b2=0.999),
}
"""The steps whose norm Shampoo can take, by name."""


class ShampooState(NamedTuple):
    """The number of steps; for every array and axis, its blocks' moments and roots; the graft's."""

    steps: Int[Array, ""]
    statistics: list[list[Array]]
    roots: list[list[Array]]
    grafting: Any


def scale_by_shampoo(
    b2: float = 0.999,
    ridge: float = 1e-6,
    every: int = 10,
    start: int = 5,
    block_size: int = 128,
    largest_axis: int = 8192,
    grafting: Grafting = "adam",
    root: InverseRoot = eigh_inverse_root,
) -> optax.GradientTransformation:
    """The direction of Shampoo, with the norm of another optimizer's step.

    **Arguments:**

    - `b2` in (0, 1], the share kept of the moments; 1 sums them, as in AdaGrad.
    - `ridge` > 0, added to a moment, relative to its largest eigenvalue.
    - `every`: steps between two computations of the roots. `start`: steps before the first.
    - `block_size`: of the blocks that arrays are cut into, and up to which small axes are merged.
    - `largest_axis`: of longer ones (vocabularies) only the moment's diagonal is kept.
    - `grafting`: whose norm a step has: a key of `GRAFTINGS`, any optax transformation that
      returns a direction uphill, or None for Shampoo's own norm; then `start` must be 0.
    - `root`: `eigh_inverse_root`, or `newton_inverse_root` for accelerators.

    Raises `InputError` for values out of range, `UnknownName` for another grafting.

    Costs, for a matrix of m x n in blocks of b, 4 m n b flops a step and 18 m n b flops every
    `every` steps; 4 m n numbers of memory and the graft's. Moments and roots are in float32 or
    better. Paper: `distributed-shampoo`.
    """
    if not 0 < b2 <= 1:
        raise InputError(f"b2 {b2} must lie in (0, 1]: the share of the moments that is kept")
    check_positive(ridge=ridge, every=every, block_size=block_size, largest_axis=largest_axis)
    check_not_negative(start=start)
    if grafting is None and start != 0:
        raise InputError(
            f"start {start} without grafting: there is no other step to take before it; use start=0"
        )
    graft = _graft(grafting)

    def partitions(leaves: Sequence[Array]) -> list[Partition]:
        return [Partition.of(leaf.shape, block_size, largest_axis) for leaf in leaves]

    def init(params: PyTree) -> ShampooState:
        leaves = jax.tree.leaves(params)
        parts = partitions(leaves)
        statistics = [_empty(p, _precise(x), jnp.zeros_like) for p, x in zip(parts, leaves)]
        roots = [_empty(p, _precise(x), _identities) for p, x in zip(parts, leaves)]
        steps = jnp.zeros((), jnp.int32)
        return ShampooState(steps, statistics, roots, graft.init(params))

    def update(updates: PyTree, state: Any, params: Any = None) -> tuple[PyTree, ShampooState]:
        leaves, structure = jax.tree.flatten(updates)
        parts = partitions(leaves)
        gradients = [p.split(x.astype(_precise(x))) for p, x in zip(parts, leaves)]
        statistics = [
            [_average(b2, old, second_moment(g, i, p.diagonal[i])) for i, old in enumerate(olds)]
            for p, g, olds in zip(parts, gradients, state.statistics)
        ]

        def refresh() -> list[list[Array]]:
            fresh = [[s / _age(b2, state.steps + 1, s) for s in ss] for ss in statistics]
            return _roots(fresh, state.roots, ridge, root)

        due = (state.steps >= start) & ((state.steps - start) % every == 0)
        roots = jax.lax.cond(due, refresh, lambda: state.roots)
        own = [_precondition(p, g, rs) for p, g, rs in zip(parts, gradients, roots)]
        other, graft_state = graft.update(updates, state.grafting, params)
        steps = [
            jnp.where(state.steps >= start, o if grafting is None else _with_norm(o, s), s)
            for o, s in zip(own, jax.tree.leaves(other))
        ]
        steps = [s.astype(x.dtype) for s, x in zip(steps, leaves)]
        state = ShampooState(state.steps + 1, statistics, roots, graft_state)
        return jax.tree.unflatten(structure, steps), state

    return optax.GradientTransformation(init, cast("Any", update))


def shampoo(
    learning_rate: Rate = 1e-3,
    b1: float = 0.9,
    b2: float = 0.999,
    ridge: float = 1e-6,
    every: int = 10,
    start: int = 5,
    block_size: int = 128,
    largest_axis: int = 8192,
    grafting: Grafting = "adam",
    root: InverseRoot = eigh_inverse_root,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """Shampoo with momentum and decoupled weight decay.

    **Arguments:** as `scale_by_shampoo`'s; `learning_rate`, a number or a schedule, in the units
    of the grafted optimizer; `b1` in [0, 1), the share that the mean of the steps keeps (corrected
    for its start from zero); `weight_decay`, as AdamW's (needs the parameters in `update`).

    Advice: begin with the learning rate that suits the grafted optimizer, and no `every` so small
    that roots take longer than gradients. The authors graft "adagrad" with `b2=1` on Transformers
    and "sgd" on ResNets.
    """
    check_decays(b1=b1)
    check_not_negative(weight_decay=weight_decay)
    return optax.chain(
        scale_by_shampoo(b2, ridge, every, start, block_size, largest_axis, grafting, root),
        optax.ema(b1, debias=True),
        optax.add_decayed_weights(weight_decay) if weight_decay else optax.identity(),
        optax.scale_by_learning_rate(cast("Any", learning_rate)),
    )


def _graft(grafting: Grafting) -> optax.GradientTransformation:
    if grafting is None:
        return GRAFTINGS["sgd"]
    if isinstance(grafting, str):
        if grafting not in GRAFTINGS:
            raise UnknownName("grafting", grafting, GRAFTINGS)
        return GRAFTINGS[grafting]
    return grafting


def _precise(leaf: Array) -> Any:
    return jnp.promote_types(leaf.dtype, jnp.float32)


def _empty(part: Partition, dtype: Any, fill: Any) -> list[Array]:
    return [
        fill(jnp.zeros((part.blocks, n) if diagonal else (part.blocks, n, n), dtype))
        for n, diagonal in zip(part.sizes, part.diagonal)
    ]


def _identities(zeros: Array) -> Array:
    return zeros + (1 if zeros.ndim == 2 else jnp.eye(zeros.shape[-1], dtype=zeros.dtype))


def _average(kept: float, old: Array, new: Array) -> Array:
    return old + new if kept == 1 else kept * old + (1 - kept) * new


def _age(kept: float, steps: Array, like: Array) -> Array | float:
    """What a moving average that started from zero has to be divided by."""
    return 1.0 if kept == 1 else correction(kept, steps, like)


def _roots(
    statistics: list[list[Array]], before: list[list[Array]], ridge: float, root: InverseRoot
) -> list[list[Array]]:
    """The roots of all blocks, those of one size and order in one batch."""
    kinds: dict[tuple[Any, ...], list[tuple[int, int]]] = {}
    for leaf, axes in enumerate(statistics):
        for axis, moment in enumerate(axes):
            kind = (2 * len(axes), moment.shape[1:], moment.dtype)
            kinds.setdefault(kind, []).append((leaf, axis))
    found = [list(axes) for axes in before]
    for (order, shape, _), places in kinds.items():
        moments = [statistics[leaf][axis] for leaf, axis in places]
        stacked = jnp.concatenate(moments)
        made = root(stacked, order, ridge) if len(shape) == 2 else _diagonal(stacked, order, ridge)
        ends = list(accumulate(len(m) for m in moments))
        for (leaf, axis), piece in zip(places, jnp.split(made, ends[:-1])):
            good = jnp.all(jnp.isfinite(piece), axis=tuple(range(1, piece.ndim)), keepdims=True)
            found[leaf][axis] = jnp.where(good, piece, before[leaf][axis])
    return found


def _diagonal(moments: Array, order: int, ridge: float) -> Array:
    largest = jnp.max(moments, axis=1, keepdims=True)
    scale = jnp.where(largest > 0, largest, 1)
    powers = scale ** (-1 / order) * (moments / scale + ridge) ** (-1 / order)
    return jnp.where(largest > 0, powers, 1)


def _precondition(part: Partition, blocks: Array, roots: list[Array]) -> Array:
    for axis, root in enumerate(roots):
        blocks = along(blocks, axis, root)
    return part.join(blocks)


def _with_norm(direction: Array, of: Array) -> Array:
    """The direction with another array's norm; zero where there is no direction."""
    norm = jnp.linalg.norm(direction.ravel())
    wanted = jnp.linalg.norm(of.astype(direction.dtype).ravel())
    return direction * jnp.where(norm > 0, wanted / jnp.where(norm > 0, norm, 1), 0)
