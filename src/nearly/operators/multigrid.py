"""Operators whose linear maps are learned V-cycles (`mgno`).

A layer is v <- act(Mg v + B v): `Mg` is one V-cycle of convolutions 3 wide, whose smoothers,
operators, restrictions and prolongations are all learned, `B` acts on each point alone. There is no
lifting and no coordinate: boundary conditions enter through the padding of every convolution, also
of those on coarse grids: zeros (Dirichlet), circular (periodic) or mirrored (Neumann).

Differences from the published code, and why:

- Prolongations pad as the boundary says, and are not dilated: see `nearly.operators.v_cycle`.
- Neumann boundaries mirror about the boundary itself: about the outermost points where they lie on
  it (odd grids), about the faces of the outermost cells otherwise (even grids).
- Outputs are normalised by one number a channel, not by a mean and deviation of every pixel, which
  would hand the model the boundary values and tie it to one resolution.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nearly.core.errors import InputError, UnknownName
from nearly.operators.data import Pairs
from nearly.operators.losses import RelativeH1
from nearly.operators.training import FieldLoss, MapBuilder, Normalized, Schedule, statistics
from nearly.operators.v_cycle import KERNELS, Points, Restrict, VCycle, v_cycle

Boundary = Literal["dirichlet", "periodic", "neumann"]
Activation = Callable[[Array], Array]

PADDINGS = {
    ("dirichlet", "even"): "ZEROS",
    ("dirichlet", "odd"): "ZEROS",
    ("periodic", "even"): "CIRCULAR",
    ("neumann", "even"): "REPLICATE",
    ("neumann", "odd"): "REFLECT",
}


class MgNO(eqx.Module):
    """A field to a field on the same grid, `[inputs, *grid] -> [outputs, *grid]`: see `mgno`.

    **Arguments:**

    - `cycles`: the V-cycle of each layer. `pointwise`: what each adds to it at each point.
    - `head`: the last layer, a linear map at each point.
    - `points`: whether its grids have even or odd numbers of points along each axis.
    """

    cycles: tuple[VCycle, ...]
    pointwise: tuple[eqx.nn.Conv, ...]
    head: eqx.nn.Conv
    activation: Activation
    points: Points = eqx.field(static=True)

    def __call__(
        self, field: Float[Array, " inputs *grid"], key: Any = None
    ) -> Float[Array, " outputs *grid"]:
        """Raises `InputError` for channels or a grid that it was not made for."""
        self._check(field)
        for cycle, pointwise in zip(self.cycles, self.pointwise, strict=True):
            field = self.activation(cycle(field) + pointwise(field))
        return self.head(field)

    def _check(self, field: Array) -> None:
        first = self.pointwise[0]
        if field.ndim - 1 != first.num_spatial_dims or field.shape[0] != first.in_channels:
            raise InputError(
                f"a field of shape {list(field.shape)} for an MgNO of {first.in_channels} channels "
                f"on {first.num_spatial_dims} axes: hand over [channels, *grid]"
            )
        levels = len(self.cycles[0].pre)
        check_grid(field.shape[1:], levels, self.points)


def check_grid(grid: Sequence[int], levels: int, points: Points) -> None:
    """Raise `InputError` unless each size can be halved `levels - 1` times.

    Even grids must have multiples of 2^(levels - 1) points, odd ones a multiple and one more.
    """
    factor, extra = 2 ** (levels - 1), int(points == "odd")
    if any((size - extra) % factor or size - extra < factor for size in grid):
        kind = f"a multiple of {factor}" + (" plus 1" if extra else "")
        raise InputError(
            f"a grid of {' x '.join(map(str, grid))} points cannot be coarsened to {levels} levels "
            f"of {points} grids: each size must be {kind}; resample the field or use fewer levels"
        )


def mgno(
    inputs: int,
    outputs: int,
    key: Any,
    *,
    width: int = 24,
    layers: int = 4,
    pre: Sequence[int] = (1, 1, 1, 1, 1, 2),
    post: Sequence[int] | None = None,
    restrict: Restrict = "source",
    boundary: Boundary = "dirichlet",
    points: Points = "even",
    dims: int = 2,
    activation: Activation = jax.nn.gelu,
    dtype: Any = jnp.float32,
) -> MgNO:
    """A multigrid neural operator with the paper's settings as defaults.

    **Arguments:**

    - `width`: channels in every layer and level. `layers`: V-cycles, each with an activation.
    - `pre`: smoothing steps at each level before it is left for the coarser one; its length is the
      number of levels. `post`: after coming back, one number fewer; none by default.
    - `restrict`: what coarser levels see: the `source` f (the paper's), or the `residual` f - A u.
    - `boundary`: of the box: `dirichlet`, `periodic` or `neumann`.
    - `points`: whether grids have 2^k m points along each axis (`even`) or 2^k m + 1 (`odd`);
      any resolution of that kind may be fed.
    - `dims`: 1, 2 or 3.

    Kernels start uniform within 1 / sqrt(fan-in), as the published code's do. Raises `InputError`
    for settings that do not go together.

    **Cost:** about layers · 3^dims · (5 + 2 · steps) · width^2 multiplications a point; memory of
    (levels + 1) fields a layer in the backward pass. Paper: `mgno`.
    """
    after = (0,) * (len(pre) - 1) if post is None else tuple(post)
    _check_settings(inputs, outputs, width, layers, tuple(pre), after, restrict, boundary, points)
    if dims not in (1, 2, 3):
        raise InputError(f"dims={dims} must be 1, 2 or 3")
    cycles, pointwise, head = jax.random.split(key, 3)
    sources = [inputs] + [width] * (layers - 1)
    made = [
        v_cycle(
            source,
            width,
            k,
            pre=pre,
            post=after,
            restrict=restrict,
            padding=PADDINGS[boundary, points],
            kernel=KERNELS[points],
            dims=dims,
            dtype=dtype,
        )
        for source, k in zip(sources, jax.random.split(cycles, layers), strict=True)
    ]
    points_alone = [
        eqx.nn.Conv(dims, source, width, 1, dtype=dtype, key=k)
        for source, k in zip(sources, jax.random.split(pointwise, layers), strict=True)
    ]
    return MgNO(
        tuple(made),
        tuple(points_alone),
        eqx.nn.Conv(dims, width, outputs, 1, use_bias=False, dtype=dtype, key=head),
        activation,
        points,
    )


def _check_settings(
    inputs: int,
    outputs: int,
    width: int,
    layers: int,
    pre: tuple[int, ...],
    post: tuple[int, ...],
    restrict: str,
    boundary: str,
    points: str,
) -> None:
    counts = {"inputs": inputs, "outputs": outputs, "width": width, "layers": layers}
    for name, value in counts.items():
        if value < 1:
            raise InputError(f"{name}={value} must be at least 1")
    if not pre or pre[0] < 1 or min(pre) < 0:
        raise InputError(f"pre={pre} must be counts, one for each level, the first at least 1")
    if len(post) != len(pre) - 1 or min(post, default=0) < 0:
        raise InputError(f"post={post} must be {len(pre) - 1} counts: one a level but the coarsest")
    for kind, value, known in (
        ("restrict", restrict, get_args(Restrict)),
        ("boundary", boundary, get_args(Boundary)),
        ("points", points, get_args(Points)),
    ):
        if value not in known:
            raise UnknownName(kind, value, known)
    if (boundary, points) not in PADDINGS:
        raise InputError("a periodic grid leaves out its right end, so its points must be even")


# ---- learning from pairs


class TrainedMgNO(MapBuilder):
    """Builds an `MgNO` from pairs of fields, trained and normalised.

    **Arguments:**

    - `width`, `layers`: see `mgno`. `levels`: at most; as many as leave 2 points on the coarsest
      grid where the data's grid has fewer. The coarsest level takes 2 smoothing steps, others 1.
    - `boundary`: None: as the data's grid says, `periodic` or `dirichlet`.
    - The others: see `MapBuilder`.

    The defaults are the paper's scaled down to seconds of one core: 24 to 32 channels, 4 to 6
    layers, 6 levels, 500 epochs there; its rate is 5e-4. Boundary values of 0 stay 0: outputs are
    scaled but not shifted. Raises `InputError` for a grid that cannot be halved.
    """

    width: int = 12
    layers: int = 3
    levels: int = 6
    boundary: Boundary | None = None
    steps: int = 300
    batch: int = 8
    learning_rate: float = 2e-3
    schedule: Schedule = "one-cycle"
    weight_decay: float = 1e-4
    loss: FieldLoss = RelativeH1()

    def untrained(self, data: Pairs, key: Any) -> Normalized:
        """The model before training, with the data's statistics in it."""
        grid = data.inputs.shape[2:]
        levels, points = _levels(grid, self.levels)
        model = mgno(
            data.inputs.shape[1],
            data.outputs.shape[1],
            key,
            width=self.width,
            layers=self.layers,
            pre=(*(1,) * (levels - 1), 2),
            boundary=self.boundary or ("periodic" if data.grid.periodic else "dirichlet"),
            points=points,
            dims=len(grid),
            dtype=data.inputs.dtype,
        )
        mean, std = statistics(data.outputs)
        size = np.sqrt(mean**2 + std**2)
        return Normalized(model, *statistics(data.inputs), np.zeros_like(mean), size)


def _levels(grid: Sequence[int], most: int) -> tuple[int, Points]:
    """How many levels a grid allows, up to `most`, and of which kind its grids are."""
    points: Points = "odd" if all(size % 2 for size in grid) else "even"
    sizes = [size - (points == "odd") for size in grid]
    least = 2 if points == "even" else 1
    levels = 1
    while levels < most and all(size % 2 == 0 and size // 2 >= least for size in sizes):
        sizes = [size // 2 for size in sizes]
        levels += 1
    if levels == 1 < most:
        raise InputError(
            f"a grid of {' x '.join(map(str, grid))} points cannot be halved: its sizes must be "
            "all even, or all odd and one more than an even number of at least 2; resample it"
        )
    return levels, points


mgno_map = TrainedMgNO()
