"""What a learned solution map has to beat: a linear fit, a look-up, a U-Net, and the coarse solver.

The first three are builders `(data, *, key) -> module`, as every learned method; the solver is a
`CoarseSolver`, which needs no data.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nearly.core.errors import InputError
from nearly.operators.data import Grid, Pairs, Trajectories, check_data, resample
from nearly.operators.training import (
    Schedule,
    as_stepper,
    normalized,
    relative_l2_loss,
    train,
)
from nearly.training.architectures import unet
from nearly.training.convolution import as_products

# ---- linear


class LinearMap(eqx.Module):
    """An affine map between the principal components of inputs and outputs."""

    analysis: Float[Array, "components inputs"]
    synthesis: Float[Array, "outputs components"]
    shift: Float[Array, " outputs"]
    shape: tuple[int, ...] = eqx.field(static=True)
    needs: tuple[int, ...] = eqx.field(static=True)

    def __call__(self, field: Float[Array, " channels *grid"]) -> Float[Array, " outputs *grid"]:
        if field.shape != self.needs:
            raise InputError(
                f"this linear map takes a field of shape {list(self.needs)}, not "
                f"{list(field.shape)}: resample it first (nearly.operators.data.resample)"
            )
        flat = self.synthesis @ (self.analysis @ field.reshape(-1)) + self.shift
        return flat.reshape(self.shape)


class PCARidge(eqx.Module):
    """Ridge regression from the principal components of the input to the output field.

    What a nonlinear model must beat to have learned anything nonlinear. It knows one resolution.
    The components explain all but `left_out` of the inputs' variance; the penalty is chosen by
    leave-one-out error, in closed form. **Cost:** O(n^2 m) for n samples of m numbers.
    """

    left_out: float = 1e-6
    penalties: tuple[float, ...] = tuple(10.0**-k for k in range(9))
    random: ClassVar[bool] = False

    def __call__(self, data: Pairs, *, key: Any) -> LinearMap:
        del key
        check_data(data)
        inputs, outputs = (_rows(x) for x in (data.inputs, data.outputs))
        middle, mean = inputs.mean(0), outputs.mean(0)
        left, sizes, right = np.linalg.svd(inputs - middle, full_matrices=False)
        kept = _explaining(sizes, self.left_out)
        left, sizes, right = left[:, :kept], sizes[:kept], right[:kept]
        penalty = _best_penalty(left, sizes, outputs - mean, self.penalties)
        weights = (left * (sizes / (sizes**2 + penalty))).T @ (outputs - mean)
        shift = mean - weights.T @ (right @ middle)
        dtype = np.asarray(data.inputs).dtype
        return LinearMap(
            jnp.asarray(right, dtype),
            jnp.asarray(weights.T, dtype),
            jnp.asarray(shift, dtype),
            data.outputs.shape[1:],
            data.inputs.shape[1:],
        )


def _rows(fields: Any) -> np.ndarray:
    return np.asarray(fields, np.float64).reshape(len(fields), -1)


def _explaining(sizes: np.ndarray, left_out: float) -> int:
    """How many singular values hold all but a fraction of the variance; at least one."""
    tail = 1 - np.cumsum(sizes**2) / max(np.sum(sizes**2), 1e-300)
    return int(min(np.searchsorted(-tail, -left_out) + 1, len(sizes)))


def _best_penalty(
    left: np.ndarray, sizes: np.ndarray, outputs: np.ndarray, relative: tuple[float, ...]
) -> float:
    """The penalty of the smallest leave-one-out error, relative to the largest component."""

    def left_one_out(penalty: float) -> float:
        shrunk = left * (sizes**2 / (sizes**2 + penalty))
        residual = outputs - shrunk @ (left.T @ outputs)
        # The mean was fitted too, which takes 1/n of a sample's own weight.
        free = 1 - np.sum(shrunk * left, 1) - 1 / len(left)
        return float(np.sum((residual / np.maximum(free, 1e-9)[:, None]) ** 2))

    penalties = [p * float(sizes[0]) ** 2 for p in relative]
    return min(penalties, key=left_one_out)


# ---- look-up


class NearestNeighbour(eqx.Module):
    """The solution of the training input that is nearest to the one at hand; no training.

    **Cost:** of a use, as many operations as the training set has numbers.
    """

    random: ClassVar[bool] = False

    def __call__(self, data: Pairs, *, key: Any) -> Lookup:
        del key
        check_data(data)
        return Lookup(jnp.asarray(data.inputs), jnp.asarray(data.outputs))


class Lookup(eqx.Module):
    """Training inputs and their solutions."""

    inputs: Any
    outputs: Any

    def __call__(self, field: Float[Array, " channels *grid"]) -> Float[Array, " outputs *grid"]:
        if field.shape != self.inputs.shape[1:]:
            raise InputError(
                f"the samples have shape {list(self.inputs.shape[1:])}, not {list(field.shape)}: "
                "resample the field first (nearly.operators.data.resample)"
            )
        axes = tuple(range(1, self.inputs.ndim))
        return self.outputs[jnp.argmin(jnp.sum((self.inputs - field) ** 2, axes))]


class Persistence(eqx.Module):
    """Tomorrow's field is today's: the stepper that everything has to beat at first."""

    random: ClassVar[bool] = False

    def __call__(self, data: Trajectories, *, key: Any) -> Still:
        del data, key
        return Still()


class Still(eqx.Module):
    """Hands back the state."""

    def __call__(self, state: Array, parameters: Array, *, key: Any = None) -> Array:
        del parameters, key
        return state


# ---- U-Net


class UNetMap(eqx.Module):
    """A convolutional U-Net trained on relative L2: a solution map at one resolution.

    Convolutions see grid cells, not lengths: at another resolution it is another map. Settings are
    those of a training of seconds on one core.
    """

    width: int = 12
    levels: int = 2
    steps: int = 200
    batch: int = 8
    learning_rate: float = 2e-3
    schedule: Schedule = "cosine"

    def __call__(self, data: Pairs, *, key: Any) -> Any:
        net, training = jax.random.split(key)
        model = unet(
            data.inputs.shape[1],
            data.outputs.shape[1],
            net,
            width=self.width,
            levels=_levels(self.levels, data.inputs.shape[2:]),
            dims=data.grid.dims,
            padding=_padding(data.grid),
        )
        return train(
            normalized(as_products(model), data),
            data,
            steps=self.steps,
            batch=self.batch,
            learning_rate=self.learning_rate,
            schedule=self.schedule,
            key=training,
        ).model


class UNetStepper(eqx.Module):
    """A U-Net trained on single steps: the state's change over one step, by relative L2."""

    width: int = 12
    levels: int = 2
    steps: int = 200
    batch: int = 8
    learning_rate: float = 2e-3
    schedule: Schedule = "cosine"

    def __call__(self, data: Trajectories, *, key: Any) -> Any:
        net, training = jax.random.split(key)
        channels = data.states.shape[2]
        model = unet(
            channels,
            channels,
            net,
            width=self.width,
            levels=_levels(self.levels, data.states.shape[3:]),
            dims=data.grid.dims,
            padding=_padding(data.grid),
            condition=data.parameters.shape[1],
        )
        return train(
            residual_stepper(as_products(model), data),
            data.steps(),
            steps=self.steps,
            batch=self.batch,
            learning_rate=self.learning_rate,
            schedule=self.schedule,
            loss=relative_l2_loss,
            predict=as_stepper,
            key=training,
        ).model


class ResidualStepper(eqx.Module):
    """state + change(state, parameters): the change is normalised by its own statistics."""

    change: Any
    conditioned: bool = eqx.field(static=True)

    def __call__(
        self, state: Float[Array, " channels *grid"], parameters: Array, *, key: Any = None
    ) -> Float[Array, " channels *grid"]:
        del key
        if self.conditioned:
            return state + self.change(state, jnp.log(parameters))
        return state + self.change(state)


def residual_stepper(model: Any, data: Trajectories) -> ResidualStepper:
    """A stepper that adds what the model says changes; parameters go in by their logarithms.

    `model`: `(field)` or, if the data have parameters, `(field, log parameters)`.
    """
    pairs = data.steps()
    changes = Pairs(pairs.inputs, pairs.outputs - pairs.inputs, pairs.parameters, pairs.grid)
    return ResidualStepper(normalized(model, changes), data.parameters.shape[1] > 0)


def _levels(levels: int, sizes: tuple[int, ...]) -> int:
    """As many levels as the grid can be halved, at most those asked for."""
    return min([levels, *(_halvings(n) for n in sizes)])


def _halvings(n: int) -> int:
    return int(math.log2(n & -n))


def _padding(grid: Grid) -> str:
    return "CIRCULAR" if grid.periodic else "REPLICATE"


# ---- the classical solver


class CoarseSolver(eqx.Module):
    """The reference solver on a coarser grid, interpolated to the grid asked for.

    The rival that learned maps are seldom shown beside. Its dial is its resolution.
    """

    random: ClassVar[bool] = False

    def at(self, family: Any, resolution: int) -> CoarseMap:
        """The map at a resolution; raises `InputError` if the family cannot be solved there."""
        return CoarseMap(family, resolution)

    def stepper(self, family: Any, resolution: int) -> CoarseStepper:
        """One step of the coarse solver."""
        return CoarseStepper(family, resolution)


class CoarseMap(eqx.Module):
    """Restrict, solve, interpolate: on the grid of the input."""

    family: Any
    resolution: int = eqx.field(static=True)

    def __call__(
        self, field: Float[Array, " channels *grid"], parameters: Array | None = None
    ) -> Array:
        coarse = self.family.restrict(field, self.resolution)
        solution = self.family.solve(coarse, parameters)
        return resample(solution, self.family.grid, field.shape[-1])


class CoarseStepper(eqx.Module):
    """One step on the coarse grid and back."""

    family: Any
    resolution: int = eqx.field(static=True)

    def __call__(
        self, state: Float[Array, " channels *grid"], parameters: Array, *, key: Any = None
    ) -> Array:
        del key
        coarse = resample(state, self.family.grid, self.resolution)
        later = self.family.evolve(coarse, parameters, 1)[0]
        return resample(later, self.family.grid, state.shape[-1])


# What the catalogue names: the settings that a comparison uses unless told otherwise.
pca_ridge = PCARidge()
nearest_neighbour = NearestNeighbour()
unet_map = UNetMap()
persistence = Persistence()
unet_stepper = UNetStepper()
coarse_solver = CoarseSolver()
