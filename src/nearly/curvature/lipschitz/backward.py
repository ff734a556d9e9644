"""Bounds of a chain's Clarke Jacobian over a box: linear bound propagation on its backward graph.

With s_k the derivatives of layer k's activations, a row of the Jacobian is made by
`g_{L-1} = row of W_L`, `v_k = g_k s_k`, `g_{k-1} = v_k W_k`, and is `g_0`. Only the products
`g_k s_k` are not linear; with s_k in [a, b] they lie between the concave `min(a g, b g)` and the
convex `max(a g, b g)`, whose chords over the bounds of g_k are the tightest lines there are. Each
g_k is bounded by substituting these lines backward to the constant g_{L-1}.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nearly.curvature.lipschitz.activations import Lines
from nearly.curvature.lipschitz.chain import Chain
from nearly.curvature.lipschitz.forward import Interval, intersection, rounding, substituted

Relax = Callable[[Interval, Interval], Lines]
"""(bounds of g, range of the derivative) -> lines of their product in g."""


class JacobianBounds(NamedTuple):
    """Entrywise bounds of the Jacobian, and of its rows' absolute sums.

    `scores[k]` (outputs, n_k) is what each hidden unit's relaxation adds to its row's sum: where
    branching pays.
    """

    lower: Float[Array, "outputs inputs"]
    upper: Float[Array, "outputs inputs"]
    row_sums: Float[Array, " outputs"]
    scores: tuple[Float[Array, "outputs _"], ...]


def chords(gradient: Interval, derivative: Interval) -> Lines:
    """The tightest lines about `g s` in g: chords of min(a g, b g) and max(a g, b g)."""
    (low, high), (a, b) = gradient, derivative
    width = high - low
    wide = width > 0
    safe = jnp.where(wide, width, 1)
    below = jnp.minimum(a * high, b * high) - jnp.minimum(a * low, b * low)
    above = jnp.maximum(a * high, b * high) - jnp.maximum(a * low, b * low)
    return product_lines(
        gradient, derivative, jnp.where(wide, below / safe, a), jnp.where(wide, above / safe, b)
    )


def product_lines(
    gradient: Interval, derivative: Interval, below: Float[Array, " n"], above: Float[Array, " n"]
) -> Lines:
    """Sound lines about `g s` at any slopes: a convex function's excess is largest at an end."""
    ends, (a, b) = jnp.stack(gradient), derivative
    low, high = jnp.minimum(a * ends, b * ends), jnp.maximum(a * ends, b * ends)
    loss = rounding(1, ends.dtype) * jnp.maximum(jnp.abs(low), jnp.abs(high))
    loss += rounding(1, ends.dtype) * jnp.maximum(jnp.abs(below), jnp.abs(above)) * jnp.abs(ends)
    return Lines(
        below,
        jnp.min(low - below * ends - loss, axis=0),
        above,
        jnp.max(high - above * ends + loss, axis=0),
    )


def jacobian_bounds(
    chain: Chain, pre_activations: Sequence[Interval], relax: Relax = chords
) -> JacobianBounds:
    """Bounds of every entry of the Jacobian, and of its rows' absolute sums.

    **Arguments:**

    - `chain`: the network. `pre_activations`: bounds of its hidden layers' (more are ignored).
    - `relax`: the lines that replace `g s`.

    **Returns:** sound bounds, rounded outward as `forward` explains. A row's sum of absolute
    values is propagated as one linear function (each |J_i| replaced by its chord), and is the
    lesser of that and the sum of entrywise bounds. Costs O(L^2) products of weight matrices per
    output. Paper: `local-lipschitz`.
    """
    ranges = derivative_ranges(chain, pre_activations)
    return jax.vmap(lambda row: _row(chain, ranges, row, relax))(chain.weights[-1])


def derivative_ranges(chain: Chain, pre_activations: Sequence[Interval]) -> list[Interval]:
    """The range of every hidden unit's derivative over bounds of its pre-activation."""
    return [
        Interval(*activation.derivative_range(*bounds))
        for activation, bounds in zip(chain.activations, pre_activations)
    ]


def _row(chain: Chain, ranges: Sequence[Interval], row: Array, relax: Relax) -> JacobianBounds:
    """The bounds of one output's gradient: layers from the last hidden one down to the inputs."""
    gradients: dict[int, Interval] = {len(ranges): Interval(row, row)}
    lines: dict[int, Lines] = {}
    for k in reversed(range(len(ranges))):
        weight = chain.weights[k]
        lines[k] = relax(gradients[k + 1], ranges[k])
        columns = jnp.concatenate([weight.T, -weight.T])
        above, negated = jnp.split(_upper(chain, ranges, gradients, lines, k, columns)[0], 2)
        simple = product_interval(gradients[k + 1], ranges[k], weight)
        gradients[k] = intersection(Interval(-negated, above), simple)
    lower, upper = gradients[0]
    total, scores = _absolute_sum(chain, ranges, gradients, lines)
    return JacobianBounds(lower, upper, total, scores)


def product_interval(gradient: Interval, derivative: Interval, weight: Array) -> Interval:
    """Interval arithmetic through `(g s) W`, rounded outward."""
    corners = jnp.stack([g * s for g in gradient for s in derivative])
    low, high = jnp.min(corners, axis=0), jnp.max(corners, axis=0)
    positive, negative = jnp.maximum(weight, 0), jnp.minimum(weight, 0)
    size = jnp.maximum(jnp.abs(low), jnp.abs(high))
    loss = rounding(weight.shape[0], weight.dtype) * (size @ jnp.abs(weight))
    return Interval(
        low @ positive + high @ negative - loss, high @ positive + low @ negative + loss
    )


def _upper(
    chain: Chain,
    ranges: Sequence[Interval],
    gradients: dict[int, Interval],
    lines: dict[int, Lines],
    layer: int,
    coefficients: Float[Array, "m n"],
) -> tuple[Float[Array, " m"], list[Array]]:
    """An upper bound of `coefficients @ v`, v the products of a layer, and its excess per unit."""
    total = jnp.zeros(coefficients.shape[0], coefficients.dtype)
    loss = jnp.zeros_like(total)
    excess: list[Array] = []
    for k in range(layer, len(ranges)):
        line, weight = lines[k], chain.weights[k + 1]
        if k > layer:
            coefficients = coefficients @ chain.weights[k].T
        inner, constant = substituted(coefficients, line)
        positive, negative = jnp.maximum(coefficients, 0), jnp.minimum(coefficients, 0)
        excess.append(positive * line.upper_intercept + negative * line.lower_intercept)
        # g_k is made from the layer above, whose products are this large at most.
        if k + 1 < len(ranges):
            made = jnp.abs(weight).T @ (gradients[k + 2].size * ranges[k + 1].size)
        else:
            made = gradients[k + 1].size
        intercepts = jnp.maximum(jnp.abs(line.lower_intercept), jnp.abs(line.upper_intercept))
        gamma = rounding(max(weight.shape) + len(ranges), weight.dtype)
        loss += gamma * (jnp.abs(inner) @ (made + gradients[k + 1].size))
        loss += gamma * (jnp.abs(coefficients) @ intercepts)
        total += constant
        coefficients = inner
    return total + coefficients @ gradients[len(ranges)].upper + loss, excess


def _absolute_sum(
    chain: Chain,
    ranges: Sequence[Interval],
    gradients: dict[int, Interval],
    lines: dict[int, Lines],
) -> tuple[Array, tuple[Array, ...]]:
    """A bound of the row's sum of absolute values, and what each hidden unit adds to it."""
    lower, upper = gradients[0]
    simple = jnp.sum(gradients[0].size) * (1 + rounding(lower.shape[0], lower.dtype))
    width = upper - lower
    wide = width > 0
    rise = (jnp.abs(upper) - jnp.abs(lower)) / jnp.where(wide, width, 1)
    slope = jnp.where(wide, rise, jnp.sign(lower))
    # |J| is convex, so a line above it at both ends is above it between them.
    intercept = jnp.maximum(jnp.abs(lower) - slope * lower, jnp.abs(upper) - slope * upper)
    if not ranges:
        return simple, ()
    weight = chain.weights[0]
    coefficients = (weight @ slope)[None]
    above, excess = _upper(chain, ranges, gradients, lines, 0, coefficients)
    reach = gradients[1].size * ranges[0].size
    gamma = rounding(max(weight.shape), weight.dtype)
    loss = gamma * (jnp.abs(weight) @ jnp.abs(slope)) @ reach
    loss += gamma * jnp.sum(jnp.abs(intercept) + gradients[0].size)
    whole = above[0] + jnp.sum(intercept) + loss
    return jnp.minimum(simple, whole), tuple(units[0] for units in excess)
