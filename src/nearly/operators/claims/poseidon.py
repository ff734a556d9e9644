"""What all pairs of snapshots are worth, and what is carried from one equation to another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nearly.core.claim import Expected, Inconclusive, claim
from nearly.datasets.random_fields import gaussian_random_field
from nearly.operators.data import Grid, Trajectories
from nearly.operators.transfer import (
    PairChoice,
    all_to_all,
    consecutive,
    from_start,
    grouped_adamw,
    lead_time_operator,
    train_on_snapshots,
)
from nearly.operators.transformer import PAPER, SIZES, ScOT, scot
from nearly.pde.exponential import etdrk4
from nearly.pde.propagators import advection, heat
from nearly.pde.semilinear import AllenCahn, Burgers, integrate
from nearly.pde.vorticity import NavierStokes2D

SEEDS = range(3)
BOX = Grid((1.0, 1.0), periodic=True)


@dataclass(frozen=True)
class Scale:
    """How large an instance is: the network, the data, and what is spent on training."""

    points: int = 32
    frames: int = 7
    pretraining: int = 64  # trajectories of each equation
    steps: int = 400
    pretraining_steps: int = 1000
    batch: int = 16
    rate: float = 1e-3
    network: dict[str, Any] = field(default_factory=dict, hash=False)


SMALL = Scale()
PAPER_LIKE = Scale(
    points=128,
    frames=11,
    pretraining=1024,
    steps=4000,
    pretraining_steps=40_000,
    batch=40,
    rate=5e-4,
    network={**SIZES["T"], **PAPER},
)
TESTS = 32


# ---- the equations: one field each, with mean 0 and deviation 1 at the start


def _initial(key: Any, points: int) -> Any:
    drawn = gaussian_random_field(key, (points, points), alpha=4.0, tau=10.0)
    drawn = drawn - drawn.mean()
    return drawn / drawn.std()


def _advection_diffusion(initial: Any, frames: int) -> Any:
    def at(time: Any) -> Any:
        moved = advection(initial, time, velocity=jnp.asarray([0.6, 0.3]))
        return heat(moved, time, diffusivity=2e-3)

    return jax.vmap(at)(jnp.arange(1, frames) / (frames - 1))


def _marched(equation: Any, horizon: float, dt: float) -> Callable[[Any, int], Any]:
    """A solver with steps of `dt` on 32 points, shorter in proportion on more."""

    def solve(initial: Any, frames: int) -> Any:
        every = round(horizon / (dt * (frames - 1)) * initial.shape[0] / SMALL.points)
        step = horizon / (every * (frames - 1))
        return integrate(
            equation, initial, dt=step, steps=every * (frames - 1), every=every, scheme=etdrk4
        )

    return solve


PRETRAINING: dict[str, Callable[[Any, int], Any]] = {
    "advection-diffusion": _advection_diffusion,
    "Burgers": _marched(Burgers(0.03), 0.3, 2.5e-3),
    "Allen-Cahn": _marched(AllenCahn(2e-3), 3.0, 0.05),
}
HELD_OUT = _marched(NavierStokes2D(1e-3, forcing=None), 10.0, 0.05)


def _trajectories(solve: Any, key: Any, count: int, scale: Scale) -> Trajectories:
    @jax.jit
    def one(key: Any) -> Any:
        start = _initial(key, scale.points)
        return jnp.concatenate([start[None], solve(start, scale.frames)])

    states = jax.lax.map(one, jax.random.split(key, count), batch_size=8)
    return Trajectories(np.asarray(states)[:, :, None], np.zeros((count, 0)), BOX, 1.0)


# ---- training and judging


def _trained(
    model: ScOT | None,
    data: Any,
    optimizer: Any,
    steps: int,
    scale: Scale,
    seed: int,
    choice: PairChoice = all_to_all,
) -> ScOT:
    network, training = jax.random.split(jax.random.key(seed))
    return train_on_snapshots(
        scot(1, 1, network, **scale.network) if model is None else model,
        data,
        optimizer=optimizer,
        steps=steps,
        batch=scale.batch,
        key=training,
        choice=choice,
    )


def _equal_rates(steps: int, rate: float) -> Any:
    return grouped_adamw(steps, backbone=rate, embedding=rate, time=rate)


def _final_error(model: ScOT, data: Trajectories, tests: Trajectories, calls: int) -> float:
    """The mean relative L1 error of the last frame, from the first one, in so many equal jumps."""
    operator = lead_time_operator(model, data)
    jump = (tests.states.shape[1] - 1) * tests.dt / calls

    @jax.jit
    def last(operator: Any, state: Any) -> Any:
        return jax.lax.fori_loop(0, calls, lambda _, s: operator.after(s, jump), state)

    found = jax.lax.map(lambda s: last(operator, s), jnp.asarray(tests.states[:, 0]), batch_size=8)
    apart = np.abs(np.asarray(found) - tests.states[:, -1]).mean((1, 2, 3))
    return float(np.mean(apart / np.abs(tests.states[:, -1]).mean((1, 2, 3))))


# ---- all pairs


def _as_many(choice: PairChoice, frames: int) -> PairChoice:
    """The same pairs, each equally often repeated, in one array of a length that fits all choices.

    Trainings that differ in their pairs alone are then one compiled program.
    """
    length = int(np.lcm.reduce([len(c(frames)) for c in (all_to_all, from_start, consecutive)]))

    def repeated(frames: int) -> Any:
        pairs = choice(frames)
        return np.tile(pairs, (length // len(pairs), 1))

    return repeated


@lru_cache
def _errors_by_pairs(scale: Scale, seed: int) -> dict[str, float]:
    """The final error of the same network trained on each choice of pairs."""
    draws, held_out = jax.random.split(jax.random.key(100 + seed))
    data = _trajectories(HELD_OUT, draws, TESTS, scale)
    tests = _trajectories(HELD_OUT, held_out, TESTS, scale)
    optimizer = _equal_rates(scale.steps, scale.rate)
    choices = {"all": all_to_all, "start": from_start, "consecutive": consecutive}
    errors: dict[str, float] = {}
    for name, choice in choices.items():
        repeated = _as_many(choice, scale.frames)
        model = _trained(None, data, optimizer, scale.steps, scale, seed, repeated)
        calls = scale.frames - 1 if name == "consecutive" else 1
        errors[name] = _final_error(model, data, tests, calls)
    return errors


SCALED = (
    "32 x 32 points, 190 thousand weights in two stages of two blocks, minutes of training instead "
    "of 128 x 128 points and up to 629 million weights"
)


@claim(
    "poseidon",
    "all-pairs-beat-pairs-from-the-start",
    cost="slow",
    expected=Expected(
        "relative L1 error of a network trained on the pairs (0, t) over that of the same network "
        "trained on all pairs, vorticity of the Navier-Stokes equations at the final time, 32 "
        "trajectories of 7 snapshots, equal steps",
        ">=",
        1.0,
        "supplement on training strategies: all2all training is ahead of vanilla training at equal "
        "numbers of trajectories (quoted from memory)",
        scaled=SCALED,
    ),
)
def all_pairs_beat_pairs_from_the_start() -> list[float]:
    each = [_errors_by_pairs(SMALL, seed) for seed in SEEDS]
    return [errors["start"] / errors["all"] for errors in each]


@claim(
    "poseidon",
    "all-pairs-beat-consecutive-pairs",
    cost="slow",
    expected=Expected(
        "relative L1 error of a rollout of six steps by a network trained on consecutive pairs "
        "over that of one call of the same network trained on all pairs, as above",
        ">=",
        1.0,
        "derived: the consecutive pairs are six of the 28 that all2all training takes "
        "(section 2, semi-group property); more of the same law must not hurt",
        scaled=SCALED,
    ),
)
def all_pairs_beat_consecutive_pairs() -> list[float]:
    each = [_errors_by_pairs(SMALL, seed) for seed in SEEDS]
    return [errors["consecutive"] / errors["all"] for errors in each]


# ---- transfer


def _gain_of_pretraining(scale: Scale, count: int, seed: int) -> float:
    """The final error from scratch over that of fine-tuning, on `count` trajectories."""
    keys = jax.random.split(jax.random.key(200 + seed), 2 + len(PRETRAINING))
    few = _trajectories(HELD_OUT, keys[0], count, scale)
    tests = _trajectories(HELD_OUT, keys[1], TESTS, scale)
    sets = [
        _trajectories(solve, key, scale.pretraining, scale)
        for solve, key in zip(PRETRAINING.values(), keys[2:], strict=True)
    ]
    first, rate = _equal_rates(scale.pretraining_steps, scale.rate), scale.rate
    pretrained = _trained(None, sets, first, scale.pretraining_steps, scale, seed)
    gently = grouped_adamw(scale.steps, backbone=rate / 10, embedding=rate, time=rate)
    fine_tuned = _trained(pretrained, few, gently, scale.steps, scale, seed)
    scratch = _trained(None, few, _equal_rates(scale.steps, rate), scale.steps, scale, seed)
    return _final_error(scratch, few, tests, 1) / _final_error(fine_tuned, few, tests, 1)


@claim(
    "poseidon",
    "pretraining-carries-over-to-an-unseen-equation",
    cost="slow",
    expected=Expected(
        "relative L1 error of a network trained from scratch over that of one pretrained on "
        "advection-diffusion, Burgers and Allen-Cahn and then fine-tuned, on 8 trajectories of the "
        "Navier-Stokes equations, final time, equal steps on them",
        ">=",
        1.5,
        "derived: the largest network is about five times as accurate as when trained from scratch "
        "(supplement, comparison with DPOT; quoted from memory); a third of that is asked of one "
        "3,000 times smaller, pretrained on three equations with 64 trajectories each instead of "
        "77,840",
        scaled=SCALED,
    ),
    limits="pretraining for 1,000 steps on three equations, none of them a flow, does not make up "
    "for a backbone that moves at a tenth of the rate over 400 steps; which of the two limits it "
    "was not separated",
)
def pretraining_carries_over() -> list[float]:
    return [_gain_of_pretraining(SMALL, 8, seed) for seed in SEEDS]


@claim(
    "poseidon",
    "pretraining-carries-over-at-the-published-size",
    cost="gpu",
    expected=Expected(
        "relative L1 error of Poseidon-T trained from scratch over that of one pretrained on "
        "advection-diffusion, Burgers and Allen-Cahn and then fine-tuned, on 8 trajectories of the "
        "Navier-Stokes equations, 128 x 128 points, final time, equal steps on them",
        ">=",
        2.0,
        "derived: the largest network is about five times as accurate as when trained from scratch "
        "(supplement, comparison with DPOT; quoted from memory); two fifths of that for "
        "the smallest one",
        scaled="three scalar equations with 1,024 trajectories each instead of two systems of "
        "fluid dynamics with 77,840",
    ),
)
def pretraining_carries_over_at_the_published_size() -> list[float]:
    if jax.default_backend() == "cpu":
        raise Inconclusive("needs a GPU: 21 million weights on fields of 128 x 128")
    return [_gain_of_pretraining(PAPER_LIKE, 8, seed) for seed in SEEDS]
