"""Mixed partial derivatives from univariate jets: which curves to push through a function.

A jet of order k along the curve x + v_1 t/1! + v_2 t^2/2! + … gives the derivatives of
u(curve(t)) at t = 0. By Faa di Bruno's formula these are sums of contractions of u's derivative
tensors with the v's. Two ways to read a wanted contraction D^p u[v1^a1, …, vm^am] off such jets:

- `polarised`: straight curves only. A product of linear forms is a combination of p-th powers of
  linear forms, so a few jets of order p do. Directions shared by several monomials are pushed once.
- `shaped` (`stde`): one curve with the v's at different orders, chosen such that the wanted
  contraction stands alone in one of the jet's derivatives. One jet, but of a much higher order.

Both are exact, for any vectors: equal ones too.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from nearly.core.errors import InputError

Exponents = tuple[int, ...]
Combination = tuple[Fraction, ...]

LARGEST_SHAPED_ORDER = 60


@dataclass(frozen=True)
class Jet:
    """One curve to push, and what to read off.

    **Arguments:**

    - `inputs`: (order, combination): the curve's derivative of that order, as a combination of the
      vectors; what is not listed is zero.
    - `reads`: (order, weights): the sum of weight times that derivative of the composition is this
      jet's share of each of the wanted monomials, in their order.
    """

    inputs: tuple[tuple[int, Combination], ...]
    reads: tuple[tuple[int, tuple[float, ...]], ...]

    @property
    def order(self) -> int:
        """The highest derivative that is read."""
        return max(order for order, _ in self.reads)

    @property
    def cost(self) -> int:
        """Products of series coefficients that one multiplication costs at this order."""
        return (self.order + 1) * (self.order + 2) // 2


def polarised(monomials: Sequence[Exponents]) -> tuple[Jet, ...]:
    """Straight jets for contractions of derivative tensors: each of the order of its contraction.

    **Arguments:** `monomials`: the wanted contractions D^p u[v_1^a_1, …, v_m^a_m] as exponents
    (a_1, …, a_m), where p is their sum.

    **Returns:** the jets, one for each direction that is needed. A monomial takes at most
    ((a_1 + 1)⋯(a_m + 1) + 1)/2 of them, a pure power one, and monomials share directions.

    Raises `InputError` for exponents that are not from 0 on and of one length.

    The identity is the central finite difference of t -> (t·v)^p, exact as p equals the total
    order: v^a = 1/p! sum over n of (-1)^|n| C(a, n) ((a/2 - n)·v)^p. The paper (`stde`) mentions
    polarisation for the second order and uses shaped jets otherwise; these are cheaper.
    """
    _check(monomials)
    found: dict[Combination, dict[int, list[Fraction]]] = {}
    for index, exponents in enumerate(monomials):
        degree = sum(exponents)
        for combination, weight in _powers(exponents):
            direction, scale = _normalised(combination)
            reads = found.setdefault(direction, {})
            reads.setdefault(degree, [Fraction(0)] * len(monomials))[index] += (
                weight * scale**degree
            )
    return tuple(_straight(*item) for item in found.items() if _any_read(item[1]))


def _any_read(reads: Mapping[int, list[Fraction]]) -> bool:
    return any(any(weights) for weights in reads.values())


def _straight(direction: Combination, reads: Mapping[int, list[Fraction]]) -> Jet:
    kept = ((k, tuple(map(float, weights))) for k, weights in sorted(reads.items()) if any(weights))
    return Jet(((1, direction),) if any(direction) else (), tuple(kept))


def _powers(exponents: Exponents) -> Iterator[tuple[Combination, Fraction]]:
    """The linear forms whose p-th powers sum to the monomial, and their weights."""
    degree = sum(exponents)
    for chosen in itertools.product(*(range(a + 1) for a in exponents)):
        signs = (-1) ** sum(chosen)
        ways = math.prod(math.comb(a, n) for a, n in zip(exponents, chosen, strict=True))
        combination = tuple(Fraction(a, 2) - n for a, n in zip(exponents, chosen, strict=True))
        if any(combination) or degree == 0:
            yield combination, Fraction(signs * ways, math.factorial(degree))


def _normalised(combination: Combination) -> tuple[Combination, Fraction]:
    """Parallel directions written alike: largest entry 1, first entry positive; and the scale."""
    if not any(combination):
        return combination, Fraction(1)
    size = max(map(abs, combination))
    scale = size if next(filter(None, combination)) > 0 else -size
    return tuple(c / scale for c in combination), scale


def shaped(monomials: Sequence[Exponents]) -> tuple[Jet, ...]:
    """One jet for each mixed monomial, in the shape that isolates it; one for pure powers.

    Arguments, result and errors are those of `polarised`. The orders at which the vectors enter
    are those of the smallest jet in which the wanted contraction stands alone (`stde`, its section
    on mixed partials): a jet of order 5 for d_1 d_2, of order 7 for d_1^2 d_2. The cost of a jet
    is quadratic in its order, and its numbers span factorials: `polarised` is cheaper and safer.
    """
    _check(monomials)
    mixed = [index for index, e in enumerate(monomials) if sum(map(bool, e)) > 1]
    if len(mixed) == len(monomials):
        return tuple(_isolating(monomials, index) for index in mixed)
    blank = [() if index in mixed else e for index, e in enumerate(monomials)]
    return _pure(blank) + tuple(_isolating(monomials, index) for index in mixed)


def _pure(monomials: Sequence[Exponents]) -> tuple[Jet, ...]:
    """The jets of the pure powers; the places of mixed ones, left empty, get no weight."""
    places = [i for i, e in enumerate(monomials) if e]
    jets = polarised([monomials[i] for i in places])
    return tuple(
        Jet(jet.inputs, tuple((k, _spread(w, places, len(monomials))) for k, w in jet.reads))
        for jet in jets
    )


def _spread(weights: Sequence[float], places: Sequence[int], size: int) -> tuple[float, ...]:
    known = dict(zip(places, weights, strict=True))
    return tuple(known.get(i, 0.0) for i in range(size))


def _isolating(monomials: Sequence[Exponents], index: int) -> Jet:
    exponents = monomials[index]
    powers = tuple(filter(None, exponents))
    orders = isolating_orders(powers)
    total = sum(a * o for a, o in zip(powers, orders, strict=True))
    count = Fraction(math.factorial(total))
    for a, o in zip(powers, orders, strict=True):
        count /= math.factorial(a) * math.factorial(o) ** a
    places = [i for i, a in enumerate(exponents) if a]
    units = [tuple(Fraction(i == place) for i in range(len(exponents))) for place in places]
    weights = _spread([float(1 / count)], [index], len(monomials))
    return Jet(tuple(sorted(zip(orders, units, strict=True))), ((total, weights),))


def isolating_orders(exponents: Exponents) -> tuple[int, ...]:
    """The orders at which vectors enter the smallest jet that isolates a mixed partial.

    **Arguments:** `exponents`: a_1, …, a_m >= 1, how often each vector is contracted.

    **Returns:** different orders o_1, …, o_m of the least total k = a·o such that n = a is the
    only solution of n·o = k in whole numbers from 0 on: then derivative k of the composition is a
    multiple of the wanted contraction and holds nothing else.

    Raises `InputError` if that takes a jet beyond order 60: then use `polarised`.
    """
    if len(exponents) == 1:
        return (1,)
    for total in range(sum(exponents), LARGEST_SHAPED_ORDER + 1):
        for orders in _orders(exponents, total):
            if len(set(orders)) == len(orders) and _ways(orders, total) == 1:
                return orders
    raise InputError(
        f"no jet up to order {LARGEST_SHAPED_ORDER} isolates the mixed partial of orders "
        f"{exponents}: use polarised jets"
    )


def _orders(exponents: Exponents, total: int) -> Iterator[tuple[int, ...]]:
    """All positive orders o with exponents·o = total."""
    first, *rest = exponents
    if not rest:
        if total >= first and total % first == 0:
            yield (total // first,)
        return
    for order in range(1, total // first + 1):
        for others in _orders(tuple(rest), total - first * order):
            yield (order, *others)


def _ways(orders: tuple[int, ...], total: int) -> int:
    """In how many ways total is a sum of the orders, each used any number of times."""
    ways = [1] + [0] * total
    for order in orders:
        for reached in range(order, total + 1):
            ways[reached] += ways[reached - order]
    return ways[total]


def _check(monomials: Sequence[Exponents]) -> None:
    lengths = {len(exponents) for exponents in monomials}
    if len(lengths) != 1 or any(a < 0 for exponents in monomials for a in exponents):
        raise InputError(f"exponents {list(monomials)} must be from 0 on and of one length")
