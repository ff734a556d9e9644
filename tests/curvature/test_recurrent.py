"""Recurrent layers: cells equal equinox's, and every step of a loop is captured by itself."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nearly.curvature.capture import Capture
from nearly.curvature.recurrent import with_linear_cells
from nearly.curvature.steps import scan

KEY = jax.random.key(0)
STEPS = 4


class Recurrent(eqx.Module):
    """A cell over a path and a read-out of each of its states."""

    cell: eqx.Module
    read: eqx.nn.Linear
    lstm: bool = eqx.field(static=True)

    def __call__(self, path, loop=scan):
        zero = jnp.zeros(3, path.dtype)

        def body(state, x):
            state = self.cell(x, state)
            return state, self.read(state[0] if self.lstm else state)

        return loop(body, (zero, zero) if self.lstm else zero, path)[1]


def model_of(kind):
    cell = kind(2, 3, dtype="float64", key=KEY)
    read = eqx.nn.Linear(3, 1, dtype="float64", key=KEY)
    return Recurrent(cell, read, kind is eqx.nn.LSTMCell)


@pytest.mark.parametrize("kind", [eqx.nn.LSTMCell, eqx.nn.GRUCell])
def test_the_cell_is_equinoxs_and_its_captured_rows_are_those_of_every_step(kind):
    with jax.enable_x64(True):
        own = model_of(kind)
        model = with_linear_cells(own)
        paths = jnp.asarray(np.random.default_rng(0).normal(size=(5, STEPS, 2)))
        expected = jax.vmap(lambda p: own(p, jax.lax.scan))(paths)
        np.testing.assert_allclose(jax.vmap(model)(paths), expected, rtol=1e-12)

        capture = Capture.of(
            model, paths[0], layers=["cell.input_gates", "cell.hidden_gates", "read"]
        )
        assert capture.uses == dict.fromkeys(capture.names, STEPS)
        found = jax.jit(jax.vmap(lambda p: capture.pull(model, p, jnp.ones((STEPS, 1)))))(paths)
        np.testing.assert_allclose(found["cell.input_gates"].rows[..., :2], paths, rtol=1e-12)
        np.testing.assert_allclose(found["read"].deltas, np.ones((5, STEPS, 1)))

        # Every step by itself: probes of each step's gates, added by hand in an unrolled loop.
        def outputs(probes, path):
            state = (jnp.zeros(3), jnp.zeros(3)) if model.lstm else jnp.zeros(3)
            read, total = [], 0.0
            for t in range(STEPS):
                gates = model.cell.input_gates

                def probed(x, gates=gates, t=t):
                    return gates(x) + probes[t]

                cell = eqx.tree_at(lambda c: c.input_gates, model.cell, probed)
                state = cell(path[t], state)
                hidden = state[0] if model.lstm else state
                read.append(hidden)
                total = total + jnp.sum(model.read(hidden))
            return total, jnp.stack(read)

        probes = jnp.zeros((STEPS, model.cell.input_gates.out_features))
        each = jax.jit(jax.vmap(jax.grad(outputs, has_aux=True), (None, 0)))
        deltas, hidden = each(probes, paths)
        np.testing.assert_allclose(found["cell.input_gates"].deltas, deltas, rtol=1e-10)
        np.testing.assert_allclose(found["read"].rows[..., :3], hidden, rtol=1e-12)
        before = np.concatenate([np.zeros((5, 1, 3)), hidden[:, :-1]], axis=1)
        np.testing.assert_allclose(found["cell.hidden_gates"].rows, before, rtol=1e-12, atol=1e-15)


class Nested(eqx.Module):
    """A layer for every token, in a loop within a loop."""

    layer: eqx.nn.Linear

    def __call__(self, grid):
        def inner(total, row):
            return total + jnp.sum(jnp.tanh(jax.vmap(self.layer)(row))), None

        def outer(total, plane):
            return scan(inner, total, plane)[0], None

        return scan(outer, jnp.zeros(()), grid)[0]


def test_loops_within_loops_over_tokens():
    model = Nested(eqx.nn.Linear(2, 3, key=KEY))
    grids = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3, 4, 5, 2)), jnp.float32)
    capture = Capture.of(model, grids[0])
    assert capture.uses == {"layer": 60}
    found = jax.jit(jax.vmap(lambda g: capture.pull(model, g, jnp.ones(()))))(grids)
    rows = np.asarray(found["layer"].rows[..., :2])
    for sample, grid in zip(rows, np.asarray(grids)):
        order, truth = np.lexsort(sample.T), grid.reshape(60, 2)
        np.testing.assert_allclose(sample[order], truth[np.lexsort(truth.T)], rtol=1e-6)


def test_the_loop_is_jaxs():
    def body(carry, x):
        return carry + x, carry * x

    xs = jnp.arange(5.0)
    for settings in ({}, {"reverse": True}, {"unroll": 2}):
        ours, theirs = scan(body, 1.0, xs, **settings), jax.lax.scan(body, 1.0, xs, **settings)
        np.testing.assert_array_equal(ours[1], theirs[1])
    assert scan(lambda c, _: (2 * c, None), 1.0, length=3)[0] == 8
