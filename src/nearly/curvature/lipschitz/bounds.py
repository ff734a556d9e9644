"""Upper bounds of a local Lipschitz constant: `lipschitz_bound` and the methods it takes.

A method is called with a chain, a box and a norm, and returns a number that is proven to be no less
than the supremum over the box of the operator norm of the Clarke Jacobian.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from nearly.core.errors import InputError, UnknownName
from nearly.curvature.lipschitz.activations import Lines
from nearly.curvature.lipschitz.backward import (
    JacobianBounds,
    chords,
    derivative_ranges,
    jacobian_bounds,
    product_interval,
    product_lines,
)
from nearly.curvature.lipschitz.chain import Chain, chain_of
from nearly.curvature.lipschitz.forward import (
    Interval,
    Slopes,
    default_fractions,
    pre_activation_bounds,
    rounding,
)

Norm = Literal["1", "2", "inf"]
NORMS = ("1", "2", "inf")


@runtime_checkable
class Bounder(Protocol):
    """What a method of the protocol "lipschitz-bounds" is."""

    def __call__(self, chain: Chain, box: Interval, norm: Norm) -> Float[Array, ""] | float:
        """A proven upper bound of the local Lipschitz constant."""
        ...


def lipschitz_bound(
    model: Any,
    lower: Any,
    upper: Any,
    norm: Norm = "inf",
    method: Bounder | None = None,
) -> float:
    """A certified upper bound of how fast a network's output can change within a box.

    For all x, y in the box, `|f(x) - f(y)| <= bound |x - y|` in the norm (1, 2 or inf, the same on
    both sides), for the weights as given and in exact arithmetic.

    **Arguments:**

    - `model`: an unmodified equinox model (see `chain_of` for what it may contain) or a `Chain`.
    - `lower`, `upper`: the box, arrays of the model's input shape. Clip it to the data's range.
    - `norm`: "inf" is what the method was made for; "1" and "2" come from the entrywise bounds.
    - `method`: by default `LinearPropagation()`; `BranchAndBound` is tighter and dearer.

    Computes in float64 whatever the model's precision. Raises `InputError` for a layer that is
    not supported or a box that is none, `UnknownName` for another norm. Costs O(outputs L^2)
    products of weight matrices for L layers. Paper: `local-lipschitz`; unlike its code, rounded
    outward, for smooth activations too, and for all three norms.
    """
    if norm not in NORMS:
        raise UnknownName("norm", norm, NORMS)
    with jax.enable_x64(True):
        chain, box = prepared(model, lower, upper)
        return float((method or LinearPropagation())(chain, box, norm))


def prepared(model: Any, lower: Any, upper: Any) -> tuple[Chain, Interval]:
    """A model's chain and a checked box, in float64 (which must be enabled)."""
    low, high = np.asarray(lower, np.float64), np.asarray(upper, np.float64)
    if low.shape != high.shape or low.size == 0:
        raise InputError(f"lower and upper must have one shape, got {low.shape} and {high.shape}")
    if not (np.all(np.isfinite(low)) and np.all(np.isfinite(high)) and np.all(low <= high)):
        raise InputError("lower must not exceed upper, and both must be finite")
    is_real = eqx.is_inexact_array
    double = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64) if is_real(a) else a, model)
    chain = chain_of(double, low.shape)
    if chain.inputs != low.size:
        raise InputError(
            f"the model takes {chain.inputs} inputs but the box has {low.size}: give lower and "
            "upper the model's input shape"
        )
    return chain, Interval(jnp.asarray(low.ravel()), jnp.asarray(high.ravel()))


class LinearPropagation(eqx.Module):
    """Linear bound propagation forward, then on the backward graph: cheap and tight.

    **Arguments:**

    - `slope_steps`: how often the free slopes of the forward lines are improved by a step of Adam
      on the sum of the outputs' bounds. Every slope is sound, so the least bound met is kept.
    - `learning_rate`: of those steps.

    Pure: may be jitted, mapped and differentiated (with respect to the weights, to train for a
    small constant). Paper: `local-lipschitz`; optimised slopes come from alpha-CROWN.
    """

    slope_steps: int = 0
    learning_rate: float = 0.05

    def __check_init__(self) -> None:
        if self.slope_steps < 0 or not self.learning_rate > 0:
            raise InputError(
                f"slope_steps {self.slope_steps} must not be negative, and learning_rate "
                f"{self.learning_rate} must be positive"
            )

    def __call__(self, chain: Chain, box: Interval, norm: Norm) -> Float[Array, ""]:
        return operator_norm(_linear(chain, box, self.slope_steps, self.learning_rate), norm)


@eqx.filter_jit
def _linear(chain: Chain, box: Interval, steps: int, rate: float) -> JacobianBounds:
    pre_activations = pre_activation_bounds(chain, box)
    bounds = jacobian_bounds(chain, pre_activations)
    if steps:
        bounds = _with_better_slopes(chain, box, pre_activations, bounds, steps, rate)
    return bounds


def _with_better_slopes(
    chain: Chain,
    box: Interval,
    pre_activations: Sequence[Interval],
    bounds: JacobianBounds,
    steps: int,
    rate: float,
) -> JacobianBounds:
    """The best of each bound that gradient steps on the slopes of the forward lines meet.

    Where derivatives jump (ReLU), the bound depends on the slopes through which units are known to
    be stable and so has no gradient. A second term therefore asks units to be stable: how far a
    unit is from it, by what it would save.
    """
    optimizer = optax.adam(rate)
    start = default_fractions(chain, pre_activations)

    def total(slopes: Slopes) -> tuple[Array, JacobianBounds]:
        found = pre_activation_bounds(chain, box, slopes=slopes)
        bounds = jacobian_bounds(chain, found)
        return jnp.sum(bounds.row_sums) + _instability(pre_activations, found, bounds), bounds

    def step(carry: Any, _: None) -> tuple[Any, None]:
        slopes, state, best = carry
        (_, bounds), gradient = jax.value_and_grad(total, has_aux=True)(slopes)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(slopes, updates), state, _tighter(best, bounds)), None

    carry = (start, optimizer.init(start), bounds)
    (_, _, best), _ = jax.lax.scan(step, carry, None, length=steps)
    return best


def _instability(
    before: Sequence[Interval], now: Sequence[Interval], bounds: JacobianBounds
) -> Array:
    """How far from having one sign pre-activations are, by what their relaxation costs."""
    total = jnp.zeros(())
    for (low, high), (lower, upper), score in zip(before, now, bounds.scores):
        width = jax.lax.stop_gradient(jnp.maximum(high - low, jnp.finfo(low.dtype).tiny))
        distance = jnp.maximum(jnp.minimum(upper, -lower), 0) / width
        total += jnp.sum(jax.lax.stop_gradient(jnp.sum(score, axis=0)) * distance)
    return total


def _tighter(first: JacobianBounds, second: JacobianBounds) -> JacobianBounds:
    return JacobianBounds(
        jnp.maximum(first.lower, second.lower),
        jnp.minimum(first.upper, second.upper),
        jnp.minimum(first.row_sums, second.row_sums),
        second.scores,
    )


def operator_norm(bounds: JacobianBounds, norm: Norm) -> Float[Array, ""]:
    """The largest norm of a Jacobian within bounds.

    In "inf" the largest row sum; in "1" the largest sum of a column's entrywise bounds; in "2" the
    least of three: the norm of the matrix of entrywise sizes, which no matrix below it exceeds;
    that of the middles plus that of the radii; the root of the product of the other two norms.
    """
    if norm == "inf":
        return jnp.max(bounds.row_sums)
    entries = jnp.maximum(jnp.abs(bounds.lower), jnp.abs(bounds.upper))
    grow = 1 + rounding(4 * sum(entries.shape), entries.dtype)
    columns = jnp.max(jnp.sum(entries, axis=0)) * grow
    if norm == "1":
        return columns
    middle, radius = (bounds.lower + bounds.upper) / 2, (bounds.upper - bounds.lower) / 2
    apart = jnp.linalg.norm(middle, 2) + jnp.linalg.norm(radius, 2)
    spectral = jnp.minimum(jnp.linalg.norm(entries, 2), apart) * grow
    return jnp.minimum(spectral, jnp.sqrt(columns * jnp.max(bounds.row_sums)) * grow)


class RecurJac(eqx.Module):
    """The recursive bound that linear propagation generalises; here as the baseline to beat.

    Backward in order, on the same pre-activation bounds as `LinearPropagation` (its authors' code
    uses CROWN's too): products whose gradient has a known sign stay linear, with the derivative at
    the end that bounds them; the others become constants. Entries are bounded one by one, and
    their sizes added up. Zhang, Zhang, Hsieh: RecurJac, AAAI 2019.
    """

    def __call__(self, chain: Chain, box: Interval, norm: Norm) -> Float[Array, ""]:
        return operator_norm(_recursive(chain, box), norm)


@eqx.filter_jit
def _recursive(chain: Chain, box: Interval) -> JacobianBounds:
    found = pre_activation_bounds(chain, box)
    return _by_entries(jacobian_bounds(chain, found, _constants_if_unsure))


def _constants_if_unsure(gradient: Interval, derivative: Interval) -> Lines:
    lines = chords(gradient, derivative)
    unsure = (gradient.lower < 0) & (gradient.upper > 0) & (derivative.lower < derivative.upper)
    flat = jnp.zeros_like(gradient.lower)
    below = jnp.where(unsure, flat, lines.lower_slope)
    above = jnp.where(unsure, flat, lines.upper_slope)
    return product_lines(gradient, derivative, below, above)


def _by_entries(bounds: JacobianBounds) -> JacobianBounds:
    entries = jnp.maximum(jnp.abs(bounds.lower), jnp.abs(bounds.upper))
    grow = 1 + rounding(entries.shape[1], entries.dtype)
    return bounds._replace(row_sums=jnp.sum(entries, axis=1) * grow)


class IntervalPropagation(eqx.Module):
    """Interval arithmetic on the backward graph, with CROWN's pre-activation bounds (Fast-Lip)."""

    def __call__(self, chain: Chain, box: Interval, norm: Norm) -> Float[Array, ""]:
        return operator_norm(_interval(chain, box), norm)


@eqx.filter_jit
def _interval(chain: Chain, box: Interval) -> JacobianBounds:
    ranges = derivative_ranges(chain, pre_activation_bounds(chain, box))

    def row(last: Array) -> Interval:
        gradient = Interval(last, last)
        for k in reversed(range(len(ranges))):
            gradient = product_interval(gradient, ranges[k], chain.weights[k])
        return gradient

    lower, upper = jax.vmap(row)(chain.weights[-1])
    sums = jnp.zeros(chain.outputs, lower.dtype)
    return _by_entries(JacobianBounds(lower, upper, sums, ()))


class NormProduct(eqx.Module):
    """The product of the layers' norms and of the activations' global Lipschitz constants."""

    def __call__(self, chain: Chain, box: Interval, norm: Norm) -> Float[Array, ""]:
        order = {"1": 1, "2": 2, "inf": jnp.inf}[norm]
        norms = [jnp.linalg.norm(weight, order) for weight in chain.weights]
        # Every derivative is monotone further out, and there equal to its limit to rounding.
        everywhere = jnp.asarray([100.0], chain.weights[0].dtype)
        for activation in chain.activations:
            low, high = activation.derivative_range(-everywhere, everywhere)
            norms.append(jnp.maximum(jnp.abs(low), jnp.abs(high))[0])
        terms = len(norms) * max(max(weight.shape) for weight in chain.weights)
        return jnp.prod(jnp.stack(norms)) * (1 + rounding(4 * terms, norms[0].dtype))


def sampled_lower_bound(
    model: Any,
    lower: Any,
    upper: Any,
    norm: Norm = "inf",
    *,
    samples: int = 1000,
    seed: int = 0,
) -> float:
    """The largest norm of the Jacobian met at random points of the box: never above the truth.

    **Arguments:** as of `lipschitz_bound`; half the `samples` are uniform, half are vertices drawn
    a tenth of the way inside. Costs that many Jacobians.
    """
    with jax.enable_x64(True):
        chain, box = prepared(model, lower, upper)
        draws = np.random.default_rng(seed).uniform(size=(samples, chain.inputs))
        draws[::2] = 0.5 + 0.45 * np.sign(draws[::2] - 0.5)
        points = box.lower + jnp.asarray(draws) * (box.upper - box.lower)
        return float(_largest(chain, points, norm))


@eqx.filter_jit
def _largest(chain: Chain, points: Float[Array, "samples inputs"], norm: Norm) -> Array:
    order = {"1": 1, "2": 2, "inf": jnp.inf}[norm]

    def size(point: Array) -> Array:
        return jnp.linalg.norm(jax.jacrev(chain)(point), order)

    return jnp.max(jax.lax.map(size, points, batch_size=256))
