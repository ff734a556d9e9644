"""How an array is cut for a preconditioner: small axes merged, long ones split into equal blocks.

A kernel of 64 x 32 x 3 x 3 becomes one of 64 x 96 x 3 with blocks of at most 128 (32 and 3 make 96,
96 and 3 would be too long); a matrix of 300 x 100 becomes three blocks of 100 x 100. Where the
authors cut 300 into 128, 128 and 44, here all blocks of an array are alike, as near to equal as
they can be, and what they exceed the array by is zeros: a zero row changes no other's root. So
one batched product and one batched root serve them all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array


def merge_axes(shape: Sequence[int], limit: int) -> tuple[int, ...]:
    """The shape with neighbouring axes merged while their product is at most `limit`.

    Axes of one vanish; what has no other becomes `(1,)`.
    """
    merged: list[int] = []
    for size in shape:
        if size == 1:
            continue
        if merged and merged[-1] * size <= limit:
            merged[-1] *= size
        else:
            merged.append(size)
    return tuple(merged) or (1,)


@dataclass(frozen=True)
class Partition:
    """An array's blocks: `counts[i]` of length `sizes[i]` along each merged axis.

    An axis that is `diagonal` is not split, and of its second moment only the diagonal is kept.
    """

    shape: tuple[int, ...]
    merged: tuple[int, ...]
    counts: tuple[int, ...]
    sizes: tuple[int, ...]
    diagonal: tuple[bool, ...]

    @classmethod
    def of(cls, shape: Sequence[int], block_size: int, largest_axis: int) -> Partition:
        """Cut an array into blocks of `block_size` at most; axes beyond `largest_axis` whole."""
        merged = merge_axes(shape, block_size)
        diagonal = tuple(n > largest_axis for n in merged)
        counts = tuple(1 if d else -(-n // block_size) for n, d in zip(merged, diagonal))
        sizes = tuple(-(-n // count) for n, count in zip(merged, counts))
        return cls(tuple(shape), merged, counts, sizes, diagonal)

    @property
    def order(self) -> int:
        """The number of merged axes."""
        return len(self.merged)

    @property
    def blocks(self) -> int:
        """The number of blocks."""
        return math.prod(self.counts)

    def split(self, array: Array) -> Array:
        """The blocks, along a new first axis: `(blocks, *sizes)`."""
        ends = [(0, c * s - n) for n, c, s in zip(self.merged, self.counts, self.sizes)]
        padded = jnp.pad(array.reshape(self.merged), ends)
        pairs = [n for pair in zip(self.counts, self.sizes) for n in pair]
        evens, odds = range(0, 2 * self.order, 2), range(1, 2 * self.order, 2)
        return padded.reshape(pairs).transpose(*evens, *odds).reshape(self.blocks, *self.sizes)

    def join(self, blocks: Array) -> Array:
        """The array whose blocks these are."""
        order = self.order
        mixed = [axis for i in range(order) for axis in (i, order + i)]
        whole = blocks.reshape(*self.counts, *self.sizes).transpose(mixed)
        whole = whole.reshape([c * s for c, s in zip(self.counts, self.sizes)])
        return whole[tuple(slice(n) for n in self.merged)].reshape(self.shape)


def second_moment(blocks: Array, axis: int, diagonal: bool) -> Array:
    """Each block's second moment along an axis, `(blocks, n, n)`, or its diagonal `(blocks, n)`."""
    rows = jnp.moveaxis(blocks, axis + 1, 1).reshape(blocks.shape[0], blocks.shape[axis + 1], -1)
    return jnp.sum(rows**2, axis=2) if diagonal else rows @ jnp.swapaxes(rows, 1, 2)


def along(blocks: Array, axis: int, factor: Array) -> Array:
    """Each block multiplied along an axis by its matrix `(blocks, n, n)` or diagonal."""
    first = jnp.moveaxis(blocks, axis + 1, 1)
    rows = first.reshape(*first.shape[:2], -1)
    times: Callable[[Array, Array], Array] = jnp.matmul if factor.ndim == 3 else _scale
    return jnp.moveaxis(times(factor, rows).reshape(first.shape), 1, axis + 1)


def _scale(factor: Array, rows: Array) -> Array:
    return factor[..., None] * rows
