"""What the paper on smooth normalizing flows promises, rerun (`smooth-normalizing-flows`)."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from nearly.core.claim import Expected, claim
from nearly.derivatives.inverse import invert_with_log_slope, multi_bin_bisection
from nearly.derivatives.smooth_flow import (
    Bumps,
    SmoothMap,
    SplineMap,
    TorusFlow,
    circle_map,
    force_matching_loss,
    torus_flow,
)
from nearly.training import fit

PAPER = "smooth-normalizing-flows"
SEEDS = (0, 1, 2)

# ---- inverses


def _map(x: Any, raw: Any) -> Any:
    return circle_map(x, Bumps.free(raw))


def _cases(seed: int) -> tuple[Any, Any, Any, Any]:
    """Targets, parameters of a map for each, and directions to differentiate along."""
    draw = np.random.default_rng(seed)
    y, raw = draw.uniform(0.05, 0.95, 16), draw.normal(size=(16, 4, 5))
    along = draw.normal(size=y.shape), draw.normal(size=raw.shape)
    return jnp.asarray(y), jnp.asarray(raw), jnp.asarray(along[0]), jnp.asarray(along[1])


@claim(
    PAPER,
    "inverse-has-the-derivatives-of-the-inverse",
    cost="medium",
    expected=Expected(
        "largest difference, relative to the largest derivative, between the derivatives of "
        "inverse and inverse log-determinant in target and parameters and central differences "
        "of the solver's own output",
        "<=",
        1e-6,
        "abstract: gradients of such inverses follow from forward evaluations via the inverse "
        "function theorem; derived: central differences with a step of 1e-5 are good to about 1e-9",
    ),
)
def inverse_derivatives() -> list[float]:
    with jax.enable_x64(True):
        return [_inverse_disagreement(seed) for seed in SEEDS]


def _inverse_disagreement(seed: int) -> float:
    inverse = invert_with_log_slope(_map, multi_bin_bisection(0.0, 1.0))
    y, raw, along_y, along_raw = _cases(seed)
    h = 1e-5
    run = jax.jit(inverse)
    moved = [run(y + s * h * along_y, raw + s * h * along_raw) for s in (1, -1)]
    difference = jax.tree.map(lambda up, down: (up - down) / (2 * h), *moved)
    _, ours = jax.jit(lambda t, a: jax.jvp(inverse, t, a))((y, raw), (along_y, along_raw))
    return max(
        float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b))) for a, b in zip(ours, difference)
    )


@claim(
    PAPER,
    "differentiating-bisection-gives-zero",
    cost="fast",
    expected=Expected(
        "largest derivative of the inverse in target and parameters by differentiating the "
        "bisection itself",
        "<=",
        0.0,
        "abstract: root finding has so far prevented bi-directional training; derived: the result "
        "of bisection is a sum of constants chosen by comparisons",
    ),
)
def through_bisection() -> float:
    search = multi_bin_bisection(0.0, 1.0, polish=0)

    @jax.jit
    def everything(y: Any, raw: Any, along_y: Any, along_raw: Any) -> Any:
        def find(y: Any, raw: Any) -> Any:
            return search(lambda x: _map(x, raw), y)

        found, slopes = jax.jvp(find, (y, raw), (along_y, along_raw))
        return jnp.max(jnp.abs(_map(found, raw) - y)), jnp.max(jnp.abs(slopes))

    with jax.enable_x64(True):
        off, slope = map(float, everything(*_cases(0)))
    # Unless it has found the inverse, its derivative says nothing.
    return slope if off < 1e-6 else math.nan


@claim(
    PAPER,
    "many-bins-need-few-rounds",
    cost="fast",
    expected=Expected(
        "rounds of bisection that bring every bracket to 1e-8, with 32 bins over with 2",
        "<=",
        6 / 27,
        "derived: log(1/eps) / log(K) rounds are 5.3 and 26.6, rounded up",
    ),
)
def rounds() -> float:
    many, two = (multi_bin_bisection(0.0, 1.0, bins=bins, polish=0) for bins in (32, 2))
    exact = multi_bin_bisection(0.0, 1.0)

    @jax.jit
    def worst(y: Any, raw: Any) -> Any:
        def find(search: Any) -> Any:
            return search(lambda x: _map(x, raw), y)

        solution = find(exact)
        return jnp.max(jnp.abs(jnp.stack([find(many), find(two)]) - solution))

    with jax.enable_x64(True):
        y, raw, *_ = _cases(0)
        off = float(worst(y, raw))
    # The answer is the middle of the bracket.
    return many.rounds / two.rounds if off <= 0.5e-8 else math.nan


# ---- flows with forces, on the torus

WEIGHT = 0.01
BARRIER, PULL, TILT = 2.0, 1.5, 0.5


def _energy(x: Any) -> Any:
    """A double well in the first angle that the second one follows, over temperature."""
    a, b = 2 * jnp.pi * x[0], 2 * jnp.pi * x[1]
    return BARRIER * jnp.cos(2 * a) + PULL * jnp.cos(b - a) + TILT * jnp.sin(a)


def _sample(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Independent draws of the double well, by rejection, and the forces on them."""
    draw = np.random.default_rng(seed)
    points = draw.uniform(size=(60 * count, 2))
    lowest = -BARRIER - PULL - TILT
    energies = np.asarray(jax.jit(jax.vmap(_energy))(points))
    kept = points[np.log(draw.uniform(size=len(points))) < lowest - energies][:count]
    assert len(kept) == count
    return kept, -np.asarray(jax.jit(jax.vmap(jax.grad(_energy)))(kept))


STEPS = 600
# One optimizer, one loss and the weight as data: both kinds of training share a compiled program.
OPTIMIZER = optax.adam(optax.cosine_decay_schedule(5e-3, STEPS))


def _loss(flow: TorusFlow, batch: Any, key: Any) -> Any:
    points, forces, weight = batch
    return force_matching_loss(flow, points, forces, weight[0])


@lru_cache(16)
def _trained(kind: str, weight: float, seed: int) -> TorusFlow:
    """A flow of smooth maps or of splines, trained on 4000 draws."""
    transform = SmoothMap(5) if kind == "smooth" else SplineMap(8)
    key, training = jax.random.split(jax.random.key(seed))
    flow = torus_flow(2, key, transform=transform, layers=2, width=16)
    points, forces = _sample(seed, 4000)
    data = tuple(a.astype(np.float32) for a in (points, forces, np.full(len(points), weight)))
    trained = fit(_loss, flow, data, optimizer=OPTIMIZER, steps=STEPS, key=training, batch=64)
    return trained.model


def _force_error(flow: TorusFlow, seed: int) -> float:
    points, forces = (a.astype(np.float32) for a in _sample(1000 + seed, 1000))
    found = eqx.filter_jit(eqx.filter_vmap(lambda x: flow.force(x)))(points)
    return float(np.sqrt(np.mean((np.asarray(found) - forces) ** 2)))


@claim(
    PAPER,
    "force-matching-lowers-the-error-of-forces",
    cost="slow",
    expected=Expected(
        "double well on the 2-torus: error (RMS) of the forces on unseen points, trained with "
        "likelihood and forces over likelihood alone",
        "<=",
        1.0,
        "abstract: smooth flows allow training by force matching; derived: what is trained on "
        "forces errs less in them than what is not",
        scaled="two angles, 4000 points and 600 steps for alanine dipeptide",
    ),
)
def force_matching() -> list[float]:
    return [
        _force_error(_trained("smooth", WEIGHT, seed), seed)
        / _force_error(_trained("smooth", 0.0, seed), seed)
        for seed in SEEDS
    ]


def _drift_expected(kind: str, relation: Any, order: float, why: str) -> Expected:
    return Expected(
        f"{kind}: order in the time step of the energy error of molecular dynamics (velocity "
        "Verlet) on the flow's potential, from steps of 5e-4 and 2.5e-4",
        relation,
        order,
        f"derived: {why}; abstract: smooth flows can be used as potentials in molecular dynamics",
        scaled="double well on the 2-torus, 64 trajectories of length 1",
    )


@claim(
    PAPER,
    "smooth-flows-conserve-energy-at-second-order",
    cost="slow",
    expected=_drift_expected(
        "smooth flow", ">=", 1.8, "velocity Verlet is of order 2 where forces are smooth"
    ),
)
def smooth_drift() -> list[float]:
    return [_energy_order(_trained("smooth", 0.0, seed), seed) for seed in SEEDS]


@claim(
    PAPER,
    "spline-flows-lose-an-order",
    cost="slow",
    expected=_drift_expected(
        "rational-quadratic spline flow",
        "<=",
        1.5,
        "a step across a jump of the force errs at order 1",
    ),
)
def spline_drift() -> list[float]:
    return [_energy_order(_trained("spline", 0.0, seed), seed) for seed in SEEDS]


def _energy_order(flow: TorusFlow, seed: int) -> float:
    with jax.enable_x64(True):
        double = jax.tree.map(
            lambda leaf: leaf.astype(jnp.float64) if eqx.is_inexact_array(leaf) else leaf, flow
        )
        start = jnp.asarray(_sample(2000 + seed, 64)[0])
        velocity = jnp.asarray(np.random.default_rng(seed).normal(size=start.shape))
        coarse, fine = (_energy_error(double, start, velocity, n) for n in (2000, 4000))
    return math.log2(coarse / fine)


def _energy_error(flow: TorusFlow, start: Any, velocity: Any, steps: int) -> float:
    """The largest deviation of the energy along each trajectory of length 1, on average (RMS)."""
    dt = 1.0 / steps

    @eqx.filter_jit
    def run(flow: TorusFlow, x: Any, v: Any) -> Any:
        both = jax.vmap(jax.value_and_grad(flow.log_density))

        def step(state: Any, _: Any) -> Any:
            x, v, f, worst = state
            v = v + 0.5 * dt * f
            x = x + dt * v
            log_density, f = both(x)
            v = v + 0.5 * dt * f
            energy = 0.5 * jnp.sum(v**2, -1) - log_density
            return (x, v, f, jnp.maximum(worst, jnp.abs(energy - first))), None

        log_density, f = both(x)
        first = 0.5 * jnp.sum(v**2, -1) - log_density
        state = (x, v, f, jnp.zeros(len(x)))
        return jax.lax.scan(step, state, None, length=steps)[0][3]

    return float(jnp.sqrt(jnp.mean(run(flow, start, velocity) ** 2)))
