"""Layer capture: the inputs and output cotangents of every linear layer of an equinox model.

    capture = Capture.of(model, x)
    rows, deltas = capture.pull(model, x, cotangent)["layers[0]"]
    deltas.T @ rows                                   # the gradient of [weight | bias]

The model is not modified. A copy of it is run whose layers carry a probe: an array of zeros that
leaves their output as it is, but whose cotangent, in the backward pass, is defined as what is to be
captured. (Defined by a `jax.custom_vjp` whose backward rule writes the layer's input and the
cotangent of its output into it.) Whatever a program does with a layer, JAX then treats the probe
as it treats the layer's weights: it adds up the cotangents of all uses. So that uses do not add up
each writes into rows of its own:

- The uses that `jax.vmap` makes of one call (over tokens, say) are told apart by their index in the
  batch. Only the batching rule knows it: `_index` is a `jax.custom_batching.custom_vmap`.
- Several calls of one layer are told apart by a counter that runs while JAX traces the model.
- The steps of a loop made by `nearly.curvature.steps.scan` are told apart by their number.
- Uses that none can tell apart (inside `jax.lax.scan`) are found by counting, and refused.

What is captured is checked once, on the example: `deltas.T @ rows` must be the gradient that JAX
computes of the layer's weights. A layer whose weights are also used elsewhere fails that check.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from nearly.core.errors import InputError
from nearly.curvature.layers import LinearMap, linear_map
from nearly.curvature.named_layers import Layers, flatten_layers, known_layers, named_layers
from nearly.curvature.named_layers import layer_names as layer_names
from nearly.curvature.named_layers import uncovered as uncovered
from nearly.curvature.steps import current_step

Predict = Callable[[Any, Any], Any]


class Captured(NamedTuple):
    """What passed through one layer for one sample: a row for every use and every position."""

    rows: Float[Array, "uses inputs"]
    deltas: Float[Array, "uses outputs"]

    @property
    def gradient(self) -> Float[Array, "outputs inputs"]:
        """The gradient of the layer's matrix."""
        return self.deltas.T @ self.rows


def call(model: Any, inputs: Any) -> Any:
    """The output of a model for one sample, as equinox models are called."""
    return model(inputs)


class Capture(Layers):
    """Which layers of a model are read, and how many rows each of them has per sample.

    Made by `Capture.of`; holds no array, so it can be closed over or passed to `jax.jit` freely.
    """

    calls: tuple[tuple[int, ...], ...] = eqx.field(static=True)
    predict: Predict = eqx.field(static=True)

    @staticmethod
    def of(
        model: Any,
        example: Any,
        *,
        predict: Predict = call,
        layers: Sequence[str] | None = None,
    ) -> Capture:
        """Look at a model and at how it treats one sample.

        **Arguments:**

        - `model`: any equinox model (or pytree of them).
        - `example`: one sample's input. Its shape decides the number of rows of each layer.
        - `predict`: `(model, input) -> output` of one sample; by default `model(input)`.
        - `layers`: names of the layers to read (`layer_names(model)` lists them). By default all,
          and then every parameter of the model must lie in one of them.

        Raises `InputError`, naming it, for a parameter outside the layers, a layer that is not
        one linear map, one used where its uses cannot be told apart (`jax.lax.scan`), and one
        whose weights are used outside its own call.

        Cost: two backward passes for one sample.
        """
        named = named_layers(model)
        chosen = _chosen(model, named, layers)
        maps = tuple(linear_map(name, named[name][1]) for name in chosen)
        positions = tuple(named[name][0] for name in chosen)
        counting = Capture(maps, positions, tuple(() for _ in maps), predict)
        capture = Capture(maps, positions, _count(counting, model, example), predict)
        _check(capture, model, example)
        return capture

    @property
    def uses(self) -> dict[str, int]:
        """The number of rows of each layer per sample."""
        return {m.name: sum(c) for m, c in zip(self.maps, self.calls)}

    def pull(self, model: Any, inputs: Any, cotangent: PyTree) -> dict[str, Captured]:
        """What passes through each layer for one sample, given the cotangent of the output.

        **Arguments:**

        - `model`: of the structure that `of` has seen. `inputs`: one sample's input.
        - `cotangent`: of the structure of the model's output: the gradient of a loss there.

        **Returns:** layer name -> `Captured`. Safe under `jax.jit` and `jax.vmap`.

        Cost: one forward and one backward pass; for a layer with T uses T^2 copies of its row.
        """
        _, pull = self.linearise(model, inputs)
        return pull(cotangent)

    def linearise(
        self, model: Any, inputs: Any
    ) -> tuple[PyTree, Callable[[PyTree], dict[str, Captured]]]:
        """The model's output for one sample, and the function `cotangent -> captured`.

        Use it to pull several cotangents through one forward pass.
        """
        outputs, pull = jax.vjp(
            lambda p: self.predict(self.tapped(model, p), inputs), self.probes(model)
        )

        def named(cotangent: PyTree) -> dict[str, Captured]:
            return dict(zip(self.names, pull(cotangent)[0], strict=True))

        return outputs, named

    def probes(self, model: Any) -> list[Captured]:
        """Zeros, a pair of arrays for every layer, for `tapped`."""
        nodes = flatten_layers(model)[0]
        dtypes = [_dtype(nodes[p]) for p in self.positions]
        return [
            Captured(jnp.zeros((sum(c), m.inputs), d), jnp.zeros((sum(c), m.outputs), d))
            for m, c, d in zip(self.maps, self.calls, dtypes)
        ]

    def tapped(self, model: Any, probes: Sequence[Captured]) -> Any:
        """The model as it is, but the cotangents of the probes are what passes through it."""
        return self.probed(model, probes, _write)

    def probed(self, model: Any, probes: Sequence[PyTree], write: Any) -> Any:
        """The model with every layer that is read replaced by one that writes into its probe."""
        nodes, structure = flatten_layers(model)
        for m, position, calls, probe in zip(self.maps, self.positions, self.calls, probes):
            nodes[position] = _Probed(nodes[position], probe, m, calls, write, itertools.count())
        return jax.tree.unflatten(structure, nodes)


# ------------------------------------------------------------------ the probe


class _Probed(eqx.Module):
    """A layer that writes what passes through it into its probe, on the way back."""

    layer: Any
    probe: PyTree
    map: LinearMap = eqx.field(static=True)
    calls: tuple[int, ...] = eqx.field(static=True)
    write: Any = eqx.field(static=True)
    counter: Iterator[int] = eqx.field(static=True)

    def __call__(self, x: Any, *, key: Any = None) -> Any:
        step, steps = current_step()
        use = _Use(self.map, self.calls, next(self.counter), steps, self.write)
        return _tap(use, x, self.layer(x, key=key), self.probe, jnp.asarray(step, jnp.int32))

    def __getattr__(self, name: str) -> Any:
        # A model may read its layer's sizes, or its weights.
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(object.__getattribute__(self, "layer"), name)


class _Use(NamedTuple):
    """One call of a layer, as the trace meets it."""

    map: LinearMap
    calls: tuple[int, ...]
    number: int
    steps: int  # of the loops around it
    write: Any


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _tap(use: _Use, x: Any, y: Any, probe: PyTree, step: Array) -> Any:
    return y


def _tap_forward(use: _Use, x: Any, y: Any, probe: PyTree, step: Array) -> Any:
    # The step varies fastest, for the samples of an enclosing vmap must vary slowest.
    return y, (x, use.steps * _index(y, x) + step, probe)


def _tap_backward(use: _Use, residual: Any, delta: Any) -> Any:
    x, index, probe = residual
    return None, delta, use.write(use, x, delta, index, probe), None


_tap.defvjp(_tap_forward, _tap_backward)


@jax.custom_batching.custom_vmap
def _index(y: Array, x: Any) -> Array:
    """The number of this use among those that `jax.vmap` makes of one call."""
    return jnp.zeros((), jnp.int32)


@_index.def_vmap
def _batched_index(axis_size: int, in_batched: Any, y: Array, x: Any) -> tuple[Array, bool]:
    # An enclosing vmap (over samples, say) asks again: it varies slowest.
    return jnp.arange(axis_size, dtype=jnp.int32) + axis_size * _index(y, x), True


def _write(use: _Use, x: Any, delta: Array, index: Any, probe: Captured) -> Captured:
    """The use's rows, in their place among the rows of all uses; zeros elsewhere."""
    rows = use.map.rows(x, probe.rows.dtype)
    deltas = use.map.deltas(delta)
    if use.number >= len(use.calls):
        raise InputError(
            f"{use.map.name} is called {use.number + 1} times, but {len(use.calls)} times for the "
            "example: make the capture for this use of the model"
        )
    own = rows.shape[0]
    start = sum(use.calls[: use.number])
    # The index of an enclosing vmap over samples is dropped: each sample has its own probe.
    first = start + own * (index % (use.calls[use.number] // own))
    return Captured(_placed(rows, first, probe.rows), _placed(deltas, first, probe.deltas))


def _placed(rows: Array, first: Any, like: Array) -> Array:
    if rows.shape[0] == like.shape[0]:
        return rows
    if rows.shape[0] == 1:  # a product that XLA fuses with the sum over the batch
        return jnp.where((jnp.arange(like.shape[0]) == first)[:, None], rows, 0)
    return jax.lax.dynamic_update_slice_in_dim(jnp.zeros_like(like), rows, first, axis=0)


# ------------------------------------------------------------------ looking at a model


def _dtype(layer: Any) -> Any:
    return layer.weight.dtype


def _chosen(
    model: Any, named: dict[str, tuple[int, Any]], layers: Sequence[str] | None
) -> tuple[str, ...]:
    if layers is None:
        outside = uncovered(model)
        if outside:
            raise InputError(
                f"the parameter {outside[0]} lies in no layer that can be captured "
                f"({len(outside)} such): name the layers to read, layers=layer_names(model)"
            )
        layers = tuple(named)
    if not layers:
        raise InputError("no layer is to be read: the model has no linear layer, or layers is []")
    return known_layers(named, layers)


_MOST_CALLS = 64


def _count(capture: Capture, model: Any, example: Any) -> tuple[tuple[int, ...], ...]:
    """The rows of each call of each layer."""
    marks = _marks(capture, model, example)
    return tuple(_calls(m, np.asarray(found)) for m, found in zip(capture.maps, marks))


@eqx.filter_jit
def _marks(capture: Capture, model: Any, example: Any) -> list[Array]:
    """For each call of each layer: its uses, the sum of their indices, and their rows."""
    probes = [jnp.zeros((_MOST_CALLS, 3)) for _ in capture.maps]
    outputs, pull = jax.vjp(
        lambda p: capture.predict(capture.probed(model, p, _mark), example), probes
    )
    return pull(jax.tree.map(jnp.ones_like, outputs))[0]


def _mark(use: _Use, x: Any, delta: Array, index: Any, probe: Array) -> Array:
    if use.number >= _MOST_CALLS:
        raise InputError(
            f"{use.map.name} is called more than {_MOST_CALLS} times for one sample: "
            "leave it out with layers=[...]"
        )
    positions = use.map.deltas(delta).shape[0]
    found = jnp.stack([jnp.asarray(1), index, jnp.asarray(positions)])
    call = jnp.arange(_MOST_CALLS) == use.number
    return jnp.where(call[:, None], found, 0).astype(probe.dtype)


def _calls(m: LinearMap, found: np.ndarray) -> tuple[int, ...]:
    """The rows of each call, from its marks."""
    uses, indices, rows = found.T
    if not uses.any():
        raise InputError(f"{m.name} is not used for the example: leave it out with layers=[...]")
    if (indices != uses * (uses - 1) / 2).any():
        raise InputError(
            f"{m.name} is used in a loop (jax.lax.scan?), where its uses cannot be told apart: "
            "loop by nearly.curvature.steps.scan, or leave it out with layers=[...]"
        )
    return tuple(round(r) for r in rows[: int(np.flatnonzero(uses)[-1]) + 1])


def _check(capture: Capture, model: Any, example: Any) -> None:
    """Refuse a layer whose captured gradient is not the gradient of its weights."""
    for name, (error, scale, eps) in _differences(capture, model, example).items():
        if not float(error) <= 1e3 * float(eps) * (1 + float(scale)):
            raise InputError(
                f"what passes through {name} does not explain the gradient of its weights (off by "
                f"{float(error):.2g}): they are also used outside its own call; leave it out with "
                "layers=[...]"
            )


@eqx.filter_jit
def _differences(
    capture: Capture, model: Any, example: Any
) -> dict[str, tuple[Array, Array, Array]]:
    """How far captured gradients are from JAX's, their size, and their format's rounding unit."""
    parameters, rest = eqx.partition(model, eqx.is_inexact_array)
    outputs, pull = jax.vjp(lambda p: capture.predict(eqx.combine(p, rest), example), parameters)
    leaves, structure = jax.tree.flatten(outputs)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    cotangent = jax.tree.unflatten(
        structure, [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves)]
    )
    truth = capture.matrices(pull(cotangent)[0])
    found: dict[str, tuple[Array, Array, Array]] = {}
    for name, captured in capture.pull(model, example, cotangent).items():
        error = jnp.max(jnp.abs(captured.gradient - truth[name]))
        eps = jnp.finfo(truth[name].dtype).eps
        found[name] = (error, jnp.max(jnp.abs(truth[name])), jnp.asarray(eps, error.dtype))
    return found
