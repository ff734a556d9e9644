"""`Learned`: what problems of solution operators share: labels, their bill, the coarse solver."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from nearly.core import catalogue
from nearly.core.errors import InputError
from nearly.core.problem import Host, Problem
from nearly.core.tally import counted
from nearly.operators import DIMENSIONS
from nearly.operators.baselines import CoarseSolver
from nearly.operators.family import Family
from nearly.operators.training import parameter_count

TRAINING_SEED, TEST_SEED = 101, 202  # of the data: the same for every method and every seed


class Learned(Problem):
    """Learn something of a family of equations from the first `counts` of its labelled samples.

    A `CoarseSolver` learns nothing: its dial is its resolution. What a method has to pay off
    against is the coarse solver at the cheapest resolution that reaches its error.

    **Subclasses** say the `label`, the unit of what is solved for, and the catalogue's name of the
    `coarse` solver, and define `stand_in` and `labels`. Raises `InputError` for counts that the
    training samples do not have.
    """

    family: eqx.AbstractVar[Family]
    training: eqx.AbstractVar[Any]
    counts: eqx.AbstractVar[tuple[int, ...]]
    uncertainty: eqx.AbstractVar[float]
    label: eqx.AbstractClassVar[str]
    coarse: eqx.AbstractClassVar[str]

    def __check_init__(self) -> None:
        if not self.counts or not 1 <= min(self.counts) <= max(self.counts) <= len(self.training):
            raise InputError(
                f"counts {self.counts} of {self.label} must lie between 1 and the "
                f"{len(self.training)} there are for training"
            )

    @abstractmethod
    def stand_in(self, solver: CoarseSolver, resolution: int) -> Any:
        """What the coarse solver puts in a model's place."""

    @abstractmethod
    def labels(self, data: Any) -> Any:
        """An array with one row for each label of the data: what is counted."""

    def methods(self) -> Mapping[str, catalogue.Method]:
        """The catalogue; by default those that are at home on grids of this dimension."""
        return at_home(super().methods(), self.family.grid.dims)

    def rival(self) -> str:
        return self.coarse

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
            return self.stand_in(method, int(dial))
        check_builder(method)
        data = self.training[: int(dial)]
        count_labels(self.labels(data), self.label)
        return check_module(method(data, key=key))

    def spent(self, method: Any, dial: Any) -> float:
        """What the labels cost when they were solved for: they are kept and shared."""
        return 0.0 if isinstance(method, CoarseSolver) else dial * self.training.solve_seconds

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


def count_labels(samples: Any, unit: str) -> None:
    """Charge the open tally with one solve for each sample."""
    jax.vmap(counted(jnp.ravel, unit))(jnp.asarray(samples))


def described(family: Family) -> str:
    """A family's settings in words: what two frontiers must agree on."""
    values = {f.name: getattr(family, f.name) for f in fields(family)}
    return " ".join(f"{name}={value}" for name, value in values.items())
