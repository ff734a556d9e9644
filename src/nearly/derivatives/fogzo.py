"""Training through quantisers: straight-through, and straight-through corrected by the hard loss.

A `Quantiser` is hard forwards and pretends to be smooth backwards. That pretence is exact for
something: a quantiser's slope *averaged over noise on its input* is the density of the noise at
the jumps. So each straight-through rule stands for a law of noise, in units of the quantiser's
step (derived: a jump of height h has the averaged slope h p(distance to the jump)):

| quantiser | slope pretended | law of the noise | standard deviation |
|---|---|---|---|
| round (jumps of 1) | 1 | uniform on ±1/2 | 1/(2 sqrt 3) |
| sign (a jump of 2) | hardtanh: 1 on ±1 | uniform on ±1 | 1/sqrt 3 |
| sign | tanh: 1 - tanh^2 x | logistic of scale 1/2: atanh(2U - 1) | pi/sqrt 12 |
| sign | ApproxSign: 2 - 2 |x| on ±1 | triangular on ±1 | 1/sqrt 6 |

`FOGZO` (`fogzo`) walks along a direction that mixes the straight-through gradient with such noise
and asks the *hard* loss how much it changes:

    v = s sqrt(beta) g/|g| + sqrt(1 - beta) u,   G = mean of (L(w + eps v) - L(w - eps v))/(2 eps) v

with s = ±1, u of unit variance, eps the standard deviation above, in units of the step. To first
order E G = beta g g'/|g|^2 grad L + (1 - beta) grad L: what the straight-through gradient says is
kept as far as the hard loss confirms it. With beta = 0 it is SPSA.

How this differs from the paper: where the layers' steps differ, w is measured in steps (v mixes
per layer as if all steps were 1), which makes the estimate independent of the weights' units; with
one step for all it is the paper's formula. Weights that are not quantised get their plain gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, PyTree

from nearly.core.errors import InputError, UnknownName

Weights = Inexact[Array, "*shape"]
Draw = Callable[[Any, tuple[int, ...], Any], Any]

FEW_WEIGHTS_BETA = 0.5


# ---- laws of noise, each of unit variance


class Noise(eqx.Module):
    """A law of noise on a quantiser's input: `deviation`, in its steps, times unit-variance draws.

    **Arguments:**

    - `draw`: `(key, shape, dtype)` -> independent draws of mean 0 and variance 1.
    """

    draw: Draw
    deviation: float


def _uniform(key: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    return jax.random.uniform(key, shape, dtype, -math.sqrt(3), math.sqrt(3))


def _logistic(key: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    return jax.random.logistic(key, shape, dtype) * (math.sqrt(3) / math.pi)


def _triangular(key: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    return jax.random.uniform(key, (2, *shape), dtype, -0.5, 0.5).sum(0) * math.sqrt(6)


ROUNDING_NOISE = Noise(_uniform, 1 / (2 * math.sqrt(3)))
NORMAL_NOISE = Noise(jax.random.normal, 1e-3)  # that of MeZO, for smooth losses

SURROGATES: dict[str, tuple[Callable[[Any], Any], Noise]] = {
    "hardtanh": (
        lambda x: jnp.where(jnp.abs(x) <= 1, jnp.ones_like(x), 0),
        Noise(_uniform, 1 / math.sqrt(3)),
    ),
    "tanh": (lambda x: 1 - jnp.tanh(x) ** 2, Noise(_logistic, math.pi / math.sqrt(12))),
    "approx-sign": (
        lambda x: jnp.maximum(2 - 2 * jnp.abs(x), 0),
        Noise(_triangular, 1 / math.sqrt(6)),
    ),
}


# ---- quantisers


@jax.custom_jvp
def _pretend(hard: Weights, x: Weights, slope: Weights) -> Weights:
    return hard


@_pretend.defjvp
def _pretend_jvp(primals: Any, tangents: Any) -> tuple[Any, Any]:
    hard, _, slope = primals
    return hard, slope * tangents[1]


class Rounding(eqx.Module):
    """Round to `step` times a signed whole number of so many bits; the identity backwards.

    With 2 bits the levels are -2, -1, 0 and 1 steps. The backward pass is the identity everywhere,
    so that a weight beyond the last level can come back.

    Raises `InputError` for fewer than 2 bits (see `Sign`) or a step that is not positive.
    """

    bits: int = 2
    step: float = 1.0
    noise: ClassVar[Noise] = ROUNDING_NOISE

    def __check_init__(self) -> None:
        if self.bits < 2:
            raise InputError(f"bits={self.bits} must be at least 2; for one bit use Sign")
        _check_step(self.step)

    def __call__(self, weights: Weights) -> Weights:
        half = 2 ** (self.bits - 1)
        levels = jnp.clip(jnp.round(weights / self.step), -half, half - 1)
        return _pretend(self.step * levels, weights, jnp.ones_like(weights))


class Sign(eqx.Module):
    """`step` times the sign (1 at 0), with the slope of `surrogate` backwards.

    **Arguments:**

    - `surrogate`: `hardtanh`, `tanh` or `approx-sign`, of weights in units of `step`.
    """

    surrogate: str = "hardtanh"
    step: float = 1.0

    def __check_init__(self) -> None:
        if self.surrogate not in SURROGATES:
            raise UnknownName("surrogate", self.surrogate, SURROGATES)
        _check_step(self.step)

    @property
    def noise(self) -> Noise:
        return SURROGATES[self.surrogate][1]

    def __call__(self, weights: Weights) -> Weights:
        hard = jnp.where(weights >= 0, self.step, -self.step).astype(weights.dtype)
        return _pretend(hard, weights, SURROGATES[self.surrogate][0](weights / self.step))


def _check_step(step: float) -> None:
    if not step > 0:
        raise InputError(f"step={step} must be positive")


def matrices(model: PyTree) -> PyTree:
    """Which leaves are usually quantised: arrays of floats with two axes or more, not biases."""
    return jax.tree.map(lambda leaf: eqx.is_inexact_array(leaf) and leaf.ndim >= 2, model)


def quantise(model: PyTree, quantiser: Callable[[Any], Any], which: PyTree) -> PyTree:
    """The model with the leaves marked in `which` quantised; differentiable. Use it in the loss."""
    return jax.tree.map(lambda leaf, hit: quantiser(leaf) if hit else leaf, model, which)


# ---- gradients: `gradient` of nearly.training.fit


def straight_through(
    objective: Callable[[Any], Any], weights: PyTree, *, key: Any, step: Any
) -> tuple[Float[Array, ""], PyTree]:
    """The gradient that the quantisers' backward passes give: one evaluation and one pullback."""
    del key, step
    return jax.value_and_grad(objective)(weights)


class SPSA(eqx.Module):
    """Zeroth-order gradients: differences of the loss along random directions.

    **Arguments:**

    - `noise`: law of the directions and length of the steps, in units of `scale`.
    - `scale`: a number, or one per leaf (a prefix of the weights): the quantiser's step.
    - `pairs`: directions to average over; the variance falls as 1/pairs and grows as the number
      of weights.

    With `NORMAL_NOISE` and one pair this is MeZO. **Cost:** 2 pairs evaluations, no pullback;
    memory of the weights.
    """

    noise: Noise = ROUNDING_NOISE
    scale: PyTree = 1.0
    pairs: int = 1

    def __check_init__(self) -> None:
        _check_pairs(self.pairs)

    def __call__(
        self, objective: Callable[[Any], Any], weights: PyTree, *, key: Any, step: Any
    ) -> tuple[Float[Array, ""], PyTree]:
        del step
        scale = _spread(self.scale, weights)
        directions = lambda k: _noise_like(self.noise, weights, k)  # noqa: E731
        return _differences(
            objective, weights, scale, self.noise.deviation, directions, key, self.pairs
        )


class FOGZO(eqx.Module):
    """The straight-through gradient, corrected by the hard loss along it and along noise.

    **Arguments:**

    - `noise`: the quantiser's (`quantiser.noise`). `scale`: its step, or one per leaf.
    - `beta`: weight of the straight-through direction in [0, 1], or a schedule `step -> beta`;
      the paper goes linearly from 1 to 0.999 for a small network, nearer to 1 for large ones:
      the noise is d (1 - beta) times as long, squared, for d weights.
    - `quantised`: which weights are: bools, a prefix of the weights. The others keep the gradient
      of the backward pass.
    - `pairs`: pairs of evaluations a step.
    - `first_order_steps`: so many first steps take the straight-through gradient alone, at its
      price (the paper's mixed variant).

    Its length differs from the gradient's: tune the learning rate anew. Dropout and batch must be
    the same in all evaluations; `nearly.training.fit` sees to it.

    **Cost:** one evaluation, one pullback, 2 pairs more evaluations.
    """

    noise: Noise = ROUNDING_NOISE
    scale: PyTree = 1.0
    beta: float | Callable[[Any], Any] = 0.999
    quantised: PyTree = True
    pairs: int = 1
    first_order_steps: int = 0

    def __check_init__(self) -> None:
        _check_pairs(self.pairs)
        if isinstance(self.beta, (int, float)) and not 0 <= self.beta <= 1:
            raise InputError(f"beta={self.beta} must lie between 0 and 1, such as 0.999")

    def __call__(
        self, objective: Callable[[Any], Any], weights: PyTree, *, key: Any, step: Any
    ) -> tuple[Float[Array, ""], PyTree]:
        value, slope = jax.value_and_grad(objective)(weights)
        if self.first_order_steps == 0:
            return value, self._corrected(objective, weights, slope, key, step)
        corrected = jax.lax.cond(
            step < self.first_order_steps,
            lambda: slope,
            lambda: self._corrected(objective, weights, slope, key, step),
        )
        return value, corrected

    def _corrected(
        self, objective: Callable[[Any], Any], weights: PyTree, slope: PyTree, key: Any, step: Any
    ) -> PyTree:
        which = _spread(self.quantised, weights)
        moving, resting = eqx.partition(weights, which)
        scale = eqx.filter(_spread(self.scale, weights), which)
        guide = _unit(jax.tree.map(jnp.multiply, eqx.filter(slope, which), scale))
        beta = jnp.asarray(self.beta(step) if callable(self.beta) else self.beta)

        def direction(key: Any) -> PyTree:
            sign_key, noise_key = jax.random.split(key)
            sign = jax.random.rademacher(sign_key, (), jnp.int32)
            along, across = sign * jnp.sqrt(beta), jnp.sqrt(1 - beta)
            noise = _noise_like(self.noise, moving, noise_key)
            return jax.tree.map(lambda g, u: (along * g + across * u).astype(u.dtype), guide, noise)

        _, found = _differences(
            lambda w: objective(eqx.combine(w, resting)),
            moving,
            scale,
            self.noise.deviation,
            direction,
            key,
            self.pairs,
        )
        return eqx.combine(found, slope)


def _check_pairs(pairs: int) -> None:
    if pairs < 1:
        raise InputError(f"pairs={pairs} must be at least 1")


def _spread(prefix: PyTree, weights: PyTree) -> PyTree:
    """A prefix of the weights (one number for all, say) as one value per leaf."""
    return jax.tree.map(lambda value, below: jax.tree.map(lambda _: value, below), prefix, weights)


def _noise_like(noise: Noise, weights: PyTree, key: Any) -> PyTree:
    leaves, structure = jax.tree.flatten(weights)
    keys = jax.random.split(key, len(leaves))
    drawn = [noise.draw(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, drawn)


def _unit(tree: PyTree) -> PyTree:
    length = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)))
    # A gradient of zero has no direction: the noise is left to explore alone.
    return jax.tree.map(lambda leaf: leaf / jnp.where(length > 0, length, 1), tree)


def _moved(weights: PyTree, scale: PyTree, direction: PyTree, length: float) -> PyTree:
    return jax.tree.map(lambda w, s, v: w + length * s * v, weights, scale, direction)


def _differences(
    objective: Callable[[Any], Any],
    weights: PyTree,
    scale: PyTree,
    deviation: float,
    direction: Callable[[Any], PyTree],
    key: Any,
    pairs: int,
) -> tuple[Float[Array, ""], PyTree]:
    """The mean loss beside the weights, and the mean of (difference quotient) x (direction)."""

    def one(carry: Any, key: Any) -> tuple[Any, None]:
        v = direction(key)
        up = objective(_moved(weights, scale, v, deviation))
        down = objective(_moved(weights, scale, v, -deviation))
        quotient = (up - down) / (2 * deviation)
        add = jax.tree.map(lambda total, s, d: total + quotient * d / s, carry[1], scale, v)
        return (carry[0] + (up + down) / 2, add), None

    zero = jnp.zeros_like(jax.eval_shape(objective, weights)), jax.tree.map(jnp.zeros_like, weights)
    (value, gradient), _ = jax.lax.scan(one, zero, jax.random.split(key, pairs))
    return value / pairs, jax.tree.map(lambda leaf: leaf / pairs, gradient)


# What the catalogue offers for a handful of weights, where noise need not be rationed.
spsa = SPSA()
few_weights = FOGZO(beta=FEW_WEIGHTS_BETA)
