"""Bandits over a finite grid of arms: what chooses a solver's parameter from its costs alone.

All are pure: `init() -> state`, `probabilities(state, context) -> p`, and
`update(state, choice, loss) -> state`, where `choice` says which arm was drawn, how probable it
was, and in which context. They are safe under jit, vmap and scan.
"""

from __future__ import annotations

import abc
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nearly.core.errors import InputError

Scalar = Float[Array, ""]
Probabilities = Float[Array, " arms"]


class Choice(eqx.Module):
    """An arm that was drawn.

    **Arguments:** `arm`, its index; `probability` it was drawn with; `context` it was drawn in
    (0 where there is none).
    """

    arm: Int[Array, ""]
    probability: Scalar
    context: Scalar


class Bandit(eqx.Module):
    """Chooses among `arms` from the losses of those it chose, none of which is below one."""

    arms: eqx.AbstractVar[int]

    @abc.abstractmethod
    def init(self, dtype: Any) -> Any:
        """The state before the first round, with floating-point numbers of `dtype`."""

    @abc.abstractmethod
    def probabilities(self, state: Any, context: Scalar) -> Probabilities:
        """With which probability each arm is to be drawn next."""

    @abc.abstractmethod
    def update(self, state: Any, choice: Choice, loss: Scalar) -> Any:
        """The state after `choice` has cost `loss`."""

    def draw(self, state: Any, context: Scalar, key: Any) -> Choice:
        """One arm, drawn with `probabilities`."""
        p = self.probabilities(state, context)
        arm = jax.random.categorical(key, jnp.log(p))
        return Choice(arm, p[arm], context)


def _check_arms(arms: int) -> None:
    if arms < 2:
        raise InputError(f"a bandit with {arms} arms has nothing to choose; give it two or more")


def _check_interval(low: float, high: float) -> None:
    if not low < high:
        raise InputError(f"contexts between {low} and {high}: the first must be the smaller one")


# ---- Tsallis-INF


class TsallisState(eqx.Module):
    """Estimated loss of each arm (sum over the rounds, importance-weighted), sum of losses, rounds.

    Losses are counted from one, the least a solver can cost.
    """

    cumulative: Probabilities
    total: Scalar
    rounds: Scalar


class TsallisINF(Bandit):
    """The best fixed arm, learnt at the optimal rate from losses that may be random or not.

    Follow the regularised leader with the Tsallis entropy of order 1/2
    (`learning-to-relax`, section 3): `p_i = 4 / (eta (k_i - x))^2` with `eta = 2 / sqrt(t)`, `k_i`
    the cumulative importance-weighted loss in units of the mean loss, and `x` such that the sum is
    one. The regret after T rounds grows as `sqrt(arms * T)`.

    Two differences from the authors' program. `x` is bisected: at `min k - 2 sqrt(arms) / eta` the
    sum is at most one, at `min k - 2 / eta` at least one; their twenty steps of Newton's method can
    leave that interval and then fall back on the uniform distribution. And as theirs, but unlike
    the theorem, losses are scaled by their running mean, for nobody knows their largest value.

    **Cost:** O(arms) a round.
    """

    arms: int

    def __check_init__(self) -> None:
        _check_arms(self.arms)

    def init(self, dtype: Any) -> TsallisState:
        zero = jnp.zeros((), dtype)
        return TsallisState(jnp.zeros((self.arms,), dtype), zero, zero)

    def probabilities(self, state: TsallisState, context: Scalar) -> Probabilities:
        del context
        dtype = state.total.dtype
        eta = 2 / jnp.sqrt(state.rounds + 1)
        mean = state.total / jnp.maximum(state.rounds, 1)
        k = state.cumulative / jnp.where(mean > 0, mean, 1)
        gaps = k - jnp.min(k)

        def weights(distance: Scalar) -> Probabilities:
            return 4 / (eta * (gaps + distance)) ** 2

        def halve(_: Any, bracket: tuple[Scalar, Scalar]) -> tuple[Scalar, Scalar]:
            near, far = bracket
            middle = (near + far) / 2
            above = jnp.sum(weights(middle)) > 1
            return jnp.where(above, middle, near), jnp.where(above, far, middle)

        bits = jnp.finfo(dtype).nmant + 4
        start = (2 / eta, 2 * math.sqrt(self.arms) / eta)
        near, far = jax.lax.fori_loop(0, bits, halve, start)
        p = weights((near + far) / 2)
        return p / jnp.sum(p)

    def update(self, state: TsallisState, choice: Choice, loss: Scalar) -> TsallisState:
        estimate = (loss - 1) / choice.probability
        cumulative = state.cumulative.at[choice.arm].add(estimate)
        return TsallisState(cumulative, state.total + loss - 1, state.rounds + 1)


class BinnedTsallisINF(Bandit):
    """A `TsallisINF` of its own for each of `bins` equal parts of the contexts [low, high].

    The baseline contextual learner of `learning-to-relax`. Contexts outside belong to the nearest
    bin. **Cost:** O(arms) a round, O(bins * arms) memory.
    """

    arms: int
    bins: int
    low: float
    high: float

    def __check_init__(self) -> None:
        _check_arms(self.arms)
        _check_interval(self.low, self.high)
        if self.bins < 1:
            raise InputError(f"{self.bins} bins of contexts; give one or more")

    @property
    def _one(self) -> TsallisINF:
        return TsallisINF(self.arms)

    def _bin(self, context: Scalar) -> Int[Array, ""]:
        place = (context - self.low) / (self.high - self.low) * self.bins
        return jnp.clip(place.astype(int), 0, self.bins - 1)

    def init(self, dtype: Any) -> TsallisState:
        one = self._one.init(dtype)
        return jax.tree.map(lambda x: jnp.zeros((self.bins, *x.shape), x.dtype), one)

    def probabilities(self, state: Any, context: Scalar) -> Probabilities:
        mine = jax.tree.map(lambda x: x[self._bin(context)], state)
        return self._one.probabilities(mine, context)

    def update(self, state: Any, choice: Choice, loss: Scalar) -> Any:
        bin = self._bin(choice.context)
        mine = jax.tree.map(lambda x: x[bin], state)
        new = self._one.update(mine, choice, loss)
        return jax.tree.map(lambda all, one: all.at[bin].set(one), state, new)


# ---- ChebCB


class ChebyshevState(eqx.Module):
    """Normal equations of each arm's regression, and the losses' range.

    All losses are counted from one. `errors` is the sum of the squared errors of the predictions
    made before each loss was seen; `squares` the sum of squared losses of each arm.
    """

    gram: Float[Array, "arms features features"]
    moment: Float[Array, "arms features"]
    squares: Probabilities
    errors: Scalar
    largest: Scalar
    smallest: Scalar
    rounds: Scalar


class ChebyshevContextual(Bandit):
    """The best arm for each context: Chebyshev regression and inverse-gap sampling (ChebCB).

    Each arm's loss is modelled as a polynomial in the context (a number in [low, high]) by least
    squares over Chebyshev coefficients, bounded as those of a Lipschitz function are. With
    predicted losses y, arms other than the best are drawn with probability
    `1 / (arms + eta (y_i - min y))` (`learning-to-relax`, section 4; SquareCB). For the diagonal
    shift of a matrix as context this approaches the policy that knows the best arm of every system.

    Differences from the authors' program: the regression is kept as normal equations, so a round
    costs the same however many came before; the bounded least squares are solved by coordinate
    descent; and the regret of the regression, which sets eta, is what it should be, the squared
    errors of the predictions less the residuals of all arms' present fits, all in the present
    scale (theirs subtracts the last arm's residual and compares predictions scaled at the time).
    As theirs, eta grows as t^1.5 instead of the theorem's sqrt(t): less exploration, no proof.

    **Cost:** O(arms * features^2) a round and in memory.
    """

    arms: int
    low: float
    high: float
    features: int = 6

    def __check_init__(self) -> None:
        _check_arms(self.arms)
        _check_interval(self.low, self.high)
        if self.features < 2:
            raise InputError(f"{self.features} Chebyshev features; a context needs two or more")

    def init(self, dtype: Any) -> ChebyshevState:
        d, m = self.arms, self.features
        zero = jnp.zeros((), dtype)
        return ChebyshevState(
            gram=jnp.zeros((d, m, m), dtype),
            moment=jnp.zeros((d, m), dtype),
            squares=jnp.zeros((d,), dtype),
            errors=zero,
            largest=zero,
            smallest=jnp.full((), jnp.inf, dtype),
            rounds=zero,
        )

    def _features(self, context: Scalar) -> Float[Array, " features"]:
        x = jnp.clip(2 * (context - self.low) / (self.high - self.low) - 1, -1, 1)
        return jnp.cos(jnp.arange(self.features, dtype=x.dtype) * jnp.arccos(x))

    def _range(self, state: ChebyshevState) -> Scalar:
        return jnp.where(state.rounds > 0, state.largest - state.smallest, 0)

    def _coefficients(self, state: ChebyshevState) -> Float[Array, "arms features"]:
        """Every arm's least-squares coefficients, within the bounds of a Lipschitz function's."""
        degrees = jnp.maximum(jnp.arange(self.features, dtype=state.errors.dtype), 1)
        bound = (2 * self._range(state) / degrees).at[0].set(state.largest + 1)
        return jax.vmap(_bounded_least_squares, (0, 0, None))(state.gram, state.moment, bound)

    def probabilities(self, state: ChebyshevState, context: Scalar) -> Probabilities:
        theta = self._coefficients(state)
        scale = self._scale(state)
        predicted = theta @ self._features(context) / scale
        best = jnp.argmin(predicted)
        gaps = predicted - predicted[best]
        p = 1 / (self.arms + self._rate(state, theta, scale) * gaps)
        p = p.at[best].set(0)
        return p.at[best].set(1 - jnp.sum(p))

    def _scale(self, state: ChebyshevState) -> Scalar:
        """What brings losses into the range that the theorem asks for: K N of the paper."""
        largest = state.largest + 1
        steepness = self._range(state) / largest
        return largest * (2 + 4 * steepness * (1 + math.log(self.features)))

    def _rate(self, state: ChebyshevState, theta: Array, scale: Scalar) -> Scalar:
        m = self.features
        quadratic = jnp.einsum("ai,aij,aj->", theta, state.gram, theta)
        residual = jnp.sum(state.squares) - 2 * jnp.sum(theta * state.moment) + quadratic
        regret = jnp.maximum(state.errors - residual, 0) / scale**2
        # The largest error of m Chebyshev terms for a function as steep as the losses' range.
        error = (math.pi + 2 / math.pi * math.log(2 * m + 1)) / (2 * (m + 1))
        error = error * self._range(state) / scale
        t = jnp.maximum(state.rounds, 1)
        uncertainty = jnp.maximum(regret + 2 * error**2 * t, jnp.finfo(scale.dtype).tiny)
        return jnp.where(state.rounds > 0, 2 * t * jnp.sqrt(self.arms * t / uncertainty), 0)

    def update(self, state: ChebyshevState, choice: Choice, loss: Scalar) -> ChebyshevState:
        phi = self._features(choice.context)
        predicted = self._coefficients(state)[choice.arm] @ phi
        loss = loss - 1
        return ChebyshevState(
            gram=state.gram.at[choice.arm].add(jnp.outer(phi, phi)),
            moment=state.moment.at[choice.arm].add(loss * phi),
            squares=state.squares.at[choice.arm].add(loss**2),
            errors=state.errors + (predicted - loss) ** 2,
            largest=jnp.maximum(state.largest, loss),
            smallest=jnp.minimum(state.smallest, loss),
            rounds=state.rounds + 1,
        )


SWEEPS = 60  # of coordinate descent: contexts that fill their interval give well-conditioned fits


def _bounded_least_squares(
    gram: Float[Array, "n n"], moment: Float[Array, " n"], bound: Float[Array, " n"]
) -> Float[Array, " n"]:
    """The coefficients within +-bound of least squared residual, given the normal equations.

    Where they are not unique, those that coordinate descent reaches from the clipped solution of
    least norm.
    """
    start = jnp.clip(jnp.linalg.pinv(gram, hermitian=True) @ moment, -bound, bound)

    def coordinate(j: Any, theta: Array) -> Array:
        curvature = gram[j, j]
        step = (moment[j] - gram[j] @ theta) / jnp.where(curvature > 0, curvature, 1)
        step = jnp.where(curvature > 0, step, 0)
        return theta.at[j].set(jnp.clip(theta[j] + step, -bound[j], bound[j]))

    def sweep(_: Any, theta: Array) -> Array:
        return jax.lax.fori_loop(0, theta.size, coordinate, theta)

    return jax.lax.fori_loop(0, SWEEPS, sweep, start)
