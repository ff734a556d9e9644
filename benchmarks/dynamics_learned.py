"""Regularised neural equations against plain ones: seconds of a training step and of a prediction.

    python benchmarks/dynamics_learned.py [NAME...]

Ratios are medians of pairs that alternate between the two in one process, after compilation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from alternating import Row, main, pairs

from nearly.dynamics import trainers
from nearly.dynamics.problems.neural_equations import NeuralEquation, annuli, digits_flow
from nearly.dynamics.trainers import Objective, Trainer

METHODS = {
    "ernode": (trainers.ernode, 0.1),
    "srnode": (trainers.srnode, 0.1),
    "lrnde": (trainers.lrnde, 10.0),
    "lrnde-biased": (trainers.lrnde_biased, 10.0),
    "steer": (trainers.steer, 0.5),
    "taynode": (trainers.taynode, 0.01),
    "rnode": (trainers.rnode, 0.01),
}
COUNT = 15


def regularized() -> list[Row]:
    """The gradient of a batch's loss, with each penalty beside none, of one untrained model."""
    rows: list[Row] = []
    for problem in (annuli(), digits_flow()):
        rival = _gradient(problem, trainers.plain, 0.0)
        for name, (method, weight) in METHODS.items():
            ours = _gradient(problem, method, weight)
            rows.append({"problem": problem.name, "method": name, **pairs(ours, rival, COUNT).row})
    return rows


def _gradient(problem: NeuralEquation, method: Trainer, weight: float) -> Callable[[], Any]:
    objective = Objective(problem.settings(), method.regularizer, jnp.float32(weight), method.decay)
    rows = jax.tree.map(lambda x: jnp.asarray(x[: problem.batch]), problem.train)
    model = problem.initial(jax.random.key(0))
    step = eqx.filter_jit(eqx.filter_value_and_grad(objective))
    return lambda: step(model, (rows, jnp.float32(0)), jax.random.key(1))


def predictions() -> list[Row]:
    """All held-out points of the annuli, by models trained for 300 steps, beside the plain one."""
    problem = annuli(steps=300)
    rival = _prediction(problem, trainers.plain, 0.0)
    rows: list[Row] = []
    for name in ("ernode", "lrnde"):
        ours = _prediction(problem, *METHODS[name])
        rows.append({"problem": problem.name, "method": name, **pairs(ours, rival, COUNT).row})
    return rows


def _prediction(problem: NeuralEquation, method: Trainer, weight: float) -> Callable[[], Any]:
    model = method(problem, weight, key=jax.random.key(0))
    use = eqx.filter_jit(lambda problem, model: problem.apply(model, key=jax.random.key(1)))
    return lambda: use(problem, model)


if __name__ == "__main__":
    main({"regularized": regularized, "predictions": predictions}, __doc__)
