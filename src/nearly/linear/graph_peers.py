"""What graph networks with a fixed point are compared with: the same network without one."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nearly.linear.graph_fixed_point import ConvergentGraphSolver, Encoder, Graph, MessagePassing
from nearly.training.architectures import MLP, mlp

HEADS, WIDTH, ROUNDS, DECODER = 16, 32, 3, (64, 32)


def convergent(nodes: int, edges: int, key: Any) -> ConvergentGraphSolver:
    """The fixed-point network at a size that trains in a minute: 16 heads, width 32."""
    return ConvergentGraphSolver(
        nodes, edges, key, heads=HEADS, width=WIDTH, rounds=ROUNDS, decoder=DECODER
    )


class EncodedGraph(eqx.Module):
    """The encoder and the decoder with nothing between: it sees three edges far."""

    encoder: Encoder
    decoder: MLP

    def __init__(self, nodes: int, edges: int, key: Any) -> None:
        one, two = jax.random.split(key)
        self.encoder = Encoder(nodes, edges, WIDTH, HEADS, ROUNDS, one)
        self.decoder = mlp((HEADS, *DECODER, 1), two, activation=jax.nn.relu)

    def __call__(self, graph: Graph) -> Float[Array, " nodes"]:
        return jax.vmap(self.decoder)(self.encoder(graph)[1])[:, 0]


class UnrolledGraph(eqx.Module):
    """As many parameters as the fixed-point network, spent on a round that is done ten times.

    Between rounds a tanh keeps the nodes bounded; without it the sums over ten edges explode.
    """

    rounds: tuple[MessagePassing, ...]
    decoder: MLP
    repeats: int = eqx.field(default=10, static=True)

    def __init__(self, nodes: int, edges: int, key: Any, repeats: int = 10) -> None:
        last, *keys = jax.random.split(key, 1 + ROUNDS)
        sizes = [(nodes, edges)] + [(WIDTH, WIDTH)] * (ROUNDS - 1)
        self.rounds = tuple(
            MessagePassing(n, e, WIDTH, k) for (n, e), k in zip(sizes, keys, strict=True)
        )
        self.decoder = mlp((WIDTH, *DECODER, 1), last, activation=jax.nn.relu)
        self.repeats = repeats

    def __call__(self, graph: Graph) -> Float[Array, " nodes"]:
        nodes, edges = graph.nodes, graph.edges
        for each in self.rounds[:-1]:
            nodes, edges = each(graph, nodes, edges)
        tied = self.rounds[-1]

        def again(state: Any, _: None) -> Any:
            nodes, edges = tied(graph, *state)
            return (jnp.tanh(nodes), edges), None

        (nodes, _), _ = jax.lax.scan(again, (nodes, edges), None, length=self.repeats)
        return jax.vmap(self.decoder)(nodes)[:, 0]
