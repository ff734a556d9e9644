"""Solutions as networks that are trained on the equation alone, without data (unsupervised-ivp).

One small network for each component ("coupled networks": they meet in the residual only) is trained
such that its curve satisfies the equation at times drawn at random, and starts where it should. For
mechanical systems, `order=2`, the networks are the positions, and the velocities their derivatives.

Every other solver of this room is cheaper by orders of magnitude: see the claims. What a network
gives beside the values is a smooth curve over the whole interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Integer

from nearly.core.errors import InputError
from nearly.training.architectures import mlp

Field = Callable[[Any, Any, Any], Any]
Activation = Callable[[Array], Array]


def probabilistic(distribution: Activation) -> Activation:
    """The activation `x F(x)` of a distribution function F: what the paper calls probabilistic.

    The normal distribution makes the GELU, the logistic one the SiLU. Unlike a ReLU, whose F jumps,
    it has a second derivative for an equation of motion to act on.
    """
    return lambda x: x * distribution(x)


gelu = probabilistic(jax.scipy.stats.norm.cdf)
silu = probabilistic(jax.nn.sigmoid)


class Curve(eqx.Module):
    """A curve through state space, `t -> y`, from `initial` to `end`.

    `networks` are all of one shape, their arrays stacked. With `order` 1 they are the components;
    with 2 the first half of them, of which the second half are the derivatives. If `hard`, the
    networks stand behind a factor `t^order`, so that the curve starts at `start` whatever they are.
    """

    networks: Any
    start: Float[Array, " d"]
    initial: Float[Array, ""]
    end: Float[Array, ""]
    order: int = eqx.field(static=True)
    hard: bool = eqx.field(static=True)

    def __call__(self, t: Any) -> Float[Array, " d"]:
        if self.order == 1:
            return self._free(t)
        position, velocity = _with_derivative(self._free, t)
        return jnp.append(position, velocity)

    def residual(self, field: Field, t: Any) -> Float[Array, " d"]:
        """By how much the curve misses the equation at a time."""
        value, rate = _with_derivative(self, t)
        return rate - field(t, value, None)

    def _free(self, t: Any) -> Array:
        part = (t - self.initial) / (self.end - self.initial)
        arrays, rest = eqx.partition(self.networks, eqx.is_array)
        one = 2 * part[None] - 1
        found = jax.vmap(lambda a: eqx.combine(a, rest)(one)[0])(arrays)
        if not self.hard:
            return found
        if self.order == 1:
            return self.start + part * found
        position, velocity = jnp.split(self.start, 2)
        return position + (t - self.initial) * velocity + part**2 * found


def _with_derivative(curve: Callable[[Any], Any], t: Any) -> tuple[Any, Any]:
    return cast("tuple[Any, Any]", jax.jvp(curve, (t,), (jnp.ones_like(t),)))


class Unsupervised(eqx.Module):
    """How networks are trained to solve an initial-value problem; itself a method for those.

    As a method (a function of `InitialValueProblem`'s protocol) its dial is the root mean square of
    the residual at which training stops, if it ever does: `steps` and `refinements` are the most.

    **Arguments:**

    - `width`, `depth`: of the hidden layers. `activation`: `gelu`, `silu`, `jnp.tanh`, a
      `probabilistic` one, or a ReLU, with which no curve has a second derivative.
    - `order`: 1, or 2 for states of positions, then velocities. `hard`: whether the start holds by
      construction; otherwise its square distance, times `weight`, is part of the loss.
    - `points`: times drawn anew at each of the `steps` of Adam, at its `rate`; then as many even
      ones for `refinements` of L-BFGS.
    - `seed`: of weights and times; as an array it compiles nothing when it changes.

    Differs from the paper in the L-BFGS steps at the end, and in the time, which is scaled to
    [-1, 1] before it enters a network.
    """

    dials: ClassVar[tuple[float, ...]] = (0.3, 0.1, 0.03, 0.01)
    width: int = 32
    depth: int = 2
    activation: Activation = gelu
    order: int = 1
    hard: bool = False
    points: int = 64
    steps: int = 2000
    refinements: int = 300
    rate: float = 1e-3
    weight: float = 1.0
    seed: int | Integer[Array, ""] = 0

    def __check_init__(self) -> None:
        if min(self.width, self.depth, self.points) < 1 or min(self.steps, self.refinements) < 0:
            raise InputError(
                f"width {self.width}, depth {self.depth} and points {self.points} must be at least "
                f"1, steps {self.steps} and refinements {self.refinements} at least 0"
            )
        if self.order not in (1, 2):
            raise InputError(f"order {self.order} must be 1, or 2 for positions and velocities")
        if not (self.rate > 0 and self.weight > 0):
            raise InputError(f"rate {self.rate} and weight {self.weight} must be positive")

    def __call__(
        self, field: Field, start: Float[Array, " d"], times: Float[Array, " n"], tolerance: Any
    ) -> Array:
        key = jax.random.key(self.seed)
        curve, _ = self.fit(field, start, times[0], times[-1], key=key, tolerance=tolerance)
        return jax.vmap(curve)(times[1:])

    def fit(
        self,
        field: Field,
        start: Float[Array, " d"],
        initial: Any,
        end: Any,
        *,
        key: Any,
        tolerance: Any = 0.0,
    ) -> tuple[Curve, Float[Array, ""]]:
        """The curve of trained networks, and the loss it ends with; can be jitted.

        **Arguments:** `field`: `(t, y, args) -> dy/dt`, called with None for args. `tolerance`: the
        root of the loss at which training stops.

        Raises `InputError` for an odd number of components where `order` is 2.

        **Cost:** `points` calls of the field and their pullbacks for each step, some more for each
        refinement's line search; in all 10^4 to 10^6 times what an integrator needs.
        """
        start_key, time_key = jax.random.split(key)
        curve = self.untrained(start, initial, end, key=start_key)
        weights, rest = eqx.partition(curve, _is_network(curve))
        even = jnp.linspace(curve.initial, curve.end, self.points, dtype=start.dtype)

        def loss(weights: Any, times: Any) -> Any:
            return self._loss(eqx.combine(weights, rest), field, times)

        goal = jnp.asarray(tolerance, start.dtype) ** 2
        weights = _adam(loss, weights, self, (curve.initial, curve.end), goal, time_key)
        weights = _lbfgs(lambda w: loss(w, even), weights, self.refinements, goal)
        return eqx.combine(weights, rest), loss(weights, even)

    def untrained(self, start: Float[Array, " d"], initial: Any, end: Any, *, key: Any) -> Curve:
        """The curve of networks as they are drawn."""
        if start.size % self.order:
            raise InputError(
                f"a state of {start.size} components is no pair of positions and velocities: "
                "use order=1"
            )
        sizes = [1, *[self.width] * self.depth, 1]

        def network(key: Any) -> Any:
            return mlp(sizes, key, self.activation, dtype=start.dtype)

        networks = eqx.filter_vmap(network)(jax.random.split(key, start.size // self.order))
        begin, finish = (jnp.asarray(t, start.dtype) for t in (initial, end))
        return Curve(networks, start, begin, finish, self.order, self.hard)

    def _loss(self, curve: Curve, field: Field, times: Float[Array, " n"]) -> Float[Array, ""]:
        missed = jax.vmap(lambda t: curve.residual(field, t))(times)
        loss = jnp.mean(jnp.sum(missed**2, axis=-1))
        if self.hard:
            return loss
        return loss + self.weight * jnp.sum((curve(curve.initial) - curve.start) ** 2)


def _is_network(curve: Curve) -> Any:
    """Which leaves are trained."""
    nothing = jax.tree.map(lambda _: False, curve)
    return eqx.tree_at(
        lambda c: c.networks, nothing, jax.tree.map(eqx.is_inexact_array, curve.networks)
    )


def _adam(
    loss: Any, weights: Any, settings: Unsupervised, interval: Any, goal: Any, key: Any
) -> Any:
    """Until the loss, smoothed over some ten steps, falls to the goal."""
    optimizer = optax.adam(settings.rate)

    def step(state: Any) -> Any:
        count, weights, inner, smooth = state
        draws = jax.random.uniform(
            jax.random.fold_in(key, count), (settings.points,), goal.dtype, *interval
        )
        value, gradient = jax.value_and_grad(loss)(weights, draws)
        updates, inner = optimizer.update(gradient, inner, weights)
        smooth = jnp.where(count == 0, value, 0.9 * smooth + 0.1 * value)
        return count + 1, optax.apply_updates(weights, updates), inner, smooth

    def goes_on(state: Any) -> Any:
        return (state[0] < settings.steps) & (state[3] > goal)

    first = (jnp.asarray(0), weights, optimizer.init(weights), jnp.asarray(math.inf, goal.dtype))
    return jax.lax.while_loop(goes_on, step, first)[1]


def _lbfgs(loss: Any, weights: Any, steps: int, goal: Any) -> Any:
    optimizer = optax.lbfgs()
    value_and_gradient = optax.value_and_grad_from_state(loss)

    def step(state: Any) -> Any:
        count, weights, inner, _ = state
        value, gradient = value_and_gradient(weights, state=inner)
        updates, inner = optimizer.update(
            gradient, inner, weights, value=value, grad=gradient, value_fn=loss
        )
        return count + 1, optax.apply_updates(weights, updates), inner, value

    def goes_on(state: Any) -> Any:
        return (state[0] < steps) & (state[3] > goal)

    first = (jnp.asarray(0), weights, optimizer.init(weights), jnp.asarray(math.inf, goal.dtype))
    return jax.lax.while_loop(goes_on, step, first)[1]


unsupervised = Unsupervised()
