"""A network as bound propagation sees it: affine maps with elementwise activations between them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nearly.core.errors import InputError
from nearly.curvature.lipschitz import activations
from nearly.curvature.lipschitz.activations import Activation
from nearly.training import architectures


class Chain(eqx.Module):
    """`W_L s_{L-1}(… s_1(W_1 x + b_1) …) + b_L`: what the bounds of this package are about.

    **Arguments:**

    - `weights`: (n_k, n_{k-1}) each. `biases`: (n_k,) each.
    - `activations`: one fewer than the weights.

    Raises `InputError` where shapes do not fit.
    """

    weights: tuple[Float[Array, "_ _"], ...]
    biases: tuple[Float[Array, " _"], ...]
    activations: tuple[Activation, ...] = eqx.field(static=True)

    def __check_init__(self) -> None:
        if not len(self.weights) == len(self.biases) == len(self.activations) + 1:
            raise InputError(
                f"a chain takes as many biases as weights and one activation fewer, got "
                f"{len(self.weights)}, {len(self.biases)} and {len(self.activations)}"
            )
        for earlier, later in zip(self.weights, self.weights[1:]):
            if later.shape[1] != earlier.shape[0]:
                raise InputError(f"weights {earlier.shape} and {later.shape} do not chain")

    def __call__(self, x: Float[Array, " inputs"]) -> Float[Array, " outputs"]:
        for weight, bias, activation in zip(self.weights, self.biases, self.activations):
            x = activation.function(weight @ x + bias)
        return self.weights[-1] @ x + self.biases[-1]

    @property
    def inputs(self) -> int:
        return self.weights[0].shape[1]

    @property
    def outputs(self) -> int:
        return self.weights[-1].shape[0]

    @property
    def widths(self) -> tuple[int, ...]:
        """Of the hidden layers, first to last."""
        return tuple(w.shape[0] for w in self.weights[:-1])

    def astype(self, dtype: Any) -> Chain:
        """The same chain in another precision."""
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), self)


Step = tuple[Any, Any] | Activation  # an affine map (weight, bias), or an activation


def chain_of(model: Any, shape: tuple[int, ...]) -> Chain:
    """The chain that an equinox model computes on an input of a given shape, flattened.

    Takes `eqx.nn.MLP`, `nearly.training.architectures.mlp`, and `eqx.nn.Sequential` (nested too) of
    `Linear`, `Conv`, average pooling, `Lambda` of an activation that is known or of `jnp.ravel`,
    `Identity`, `Dropout` (as in inference); and a `Chain` itself. Convolutions become dense
    matrices: memory inputs x outputs.

    Raises `InputError` naming the layer that is no part of a chain, and what to do.
    """
    if isinstance(model, Chain):
        return model
    steps = list(_steps(model, shape))
    if not any(isinstance(step, tuple) for step in steps):
        raise InputError("the model has no affine layer, so there is nothing to bound")
    return _alternating(steps)


def _steps(model: Any, shape: tuple[int, ...]) -> Iterator[Step]:
    for layer in _layers(model):
        activation = _activation_of(layer)
        if activation is not None:
            yield activation
        elif isinstance(layer, eqx.nn.Lambda) and layer.fn in (jnp.ravel, jnp.ndarray.flatten):
            shape = (int(np.prod(shape)),)
        elif isinstance(layer, _AFFINE):
            yield _dense(layer, shape)
            shape = jax.eval_shape(layer, jax.ShapeDtypeStruct(shape, jnp.float32)).shape
        elif not _passes_through(layer):
            raise InputError(
                f"bounds are not known for a layer {_described(layer)}: write the model as "
                "Linear, Conv, average pooling and known activations, or build a Chain with an "
                "Activation of your own"
            )


_AFFINE = (eqx.nn.Linear, eqx.nn.Conv, eqx.nn.AvgPool1d, eqx.nn.AvgPool2d, eqx.nn.AvgPool3d)


def _layers(model: Any) -> Iterator[Any]:
    """A model as its innermost layers, in order."""
    if isinstance(model, eqx.nn.MLP):
        for position, layer in enumerate(model.layers):
            last = position == len(model.layers) - 1
            yield layer
            yield eqx.nn.Lambda(model.final_activation if last else model.activation)
    elif isinstance(model, architectures.MLP):
        for layer in model.layers[:-1]:
            yield layer
            yield eqx.nn.Lambda(model.activation)
        yield model.layers[-1]
    elif isinstance(model, eqx.nn.Sequential):
        for layer in model.layers:
            yield from _layers(layer)
    else:
        yield model


def _passes_through(layer: Any) -> bool:
    if isinstance(layer, (eqx.nn.Identity, eqx.nn.Dropout)):
        return True
    return isinstance(layer, eqx.nn.Lambda) and _is_identity(layer.fn)


def _is_identity(function: Any) -> bool:
    """Whether a function is a lambda, or def, that returns its argument unchanged."""
    if not inspect.isfunction(function):
        return False
    try:
        jaxpr = jax.make_jaxpr(function)(jax.ShapeDtypeStruct((2,), jnp.float32)).jaxpr
    except Exception:  # whatever a stranger's function raises, it is not the identity
        return False
    return not jaxpr.eqns and jaxpr.outvars == jaxpr.invars


def _dense(layer: Any, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """The matrix and offset of an affine layer on flattened inputs."""
    if isinstance(layer, eqx.nn.Linear) and not isinstance(layer.in_features, str):
        rows = 1 if isinstance(layer.out_features, str) else layer.out_features
        bias = jnp.zeros(rows, layer.weight.dtype) if layer.bias is None else layer.bias
        return layer.weight.reshape(rows, -1), jnp.reshape(bias, (rows,))
    size = int(np.prod(shape))

    def flat(x: Any) -> Any:
        return jnp.ravel(layer(x.reshape(shape)))

    origin = jnp.zeros(size, _dtype(layer))
    return jax.jacfwd(flat)(origin), flat(origin)


def _dtype(layer: Any) -> Any:
    leaves = [leaf for leaf in jax.tree.leaves(layer) if eqx.is_inexact_array(leaf)]
    return leaves[0].dtype if leaves else jnp.float32


def _alternating(steps: list[Step]) -> Chain:
    """The chain of some steps: the identity goes between two affine maps, and maps at the end.

    Multiplying the two matrices instead would round, and the bounds would hold for another model.
    """
    weights: list[Any] = []
    biases: list[Any] = []
    found: list[Activation] = []
    for step in steps:
        if isinstance(step, Activation):
            if len(weights) != len(found) + 1:
                raise InputError(
                    f"an activation ({step.name}) must follow an affine layer: put a Linear "
                    "before it"
                )
            found.append(step)
            continue
        if len(weights) > len(found):
            found.append(activations.identity)
        weights.append(step[0])
        biases.append(step[1])
    if len(weights) == len(found):
        weights.append(jnp.eye(len(biases[-1]), dtype=biases[-1].dtype))
        biases.append(jnp.zeros_like(biases[-1]))
    return Chain(tuple(weights), tuple(biases), tuple(found))


_KNOWN: dict[Callable[..., Any], Activation] = {
    jax.nn.relu: activations.relu,
    jax.nn.tanh: activations.tanh,
    jnp.tanh: activations.tanh,
    jax.lax.tanh: activations.tanh,
    jax.nn.sigmoid: activations.sigmoid,
    jax.lax.logistic: activations.sigmoid,
    jax.nn.softplus: activations.softplus,
    jax.nn.silu: activations.silu,
    jax.nn.elu: activations.elu,
    jax.nn.gelu: activations.gelu_tanh,  # jax.nn.gelu's default is the tanh form
    jax.nn.leaky_relu: activations.leaky_relu(),
}


def _activation_of(layer: Any) -> Activation | None:
    function = layer.fn if isinstance(layer, eqx.nn.Lambda) else layer
    if isinstance(function, Activation):
        return function
    if isinstance(function, partial) and not function.args:
        return _of_partial(function)
    try:
        return _KNOWN.get(function)
    except TypeError:  # unhashable
        return None


def _of_partial(function: partial[Any]) -> Activation | None:
    keywords = function.keywords
    if function.func is jax.nn.gelu and set(keywords) == {"approximate"}:
        return activations.gelu_tanh if keywords["approximate"] else activations.gelu
    if function.func is jax.nn.leaky_relu and set(keywords) == {"negative_slope"}:
        return activations.leaky_relu(float(keywords["negative_slope"]))
    return None


def _described(layer: Any) -> str:
    if isinstance(layer, eqx.nn.Lambda):
        return f"Lambda({getattr(layer.fn, '__name__', layer.fn)})"
    return type(layer).__name__
