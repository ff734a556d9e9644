"""What solution operators are learned from: pairs and trajectories of fields on a uniform grid."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any, TypeVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from nearly.core.errors import InputError

Data = TypeVar("Data", "Pairs", "Trajectories")
Fields = Any  # [samples, channels, *grid], of NumPy on the host or of JAX

STENCIL = 4  # points of the piecewise interpolation between cells: exact on cubics


class Grid(eqx.Module):
    """A box with the same number of points on a uniform grid whatever the field's resolution.

    **Arguments:**

    - `lengths`: the box is [0, lengths[0]] x ...
    - `periodic`: then point i lies at i L / n, without the right end; else at cell centres,
      (i + 1/2) L / n.
    """

    lengths: tuple[float, ...] = eqx.field(static=True)
    periodic: bool = eqx.field(static=True)

    def __check_init__(self) -> None:
        if not self.lengths or min(self.lengths) <= 0:
            raise InputError(f"lengths {self.lengths} must be 1 to 3 positive numbers")

    @property
    def dims(self) -> int:
        return len(self.lengths)

    def axis(self, points: int, axis: int = 0) -> np.ndarray:
        """The coordinates along one axis, `[points]`."""
        shift = 0.0 if self.periodic else 0.5
        return (np.arange(points) + shift) * (self.lengths[axis] / points)


class Pairs(eqx.Module):
    """Input fields, the solutions that belong to them, and the equation's parameters.

    **Arguments:**

    - `inputs`: `[samples, channels, *grid]`. `outputs`: the same with their own channels.
    - `parameters`: `[samples, p]`; p is 0 where the family has none that vary.
    - `grid`: the box they live on.
    - `family`: the `family.Family` they come from, for methods that know the equation; or None.
    - `solve_seconds`: what one solution cost the reference solver, where that is known.
    """

    inputs: Fields
    outputs: Fields
    parameters: Any
    grid: Grid
    family: Any = eqx.field(static=True, default=None)
    solve_seconds: float = eqx.field(static=True, default=0.0)

    def __len__(self) -> int:
        return self.inputs.shape[0]

    def __getitem__(self, rows: slice) -> Pairs:
        return replace(
            self,
            inputs=self.inputs[rows],
            outputs=self.outputs[rows],
            parameters=self.parameters[rows],
        )


class Trajectories(eqx.Module):
    """Fields at equal distances in time, `states [samples, frames, channels, *grid]`.

    **Arguments:**

    - `parameters`: `[samples, p]`. `grid`: the box. `dt`: the time between two frames.
    - `family`: the `family.Evolution` they come from, or None.
    - `solve_seconds`: what one trajectory cost the reference solver, where that is known.
    """

    states: Any
    parameters: Any
    grid: Grid
    dt: float = eqx.field(static=True)
    family: Any = eqx.field(static=True, default=None)
    solve_seconds: float = eqx.field(static=True, default=0.0)

    def __len__(self) -> int:
        return self.states.shape[0]

    def __getitem__(self, rows: slice) -> Trajectories:
        return replace(self, states=self.states[rows], parameters=self.parameters[rows])

    def steps(self) -> Pairs:
        """Every state with the one that follows it, `samples * (frames - 1)` pairs."""
        samples, frames = self.states.shape[:2]
        shape = (samples * (frames - 1), *self.states.shape[2:])
        return Pairs(
            self.states[:, :-1].reshape(shape),
            self.states[:, 1:].reshape(shape),
            np.repeat(np.asarray(self.parameters), frames - 1, 0),
            self.grid,
            self.family,
        )


def check_data(data: Data) -> Data:
    """The data, if all of it is finite and there is some; raises `InputError` otherwise."""
    if len(data) < 1:
        raise InputError("there is no sample: ask for at least 1")
    arrays = (
        {"inputs": data.inputs, "outputs": data.outputs}
        if isinstance(data, Pairs)
        else {"states": data.states}
    )
    for name, array in {**arrays, "parameters": data.parameters}.items():
        if array.shape[0] != len(data):
            raise InputError(f"{len(data)} samples, but {array.shape[0]} {name}: give one each")
        finite = np.isfinite(np.asarray(array)).reshape(len(data), -1).all(1)
        if not finite.all():
            bad = int(np.argmin(finite))
            raise InputError(f"the {name} of sample {bad} are not finite: leave that sample out")
    return data


def resample(field: Any, grid: Grid, resolution: int) -> Any:
    """A field `[..., *axes]` at another resolution of its grid: `[..., resolution, ...]`.

    Exact for the Fourier modes both grids hold where the grid is periodic, and for cubics where it
    is not; then values next to the boundary are extrapolated. Not meant for jumps: a coefficient
    that has some is to be sampled before it is cut (see `families.Darcy`).

    Raises `InputError` for fewer than 1 (periodic) or 4 points.
    """
    least = 1 if grid.periodic else STENCIL
    for axis in range(-grid.dims, 0):
        points = field.shape[axis]
        if min(points, resolution) < least:
            raise InputError(
                f"cannot resample {points} points to {resolution}: at least {least} are needed"
            )
        if points == resolution:
            continue
        build = _fourier_matrix if grid.periodic else _cubic_matrix
        matrix = jnp.asarray(build(points, resolution), field.dtype)
        field = jnp.moveaxis(jnp.tensordot(field, matrix, ((axis,), (1,))), -1, axis)
    return field


@lru_cache(32)
def _fourier_matrix(points: int, resolution: int) -> np.ndarray:
    """[resolution, points]: the trigonometric interpolant without the modes that would alias."""
    spectrum = np.fft.rfft(np.eye(points), axis=0)
    least = min(points, resolution)
    kept = np.zeros((resolution // 2 + 1, points), complex)
    shared = least // 2 + 1
    kept[:shared] = spectrum[:shared]
    if least % 2 == 0 and points != resolution:
        # The highest mode of the smaller grid stands for two on the larger one: half of each.
        kept[least // 2] *= 0.5 if resolution > points else 2.0
        if resolution < points:
            kept[least // 2] = kept[least // 2].real
    return np.fft.irfft(kept, resolution, axis=0) * (resolution / points)


@lru_cache(32)
def _cubic_matrix(points: int, resolution: int) -> np.ndarray:
    """[resolution, points]: cubic interpolation from cell centres to cell centres."""
    matrix = np.zeros((resolution, points))
    at = (np.arange(resolution) + 0.5) * points / resolution - 0.5
    first = np.clip(np.floor(at).astype(int) - 1, 0, points - STENCIL)
    nodes = np.arange(STENCIL)
    for row, (place, start) in enumerate(zip(at, first, strict=True)):
        for node in nodes:
            others = nodes[nodes != node]
            matrix[row, start + node] = np.prod((place - start - others) / (node - others))
    return matrix
