"""TENG: the order in time, the accuracy of its projections, and what others reach in as many steps.

The reference solvers' seconds stand beside TENG's in `benchmarks/equations.py` and in
`nearly compare burgers-evolution`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nearly.core.claim import Expected, Inconclusive, claim
from nearly.core.errors import InputError
from nearly.pde.equations import InitialValueProblem
from nearly.pde.natural_gradient import (
    AdamProjection,
    Euler,
    Heun,
    Marching,
    Step,
    TangentProjection,
    TdvpRungeKutta,
    step_forward,
)
from nearly.pde.network_manifold import Manifold
from nearly.pde.problems.evolution import Burgers, Heat

SEEDS = (0, 1, 2)
STEPS = (10, 20, 40)
NARROW = TangentProjection(subsets=(128, 128))  # fewer parameters than points, as in the paper
STABLE_STEPS = (20, 28, 40)
THOROUGH = TangentProjection(iterations=(9, 7), subsets=(224, 224))


def _error(equation: InitialValueProblem, values: Callable[[Any], Any]) -> float:
    points = equation.held_out()
    truth = equation.truth(points)
    return float(
        np.linalg.norm(np.asarray(values(jnp.asarray(points))) - truth) / np.linalg.norm(truth)
    )


def _marched(method: Marching, space: Manifold, start: Any, steps: int, key: Any) -> float:
    """The error after so many steps; one, if the network lost the equation on the way."""
    try:
        after = method.march(space, start, steps, key)
    except InputError:
        return 1.0
    return _error(space.equation, space.at_points(after))


def _heun_order(seed: int, projection: TangentProjection, steps: tuple[int, ...]) -> float:
    """On Burgers' equation to t = 0.2, from one and the same start for each number of steps."""
    with jax.enable_x64(True):
        equation, key = Burgers(duration=0.2), jax.random.key(seed)
        method = Marching(Heun(projection), points=256)
        space, start, _ = method.start(equation, key)
        errors = [_marched(method, space, start, n, key) for n in steps]
    return float(np.polyfit(np.log(1 / np.array(steps)), np.log(errors), 1)[0])


@claim(
    "teng",
    "heun-is-of-second-order",
    cost="slow",
    expected=Expected(
        "order in the time step of TENG-Heun's relative L2 error, Burgers' equation, nu = 0.1, "
        "t = 0.2, steps of 0.02, 0.01 and 0.005",
        "within",
        (1.8, 2.2),
        "derived: Heun's method is of second order, and projections to rounding keep that",
        scaled="one dimension, 256 points, 881 parameters, t = 0.2 instead of 4; steps "
        "from the paper's 0.005 up to where explicit steps stay stable for the network's waves",
    ),
)
def heun_order() -> list[float]:
    return [_heun_order(seed, NARROW, STEPS) for seed in SEEDS]


# Added when the claim above had been measured as 2.1, 3.8 and 4.1, before what was wrong was found:
# projections refused the updates that reached too far, and put nothing in their place.
@claim(
    "teng",
    "heun-is-of-second-order-projected-thoroughly",
    cost="slow",
    expected=Expected(
        "order in the time step of TENG-Heun's relative L2 error, Burgers' equation, nu = 0.1, "
        "t = 0.2, steps of 0.01, 0.00714 and 0.005, 9 and 7 projections of 224 parameters",
        "within",
        (1.8, 2.2),
        "derived: Heun's method is of second order, and projections to rounding keep that",
        scaled="one dimension, 256 points, 881 parameters, t = 0.2 instead of 4",
    ),
)
def heun_order_projected_thoroughly() -> list[float]:
    return [_heun_order(seed, THOROUGH, STABLE_STEPS) for seed in SEEDS]


@claim(
    "teng",
    "accurate-on-the-heat-equation",
    cost="slow",
    expected=Expected(
        "relative L2 error of TENG-Heun on the heat equation in the plane, D = 0.1, t = 1, "
        "100 steps",
        "<=",
        1e-4,
        "derived: Heun's own error is 1e-7 for the modes of this field; three digits are left to "
        "the fit of the first field and to 200 projections of so small a network",
        scaled="32 x 32 points and 865 parameters instead of 256 x 256 and 10^4, t = 1 instead of "
        "4, steps of 0.01 instead of 0.005, a smoother first field",
    ),
)
def heat_error() -> list[float]:
    with jax.enable_x64(True):
        method = Marching(points=32)
        return [_error(Heat(), method(Heat(), 100, key=jax.random.key(s))) for s in SEEDS]


@claim(
    "teng",
    "a-step-is-projected-to-rounding",
    cost="slow",
    expected=Expected(
        "mean squared distance of the network to u + h u_t after the 7 iterations of a step, "
        "h = 0.005, Burgers' equation",
        "<=",
        1e-13,
        'abstract: "achieving machine precision in step-by-step optimizations"; 1e-13 is where '
        "the paper's losses lie (quoted from memory)",
        scaled="one dimension, 1,024 points, a network of 881 parameters, subsets of 256",
    ),
)
def projection_loss() -> list[float]:
    with jax.enable_x64(True):
        equation, method = Burgers(), Marching(Euler(), points=1024)
        losses: list[float] = []
        for seed in SEEDS:
            key = jax.random.key(seed)
            space, theta, _ = method.start(equation, key)
            h = jnp.asarray(0.005)
            target = space.values(theta) + h * space.velocity(theta)
            after = step_forward(method.step, space, theta, h, key)
            losses.append(float(jnp.mean((space.values(after) - target) ** 2)))
    return losses


@lru_cache
def _peer_errors(seed: int) -> dict[str, float]:
    """On the heat equation in 25 steps, from one start: TENG-Heun, TDVP and Adam at each step."""
    steps: dict[str, Step] = {
        "teng": Heun(),
        "tdvp": TdvpRungeKutta(),
        "optimised": Heun(AdamProjection()),
    }
    with jax.enable_x64(True):
        equation, key = Heat(), jax.random.key(seed)
        space, start, _ = Marching(points=16).start(equation, key)
        errors: dict[str, float] = {}
        for name, step in steps.items():
            method = Marching(step, points=16)
            errors[name] = _marched(method, space, start, 25, key)
    return errors


BEATS = 'abstract: "surpassing current leading methods"; by an order of magnitude or more'
SMALL = "heat equation, t = 1, 25 steps, 16 x 16 points, a network of 865 parameters"


@claim(
    "teng",
    "more-accurate-than-the-variational-principle",
    cost="slow",
    expected=Expected(
        "error of the time-dependent variational principle with RK4 over TENG-Heun's, from the "
        "same first field in as many steps",
        ">=",
        10,
        BEATS,
        scaled=SMALL,
    ),
    limits="diffusion asks little of a tangent space: in 25 steps of the fourth order the "
    "variational principle ends where TENG-Heun does: at what the fit of the first field, on "
    "16 x 16 points, is off by between them (another seed: 1.6e-4; the steps add 4e-6)",
)
def over_variational() -> list[float]:
    return [_peer_errors(s)["tdvp"] / _peer_errors(s)["teng"] for s in SEEDS]


@claim(
    "teng",
    "more-accurate-than-optimising-each-step",
    cost="slow",
    expected=Expected(
        "error of Heun's steps fitted by 300 steps of Adam over TENG-Heun's, from the same first "
        "field in as many steps",
        ">=",
        10,
        BEATS,
        scaled=SMALL,
    ),
)
def over_optimised() -> list[float]:
    return [_peer_errors(s)["optimised"] / _peer_errors(s)["teng"] for s in SEEDS]


@claim(
    "teng",
    "accurate-at-the-papers-size",
    cost="gpu",
    expected=Expected(
        "relative L2 error of TENG-Heun on the heat equation in the plane, D = 0.1, t = 4, "
        "800 steps, 256 x 256 points, width 40, depth 7",
        "<=",
        1e-5,
        "the paper's figure for the heat equation is of the order of 1e-6 (quoted from memory); a "
        "decade is left for another first field",
        scaled="another first field, as smooth as the paper's",
    ),
)
def heat_error_at_full_size() -> float:
    if jax.default_backend() == "cpu":
        raise Inconclusive("needs a GPU: 1,536 gradients at 65,536 points, twelve times a step")
    with jax.enable_x64(True):
        heat = Heat(duration=4.0)
        projection = TangentProjection(subsets=(1536, 1024))
        method = Marching(Heun(projection), 40, 7, 256, fit_subset=1536)
        return _error(heat, method(heat, 800, key=jax.random.key(0)))
