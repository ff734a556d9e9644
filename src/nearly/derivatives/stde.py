"""Unbiased estimates of differential operators in any dimension, from few jets (`stde`).

    estimate = stde(laplacian(), Sparse(16))(u)
    estimate(x, key)        # Estimate(value, standard_error, function, jets)

An operator is a sum of contractions of u's derivative tensors. The estimator draws some of the
summands (`Sparse`) or random vectors whose moments make up the whole sum (`Dense`), and reads the
contractions off jets. Where to use which: `Sparse` for sums of any order, exact where the
summands are alike or as many as drawn; `Dense` where single summands differ much.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from nearly.core.errors import InputError
from nearly.derivatives.curves import SparseVector, Vector, combined, derivatives_along
from nearly.derivatives.mixed_partials import Exponents, Jet, polarised
from nearly.derivatives.operators import Axis, Direction, Number, Operator, Slot, Term, find, is_sum
from nearly.derivatives.samplers import (
    GAUSSIAN,
    LARGEST_POPULATION,
    RADEMACHER,
    Dense,
    Draw,
    Sampler,
    Sparse,
)

Function = Callable[[Float[Array, " d"]], Any]
Pushforward = Callable[[Sequence[Exponents]], tuple[Jet, ...]]


class Estimate(eqx.Module):
    """What an estimator returns.

    - `value`: the operator applied to f at x, of f's shape. `function`: f(x), which jets give.
    - `standard_error`: of the value, estimated from the spread of the directions: 0 where all
      summands were taken, NaN from a single direction.
    - `jets`: how many jets were pushed.
    """

    value: Any
    standard_error: Any
    function: Any
    jets: int = eqx.field(static=True)


Estimator = Callable[[Float[Array, " d"], Key[Array, ""]], Estimate]


@dataclass(frozen=True)
class _Group:
    """Terms over the same summed slots, which share their sampled vectors and their jets."""

    fixed: tuple[Slot, ...]
    summed: tuple[Slot, ...]
    monomials: tuple[Exponents, ...]  # over the fixed slots, then the summed ones
    coefficients: tuple[Number, ...]


def stde(
    operator: Operator,
    sampler: Sampler | None = None,
    *,
    pushforward: Pushforward = polarised,
    batch_size: int | None = None,
) -> Callable[[Function], Callable[..., Estimate]]:
    """The stochastic Taylor derivative estimator of an operator (`stde`).

    **Arguments:**

    - `sampler`: `Sparse(n)` (16 by default) or `Dense(n, law)`: n directions for each group of
      terms that sum over the same vectors. Partial derivatives along named axes are exact.
    - `pushforward`: which jets give a mixed partial: `polarised`, or `shaped` as in the paper.
    - `batch_size`: how many directions are pushed at once, to save memory; all by default.

    **Returns:** a transformation f -> ((x, key) -> `Estimate`) for functions of a vector, with
    values of any shape. Its mean over keys is the operator applied to f at x. It can be jitted,
    mapped over points (give each its own key) and differentiated.

    Raises `InputError` for axes that do not exist and for sums that the sampler cannot estimate.

    Cost: the jets (`Estimate.jets`) times O(order^2) evaluations of f; nothing grows with the
    dimension but f itself and the directions. For f a `Projected` and `Sparse` directions not
    even those. Directions are shared by all terms that sum over the same vectors, and derivatives
    of several orders along one direction are read off one jet. In the paper each operator is
    written by hand; here the jets follow from the operator.
    """
    if not operator.terms:
        raise InputError("the operator has no terms")
    how = sampler or Sparse()

    def transformation(f: Function) -> Callable[..., Estimate]:
        def estimate(x: Float[Array, " d"], key: Key[Array, ""]) -> Estimate:
            groups = _groups([how.rewritten(term, x) for term in operator.terms])
            keys = jax.random.split(key, len(groups))
            parts = [
                _estimate_group(f, x, group, how, k, pushforward, batch_size)
                for group, k in zip(groups, keys, strict=True)
            ]
            return _added(parts)

        return estimate

    return transformation


def exact(operator: Operator, **options: Any) -> Callable[[Function], Function]:
    """The operator itself, f -> (x -> value), all its summands taken; options as `stde`'s."""
    every = stde(operator, Sparse(LARGEST_POPULATION), **options)

    def transformation(f: Function) -> Function:
        return lambda x: every(f)(x, jax.random.key(0)).value  # no key is ever used

    return transformation


# ------------------------------------------------------------------ as catalogued


def sparse(operator: Operator, directions: int) -> Callable[[Function], Callable[..., Estimate]]:
    """`stde` with `Sparse` directions; the dial is their number."""
    return stde(operator, Sparse(directions))


def dense(operator: Operator, directions: int) -> Callable[[Function], Callable[..., Estimate]]:
    """`stde` with dense directions of Rademacher's law; the dial is their number."""
    return stde(operator, Dense(directions, RADEMACHER))


def gaussian(operator: Operator, directions: int) -> Callable[[Function], Callable[..., Estimate]]:
    """`stde` with dense Gaussian directions; the dial is their number."""
    return stde(operator, Dense(directions, GAUSSIAN))


def taylor_exact(operator: Operator) -> Callable[[Function], Callable[..., Estimate]]:
    """`stde` with every summand taken: Taylor mode, nothing random."""
    return stde(operator, Sparse(LARGEST_POPULATION))


# ------------------------------------------------------------------ terms in groups


def _groups(terms: Sequence[Term]) -> list[_Group]:
    groups: list[tuple[list[Slot], list[Term], list[list[int]]]] = []
    for term in terms:
        summed = [i for i, slot in enumerate(term.slots) if is_sum(slot)]
        for slots, members, places in groups:
            match = _match(slots, term, summed)
            if match is not None:
                members.append(term)
                places.append(match)
                break
        else:
            groups.append(([term.slots[i] for i in summed], [term], [summed]))
    return [_group(*group) for group in groups]


def _match(slots: Sequence[Slot], term: Term, summed: Sequence[int]) -> list[int] | None:
    """For each summed slot of a group the place of the term's equal slot, each used once."""
    left = list(summed)
    if len(slots) != len(left):
        return None
    places: list[int] = []
    for slot in slots:
        found = find(slot, [term.slots[i] for i in left])
        if found is None:
            return None
        places.append(left.pop(found))
    return places


def _group(summed: list[Slot], terms: list[Term], places: list[list[int]]) -> _Group:
    fixed: list[Slot] = []
    for slot in (slot for term in terms for slot in term.slots if not is_sum(slot)):
        if find(slot, fixed) is None:
            fixed.append(slot)
    monomials = tuple(_exponents(t, p, fixed) for t, p in zip(terms, places, strict=True))
    return _Group(tuple(fixed), tuple(summed), monomials, tuple(t.coefficient for t in terms))


def _exponents(term: Term, places: Sequence[int], fixed: Sequence[Slot]) -> Exponents:
    powers = [0] * len(fixed)
    for slot, power in zip(term.slots, term.powers, strict=True):
        if not is_sum(slot):
            place = find(slot, fixed)
            assert place is not None
            powers[place] = power
    return (*powers, *(term.powers[i] for i in places))


def _fixed_vector(slot: Slot, x: Float[Array, " d"]) -> Vector:
    if isinstance(slot, Axis):
        return SparseVector(jnp.array([slot.resolve(x.size)]), jnp.ones(1, x.dtype))
    assert isinstance(slot, Direction)
    if slot.vector.size != x.size:
        raise InputError(f"a direction of {slot.vector.size} entries meets {x.size} coordinates")
    return slot.vector.astype(x.dtype)


def _estimate_group(
    f: Function,
    x: Float[Array, " d"],
    group: _Group,
    sampler: Sampler,
    key: Any,
    pushforward: Pushforward,
    batch_size: int | None,
) -> Estimate:
    fixed = [_fixed_vector(slot, x) for slot in group.fixed]
    jets = pushforward(group.monomials)
    coefficients = jnp.stack([jnp.asarray(c, x.dtype) for c in group.coefficients])

    def contraction(summed: Sequence[Vector]) -> tuple[Any, Any]:
        return _read(f, x, jets, coefficients, [*fixed, *summed])

    if not group.summed:
        value, function = contraction([])
        return Estimate(value, jnp.zeros_like(value), function, len(jets))
    draw = sampler.draw(group.summed, x, key)
    if batch_size is None:
        values, functions = jax.vmap(contraction)(draw.vectors)
    else:
        values, functions = jax.lax.map(contraction, draw.vectors, batch_size=batch_size)
    return _averaged(values, functions[0], draw, len(jets))


def _averaged(values: Any, function: Any, draw: Draw, jets: int) -> Estimate:
    count = len(draw.weights)
    weighted = draw.weights.reshape(-1, *[1] * (values.ndim - 1)) * values
    mean = weighted.mean(0)
    variance = jnp.sum((weighted - mean) ** 2, 0) / (count - 1 if count > 1 else jnp.nan)
    spread = jnp.sqrt(variance / count) if draw.correction else jnp.zeros_like(mean)
    return Estimate(
        draw.scale * mean, draw.scale * draw.correction * spread, function, jets * count
    )


def _read(
    f: Function,
    x: Float[Array, " d"],
    jets: Sequence[Jet],
    coefficients: Float[Array, " n"],
    vectors: Sequence[Vector],
) -> tuple[Any, Any]:
    """The wanted combination of contractions, and f(x): jets of one shape are pushed together."""
    batches = [list(same) for _, same in groupby(sorted(jets, key=_shape), key=_shape)]
    read = [_read_batch(f, x, batch, coefficients, vectors) for batch in batches]
    return sum(value for value, _ in read), read[0][1]


def _read_batch(
    f: Function,
    x: Float[Array, " d"],
    jets: Sequence[Jet],
    coefficients: Float[Array, " n"],
    vectors: Sequence[Vector],
) -> tuple[Any, Any]:
    order, curve, reads = _shape(jets[0])
    mixes = jnp.array([[[float(c) for c in h] for _, h in jet.inputs] for jet in jets], x.dtype)
    weights = jnp.array([[w for _, w in jet.reads] for jet in jets], x.dtype)

    def push(mix: Any, weight: Any) -> tuple[Any, Any]:
        inputs = {o: combined(mix[i], vectors, x.size) for i, o in enumerate(curve)}
        found = derivatives_along(f, x, inputs, order)
        shares = weight @ coefficients
        return sum(shares[i] * found[k] for i, k in enumerate(reads)), found[0]

    values, functions = jax.vmap(push)(mixes, weights)
    return values.sum(0), functions[0]


def _shape(jet: Jet) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """What jets that are pushed together have in common."""
    return jet.order, tuple(o for o, _ in jet.inputs), tuple(k for k, _ in jet.reads)


def _added(parts: Sequence[Estimate]) -> Estimate:
    variance = sum(part.standard_error**2 for part in parts)
    return Estimate(
        sum(part.value for part in parts),
        jnp.sqrt(variance),
        parts[0].function,
        sum(part.jets for part in parts),
    )
