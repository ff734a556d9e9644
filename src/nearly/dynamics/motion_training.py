"""Training of networks for the motion of bodies: methods of the protocol `body-motion-models`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from nearly.core.errors import InputError
from nearly.dynamics.equivariant import EGNN, SEGNO, Bodies, egnn, segno
from nearly.dynamics.problems.bodies import BodyMotion, Motion, counting
from nearly.training import fit

ADAM = optax.adam(2e-3)  # made once: the compiled loop is kept with it


class Example(eqx.Module):
    """Systems, and where their bodies are at the end."""

    bodies: Bodies
    ends: Float[np.ndarray | Array, "systems bodies 3"]


class MotionTraining(eqx.Module):
    """Train a model of the bodies' motion; its dial is the number of steps.

    **Arguments:**

    - `model`: `(key, problem) -> model`, a module that maps `Bodies` to positions.
    - `batch`: systems a step, at most those there are. `optimizer`: any of optax.

    Paper: segno, with batches of 100 and Adam at 5e-3. Here 20 and 2e-3, the best of four pairs
    tried on other data for SEGNO and for EGNN alike: small batches take more steps a second.
    """

    model: Callable[[Any, BodyMotion], Any]
    batch: int = 20
    optimizer: Any = ADAM
    dials: tuple[int, ...] = (100, 500)

    def __check_init__(self) -> None:
        if self.batch < 1:
            raise InputError(f"batch {self.batch} must be at least 1, such as 20")

    def __call__(self, problem: BodyMotion, steps: float, *, key: Any) -> Any:
        """The model after so many steps of training on the problem's systems."""
        data = problem.train
        trained = fit(
            squared_error,
            self.model(key, problem),
            examples(data),
            optimizer=self.optimizer,
            steps=int(steps),
            batch=min(self.batch, data.systems),
            key=key,
        )
        return trained.model


def examples(data: Motion) -> Example:
    """Systems and ends, first axis systems."""
    return Example(data.bodies, np.asarray(data.frames[-1]))


def squared_error(model: Any, batch: Example, key: Any) -> Any:
    """The mean square over systems, bodies and components."""
    del key
    return jnp.mean((counting(model)(batch.bodies) - batch.ends) ** 2)


def second_order(key: Any, problem: BodyMotion) -> SEGNO:
    """SEGNO of width 32, eight steps over the problem's horizon."""
    return segno(key, width=32, span=problem.horizon)


def layered(key: Any, problem: BodyMotion) -> EGNN:
    """EGNN of width 32, four layers."""
    del problem
    return egnn(key, width=32)


segno_model = MotionTraining(second_order)
egnn_model = MotionTraining(layered)
