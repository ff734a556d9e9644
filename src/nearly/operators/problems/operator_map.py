"""`OperatorMap`: from an input field to the solution that belongs to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from nearly.core import catalogue
from nearly.core.errors import InputError
from nearly.core.measure import stopwatch
from nearly.core.problem import Host, Problem
from nearly.core.tally import counted
from nearly.operators import DIMENSIONS
from nearly.operators.baselines import CoarseMap, CoarseSolver
from nearly.operators.data import Pairs
from nearly.operators.family import Family, relative_errors
from nearly.operators.training import parameter_count
from nearly.pde.metrics import relative_h1

LABELS = "labelled solves"
RIVAL = "coarse-solver"
TRAINING_SEED, TEST_SEED = 101, 202  # of the data: the same for every method and every seed


class OperatorMap(Problem):
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

    def __check_init__(self) -> None:
        if not self.counts or not 1 <= min(self.counts) <= max(self.counts) <= len(self.training):
            raise InputError(
                f"sample counts {self.counts} must lie between 1 and the {len(self.training)} "
                "training samples"
            )

    def methods(self) -> Mapping[str, catalogue.Method]:
        """The catalogue; by default those that are at home on grids of this dimension."""
        return at_home(super().methods(), self.family.grid.dims)

    def rival(self) -> str:
        return RIVAL

    def floor(self) -> float:
        return max(self.uncertainty, float(np.finfo(self.dtype).eps))

    def random(self, method: Any) -> bool:
        return getattr(method, "random", True)

    def dials(self, method: Any) -> Sequence[int]:
        if isinstance(method, CoarseSolver):
            return self.family.resolutions
        return getattr(method, "dials", self.counts)

    def build(self, method: Any, dial: Any, *, key: Any) -> Any:
        if isinstance(method, CoarseSolver):
            return method.at(self.family, int(dial))
        check_builder(method)
        data = self.training[: int(dial)]
        count_labels(data.inputs)
        return check_module(method(data, key=key))

    def spent(self, method: Any, dial: Any) -> float:
        """What the labels cost when they were solved for: they are kept and shared."""
        return 0.0 if isinstance(method, CoarseSolver) else dial * self.training.solve_seconds

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

    def work(self, standin: Any) -> Mapping[str, float]:
        return {"parameters": parameter_count(standin)}


def at_home(lines: Mapping[str, catalogue.Method], dims: int) -> dict[str, catalogue.Method]:
    """The lines, those that train for minutes on grids of so many dimensions not by default."""
    return {
        name: replace(line, default=line.default and dims in DIMENSIONS.get(name, (dims,)))
        for name, line in lines.items()
    }


def sample_counts(samples: int, dims: int) -> tuple[int, ...]:
    """The dials of learned methods: an eighth of the samples and all; all alone in the plane.

    A comparison is to end in minutes, and in the plane a training takes half of one.
    """
    return (samples,) if dims > 1 else tuple(dict.fromkeys((max(samples // 8, 1), samples)))


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


def check_builder(method: Any) -> None:
    """Raise `InputError` for what is no builder."""
    if isinstance(method, Host) or not callable(method):
        raise InputError(
            f"a {type(method).__name__} is no method here: give a builder (data, *, key) -> module"
        )


def check_module(module: Any) -> Any:
    """The module a builder made; raises `InputError` if it cannot be called."""
    if not callable(module):
        raise InputError(
            f"the builder handed back a {type(module).__name__}: it must give a module to call"
        )
    return module


def count_labels(samples: Any, unit: str = LABELS) -> None:
    """Charge the open tally with one solve for each sample."""
    jax.vmap(counted(jnp.ravel, unit))(jnp.asarray(samples))


def relative_h1_errors(values: Any, data: Pairs) -> np.ndarray:
    """The relative H1 error of each sample, `[samples]`."""
    grid = data.grid
    each = partial(relative_h1, length=grid.lengths, periodic=grid.periodic)
    return np.asarray(jax.vmap(each)(jnp.asarray(values), jnp.asarray(data.outputs)))


def described(family: Family) -> str:
    """A family's settings in words: what two frontiers must agree on."""
    values = {f.name: getattr(family, f.name) for f in fields(family)}
    return " ".join(f"{name}={value}" for name, value in values.items())


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
