"""What a field in pieces costs: the whole network, one piece, all pieces, and the solver.

    python benchmarks/operator_pieces.py [NAME...]

No package implements NeuralStagger: its rival is the solver on the coarse grid. Ratios are medians
of pairs that alternate in one process, after compilation, with the 95% interval of that median;
with one thread: `taskset -c 0 python benchmarks/operator_pieces.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from alternating import Row, main, pairs

from nearly.operators.stagger import Staggered, decompose, staggered
from nearly.pde.semilinear import Burgers, integrate

POINTS, BATCH, FINE_STEP, PAIRS = 64, 16, 0.01, 21
EQUATION = Burgers(0.03)


def fields_in_pieces() -> list[Row]:
    """Two fine steps of time of 16 fields of 64 x 64 points, float32; milliseconds a batch."""
    fields = jax.random.normal(jax.random.key(0), (BATCH, 1, POINTS, POINTS))
    whole, pieces = _networks((1, 1), 1), _networks((2, 2), 2)
    coarse = fields[:, :, ::2, ::2]
    rivals: dict[str, Callable[[], Any]] = {
        "one piece of eight (a device for each)": _one_piece(pieces, fields),
        "all eight pieces": _steps(pieces, fields, 1),
        "solver, same points": _solver(fields),
        "solver, half the points": _solver(coarse),
    }
    ours = _steps(whole, fields, 2)
    rows: list[Row] = []
    for name, rival in rivals.items():
        measured = pairs(ours, rival, PAIRS)
        rows.append(
            {
                "beside the whole network": name,
                "whole ms": measured.ours,
                "this ms": measured.theirs,
                "whole over this": measured.ratio,
                "95%": f"{measured.low:.2f} to {measured.high:.2f}",
            }
        )
    return rows


def _networks(strides: tuple[int, int], frames: int) -> Staggered:
    make = eqx.filter_jit(lambda key: staggered(1, key, strides=strides, frames=frames))
    return make(jax.random.key(1))


def _steps(model: Staggered, fields: Any, calls: int) -> Callable[[], Any]:
    @eqx.filter_jit
    def run(model: Staggered, fields: Any) -> Any:
        for _ in range(calls):
            fields = jax.vmap(model)(fields)
        return fields

    return lambda: run(model, fields)


def _one_piece(model: Staggered, fields: Any) -> Callable[[], Any]:
    """One network for one frame on one coarse field: what each of the devices does."""
    arrays, rest = eqx.partition(model.networks, eqx.is_array)
    network = eqx.combine(jax.tree.map(lambda x: x[0, 0], arrays), rest)
    own = jax.vmap(lambda field: decompose(field, (2, 2))[0])(fields)
    run = eqx.filter_jit(lambda network, own: jax.vmap(lambda x: x + network(x))(own))
    return lambda: run(network, own)


def _solver(fields: Any) -> Callable[[], Any]:
    def one(field: Any) -> Any:
        return integrate(EQUATION, field[0], dt=FINE_STEP, steps=2, every=2)

    run = jax.jit(jax.vmap(one))
    return lambda: run(0.1 * jnp.asarray(fields))


BENCHMARKS: dict[str, Callable[[], list[Row]]] = {"fields_in_pieces": fields_in_pieces}


if __name__ == "__main__":
    main(BENCHMARKS, __doc__)
