"""`TrajectoryLearning`: train a model of dynamics; held-out error against what its use costs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax

from nearly.core.errors import InputError
from nearly.core.problem import Host, Problem
from nearly.core.tally import counted

NFE = "nfe"


def evaluations(field: Callable[..., Any]) -> Callable[..., Any]:
    """The field, its calls counted as `nfe`; make it an `equinox.Module` if it is trained.

    Put it around the field of a whole batch that is solved at once: one call is one evaluation.
    Under `jax.vmap` every trajectory is charged for each step of the slowest.
    """
    return counted(field, NFE)


class TrajectoryLearning(Problem):
    """Train a model of dynamics on some data, and use it on others.

    A method is a function `(problem, dial, *, key) -> model`, with a tuple `dials` of numbers,
    cheap to dear: what they mean (the weight of a penalty, steps of training) the protocol says.
    The model is a pytree of arrays and functions, which `predict` uses. What it was trained with
    are `problem.train` and the key; nobody trains on `problem.test`.

    The error is that on the held-out data, the work of a use the calls of its vector field, `nfe`;
    seconds and calls of the training (`nfe`, and `nfe vjps` of its gradients) are the set-up.

    **Subclasses** say their `protocol`, and define `predict` and `errors`.
    """

    train: eqx.AbstractVar[Any]
    test: eqx.AbstractVar[Any]
    work_name: ClassVar[str] = NFE

    @abstractmethod
    def predict(self, model: Any, data: Any, *, key: Any) -> Any:
        """What a model makes of data, pure, its field wrapped by `evaluations`."""

    def dials(self, method: Any) -> Sequence[float]:
        dials: Sequence[float] = getattr(method, "dials", ())
        if not dials:
            raise InputError(
                f"a {type(method).__name__} has no dials: give it a tuple of numbers, `dials`"
            )
        return dials

    def build(self, method: Any, dial: Any, *, key: Any) -> Any:
        """The trained model. Raises `InputError` for what is no function."""
        if isinstance(method, Host) or not callable(method):
            raise InputError(
                f"a {type(method).__name__} is no method here: give a function "
                "(problem, dial, *, key) -> model"
            )
        return method(self, dial, key=key)

    def apply(self, standin: Any, *, key: Any) -> Any:
        """The predictions on the held-out data."""
        return self.predict(standin, self.test, key=key)

    def work(self, standin: Any) -> Mapping[str, float]:
        arrays = jax.tree.leaves(eqx.filter(standin, eqx.is_inexact_array))
        return {"parameters": float(sum(leaf.size for leaf in arrays))}
