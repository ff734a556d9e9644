"""Bounds of a chain's pre-activations over a box by backward linear bound propagation (CROWN).

A linear function of a layer's activations is bounded by replacing each activation by its line
above or below, by the sign of its coefficient, and so on down to the input, where the box is met.

Every bound is rounded outward by what its own floating-point arithmetic may have lost: with
coefficients G of a layer's inputs z, the product G W errs by at most gamma |G||W| per entry, which
moves the bound by gamma |G| (|W| |h|max); all such terms are added up. So bounds hold in exact
arithmetic for the weights as given, whichever precision they are computed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from nearly.curvature.lipschitz.activations import Lines
from nearly.curvature.lipschitz.chain import Chain


class Interval(NamedTuple):
    """Componentwise lower and upper bounds: arrays of one shape, of JAX or of NumPy."""

    lower: Any
    upper: Any

    @property
    def size(self) -> Float[Array, " n"]:
        """The largest absolute value."""
        return jnp.maximum(jnp.abs(self.lower), jnp.abs(self.upper))


Slopes = Sequence[Sequence[tuple[Array, Array]]]
"""`slopes[k][j]`: of layer j's lines, below and above, when layer k > j is bounded.

As fractions of the derivative's range over the unit's interval, so that units whose activation is
linear there keep their exact line whatever the fraction.
"""


def rounding(terms: int, dtype: jnp.dtype) -> float:
    """Twice the classical gamma_n, of a sum of products: safe for any order of summation."""
    return 2.0 * (terms + 8) * float(jnp.finfo(dtype).eps)


def pre_activation_bounds(
    chain: Chain,
    box: Interval,
    *,
    slopes: Slopes | None = None,
    clips: Sequence[Interval] | None = None,
) -> tuple[Interval, ...]:
    """Bounds of every layer's pre-activations, the last being the outputs.

    **Arguments:**

    - `chain`: the network. `box`: of its inputs.
    - `slopes`: of the lines; by default those that enclose least area. Any are sound: fractions
      beyond [0, 1] are clipped, for tightness.
    - `clips`: intervals known (or assumed, when branching) to contain the hidden pre-activations.

    Costs O(L^2) products of weight matrices for L layers. Paper: `local-lipschitz`, the forward
    part (CROWN); the intersection with interval arithmetic is ours, and can only tighten.
    """
    return pre_activation_and_input_bounds(chain, box, slopes=slopes, clips=clips)[0]


def pre_activation_and_input_bounds(
    chain: Chain,
    box: Interval,
    *,
    slopes: Slopes | None = None,
    clips: Sequence[Interval] | None = None,
) -> tuple[tuple[Interval, ...], Interval]:
    """`pre_activation_bounds`, and the part of the box in which the clips can hold.

    A clip is a constraint on the inputs through the linear bounds of its unit; the box shrinks to
    what satisfies each of them, and the layers after it are bounded over that. A box that is empty
    afterwards (lower > upper) says that no input satisfies the clips.
    """
    found: list[Interval] = []
    lines: list[Lines] = []
    outputs: list[Interval] = [box]  # of each layer's activations, the box first
    for k, (weight, bias) in enumerate(zip(chain.weights, chain.biases)):
        used = lines if slopes is None else _relined(chain, found, slopes[k])
        bounds, planes = _propagated(chain, box, outputs, found, used, weight, bias)
        bounds = intersection(bounds, affine_interval(weight, bias, outputs[-1]))
        if k < len(chain.activations):
            if clips is not None:
                bounds = intersection(bounds, clips[k])
                box = _shrunk(box, planes, clips[k])
            activation = chain.activations[k]
            lines.append(activation.lines(*bounds))
            outputs.append(Interval(*activation.range(*bounds)))
        found.append(bounds)
    return tuple(found), box


class Planes(NamedTuple):
    """Linear bounds in the inputs: `z <= coefficients x + constants`; the first half of the rows
    are of the units z, the second of -z."""

    coefficients: Float[Array, "rows inputs"]
    constants: Float[Array, " rows"]

    def highest(self, box: Interval) -> Float[Array, " rows"]:
        """The largest value over a box, rounded outward."""
        c = self.coefficients
        top = jnp.maximum(c, 0) @ box.upper + jnp.minimum(c, 0) @ box.lower
        gamma = rounding(c.shape[1], c.dtype)
        return top + self.constants + gamma * (jnp.abs(c) @ box.size + jnp.abs(self.constants))


def _shrunk(box: Interval, planes: Planes, clip: Interval) -> Interval:
    """The box cut to where units can lie in their clips: `coefficients x >= least` for each row."""
    c = planes.coefficients
    least = jnp.concatenate([clip.lower, -clip.upper])
    terms = jnp.maximum(c * box.lower, c * box.upper)
    # Row by row, what is left for one input when the others do all they can.
    rest = least[:, None] - (planes.highest(box)[:, None] - terms)
    sizes = jnp.sum(jnp.abs(terms), axis=1) + jnp.abs(planes.constants) + jnp.abs(least)
    rest -= rounding(c.shape[1], c.dtype) * sizes[:, None]
    bound = rest / jnp.where(c == 0, 1, c)
    bound = jnp.where(c > 0, bound - _ulp(bound), bound + _ulp(bound))
    lower = jnp.max(jnp.where(c > 0, bound, -jnp.inf), axis=0)
    upper = jnp.min(jnp.where(c < 0, bound, jnp.inf), axis=0)
    return intersection(box, Interval(lower, upper))


def _ulp(x: Array) -> Array:
    return rounding(1, x.dtype) * jnp.where(jnp.isfinite(x), jnp.abs(x), 0)


def _relined(
    chain: Chain, found: Sequence[Interval], slopes: Sequence[tuple[Array, Array]]
) -> list[Lines]:
    lines: list[Lines] = []
    for activation, bounds, fractions in zip(chain.activations, found, slopes):
        least, most = activation.derivative_range(*bounds)
        below, above = (least + jnp.clip(f, 0, 1) * (most - least) for f in fractions)
        lines.append(activation.lines(*bounds, slopes=(below, above)))
    return lines


def default_fractions(chain: Chain, found: Sequence[Interval]) -> list[list[tuple[Array, Array]]]:
    """The `slopes` that the default lines have, given the pre-activations' bounds."""
    layers: list[tuple[Array, Array]] = []
    for activation, bounds in zip(chain.activations, found):
        least, most = activation.derivative_range(*bounds)
        width = jnp.where(most > least, most - least, 1)
        below, above = activation.default_slopes(*bounds)
        layers.append(((below - least) / width, (above - least) / width))
    return [layers[:k] for k in range(len(chain.weights))]


def intersection(first: Interval, second: Interval) -> Interval:
    """What both contain. Empty where they do not meet: then lower > upper is left as it is."""
    return Interval(jnp.maximum(first.lower, second.lower), jnp.minimum(first.upper, second.upper))


def affine_interval(
    weight: Float[Array, "n m"], bias: Float[Array, " n"], inputs: Interval
) -> Interval:
    """Interval arithmetic through one affine map, rounded outward."""
    centre = (inputs.lower + inputs.upper) / 2
    radius = (inputs.upper - inputs.lower) / 2
    middle, spread = weight @ centre + bias, jnp.abs(weight) @ radius
    loss = rounding(weight.shape[1], weight.dtype) * (jnp.abs(weight) @ inputs.size + jnp.abs(bias))
    return Interval(middle - spread - loss, middle + spread + loss)


def _propagated(
    chain: Chain,
    box: Interval,
    outputs: Sequence[Interval],
    found: Sequence[Interval],
    lines: Sequence[Lines],
    weight: Array,
    bias: Array,
) -> tuple[Interval, Planes]:
    both = jnp.concatenate([weight, -weight])
    planes = _upper(chain, outputs, found, lines, both, jnp.concatenate([bias, -bias]))
    above, negated = jnp.split(planes.highest(box), 2)
    return Interval(-negated, above), planes


def _upper(
    chain: Chain,
    outputs: Sequence[Interval],
    found: Sequence[Interval],
    lines: Sequence[Lines],
    coefficients: Float[Array, "m n"],
    total: Float[Array, " m"],
) -> Planes:
    """A linear upper bound, in the inputs, of `coefficients @ h + total`, h the activations of the
    last layer."""
    loss = jnp.zeros_like(total)
    for k in reversed(range(len(lines))):
        line, weight, bias = lines[k], chain.weights[k], chain.biases[k]
        inner, constant = substituted(coefficients, line)
        gamma = rounding(max(weight.shape), weight.dtype)
        reach = jnp.abs(weight) @ outputs[k].size + jnp.abs(bias) + found[k].size
        intercepts = jnp.maximum(jnp.abs(line.lower_intercept), jnp.abs(line.upper_intercept))
        loss += gamma * (jnp.abs(inner) @ reach + jnp.abs(coefficients) @ intercepts)
        total += constant + inner @ bias
        coefficients = inner @ weight
        loss += rounding(4, total.dtype) * (jnp.abs(total) + loss)
    return Planes(coefficients, total + loss)


def substituted(
    coefficients: Float[Array, "m n"], lines: Lines
) -> tuple[Float[Array, "m n"], Float[Array, " m"]]:
    """A linear function's upper bound after each variable is replaced by its line."""
    positive, negative = jnp.maximum(coefficients, 0), jnp.minimum(coefficients, 0)
    inner = positive * lines.upper_slope + negative * lines.lower_slope
    return inner, positive @ lines.upper_intercept + negative @ lines.lower_intercept
