"""What `stde` promises: unbiased, at a cost that does not know the dimension."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nearly.core.claim import Expected, claim
from nearly.derivatives import operator_peers
from nearly.derivatives.mixed_partials import polarised, shaped
from nearly.derivatives.operators import Operator, laplacian
from nearly.derivatives.pinn import BallPoints, ball_network, single_sample_residual_loss
from nearly.derivatives.problems.operators import DerivativeOperator
from nearly.derivatives.samplers import GAUSSIAN, Dense, Sampler, Sparse
from nearly.derivatives.stde import Estimate, stde

DRAWS = 2000
SAMPLERS: dict[str, tuple[Sampler, ...]] = {
    "laplacian_mlp": (Sparse(4), Dense(4)),
    "allen_cahn_twobody": (Sparse(4), Dense(4)),
    "biharmonic": (Sparse(4), Dense(4, GAUSSIAN)),
    "kdv_highorder": (Sparse(4),),
}


@claim(
    "stde",
    "unbiased-for-four-operators",
    cost="medium",
    expected=Expected(
        "distance of the mean of 2000 estimates from the truth in standard errors of that mean, "
        "the largest over Laplacian, Allen-Cahn two-body, biharmonic and KdV-type operator, "
        "sparse and dense directions",
        "<=",
        3.0,
        "derived: the estimators are unbiased (the paper's section 4), so the mean lies within "
        "three of its standard errors",
    ),
)
def unbiased() -> list[float]:
    cases = [(case, sampler) for case, samplers in SAMPLERS.items() for sampler in samplers]
    return [max(_deviation(*case, seed) for case in cases) for seed in range(3)]


def _deviation(name: str, sampler: Sampler, seed: int) -> float:
    with jax.enable_x64(True):
        problem = DerivativeOperator(name, dimension=12)
        case, x = problem.function(), problem.points()[0]
        estimator = stde(case.operator(), sampler)(case)
        keys = jax.random.split(jax.random.key(seed), DRAWS)
        draws = jax.jit(jax.vmap(lambda k: case.complete(estimator(jnp.asarray(x), k))))(keys)
        found = np.asarray(draws)
    return float(abs(found.mean() - case.truth(x)) / (found.std(ddof=1) / DRAWS**0.5))


# ------------------------------------------------------------------ cost against dimension


def _loss(block: int) -> Callable[..., Any]:
    return single_sample_residual_loss(laplacian(), lambda found, x: found.value, Sparse(block))


def _analysis(program: Any, dimension: int, points: int) -> Any:
    """A program of a network and points, compiled from shapes alone: nothing is allocated."""
    model = jax.eval_shape(lambda k: ball_network(dimension, k), jax.random.key(0))
    batch = jax.eval_shape(BallPoints(points, dimension), jax.random.key(0))
    return jax.jit(program).lower(model, batch, jax.random.key(0)).compile()


def _flops(directions: int, dimension: int) -> float:
    compiled = _analysis(jax.grad(_loss(directions)), dimension, points=2)
    return float(compiled.cost_analysis()["flops"])


@claim(
    "stde",
    "a-direction-costs-the-same-in-a-million-dimensions",
    cost="medium",
    expected=Expected(
        "flops of 8 more directions in the gradient of the Laplacian's squared residual, "
        "4 layers of 128: in 10^6 dimensions over in 10^3",
        "within",
        (0.9, 1.1),
        "derived: a direction along an axis moves the first layer by one column of its matrix",
    ),
)
def cost_per_direction() -> float:
    in_a_million, in_a_thousand = (_flops(24, d) - _flops(16, d) for d in (10**6, 10**3))
    return in_a_million / in_a_thousand


@claim(
    "stde",
    "memory-is-linear-in-the-dimension",
    cost="medium",
    expected=Expected(
        "bytes of the compiled gradient of the squared residual, 16 directions, per dimension: "
        "in 10^6 dimensions over in 10^4",
        "<=",
        1.0,
        "derived: weights, gradient and points are proportional to d, all else does not grow",
    ),
)
def memory_per_dimension() -> float:
    in_a_million, in_ten_thousand = (_bytes(stde_step, d, 2) / d for d in (10**6, 10**4))
    return in_a_million / in_ten_thousand


def _bytes(program: Any, dimension: int, points: int) -> float:
    memory = _analysis(program, dimension, points).memory_analysis()
    return float(memory.temp_size_in_bytes + memory.output_size_in_bytes)


# ------------------------------------------------------------------ against first-order AD

DIRECTIONS = 16
stde_step = jax.grad(_loss(DIRECTIONS))


def _published_sdgd(operator: Operator, directions: int) -> Callable[..., Any]:
    """SDGD as published: for each sampled axis a reverse pass through a reverse pass."""

    def transformation(f: Any) -> Any:
        def estimate(x: Any, key: Any) -> Estimate:
            axes = jax.random.choice(key, x.size, (directions,), replace=False)

            def entry(i: Any) -> Any:
                return jax.grad(lambda y: jax.grad(f)(y)[i])(x)[i]

            total = x.size * jnp.mean(jax.vmap(entry)(axes))
            return Estimate(total, jnp.zeros_like(total), f(x), 0)

        return estimate

    return transformation


def _step_of(transformation: Callable[..., Any]) -> Callable[..., Any]:
    def loss(model: Any, points: Any, key: Any) -> Any:
        keys = jax.random.split(key, len(points))
        return jnp.mean(jax.vmap(lambda x, k: transformation(model)(x, k).value ** 2)(points, keys))

    return jax.grad(loss)


sdgd_step = _step_of(_published_sdgd(laplacian(), DIRECTIONS))


@claim(
    "stde",
    "thirty-times-less-memory-than-first-order-randomisation",
    cost="medium",
    expected=Expected(
        "temporary and output bytes of one training step of SDGD with reverse-over-reverse AD "
        "over those of sparse STDE, 16 directions, 100 points, 4 layers of 128, d = 10^5",
        ">=",
        30.0,
        "abstract: more than 30 times less memory than randomisation with first-order AD",
        scaled="as planned by XLA for a CPU, d = 10^5, from shapes alone",
    ),
    limits="The gradient's own d x 128 numbers, which any method has to hold, are three quarters "
    "of what STDE takes here; of temporaries alone it takes 100 times less.",
)
def memory_ratio() -> float:
    return _bytes(sdgd_step, 10**5, 100) / _bytes(stde_step, 10**5, 100)


@claim(
    "stde",
    "a-thousand-times-faster-than-first-order-randomisation",
    cost="slow",
    expected=Expected(
        "seconds of one training step of SDGD with reverse-over-reverse AD over those of sparse "
        "STDE, alternating, the median of 5; 16 directions, 4 points, 4 layers of 128, d = 10^5",
        ">=",
        1000.0,
        "abstract: more than 1000 times faster than randomisation with first-order AD",
        scaled="2 CPU cores instead of a GPU, 4 points instead of 100, d = 10^5",
    ),
    limits="On a CPU both read the d x 128 weights and write their gradient, and the rival's extra "
    "passes share one batched product: it costs 37 times the flops, not a thousand times.",
)
def speed_ratio() -> float:
    dimension, key = 10**5, jax.random.key(0)
    model, points = ball_network(dimension, key), BallPoints(4, dimension)(key)
    steps = [jax.jit(step) for step in (sdgd_step, stde_step)]
    for step in steps:
        jax.block_until_ready(step(model, points, key))
    pairs = [[_seconds(step, model, points, key) for step in steps] for _ in range(5)]
    return statistics.median(theirs / ours for theirs, ours in pairs)


def _seconds(step: Any, *arguments: Any) -> float:
    start = time.perf_counter()
    jax.block_until_ready(step(*arguments))
    return time.perf_counter() - start


@claim(
    "stde",
    "at-the-second-order-a-pass-for-every-axis-is-saved",
    cost="medium",
    expected=Expected(
        "flops of one training step of the better rival, Hessian-vector products forward over "
        "reverse along 16 axes, over those of sparse STDE; 4 layers of 128, d = 10^5",
        ">=",
        16.0,
        "derived: a Hessian-vector product passes through the d x 128 layer for every axis, a "
        "direction along an axis touches one of its columns",
    ),
)
def flops_ratio() -> float:
    fair = _step_of(operator_peers.sdgd(laplacian(), DIRECTIONS))
    rival, ours = (_analysis(s, 10**5, 2).cost_analysis()["flops"] for s in (fair, stde_step))
    return float(rival / ours)


# ------------------------------------------------------------------ mixed partials


@claim(
    "stde",
    "polarised-jets-cost-less-than-shaped-ones",
    cost="fast",
    expected=Expected(
        "series products of the paper's shaped jet over those of polarised jets, the smallest over "
        "all mixed partials of two or three variables and order up to 4",
        ">=",
        1.0,
        "derived: a jet of order k costs (k + 1)(k + 2)/2 products, and isolation needs k well "
        "above the order p while polarisation needs at most half of prod (a_i + 1) jets of order p",
    ),
)
def shaped_over_polarised() -> float:
    wanted = [(a, b) for a in range(1, 4) for b in range(1, 5 - a)]
    wanted += [(a, b, c) for a, b in wanted for c in range(1, 5 - a - b)]
    costs = [[sum(jet.cost for jet in how([e])) for how in (shaped, polarised)] for e in wanted]
    return min(theirs / ours for theirs, ours in costs)
