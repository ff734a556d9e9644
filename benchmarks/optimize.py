"""The optimize room beside its peers: what an update costs, and what a minimum costs.

    python benchmarks/optimize.py [NAME ...]

Ratios are medians of alternating pairs in one process, after compilation, equal threads.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from alternating import Row, main, milliseconds, pairs

from nearly.core import catalogue
from nearly.core.lazy import load
from nearly.core.measure import prepare
from nearly.optimize.problems.finite_sum import FiniteSum, WithRate
from nearly.optimize.problems.tasks import Classifier

LAYERS, WIDTH, BATCH = 16, 250, 16
PAIRS, UPDATES, STEPS = 15, 60, 20
RATE = 1e-3


def network() -> FiniteSum:
    """16 layers of 250 x 250 and their biases, 1,004,000 parameters, on random samples."""
    random = np.random.default_rng(0)
    inputs = random.normal(size=(BATCH, WIDTH)).astype(np.float32)
    targets = random.integers(0, WIDTH, BATCH).astype(np.int32)
    return FiniteSum(
        task=Classifier((WIDTH,) * (LAYERS + 1)),
        inputs=inputs,
        targets=targets,
        test_inputs=inputs,
        test_targets=targets,
        batch=0,
    )


def optimizers(problem: FiniteSum) -> Iterator[tuple[str, Any]]:
    """Every catalogued transformation with one learning rate, or why it cannot run."""
    for name, line in catalogue.methods("optax").items():
        try:
            method = load(line.target).factory(learning_rate=RATE)
            yield name, problem.build(method, STEPS, key=jax.random.key(0))[0]
        except ImportError as error:
            yield name, error


# ------------------------------------------------------------------ updates alone


class Updates:
    """An optimizer at work on fixed gradients, its state donated as a training loop does.

    `value`, `value_fn` and their derivatives are next to free: the loss is one parameter.
    """

    def __init__(self, method: Any, problem: FiniteSum) -> None:
        optimizer = optax.with_extra_args_support(method())
        start = eqx.filter(problem.task.start(jax.random.key(0)), eqx.is_inexact_array)
        self.params = start
        self.grads = jax.tree.map(
            lambda p: 1e-2 * jnp.cos(jnp.arange(p.size)).reshape(p.shape), start
        )
        self.state = jax.tree.map(jnp.copy, optimizer.init(start))

        def loss(params: Any, *_: Any, **__: Any) -> Any:
            return jax.tree.leaves(params)[0].ravel()[0]

        @partial(jax.jit, donate_argnums=1)
        def update(grads: Any, state: Any, params: Any) -> Any:
            return optimizer.update(
                grads, state, params, value=loss(params), grad=grads, value_fn=loss, obj_fn=loss
            )

        self.update = update

    def __call__(self) -> Any:
        updates, self.state = self.update(self.grads, self.state, self.params)
        return updates


def update() -> Iterator[Row]:
    """Milliseconds of an update of 1e6 parameters, gradient and Hessian products not counted.

    Adam's stands beside each. The mean and the longest of 60 updates show what is done now and
    then: the refreshes of preconditioners. What needs the model's layers or outputs is in
    `training`.
    """
    problem = network()
    adam = Updates(WithRate(optax.adam, jnp.float32(RATE)), problem)
    for name, method in optimizers(problem):
        if isinstance(method, ImportError):
            yield {"method": name, "over adam's": f"not run: {method}"}
            continue
        try:
            ours = Updates(method, problem)
            ours()
        except (KeyError, TypeError, ValueError):  # it needs what only a model can give
            yield {"method": name, "over adam's": "see training: it needs the model"}
            continue
        found = pairs(ours, adam, PAIRS)
        many = [milliseconds(ours) for _ in range(UPDATES)]
        yield {
            "method": name,
            "ms": found.ours,
            "adam's ms": found.theirs,
            "over adam's": found.ratio,
            "95%": f"{found.low:.2f} to {found.high:.2f}",
            "mean ms": statistics.mean(many),
            "longest ms": max(many),
        }


# ------------------------------------------------------------------ whole steps


def training() -> Iterator[Row]:
    """Milliseconds of a training step, batch of 16, gradient and all oracle calls counted.

    The first step apart, with the optimizer's set-up and first refresh, then the mean of 20 more.
    """
    problem = network()
    adam = steps_of(problem, WithRate(optax.adam, jnp.float32(RATE)))
    for name, method in optimizers(problem):
        if isinstance(method, ImportError):
            yield {"method": name, "over adam's": f"not run: {method}"}
            continue
        one, many = steps_of(problem, method)
        first = pairs(one, adam[0], 3).ours
        whole = pairs(many, adam[1], 3)
        yield {
            "method": name,
            "first ms": first,
            "later ms": (whole.ours - first) / STEPS,
            "over adam's": whole.ratio,
            "95%": f"{whole.low:.2f} to {whole.high:.2f}",
        }


def steps_of(problem: FiniteSum, method: Any) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """A run of one step, and one of 20 more."""
    run = eqx.filter_jit(lambda p, m, s: p.apply((m, s), key=jax.random.key(0)))
    return tuple(partial(run, problem, method, jnp.asarray(n)) for n in (1, 1 + STEPS))  # type: ignore


# ------------------------------------------------------------------ minimisers

SMOOTH = ("logreg-breast-cancer", "logsumexp", "cubic-chain", "rosenbrock-100", "chebyshev-chain")
OURS = ("gradient-normalized-newton", "lazy-cubic-newton", "lazy-regularized-newton")
CONVEX = ("universal-newton",)
PEERS = ("optimistix-bfgs", "scipy-bfgs", "scipy-lbfgs", "scipy-trust-exact")
TARGET = 1e-8


def newton() -> Iterator[Row]:
    """Milliseconds to an excess of 1e-8: our Newton minimisers beside BFGS and SciPy's, float64."""
    for name in SMOOTH:
        problem = catalogue.problem(name)
        ours = OURS + (() if name in ("rosenbrock-100", "chebyshev-chain") else CONVEX)
        with jax.enable_x64(True):
            uses = {
                m: cheapest(problem, catalogue.method(m, "minimisers")[0]) for m in ours + PEERS
            }
            for method in ours:
                yield from beside(name, method, uses)


def beside(problem: str, method: str, uses: dict[str, Any]) -> Iterator[Row]:
    """One of ours beside each peer."""
    for peer in PEERS:
        row = {"problem": problem, "ours": method, "peer": peer}
        missing = [m for m in (method, peer) if uses[m] is None]
        if missing:
            yield row | {"ours / peer": f"{missing[0]} does not reach {TARGET}"}
        else:
            yield row | pairs(uses[method], uses[peer], 7).row


def cheapest(problem: Any, method: Any) -> Callable[[], Any] | None:
    """A use at the loosest dial that reaches the target."""
    for dial in problem.dials(method):
        use = prepare(problem, problem.build(method, dial, key=None), jax.random.key(0))
        if problem.errors(jax.device_get(use()))[problem.error_name] <= TARGET:
            return use
    return None


BENCHMARKS: dict[str, Callable[[], Iterator[Row]]] = {
    "update": update,
    "training": training,
    "newton": newton,
}


if __name__ == "__main__":
    main(BENCHMARKS, __doc__)
