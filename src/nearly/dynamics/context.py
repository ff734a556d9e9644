"""One vector field for many environments, each known by a context vector (`neural-context-flows`).

Contextual self-modulation: while it is trained, the field of environment e is its Taylor polynomial
about the context of another environment j, so that a field is learned that is easy to extrapolate
in its context. A new environment is then learned by its context alone.

Everything takes any number of leading batch axes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nearly.core.errors import InputError
from nearly.dynamics.dense import dense

ORDERS = (0, 1, 2)
STAGES = ((0.0, 1 / 6), (0.5, 1 / 3), (0.5, 1 / 3), (1.0, 1 / 6))  # when, and the weight
States = Float[Array, "*batch components"]
Field = Callable[[Any, Any, Any], Any]


# ---- the Taylor polynomial in the context


class Modulated(eqx.Module):
    """A field whose context is replaced by its Taylor polynomial about another: see `modulated`."""

    field: Field
    order: int = eqx.field(static=True)

    def __check_init__(self) -> None:
        if self.order not in ORDERS:
            raise InputError(f"order {self.order} of the expansion must be 0, 1 or 2")

    def __call__(self, t: Any, y: Any, contexts: tuple[Any, Any]) -> Any:
        context, centre = contexts
        if self.order == 0:
            return self.field(t, y, context)
        apart = jax.tree.map(jnp.subtract, context, centre)

        def along(share: Any) -> Any:
            return self.field(t, y, jax.tree.map(lambda c, d: c + share * d, centre, apart))

        return _polynomial(along, self.order, _dtype(centre))


def modulated(field: Field, order: int = 1) -> Modulated:
    """Contextual self-modulation of any field `(t, y, context) -> dy/dt`.

    **Returns:** `(t, y, (context, centre)) -> dy/dt`, for `diffrax.ODETerm`: the Taylor polynomial
    of the field in its context about `centre`, taken at `context`. Order 1 is
    `f + Df d`, order 2 `f + Df d + D2f[d, d] / 2`, with `d = context - centre`; order 0 switches
    it off: the field itself, at `context`. Gradients reach both contexts.

    Raises `InputError` for another order. **Cost:** 1, 2 or about 4 calls of the field.

    Paper: neural-context-flows. The authors nest derivatives of `Df(c)(context - c)`, whose own
    derivative in c brings a term `-Df d`, and so weigh it by 1.5; along a straight line there is
    no such term.
    """
    return Modulated(field, order)


def _polynomial(along: Callable[[Any], Any], order: int, dtype: Any) -> Any:
    """The Taylor polynomial at 1 of a function of one number, about 0."""
    zero, one = jnp.zeros((), dtype), jnp.ones((), dtype)

    def slope(share: Any) -> tuple[Any, Any]:
        return jax.jvp(along, (share,), (one,))

    if order == 1:
        value, first = slope(zero)
        return jax.tree.map(jnp.add, value, first)
    (value, first), (_, second) = jax.jvp(slope, (zero,), (one,))
    return jax.tree.map(lambda a, b, c: a + b + c / 2, value, first, second)


def _dtype(tree: Any) -> Any:
    return jnp.result_type(*jax.tree.leaves(tree))


# ---- the three networks


class Swish(eqx.Module):
    """`x sigmoid(slope x)`, the slope learned."""

    slope: Float[Array, ""]

    def __call__(self, x: Array) -> Array:
        return x * jax.nn.sigmoid(self.slope * x)


class Perceptron(eqx.Module):
    """Linear layers with a `Swish` of its own between any two."""

    layers: tuple[eqx.nn.Linear, ...]
    activations: tuple[Swish, ...]

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        for layer, activation in zip(self.layers, self.activations, strict=False):
            x = activation(dense(layer, x))
        return dense(self.layers[-1], x)


def perceptron(sizes: Sequence[int], key: Any, dtype: Any = jnp.float32) -> Perceptron:
    """Of these sizes, from inputs to outputs; slopes start uniform in (0.01, 1).

    Raises `InputError` for fewer than two sizes or one below 1.
    """
    if len(sizes) < 2 or min(sizes) < 1:
        raise InputError(f"sizes {list(sizes)} must be at least two positive numbers")
    keys = jax.random.split(key, (2, len(sizes)))
    layers = [
        eqx.nn.Linear(a, b, dtype=dtype, key=k)
        for a, b, k in zip(sizes, sizes[1:], keys[0], strict=False)
    ]
    slopes = [jax.random.uniform(k, (), dtype, 0.01, 1.0) for k in keys[1][: len(layers) - 1]]
    return Perceptron(tuple(layers), tuple(Swish(slope) for slope in slopes))


class Joint(eqx.Module):
    """The network of both, its first layer in two halves: the context's is small, and hoisted."""

    layers: Perceptron

    def __call__(self, seen: Float[Array, "*batch width"], embedded: Any) -> States:
        first, width = self.layers.layers[0], seen.shape[-1]
        of_context = embedded @ first.weight[:, width:].T + first.bias
        hidden = self.layers.activations[0](seen @ first.weight[:, :width].T + of_context)
        return Perceptron(self.layers.layers[1:], self.layers.activations[1:])(hidden)


class ContextField(eqx.Module):
    """Three networks: of the context, of the state, and of both together.

    The context's is called once (`embed`), not at every step: what is integrated is
    `field(t, y, embedded)`. `context_field` makes one.
    """

    context: Perceptron
    state: Perceptron
    joint: Callable[..., Any]

    def embed(self, context: Float[Array, "*batch context"]) -> Float[Array, "*batch width"]:
        """What the state's equation needs to know of a context."""
        return self.context(context)

    def __call__(self, t: Any, y: States, embedded: Float[Array, "*more width"]) -> States:
        del t
        return self.joint(self.state(y), embedded)


def context_field(
    components: int, key: Any, *, context: int = 1024, width: int = 64, dtype: Any = jnp.float32
) -> ContextField:
    """A `ContextField` at its random start, of the paper's depths.

    **Arguments:** `components` of the state; sizes of the `context`, and of hidden layers (that of
    the context's first is a quarter of the context, at least 1).

    Raises `InputError` for a size below 1. Paper: neural-context-flows.
    """
    keys = jax.random.split(key, 3)
    return ContextField(
        perceptron((context, max(context // 4, 1), width, width), keys[0], dtype),
        perceptron((components, width, width, width), keys[1], dtype),
        Joint(perceptron((2 * width, width, width, width, components), keys[2], dtype)),
    )


# ---- the flow


class ContextFlow(eqx.Module):
    """A field and the contexts of the environments it was trained on: `context_flow` makes one.

    Paper: neural-context-flows.
    """

    field: ContextField
    contexts: Float[Array, "environments context"]

    def solve(
        self,
        contexts: Float[Array, "environments context"],
        starts: Float[Array, "environments trajectories components"],
        times: Float[Array, " times"],
        substeps: int = 1,
    ) -> Float[Array, "times environments trajectories components"]:
        """Trajectories in environments of given contexts, not modulated."""
        embedded = self.field.embed(contexts)[:, None, :]
        return runge_kutta(self.field, starts, times, embedded, substeps)

    def candidates(
        self,
        contexts: Float[Array, "environments context"],
        starts: Float[Array, "environments trajectories components"],
        times: Float[Array, " times"],
        pool: Int[Array, "environments pool"],
        order: int = 1,
        substeps: int = 1,
    ) -> Float[Array, "times pool environments trajectories components"]:
        """Trajectories by the field's expansions about the pool's contexts.

        Their mean over the pool is a prediction, their standard deviation says how far to trust it.

        **Arguments:** `pool`: for each environment, numbers of environments of training.

        **Cost:** `pool` times that of `solve`, times 2 or 4 by the order.
        """
        centres = self.contexts[pool.T]  # [pool, environments, context]
        jet = embedded_jet(self.field, contexts, centres, order)
        jet = jax.tree.map(lambda part: part[..., None, :], jet)
        wide = jnp.broadcast_to(starts, (pool.shape[1], *starts.shape))
        return runge_kutta(Expanded(self.field, order), wide, times, jet, substeps)

    def spread(
        self,
        contexts: Float[Array, "environments context"],
        starts: Float[Array, "environments trajectories components"],
        times: Float[Array, " times"],
        order: int = 1,
        substeps: int = 1,
    ) -> tuple[Array, Array]:
        """Mean and standard deviation, over expansions about all contexts of training."""
        known = jnp.arange(self.contexts.shape[0])
        pool = jnp.broadcast_to(known, (contexts.shape[0], known.size))
        found = self.candidates(contexts, starts, times, pool, order, substeps)
        return jnp.mean(found, axis=1), jnp.std(found, axis=1)


def context_flow(
    components: int,
    environments: int,
    key: Any,
    *,
    context: int = 1024,
    width: int = 64,
    dtype: Any = jnp.float32,
) -> ContextFlow:
    """A `ContextFlow` at its start: random networks, contexts of zero.

    Raises `InputError` for a size below 1.
    """
    if environments < 1:
        raise InputError(f"environments {environments} must be at least 1")
    field = context_field(components, key, context=context, width=width, dtype=dtype)
    return ContextFlow(field, jnp.zeros((environments, context), dtype))


class Expanded(eqx.Module):
    """A `ContextField` as the Taylor polynomial along an embedded jet; the jet is its argument."""

    field: ContextField
    order: int = eqx.field(static=True)

    def __call__(self, t: Any, y: States, jet: tuple[Array, ...]) -> States:
        if self.order == 0:
            return self.field(t, y, jet[0])

        def along(share: Any) -> Any:
            embedded = jet[0] + share * jet[1]
            if self.order == 2:
                embedded += share**2 / 2 * jet[2]
            return self.field(t, y, embedded)

        return _polynomial(along, self.order, y.dtype)


def embedded_jet(
    field: ContextField,
    context: Float[Array, "*batch context"],
    centre: Float[Array, "*more context"],
    order: int,
) -> tuple[Array, ...]:
    """Derivatives of the embedding along the line from `centre` to `context`, at the centre.

    With them the polynomial of `modulated` costs no call of the context's network at a step: a
    polynomial of the inner function to the same order is all the outer one's needs. Of order 0 it
    is the embedding of `context` itself.
    """
    if order not in ORDERS:
        raise InputError(f"order {order} of the expansion must be 0, 1 or 2")
    if order == 0:
        wide = jnp.broadcast_to(context, jnp.broadcast_shapes(context.shape, centre.shape))
        return (field.embed(wide),)
    zero, one = jnp.zeros((), centre.dtype), jnp.ones((), centre.dtype)

    def slope(share: Any) -> tuple[Any, Any]:
        along: Any = lambda s: field.embed(centre + s * (context - centre))  # noqa: E731
        return jax.jvp(along, (share,), (one,))

    if order == 1:
        return slope(zero)
    (value, first), (_, second) = jax.jvp(slope, (zero,), (one,))
    return value, first, second


def runge_kutta(
    field: Field,
    start: States,
    times: Float[Array, " times"],
    args: Any,
    substeps: int = 1,
) -> Float[Array, "times *batch components"]:
    """The classical rule of order 4 at the given times, the first being the start's.

    `substeps` equal steps between two times. The authors' evaluates the last stage at the next
    step's time, which an autonomous field does not notice; here it is the end of the step.

    Raises `InputError` for less than one substep.
    """
    if substeps < 1:
        raise InputError(f"substeps {substeps} must be at least 1")

    stages = jnp.asarray(STAGES, start.dtype)

    def step(y: Any, t: Any, h: Any) -> Any:
        def stage(last: Any, row: Any) -> tuple[Any, Any]:
            slope, total = last
            slope = field(t + row[0] * h, y + row[0] * h * slope, args)
            return (slope, total + row[1] * slope), None

        # A loop: unrolled, four copies of the field are compiled, and as many of its derivatives.
        return y + h * jax.lax.scan(stage, (jnp.zeros_like(y),) * 2, stages)[0][1]

    def advance(y: Any, ends: tuple[Array, Array]) -> tuple[Any, Any]:
        begin, end = ends
        h = (end - begin) / substeps
        y = jax.lax.fori_loop(0, substeps, lambda k, y: step(y, begin + k * h, h), y)
        return y, y

    _, later = jax.lax.scan(advance, start, (times[:-1], times[1:]))
    return jnp.concatenate([start[None], later])
