"""What `FiniteSum` trains: small models on real data, and a regression that every sample fits."""

from __future__ import annotations

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

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


class _Network(Task):
    """A tanh network of layer sizes, inputs first; none hidden is a linear model."""

    sizes: tuple[int, ...] = eqx.field(static=True)

    def start(self, key: Any) -> PyTree:
        return architectures.mlp(self.sizes, key, jnp.tanh, TANH_GAIN)


class Classifier(_Network):
    """Cross-entropy of labels; mistakes are the share of wrong ones."""

    def losses(self, params: PyTree, inputs: Array, targets: Array) -> Float[Array, " batch"]:
        logits = jax.vmap(params)(inputs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets)

    def mistakes(self, params: PyTree, inputs: Array, targets: Array) -> Float[Array, ""]:
        return jnp.mean(jnp.argmax(jax.vmap(params)(inputs), axis=1) != targets)


class Reconstruction(_Network):
    """Mean squared error of each sample, over the entries of its target."""

    def losses(self, params: PyTree, inputs: Array, targets: Array) -> Float[Array, " batch"]:
        return jnp.mean((jax.vmap(params)(inputs) - targets) ** 2, axis=1)


class LinearRegression(Task):
    """Half the squared error of a linear model, from zero."""

    size: int = eqx.field(static=True)

    def start(self, key: Any) -> PyTree:
        del key
        return jnp.zeros(self.size)

    def losses(self, params: PyTree, inputs: Array, targets: Array) -> Float[Array, " batch"]:
        return (inputs @ params - targets) ** 2 / 2
