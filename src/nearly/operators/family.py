"""`Family`: an equation with random inputs, and data sets of its solutions, cached by content."""

from __future__ import annotations

import abc
import hashlib
import os
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nearly.core.errors import InputError, StoreError
from nearly.core.store import cache_folder, digest_of
from nearly.operators.data import Grid, Pairs, Trajectories, check_data, resample

CHUNK = 32  # samples solved in one compiled call
JUDGED = 4  # samples on which the reference solver is checked against a finer one

Arrays = dict[str, np.ndarray]


class Family(eqx.Module):
    """An equation whose input is random: what a solution map is learned of.

    Sample i of a data set depends on `fold_in(key, i)` alone, and is the same function at every
    resolution: it is drawn on the reference grid, solved there in float64, and only then put on the
    grid that was asked for. All fields are settings (static).

    **Subclasses** say their `name`, `grid`, `reference` (points along an axis of the reference
    grid) and `resolutions` (those at which the solver is worth trying as a stand-in), and define
    `draw` and `solve`.
    """

    name: eqx.AbstractClassVar[str]
    resolutions: eqx.AbstractVar[tuple[int, ...]]
    reference: eqx.AbstractVar[int]

    @property
    @abc.abstractmethod
    def grid(self) -> Grid:
        """The box on which the fields live."""

    @abc.abstractmethod
    def draw(self, key: Any) -> Float[Array, " channels *grid"]:
        """A random field on the reference grid from which the input is made; smooth."""

    def parameters(self, key: Any) -> Float[Array, " parameters"]:
        """The equation's own numbers, where they vary: none by default."""
        del key
        return jnp.zeros(0)

    def start(self, drawn: Float[Array, " channels *grid"], parameters: Any) -> Any:
        """What is made of a draw before anything else: itself, unless the equation warms up."""
        del parameters
        return drawn

    def inputs(self, drawn: Float[Array, " channels *grid"]) -> Any:
        """The input field, made pointwise from what was drawn, at the same points."""
        return drawn

    def restrict(self, field: Any, resolution: int) -> Any:
        """An input field on a coarser grid, as a coarse solver is best given it."""
        return resample(field, self.grid, resolution)

    @abc.abstractmethod
    def solve(self, field: Any, parameters: Any) -> Any:
        """The solution that belongs to an input field, on the field's own grid, in its dtype.

        Pure: jit, vmap and the gradient work. Steps of time shrink with those of the grid. This is
        the reference solver, and at a lower resolution the coarse one.
        """

    def pairs(self, key: Any, count: int, resolution: int) -> Pairs:
        """`count` inputs and solutions, `resolution` points along each axis, as float32 arrays.

        Computed once and kept in the store's folder. Raises `InputError` for a count below 1, a
        resolution above the reference's, or a solver that does not end finite.
        """

        def one(key: Any) -> Any:
            drawn, parameters = _drawn(self, key)
            return self._pair(drawn, parameters, resolution)

        arrays = self._generated("pairs", one, key, count, resolution)
        made = Pairs(
            arrays["inputs"],
            arrays["outputs"],
            arrays["parameters"],
            self.grid,
            self,
            float(arrays["seconds"]),
        )
        return check_data(made)

    def _pair(self, drawn: Any, parameters: Any, resolution: int) -> dict[str, Any]:
        solution = self.solve(self.inputs(drawn), parameters)
        return {
            "inputs": self.inputs(resample(drawn, self.grid, resolution)),
            "outputs": resample(solution, self.grid, resolution),
            "parameters": parameters,
        }

    def uncertainty(self, key: Any, resolution: int) -> float:
        """The reference solver's own relative L2 error, against half its steps in space and time.

        The mean over four samples on the grid asked for, computed once.
        """

        def one(key: Any) -> Any:
            drawn, parameters = _drawn(self, key)
            fine = resample(drawn, self.grid, 2 * self.reference)
            finer = self.solve(self.inputs(fine), parameters)
            return {
                "finer": resample(finer, self.grid, resolution),
                "outputs": self._pair(drawn, parameters, resolution)["outputs"],
            }

        arrays = self._generated(
            "uncertainty", one, key, JUDGED, resolution, chunk=JUDGED, dtype="float64"
        )
        return float(np.mean(relative_errors(arrays["outputs"], arrays["finer"])))

    def _generated(
        self,
        kind: str,
        one: Callable[[Any], Mapping[str, Any]],
        key: Any,
        count: int,
        resolution: int,
        *,
        chunk: int = CHUNK,
        dtype: str = "float32",
    ) -> Arrays:
        if count < 1:
            raise InputError(f"count={count} must be at least 1")
        if not 2 <= resolution <= self.reference:
            raise InputError(
                f"resolution={resolution} must lie between 2 and the reference's {self.reference} "
                f"points: raise reference= of {self.name} for more"
            )
        words = np.asarray(jax.random.key_data(key))
        digest = digest_of(
            kind, type(self), self, words, count, resolution, chunk, dtype, _sources()
        )
        return _kept(digest, lambda: _solved(one, key, count, chunk, dtype))


class Evolution(Family):
    """A family in time: its solution map goes `frames` steps of `dt` ahead, a stepper goes one.

    **Subclasses** define `evolve` in place of `solve`.
    """

    dt: eqx.AbstractVar[float]
    frames: eqx.AbstractVar[int]

    @abc.abstractmethod
    def evolve(self, state: Any, parameters: Any, frames: int) -> Any:
        """The next `frames` states, `[frames, channels, *grid]`, `dt` apart, on its grid."""

    def solve(self, field: Any, parameters: Any) -> Any:
        return self.evolve(field, parameters, self.frames)[-1]

    def trajectories(self, key: Any, count: int, resolution: int, frames: int) -> Trajectories:
        """`count` trajectories of `frames` states each, the first included; as `pairs`."""
        if frames < 2:
            raise InputError(f"frames={frames} must be at least 2: a state and the next one")

        def one(key: Any) -> Any:
            drawn, parameters = _drawn(self, key)
            begun = self.inputs(drawn)
            later = self.evolve(begun, parameters, frames - 1)
            states = jnp.concatenate([begun[None], later])
            return {
                "states": resample(states, self.grid, resolution),
                "parameters": parameters,
            }

        arrays = self._generated(f"trajectories {frames}", one, key, count, resolution)
        made = Trajectories(
            arrays["states"],
            arrays["parameters"],
            self.grid,
            self.dt,
            self,
            float(arrays["seconds"]),
        )
        return check_data(made)


def relative_errors(values: Any, truths: Any) -> np.ndarray:
    """The relative L2 error of each sample, `[samples]`, in float64 on the host."""
    values, truths = (np.asarray(x, np.float64).reshape(len(x), -1) for x in (values, truths))
    return np.linalg.norm(values - truths, axis=1) / np.linalg.norm(truths, axis=1)


def _drawn(family: Family, key: Any) -> tuple[Any, Any]:
    field_key, parameter_key = jax.random.split(key)
    parameters = family.parameters(parameter_key)
    return family.start(family.draw(field_key), parameters), parameters


def _solved(one: Any, key: Any, count: int, chunk: int, dtype: str) -> Arrays:
    """Every sample's arrays, in chunks of one size: a sample does not depend on how many there are.

    With the seconds of one sample, compilation left out.
    """
    with jax.enable_x64(True):
        each = jax.jit(jax.vmap(lambda i: one(jax.random.fold_in(key, i))))
        rows = np.arange(-(-count // chunk) * chunk, dtype=np.uint32).reshape(-1, chunk)
        program = each.lower(rows[0]).compile()
        begun = time.perf_counter()
        chunks = [jax.tree.map(np.asarray, program(row)) for row in rows]
        seconds = (time.perf_counter() - begun) / rows.size
    made = {
        name: np.concatenate([part[name] for part in chunks])[:count].astype(dtype)
        for name in chunks[0]
    }
    return {**made, "seconds": np.asarray(seconds)}


def _kept(digest: str | None, compute: Callable[[], Arrays]) -> Arrays:
    """Arrays from the store's folder, or computed and put there; never a pickle."""
    if digest is None:  # a family that has no place in a file, made in an interactive session
        return compute()
    path = cache_folder() / "datasets" / f"{digest}.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError):
        arrays = compute()
        _write(path, arrays)
        return arrays


def _write(path: Path, arrays: Arrays) -> None:
    partial = path.with_name(f"{path.stem}.{os.getpid()}.npz")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(partial, **arrays)  # pyright: ignore[reportArgumentType]
        os.replace(partial, path)
    except OSError as error:
        raise StoreError(
            f"cannot keep a data set at {path}: {error.strerror}; set NEARLY_CACHE to a folder "
            "that can be written"
        ) from error


# What a data set is made by: a change of any of these files makes the kept ones void.
SOURCES = (
    "datasets/random_fields.py",
    "datasets/trigonometric.py",
    "operators/data.py",
    "operators/elliptic.py",
    "operators/evolution.py",
    "operators/families.py",
    "operators/family.py",
    "pde/darcy.py",
    "pde/exponential.py",
    "pde/manufactured.py",
    "pde/propagators.py",
    "pde/semilinear.py",
    "pde/spectral_grid.py",
    "pde/vorticity.py",
)


@lru_cache(1)
def _sources() -> str:
    """A digest of the source that data depend on."""
    state = hashlib.sha256()
    root = Path(__file__).resolve().parents[1]
    for path in (root / name for name in SOURCES):
        if path.exists():
            state.update(path.name.encode() + path.read_bytes())
    return state.hexdigest()
