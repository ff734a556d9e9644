"""`GraphValues`: the value of each state of a random decision process, learnt from examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from nearly.core.errors import InputError
from nearly.core.problem import Problem
from nearly.linear.graph_fixed_point import AGGREGATIONS, Graph
from nearly.training.loop import fit

DISCOUNT = 0.9
DEGREES = (5, 10)  # edges into a node
TEST_SEED = 7_000


class Values(eqx.Module):
    """A decision process as a graph, and the value of each of its nodes."""

    graph: Graph
    values: Float[Array, " nodes"]


def random_process(key: Any, fewest: int, most: int) -> Values:
    """A random deterministic decision process, padded to `most` nodes.

    Each node may move along any of 5 to 10 edges; the other ends are uniform, rewards are uniform
    in [-1, 1], the discount is 0.9. Information flows against the moves, so an edge's *target* is
    the node that moves. Node features are 1, edge features the rewards
    (`convergent-graph-solvers`).
    """
    for_size, for_degrees, for_ends, for_rewards = jax.random.split(key, 4)
    size = jax.random.randint(for_size, (), fewest, most + 1)
    degrees = jax.random.randint(for_degrees, (most,), DEGREES[0], DEGREES[1] + 1)
    shape = (most, DEGREES[1])
    ends = jax.random.randint(for_ends, shape, 0, size)
    rewards = jax.random.uniform(for_rewards, shape, jnp.float32, -1, 1)
    is_node = jnp.arange(most) < size
    is_edge = (jnp.arange(DEGREES[1]) < degrees[:, None]) & is_node[:, None]
    targets = jnp.broadcast_to(jnp.arange(most)[:, None], shape)
    graph = Graph(
        ends.ravel(),
        targets.ravel(),
        jnp.ones((most, 1), jnp.float32),
        rewards.reshape(-1, 1),
        is_node,
        is_edge.ravel(),
    )

    def improve(_: Any, values: Array) -> Array:
        gains = jnp.where(is_edge, rewards + DISCOUNT * values[ends], -jnp.inf)
        return jnp.where(is_node, jnp.max(gains, axis=1), 0)

    # 0.9^200 is below the rounding of float32.
    values = jax.lax.fori_loop(0, 200, improve, jnp.zeros((most,), jnp.float32))
    return Values(graph, values)


class Processes(eqx.Module):
    """Random decision processes as data for `nearly.training.fit`: key -> batch."""

    fewest: int = eqx.field(static=True)
    most: int = eqx.field(static=True)
    batch: int = eqx.field(static=True)

    def __call__(self, key: Any) -> Values:
        keys = jax.random.split(key, self.batch)
        return jax.vmap(lambda k: random_process(k, self.fewest, self.most))(keys)


def squared_error(network: Any, batch: Values, key: Any) -> Float[Array, ""]:
    """The mean squared error over all nodes of a batch."""
    del key
    wrong = (jax.vmap(network)(batch.graph) - batch.values) ** 2
    inside = batch.graph.is_node
    return jnp.sum(jnp.where(inside, wrong, 0)) / jnp.sum(inside)


@lru_cache
def _adam(steps: int) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(1e-3, steps))


class GraphValues(Problem):
    """Predict the value of every state of decision processes larger than those trained on.

    A method (protocol `graph-solvers`) is a constructor `(node features, edge features, key) ->
    module`, the module a function from a `Graph` to a number for each node. It is trained here on
    graphs of 20 to 50 states; the dial is the number of optimizer steps. Truth is value iteration
    to rounding. Work is counted in aggregations over all nodes of one graph.

    **Arguments:** `nodes` of the graphs it is judged by, `graphs` of them; `batch` of a step.
    """

    nodes: int = 100
    graphs: int = 32
    batch: int = 32
    trained: tuple[int, int] = (20, 50)
    name: ClassVar[str] = "graph-values"
    dtype: ClassVar[str] = "float32"
    error_name: ClassVar[str] = "mean relative error"
    work_name: ClassVar[str] = AGGREGATIONS
    protocol: ClassVar[str] = "graph-solvers"

    def __check_init__(self) -> None:
        if (
            min(self.nodes, self.graphs, self.batch) < 1
            or not 0 < self.trained[0] <= self.trained[1]
        ):
            raise InputError(
                f"nodes {self.nodes}, graphs {self.graphs}, batch {self.batch} and sizes "
                f"{self.trained} must be positive, the sizes in order"
            )

    def dials(self, method: Any) -> Sequence[int]:
        return (50, 200, 600)

    def build(self, method: Any, dial: Any, *, key: Any) -> Any:
        for_weights, for_steps = jax.random.split(key)
        return fit(
            squared_error,
            method(1, 1, for_weights),
            Processes(*self.trained, self.batch),
            optimizer=_adam(int(dial)),
            steps=int(dial),
            key=for_steps,
        ).model

    @property
    def tests(self) -> Values:
        """The graphs that methods are judged by; the same for all."""
        return Processes(self.nodes, self.nodes, self.graphs)(jax.random.key(TEST_SEED))

    def apply(self, standin: Any, *, key: Any) -> Array:
        return jax.lax.map(standin, self.tests.graph)

    def errors(self, value: Any) -> Mapping[str, float]:
        tests = jax.tree.map(np.asarray, self.tests)
        found = np.asarray(value, np.float64)
        relative = np.abs(found - tests.values) / np.abs(tests.values)
        return {
            "mean relative error": float(relative.mean()),
            "wrong moves": float(np.mean(_moves(tests, found) != _moves(tests, tests.values))),
        }


def _moves(tests: Values, values: np.ndarray) -> np.ndarray:
    """The best edge of every node, given the values of all."""
    graphs, nodes = values.shape
    graph = tests.graph
    ends = np.asarray(graph.sources).reshape(graphs, -1)
    gains = np.asarray(graph.edges)[..., 0] + DISCOUNT * np.take_along_axis(values, ends, axis=1)
    gains = np.where(np.asarray(graph.is_edge), gains, -np.inf)
    return np.argmax(gains.reshape(graphs, nodes, -1), axis=2)
