"""OptEx: several optimizer steps at once, along gradients guessed from earlier ones (`optex`).

From the last T points X and their gradients G a kernel guesses the gradient anywhere:

    g~(x) = k(x, X) (k(X, X) + noise I)^-1 G

A round with N gradients in parallel, from the point x_0 and the base optimizer's state s_0:

    x_i+1, s_i+1 = base step from x_i, s_i along g~(x_i),    i = 0 .. N - 2    (one by one: cheap)
    g_i = gradient at x_i                                                      (all at once: dear)
    x_0, s_0 = base step from x_N-1, s_N-1 along g_N-1
    all x_i, g_i join the history
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree
from optax import tree_utils as trees

from nearly.core.errors import InputError
from nearly.optimize.adaptive.settings import check_positive, needs_params
from nearly.optimize.flat import flatten

LENGTHS = (0.1, 1.0, 10.0, 100.0)
"""Length scales tried, in units of the history's own spread."""

Choice = Callable[[Array, Array], Array]
"""(values, squared gradient norms) of the points of a round -> the index to go on from."""


def last(values: Array, norms: Array) -> Array:
    """Go on from the last point of the round: the paper's own choice."""
    del norms
    return jnp.asarray(values.shape[0] - 1)


def lowest_value(values: Array, norms: Array) -> Array:
    """Go on from the point of least loss, so that bad guesses cost a round and no more."""
    del norms
    return jnp.argmin(values)


def lowest_gradient(values: Array, norms: Array) -> Array:
    """Go on from the point of least gradient."""
    del values
    return jnp.argmin(norms)


class OptexState(NamedTuple):
    """The base's state, rounds so far, and the history: points, gradients, and what is compared.

    `compared` are the coordinates that distances look at; None: all.
    """

    base: Any
    rounds: Int[Array, ""]
    points: Float[Array, "history size"]
    gradients: Float[Array, "history size"]
    compared: Any


def optex(
    base: optax.GradientTransformation,
    *,
    parallel: int = 5,
    history: int = 50,
    noise: float = 1e-3,
    choice: Choice = last,
    coordinates: int | None = None,
    key: PRNGKeyArray | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Any optimizer, several steps of it in the time of one, where gradients come in parallel.

    **Arguments:**

    - `base`: a complete optimizer, learning rate included.
    - `parallel`: gradients in a round, N. `history`: points that guesses are made from, T.
    - `noise`: of a gradient, beside a kernel of 1 at distance 0.
    - `choice`: of the point to go on from: `last`, `lowest_value`, `lowest_gradient`.
    - `coordinates`: how many, drawn with `key`, distances are measured in (None: all).

    `update` is one round. Its gradient, the one at the current point, is the first of the N; it
    needs the parameters, `value` and `value_fn` for the others, which a `vmap` evaluates at once.
    The guesses do not wait for that first gradient, so all N may run together.

    The bill: a round counts N gradients, and is one step of time only on a machine that computes N
    in the time of one. Beside them O(N T n + T^2 n) operations, and 2 T copies of the parameters.

    Raises `InputError` for values out of range. Paper: `optex`. Gradients of a round are of the
    same batch (paper: each of its own). Unlike the authors' code, distances are in units of the
    history's root mean squared distance, and the length scale is the one with the least
    leave-one-out error, in closed form, each round (theirs: a held-out error now and then); so
    rounds do not change with the units of the parameters.
    """
    if parallel < 1 or history < parallel:
        raise InputError(
            f"history {history} must hold the gradients of a round, and parallel {parallel} be at "
            "least 1"
        )
    check_positive(noise=noise)
    if coordinates is not None and (coordinates < 1 or key is None):
        raise InputError(f"coordinates {coordinates} must be at least 1, and a key draw them")
    inner = optax.with_extra_args_support(base)

    def init(params: PyTree) -> OptexState:
        flat, _ = flatten(params)
        empty = jnp.zeros((history, flat.size), flat.dtype)
        compared = _drawn(coordinates, flat.size, key)
        return OptexState(inner.init(params), jnp.zeros((), jnp.int32), empty, empty, compared)

    def update(
        updates: PyTree,
        state: OptexState,
        params: Any = None,
        *,
        value: Any,
        value_fn: Callable[[PyTree], Any],
        **extra: Any,
    ) -> tuple[PyTree, OptexState]:
        del extra
        needs_params(params, "optex")
        here, unflatten = flatten(params)
        known = jnp.arange(history) < state.rounds * parallel
        guess = estimate(
            state.points - here, state.gradients, known, noise=noise, compared=state.compared
        )

        def step(point: Array, base: Any, gradient: Array) -> tuple[Array, Any]:
            at = unflatten(point)
            move, base = inner.update(unflatten(gradient), base, at)
            return flatten(optax.apply_updates(at, move))[0], base

        def advance(carry: Any, _: None) -> Any:
            point, base = carry
            after = step(point, base, guess(point - here))
            return after, after

        start = (here, state.base)
        _, ahead = jax.lax.scan(advance, start, None, length=parallel - 1)
        points, bases = jax.tree.map(lambda x, xs: jnp.concatenate([x[None], xs]), start, ahead)

        slopes = jax.vmap(jax.value_and_grad(lambda point: value_fn(unflatten(point))))
        values, gradients = slopes(points[1:])
        values = jnp.append(jnp.asarray(value, values.dtype), values)
        gradients = jnp.concatenate([flatten(updates)[0][None], gradients])

        index = choice(values, jnp.sum(gradients**2, axis=1))
        picked = jax.tree.map(lambda leaf: leaf[index], bases)
        end, base_state = step(points[index], picked, gradients[index])
        rows = (state.rounds * parallel + jnp.arange(parallel)) % history
        return trees.tree_sub(unflatten(end), params), OptexState(
            base_state,
            state.rounds + 1,
            state.points.at[rows].set(points),
            state.gradients.at[rows].set(gradients),
            state.compared,
        )

    return optax.GradientTransformationExtraArgs(init, cast("Any", update))


def estimate(
    points: Float[Array, "history size"],
    gradients: Float[Array, "history size"],
    known: Bool[Array, " history"],
    *,
    noise: float = 1e-3,
    compared: Int[Array, " compared"] | None = None,
) -> Callable[[Float[Array, " size"]], Float[Array, " size"]]:
    """The gradient as a function of the point, from some that are known (Matérn 5/2, zero mean).

    **Arguments:** points and gradients; `known`, which rows count; `noise`; `compared`, the
    coordinates that distances are measured in (None: all). Points are best given relative to
    where guesses are asked: distances lose digits far away.

    **Returns:** point -> gradient: zero while fewer than two points are known. Costs
    O(history^2 size) now, O(history size) each time.
    """
    near = points if compared is None else points[:, compared]
    near = jnp.where(known[:, None], near, 0)
    gradients = jnp.where(known[:, None], gradients, 0)
    both = known[:, None] & known
    squares = jnp.sum(near**2, axis=1)
    distances = jnp.maximum(squares[:, None] + squares - 2 * near @ near.T, 0)
    pairs = jnp.sum(both) - jnp.sum(known)
    spread = jnp.sum(jnp.where(both, distances, 0)) / jnp.maximum(pairs, 1)
    spread = jnp.where(spread > 0, spread, 1)

    eye = jnp.eye(len(points), dtype=points.dtype)
    lengths = jnp.asarray(LENGTHS, points.dtype) ** 2 * spread
    matrices = jnp.where(both, _matern(distances / lengths[:, None, None]), 0)
    inverses = jax.vmap(jnp.linalg.inv)(jnp.where(eye > 0, 1 + noise, matrices))
    alike = gradients @ gradients.T
    left_out = jnp.einsum("lij,jk,lki->li", inverses, alike, inverses)
    own = jnp.diagonal(inverses, axis1=1, axis2=2)
    best = jnp.argmin(jnp.sum(jnp.where(known, left_out / own**2, 0), axis=1))
    inverse, length = inverses[best], lengths[best]
    enough = jnp.sum(known) >= 2

    def guess(point: Float[Array, " size"]) -> Float[Array, " size"]:
        at = point if compared is None else point[compared]
        away = jnp.maximum(squares + at @ at - 2 * near @ at, 0)
        similar = jnp.where(known & enough, _matern(away / length), 0)
        return (inverse @ similar) @ gradients

    return guess


def _matern(squares: Array) -> Array:
    """Matérn 5/2 of a squared distance; its root has no derivative at 0, but it has."""
    apart = squares > 0
    distance = jnp.sqrt(5 * jnp.where(apart, squares, 1))
    return jnp.where(apart, (1 + distance + distance**2 / 3) * jnp.exp(-distance), 1)


def _drawn(count: int | None, size: int, key: PRNGKeyArray | None) -> Array | None:
    if count is None or key is None:
        return None
    if count > size:
        raise InputError(f"coordinates {count} of {size} parameters: give at most as many")
    return jax.random.choice(key, size, (count,), replace=False)
