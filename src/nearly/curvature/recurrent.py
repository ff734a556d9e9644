"""Recurrent cells made of linear layers, which equinox's own are not: so they can be captured.

`with_linear_cells(model)` replaces every `eqx.nn.LSTMCell` and `eqx.nn.GRUCell` of a model by an
equal one. Each has two layers, of the input and of the hidden state, whose outputs are the stacked
gates. Run them by `nearly.curvature.steps.scan`, not by `jax.lax.scan`.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

State = tuple[Float[Array, " hidden"], Float[Array, " hidden"]]


class LinearLSTMCell(eqx.Module):
    """A step of an LSTM: gates i, f, g, o are `input_gates(x) + hidden_gates(h)`."""

    input_gates: eqx.nn.Linear
    hidden_gates: eqx.nn.Linear

    @staticmethod
    def of(cell: eqx.nn.LSTMCell) -> LinearLSTMCell:
        """The cell that computes the same."""
        return LinearLSTMCell(_linear(cell.weight_ih, cell.bias), _linear(cell.weight_hh, None))

    def __call__(self, x: Float[Array, " inputs"], state: State) -> State:
        hidden, memory = state
        i, f, g, o = jnp.split(self.input_gates(x) + self.hidden_gates(hidden), 4)
        memory = jax.nn.sigmoid(f) * memory + jax.nn.sigmoid(i) * jnp.tanh(g)
        return jax.nn.sigmoid(o) * jnp.tanh(memory), memory


class LinearGRUCell(eqx.Module):
    """A step of a GRU: gates r, z, n; `bias`, of n within the reset, lies in no layer."""

    input_gates: eqx.nn.Linear
    hidden_gates: eqx.nn.Linear
    bias: Float[Array, " hidden"] | None

    @staticmethod
    def of(cell: eqx.nn.GRUCell) -> LinearGRUCell:
        """The cell that computes the same."""
        return LinearGRUCell(
            _linear(cell.weight_ih, cell.bias), _linear(cell.weight_hh, None), cell.bias_n
        )

    def __call__(
        self,
        x: Float[Array, " inputs"],
        hidden: Float[Array, " hidden"],
    ) -> Float[Array, " hidden"]:
        into = jnp.split(self.input_gates(x), 3)
        back = jnp.split(self.hidden_gates(hidden), 3)
        reset, update = (jax.nn.sigmoid(into[k] + back[k]) for k in (0, 1))
        kept = back[2] if self.bias is None else back[2] + self.bias
        new = jnp.tanh(into[2] + reset * kept)
        return new + update * (hidden - new)


def with_linear_cells(model: Any) -> Any:
    """A model whose LSTM and GRU cells are made of linear layers, with the same weights."""
    cells = (eqx.nn.LSTMCell, eqx.nn.GRUCell)

    def made(node: Any) -> Any:
        if isinstance(node, eqx.nn.LSTMCell):
            return LinearLSTMCell.of(node)
        return LinearGRUCell.of(node) if isinstance(node, eqx.nn.GRUCell) else node

    return jax.tree.map(made, model, is_leaf=lambda node: isinstance(node, cells))


def _linear(weight: Array, bias: Array | None) -> eqx.nn.Linear:
    outputs, inputs = weight.shape
    layer = eqx.nn.Linear(inputs, outputs, bias is not None, key=jax.random.key(0))
    layer = eqx.tree_at(lambda m: m.weight, layer, weight)
    return layer if bias is None else eqx.tree_at(lambda m: m.bias, layer, bias)
