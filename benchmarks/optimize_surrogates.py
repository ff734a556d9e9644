"""Optimizers that save gradients, in seconds: what their own work costs, and where it pays.

    python benchmarks/optimize_surrogates.py [NAME ...]

Ratios are medians of alternating pairs in one process, after compilation, equal threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from alternating import Row, main, pairs

from nearly.optimize.parallel_iterations import optex
from nearly.optimize.problems.finite_sum import FiniteSum, WithRate
from nearly.optimize.problems.imitation import imitation_control
from nearly.optimize.problems.sums import autoencoder_digits
from nearly.optimize.subspace import fosi_adam, fosi_heavy_ball
from nearly.optimize.target_space import target_surrogates

STEPS = 100
RATES = tuple(float(rate) for rate in np.geomspace(1e-3, 1, 7))


def run_of(problem: FiniteSum, method: WithRate, steps: int) -> Callable[[], Any]:
    """A compiled training run."""
    standin = problem.build(method, steps, key=None)
    apply = eqx.filter_jit(lambda p, s: p.apply(s, key=jax.random.key(0)))
    return partial(apply, problem, standin)


def _heavy_ball(rate: Any) -> Any:
    return optax.sgd(rate, momentum=0.9)


def _optex_adam(rate: Any) -> Any:
    return optex(optax.adam(rate))


def amortised() -> Iterator[Row]:
    """100 steps of the digits' autoencoder, refreshes counted, over 100 of the base.

    FOSI looks at the Hessian once in them; a round of OptEx has 5 gradients.
    """
    problem = autoencoder_digits()
    cases: tuple[tuple[str, Any, Any], ...] = (
        ("fosi-adam", partial(fosi_adam, warmup=0), optax.adam),
        ("fosi-heavy-ball", partial(fosi_heavy_ball, warmup=0), _heavy_ball),
        ("optex-adam", _optex_adam, optax.adam),
    )
    for name, ours, base in cases:
        both = [run_of(problem, WithRate(make, jnp.float32(1e-3)), STEPS) for make in (ours, base)]
        yield {"method": name, **pairs(both[0], both[1], 7).row}


def dear() -> Iterator[Row]:
    """Milliseconds of imitation until what tuned Adam reaches in 300 steps."""
    problem = imitation_control()
    adam = _best(problem, optax.adam, 300)
    target = _loss(problem, adam, 300)
    for inner in (3, 10, 30):
        own = _best(problem, partial(target_surrogates, inner_steps=inner), 100)
        reached = (n for n in (10, 20, 40, 80, 150, 300) if _loss(problem, own, n) <= target)
        steps = next(reached, None)
        row = {"inner steps": inner, "eta": float(own.learning_rate), "steps": steps or "never"}
        if steps is None:
            yield row
        else:
            ours, theirs = run_of(problem, own, steps), run_of(problem, adam, 300)
            yield {**row, **pairs(ours, theirs, 7).row}


def _best(problem: FiniteSum, make: Any, steps: int) -> WithRate:
    methods = [WithRate(make, rate) for rate in RATES]
    errors = problem.trials(methods, steps, key=jax.random.key(1))
    return methods[int(np.nanargmin(np.asarray(errors, float)))]


def _loss(problem: FiniteSum, method: WithRate, steps: int) -> float:
    value = jax.device_get(run_of(problem, method, steps)())
    return problem.errors(value)[problem.error_name]


BENCHMARKS: dict[str, Callable[[], Iterator[Row]]] = {"amortised": amortised, "dear": dear}


if __name__ == "__main__":
    main(BENCHMARKS, __doc__)
