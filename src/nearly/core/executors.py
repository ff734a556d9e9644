"""Where trials run: in this process, in a pool of spawned ones, on a Dask cluster, or anything
with `.submit`. A task is a reference, never an object, and is rebuilt where it runs.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

from nearly.core import catalogue
from nearly.core.catalogue import Reference
from nearly.core.errors import InputError, MissingDependency
from nearly.core.run import Dial, Trial

ATTEMPTS = 3  # a task whose worker dies is run again this often


@dataclass(frozen=True)
class Task:
    """One trial as a reference: what a worker rebuilds and runs."""

    problem: Reference
    method: str
    protocol: str
    dial: Dial
    seed: int


@runtime_checkable
class Submitter(Protocol):
    """Anything that runs functions elsewhere: an executor, a Dask client."""

    def submit(self, function: Callable[..., Any], /, *args: Any) -> Any: ...


_one_at_a_time = threading.Lock()  # a tally is per process; a Dask worker may have threads


def run_task(task: Task) -> dict[str, Any]:
    """Rebuild a task's problem and method and run the trial; its plain-data form."""
    from nearly.core.measure import run_trial

    with _one_at_a_time:
        problem = _problem(task.problem)
        method, _ = catalogue.method(task.method, task.protocol)
        return run_trial(problem, method, task.dial, task.seed)[0].to_json()


@lru_cache(4)
def _problem(reference: Reference) -> Any:
    return reference.build()


class Pool:
    """A pool of spawned processes that die with their parent and survive each other's death.

    A worker that is killed breaks a `ProcessPoolExecutor`; this one starts afresh and hands the
    unfinished tasks out again, `ATTEMPTS` times at most.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._context = multiprocessing.get_context("spawn")
        # A file, not a semaphore: a worker killed while it holds one would stop us all.
        self._leash = tempfile.NamedTemporaryFile(prefix="nearly-pool-")  # noqa: SIM115
        self._pool = self._start()

    def _start(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            self.workers, self._context, initializer=_watch_parent, initargs=(self._leash.name,)
        )

    def submit(self, function: Callable[..., Any], /, *args: Any) -> Future[Any]:
        try:
            return self._pool.submit(function, *args)
        except BrokenProcessPool:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = self._start()
            return self._pool.submit(function, *args)

    def close(self) -> None:
        """Stop every worker, busy or not."""
        self._leash.close()
        self._pool.shutdown(wait=False, cancel_futures=True)


def _watch_parent(leash: str) -> None:
    """In a worker: leave Ctrl-C to the parent, and exit when the leash or the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()

    def watch() -> None:
        while os.path.exists(leash) and os.getppid() == parent:
            time.sleep(0.3)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _pool(workers: int) -> Iterator[Pool]:
    pool = Pool(workers)
    try:
        yield pool
    finally:
        pool.close()


def _dask(address: str) -> AbstractContextManager[Any]:
    try:
        from distributed import Client
    except ImportError as error:
        raise MissingDependency("--executor needs Dask: pip install 'nearly[cluster]'") from error
    try:
        return Client(address, timeout=10, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise InputError(f"no Dask scheduler answers at {address!r}: {error}") from error


def connect(workers: int, executor: Any) -> AbstractContextManager[Submitter | None]:
    """The place where trials run: None means this process.

    **Arguments:**

    - `workers`: how many processes to spawn; 0 for none.
    - `executor`: a Dask scheduler's address, or an object with `.submit`; None for neither.

    Raises `InputError` where both are given or nothing answers at the address.
    """
    if workers < 0:
        raise InputError(f"--workers {workers} must be 0 (this process) or more")
    if workers and executor is not None:
        raise InputError("give --workers or --executor, not both")
    if workers:
        return _pool(workers)
    if isinstance(executor, str):
        return _dask(executor)
    if executor is not None and not hasattr(executor, "submit"):
        raise InputError(f"the executor {executor!r} has no .submit")
    return nullcontext(executor)


def scatter(
    submitter: Submitter, tasks: Sequence[Task], window: int, deadline: float
) -> Iterator[tuple[Task, Trial]]:
    """Run tasks elsewhere, at most `window` in flight; yield each with its trial as it finishes.

    A task whose worker died is handed out again; after `ATTEMPTS` deaths it is a failed trial.
    Tasks that have not begun at `deadline` (of `time.monotonic`) are timeouts.
    """
    waiting = deque((task, 1) for task in tasks)
    flying: list[tuple[Task, int, Any]] = []
    while waiting or flying:
        if time.monotonic() > deadline:
            late = Trial(0, "timeout", "not started: the budget was spent")
            yield from ((task, replace(late, seed=task.seed)) for task, _ in waiting)
            waiting.clear()
        while waiting and len(flying) < window:
            task, attempt = waiting.popleft()
            flying.append((task, attempt, submitter.submit(run_task, task)))
        done = [entry for entry in flying if entry[2].done()]
        if not done:
            time.sleep(0.01)
        for entry in done:
            flying.remove(entry)
            task, attempt, future = entry
            trial = _outcome(task, future)
            if trial is not None:
                yield task, trial
            elif attempt < ATTEMPTS:
                waiting.appendleft((task, attempt + 1))
            else:
                yield task, Trial(task.seed, "failed", f"its worker died {ATTEMPTS} times")


def _outcome(task: Task, future: Any) -> Trial | None:
    """The trial a future holds; None if the worker died under it."""
    try:
        return Trial.from_json(future.result())
    except Exception as error:
        if worker_died(error):
            return None
        return Trial(task.seed, "failed", f"{type(error).__name__}: {error}")


def worker_died(error: BaseException) -> bool:
    """Whether a future's error says that its worker died: then the task may be handed out again."""
    return isinstance(error, BrokenProcessPool) or type(error).__name__ == "KilledWorker"
