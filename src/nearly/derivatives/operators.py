"""Linear differential operators of any order and dimension, as a small algebra (`stde`).

    D(0) ** 2 + 3 * D(0) * D(1)         # partial derivatives along axes
    laplacian() ** 2                    # biharmonic
    trace(sigma) + directional(drift)   # tr(sigma sigma^T H) + drift·grad
    D(-1) + power_sum(3, stop=-1)       # the last axis is time, the others are space

An operator is written down, not evaluated: a sum over a million axes is one object. It is a pytree
too, so coefficients that depend on x are written where x is known, as in
`stde(trace(sigma(x)) + c(x) * laplacian())(u)(x, key)`. Products are those of symbols:
coefficients are not differentiated, so they are compositions where these do not depend on x.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nearly.core.errors import InputError

Number = float | Float[Array, ""]


class Axis(eqx.Module):
    """The derivative along one coordinate axis; negative ones count from the end."""

    axis: int = eqx.field(static=True)

    def resolve(self, dimension: int) -> int:
        """The axis from 0 on; raises `InputError` if there is none."""
        if not -dimension <= self.axis < dimension:
            raise InputError(f"axis {self.axis} does not exist in {dimension} dimensions")
        return self.axis % dimension


class Direction(eqx.Module):
    """The derivative along one fixed vector, not normalised."""

    vector: Float[Array, " d"]


class Coordinates(eqx.Module):
    """A sum over the axes from `start` to `stop` (Python's slice; all of them by default).

    With `weights`, one for each of these axes, each summand is multiplied by its own.
    """

    start: int = eqx.field(default=0, static=True)
    stop: int | None = eqx.field(default=None, static=True)
    weights: Float[Array, " n"] | None = None

    def axes(self, dimension: int) -> range:
        """The axes meant in so many dimensions; raises `InputError` if there are none."""
        axes = range(dimension)[self.start : self.stop]
        if not axes:
            raise InputError(f"axes {self.start}:{self.stop} of {dimension} dimensions are none")
        if self.weights is not None and len(self.weights) != len(axes):
            raise InputError(f"{len(self.weights)} weights for {len(axes)} axes")
        return axes


class Columns(eqx.Module):
    """A sum over the columns of a matrix, the derivative being taken along the column."""

    matrix: Float[Array, "d r"]


Slot = Axis | Direction | Coordinates | Columns


def is_sum(slot: Slot) -> bool:
    """Whether a slot stands for many vectors, one for each summand."""
    return isinstance(slot, (Coordinates, Columns))


class Term(eqx.Module):
    """A coefficient times a product of powers of slots; a summed slot may occur several times."""

    coefficient: Number
    slots: tuple[Slot, ...] = ()
    powers: tuple[int, ...] = eqx.field(default=(), static=True)

    @property
    def order(self) -> int:
        """The order of its derivatives."""
        return sum(self.powers)

    def times(self, other: Term) -> Term:
        """The product, in which powers of the same fixed vector are one."""
        slots, powers = list(self.slots), list(self.powers)
        for slot, power in zip(other.slots, other.powers, strict=True):
            place = None if is_sum(slot) else find(slot, slots)
            if place is None:
                slots.append(slot)
                powers.append(power)
            else:
                powers[place] += power
        return Term(self.coefficient * other.coefficient, tuple(slots), tuple(powers))


def find(slot: Slot, slots: Sequence[Slot]) -> int | None:
    """Where a slot that means the same vectors stands: equal axes, or the very same array."""
    for place, other in enumerate(slots):
        same = jax.tree.structure(slot) == jax.tree.structure(other)
        if same and all(a is b for a, b in zip(jax.tree.leaves(slot), jax.tree.leaves(other))):
            return place
    return None


class Operator(eqx.Module):
    """A linear differential operator with constant coefficients: a sum of terms.

    Made by `D`, `directional`, `power_sum`, `laplacian`, `trace`, `identity`, and from those by
    `+`, `-`, `*` and whole powers. Numbers count as multiples of `identity`.
    """

    terms: tuple[Term, ...]

    @property
    def order(self) -> int:
        """The highest order of a derivative in it."""
        return max((term.order for term in self.terms), default=0)

    def __add__(self, other: Operator | Number) -> Operator:
        return Operator(self.terms + _operator(other).terms)

    def __mul__(self, other: Operator | Number) -> Operator:
        right = _operator(other)
        return Operator(tuple(a.times(b) for a in self.terms for b in right.terms))

    def __pow__(self, power: int) -> Operator:
        if power < 0:
            raise InputError(f"power {power} of a differential operator must be from 0 on")
        return math.prod([self] * power, start=identity())

    def __neg__(self) -> Operator:
        return self * -1.0

    def __sub__(self, other: Operator | Number) -> Operator:
        return self + (-_operator(other))

    def __rsub__(self, other: Number) -> Operator:
        return _operator(other) - self

    __radd__ = __add__
    __rmul__ = __mul__


def _operator(value: Any) -> Operator:
    if isinstance(value, Operator):
        return value
    if isinstance(value, Real):
        return Operator((Term(float(value)),))
    if eqx.is_array(value) and value.ndim == 0:
        return Operator((Term(value),))
    raise InputError(f"{value!r} is no operator and no number")


def identity() -> Operator:
    """u itself."""
    return Operator((Term(1.0),))


def _atom(slot: Slot, power: int = 1) -> Operator:
    return Operator((Term(1.0, (slot,), (power,)),))


def D(axis: int) -> Operator:
    """The partial derivative along an axis; `D(-1)` is the last one, often time."""
    return _atom(Axis(axis))


def directional(vector: Float[Any, " d"]) -> Operator:
    """vector·grad, the vector as it is, not normalised."""
    return _atom(Direction(jnp.asarray(vector)))


def power_sum(
    power: int,
    start: int = 0,
    stop: int | None = None,
    weights: Float[Any, " n"] | None = None,
) -> Operator:
    """The sum over axes i of w_i d_i^power.

    **Arguments:** `power` >= 1; `start` and `stop`: the axes, as a slice; `weights`: w, one for
    each of these axes, 1 by default.

    Raises `InputError` for a power below 1.
    """
    if power < 1:
        raise InputError(f"power {power} of a sum of derivatives must be at least 1")
    given = None if weights is None else jnp.asarray(weights)
    return _atom(Coordinates(start, stop, given), power)


def laplacian(start: int = 0, stop: int | None = None) -> Operator:
    """The sum of the second derivatives along axes `start` to `stop`; its square: biharmonic."""
    return power_sum(2, start, stop)


def trace(sigma: Float[Any, "d r"]) -> Operator:
    """tr(sigma sigma^T H), the second-order part of a diffusion with noise sigma dW.

    **Arguments:** `sigma`: d rows, one column for each noise.
    """
    return _atom(Columns(jnp.asarray(sigma)), 2)
