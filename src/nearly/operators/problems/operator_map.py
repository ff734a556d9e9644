"""`OperatorMap`: from an input field to the solution that belongs to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from nearly.core.errors import InputError
from nearly.core.measure import stopwatch
from nearly.operators.baselines import CoarseMap, CoarseSolver
from nearly.operators.data import Pairs
from nearly.operators.family import Family, relative_errors
from nearly.operators.problems.learned import (
    TEST_SEED,
    TRAINING_SEED,
    Learned,
    described,
    sample_counts,
)
from nearly.pde.metrics import relative_h1

LABELS = "labelled solves"


class OperatorMap(Learned):
    """Learn the solution map of a family of equations from solved examples; or just solve.

    A method (protocol `solution-maps`) is one of

    - a builder `(data, *, key) -> module`: from `Pairs` of input and output fields it makes a
      module `field [channels, *grid] -> field`, normalisation included. The dial is the number of
      labelled samples; they are the same ones for every method;
    - a `CoarseSolver`, whose dial is its resolution.

    The error is the mean relative L2 norm over held-out inputs, against the reference solver at
    its full resolution. Beside it stand the relative H1 norm, the worst sample, and the error at
    twice the resolution where the reference has it and the model takes it.

    A use is one query, measured in a batch of all the held-out inputs. Set-up is labels, at what
    they cost the reference solver, and training. What a method has to pay off against is the
    coarse solver at the cheapest resolution that reaches its error.

    **Arguments:**

    - `family`: the equation. `tests`: held-out inputs and solutions. `finer`: the same at twice the
      resolution, or None. `training`: the labelled samples; all or the first of them are used.
    - `counts`: the dial of learned methods. `uncertainty`: the reference's own relative error.
    """

    family: Family
    training: Pairs
    tests: Pairs
    finer: Pairs | None
    counts: tuple[int, ...]
    resolution: int
    uncertainty: float
    equation: str = ""
    name: str = "operator-map"
    dtype: str = "float32"
    error_name: ClassVar[str] = "relative L2"
    work_name: ClassVar[str] = "seconds"
    protocol: ClassVar[str] = "solution-maps"
    label: ClassVar[str] = LABELS
    coarse: ClassVar[str] = "coarse-solver"

    def stand_in(self, solver: CoarseSolver, resolution: int) -> Any:
        return solver.at(self.family, resolution)

    def labels(self, data: Pairs) -> Any:
        return data.inputs

    def apply(self, standin: Any, *, key: Any) -> Any:
        del key
        found = {"outputs": predict(standin, self.tests)}
        if self.finer is not None and takes(standin, self.finer):
            found["finer"] = predict(standin, self.finer)
        return found

    def seconds(self, use: Callable[[], Any], standin: Any) -> Sequence[float]:
        """Seconds of one query, in a batch of the held-out inputs at the problem's resolution."""
        program = eqx.filter_jit(predict)
        data = jax.tree.map(jnp.asarray, self.tests)

        def batch() -> Any:
            return jax.block_until_ready(program(standin, data))

        return [seconds / len(self.tests) for seconds in stopwatch(batch)]

    def errors(self, value: Any) -> Mapping[str, float]:
        each = relative_errors(value["outputs"], self.tests.outputs)
        found = {
            "relative L2": float(each.mean()),
            "relative H1": relative_h1_errors(value["outputs"], self.tests).mean(),
            "worst sample": float(each.max()),
        }
        if "finer" in value and self.finer is not None:
            errors = relative_errors(value["finer"], self.finer.outputs)
            found["relative L2 at twice the resolution"] = float(errors.mean())
        return found


def predict(standin: Any, data: Pairs) -> Any:
    """The stand-in's output fields for all inputs of the data, `[samples, channels, *grid]`."""
    if isinstance(standin, CoarseMap):
        return jax.vmap(standin)(data.inputs, data.parameters)
    return jax.vmap(standin)(data.inputs)


def takes(standin: Any, data: Pairs) -> bool:
    """Whether a model takes fields of this resolution."""
    try:
        shapes = eqx.filter_eval_shape(predict, standin, data)
    except (InputError, TypeError, ValueError):
        return False
    return shapes.shape == data.outputs.shape


def relative_h1_errors(values: Any, data: Pairs) -> np.ndarray:
    """The relative H1 error of each sample, `[samples]`."""
    grid = data.grid
    each = partial(relative_h1, length=grid.lengths, periodic=grid.periodic)
    return np.asarray(jax.vmap(each)(jnp.asarray(values), jnp.asarray(data.outputs)))


def operator_map(
    name: str, family: Family, *, resolution: int, samples: int, tests: int = 64
) -> OperatorMap:
    """The problem of a family: its data are solved for, or taken from the store's folder.

    **Arguments:** `resolution`: points along each axis. `samples`: labelled samples for training;
    learned methods run on all of them, in 1-D on an eighth too. `tests`: held-out ones.
    """
    training, held_out = (jax.random.key(seed) for seed in (TRAINING_SEED, TEST_SEED))
    finer = 2 * resolution if 2 * resolution <= family.reference else None
    return OperatorMap(
        family=family,
        training=family.pairs(training, samples, resolution),
        tests=family.pairs(held_out, tests, resolution),
        finer=None if finer is None else family.pairs(held_out, tests, finer),
        counts=sample_counts(samples, family.grid.dims),
        resolution=resolution,
        uncertainty=float(f"{family.uncertainty(held_out, resolution):.2g}"),
        equation=described(family),
        name=name,
    )
