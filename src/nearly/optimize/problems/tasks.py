"""What `FiniteSum` trains: small models on real data, and a regression that every sample fits."""

from __future__ import annotations

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from nearly.core.errors import InputError
from nearly.training import architectures

TANH_GAIN = 5 / 3


class Task(eqx.Module):
    """A model and its loss on inputs and targets."""

    @abc.abstractmethod
    def start(self, key: Any) -> PyTree:
        """Parameters to begin with: any pytree; its inexact arrays are trained."""

    @abc.abstractmethod
    def losses(self, params: PyTree, inputs: Array, targets: Array) -> Float[Array, " batch"]:
        """The loss of each sample."""

    def mistakes(self, params: PyTree, inputs: Array, targets: Array) -> Float[Array, ""]:
        """What is wrong on other samples: here their mean loss."""
        return jnp.mean(self.losses(params, inputs, targets))

    def draw(self, params: PyTree, inputs: Array, key: PRNGKeyArray) -> Array:
        """Targets from the distribution whose negative log-likelihood the loss is.

        Raises `InputError` where the loss is none, which is the default.
        """
        del params, inputs, key
        raise InputError(
            f"the loss of {type(self).__name__} is no likelihood, so no targets can be drawn from "
            "its model: use the batch's own targets (key=None)"
        )


class TargetTask(Task):
    """A task that tells its model from its loss, for methods that step in the space of outputs.

    On the bill the two stand apart: `losses`, what is dear, and `model`, what is cheap.
    """

    @abc.abstractmethod
    def outputs(self, params: PyTree, inputs: Array) -> Float[Array, "batch ..."]:
        """What the model says of each sample."""

    @abc.abstractmethod
    def losses_of(
        self, outputs: Float[Array, "batch ..."], targets: Array
    ) -> Float[Array, " batch"]:
        """The loss of each sample's output."""

    def losses(self, params: PyTree, inputs: Array, targets: Array) -> Float[Array, " batch"]:
        """The loss of each sample."""
        return self.losses_of(self.outputs(params, inputs), targets)

    def draw_of(self, outputs: Float[Array, "batch ..."], key: PRNGKeyArray) -> Array:
        """Targets from the distribution that outputs stand for; see `draw`."""
        return super().draw(outputs, outputs, key)

    def draw(self, params: PyTree, inputs: Array, key: PRNGKeyArray) -> Array:
        return self.draw_of(self.outputs(params, inputs), key)


class _Network(TargetTask):
    """A tanh network of layer sizes, inputs first; none hidden is a linear model."""

    sizes: tuple[int, ...] = eqx.field(static=True)

    def start(self, key: Any) -> PyTree:
        return architectures.mlp(self.sizes, key, jnp.tanh, TANH_GAIN)

    def outputs(self, params: PyTree, inputs: Array) -> Float[Array, "batch outputs"]:
        return jax.vmap(params)(inputs)


class Classifier(_Network):
    """Cross-entropy of labels; mistakes are the share of wrong ones."""

    def losses_of(
        self, outputs: Float[Array, "batch ..."], targets: Array
    ) -> Float[Array, " batch"]:
        return optax.softmax_cross_entropy_with_integer_labels(outputs, targets)

    def draw_of(self, outputs: Float[Array, "batch ..."], key: PRNGKeyArray) -> Array:
        return jax.random.categorical(key, outputs)

    def mistakes(self, params: PyTree, inputs: Array, targets: Array) -> Float[Array, ""]:
        return jnp.mean(jnp.argmax(self.outputs(params, inputs), axis=1) != targets)


class Reconstruction(_Network):
    """Mean squared error of each sample, over the entries of its target."""

    def losses_of(
        self, outputs: Float[Array, "batch ..."], targets: Array
    ) -> Float[Array, " batch"]:
        return jnp.mean((outputs - targets) ** 2, axis=1)

    def draw_of(self, outputs: Float[Array, "batch ..."], key: PRNGKeyArray) -> Array:
        noise = jax.random.normal(key, outputs.shape, outputs.dtype)
        return outputs + (outputs.shape[-1] / 2) ** 0.5 * noise


class LinearRegression(TargetTask):
    """Half the squared error of a linear model, from zero."""

    size: int = eqx.field(static=True)

    def start(self, key: Any) -> PyTree:
        del key
        return jnp.zeros(self.size)

    def outputs(self, params: PyTree, inputs: Array) -> Float[Array, " batch"]:
        return inputs @ params

    def losses_of(
        self, outputs: Float[Array, "batch ..."], targets: Array
    ) -> Float[Array, " batch"]:
        return (outputs - targets) ** 2 / 2

    def draw_of(self, outputs: Float[Array, "batch ..."], key: PRNGKeyArray) -> Array:
        return outputs + jax.random.normal(key, outputs.shape, outputs.dtype)
