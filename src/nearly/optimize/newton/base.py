"""What the room's Newton-type minimisers share: flat points, one factor per Hessian, stopping.

How they differ from optimistix's own minimisers, and why:

- A step of theirs is one trial; one of ours is one accepted move, with its search inside. So the
  number of steps is the number of Newton steps, as papers count.
- Unknowns are flattened: a Newton step mixes all of them.
- Searches allow for the rounding of the function's value (`slack`), without which every method of
  this kind stalls at the square root of the precision, reports failure, or loops.
- Stopping is optimistix's (small change of `y` and of `f`), or a step from where Newton's model
  promises less than the rounding of the value: where `y` is badly determined its change never gets
  small. A search that finds no acceptable point stops with `nonlinear_divergence`, as does a value
  that is not finite.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Int, PyTree

from nearly.core.errors import InputError
from nearly.optimize.newton.factor import Factor, Hessian, Scalar, Vector

Memory = TypeVar("Memory")
SLACK = 8.0  # roundings of the value that a test of decrease forgives


class Point(eqx.Module):
    """A point with the function's value and gradient there, and the function's second output."""

    x: Vector
    f: Scalar
    g: Vector
    aux: PyTree

    def slack(self) -> Scalar:
        """How much of a decrease rounding may hide."""
        return SLACK * jnp.finfo(self.f.dtype).eps * jnp.abs(self.f)


Evaluate = Callable[[Vector], Point]


class Moved(eqx.Module, Generic[Memory]):
    """What a move hands back.

    **Arguments:**

    - `point`: where to go on, and `memory`: the method's numbers.
    - `found`: whether an acceptable point was found; if not, the run ends.
    - `fresh`: whether the Hessian is to be taken anew.
    - `forward`: False if the move went back to an earlier point, which says nothing of convergence.
    """

    point: Point
    memory: Memory
    found: Bool[Array, ""]
    fresh: Bool[Array, ""] = eqx.field(default_factory=lambda: jnp.ones((), bool))
    forward: Bool[Array, ""] = eqx.field(default_factory=lambda: jnp.ones((), bool))


class State(eqx.Module, Generic[Memory]):
    """Between steps."""

    point: Point
    factor: Factor
    memory: Memory
    count: Int[Array, ""]
    fresh: Bool[Array, ""]
    done: Bool[Array, ""]
    result: optx.RESULTS


class NewtonMinimiser(optx.AbstractMinimiser[Any, Any, State[Any]], Generic[Memory]):
    """The loop around a method's `begin` and `move`.

    `hessian` makes the factor: `exact` by default, `GaussNewton`, `Fisher` or the user's own
    function `(function, x, gradient, args) -> Factor`. Subclasses are frozen dataclasses that have
    `rtol`, `atol`, `norm` and `hessian`.
    """

    rtol: eqx.AbstractVar[float]
    atol: eqx.AbstractVar[float]
    norm: eqx.AbstractVar[Callable[[PyTree], Scalar]]
    hessian: eqx.AbstractVar[Hessian]

    @abc.abstractmethod
    def begin(self, point: Point) -> Memory:
        """The method's own numbers before the first step."""

    @abc.abstractmethod
    def move(self, evaluate: Evaluate, state: State[Memory]) -> Moved[Memory]:
        """From a point with a factor to the next point."""

    def anchor(self, state: State[Memory]) -> Point:
        """Where the Hessian is taken."""
        return state.point

    def init(
        self,
        fn: Any,
        y: PyTree,
        args: PyTree,
        options: dict[str, Any],
        f_struct: Any,
        aux_struct: Any,
        tags: frozenset[object],
    ) -> State[Memory]:
        del options, f_struct, aux_struct, tags
        x, evaluate, value = _flat(fn, y, args)
        point = evaluate(x)
        return State(
            point,
            self.hessian(value, x, point.g, args),
            self.begin(point),
            jnp.zeros((), jnp.int32),
            jnp.zeros((), bool),
            jnp.zeros((), bool),
            _result(_is_finite(point)),
        )

    def step(
        self,
        fn: Any,
        y: PyTree,
        args: PyTree,
        options: dict[str, Any],
        state: State[Memory],
        tags: frozenset[object],
    ) -> tuple[PyTree, State[Memory], Any]:
        del options, tags
        _, evaluate, value = _flat(fn, y, args)
        before, anchor = state.point, self.anchor(state)
        # `fresh` is set by the move before; the factor of the first step is `init`'s.
        factor = jax.lax.cond(
            state.fresh,
            lambda: self.hessian(value, anchor.x, anchor.g, args),
            lambda: state.factor,
        )
        ready = eqx.tree_at(lambda s: s.factor, state, factor)
        moved = self.move(evaluate, ready)
        after = moved.point
        fine = moved.found & _is_finite(after)
        point = jax.tree.map(lambda new, old: jnp.where(fine, new, old), after, before)
        small = self.is_small(before, point)
        gain, tolerance = _promise(before, factor), self.atol + self.rtol * jnp.abs(before.f)
        # A step from where rounding hides what is left is the last that can be judged. The promise
        # is the model's only if no direction was left out of it.
        last = (gain <= before.slack()) & (factor.least() > 0)
        done = jnp.where(fine, moved.forward & (small | last), gain <= tolerance)
        next_state = State(
            point, factor, moved.memory, state.count + 1, moved.fresh, done, _result(fine | done)
        )
        return ravel_pytree(y)[1](point.x), next_state, point.aux

    def is_small(self, before: Point, after: Point) -> Bool[Array, ""]:
        """Whether both changes are within the tolerances."""
        moved, changed = after.x - before.x, jnp.abs(after.f - before.f)
        small = self.norm(moved / (self.atol + self.rtol * jnp.abs(after.x))) < 1
        return small & (changed < self.atol + self.rtol * jnp.abs(after.f))

    def terminate(
        self,
        fn: Any,
        y: PyTree,
        args: PyTree,
        options: dict[str, Any],
        state: State[Memory],
        tags: frozenset[object],
    ) -> tuple[Bool[Array, ""], optx.RESULTS]:
        del fn, y, args, options, tags
        return state.done | (state.result != optx.RESULTS.successful), state.result

    def postprocess(
        self,
        fn: Any,
        y: PyTree,
        aux: Any,
        args: PyTree,
        options: dict[str, Any],
        state: State[Memory],
        tags: frozenset[object],
        result: optx.RESULTS,
    ) -> tuple[PyTree, Any, dict[str, Any]]:
        del fn, args, options, tags, result
        return y, aux, {"gradient_norm": jnp.linalg.norm(state.point.g)}


def check_tolerances(minimiser: Any) -> None:
    """Raises `InputError` unless both tolerances are non-negative (traced ones are not seen)."""
    for name in ("rtol", "atol"):
        value = getattr(minimiser, name)
        if isinstance(value, (int, float)) and not value >= 0:
            raise InputError(f"{name} {value} must be at least 0, such as 1e-8")


_Attempt = tuple[Scalar, Point, Bool[Array, ""], Int[Array, ""]]


def search(
    propose: Callable[[Scalar], Point],
    accept: Callable[[Scalar, Point], Bool[Array, ""]],
    first: Scalar,
    shrink: float,
    tries: int,
) -> tuple[Scalar, Point, Bool[Array, ""]]:
    """Multiply a number by `shrink` until the point it proposes is accepted, `tries` times at most.

    **Returns:** the number that proposed the last point, that point, whether it was accepted.
    """

    def attempt(number: Scalar, count: Array) -> _Attempt:
        point = propose(number)
        fine = _is_finite(point) & accept(number, point)
        return number, point, fine, count + 1

    def again(carry: _Attempt) -> _Attempt:
        return attempt(carry[0] * shrink, carry[3])

    start = attempt(first, jnp.zeros((), jnp.int32))
    number, point, fine, _ = jax.lax.while_loop(lambda c: ~c[2] & (c[3] < tries), again, start)
    return number, point, fine


def _flat(fn: Any, y: PyTree, args: PyTree) -> tuple[Vector, Evaluate, Callable[[Vector], Scalar]]:
    """The start, value and gradient, and the value alone, of flat unknowns."""
    x, unravel = ravel_pytree(y)
    differentiate = jax.value_and_grad(lambda z: fn(unravel(z), args), has_aux=True)

    def evaluate(z: Vector) -> Point:
        (f, aux), g = differentiate(z)
        return Point(z, f, g, aux)

    return x, evaluate, lambda z: fn(unravel(z), args)[0]


def _promise(at: Point, factor: Factor) -> Scalar:
    """The decrease that Newton's model promises; infinite where it has no minimum."""
    gain = at.g @ factor.solve(jnp.zeros_like(at.f), at.g) / 2
    return jnp.where(factor.least() >= 0, gain, jnp.inf)


def _is_finite(point: Point) -> Bool[Array, ""]:
    return jnp.isfinite(point.f) & jnp.all(jnp.isfinite(point.g))


def _result(fine: Bool[Array, ""]) -> optx.RESULTS:
    return optx.RESULTS.where(fine, optx.RESULTS.successful, optx.RESULTS.nonlinear_divergence)
