"""A policy learns from an expert who has to think: the loss is dear, the model is not."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array, Float, PyTree

from nearly.core.errors import InputError
from nearly.optimize.problems.finite_sum import FiniteSum
from nearly.optimize.problems.tasks import TANH_GAIN, TargetTask
from nearly.training import architectures

STATES = 4


class Imitation(TargetTask):
    """Half the squared distance of a tanh policy's action from that of predictive control.

    The expert minimises `u^T H u / 2 + (F x)^T u` over plans u with entries in [-1, 1], and acts as
    the plan begins: accelerated projected gradients, for each state asked about, each time. Nobody
    keeps the answers, as nobody could if the states were those the policy led to.

    **Arguments:** `hessian`, H, (horizon, horizon); `coupling`, F, (horizon, states); `step`, one
    over the largest eigenvalue of H; `sizes` of the policy; `iterations` of the expert.
    """

    hessian: np.ndarray
    coupling: np.ndarray
    step: float = eqx.field(static=True)
    sizes: tuple[int, ...] = eqx.field(static=True, default=(STATES, 32, 1))
    iterations: int = eqx.field(static=True, default=200)

    def start(self, key: Any) -> PyTree:
        return architectures.mlp(self.sizes, key, jnp.tanh, TANH_GAIN)

    def outputs(self, params: PyTree, inputs: Array) -> Float[Array, " batch"]:
        return jax.vmap(params)(inputs)[:, 0]

    def losses_of(
        self, outputs: Float[Array, "batch ..."], targets: Array
    ) -> Float[Array, " batch"]:
        return (outputs - self.expert(targets)) ** 2 / 2

    def expert(self, states: Float[Array, "batch states"]) -> Float[Array, " batch"]:
        """The actions of predictive control."""
        hessian = jnp.asarray(self.hessian, states.dtype)
        pull = states @ jnp.asarray(self.coupling, states.dtype).T

        def advance(carry: Any, k: Array) -> Any:
            plan, ahead = carry
            better = jnp.clip(ahead - self.step * (ahead @ hessian + pull), -1, 1)
            return (better, better + k / (k + 3) * (better - plan)), None

        zero = jnp.zeros_like(pull)
        counts = jnp.arange(self.iterations, dtype=states.dtype)
        return jax.lax.scan(advance, (zero, zero), counts)[0][0][:, 0]


def imitation_control(
    samples: int = 1000,
    batch: int = 64,
    steps: tuple[int, ...] = (100, 300, 1000),
    horizon: int = 20,
    instance: int = 0,
) -> FiniteSum:
    """A policy for two masses on a spring, taught by predictive control with bounded force.

    An answer of the expert takes some hundred times the operations of a gradient of the policy.
    """
    if samples < 1 or horizon < 1:
        raise InputError(f"samples {samples} and horizon {horizon} must be at least 1")
    hessian, coupling = _condensed(horizon)
    random = np.random.default_rng(instance)
    states = random.normal(size=(samples + samples // 4 + 1, STATES))
    train, test = states[:samples], states[samples:]
    return FiniteSum(
        task=Imitation(hessian, coupling, 1 / float(np.linalg.norm(hessian, 2))),
        inputs=train,
        targets=train,
        test_inputs=test,
        test_targets=test,
        batch=batch,
        steps=steps,
        name="imitation-control",
    )


def _condensed(horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """H and F of the plan's cost: squared states, and a tenth of the squared forces."""
    spring = np.array([[0, 1, 0, 0], [-1, 0, 1, 0], [0, 0, 0, 1], [1, 0, -1, 0]], float)
    generator = np.zeros((STATES + 1, STATES + 1))
    generator[:STATES, :STATES], generator[1, STATES] = spring, 1.0
    march = scipy.linalg.expm(0.2 * generator)
    free, push = march[:STATES, :STATES], march[:STATES, STATES]
    powers = [np.eye(STATES)]
    for _ in range(horizon):
        powers.append(free @ powers[-1])
    reach = np.zeros((horizon * STATES, horizon))
    for k in range(horizon):
        for j in range(k + 1):
            reach[k * STATES : (k + 1) * STATES, j] = powers[k - j] @ push
    drift = np.concatenate(powers[1:])
    return reach.T @ reach + 0.1 * np.eye(horizon), reach.T @ drift
