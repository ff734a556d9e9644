"""Graph networks with a fixed point, beside the same networks without one."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from nearly.core.claim import Expected, claim
from nearly.core.compare import compare
from nearly.linear.graph_fixed_point import FixedPoint, contraction
from nearly.linear.problems.graph_values import GraphValues, random_process

STEPS = 600
SEEDS = (0, 1, 2)


@claim(
    "convergent-graph-solvers",
    "converges-for-any-weights",
    cost="fast",
    expected=Expected(
        "most rounds to a change of 1e-6 at gamma = 1/2 over 64 random graphs and couplings, with "
        "fixed points of norm one or less",
        "<=",
        21,
        "derived: a round halves the error, log(1e-6) / log(1/2) rounded up, and one to see it",
    ),
)
def most_rounds() -> float:
    layer = FixedPoint()

    @jax.jit
    @jax.vmap
    def rounds(key: Any) -> Any:
        for_graph, for_scale, for_logits, for_biases = jax.random.split(key, 4)
        graph = random_process(for_graph, 20, 50).graph
        scale = 10 ** jax.random.uniform(for_scale, minval=-2, maxval=2)
        logits = scale * jax.random.normal(for_logits, (graph.sources.size, 4))
        biases = jax.random.uniform(for_biases, (graph.nodes.shape[0], 4), minval=-1)
        biases = biases / jnp.sum(jnp.abs(biases), axis=0)
        return layer.solve(graph, contraction(graph, logits), biases)[1]

    return float(jnp.max(rounds(jax.random.split(jax.random.key(0), 64))))


def _errors(method: str) -> list[float]:
    frontier = compare(GraphValues(nodes=100), [method], dials=[STEPS], seeds=SEEDS, timed=False)
    (run,) = frontier.runs
    return [trial.errors["mean relative error"] for trial in run.trials]


@claim(
    "convergent-graph-solvers",
    "more-accurate-on-larger-graphs-than-without-a-fixed-point",
    cost="slow",
    expected=Expected(
        "mean relative error in the values of 32 decision processes of 100 states over that of the "
        "better of two peers of as many parameters (the same encoder and decoder alone; a round "
        "unrolled ten times), all trained for 600 steps on 20 to 50 states",
        "<=",
        1.0,
        'abstract: "competitive capabilities for predicting the stationary properties of graph '
        'systems"; competitive is no worse than without the fixed point',
        scaled="16 heads and width 32 instead of 64, 600 steps instead of 5,000, cosine decay to "
        "zero instead of restarts, fresh graphs at every step",
    ),
    limits="after 600 steps the network has not learnt what to iterate: couplings clipped at 0 "
    "have no gradient, and half of them start there",
)
def larger_graphs() -> list[float]:
    ours, *peers = (_errors(m) for m in ("convergent-graph", "encoded-graph", "unrolled-graph"))
    return [a / min(b, c) for a, b, c in zip(ours, *peers, strict=True)]
