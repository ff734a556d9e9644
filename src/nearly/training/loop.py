"""The one training loop: optax steps, dispatched in chunks, deterministic and resumable to the bit.

Design decisions, and what they cost:

- Steps run inside one compiled `while_loop` with a dynamic number of steps, not a `scan`: chunks
  grow and shrink with the measured time of a step without compiling again. Between chunks come
  progress, validation, checkpoints and Ctrl-C. What is computed does not depend on the chunks.
- Every random number comes from the run's key and the number of the step, so a resumed run repeats
  the uninterrupted one to the bit. Epochs are permutations drawn from the key and the epoch; the
  last, incomplete batch of an epoch is left out (another one each time).
- The state is donated, so the weights are held once. The model handed in is copied first.
- The compiled loop is kept between calls of `fit` with the same functions and shapes. An optax
  optimizer is a fresh pair of functions each time it is made: make it once and reuse it.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from nearly.core.errors import InputError, Interrupted, UnknownName
from nearly.core.progress import Progress, silent
from nearly.training import checkpoint as files
from nearly.training.steps import (
    CHUNK_STEPS,
    Gradient,
    Loss,
    Run,
    State,
    Stream,
    advance,
    advance_once,
    evaluate,
    reverse_mode,
)

Status = Literal["done", "stopped", "diverged", "interrupted"]
Dispatch = Literal["chunks", "steps"]

CHUNK_SECONDS = 2.0  # what an adapted chunk aims at
CHECKPOINT_SECONDS = 10.0  # how often a checkpoint is written at most


@dataclass(frozen=True)
class Trained:
    """What a training run hands back.

    **Arguments:**

    - `model`: the one to use: the best validated one if `validate` was given, the moving average
      of the weights if `ema` was, otherwise the weights after the last step.
    - `last`: the model with the weights after the last step.
    - `losses`: the training loss at which each step was taken, `[steps]`, and after it the one at
      which the run diverged, if it did.
    - `steps`: how many steps were taken. `status`: `done`; `stopped` early by `patience`;
      `diverged` (the loss or the update was not finite: that step was not applied); `interrupted`.
    - `reason`: the status in words.
    - `validations`: validation loss by step, and `best_step`: the step of the smallest.
    - `stream`: the last state of the `Stream` the batches came from, if they did.
    """

    model: Any
    last: Any
    losses: np.ndarray
    steps: int
    status: Status
    reason: str = ""
    validations: dict[int, float] = field(default_factory=dict)
    best_step: int | None = None
    stream: Any = None


def fit(
    loss: Loss,
    model: PyTree,
    data: PyTree,
    *,
    optimizer: optax.GradientTransformation,
    steps: int,
    key: Any,
    batch: int | None = None,
    ema: float | None = None,
    trainable: PyTree = eqx.is_inexact_array,
    gradient: Gradient | None = None,
    validate: Callable[[Any], Any] | None = None,
    every: int = 100,
    patience: int | None = None,
    chunk: int | None = None,
    dispatch: Dispatch = "chunks",
    progress: Progress = silent,
    checkpoint: Path | str | None = None,
) -> Trained:
    """Minimise the expected loss of any equinox model (any pytree) by optax steps.

    **Arguments:**

    - `loss`: `(model, batch, key) -> scalar`; the key is new at every step (dropout, noise).
    - `data`: a pytree of arrays with a common leading axis, cut into batches of `batch` by a new
      permutation each epoch (`batch=None`: all of it at every step); or a function `key -> batch`,
      whose arrays are inputs of the compiled program if it is an equinox module; or a
      `nearly.training.Stream`, which has a state.
    - `optimizer`: any optax transformation. `value`, `grad` and `value_fn` are handed to those
      that take extra arguments (line searches, Polyak steps).
    - `steps`: to take in all. `key`: a typed random key; decides everything random.
    - `ema`: decay per step of a moving average of the weights, bias-corrected from the first step.
    - `trainable`: which leaves move: a filter (`leaf -> bool`) or a pytree of bools, a prefix of
      the model. Only arrays of floats (or complex numbers) ever move.
    - `gradient`: `(objective, weights, *, key, step) -> (value, gradient)` replaces
      `jax.value_and_grad(objective)(weights)`. `objective(weights)` is the loss of the step, of
      one batch and one key however often it is called. For estimators, perturbations, clipping.
    - `validate`: `model -> scalar`, evaluated before the first step, each `every` steps and at
      the end, on what would be returned then. `patience`: stop after that many evaluations
      without a new minimum.
    - `chunk`: steps between two looks at the outside world; by default as many as take 2 s.
    - `dispatch`: `chunks` of steps are one program each; or every step is one (`steps`), which
      costs a millisecond a step and is several times faster for convolutions on a CPU: XLA lays
      them out for its library in the outermost computation only, not inside a loop.
    - `progress`: told `(steps done, steps, loss)` after every chunk.
    - `checkpoint`: an `.npz` file, written every 10 s, on Ctrl-C and at the end. If it exists the
      run takes up where the file left it; a finished run returns at once; more `steps` go on.

    **Returns:** `Trained`. A loss that is not finite ends the run with status `diverged`.

    Raises `InputError` for bad arguments or another run's checkpoint, and `Interrupted` on Ctrl-C,
    honoured at the end of the chunk, with the `Trained` so far as `.done`.

    **Cost:** that of the gradients; memory of the weights, the optimizer's state, one copy each
    for `ema` and for `validate`, and the data.
    """
    _check(steps, batch, ema, every, patience, chunk, dispatch, key)
    weights, frozen = _split(model, trainable)
    supplies = callable(data) or isinstance(data, Stream)
    run = Run(
        loss,
        gradient or reverse_mode,
        optax.with_extra_args_support(optimizer),
        frozen,
        data if supplies else _on_device(data, batch),
        key,
        batch=None if supplies else batch,
        ema=ema,
    )
    session = _Session(run, steps, validate, every, patience, progress, _path(checkpoint), dispatch)
    session.begin(State.initial(run, jax.tree.map(jnp.copy, weights)))
    with deferred_interrupt() as interrupted:
        session.train(1 if dispatch == "steps" else chunk, interrupted)
    return session.result()


# ---- what runs on the host


@dataclass
class _Session:
    """A run under way: the state, what was seen so far, and where it is kept."""

    run: Run
    steps: int
    validate: Callable[[Any], Any] | None
    every: int
    patience: int | None
    progress: Progress
    path: Path | None
    dispatch: Dispatch = "chunks"
    state: Any = None
    best: Any = None
    losses: list[np.ndarray] = field(default_factory=list)
    validations: dict[int, float] = field(default_factory=dict)
    status: Status = "done"
    saved: float = field(default_factory=time.monotonic)

    def begin(self, fresh: State) -> None:
        self.state = fresh
        if self.validate is not None:
            self.best = jax.tree.map(jnp.copy, fresh.weights)
        if self.path is not None and self.path.exists():
            self._take_up(self.path)
        elif self.validate is not None:
            self._judge()

    @property
    def step(self) -> int:
        return int(self.state.step)

    def train(self, chunk: int | None, interrupted: Callable[[], bool]) -> None:
        pace = _Pace(chunk)
        try:
            while self._goes_on():
                self._chunk(pace)
                self._save_if_due()
                if interrupted():
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            self.status = "interrupted"
            self._save()
            hint = f"; the same call takes up {self.path}" if self.path else ""
            raise Interrupted(
                f"interrupted after {self.step} of {self.steps} steps{hint}", done=self.result()
            ) from None
        self._save()

    def _goes_on(self) -> bool:
        if not bool(self.state.finite):
            self.status = "diverged"
        elif self.patience is not None and self._stale() >= self.patience:
            self.status = "stopped"
        return self.status == "done" and self.step < self.steps

    def _chunk(self, pace: _Pace) -> None:
        before = self.step
        count = min(pace.steps, self.steps - before)
        if self.validate is not None:
            count = min(count, self.every - before % self.every)
        begun = time.perf_counter()
        self.state, losses = self._advanced(count)
        met = np.asarray(losses)  # waits for the chunk
        pace.took(count, time.perf_counter() - begun)
        taken = self.step - before + (not bool(self.state.finite))
        self.losses.append(met[:taken])
        if self.validate is not None and bool(self.state.finite):
            after = self.step
            if after % self.every == 0 or after == self.steps:
                self._judge()
        self.progress(self.step, self.steps, f"loss {met[max(taken - 1, 0)]:.4g}")

    def _advanced(self, count: int) -> tuple[State, Any]:
        if self.dispatch == "steps":
            return advance_once(self.run, self.state)
        return advance((self.run, jnp.asarray(count, jnp.int32)), self.state)

    def _judge(self) -> None:
        """Validate what would be returned now, and keep it if it is the best."""
        assert self.validate is not None
        value, weights = evaluate(self.validate, self.run, self.state)
        value = float(value)
        if value < self._smallest():
            # A copy: a compiled program may hand back its very input, which is donated next.
            self.best = jax.tree.map(jnp.copy, weights)
        self.validations[self.step] = value

    def _smallest(self) -> float:
        """The smallest validation loss so far; infinite if none was finite."""
        return min((v for v in self.validations.values() if math.isfinite(v)), default=math.inf)

    def _best_step(self) -> int | None:
        smallest = self._smallest()
        return next((s for s, v in self.validations.items() if v == smallest < math.inf), None)

    def _stale(self) -> int:
        """How many validations have passed since the best one."""
        best = self._best_step()
        return sum(step > (-1 if best is None else best) for step in self.validations)

    # The checkpoint holds the state, the best weights, and what was seen so far.

    def _save_if_due(self) -> None:
        if time.monotonic() - self.saved >= CHECKPOINT_SECONDS:
            self._save()

    def _save(self) -> None:
        if self.path is None:
            return
        seen = {
            "key": np.asarray(jax.random.key_data(self.run.key)),
            "losses": np.concatenate([np.zeros(0), *self.losses]),
            "validation_steps": np.array([*self.validations], np.int64),
            "validation_values": np.array([*self.validations.values()], np.float64),
        }
        files.save(self.path, (self.state, self.best), seen)
        self.saved = time.monotonic()

    def _take_up(self, path: Path) -> None:
        names = ("key", "losses", "validation_steps", "validation_values")
        (state, self.best), seen = files.load(path, (self.state, self.best), names)
        if not np.array_equal(seen["key"], np.asarray(jax.random.key_data(self.run.key))):
            raise InputError(
                f"the checkpoint {path} was written with another key: "
                "delete it, or name another file in checkpoint="
            )
        self.state = state
        self.losses = [seen["losses"]]
        pairs = zip(seen["validation_steps"], seen["validation_values"], strict=True)
        self.validations = {int(step): float(value) for step, value in pairs}

    def result(self) -> Trained:
        validated = self._best_step() is not None
        weights = self.best if validated else self.run.averaged(self.state)
        steps = self.step
        reasons: dict[Status, str] = {
            "done": f"{steps} steps",
            "stopped": f"no new minimum of the validation loss in {self.patience} evaluations",
            "diverged": f"the loss or the update of step {steps + 1} is not finite",
            "interrupted": f"interrupted after {steps} of {self.steps} steps",
        }
        return Trained(
            model=eqx.combine(weights, self.run.frozen),
            last=eqx.combine(self.state.weights, self.run.frozen),
            losses=np.concatenate([np.zeros(0), *self.losses]),
            steps=steps,
            status=self.status,
            reason=reasons[self.status],
            validations=dict(self.validations),
            best_step=self._best_step(),
            stream=self.state.stream,
        )


@dataclass
class _Pace:
    """How many steps the next chunk takes: as many as fit in `CHUNK_SECONDS`, unless given."""

    fixed: int | None
    steps: int = 1
    compiled: bool = False

    def __post_init__(self) -> None:
        self.steps = min(self.fixed or 1, CHUNK_STEPS)

    def took(self, steps: int, seconds: float) -> None:
        if self.fixed is not None:
            return
        if self.compiled:  # the first chunk's seconds are those of the compiler
            fits = CHUNK_SECONDS * steps / max(seconds, 1e-6)
            self.steps = int(min(max(1, fits), 8 * self.steps, CHUNK_STEPS))
        self.compiled = True


@contextmanager
def deferred_interrupt() -> Generator[Callable[[], bool]]:
    """Ctrl-C is noted, and honoured between chunks, where the state is whole; a second one at once.

    Only the main thread can receive signals; elsewhere nothing is changed.
    """
    met = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield met.is_set
        return

    def note(number: int, frame: Any) -> None:
        if met.is_set():
            raise KeyboardInterrupt
        met.set()

    before = signal.signal(signal.SIGINT, note)
    try:
        yield met.is_set
    finally:
        signal.signal(signal.SIGINT, before)


# ---- what is checked


def _check(
    steps: int,
    batch: int | None,
    ema: float | None,
    every: int,
    patience: int | None,
    chunk: int | None,
    dispatch: str,
    key: Any,
) -> None:
    counts = {"steps": steps, "batch": batch, "every": every, "patience": patience, "chunk": chunk}
    for name, value in counts.items():
        if value is not None and value < 1:
            raise InputError(f"{name}={value} must be at least 1")
    if dispatch not in get_args(Dispatch):
        raise UnknownName("dispatch", dispatch, get_args(Dispatch))
    if ema is not None and not 0 < ema < 1:
        raise InputError(f"ema={ema} must lie between 0 and 1, such as 0.999")
    if not (eqx.is_array(key) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        raise InputError("key must be a typed random key: jax.random.key(seed)")


def _split(model: PyTree, trainable: PyTree) -> tuple[PyTree, PyTree]:
    """The leaves that move, and the rest of the model."""
    chosen = eqx.filter(model, trainable)
    weights, _ = eqx.partition(chosen, eqx.is_inexact_array)
    if not jax.tree.leaves(weights):
        raise InputError("nothing to train: no trainable leaf of the model is an array of floats")
    moves = jax.tree.map(lambda leaf: leaf is not None, weights, is_leaf=lambda x: x is None)
    return weights, eqx.filter(model, moves, inverse=True)


def _on_device(data: PyTree, batch: int | None) -> PyTree:
    arrays = jax.tree.map(jnp.asarray, data)
    lengths = {leaf.shape[:1] for leaf in jax.tree.leaves(arrays)}
    if len(lengths) != 1 or () in lengths:
        raise InputError(
            f"the arrays of data must share their first axis, not {sorted(lengths)}; "
            "for anything else hand over a function key -> batch"
        )
    ((examples,),) = lengths
    if batch is not None and batch > examples:
        raise InputError(f"batch={batch} exceeds the {examples} examples: give at most {examples}")
    return arrays


def _path(checkpoint: Path | str | None) -> Path | None:
    if checkpoint is None:
        return None
    path = Path(checkpoint)
    if path.suffix != ".npz":
        raise InputError(f"checkpoint {str(path)!r} must be an .npz file")
    return path
