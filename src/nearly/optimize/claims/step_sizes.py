"""What AdaGrad-norm and Polyak's steps with momentum promise, rerun on quadratics and digits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from nearly.core.claim import Expected, claim
from nearly.optimize import adaptive
from nearly.optimize.claims.trained import trained, tuned
from nearly.optimize.problems.sums import softmax_digits

SEEDS = (0, 1, 2)

# ---- adagrad-norm-sgd

RATES = (1e-2, 1e-1, 1.0, 1e1, 1e2)
LANES = 32
# A chain of directions from steep to all but flat: convex, and in a finite time not strongly so.
CURVATURES = np.geomspace(1, 1e-6, 20)
START = np.full(20, 20**-0.5)
TIMES = (3_000, 10_000, 30_000, 100_000)


class Noise(NamedTuple):
    """Standard deviations of the gradients' noise: additive, and per norm of the gradient."""

    additive: float
    affine: float


def average_gaps(
    make: Callable[[Any], optax.GradientTransformation],
    noise: Noise,
    seed: int,
    times: tuple[int, ...],
) -> np.ndarray:
    """Excess of the average iterate at each time, for each rate and lane: `[times, rates, 32]`."""
    with jax.enable_x64(True):
        return _average_gaps(make, noise, seed, times)


def _average_gaps(
    make: Callable[[Any], optax.GradientTransformation],
    noise: Noise,
    seed: int,
    times: tuple[int, ...],
) -> np.ndarray:
    curvatures = jnp.asarray(CURVATURES)

    def value(x: Array) -> Array:
        return jnp.sum(curvatures * x**2) / 2

    def advance(rate: Array, carry: Any, step: Array) -> Any:
        x, state, total, key = carry
        exact = curvatures * x
        spread = jnp.sqrt(noise.additive**2 + noise.affine**2 * jnp.sum(exact**2))
        draw = jax.random.normal(jax.random.fold_in(key, step), x.shape, x.dtype)
        gradient = exact + spread / math.sqrt(x.size) * draw
        updates, state = make(rate).update(gradient, state, x)
        return x + updates, state, total + x, key

    def run(rate: Array, key: Any) -> Array:
        x = jnp.asarray(START)
        carry, found, done = (x, make(rate).init(x), jnp.zeros_like(x), key), [], 0
        for time in times:
            carry = jax.lax.fori_loop(done, time, lambda step, now: advance(rate, now, step), carry)
            found.append(value(carry[2] / time))
            done = time
        return jnp.stack(found)

    keys = jax.random.split(jax.random.key(seed), LANES)
    every = jax.vmap(jax.vmap(run, (None, 0), 1), (0, None), 1)
    return np.asarray(jax.jit(every)(jnp.asarray(RATES), keys))


def steepest_allowed(noise: Noise, seed: int) -> float:
    """The slope of the 95% quantile against time, on logarithmic axes, of the worst rate."""
    gaps = np.quantile(average_gaps(adaptive.adagrad_norm, noise, seed, TIMES), 0.95, axis=2)
    slopes = np.polyfit(np.log(TIMES), np.log(gaps), 1)[0]
    return float(np.max(slopes))


@claim(
    "adagrad-norm-sgd",
    "one-over-T-without-additive-noise",
    cost="slow",
    expected=Expected(
        "slope of log excess of the average iterate, its 95% quantile over 32 runs, against log "
        "steps from 3e3 to 1e5; the largest over rates .01, .1, 1, 10, 100; noise as large as the "
        "gradient, convex quadratic with curvatures 1 to 1e-6",
        "<=",
        -0.9,
        "abstract and theorem for convex functions: about 1/T with high probability in low noise, "
        "no parameter known; derived: a tenth for the logarithms",
    ),
    limits="the slope is -.89 at the rate .01, a hundredth of the distance to the solution; at the "
    "other four rates it is -1.0 to -1.1",
)
def low_noise() -> list[float]:
    return [steepest_allowed(Noise(0.0, 1.0), seed) for seed in SEEDS]


@claim(
    "adagrad-norm-sgd",
    "one-over-root-T-with-additive-noise",
    cost="slow",
    expected=Expected(
        "slope of log excess of the average iterate, its 95% quantile over 32 runs, against log "
        "steps from 3e3 to 1e5; the largest over rates .01, .1, 1, 10, 100; noise of deviation .1 "
        "beside one as large as the gradient, convex quadratic with curvatures 1 to 1e-6",
        "<=",
        -0.45,
        "abstract and theorem for convex functions: about 1/sqrt(T) with high probability in high "
        "noise, no parameter known; derived: a twentieth for the logarithms",
    ),
    limits="at rate 1 the excess lies three times below sigma R / sqrt(T) throughout, where a "
    "bound says nothing of the slope; at the other four rates it is -.52 to -1.0",
)
def high_noise() -> list[float]:
    return [steepest_allowed(Noise(0.1, 1.0), seed) for seed in SEEDS]


@claim(
    "adagrad-norm-sgd",
    "fixed-steps-diverge-where-it-does-not",
    cost="medium",
    expected=Expected(
        "rates out of .01, .1, 1, 10, 100 at which the average iterate of SGD after 3000 steps is "
        "worse than the start and that of AdaGrad-norm is better, 95% quantiles over 32 runs",
        ">=",
        2,
        "abstract: full adaptivity to unknown parameters; derived: fixed steps diverge above 2/L, "
        "which 10 and 100 are",
        unit="rates",
    ),
    limits="at rate 100, a hundred times the distance to the solution, its average is still seven "
    "times worse than the start after 3,000 steps; the start's value takes more than 10,000",
)
def fixed_steps_diverge() -> list[float]:
    worth = float(np.sum(CURVATURES * START**2) / 2)

    def better(make: Callable[[Any], Any], seed: int) -> np.ndarray:
        gaps = average_gaps(make, Noise(0.1, 1.0), seed, (3_000,))
        return np.quantile(np.nan_to_num(gaps, nan=1e300, posinf=1e300), 0.95, axis=2)[0] < worth

    return [
        float(np.sum(better(adaptive.adagrad_norm, seed) & ~better(optax.sgd, seed)))
        for seed in SEEDS
    ]


# ---- polyak-momentum

MOMENTA = (0.0, 0.5, 0.9, 0.99)
SMALLEST, SIZE = 1e-4, 100


def values_on_a_quadratic(
    make: Callable[[float], optax.GradientTransformation], seed: int, steps: int = 1000
) -> np.ndarray:
    """The excess after each step, for each momentum; condition 1e4, 100 unknowns, float64."""
    with jax.enable_x64(True):
        curvatures = jnp.asarray(np.geomspace(1, SMALLEST, SIZE))
        start = jax.random.normal(jax.random.key(seed), (SIZE,), "float64")

        def value(x: Array) -> Array:
            return jnp.sum(curvatures * x**2) / 2

        def run(momentum: float) -> Array:
            optimizer = optax.with_extra_args_support(make(momentum))

            def advance(carry: Any, _: None) -> Any:
                x, state = carry
                updates, state = optimizer.update(curvatures * x, state, x, value=value(x))
                return (x + updates, state), value(x + updates)

            return jax.lax.scan(advance, (start, optimizer.init(start)), None, length=steps)[1]

        return np.stack([np.asarray(jax.jit(run, static_argnums=0)(m)) for m in MOMENTA])


def heavy_ball(momentum: float) -> optax.GradientTransformation:
    """With the step 1/L, which needs L."""
    return optax.sgd(1.0, momentum=momentum)


def spread(values: np.ndarray) -> float:
    """Decades between the momenta's final values."""
    return float(np.ptp(np.log10(values[:, -1])))


@claim(
    "polyak-momentum",
    "less-sensitive-to-momentum",
    cost="medium",
    expected=Expected(
        "decades between the best and the worst of momenta 0, .5, .9 and .99 after 1000 steps, "
        "Polyak's steps over the fixed step 1/L; heavy ball on a quadratic of condition 1e4",
        "<=",
        1.0,
        "abstract: much less sensitive to the choice of the momentum; derived: 1 is no less",
        scaled="100 unknowns",
    ),
    limits="every momentum ends lower than with the fixed step, but 0 and .9 by three decades or "
    "more and .5 by one, so their spread is wider",
)
def less_sensitive() -> list[float]:
    return [
        spread(values_on_a_quadratic(adaptive.momentum_polyak, seed))
        / spread(values_on_a_quadratic(heavy_ball, seed))
        for seed in SEEDS
    ]


@claim(
    "polyak-momentum",
    "fewer-oscillations",
    cost="medium",
    expected=Expected(
        "share of 1000 steps in which the value rises, Polyak's steps over the fixed step 1/L, "
        "momentum .9; heavy ball on a quadratic of condition 1e4",
        "<=",
        1.0,
        "abstract: may avoid the oscillation of heavy ball on ill-conditioned problems; derived: 1 "
        "is as many",
        scaled="100 unknowns",
    ),
    limits="with momentum .9 nearly all its steps are longer than 2/L: the value rises in steep "
    "directions, while the distance to the solution falls in every step",
)
def fewer_oscillations() -> list[float]:
    def rises(make: Callable[[float], Any], seed: int) -> float:
        return float(np.sum(np.diff(values_on_a_quadratic(make, seed)[2]) > 0))

    return [
        rises(adaptive.momentum_polyak, seed) / max(rises(heavy_ball, seed), 1.0) for seed in SEEDS
    ]


@claim(
    "polyak-momentum",
    "a-minimum-too-low-costs-that-much",
    cost="medium",
    expected=Expected(
        "lowest excess of 20,000 steps with a minimum stated 1e-3 too low, over that 1e-3; the "
        "largest of momenta 0, .5 and .9, quadratic of condition 1e4",
        "<=",
        1.0,
        "derived: without momentum the step shortens the distance to the solution while the excess "
        "is above the error of the stated minimum",
        scaled="100 unknowns",
    ),
)
def wrong_minimum() -> list[float]:
    def make(momentum: float) -> optax.GradientTransformation:
        return adaptive.momentum_polyak(momentum, -1e-3)

    return [
        float(np.max(np.min(values_on_a_quadratic(make, seed, 20_000)[:3], axis=1)) / 1e-3)
        for seed in SEEDS
    ]


@claim(
    "polyak-momentum",
    "beats-other-polyak-steps-on-batches",
    cost="slow",
    expected=Expected(
        "training loss of the moving average with Polyak's step over that of the better of momo "
        "and polyak_sgd, softmax regression on digits, 1000 batches of 64, caps of the step size "
        "tuned on one grid",
        "<=",
        1.0,
        "abstract: more effective for stochastic gradients than prior adaptive step sizes",
        scaled="1,437 digits of 64 pixels, 3 seeds",
    ),
)
def better_on_batches() -> list[float]:
    problem, steps = softmax_digits(), 1000

    def ours(cap: Any) -> optax.GradientTransformation:
        return adaptive.moving_average_polyak(largest=cap)

    ours_tuned = tuned(problem, ours, steps)
    peers = [tuned(problem, make, steps) for make in (optax.contrib.momo, optax.polyak_sgd)]
    return [
        trained(problem, ours_tuned, steps, seed)[0]
        / min(trained(problem, peer, steps, seed)[0] for peer in peers)
        for seed in SEEDS
    ]
