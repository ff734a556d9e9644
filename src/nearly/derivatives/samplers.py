"""Random directions in which the summands of a differential operator are sampled (`stde`)."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from nearly.core.errors import InputError
from nearly.derivatives.curves import SparseVector
from nearly.derivatives.operators import Columns, Coordinates, Direction, Slot, Term, find, is_sum


class Draw(eqx.Module):
    """Sampled directions: one batch of vectors for each summed slot, and how they are averaged.

    The estimate is scale times the mean of weight times contraction; its standard error is the
    mean's times scale times `correction`.
    """

    vectors: tuple[Any, ...]
    weights: Float[Array, " n"]
    scale: float = eqx.field(static=True)
    correction: float = eqx.field(static=True)


class Sampler(eqx.Module):
    """How the directions of summed slots are drawn."""

    @abstractmethod
    def rewritten(self, term: Term, x: Float[Array, " d"]) -> Term:
        """The term as this sampler treats it; raises `InputError` if it cannot."""

    @abstractmethod
    def draw(self, slots: Sequence[Slot], x: Float[Array, " d"], key: Key[Array, ""]) -> Draw:
        """Vectors for summed slots."""


class Sparse(Sampler):
    """So many of the summands, drawn without replacement; all of them if there are no more.

    A sum over two indices has d^2 summands, of which pairs are drawn. Drawing takes O(n^2) time
    and no memory for the summands not drawn, where the paper's permutation of all d axes takes
    O(d log d) at every point. Populations beyond 2^31 are drawn from with replacement.
    """

    directions: int = eqx.field(default=16, static=True)

    def __check_init__(self) -> None:
        _check_directions(self.directions)

    def rewritten(self, term: Term, x: Float[Array, " d"]) -> Term:
        del x
        return term

    def draw(self, slots: Sequence[Slot], x: Float[Array, " d"], key: Key[Array, ""]) -> Draw:
        sizes = [_size(slot, x) for slot in slots]
        population = math.prod(sizes)
        if population > LARGEST_POPULATION <= self.directions:
            raise InputError(
                f"{population:.3g} summands are too many to take all of: give stde a sampler such "
                "as Sparse(16)"
            )
        indices = _draw_tuples(key, sizes, min(self.directions, population))
        count = len(indices[0])
        vectors = tuple(_members(s, i, x) for s, i in zip(slots, indices, strict=True))
        weights = math.prod(
            (_weights(s, i, x) for s, i in zip(slots, indices, strict=True)),
            start=jnp.ones(count, x.dtype),
        )
        known = 0.0 if population > LARGEST_POPULATION else count / population
        return Draw(vectors, weights, float(population), math.sqrt(1 - known))


@dataclass(frozen=True)
class Law:
    """A law of the entries of random vectors.

    **Arguments:**

    - `draw`: (key, shape, dtype) -> independent entries of mean 0.
    - `powers`: the k with E v_i v_j ⋯ (k factors) = 1 if all indices are equal, 0 otherwise.
    - `wick`: whether moments are those of the Gaussian, so that sums of even powers merge:
      E D^2m u[v, …, v] = (2m - 1)!! laplacian^m u.
    """

    name: str
    draw: Callable[[Any, Any, Any], Array]
    powers: tuple[int, ...]
    wick: bool = False


def _golden(key: Any, shape: Any, dtype: Any) -> Array:
    golden = (1 + math.sqrt(5)) / 2
    high = jax.random.bernoulli(key, 1 / (1 + golden**2), shape)
    return jnp.where(high, jnp.asarray(golden, dtype), jnp.asarray(-1 / golden, dtype))


RADEMACHER = Law("Rademacher", jax.random.rademacher, (2,))
GAUSSIAN = Law("Gaussian", jax.random.normal, (2,), wick=True)
GOLDEN = Law("golden", _golden, (2, 3))
"""Two points, the golden ratio and minus its inverse: mean 0, second and third moment 1."""


class Dense(Sampler):
    """Random vectors, all of whose coordinates move at once.

    Sums of squares are estimated by every law (Rademacher's has the least variance), sums of cubes
    by `GOLDEN`; powers of the Laplacian by `GAUSSIAN` with one vector, otherwise with independent
    ones. No law of independent entries isolates sums of fourth or higher powers: use `Sparse`.
    """

    directions: int = eqx.field(default=16, static=True)
    law: Law = eqx.field(default=RADEMACHER, static=True)

    def __check_init__(self) -> None:
        _check_directions(self.directions)

    def rewritten(self, term: Term, x: Float[Array, " d"]) -> Term:
        first_powers = _with_directions_for_first_powers(term, x)
        for slot, power in zip(first_powers.slots, first_powers.powers, strict=True):
            self._check(slot, power)
        return _merged_by_wick(first_powers) if self.law.wick else first_powers

    def _check(self, slot: Slot, power: int) -> None:
        if not is_sum(slot):
            return
        if power not in self.law.powers:
            raise InputError(
                f"{self.law.name} vectors cannot isolate a sum of derivatives of order {power}: "
                "use Sparse directions" + (" or the law GOLDEN" if power == 3 else "")
            )
        if isinstance(slot, Coordinates) and slot.weights is not None:
            raise InputError(
                "dense directions take no weights: use Sparse, or trace(diag(sqrt(weights)))"
            )

    def draw(self, slots: Sequence[Slot], x: Float[Array, " d"], key: Key[Array, ""]) -> Draw:
        keys = jax.random.split(key, len(slots))
        vectors = tuple(self._vectors(s, x, k) for s, k in zip(slots, keys, strict=True))
        return Draw(vectors, jnp.ones(self.directions, x.dtype), 1.0, 1.0)

    def _vectors(self, slot: Slot, x: Float[Array, " d"], key: Any) -> Float[Array, "n d"]:
        noise = self.law.draw(key, (self.directions, _size(slot, x)), x.dtype)
        if isinstance(slot, Columns):
            return noise @ slot.matrix.T.astype(x.dtype)
        assert isinstance(slot, Coordinates)
        axes = slot.axes(x.size)
        blank = jnp.zeros((self.directions, x.size), x.dtype)
        return blank.at[:, axes.start : axes.stop].set(noise)


def _check_directions(directions: int) -> None:
    if directions < 1:
        raise InputError(f"{directions} directions: at least 1 is needed")


def _with_directions_for_first_powers(term: Term, x: Float[Array, " d"]) -> Term:
    """A first-order sum is the derivative along the sum of its vectors: nothing to sample."""
    slots = tuple(
        Direction(_total(slot, x)) if is_sum(slot) and power == 1 else slot
        for slot, power in zip(term.slots, term.powers, strict=True)
    )
    return replace(term, slots=slots)


def _total(slot: Slot, x: Float[Array, " d"]) -> Float[Array, " d"]:
    if isinstance(slot, Columns):
        return slot.matrix.sum(1).astype(x.dtype)
    assert isinstance(slot, Coordinates)
    axes = slot.axes(x.size)
    ones = 1.0 if slot.weights is None else slot.weights.astype(x.dtype)
    return jnp.zeros_like(x).at[axes.start : axes.stop].set(ones)


def _merged_by_wick(term: Term) -> Term:
    """Products of sums of squares over the same vectors as a power of one Gaussian vector."""
    slots: list[Slot] = []
    powers: list[int] = []
    for slot, power in zip(term.slots, term.powers, strict=True):
        place = find(slot, slots)
        if place is None:
            slots.append(slot)
            powers.append(power)
        else:
            powers[place] += power
    pairings = math.prod(
        math.prod(range(1, p, 2)) for s, p in zip(slots, powers, strict=True) if is_sum(s)
    )
    return Term(term.coefficient / pairings, tuple(slots), tuple(powers))


# ------------------------------------------------------------------ drawing summands

LARGEST_POPULATION = 2**31 - 1


def _size(slot: Slot, x: Float[Array, " d"]) -> int:
    if isinstance(slot, Columns):
        if slot.matrix.shape[0] != x.size:
            raise InputError(f"a matrix of {slot.matrix.shape[0]} rows meets {x.size} coordinates")
        return slot.matrix.shape[1]
    assert isinstance(slot, Coordinates)
    return len(slot.axes(x.size))


def _members(slot: Slot, indices: Int[Array, " n"], x: Float[Array, " d"]) -> Any:
    """The vectors of a slot with these indices, as one batch."""
    if isinstance(slot, Columns):
        return slot.matrix.T[indices].astype(x.dtype)
    assert isinstance(slot, Coordinates)
    start, one = slot.axes(x.size).start, jnp.ones(1, x.dtype)
    return jax.vmap(lambda i: SparseVector(i[None] + start, one))(indices)


def _weights(slot: Slot, index: Int[Array, " n"], x: Float[Array, " d"]) -> Float[Array, " n"]:
    if isinstance(slot, Coordinates) and slot.weights is not None:
        return slot.weights[index].astype(x.dtype)
    return jnp.ones(len(index), x.dtype)


def _draw_tuples(key: Key[Array, ""], sizes: Sequence[int], count: int) -> list[Int[Array, " n"]]:
    """Indices of some of the summands, one array for each slot."""
    population = math.prod(sizes)
    if population > LARGEST_POPULATION:
        keys = jax.random.split(key, len(sizes))
        return [jax.random.randint(k, (count,), 0, n) for k, n in zip(keys, sizes, strict=True)]
    return list(jnp.unravel_index(draw_subset(key, population, count), tuple(sizes)))


def draw_subset(key: Key[Array, ""], population: int, count: int) -> Int[Array, " n"]:
    """A uniform subset of 0, …, population - 1, in no particular order.

    O(count^2) time and O(count) memory by Floyd's method; a permutation where that is cheaper.
    Raises `InputError` if the subset is larger than the population.
    """
    if not 0 < count <= population:
        raise InputError(f"cannot draw {count} of {population}")
    if count == population:
        return jnp.arange(population)
    if count**2 > population:
        return jax.random.permutation(key, population)[:count]
    last = jnp.arange(population - count, population)
    offers = jax.random.randint(key, (count,), 0, last + 1)

    def choose(i: Any, chosen: Int[Array, " n"]) -> Int[Array, " n"]:
        taken = jnp.any(chosen == offers[i])
        return chosen.at[i].set(jnp.where(taken, last[i], offers[i]))

    return jax.lax.fori_loop(0, count, choose, jnp.full(count, -1, offers.dtype))
