"""Graph networks with a fixed point inside (`convergent-graph-solvers`).

A network looks at a graph and writes down a linear iteration for each of some heads; the answer is
read off the fixed points. The iteration contracts whatever the weights are, so there is exactly one
fixed point, and it is reached in a number of rounds that does not depend on the graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Bool, Float, Int

from nearly.core.errors import InputError
from nearly.core.tally import counted
from nearly.derivatives.implicit import implicit_fixed_point
from nearly.linear.stationary import Stationary
from nearly.training.architectures import MLP, mlp

Nodes = Float[Array, "nodes _"]
Edges = Float[Array, "edges _"]
AGGREGATIONS = "aggregations"


class Graph(eqx.Module):
    """A directed graph with features, padded so that graphs of several sizes share one shape.

    **Arguments:** `sources`, `targets` of the edges, shape (edges,); features of nodes and edges,
    shapes (nodes, f) and (edges, g); `is_node`, `is_edge`: which entries are no padding.
    """

    sources: Int[Array, " edges"]
    targets: Int[Array, " edges"]
    nodes: Nodes
    edges: Edges
    is_node: Bool[Array, " nodes"]
    is_edge: Bool[Array, " edges"]

    def sums(self, messages: Edges) -> Nodes:
        """At each node the sum of the messages on the edges that come in."""
        return counted(self._sums, AGGREGATIONS)(messages)

    def _sums(self, messages: Edges) -> Nodes:
        kept = jnp.where(self.is_edge[:, None], messages, 0)
        return jax.ops.segment_sum(kept, self.targets, self.nodes.shape[0])

    def out_degrees(self) -> Float[Array, " nodes"]:
        """How many edges leave each node."""
        ones = self.is_edge.astype(self.nodes.dtype)
        return jax.ops.segment_sum(ones, self.sources, self.nodes.shape[0])


class MessagePassing(eqx.Module):
    """A round of messages: edges look at their ends, nodes at the sum of what comes in."""

    on_edges: MLP
    on_nodes: MLP

    def __init__(self, nodes: int, edges: int, width: int, key: Any) -> None:
        one, two = jax.random.split(key)
        self.on_edges = mlp((edges + 2 * nodes, width, width), one, activation=jax.nn.relu)
        self.on_nodes = mlp((nodes + width, width, width), two, activation=jax.nn.relu)

    def __call__(self, graph: Graph, nodes: Nodes, edges: Edges) -> tuple[Nodes, Edges]:
        ends = [edges, nodes[graph.sources], nodes[graph.targets]]
        edges = jax.vmap(self.on_edges)(jnp.concatenate(ends, axis=1))
        nodes = jax.vmap(self.on_nodes)(jnp.concatenate([nodes, graph.sums(edges)], axis=1))
        return nodes, edges


class Encoder(eqx.Module):
    """Rounds of messages, then a number for each edge and each node for every head."""

    rounds: tuple[MessagePassing, ...]
    logits: eqx.nn.Linear
    biases: eqx.nn.Linear

    def __init__(
        self, nodes: int, edges: int, width: int, heads: int, rounds: int, key: Any
    ) -> None:
        one, two, *keys = jax.random.split(key, 2 + rounds)
        sizes = [(nodes, edges)] + [(width, width)] * (rounds - 1)
        self.rounds = tuple(
            MessagePassing(n, e, width, k) for (n, e), k in zip(sizes, keys, strict=True)
        )
        self.logits = eqx.nn.Linear(width, heads, key=one)
        self.biases = eqx.nn.Linear(width, heads, key=two)

    def __call__(self, graph: Graph) -> tuple[Edges, Nodes]:
        nodes, edges = graph.nodes, graph.edges
        for each in self.rounds:
            nodes, edges = each(graph, nodes, edges)
        return jax.vmap(self.logits)(edges), jax.vmap(self.biases)(nodes)


def contraction(graph: Graph, logits: Edges) -> Edges:
    """Couplings along the edges whose matrix has 1-norm at most one, for each head.

    `clip(logit, 0, 1) / (edges that leave the source)`: what leaves a node adds up to one or less,
    which is the sum of a column of the matrix that takes values from sources to targets.
    """
    degrees = jnp.maximum(graph.out_degrees(), 1)
    return jnp.clip(logits, 0, 1) / degrees[graph.sources][:, None]


def softmax_contraction(graph: Graph, logits: Edges) -> Edges:
    """The variant that shares one among the edges that leave a node, by a softmax of the logits."""
    size = graph.nodes.shape[0]
    hidden = jnp.where(graph.is_edge[:, None], logits, -jnp.inf)
    highest = jax.ops.segment_max(hidden, graph.sources, size)
    highest = jnp.where(jnp.isfinite(highest), highest, 0)
    weights = jnp.exp(hidden - highest[graph.sources])
    total = jax.ops.segment_sum(weights, graph.sources, size)
    return weights / jnp.where(total > 0, total, 1)[graph.sources]


def identity(x: Array) -> Array:
    """The default nonlinearity of the fixed-point layer: none."""
    return x


class FixedPoint(eqx.Module):
    """`x = nonlinearity(gamma A x + b)` for each head, by iteration.

    `A` from `couplings` (shape (edges, heads)) has 1-norm at most one, so each round shrinks the
    error by `gamma` and `log(tolerance) / log(gamma)` rounds are enough. Derivatives come from the
    equation, by the transposed iteration, not from the rounds.

    **Arguments:**

    - `gamma`: in (0, 1); half in the paper.
    - `tolerance`: of the last change, in the largest component. `most`: the limit on rounds.
    - `nonlinearity`: any function with slopes in [-1, 1].

    **Cost:** of a round, `2 edges heads` flops; memory for two iterates.
    """

    gamma: float = eqx.field(default=0.5, static=True)
    tolerance: float = eqx.field(default=1e-6, static=True)
    most: int = eqx.field(default=50, static=True)
    nonlinearity: Callable[[Array], Array] = eqx.field(default=identity, static=True)

    def __check_init__(self) -> None:
        if not 0 < self.gamma < 1:
            raise InputError(f"gamma = {self.gamma} does not contract; give a number in (0, 1)")
        if not self.tolerance > 0 or self.most < 1:
            raise InputError(
                f"tolerance = {self.tolerance} and most = {self.most} must be positive"
            )

    @property
    def rounds(self) -> int:
        """After how many rounds an error of one is below the tolerance, for any weights."""
        return math.ceil(math.log(self.tolerance) / math.log(self.gamma))

    def step(self, x: Nodes, graph: Graph, couplings: Edges, biases: Nodes) -> Nodes:
        """One round."""
        moved = graph.sums(couplings * x[graph.sources])
        return self.nonlinearity(self.gamma * moved + biases)

    def __call__(self, graph: Graph, couplings: Edges, biases: Nodes) -> Nodes:
        return self.solve(graph, couplings, biases)[0]

    def solve(self, graph: Graph, couplings: Edges, biases: Nodes) -> tuple[Nodes, Array]:
        """The fixed points, and in how many rounds they were reached."""
        solution = optx.fixed_point(
            lambda x, args: self.step(x, *args),
            optx.FixedPointIteration(rtol=0.0, atol=self.tolerance, norm=optx.max_norm),
            jax.lax.stop_gradient(biases),
            jax.lax.stop_gradient((graph, couplings, biases)),
            max_steps=self.most,
            throw=False,
        )
        backward = Stationary(self.tolerance, preconditioner=None, max_steps=self.most)
        x = implicit_fixed_point(
            self.step, solution.value, graph, couplings, biases, solve=backward
        )
        return x, solution.stats["num_steps"]


class ConvergentGraphSolver(eqx.Module):
    """A network from graphs to a number for each node, read off fixed points of its own making.

    **Arguments:** features of nodes and edges; `heads` fixed points (64 in the paper); `width` of
    the encoder (64) and its `rounds` (3); `decoder`, the widths of its hidden layers; `couplings`,
    `contraction` or `softmax_contraction`; a key.

    **Cost:** of a graph, `rounds` of messages with networks on every edge and node, and at most
    `layer.most` products with the couplings of each head.
    """

    encoder: Encoder
    layer: FixedPoint
    decoder: MLP
    couplings: Callable[[Graph, Edges], Edges]

    def __init__(
        self,
        nodes: int,
        edges: int,
        key: Any,
        *,
        heads: int = 64,
        width: int = 64,
        rounds: int = 3,
        decoder: tuple[int, ...] = (64, 32),
        layer: FixedPoint | None = None,
        couplings: Callable[[Graph, Edges], Edges] = contraction,
    ) -> None:
        if min(nodes, edges, heads, width, rounds) < 1:
            raise InputError(
                f"features {nodes} and {edges}, heads {heads}, width {width} and rounds {rounds} "
                "must all be positive"
            )
        one, two = jax.random.split(key)
        self.encoder = Encoder(nodes, edges, width, heads, rounds, one)
        self.layer = FixedPoint() if layer is None else layer
        self.decoder = mlp((heads, *decoder, 1), two, activation=jax.nn.relu)
        self.couplings = couplings

    def __call__(self, graph: Graph) -> Float[Array, " nodes"]:
        logits, biases = self.encoder(graph)
        x = self.layer(graph, self.couplings(graph, logits), biases)
        return jax.vmap(self.decoder)(x)[:, 0]
