"""Online training with the solvers in other processes, a host thread feeding the reservoir.

The trainer takes compiled chunks of optimiser steps; between two chunks it takes in what has
arrived, without waiting for it unless the policy says that there is nothing to draw. The buffer is
part of the training state, so a checkpoint holds it, and a run that was interrupted or killed goes
on with every sample that had arrived: the others are solved again, the same ones, by their keys.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, PyTree

from nearly.core.catalogue import Reference
from nearly.core.errors import InputError, Interrupted
from nearly.core.executors import connect
from nearly.core.progress import Progress, silent
from nearly.operators.problems.online import DATA, STEPS, OnlineTraining
from nearly.operators.reservoir import Buffer, Policy, Reservoir
from nearly.operators.solver_workers import Feeder, Order
from nearly.operators.training import optimizer
from nearly.training import Stream
from nearly.training import checkpoint as files
from nearly.training.loop import deferred_interrupt
from nearly.training.steps import Run, State, advance, reverse_mode

SAVE_SECONDS = 10.0
WAIT_SECONDS = 0.05
TASKS_AT_ONCE = 4  # whose samples are put into the buffer together: each put sorts its slots


@dataclass(frozen=True)
class Utilisation:
    """Who was busy, in seconds of the wall clock, compilation of the training steps left out.

    **Arguments:**

    - `starting`: until the first samples arrived: workers start and compile.
    - `seconds`: from then on to the last step.
    - `training`: of those, spent in optimiser steps; `feeding`: putting arrivals into the buffer;
      `waiting`: without a batch to draw.
    - `solving`: seconds of all workers together; `workers`: how many.
    - `runs`: of the solver, taken in. `steps`: optimiser steps.
    """

    starting: float
    seconds: float
    training: float
    feeding: float
    waiting: float
    solving: float
    workers: int
    runs: int
    steps: int

    def __str__(self) -> str:
        whole = max(self.seconds, 1e-9)
        return (
            f"trainer {self.training / whole:.0%} busy, {self.feeding / whole:.0%} taking in, "
            f"waited {self.waiting:.2f} s; "
            f"{self.workers} workers {self.solving / (whole * self.workers):.0%} busy; "
            f"{self.runs} solver runs, {self.steps} steps in {self.seconds:.1f} s "
            f"after {self.starting:.1f} s of starting"
        )


@dataclass(frozen=True)
class TrainedLive:
    """What training from live solvers hands back.

    **Arguments:**

    - `model`: with the weights after the last step. `losses`: at which each step of this call was
      taken. `steps`: in all, those before a checkpoint included. `status`: `done`; `drained` (the
      solver runs were used up first); `diverged`; `interrupted`.
    - `utilisation`: of this call.
    """

    model: Any
    losses: np.ndarray
    steps: int
    status: str
    utilisation: Utilisation


class Held(eqx.Module):
    """A buffer, and whether the solvers have ended."""

    buffer: Buffer
    ended: Bool[Array, ""]


class BufferedBatches(Stream):
    """Batches from a buffer that somebody else fills."""

    policy: Policy
    sample: PyTree = eqx.field(static=True)
    batch: int = eqx.field(static=True)

    def initial(self, key: Any) -> Held:
        del key
        shapes = jax.tree.unflatten(self.sample[0], self.sample[1])
        return Held(self.policy.empty(shapes), jnp.zeros((), bool))

    def draw(self, state: Held, key: Any) -> tuple[Held, PyTree]:
        buffer, batch = self.policy.draw(state.buffer, self.batch, state.ended, key=key)
        return Held(buffer, state.ended), batch


def train_live(
    problem: str,
    *,
    steps: int,
    key: Any,
    policy: Policy | None = None,
    workers: int = 1,
    executor: Any = None,
    runs: int | None = None,
    runs_at_once: int = 16,
    between: int = 32,
    checkpoint: Path | str | None = None,
    progress: Progress = silent,
    **settings: Any,
) -> TrainedLive:
    """Train a problem's network on batches from solvers that run in other processes meanwhile.

    **Arguments:**

    - `problem`: names an `OnlineTraining` problem (`online-heat`, `online-burgers`, or
      `file.py:attribute`); `settings` are its fields. It says simulation, network, loss, batch.
    - `steps`: optimiser steps. `key`: decides weights, batches and runs; run i of the solver has
      the same key as in `Buffered`.
    - `policy`: of the buffer; default `Reservoir(capacity=1024, threshold=128)`.
    - `workers`: processes to spawn. With `executor` (a Dask address, or anything with `.submit`)
      they are its own, and this says how many it has.
    - `runs`: of the solver in all; None: as many as there is time for. When they are used up the
      buffer drains, and training ends with status `drained` if steps are left.
    - `runs_at_once`: solved in one task. `between`: steps between two looks at what has arrived.
    - `checkpoint`: an `.npz` file, written every 10 s, on Ctrl-C and at the end; taken up if there.

    **Returns:** `TrainedLive`. Print its `utilisation`: a trainer that waits wants more solvers, or
    a smaller threshold; solvers that wait want a larger capacity, or fewer of them.

    **Raises:** `InputError` for bad arguments; `Interrupted` on Ctrl-C, with the result so far as
    `.done`; what a solver raises; a `NearlyError` if the workers of one task die three times.

    **Cost:** `capacity` samples of memory here, and a task's in each worker. How steps and arrivals
    interleave depends on the clock, so unlike `Buffered` a run is not repeated to the bit.
    Paper: `online-surrogate-training` (there MPI clients and several trainers).
    """
    reference = Reference(problem, tuple(sorted(settings.items())))
    built: Any = reference.build()
    if not isinstance(built, OnlineTraining):
        raise InputError(f"{problem} has no simulation to train on: name one such as online-heat")
    for name, value in (("steps", steps), ("runs_at_once", runs_at_once), ("between", between)):
        if value < 1:
            raise InputError(f"{name}={value} must be at least 1")
    if executor is None and workers < 1:
        raise InputError(f"workers={workers} must be at least 1; Buffered needs no other process")
    with jax.enable_x64(built.dtype == "float64"):
        policy = Reservoir(1024, 128) if policy is None else policy
        session = _Session(built, policy, steps, key, runs_at_once, _path(checkpoint))
        orders = session.orders(reference, runs)
        with (
            connect(0 if executor is not None else workers, executor) as submitter,
            deferred_interrupt() as interrupted,
        ):
            assert submitter is not None
            feeder = Feeder(submitter, orders, window=2 * workers, stock=2 * workers)
            try:
                return session.train(feeder, workers, between, progress, interrupted)
            finally:
                feeder.stop()


class _Session:
    """A run under way: the training state, what waits to be taken in, and the clocks."""

    def __init__(
        self,
        problem: OnlineTraining,
        policy: Policy,
        steps: int,
        key: Any,
        runs_at_once: int,
        path: Path | None,
    ) -> None:
        self.policy, self.steps, self.path = policy, steps, path
        self.runs_at_once = runs_at_once
        self.data_key = jax.random.fold_in(key, DATA)
        model, sample, self.frames = problem.drawn(key)
        needed = max(policy.threshold, problem.batch)
        if policy.capacity < needed:
            raise InputError(f"capacity={policy.capacity} must hold a batch: at least {needed}")
        leaves, self.structure = jax.tree.flatten(sample)
        weights, frozen = eqx.partition(model, eqx.is_inexact_array)
        stream = BufferedBatches(policy, (self.structure, tuple(leaves)), problem.batch)
        self.run = Run(
            problem.loss,
            reverse_mode,
            optax.with_extra_args_support(optimizer(problem.learning_rate, steps)),
            frozen,
            stream,
            jax.random.fold_in(key, STEPS),
            batch=None,
            ema=None,
        )
        self.state = State.initial(self.run, jax.tree.map(jnp.copy, weights))
        self.waiting: list[np.ndarray] = []  # arrivals for which there was no room yet
        self.losses: list[np.ndarray] = []
        self.begun = self.starting = self.training = self.idle = 0.0
        self.feeding = self.solved_before = 0.0
        self.saved = time.monotonic()
        if path is not None and path.exists():
            self._take_up(path)
        self._compile()

    def _compile(self) -> None:
        """Compile both programs by running them on nothing, before any clock starts."""
        self.state, _ = advance((self.run, jnp.zeros((), jnp.int32)), self.state)
        leaves = jax.tree.leaves(self.state.stream.buffer.samples)
        self.waiting = [np.zeros((0, *leaf.shape[1:]), leaf.dtype) for leaf in leaves]
        self._put()
        self.waiting = []

    def orders(self, reference: Reference, runs: int | None) -> Iterator[Order]:
        """The tasks whose samples have not all been taken in yet."""
        words = tuple(int(word) for word in np.asarray(jax.random.key_data(self.data_key)))
        per_order = self.frames * self.runs_at_once
        done, self.skipped = divmod(int(self.state.stream.buffer.arrived), per_order)
        for number in itertools.count(done):
            first = number * self.runs_at_once
            if runs is not None and first >= runs:
                return
            count = self.runs_at_once if runs is None else min(self.runs_at_once, runs - first)
            yield Order(reference, words, first, count)

    def train(
        self,
        feeder: Feeder,
        workers: int,
        between: int,
        progress: Progress,
        interrupted: Callable[[], bool],
    ) -> TrainedLive:
        status = self._first(feeder, interrupted)
        while status == "done" and self.step < self.steps:
            self._take_in(feeder)
            count = self._possible(between)
            if interrupted():
                status = "interrupted"
                break
            if count == 0 and feeder.ended and not self.waiting:
                status = "drained"
                break
            if count == 0:
                self._wait(feeder)
                continue
            self._advance(count)
            progress(self.step, self.steps, f"loss {self.losses[-1][-1]:.4g}")
            if not bool(self.state.finite):
                status = "diverged"
                break
            if time.monotonic() - self.saved > SAVE_SECONDS:
                self._save()
        self._save()
        made = self._result(status, feeder, workers)
        if status == "interrupted":
            hint = f"; the same call takes up {self.path}" if self.path else ""
            raise Interrupted(
                f"interrupted after {self.step} of {self.steps} steps{hint}", done=made
            )
        return made

    @property
    def step(self) -> int:
        return int(self.state.step)

    def _first(self, feeder: Feeder, interrupted: Callable[[], bool]) -> str:
        """Wait for the first samples, unless the buffer holds some; then the clocks start."""
        begun = time.perf_counter()
        while not (self.waiting or feeder.ended or interrupted()):
            self.waiting = self._arrived(feeder, WAIT_SECONDS)
        self.begun, self.solved_before = time.perf_counter(), feeder.busy
        self.starting = self.begun - begun
        return "interrupted" if interrupted() else "done"

    def _take_in(self, feeder: Feeder) -> None:
        """Put arrivals into the buffer, as many as there is room for."""
        begun = time.perf_counter()
        self._put_arrivals(feeder)
        ended = jnp.asarray(feeder.ended and not self.waiting)
        self.state = eqx.tree_at(lambda s: s.stream.ended, self.state, ended)
        self.feeding += time.perf_counter() - begun

    def _put_arrivals(self, feeder: Feeder) -> None:
        while True:
            if not self.waiting:
                self.waiting = self._arrived(feeder)
            if not self.waiting:
                return
            taken = self._put()
            self.waiting = [leaf[taken:] for leaf in self.waiting]
            if self.waiting[0].shape[0]:
                return
            self.waiting = []

    def _arrived(self, feeder: Feeder, wait: float = 0.0) -> list[np.ndarray]:
        """The samples of the next finished tasks; none if there is none within `wait` seconds."""
        found: list[list[np.ndarray]] = []
        while len(found) < TASKS_AT_ONCE and (solved := feeder.take(0.0 if found else wait)):
            found.append([leaf[self.skipped :] for leaf in solved.samples])
            self.skipped = 0
        samples = [np.concatenate(leaves) for leaves in zip(*found, strict=True)]
        return samples if samples and samples[0].shape[0] else []

    def _put(self) -> int:
        """Put the waiting samples; how many were taken in. Always one shape: nothing recompiles."""
        count = self.waiting[0].shape[0]
        size = TASKS_AT_ONCE * self.frames * self.runs_at_once
        padded = [
            np.concatenate([x, np.zeros((size - count, *x.shape[1:]), x.dtype)])
            for x in self.waiting
        ]
        samples = jax.tree.unflatten(self.structure, padded)
        valid = jnp.arange(size) < count
        buffer, taken = _put((self.policy, samples, valid, self.data_key), self.state.stream.buffer)
        self.state = eqx.tree_at(lambda s: s.stream.buffer, self.state, buffer)
        return int(taken)

    def _possible(self, between: int) -> int:
        """How many steps can be taken before somebody has to look again."""
        held, batch = self.state.stream, self.run.data.batch
        if not bool(self.policy.ready(held.buffer, batch, held.ended)):
            return 0
        possible = min(between, self.steps - self.step)
        if bool(held.ended):
            return min(possible, -(-int(held.buffer.count) // batch))
        if isinstance(self.policy, Reservoir):
            return possible
        return max(1, min(possible, int(held.buffer.count) // batch))

    def _wait(self, feeder: Feeder) -> None:
        begun = time.perf_counter()
        self.waiting = self.waiting or self._arrived(feeder, WAIT_SECONDS)
        self.idle += time.perf_counter() - begun

    def _advance(self, count: int) -> None:
        begun = time.perf_counter()
        before = self.step
        self.state, losses = advance((self.run, jnp.asarray(count, jnp.int32)), self.state)
        self.losses.append(np.asarray(losses)[: max(self.step - before, 1)])
        self.training += time.perf_counter() - begun

    def _result(self, status: str, feeder: Feeder, workers: int) -> TrainedLive:
        losses = np.concatenate([np.zeros(0), *self.losses])
        arrived = int(self.state.stream.buffer.arrived)
        spent = Utilisation(
            starting=self.starting,
            seconds=time.perf_counter() - self.begun,
            training=self.training,
            feeding=self.feeding,
            waiting=self.idle,
            solving=feeder.busy - self.solved_before,
            workers=workers,
            runs=arrived // self.frames,
            steps=losses.size,
        )
        model = eqx.combine(self.state.weights, self.run.frozen)
        return TrainedLive(model, losses, self.step, status, spent)

    def _save(self) -> None:
        if self.path is not None:
            files.save(self.path, self.state, {"key": self._words()})
            self.saved = time.monotonic()

    def _take_up(self, path: Path) -> None:
        self.state, seen = files.load(path, self.state, ("key",))
        if not np.array_equal(seen["key"], self._words()):
            raise InputError(
                f"the checkpoint {path} was written with another key: delete it, or name another"
            )

    def _words(self) -> np.ndarray:
        return np.asarray(jax.random.key_data(self.run.key))


@eqx.filter_jit(donate="all-except-first")
def _put(arrivals: tuple[Policy, PyTree, Array, Any], buffer: Buffer) -> tuple[Buffer, Array]:
    policy, samples, valid, key = arrivals
    return policy.put(buffer, samples, valid, key=jax.random.fold_in(key, buffer.arrived))


def _path(given: Path | str | None) -> Path | None:
    if given is None:
        return None
    path = Path(given)
    if path.suffix != ".npz":
        raise InputError(f"checkpoint {str(path)!r} must be an .npz file")
    return path
