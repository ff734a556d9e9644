"""What the papers of Newton-type minimisers promise, rerun on the smooth problems."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx

from nearly.core.claim import Expected, claim
from nearly.core.problem import Problem
from nearly.core.tally import tally
from nearly.optimize import minimisers
from nearly.optimize.newton import (
    AcceleratedCubicNewton,
    ArmijoNewton,
    GradientNormalizedNewton,
    LazyCubicNewton,
    SuperUniversalNewton,
    UniversalNewton,
)
from nearly.optimize.newton.factor import FACTORISATIONS, Factor, factorise
from nearly.optimize.problems.classic import CLASSIC
from nearly.optimize.problems.smooth import (
    LogSumExp,
    classic,
    cubic_chain,
    cubic_chain_value,
    log_sum_exp,
    logistic_regression,
)

ANY = (1e-8, 1e-8)


def smooth_set() -> Iterator[Any]:
    """The catalogued problems, and every classic function."""
    yield logistic_regression()
    yield log_sum_exp()
    yield cubic_chain()
    yield from (classic(name) for name in CLASSIC)


def bill(problem: Any, method: Any, target: float) -> Mapping[str, float] | None:
    """What a minimiser uses until its error is at most a target: the loosest dial that does."""
    with jax.enable_x64(True):
        apply = eqx.filter_jit(lambda standin: problem.apply(standin, key=None))
        for dial in problem.dials(method):
            with tally() as counts:
                value = jax.block_until_ready(apply(problem.build(method, dial, key=None)))
            if problem.errors(value)[problem.error_name] <= target:
                return counts.read()
    return None


def shares(ours: Any, theirs: Any, unit: str, target: float) -> list[float]:
    """Ours over theirs in a unit, for each problem of the set that theirs solves.

    One that ours does not solve counts as infinitely dear.
    """
    found: list[float] = []
    for problem in smooth_set():
        peer = bill(problem, theirs, target)
        if peer is not None:
            own = bill(problem, ours, target)
            found.append(math.inf if own is None else own[unit] / peer[unit])
    return found


# ---- lazy-hessians


@claim(
    "lazy-hessians",
    "a-third-of-the-factorisations",
    cost="slow",
    expected=Expected(
        "factorisations of lazy cubic Newton (10 steps for a Hessian, no constant given) over "
        "those of Newton with Armijo's rule until the excess is 1e-10, median over the problems",
        "<=",
        1 / 3,
        "derived: ten steps share a Hessian, an old one makes at most 3.3 times the steps",
        scaled="30 problems of 2 to 200 unknowns, float64",
    ),
    limits="a Hessian that is ten steps old needs a regularisation that grows with its age, and "
    "the search for it repeats cycles",
)
def fewer_factorisations() -> float:
    return float(
        np.median(shares(minimisers.lazy_cubic_newton, ArmijoNewton(*ANY), FACTORISATIONS, 1e-10))
    )


@claim(
    "lazy-hessians",
    "cheaper-by-the-root-of-the-dimension",
    cost="medium",
    expected=Expected(
        "gradients, a Hessian being one for each unknown, of adaptive cubic Newton with one a step "
        "over those with the best of 2, 5, 10, 31 and 62 steps for one, until the excess is 1e-8",
        ">=",
        31**0.5,
        "abstract: total arithmetic falls by a factor of the root of the dimension",
        scaled="logistic regression, 31 unknowns, from 0",
    ),
    limits="from 0 adaptive cubic Newton needs so few Hessians that only a factor of their "
    "number can be saved; the root is reached where a fresh Hessian would be taken for "
    "hundreds of steps",
)
def cheaper_by_the_root() -> float:
    problem = logistic_regression()

    def gradients(period: int) -> float:
        used = bill(problem, LazyCubicNewton(*ANY, period=period), 1e-8)
        return math.inf if used is None else used[problem.work_name]

    return gradients(1) / min(gradients(m) for m in (2, 5, 10, 31, 62))


# ---- gradient-normalized-smoothness


class _Weighted:
    """The Hessian of a log-sum-exp without its rank-one part: A^T diag(softmax) A / mu."""

    def __init__(self, function: LogSumExp) -> None:
        self.function = function

    def __call__(self, _: Any, at: Any, gradient: Any, args: Any) -> Factor:
        del gradient, args
        f = self.function
        weights = jax.nn.softmax((f.matrix @ at - f.shift) / f.width)
        return factorise(f.matrix.T @ (weights[:, None] * f.matrix) / f.width)


@claim(
    "gradient-normalized-smoothness",
    "approximate-hessians-converge-linearly",
    cost="slow",
    expected=Expected(
        "steps from an excess of 1e-4 to 1e-8 over those from 1 to 1e-4, Gauss-Newton matrix of a "
        "log-sum-exp of 500 rows and 200 unknowns, the largest of widths .5, .1 and .05",
        "<=",
        2.0,
        "derived: a global linear rate, as proven for approximate Hessians, takes as many steps "
        "for each four digits; a sublinear one would take a hundred times as many",
    ),
)
def linear_with_approximate_hessians() -> list[float]:
    return [_linear(width) for width in (0.5, 0.1, 0.05)]


def _linear(width: float) -> float:
    problem = log_sum_exp(width)
    with jax.enable_x64(True):
        minimiser = GradientNormalizedNewton(
            0.0, 0.0, hessian=_Weighted(cast("LogSumExp", problem.function))
        )
        path = excesses(problem, minimiser, 2000)
    first, second, third = (int(np.argmax(path <= e)) for e in (1.0, 1e-4, 1e-8))
    if path.min() > 1e-8:
        return math.inf
    return (third - second) / max(second - first, 1)


def excesses(problem: Any, minimiser: Any, steps: int) -> np.ndarray:
    """The error after each step, in one compiled loop."""

    def value(y: Any, _: Any) -> Any:
        return problem.function(y), None

    start = jnp.asarray(problem.start, problem.dtype)
    state = minimiser.init(value, start, None, {}, None, None, frozenset())

    @jax.jit
    def run(state: Any) -> Any:
        def advance(carry: Any, _: None) -> Any:
            y, state = carry
            y, state, _ = minimiser.step(value, y, None, {}, state, frozenset())
            return (y, state), state.point.f

        return jax.lax.scan(advance, (start, state), None, length=steps)[1]

    values = np.append(float(problem.function(start)), np.asarray(run(state)))
    return (values - problem.minimum) / max(1.0, abs(problem.minimum))


@claim(
    "gradient-normalized-smoothness",
    "no-slower-than-super-universal-newton",
    cost="slow",
    expected=Expected(
        "factorisations over those of super-universal Newton until the excess is 1e-8, median over "
        "the smooth problems",
        "<=",
        1.0,
        "experiments: as fast as or faster than the methods it is compared with",
        scaled="30 problems of 2 to 200 unknowns, float64, both without constants",
    ),
)
def no_slower() -> float:
    return float(
        np.median(
            shares(GradientNormalizedNewton(*ANY), SuperUniversalNewton(*ANY), FACTORISATIONS, 1e-8)
        )
    )


# ---- damped-newton


@claim(
    "damped-newton",
    "beats-armijo-from-afar",
    cost="medium",
    expected=Expected(
        "Newton steps with the universal step size over those by Armijo's rule until the excess is "
        "1e-10, logistic regression from all unknowns at 8",
        "<=",
        1.0,
        "abstract: the step sizes outperform the ones in use",
        scaled="breast cancer data, 31 unknowns, weight 1e-6",
    ),
    limits="the closed form shortens the step wherever the local norm is not small, where the "
    "full step, which Armijo tries first, is already good",
)
def beats_armijo() -> float:
    problem: Problem = logistic_regression(far=8.0)
    ours, theirs = (bill(problem, m(*ANY), 1e-10) for m in (UniversalNewton, ArmijoNewton))
    if theirs is None:
        return 0.0
    return math.inf if ours is None else ours[FACTORISATIONS] / theirs[FACTORISATIONS]


# ---- inexact-accelerated-tensor


def _plain_cubic(constant: float, steps: int, noise: Callable[[int, Any], Any]) -> np.ndarray:
    """Cubic Newton with a fixed constant on the chain, its gradients disturbed."""
    problem = cubic_chain()
    x, found = jnp.asarray(problem.start), []
    gradient, hessian = (
        jax.jit(jax.grad(cubic_chain_value)),
        jax.jit(jax.hessian(cubic_chain_value)),
    )
    for t in range(steps):
        factor = factorise(hessian(x))
        x = x + factor.cubic_step(jnp.asarray(constant), gradient(x) + noise(t, x), jnp.zeros(()))
        found.append(float(cubic_chain_value(x)) - problem.minimum)
    return np.array(found)


@claim(
    "inexact-accelerated-tensor",
    "acceleration-wins-in-the-end",
    cost="medium",
    expected=Expected(
        "excess of accelerated over plain cubic Newton after 200 steps, both with M = 2 L = 4, on "
        "the chain of 20 unknowns that is hardest for methods of second order",
        "<=",
        0.5,
        "derived: the rates L R^3 / T^3 and L R^3 / T^2 differ by T; a half is the least of a win",
    ),
)
def acceleration_wins() -> float:
    with jax.enable_x64(True):
        problem = cubic_chain()
        accelerated = excesses(problem, AcceleratedCubicNewton(0.0, 0.0, constant=4.0), 200)
        plain = _plain_cubic(4.0, 200, lambda t, x: jnp.zeros_like(x))
    return float(accelerated[-1] * max(1.0, abs(problem.minimum)) / plain[-1])


@claim(
    "inexact-accelerated-tensor",
    "noise-falls-at-the-optimal-rate",
    cost="medium",
    expected=Expected(
        "slope of log excess against log steps from 100 to 1000, gradients with normal noise of "
        "standard deviation .05 in each entry, the chain of 20 unknowns, 5 seeds",
        "<=",
        -0.5,
        "theorem: sigma R / sqrt(T) where the gradients' noise decides",
        scaled="sigma = .05 sqrt(20), R = |x* - x_0|",
    ),
)
def noise_falls() -> list[float]:
    return [_slope_with_noise(seed) for seed in range(5)]


def _slope_with_noise(seed: int, steps: int = 1000) -> float:
    with jax.enable_x64(True):
        problem = cubic_chain()
        size, level = problem.start.size, 0.05
        radius = float(np.linalg.norm(np.arange(size, 0, -1)))
        draws = level * jax.random.normal(jax.random.key(seed), (steps, size), "float64")

        def noisy(y: Any, args: Any) -> Any:
            # The noise is the gradient of a linear term; the value itself is exact.
            push = args @ (y - jax.lax.stop_gradient(y))
            return cubic_chain_value(y) + push, None

        minimiser = AcceleratedCubicNewton(
            0.0, 0.0, constant=4.0, noise=level * size**0.5, radius=radius
        )
        start = jnp.asarray(problem.start)
        state = minimiser.init(noisy, start, draws[0], {}, None, None, frozenset())

        @jax.jit
        def run(state: Any) -> Any:
            def advance(carry: Any, draw: Any) -> Any:
                y, state = carry
                y, state, _ = minimiser.step(noisy, y, draw, {}, state, frozenset())
                return (y, state), state.point.f

            return jax.lax.scan(advance, (start, state), draws)[1]

        gaps = np.asarray(run(state)) - problem.minimum
    times = np.unique(np.geomspace(100, steps, 20).astype(int))
    return float(np.polyfit(np.log(times), np.log(gaps[times - 1]), 1)[0])


@claim(
    "gradient-normalized-smoothness",
    "fewer-gradients-than-bfgs",
    cost="slow",
    expected=Expected(
        "gradients, a Hessian being one for each unknown, over those of optimistix's BFGS until "
        "the excess is 1e-8, median over the smooth problems",
        "<=",
        1.0,
        "derived: the bill of a method without constants should not exceed a quasi-Newton one's",
        scaled="30 problems of 2 to 200 unknowns, float64",
    ),
    limits="a Hessian by differentiation is a gradient for each unknown, 2 to 200 of them here; "
    "where it comes cheaper the steps decide, and those are fewer",
)
def fewer_gradients_than_bfgs() -> float:
    return float(np.median(shares(GradientNormalizedNewton(*ANY), optx.BFGS(*ANY), "f vjps", 1e-8)))
