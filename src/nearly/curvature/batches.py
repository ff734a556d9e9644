"""What passes through a model's layers for a whole batch, as optimizers ask for it: `capture_fn`.

Optimizers with a Kronecker factor for every layer need the inputs and the output cotangents of the
layers, which no gradient tells. An optax transformation gets them through the extra argument
`capture_fn` of `update`:

    capture_fn(params)              # the batch's own targets: the empirical Fisher matrix
    capture_fn(params, key)         # targets drawn from the model: the true Fisher matrix
    -> {"layers[0]": Captured(rows [batch, uses, inputs], deltas [batch, uses, outputs]), ...}

Nothing is computed before it is called, so a transformation calls it inside `jax.lax.cond` in the
steps that need it. `deltas` are gradients of each sample's loss, not divided by the batch's size:
the mean over the batch of the sum over uses of `outer(delta, row)` is the gradient.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree

from nearly.core.errors import InputError
from nearly.core.tally import counted
from nearly.curvature.capture import Capture, Captured
from nearly.curvature.named_layers import linear_layer_names

Losses = Callable[[Any, PyTree, PyTree], Array]
"""(model, inputs, targets) -> the loss of each sample."""

Draw = Callable[[Any, PyTree, PRNGKeyArray], PyTree]
"""(model, inputs, key) -> targets drawn from the distribution that the model stands for."""


class CaptureFunction(eqx.Module):
    """`capture_fn` of one batch; see the module.

    **Arguments:**

    - `losses`: (model, inputs, targets) -> the loss of each sample.
    - `rest`: what of the model is no parameter (of `eqx.partition(model, eqx.is_inexact_array)`).
    - `inputs`, `targets`: the batch, pytrees of arrays whose first axis is the sample's.
    - `draw`: (model, inputs, key) -> targets drawn from the model, for calls with a key.
    - `layers`: names of the layers to read; by default all that are one linear map.
    - `units`: under which a pass through the losses is tallied; `draw` tallies its own.

    **Cost** of a call: a forward and a backward pass of the batch, and with a key another forward
    pass; memory of all layers' inputs and cotangents. The first call for a model looks at how it
    uses its layers, on one sample of made-up numbers, which takes about a second.
    """

    losses: Losses
    rest: PyTree
    inputs: PyTree
    targets: PyTree
    draw: Draw | None = None
    layers: tuple[str, ...] | None = eqx.field(static=True, default=None)
    units: tuple[str, ...] = eqx.field(static=True, default=())

    def __call__(self, params: PyTree, key: PRNGKeyArray | None = None) -> dict[str, Captured]:
        """Layer name -> rows [batch, uses, inputs] and deltas [batch, uses, outputs].

        Raises `InputError` for a key where there is no `draw`, and what `Capture.of` raises.
        """
        model = eqx.combine(params, self.rest)
        if not self._names(model):
            return {}
        capture = self._capture(model)
        targets = self.targets if key is None else self._drawn(model, key)

        def losses(probes: Any, model: Any, inputs: PyTree, targets: PyTree) -> Array:
            def one(probe: Any, x: PyTree, t: PyTree) -> Array:
                return _of_one(self.losses, capture.tapped(model, probe), x, t)

            return jax.vmap(one)(probes, inputs, targets)

        batch = len(jax.tree.leaves(targets)[0])
        probes = jax.tree.map(
            lambda p: jnp.zeros((batch, *p.shape), p.dtype), capture.probes(model)
        )
        billed = losses
        for unit in self.units:
            billed = counted(billed, unit)
        values, pull = jax.vjp(lambda p: billed(p, model, self.inputs, targets), probes)
        return dict(zip(capture.names, pull(jnp.ones_like(values))[0], strict=True))

    def _names(self, model: Any) -> tuple[str, ...]:
        return linear_layer_names(model) if self.layers is None else self.layers

    def _drawn(self, model: Any, key: PRNGKeyArray) -> PyTree:
        if self.draw is None:
            raise InputError(
                "no targets can be drawn from the model, whose loss is no likelihood: give `draw`, "
                "or call capture_fn without a key, for the batch's own targets"
            )
        return self.draw(model, self.inputs, key)

    def _capture(self, model: Any) -> Capture:
        first = jax.tree.map(lambda leaf: leaf[0], (self.inputs, self.targets))
        leaves, structure = jax.tree.flatten((self.losses, model, first))
        return _look(structure, tuple(_shape(leaf) for leaf in leaves), self._names(model))


def capture_function(
    model: Any,
    loss: Callable[[Any, Any], Array],
    inputs: PyTree,
    targets: PyTree,
    *,
    layers: tuple[str, ...] | None = None,
) -> CaptureFunction:
    """`capture_fn` for a model of one sample and a loss of its output, in any training step.

        params, rest = eqx.partition(model, eqx.is_inexact_array)
        capture_fn = capture_function(model, CrossEntropy(), inputs, labels)
        updates, state = optimizer.update(grads, state, params, capture_fn=capture_fn)

    **Arguments:**

    - `model`: called with one sample's input; `loss`: `(output, target) -> scalar`, such as those
      of `nearly.curvature.objective`. If it has `sample(output, key)`, targets can be drawn.
    - `inputs`, `targets`: the batch. `layers`: names of those to read.
    """
    rest = eqx.filter(model, eqx.is_inexact_array, inverse=True)
    sample: Any = getattr(loss, "sample", None)

    def losses(model: Any, inputs: PyTree, targets: PyTree) -> Array:
        return jax.vmap(lambda x, t: loss(model(x), t))(inputs, targets)

    def draw(model: Any, inputs: PyTree, key: PRNGKeyArray) -> PyTree:
        keys = jax.random.split(key, len(jax.tree.leaves(inputs)[0]))
        return jax.vmap(lambda x, k: sample(model(x), k))(inputs, keys)

    drawn = None if sample is None else draw
    return CaptureFunction(losses, rest, inputs, targets, drawn, layers)


def _of_one(losses: Losses, model: Any, inputs: PyTree, targets: PyTree) -> Array:
    """The loss of one sample."""
    alone = jax.tree.map(lambda leaf: leaf[None], (inputs, targets))
    return losses(model, *alone)[0]


@functools.lru_cache(64)
def _look(structure: Any, leaves: tuple[Any, ...], names: tuple[str, ...]) -> Capture:
    """How a model uses its layers: the same for all values of its arrays, which may be unknown."""
    with jax.ensure_compile_time_eval():
        losses, like, example = jax.tree.unflatten(structure, leaves)
        losses, like = jax.tree.map(_weights, (losses, like))
        example = jax.tree.map(_data, example)
        return Capture.of(
            like, example, predict=lambda m, sample: _of_one(losses, m, *sample), layers=names
        )


def _shape(leaf: Any) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if eqx.is_array(leaf) else leaf


def _weights(leaf: Any) -> Any:
    return _stand_in(leaf, lambda key, shape, dtype: jax.random.normal(key, shape, dtype) / 4)


def _data(leaf: Any) -> Any:
    # Positive, for a loss may take their logarithm or root.
    return _stand_in(leaf, lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, 0.5, 1))


def _stand_in(leaf: Any, draw: Callable[..., Array]) -> Any:
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    key = jax.random.key(0)
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
        return draw(key, leaf.shape, leaf.dtype)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.split(key, leaf.shape)
    return jnp.zeros(leaf.shape, leaf.dtype)
