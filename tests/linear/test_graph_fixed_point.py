"""Graph networks with a fixed point: contraction for any weights, exact fixed points, gradients."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nearly.core.errors import InputError
from nearly.linear.graph_fixed_point import (
    ConvergentGraphSolver,
    FixedPoint,
    Graph,
    contraction,
    softmax_contraction,
)
from nearly.linear.problems.graph_values import DISCOUNT, GraphValues, random_process

HEADS = 3
made = jax.jit(random_process, static_argnums=(1, 2))


@pytest.fixture(scope="module")
def graph() -> Graph:
    return made(jax.random.key(0), 6, 8).graph


def dense(graph: Graph, couplings: Any) -> np.ndarray:
    """The matrix that takes values from sources to targets, for each head."""
    n = graph.nodes.shape[0]
    matrix = np.zeros((couplings.shape[1], n, n))
    for edge in np.flatnonzero(np.asarray(graph.is_edge)):
        i, j = int(graph.targets[edge]), int(graph.sources[edge])
        matrix[:, i, j] += np.asarray(couplings[edge])
    return matrix


@pytest.mark.parametrize("couple", [contraction, softmax_contraction])
def test_couplings_contract_for_any_weights(graph: Graph, couple: Any) -> None:
    for seed in range(3):
        logits = 5 * jax.random.normal(jax.random.key(seed), (graph.sources.size, HEADS))
        matrix = dense(graph, couple(graph, logits))
        assert np.all(np.abs(matrix).sum(axis=1) <= 1 + 1e-6)  # the norm in which it is iterated
        assert np.all(matrix >= 0)


def test_softmax_shares_out_one(graph: Graph) -> None:
    logits = jax.random.normal(jax.random.key(1), (graph.sources.size, 1))
    sums = dense(graph, softmax_contraction(graph, logits))[0].sum(axis=0)
    leaves = np.asarray(graph.out_degrees()) > 0
    np.testing.assert_allclose(sums[leaves], 1, rtol=1e-5)


def test_fixed_points_and_gradients_are_those_of_a_dense_solve(graph: Graph) -> None:
    with jax.enable_x64(True):
        layer = FixedPoint(tolerance=1e-13, most=60)
        n, e = graph.nodes.shape[0], graph.sources.size
        logits = jax.random.uniform(jax.random.key(2), (e, HEADS), jnp.float64, 0.1, 0.9)
        biases = jax.random.normal(jax.random.key(3), (n, HEADS), jnp.float64)
        weights = jax.random.normal(jax.random.key(4), (n, HEADS), jnp.float64)
        wide = jax.tree.map(
            lambda x: x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x, graph
        )

        def by_iteration(logits: Any, biases: Any) -> Any:
            return jnp.sum(weights * layer(wide, contraction(wide, logits), biases))

        def by_dense_solve(logits: Any, biases: Any) -> Any:
            c = jnp.where(wide.is_edge[:, None], contraction(wide, logits), 0)
            a = jnp.zeros((HEADS, n, n)).at[:, wide.targets, wide.sources].add(c.T)
            x = jnp.linalg.solve(jnp.eye(n) - layer.gamma * a, biases.T[..., None])[..., 0].T
            return jnp.sum(weights * x)

        values = [
            jax.value_and_grad(f, (0, 1))(logits, biases) for f in (by_iteration, by_dense_solve)
        ]
        for mine, theirs in zip(
            jax.tree.leaves(values[0]), jax.tree.leaves(values[1]), strict=True
        ):
            np.testing.assert_allclose(mine, theirs, rtol=1e-8, atol=1e-10)


def test_rounds_are_bounded_whatever_the_weights(graph: Graph) -> None:
    layer = FixedPoint()
    assert layer.rounds == 20  # log(1e-6) / log(0.5), rounded up
    for scale in (0.1, 10.0):
        logits = scale * jax.random.normal(jax.random.key(5), (graph.sources.size, HEADS))
        biases = jax.random.uniform(jax.random.key(6), (graph.nodes.shape[0], HEADS), minval=-1)
        _, rounds = layer.solve(graph, contraction(graph, logits), biases)
        assert rounds <= layer.rounds + 2  # two more where the 1-norm starts above one


def test_a_nonlinearity_of_slope_one_still_contracts(graph: Graph) -> None:
    layer = FixedPoint(nonlinearity=jnp.tanh, tolerance=1e-5)
    logits = jax.random.normal(jax.random.key(7), (graph.sources.size, HEADS))
    biases = jax.random.normal(jax.random.key(8), (graph.nodes.shape[0], HEADS))
    couplings = contraction(graph, logits)
    x = layer(graph, couplings, biases)
    np.testing.assert_allclose(layer.step(x, graph, couplings, biases), x, atol=1e-4)


def test_answers_move_with_the_nodes_and_ignore_padding() -> None:
    process = made(jax.random.key(1), 5, 5)
    network = ConvergentGraphSolver(1, 1, jax.random.key(0), heads=2, width=4, decoder=(4,))
    plain = eqx.filter_jit(network)(process.graph)
    order = np.array([3, 1, 4, 0, 2])  # new name of each node
    graph = process.graph
    renamed = Graph(
        jnp.asarray(order)[graph.sources],
        jnp.asarray(order)[graph.targets],
        graph.nodes,
        graph.edges,
        graph.is_node,
        graph.is_edge,
    )
    np.testing.assert_allclose(eqx.filter_jit(network)(renamed)[order], plain, rtol=1e-4, atol=1e-5)
    noisy = eqx.tree_at(lambda g: g.edges, graph, jnp.where(graph.is_edge[:, None], graph.edges, 9))
    np.testing.assert_allclose(eqx.filter_jit(network)(noisy), plain, rtol=1e-5, atol=1e-6)


def test_values_satisfy_bellmans_equation() -> None:
    process = made(jax.random.key(2), 20, 30)
    graph = process.graph
    ends = np.asarray(graph.sources).reshape(30, -1)
    gains = np.asarray(graph.edges).reshape(30, -1) + DISCOUNT * np.asarray(process.values)[ends]
    gains[~np.asarray(graph.is_edge).reshape(30, -1)] = -np.inf
    inside = np.asarray(graph.is_node)
    np.testing.assert_allclose(gains.max(axis=1)[inside], process.values[inside], rtol=1e-5)


def test_the_problem_judges_the_truth_as_right() -> None:
    problem = GraphValues(nodes=12, graphs=3)
    errors = problem.errors(problem.tests.values)
    assert errors == {"mean relative error": 0.0, "wrong moves": 0.0}
    assert problem.errors(problem.tests.values[:, ::-1])["wrong moves"] > 0.3


def test_what_does_not_contract_is_refused() -> None:
    with pytest.raises(InputError, match="gamma = 1"):
        FixedPoint(gamma=1.0)
    with pytest.raises(InputError, match="most = 0"):
        FixedPoint(most=0)
    with pytest.raises(InputError, match="heads 0"):
        ConvergentGraphSolver(1, 1, jax.random.key(0), heads=0)
    with pytest.raises(InputError, match="nodes 0"):
        GraphValues(nodes=0)
