"""Interacting bodies: from one snapshot to a later one, and what was on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nearly.core.errors import InputError, UnknownName
from nearly.core.store import Store, digest_of
from nearly.dynamics.equivariant import Bodies, Interaction
from nearly.dynamics.problems.trajectories import TrajectoryLearning, evaluations

COUNT = 5  # bodies
STEP = 1e-3  # of the simulation
BEGIN = 3.0  # when the first snapshot is taken
FRAMES = 4  # snapshots that are kept, equally far apart; the last is what is learned
CLIP = 100.0  # of a body's acceleration, by component: the generator's law
SOFTENING = {"charged": 0.0, "gravity": 0.1}


class Motion(eqx.Module):
    """Systems of bodies, and where the bodies are at `FRAMES` later times."""

    bodies: Bodies
    frames: Float[np.ndarray | Array, "frames systems bodies 3"]

    @property
    def systems(self) -> int:
        return self.frames.shape[1]


class BodyMotion(TrajectoryLearning):
    """Where five bodies are after `horizon`, from where they are and how they move.

    A method (protocol `body-motion-models`) is a function `(problem, dial, *, key) -> model` whose
    dial is the number of steps of training. A model maps `Bodies`, with any leading axes, to
    their positions at the end. Its work is counted in calls of an `Interaction` on all systems at
    once. The error `mse` is the mean square of all coordinates of the positions.

    **Arguments:** `train` and `test`: what is learned from, and what is judged.
    """

    train: Motion
    test: Motion
    horizon: float
    name: str = "body-motion"
    dtype: str = "float32"
    error_name: ClassVar[str] = "mse"
    protocol: ClassVar[str] = "body-motion-models"

    def predict(self, model: Any, data: Motion, *, key: Any) -> Array:
        return counting(model)(jax.tree.map(jnp.asarray, data.bodies))

    def errors(self, value: Any) -> Mapping[str, float]:
        wrong = np.asarray(value, np.float64) - self.test.frames[-1]
        return {"mse": float(np.mean(wrong**2))}


def counting(model: Any) -> Any:
    """The model, calls of its interactions counted."""

    def mark(leaf: Any) -> Any:
        return evaluations(leaf) if isinstance(leaf, Interaction) else leaf

    return jax.tree.map(mark, model, is_leaf=lambda x: isinstance(x, Interaction))


def body_motion(
    law: str = "charged",
    horizon: float = 1.0,
    training: int = 400,
    testing: int = 400,
    seed: int = 0,
) -> BodyMotion:
    """Five bodies that start at random: charges of either sign, or masses that attract.

    The laws are those of EGNN's generator (`charged`: +-1, unit coupling, speeds of 0.5 at first)
    and of its successor (`gravity`: unit masses, softened by 0.1, in the frame of their centre).
    The first snapshot is taken at time 3.

    **Arguments:** `horizon`: from the first snapshot to the last. `training` and `testing`:
    systems. `seed`: of the data.

    Raises `UnknownName` for a law, `InputError` for numbers that are not positive. Simulated once
    (a second) and kept in the store.
    """
    if law not in SOFTENING:
        raise UnknownName("law of motion", law, SOFTENING)
    if min(training, testing) < 1:
        raise InputError(f"training {training} and testing {testing} must be at least 1 system")
    if not FRAMES * STEP <= horizon <= 100:
        raise InputError(f"horizon {horizon} must lie between {FRAMES * STEP} and 100")
    digest = digest_of("motion of bodies", law, horizon, training + testing, seed)
    make: Callable[[], dict[str, np.ndarray]] = lambda: simulate(  # noqa: E731
        law, horizon, training + testing, seed
    )
    kept = make() if digest is None else Store().truth(digest, make)
    return BodyMotion(
        train=_motion(kept, slice(training)),
        test=_motion(kept, slice(training, None)),
        horizon=horizon,
        name=f"{law}-five-body",
    )


def _motion(kept: Mapping[str, np.ndarray], rows: slice) -> Motion:
    chosen = {name: np.asarray(values, np.float32) for name, values in kept.items()}
    bodies = Bodies(chosen["positions"][rows], chosen["velocities"][rows], chosen["charges"][rows])
    return Motion(bodies, chosen["frames"][:, rows])


# ---- the simulation


def simulate(law: str, horizon: float, systems: int, seed: int) -> dict[str, np.ndarray]:
    """Snapshots by the leapfrog rule in float64: first axis systems, of `frames` the second."""
    softening = SOFTENING[law]
    places, velocities, charges = _start(law, systems, np.random.default_rng(seed))
    strengths = _strengths(law, charges)
    gap = round(horizon / STEP / FRAMES)
    with jax.enable_x64(True):
        run = jax.jit(_advance)
        state = (jnp.asarray(places), jnp.asarray(velocities))
        state = run(state, jnp.asarray(strengths), softening, round(BEGIN / STEP))
        begun = _by_system(state)
        frames: list[np.ndarray] = []
        for _ in range(FRAMES):
            state = run(state, jnp.asarray(strengths), softening, gap)
            frames.append(_by_system(state)[0])
    return {
        "positions": begun[0],
        "velocities": begun[1],
        "charges": charges.T,
        "frames": np.stack(frames),
    }


def _by_system(state: Any) -> tuple[np.ndarray, ...]:
    return tuple(np.moveaxis(np.asarray(part), -1, 0).swapaxes(1, 2) for part in state)


def _start(law: str, systems: int, draw: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Places and velocities [3, bodies, systems], charges or masses [bodies, systems]."""
    places = draw.standard_normal((3, COUNT, systems))
    velocities = draw.standard_normal((3, COUNT, systems))
    if law == "gravity":
        centred = velocities - velocities.mean(axis=1, keepdims=True)
        return places, centred, np.ones((COUNT, systems))
    slow = 0.5 * velocities / np.linalg.norm(velocities, axis=0)
    return places, slow, draw.choice([-1.0, 1.0], (COUNT, systems))


PAIRS = np.array(list(combinations(range(COUNT), 2)))
INCIDENCE = np.eye(COUNT)[:, PAIRS[:, 0]] - np.eye(COUNT)[:, PAIRS[:, 1]]


def _strengths(law: str, charges: np.ndarray) -> np.ndarray:
    """Of each pair's force: positive where it drives apart."""
    products = charges[PAIRS[:, 0]] * charges[PAIRS[:, 1]]
    return -products if law == "gravity" else products


def _advance(state: Any, strengths: Array, softening: Any, steps: Any) -> Any:
    """So many steps of kick and drift."""

    def step(_: Any, state: Any) -> Any:
        places, velocities = state
        apart = places[:, PAIRS[:, 0]] - places[:, PAIRS[:, 1]]
        inverse = jax.lax.rsqrt(jnp.sum(apart**2, axis=0) + softening**2)
        forces = jnp.einsum("bp,dps->dbs", INCIDENCE, strengths * inverse**3 * apart)
        velocities += STEP * jnp.clip(forces, -CLIP, CLIP)
        return places + STEP * velocities, velocities

    return jax.lax.fori_loop(0, steps, step, state)
