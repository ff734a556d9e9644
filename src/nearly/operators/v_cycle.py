"""Learned V-cycles: linear maps of fields from smoothers, coarsenings and prolongations.

A prolongation is computed as one convolution on the coarse grid with an output for each parity of
the fine point, which is then interleaved: the same numbers as a transposed convolution; forward and
backward take a tenth of the time of a dilated one on a CPU. It pads the coarse field as the
boundary says, where a transposed convolution always pads zeros, so that on a periodic grid it would
not commute with translations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Points = Literal["even", "odd"]
Restrict = Literal["source", "residual"]

PAD_MODES = {"ZEROS": "constant", "CIRCULAR": "wrap", "REPLICATE": "edge", "REFLECT": "reflect"}
KERNELS: dict[Points, int] = {"even": 4, "odd": 3}

# [parity of the fine point, offset of the coarse one + 1, tap]: tap k of coarse point i falls on
# fine point 2 i + k - 1.
SCATTER = np.zeros((2, 3, 4))
for _parity, _offset, _tap in ((0, 0, 3), (0, 1, 1), (1, 1, 2), (1, 2, 0)):
    SCATTER[_parity, _offset, _tap] = 1


class Smoothing(eqx.Module):
    """A step of a stationary iteration for A u = f: u + S(f - A u)."""

    operator: eqx.nn.Conv
    smoother: eqx.nn.Conv

    def __call__(
        self, u: Float[Array, " width *grid"], f: Float[Array, " sources *grid"]
    ) -> Float[Array, " width *grid"]:
        return u + self.smoother(f - self.operator(u))


class Coarsening(eqx.Module):
    """To the next coarser grid: u <- Pi u and f <- R f, or f <- R(f - A u) if there is an A."""

    projection: eqx.nn.Conv
    restriction: eqx.nn.Conv
    operator: eqx.nn.Conv | None

    def __call__(
        self, u: Float[Array, " width *grid"], f: Float[Array, " sources *grid"]
    ) -> tuple[Float[Array, " width *coarse"], Float[Array, " sources *coarse"]]:
        if self.operator is not None:
            f = f - self.operator(u)
        return self.projection(u), self.restriction(f)


class Prolongation(eqx.Module):
    """A transposed convolution of stride 2, to the next finer grid.

    **Arguments:**

    - `weight`: `[width, width, *kernel]`; 4 wide from n to 2 n points, 3 wide from n to 2 n - 1.
    - `padding`: how the coarse field goes on beyond the boundary, as in `eqx.nn.Conv`.
    """

    weight: Float[Array, " width width *kernel"]
    padding: str = eqx.field(static=True)

    def __call__(self, u: Float[Array, " width *coarse"]) -> Float[Array, " width *fine"]:
        width, dims = u.shape[0], u.ndim - 1
        mode: Any = PAD_MODES[self.padding]
        padded = jnp.pad(u, ((0, 0), *((1, 1),) * dims), mode=mode)
        by_parity = jax.lax.conv_general_dilated(
            padded[None], self._stencils(dims), (1,) * dims, "VALID"
        )[0]
        fine = _interleaved(by_parity.reshape(*(2,) * dims, width, *u.shape[1:]))
        if self.weight.shape[-1] == KERNELS["even"]:
            return fine
        return fine[(slice(None), *(slice(size - 1) for size in fine.shape[1:]))]

    def _stencils(self, dims: int) -> Array:
        """For each parity of the fine point, what it takes of its coarse neighbours."""
        width, kernel = self.weight.shape[0], self.weight.shape[-1]
        scatter = jnp.asarray(SCATTER[..., :kernel], self.weight.dtype)
        stencils = self.weight
        # Each time the first axis of the kernel becomes a parity and an offset at the end.
        for _ in range(dims):
            stencils = jnp.tensordot(stencils, scatter, ((2,), (2,)))
        parities, offsets = range(2, 2 + 2 * dims, 2), range(3, 3 + 2 * dims, 2)
        stencils = stencils.transpose(*parities, 0, 1, *offsets)
        return stencils.reshape(2**dims * width, width, *(3,) * dims)


def _interleaved(x: Array) -> Array:
    """`[2, ..., width, n, ...] -> [width, 2 n, ...]`: the parities are the last bits."""
    dims = x.ndim // 2
    order = [dims]
    for axis in range(dims):
        order += [dims + 1 + axis, axis]
    return x.transpose(order).reshape(x.shape[dims], *(2 * size for size in x.shape[dims + 1 :]))


class VCycle(eqx.Module):
    """A linear map of fields, `[sources, *grid] -> [width, *grid]`: a V-cycle from u = 0.

    **Arguments:**

    - `first`: the first smoothing step, u = S f.
    - `pre`: the other steps before coarsening, for each level, fine to coarse; on the coarsest
      grid they are all there is.
    - `coarsenings`, `prolongations`, `post`: for each level but the coarsest.

    Every step has kernels of its own. **Cost:** that of its finest level, times at most
    1 / (1 - 2^-dims).
    """

    first: eqx.nn.Conv
    pre: tuple[tuple[Smoothing, ...], ...]
    coarsenings: tuple[Coarsening, ...]
    prolongations: tuple[Prolongation, ...]
    post: tuple[tuple[Smoothing, ...], ...]

    def __call__(self, f: Float[Array, " sources *grid"]) -> Float[Array, " width *grid"]:
        u = _smoothed(self.first(f), f, self.pre[0])
        finer: list[tuple[Array, Array]] = []
        for coarsen, steps in zip(self.coarsenings, self.pre[1:], strict=True):
            finer.append((u, f))
            u, f = coarsen(u, f)
            u = _smoothed(u, f, steps)
        for prolong, steps in zip(reversed(self.prolongations), reversed(self.post), strict=True):
            before, f = finer.pop()
            u = _smoothed(before + prolong(u), f, steps)
        return u


def _smoothed(u: Array, f: Array, steps: Sequence[Smoothing]) -> Array:
    for step in steps:
        u = step(u, f)
    return u


def v_cycle(
    sources: int,
    width: int,
    key: Any,
    *,
    pre: Sequence[int],
    post: Sequence[int],
    restrict: Restrict = "source",
    padding: str = "ZEROS",
    kernel: int = 4,
    dims: int = 2,
    dtype: Any = jnp.float32,
) -> VCycle:
    """A V-cycle with fresh kernels; `kernel` of the prolongations is 4 (even grids) or 3 (odd)."""
    steps = sum(pre) + sum(post)
    keys = iter(jax.random.split(key, 2 * steps + 4 * len(pre)))

    def conv(before: int, after: int, stride: int = 1) -> eqx.nn.Conv:
        return eqx.nn.Conv(
            dims,
            before,
            after,
            3,
            stride,
            padding=1,
            padding_mode=padding,
            use_bias=False,
            dtype=dtype,
            key=next(keys),
        )

    def smoothing() -> Smoothing:
        return Smoothing(operator=conv(width, sources), smoother=conv(sources, width))

    def coarsening() -> Coarsening:
        operator = conv(width, sources) if restrict == "residual" else None
        return Coarsening(conv(width, width, 2), conv(sources, sources, 2), operator)

    def prolongation() -> Prolongation:
        shape = (width, width, *(kernel,) * dims)
        reach = (width * kernel**dims) ** -0.5
        return Prolongation(
            jax.random.uniform(next(keys), shape, dtype, minval=-reach, maxval=reach), padding
        )

    counts = (pre[0] - 1, *pre[1:])  # the first step on the finest grid starts from nothing
    return VCycle(
        first=conv(sources, width),
        pre=tuple(tuple(smoothing() for _ in range(count)) for count in counts),
        coarsenings=tuple(coarsening() for _ in post),
        prolongations=tuple(prolongation() for _ in post),
        post=tuple(tuple(smoothing() for _ in range(count)) for count in post),
    )
