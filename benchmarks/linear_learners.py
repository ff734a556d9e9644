"""Learners over sequences of systems, and graph networks: what they cost beside the plain ones.

    python benchmarks/linear_learners.py [NAME ...]

Ratios are medians of alternating pairs in one process, after compilation, equal threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from alternating import Row, main, pairs

from nearly.linear import autotune
from nearly.linear.graph_peers import EncodedGraph, UnrolledGraph, convergent
from nearly.linear.problems.graph_values import random_process
from nearly.linear.problems.sequence import (
    Fixed,
    SystemSequence,
    heat2d_sequence,
    shifted_poisson_sequence,
)

PAIRS = 7
TOLERANCE = 1e-8


def decisions() -> Iterator[Row]:
    """A choice and an update, without the solve, beside one SOR iteration on the 25 x 25 grid."""
    systems = heat2d_sequence().systems
    before = systems.start("float64")
    system = systems.system(jnp.asarray(0), before, jax.random.key(0))
    sweep = eqx.tree_at(lambda s: s.max_steps, autotune.sor(jnp.asarray(1.5)), 1)
    rounds = 100

    @jax.jit
    def sweeps(y: Any) -> Any:
        def once(y: Any, _: None) -> Any:
            return sweep.compute(sweep.init(system.operator, {}), system.side, {"y0": y})[0], None

        return jax.lax.scan(once, y, None, length=rounds)[0]

    for name in ("tsallis_sor", "binned_sor", "chebyshev_sor"):
        learner = getattr(autotune, name)(systems)

        @jax.jit
        def choices(state: Any, learner: Any = learner) -> Any:
            def once(state: Any, _: None) -> Any:
                _, state = learner.suggest(state, system.context)
                return learner.update(state, jnp.asarray(20.0)), None

            return jax.lax.scan(once, state, None, length=rounds)[0]

        state = learner.init(jax.random.key(0))
        row = pairs(lambda c=choices, s=state: c(s), lambda: sweeps(before), PAIRS).row
        yield {"100 decisions of / 100 SOR sweeps": name, **row}


def sequences() -> Iterator[Row]:
    """A whole sequence of 500 systems to 1e-8, the learner's own time included."""
    for problem in (heat2d_sequence(length=500), shifted_poisson_sequence(length=500)):
        learned = _solve(problem, autotune.tsallis_sor(problem.systems))
        for factor in (1.0, 1.5, 1.9):
            fixed = _solve(problem, Fixed(autotune.sor(jnp.asarray(factor, "float64"))))
            yield {
                "sequence": problem.name,
                "learned / fixed factor": factor,
                **pairs(learned, fixed, PAIRS).row,
            }


def _solve(problem: SystemSequence, learner: Any) -> Callable[[], Any]:
    standin = problem.build(learner, TOLERANCE, key=jax.random.key(0))
    apply = eqx.filter_jit(problem.apply)
    return lambda: apply(standin, key=jax.random.key(1))


def graph_networks() -> Iterator[Row]:
    """The values of 32 random decision processes of 100 states, and their parameter gradient."""
    keys = jax.random.split(jax.random.key(0), 32)
    batch = jax.vmap(lambda k: random_process(k, 80, 100))(keys)
    rivals = {"ten tied rounds": UnrolledGraph, "no rounds": EncodedGraph}
    fixed = convergent(1, 1, jax.random.key(1))
    for name, make in rivals.items():
        rival = make(1, 1, jax.random.key(1))
        for what, of in (("values", _values), ("gradient", _gradient)):
            row = pairs(of(fixed, batch), of(rival, batch), PAIRS).row
            yield {"what": what, "fixed point / peer": name, **row}


def _values(network: Any, batch: Any) -> Callable[[], Any]:
    run = eqx.filter_jit(lambda n, graphs: jax.vmap(n)(graphs))
    return lambda: run(network, batch.graph)


def _gradient(network: Any, batch: Any) -> Callable[[], Any]:
    run = eqx.filter_jit(
        eqx.filter_grad(lambda n, b: jnp.mean((jax.vmap(n)(b.graph) - b.values) ** 2))
    )
    return lambda: run(network, batch)


BENCHMARKS: dict[str, Callable[[], Iterable[Row]]] = {
    "decisions": decisions,
    "sequences": sequences,
    "graph-networks": graph_networks,
}


if __name__ == "__main__":
    with jax.enable_x64(True):
        main(BENCHMARKS, __doc__)
