"""Addition modulo a prime, from examples: where fitting comes long before generalising."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from nearly.core.errors import InputError, UnknownName
from nearly.optimize.adaptive.orthogonal import stablemax_cross_entropy
from nearly.optimize.problems.finite_sum import FiniteSum
from nearly.optimize.problems.tasks import TargetTask

LOSSES: dict[str, Callable[[Array, Array], Array]] = {
    "softmax": optax.softmax_cross_entropy_with_integer_labels,
    "stablemax": stablemax_cross_entropy,
}


class ModularAddition(TargetTask):
    """From two numbers below a prime, one-hot, to their sum: a ReLU network, two hidden layers.

    **Arguments:** `prime`; `loss`, of logits and labels; `width` of the hidden layers. Weights and
    biases begin uniform within 1 / sqrt(inputs), as in the paper's code
    (`grokking-numerical-stability`): larger weights generalise later.
    """

    prime: int = eqx.field(static=True)
    loss: Callable[[Array, Array], Array] = eqx.field(static=True, default=LOSSES["softmax"])
    width: int = eqx.field(static=True, default=200)

    def start(self, key: Any) -> PyTree:
        return eqx.nn.MLP(2 * self.prime, self.prime, self.width, 2, jax.nn.relu, key=key)

    def outputs(self, params: PyTree, inputs: Array) -> Float[Array, "batch outputs"]:
        return jax.vmap(params)(inputs)

    def losses_of(
        self, outputs: Float[Array, "batch ..."], targets: Array
    ) -> Float[Array, " batch"]:
        return self.loss(outputs, targets)

    def draw_of(self, outputs: Float[Array, "batch ..."], key: PRNGKeyArray) -> Array:
        if self.loss is not LOSSES["softmax"]:
            return super().draw_of(outputs, key)
        return jax.random.categorical(key, outputs)

    def mistakes(self, params: PyTree, inputs: Array, targets: Array) -> Float[Array, ""]:
        return jnp.mean(jnp.argmax(self.outputs(params, inputs), axis=1) != targets)


def modular_addition(
    prime: int = 59,
    loss: str = "softmax",
    steps: tuple[int, ...] = (100, 300),
    instance: int = 0,
) -> FiniteSum:
    """Addition modulo a prime, learnt from 40% of the pairs in full batches, the rest for testing.

    A network fits the training pairs long before it adds; the test mistakes tell which. `loss` is
    that of softmax or of stablemax. Raises `InputError` for a `prime` that is none or below 3, and
    `UnknownName` for another loss.
    """
    if prime < 3 or any(prime % d == 0 for d in range(2, int(prime**0.5) + 1)):
        raise InputError(f"prime {prime} must be a prime number of at least 3, such as 59")
    if loss not in LOSSES:
        raise UnknownName("loss", loss, LOSSES)
    order = np.random.default_rng(instance).permutation(prime**2)
    first, second = order // prime, order % prime
    one_hot = np.eye(prime, dtype=np.float32)
    inputs = np.concatenate([one_hot[first], one_hot[second]], axis=1)
    targets = ((first + second) % prime).astype(np.int32)
    split = int(0.4 * prime**2)
    return FiniteSum(
        task=ModularAddition(prime, LOSSES[loss]),
        inputs=inputs[:split],
        targets=targets[:split],
        test_inputs=inputs[split:],
        test_targets=targets[split:],
        batch=0,
        steps=steps,
        name="modular-addition",
    )
