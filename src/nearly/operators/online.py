"""Online training: batches from solvers that run on, instead of from a stored data set.

A simulation is a function `key -> samples`, one run of a solver in pure JAX: a pytree of arrays
`[frames, ...]` in order of time, such as (inputs, outputs). A data source turns it into what
`nearly.training.fit` takes:

    source = Buffered(Reservoir(capacity=1024))
    trained = fit(loss, model, **source(simulation, loss, batch=32, key=key), ...)

`FixedSet` is the offline baseline: so many runs, stored, with early stopping. `Fresh` solves anew
for every batch. `Buffered` puts a buffer between, in which case solver and trainer alternate in one
compiled program; `nearly.operators.live` runs the solvers in other processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree

from nearly.core.errors import InputError
from nearly.operators.reservoir import FIFO, FIRO, Buffer, Policy, Reservoir
from nearly.training import Stream

Simulation = Callable[[Any], PyTree]
Loss = Callable[[Any, Any, Any], Any]

VALIDATION = 1  # what folds a key into that of the runs that are validated on


# ---- solver and trainer in one compiled program


class Live(eqx.Module):
    """The state of a `LiveStream`.

    **Attributes:**

    - `buffer`: what can be drawn. `key`: run i of the solver has the key `fold_in(key, i)`.
    - `runs`: how many runs have been solved. `draws`: how many batches have been drawn.
    """

    buffer: Buffer
    key: Any
    runs: Int[Array, ""]
    draws: Int[Array, ""]


class LiveStream(Stream):
    """Rounds of solver runs that alternate with optimiser steps, a buffer between them.

    **Arguments:**

    - `simulation`: `key -> samples [frames, ...]`, one run.
    - `policy`: of the buffer. `batch`: samples drawn in each step.
    - `runs`: how many runs are solved side by side in a round. Their samples arrive time by time,
      as those of solvers that run at once do: first every run's first frame, then the second.
    - `every`: steps between rounds. A round for which there is no room (all held samples unseen)
      is put off; a batch that is not there (FIFO and FIRO) is waited for by solving more.

    Raises `InputError` for a buffer that cannot hold a batch and a round at once.

    **Cost:** of a draw, one sorting of the slots; of a round, its runs under `jax.vmap` and one
    more sorting. The state holds `capacity` samples.
    """

    simulation: Simulation
    policy: Policy
    batch: int = eqx.field(static=True, default=32)
    runs: int = eqx.field(static=True, default=8)
    every: int = eqx.field(static=True, default=1)

    def __check_init__(self) -> None:
        for name in ("batch", "runs", "every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} must be at least 1")

    def initial(self, key: Any) -> Live:
        sample = jax.eval_shape(self._round, key, jnp.zeros((), jnp.int32))
        arrivals = jax.tree.leaves(sample)[0].shape[0]
        least = max(self.policy.threshold, self.batch) + arrivals
        if self.policy.capacity < least:
            raise InputError(
                f"capacity={self.policy.capacity} cannot hold what is drawn from and a round of "
                f"{arrivals} arrivals: give at least {least}, or fewer runs"
            )
        one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), sample)
        nothing = jnp.zeros((), jnp.int32)
        return Live(self.policy.empty(one), key, nothing, nothing)

    def draw(self, state: Live, key: Any) -> tuple[Live, PyTree]:
        put_key, draw_key = jax.random.split(key)
        due = state.draws % self.every == 0

        def waits(carry: tuple[Live, Bool[Array, ""]]) -> Bool[Array, ""]:
            live, due = carry
            return due | ~self.policy.ready(live.buffer, self.batch, ended=False)

        def solved(carry: tuple[Live, Bool[Array, ""]]) -> tuple[Live, Bool[Array, ""]]:
            return self._solved(carry[0], put_key), jnp.zeros((), bool)

        state, _ = jax.lax.while_loop(waits, solved, (state, due & self._has_room(state)))
        buffer, batch = self.policy.draw(state.buffer, self.batch, key=draw_key)
        return Live(buffer, state.key, state.runs, state.draws + 1), batch

    def _round(self, key: Any, first: Int[Array, ""]) -> PyTree:
        """The samples of the next runs, time by time: `[frames * runs, ...]`."""
        keys = jax.vmap(lambda i: jax.random.fold_in(key, first + i))(jnp.arange(self.runs))
        samples = jax.vmap(self.simulation, out_axes=1)(keys)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), samples)

    def _solved(self, live: Live, key: Any) -> Live:
        samples = self._round(live.key, live.runs)
        key = jax.random.fold_in(key, live.runs)
        buffer, _ = self.policy.put(live.buffer, samples, key=key)
        return Live(buffer, live.key, live.runs + self.runs, live.draws)

    def _has_room(self, live: Live) -> Bool[Array, ""]:
        shapes = jax.eval_shape(self._round, live.key, live.runs)
        return live.buffer.room >= jax.tree.leaves(shapes)[0].shape[0]


class Solved(eqx.Module):
    """The state of `FreshBatches`: run i has the key `fold_in(key, i)`; `runs` have been solved."""

    key: Any
    runs: Int[Array, ""]


class FreshBatches(Stream):
    """Every batch from runs of its own: nothing is stored, nothing seen twice.

    `runs` runs are solved for each batch, all their frames; a batch of one frame a run is
    therefore as many runs.
    """

    simulation: Simulation
    runs: int = eqx.field(static=True)

    def initial(self, key: Any) -> Solved:
        return Solved(key, jnp.zeros((), jnp.int32))

    def draw(self, state: Solved, key: Any) -> tuple[Solved, PyTree]:
        del key
        numbers = state.runs + jnp.arange(self.runs)
        keys = jax.vmap(lambda i: jax.random.fold_in(state.key, i))(numbers)
        samples = jax.vmap(self.simulation)(keys)
        batch = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), samples)
        return Solved(state.key, state.runs + self.runs), batch


# ---- data sources: arguments of `fit`


class FixedSet(eqx.Module):
    """Offline: a stored set of samples, used over and over, with early stopping.

    **Arguments:**

    - `samples`: stored; as many runs are solved as that takes.
    - `validation`: samples of further runs on which the best model is chosen.
    - `every`: steps between validations. `patience`: validations without a new minimum after which
      training stops; None: never, and the best model of all is handed back.
    """

    samples: int = eqx.field(static=True, default=512)
    validation: int = eqx.field(static=True, default=128)
    every: int = eqx.field(static=True, default=100)
    patience: int | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        if min(self.samples, self.validation) < 1:
            raise InputError(
                f"samples={self.samples} and validation={self.validation} must be at least 1"
            )

    def __call__(
        self, simulation: Simulation, loss: Loss, *, batch: int, key: Any
    ) -> Mapping[str, Any]:
        held_out = solve(simulation, self.validation, jax.random.fold_in(key, VALIDATION))
        return {
            "data": solve(simulation, self.samples, key),
            "batch": batch,
            "validate": _Validation(loss, held_out, key),
            "every": self.every,
            "patience": self.patience,
        }

    def runs(self, simulation: Simulation, trained: Any) -> int:
        """How many runs of the solver training took."""
        del trained
        return sum(_runs_for(simulation, count) for count in (self.samples, self.validation))


class Fresh(eqx.Module):
    """Online without a buffer: each batch is solved for it and forgotten."""

    def __call__(
        self, simulation: Simulation, loss: Loss, *, batch: int, key: Any
    ) -> Mapping[str, Any]:
        del loss, key
        frames = _frames(simulation)
        if batch % frames:
            raise InputError(
                f"batch={batch} is no whole number of runs of {frames} frames: change it, or put "
                "a buffer between (Buffered)"
            )
        return {"data": FreshBatches(simulation, batch // frames)}

    def runs(self, simulation: Simulation, trained: Any) -> int:
        """How many runs of the solver training took."""
        del simulation
        return int(trained.stream.runs)


class Buffered(eqx.Module):
    """Online through a buffer, solver and trainer alternating in one compiled program.

    **Arguments:** as of `LiveStream`.

    Paper: `online-surrogate-training`; there solvers and trainer run at once on many machines,
    here in turn, so that a run is repeated to the bit by its key.
    """

    policy: Policy = Reservoir()
    solvers: int = eqx.field(static=True, default=8)
    every: int = eqx.field(static=True, default=1)

    def __call__(
        self, simulation: Simulation, loss: Loss, *, batch: int, key: Any
    ) -> Mapping[str, Any]:
        del loss, key
        return {"data": LiveStream(simulation, self.policy, batch, self.solvers, self.every)}

    def runs(self, simulation: Simulation, trained: Any) -> int:
        """How many runs of the solver training took."""
        del simulation
        return int(trained.stream.runs)


def solve(simulation: Simulation, samples: int, key: Any) -> PyTree:
    """The first samples of runs 0, 1, …, run i from `fold_in(key, i)`: arrays `[samples, ...]`."""
    return _solved(simulation, samples, _runs_for(simulation, samples), key)


@eqx.filter_jit
def _solved(simulation: Simulation, samples: int, runs: int, key: Any) -> PyTree:
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(runs))
    found = jax.vmap(simulation)(keys)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:samples], found)


class _Validation(eqx.Module):
    """The loss on held-out samples: what early stopping looks at."""

    loss: Loss
    samples: PyTree
    key: Any

    def __call__(self, model: Any) -> Any:
        return self.loss(model, self.samples, self.key)


def _runs_for(simulation: Simulation, samples: int) -> int:
    return -(-samples // _frames(simulation))


def _frames(simulation: Simulation) -> int:
    shapes = eqx.filter_eval_shape(simulation, jax.random.key(0))
    lengths = {leaf.shape[:1] for leaf in jax.tree.leaves(shapes)}
    if len(lengths) != 1 or () in lengths:
        raise InputError(
            f"a simulation must return arrays that share their first axis, the frames, not "
            f"{sorted(lengths)}: a single sample has one frame"
        )
    return cast(int, lengths.pop()[0])


# ---- as the catalogue names them

stored_set = FixedSet()
fresh_solves = Fresh()
fifo_stream = Buffered(FIFO(1024))
firo_stream = Buffered(FIRO(1024, 128))
reservoir_stream = Buffered(Reservoir(1024, 128))
