"""Buffers between solvers that run on and a trainer: first in first out, random, reservoir.

A solver's consecutive time steps resemble each other, and arrive faster or slower than a trainer
takes them. A policy says which samples make room for arrivals, which are drawn, and which of the
drawn ones stay:

- `FIFO`: drawn in the order of arrival, each once.
- `FIRO`: drawn at random, each once.
- `Reservoir`: drawn at random, and kept: a trainer that is faster than the solvers sees samples
  again instead of waiting. An arrival takes the place of a sample that has been seen, never of an
  unseen one; if there is none, it waits. Once the solvers have ended, what is drawn leaves.

A buffer is a pytree of arrays of fixed shapes, so it lives inside a compiled training loop, and is
checkpointed with it, as well as on the host.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from nearly.core.errors import InputError


class Buffer(eqx.Module):
    """Samples in slots.

    **Attributes:**

    - `samples`: a pytree of arrays `[slots, ...]`.
    - `held`: which slots hold a sample. `seen`: which of those have been drawn before.
    - `arrival`: the number of the arrival that filled a slot.
    - `arrived`: how many samples have been taken in. `drawn`: how many have been drawn, each time.
    """

    samples: PyTree
    held: Bool[Array, " slots"]
    seen: Bool[Array, " slots"]
    arrival: Int[Array, " slots"]
    arrived: Int[Array, ""]
    drawn: Int[Array, ""]

    @property
    def count(self) -> Int[Array, ""]:
        """How many samples are held."""
        return jnp.sum(self.held, dtype=jnp.int32)

    @property
    def room(self) -> Int[Array, ""]:
        """How many arrivals would be taken in now: slots that are free or hold seen samples."""
        return jnp.sum(~self.held | self.seen, dtype=jnp.int32)


class Policy(eqx.Module):
    """How a buffer of `capacity` samples takes in, hands out and forgets.

    **Arguments:**

    - `capacity`: slots. `threshold`: how many samples must be held before the first is drawn
      (and, of the policies that draw each sample once, before any is) while solvers run.
    """

    capacity: int = eqx.field(static=True, default=1024)
    threshold: int = eqx.field(static=True, default=1)

    def __check_init__(self) -> None:
        if not 1 <= self.threshold <= self.capacity:
            raise InputError(
                f"threshold={self.threshold} must lie between 1 and capacity={self.capacity}"
            )

    def empty(self, sample: PyTree) -> Buffer:
        """A buffer for samples like this one (arrays, or their shapes and dtypes)."""
        slots = self.capacity
        return Buffer(
            jax.tree.map(lambda x: jnp.zeros((slots, *x.shape), x.dtype), sample),
            jnp.zeros(slots, bool),
            jnp.zeros(slots, bool),
            jnp.zeros(slots, jnp.int32),
            jnp.zeros((), jnp.int32),
            jnp.zeros((), jnp.int32),
        )

    def put(
        self, buffer: Buffer, samples: PyTree, valid: Bool[Array, " n"] | None = None, *, key: Any
    ) -> tuple[Buffer, Int[Array, ""]]:
        """Take in the first of some samples, as many as there is room for.

        Free slots are filled first, then those of seen samples chosen at random; unseen samples
        stay. The arrivals that were not taken in are to wait and be put again.

        **Arguments:**

        - `samples`: a pytree of arrays `[n, ...]`. `valid`: which of them are meant; None: all.

        **Returns:** the buffer, and how many of the valid samples were taken in.

        **Cost:** sorting the slots, O(capacity log capacity), and n copies.
        """
        size = jax.tree.leaves(samples)[0].shape[0]
        valid = jnp.ones(size, bool) if valid is None else valid
        chance = jax.random.uniform(key, (self.capacity,), jnp.float32)
        order = jnp.argsort(jnp.where(buffer.held, jnp.where(buffer.seen, chance, 2.0), -1.0))
        place = jnp.cumsum(valid) - 1
        taken = valid & (place < buffer.room)
        # What lies beyond the last slot is dropped by the scatter.
        slots = jnp.where(taken, order[jnp.clip(place, 0, self.capacity - 1)], self.capacity)
        count = jnp.sum(taken, dtype=jnp.int32)

        def scattered(into: Array, values: Any) -> Array:
            return into.at[slots].set(values, mode="drop")

        filled = Buffer(
            jax.tree.map(scattered, buffer.samples, samples),
            scattered(buffer.held, True),
            scattered(buffer.seen, False),
            scattered(buffer.arrival, buffer.arrived + place.astype(jnp.int32)),
            buffer.arrived + count,
            buffer.drawn,
        )
        return filled, count

    def ready(self, buffer: Buffer, batch: int, ended: Bool[Array, ""] | bool) -> Bool[Array, ""]:
        """Whether a batch can be drawn; with the solvers ended, whether anything is left."""
        return jnp.where(ended, buffer.count > 0, buffer.count >= self._needed(batch))

    def draw(
        self, buffer: Buffer, batch: int, ended: Bool[Array, ""] | bool = False, *, key: Any
    ) -> tuple[Buffer, PyTree]:
        """Draw a batch from a buffer that is `ready`.

        At the very end fewer than a batch may be left: then all of them are drawn, and the batch
        is filled by drawing them again.

        **Returns:** the buffer, and the samples `[batch, ...]`.

        **Cost:** sorting the slots and copying the batch.
        """
        slots, kept = self._chosen(buffer, batch, jnp.asarray(ended), key)
        drawn = Buffer(
            buffer.samples,
            buffer.held.at[slots].set(kept),
            buffer.seen.at[slots].set(kept),
            buffer.arrival,
            buffer.arrived,
            buffer.drawn + batch,
        )
        return drawn, jax.tree.map(lambda x: x[slots], buffer.samples)

    @abstractmethod
    def _needed(self, batch: int) -> int:
        """How many samples must be held while solvers run."""

    @abstractmethod
    def _chosen(
        self, buffer: Buffer, batch: int, ended: Bool[Array, ""], key: Any
    ) -> tuple[Int[Array, " batch"], Bool[Array, ""]]:
        """The slots drawn, and whether their samples stay."""


class FIFO(Policy):
    """First in, first out: a stream in the order of arrival, each sample once."""

    def _needed(self, batch: int) -> int:
        return max(self.threshold, batch)

    def _chosen(
        self, buffer: Buffer, batch: int, ended: Bool[Array, ""], key: Any
    ) -> tuple[Int[Array, " batch"], Bool[Array, ""]]:
        del ended, key
        last = jnp.iinfo(jnp.int32).max
        return _first(jnp.where(buffer.held, buffer.arrival, last), buffer, batch), jnp.zeros(
            (), bool
        )


class FIRO(Policy):
    """First in, random out: each sample once, at random among at least `threshold` of them."""

    def _needed(self, batch: int) -> int:
        return max(self.threshold, batch)

    def _chosen(
        self, buffer: Buffer, batch: int, ended: Bool[Array, ""], key: Any
    ) -> tuple[Int[Array, " batch"], Bool[Array, ""]]:
        del ended
        return _at_random(buffer, batch, key), jnp.zeros((), bool)


class Reservoir(Policy):
    """Drawn uniformly with replacement from seen and unseen samples; draws stay while solvers run.

    Paper: `online-surrogate-training`.
    """

    def _needed(self, batch: int) -> int:
        del batch
        return self.threshold

    def _chosen(
        self, buffer: Buffer, batch: int, ended: Bool[Array, ""], key: Any
    ) -> tuple[Int[Array, " batch"], Bool[Array, ""]]:
        once, again = jax.random.split(key)
        leaving = _at_random(buffer, batch, once)
        held = jnp.argsort(~buffer.held, stable=True)
        staying = held[jax.random.randint(again, (batch,), 0, jnp.maximum(buffer.count, 1))]
        return jnp.where(ended, leaving, staying), ~ended


def _at_random(buffer: Buffer, batch: int, key: Any) -> Int[Array, " batch"]:
    chance = jax.random.uniform(key, buffer.held.shape, jnp.float32)
    return _first(jnp.where(buffer.held, chance, 2.0), buffer, batch)


def _first(
    priority: Float[Array, " slots"] | Int[Array, " slots"], buffer: Buffer, batch: int
) -> Int[Array, " batch"]:
    """The held slots of smallest priority, over and over if they are fewer than a batch."""
    return jnp.argsort(priority)[jnp.arange(batch) % jnp.clip(buffer.count, 1, batch)]
