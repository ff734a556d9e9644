"""Trainers of neural equations: one loop, and a regularizer whose weight is the dial."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from nearly.core.errors import InputError
from nearly.dynamics.regularizers import (
    GlobalEstimate,
    KineticRate,
    LocalEstimate,
    LocalEstimateAtSteps,
    RandomEnd,
    Regularizer,
    TaylorRate,
    Unregularized,
)
from nearly.training.loop import fit
from nearly.training.steps import Stream


class Trainer(eqx.Module):
    """Trains the model of a `NeuralEquation`: a method of the protocol `neural-equations`.

    **Arguments:**

    - `regularizer`: how the equation is solved in training, and what is added to the loss.
    - `dials`: strengths of the regularizer to run at, in a comparison.
    - `decay`: the strength at the end of training over that at its beginning; it falls
      exponentially. The authors let weights of error estimates fall to a tenth.

    All strengths are trained by one compiled program. A training whose solves fail raises
    `FloatingPointError`: a comparison reads it as diverged.
    """

    regularizer: Regularizer
    dials: tuple[float, ...]
    decay: float = 1.0

    def __check_init__(self) -> None:
        if not self.dials or min(self.dials) < 0:
            raise InputError(f"dials {self.dials} must be one strength or more, none below 0")
        if not 0 < self.decay <= 1:
            raise InputError(
                f"decay={self.decay} must lie between 0 and 1: 1 for a constant weight"
            )

    def __call__(self, problem: Any, dial: float, *, key: Any, steps: int | None = None) -> Any:
        """The trained model; `key` draws its initial weights, its batches and its noise.

        `steps` ends the training early; None: it takes the problem's.
        """
        begin, go = jax.random.split(key)
        strength = jnp.asarray(dial, jnp.float32)
        objective = Objective(problem.settings(), self.regularizer, strength, self.decay)
        trained = fit(
            objective,
            problem.initial(begin),
            Batches(problem.train, problem.batch, jnp.asarray(problem.steps)),
            optimizer=problem.optimizer(),
            steps=steps or problem.steps,
            key=go,
        )
        if trained.status == "diverged":
            raise FloatingPointError(f"training at strength {dial:g}: {trained.reason}")
        return trained.model


class Objective(eqx.Module):
    """The loss of a batch, and the penalty of having solved for it."""

    problem: Any
    regularizer: Regularizer
    strength: Any
    decay: float

    def __call__(self, model: Any, batch: Any, key: Any) -> Any:
        data, progress = batch
        noise, chance = jax.random.split(key)
        solve = self.problem.equation(model, data, key=noise)
        strength = self.strength * self.decay**progress
        values, penalty = self.regularizer(solve, strength, key=chance)
        return self.problem.loss(self.problem.read(model, values), data) + penalty


class Batches(Stream):
    """Rows drawn with replacement (all of the data for `batch=None`), and how far training is."""

    data: Any
    batch: int | None = eqx.field(static=True)
    steps: Any

    def initial(self, key: Any) -> Any:
        del key
        return jnp.zeros((), jnp.int32)

    def draw(self, state: Any, key: Any) -> Any:
        progress = state.astype(jnp.float32) / self.steps
        if self.batch is None:
            return state + 1, (jax.tree.map(jnp.asarray, self.data), progress)
        size = jax.tree.leaves(self.data)[0].shape[0]
        rows = jax.random.randint(key, (self.batch,), 0, size)
        return state + 1, (jax.tree.map(lambda x: jnp.asarray(x)[rows], self.data), progress)


# ---- as the catalogue lists them
#
# The local forms take a step of a tenth of the interval: the controller's first one, the authors'
# choice, is several times shorter than those it takes later, at loose tolerances, and its estimate
# goes with the fifth power.

plain = Trainer(Unregularized(), (0.0,))
ernode = Trainer(GlobalEstimate("error", "total"), (0.1,))
srnode = Trainer(GlobalEstimate("stiffness", "maximum"), (0.1,))
lrnde = Trainer(LocalEstimate("error", dt0=0.1), (10.0,))
lrnde_biased = Trainer(LocalEstimateAtSteps("error", dt0=0.1), (10.0,))
steer = Trainer(RandomEnd(), (0.5,))
taynode = Trainer(TaylorRate(order=2), (0.01,))
rnode = Trainer(KineticRate(), (0.01,))
