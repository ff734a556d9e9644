"""Optimizers with factors for every layer, beside Adam: milliseconds per step, all costs amortised.

    python benchmarks/optimize_factors.py [NAME...]

Ratios are medians of pairs that alternate between the two in one process, after compilation, with
the 95% interval of that median: a busy machine harms both alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from alternating import Row, main, pairs

from nearly.curvature.batches import capture_function
from nearly.curvature.objective import CrossEntropy
from nearly.optimize import kfac, mkor
from nearly.training.architectures import mlp

SIZES = (512, 768, 512, 512)  # 1.05 million parameters
BATCH = 64
PERIOD = 10  # steps, in which everything that is done every so often is done once


def updates() -> list[Row]:
    """Updates alone, for gradients that are given: one look and one refresh in every 10 steps."""
    return _rows(with_gradients=False)


def steps() -> list[Row]:
    """Whole steps: the gradient of a batch of 64, and the update."""
    return _rows(with_gradients=True)


def _rows(*, with_gradients: bool) -> list[Row]:
    adam = _run(optax.adam(1e-3), with_gradients=with_gradients)
    rows: list[Row] = []
    for name, optimizer in {
        "mkor over SGD": mkor(optax.sgd(1e-3, momentum=0.9)),
        "kfac": kfac(1e-3, key=jax.random.key(0)),
        "sgd with momentum": optax.sgd(1e-3, momentum=0.9),
    }.items():
        found = pairs(_run(optimizer, with_gradients=with_gradients), adam, 9)
        rows.append(
            {
                "optimizer": name,
                "ms per step": found.ours / PERIOD,
                "Adam's": found.theirs / PERIOD,
                "ours / Adam's": found.ratio,
                "95%": f"{found.low:.3g} to {found.high:.3g}",
            }
        )
    return rows


def _run(optimizer: Any, *, with_gradients: bool) -> Callable[[], Any]:
    """A period of training steps."""
    optimizer = optax.with_extra_args_support(optimizer)
    model = mlp(SIZES, jax.random.key(0), jnp.tanh)
    params, rest = eqx.partition(model, eqx.is_inexact_array)
    inputs = jax.random.normal(jax.random.key(1), (BATCH, SIZES[0]))
    labels = jax.random.randint(jax.random.key(2), (BATCH,), 0, SIZES[-1])

    def loss(params: Any) -> Any:
        outputs = jax.vmap(eqx.combine(params, rest))(inputs)
        return jnp.mean(jax.vmap(CrossEntropy())(outputs, labels))

    fixed = jax.jit(jax.grad(loss))(params)

    @jax.jit
    def period(params: Any, state: Any, gradient: Any) -> Any:
        def step(carry: Any, _: None) -> tuple[Any, None]:
            params, state = carry
            now = jax.grad(loss)(params) if with_gradients else gradient
            model = eqx.combine(params, rest)
            seen = capture_function(model, CrossEntropy(), inputs, labels)
            changes, state = optimizer.update(now, state, params, capture_fn=seen)
            return (optax.apply_updates(params, changes), state), None

        return jax.lax.scan(step, (params, state), length=PERIOD)[0]

    state = optimizer.init(params)
    return lambda: period(params, state, fixed)


BENCHMARKS: dict[str, Callable[[], list[Row]]] = {"updates": updates, "steps": steps}

if __name__ == "__main__":
    main(BENCHMARKS, __doc__)
