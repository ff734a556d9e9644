"""`OnlineTraining`: the same model and steps on data from stored sets, streams and reservoirs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nearly.core.errors import InputError
from nearly.core.problem import Problem
from nearly.operators.data import resample
from nearly.operators.families import Family, burgers
from nearly.operators.fno import fno
from nearly.operators.online import solve
from nearly.operators.training import Normalized, optimizer, relative_l2_loss
from nearly.training import fit
from nearly.training.architectures import mlp

Samples = tuple[Float[Array, "frames 6"], Float[Array, "frames _"]]

TESTS, MODEL, DATA, STEPS = range(4)  # what folds a key into those of the parts

COLDEST, HOTTEST = 100.0, 500.0  # kelvin


class HeatPlate(eqx.Module):
    """One run of a solver: a square plate with edges of constant temperature warms or cools.

    u_t = Laplacian(u) on the unit square; u is one random temperature inside at time 0 and four
    others on the edges, each uniform on 100 to 500 K.

    **Arguments:**

    - `points`: inner grid points along an axis. `frames`: kept at equal distances up to `duration`.

    **Called** with a key: inputs `[frames, 6]` (the temperatures inside, left, right, bottom, top,
    and the time, all scaled to order one) and fields `[frames, points^2]` (scaled alike). Second
    order differences in space, exact in time.

    **Cost:** 4 points^3 a frame. Paper: `online-surrogate-training`, where the grid has 1000^2
    points and 100 steps of implicit Euler. At each time the field is linear in the temperatures.
    """

    points: int = eqx.field(static=True, default=24)
    frames: int = eqx.field(static=True, default=8)
    duration: float = eqx.field(static=True, default=0.1)

    def __check_init__(self) -> None:
        if self.points < 1 or self.frames < 1 or self.duration <= 0:
            raise InputError(
                f"points={self.points}, frames={self.frames} and duration={self.duration} must be "
                "positive"
            )

    def __call__(self, key: Any) -> Samples:
        scaled = jax.random.uniform(key, (5,), jnp.float32, -1.0, 1.0)
        times = jnp.arange(1, self.frames + 1, dtype=jnp.float32) / self.frames
        fields = self.fields(scaled, times * self.duration)
        inputs = jnp.concatenate(
            [jnp.broadcast_to(scaled, (self.frames, 5)), 2 * times[:, None] - 1], axis=1
        )
        return inputs, fields.reshape(self.frames, -1)

    def fields(
        self, temperatures: Float[Array, " 5"], times: Float[Array, " frames"]
    ) -> Float[Array, "frames points points"]:
        """The fields at some times, in the unit in which the temperatures are given."""
        sines, rates = _sine_basis(self.points)
        inside, left, right, bottom, top = temperatures
        edge = np.zeros(self.points)
        edge[0] = (self.points + 1) ** 2  # an edge's neighbours lie a step away from it
        first, ones = jnp.asarray(edge, inside.dtype), jnp.ones(self.points, inside.dtype)
        across = jnp.outer(left * first + right * first[::-1], ones)
        source = across + jnp.outer(ones, bottom * first + top * first[::-1])
        basis = jnp.asarray(sines, inside.dtype)
        decay = jnp.asarray(rates[:, None] + rates, inside.dtype)
        steady = basis @ source @ basis / decay
        begun = basis @ (inside * jnp.outer(ones, ones)) @ basis
        spectra = steady + jnp.exp(-decay * times[:, None, None]) * (begun - steady)
        return basis @ spectra @ basis


def _sine_basis(points: int) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvectors (orthonormal, symmetric) and eigenvalues of minus the second difference."""
    numbers = np.arange(1, points + 1)
    step = 1 / (points + 1)
    sines = np.sqrt(2 * step) * np.sin(np.pi * step * np.outer(numbers, numbers))
    return sines, (2 * np.sin(np.pi * step * numbers / 2) / step) ** 2


class FamilyRun(eqx.Module):
    """One run of a family's reference solver: an input field and its solution, as one frame."""

    family: Family
    resolution: int = eqx.field(static=True, default=64)

    def __call__(self, key: Any) -> tuple[Array, Array]:
        """`[1, channels, *grid]` each: sample i of the family's `pairs`, in JAX's precision."""
        field_key, parameter_key = jax.random.split(key)
        family = self.family
        parameters = family.parameters(parameter_key)
        drawn = family.start(family.draw(field_key), parameters)
        solution = family.solve(family.inputs(drawn), parameters)
        inputs = family.inputs(resample(drawn, family.grid, self.resolution))
        outputs = resample(solution, family.grid, self.resolution)
        return inputs[None].astype(jnp.float32), outputs[None].astype(jnp.float32)


class PlateNetwork(eqx.Module):
    """An MLP from temperatures and a time to the field, drawn from a key.

    The paper's: ReLU, two hidden layers; `width` 256.
    """

    width: int = eqx.field(static=True, default=256)

    def __call__(self, sample: Any, key: Any) -> Any:
        inputs, outputs = sample
        sizes = [inputs.shape[-1], self.width, self.width, outputs.shape[-1]]
        return mlp(sizes, key, jax.nn.relu)


class FieldNetwork(eqx.Module):
    """An FNO between fields of known size, drawn from a key.

    A stream has no statistics before it runs, so the sizes are settings: the fields' deviations.
    """

    input_scale: float
    output_scale: float
    modes: tuple[int, ...] = eqx.field(static=True, default=(12,))
    width: int = eqx.field(static=True, default=24)

    def __call__(self, sample: Any, key: Any) -> Any:
        inputs, outputs = (each.shape[0] for each in sample)
        model = fno(inputs, outputs, key, modes=self.modes, width=self.width)
        return Normalized(
            model,
            np.zeros(inputs, np.float32),
            np.full(inputs, self.input_scale, np.float32),
            np.zeros(outputs, np.float32),
            np.full(outputs, self.output_scale, np.float32),
        )


def batch_error(model: Any, batch: Any, key: Any) -> Any:
    """The mean relative L2 error of a batch (inputs, outputs)."""
    del key
    inputs, outputs = batch
    return jnp.mean(jax.vmap(relative_l2_loss)(jax.vmap(model)(inputs), outputs))


def batch_square(model: Any, batch: Any, key: Any) -> Any:
    """The mean squared error of a batch (inputs, outputs)."""
    del key
    inputs, outputs = batch
    return jnp.mean((jax.vmap(model)(inputs) - outputs) ** 2)


class LearnedOnline(eqx.Module):
    """A trained model, and how many runs of the solver its training took."""

    model: Any
    runs: int = eqx.field(static=True)


class OnlineTraining(Problem):
    """How good a model becomes in so many optimiser steps, by where its batches come from.

    A method is a data source (`nearly.operators.online`): `(simulation, loss, *, batch, key) ->
    arguments of fit`, with `runs(simulation, trained)`. The dial is the number of optimiser steps.
    Model, optimiser, batch size, initial weights and held-out runs are everybody's the same.

    **Arguments:**

    - `simulation`: one run of the solver; `network`: `(sample, key) -> model`.
    - `batch`, `learning_rate`: of Adam, the rate decaying as half a cosine to 0.
    - `steps`: the dials. `tests`: held-out samples. `loss`: `batch_error` or `batch_square`.
    """

    simulation: Any
    network: Any
    name: str = eqx.field(static=True)
    loss: Any = batch_square
    batch: int = eqx.field(static=True, default=32)
    learning_rate: float = eqx.field(static=True, default=1e-3)
    steps: tuple[int, ...] = eqx.field(static=True, default=(500, 2000))
    tests: int = eqx.field(static=True, default=512)
    dtype: str = eqx.field(static=True, default="float32")
    error_name: ClassVar[str] = "relative L2"
    work_name: ClassVar[str] = "solver runs"
    protocol: ClassVar[str] = "sample-sources"

    def __check_init__(self) -> None:
        if not self.steps or min(self.steps) < 1:
            raise InputError(f"steps={self.steps} must be positive numbers")

    def dials(self, method: Any) -> Sequence[int]:
        del method
        return self.steps

    def build(self, method: Any, dial: Any, *, key: Any) -> Any:
        """The model after `dial` optimiser steps, with the runs that it took."""
        trained = self.trained(method, int(dial), key)
        return LearnedOnline(trained.model, method.runs(self.simulation, trained))

    def work(self, standin: Any) -> Mapping[str, float]:
        """The solver runs of the whole training: what a user of the model has paid, once."""
        return {self.work_name: standin.runs}

    def trained(self, source: Any, steps: int, key: Any) -> Any:
        """`nearly.training.Trained` of a data source."""
        model, _, _ = self.drawn(key)
        return fit(
            self.loss,
            model,
            optimizer=optimizer(self.learning_rate, steps),
            steps=steps,
            key=jax.random.fold_in(key, STEPS),
            **source(
                self.simulation, self.loss, batch=self.batch, key=jax.random.fold_in(key, DATA)
            ),
        )

    def drawn(self, key: Any) -> tuple[Any, Any, int]:
        """The untrained model, the shapes of one sample, and how many frames a run has."""
        shapes = jax.eval_shape(self.simulation, key)
        sample = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), shapes)
        model = self.network(sample, jax.random.fold_in(key, MODEL))
        return model, sample, jax.tree.leaves(shapes)[0].shape[0]

    def apply(self, standin: Any, *, key: Any) -> Any:
        inputs, outputs = solve(self.simulation, self.tests, jax.random.fold_in(key, TESTS))
        model = standin.model if isinstance(standin, LearnedOnline) else standin
        return jax.vmap(model)(inputs), outputs

    def errors(self, value: Any) -> Mapping[str, float]:
        found, truth = (np.asarray(x, np.float64).reshape(len(x), -1) for x in value)
        norms = np.linalg.norm(truth, axis=1)
        errors = np.linalg.norm(found - truth, axis=1) / norms
        kelvin = math.sqrt(np.mean((found - truth) ** 2))
        return {"relative L2": float(errors.mean()), "worst": float(errors.max()), "rms": kelvin}


def heat_plate(
    points: int = 24,
    frames: int = 8,
    width: int = 256,
    batch: int = 32,
    tests: int = 512,
    steps: int = 2000,
) -> OnlineTraining:
    """Temperatures of a plate's inside and edges to its field: see `HeatPlate`; an MLP.

    The dials are `steps` and a quarter of them.
    """
    return OnlineTraining(
        simulation=HeatPlate(points, frames),
        network=PlateNetwork(width),
        name="online-heat",
        batch=batch,
        tests=tests,
        steps=_dials(steps),
    )


def burgers_stream(
    viscosity: float = 0.1,
    resolution: int = 64,
    width: int = 24,
    batch: int = 16,
    steps: int = 2000,
) -> OnlineTraining:
    """Burgers' equation from its initial field to time 1, the benchmark of `fno`, with an FNO.

    The dials are `steps` and a quarter of them.
    """
    waves = 2 * np.pi * np.arange(1, resolution // 2)
    sizes = 25 / (waves**2 + 25)  # the deviation of each mode's two coefficients
    decayed = sizes * np.exp(-viscosity * waves**2)
    network = FieldNetwork(
        float(np.sqrt(2 * np.sum(sizes**2))), float(np.sqrt(2 * np.sum(decayed**2))), width=width
    )
    return OnlineTraining(
        simulation=FamilyRun(burgers(viscosity, reference=2 * resolution), resolution),
        network=network,
        name="online-burgers",
        loss=batch_error,
        batch=batch,
        tests=256,
        steps=_dials(steps),
    )


def _dials(steps: int) -> tuple[int, ...]:
    return (max(steps // 4, 1), steps)
