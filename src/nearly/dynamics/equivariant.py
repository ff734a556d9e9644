"""Motion of interacting bodies by networks that turn and move with them (`segno`), and EGNN.

Everything takes any number of leading batch axes: one matrix product for a batch of systems.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nearly.core.errors import InputError
from nearly.dynamics.dense import dense

MOST_ACCELERATION = 100.0  # of one pair, by component
SMALL = 1e-3  # gain of the last layer of the pair's pull: at first nothing is accelerated much

Vectors = Float[np.ndarray | Array, "*batch bodies 3"]
Scalars = Float[np.ndarray | Array, "*batch bodies"]
Features = Float[Array, "*batch bodies width"]
Edges = Float[Array, "*batch bodies bodies edge"]


class Bodies(eqx.Module):
    """Where bodies are, how fast they move, and what they carry (charges, masses)."""

    positions: Vectors
    velocities: Vectors
    charges: Scalars

    @property
    def edges(self) -> Edges:
        """Of each pair: the product of the charges, and the squared distance at the start."""
        charges = jnp.asarray(self.charges)
        products = charges[..., :, None] * charges[..., None, :]
        return jnp.stack([products, squared_distances(self.positions)], axis=-1)


class Interaction(eqx.Module):
    """Messages between all pairs: what accelerates each body, and how its features change.

    A message is `phi_e(h_i, h_j, |x_i - x_j|^2, e_ij)`, two SiLU layers. The acceleration is the
    mean over the others of `(x_i - x_j) phi_x(m_ij)`, the change of the features
    `phi_h(h_i, sum_j m_ij)`. Equivariant under rotations, reflections and translations, but where
    a pair's acceleration is clipped (at 100, by component).

    **Arguments:** `width` of features and messages, at least 1; `edges`: features of a pair.

    **Cost:** a product of `bodies^2 x width` by `width x width` twice. The first layer of `phi_e`
    acts on each body's features once, not on each pair's, which is the same and saves half.
    """

    message_first: eqx.nn.Linear
    message_second: eqx.nn.Linear
    pull_first: eqx.nn.Linear
    pull_last: eqx.nn.Linear
    change_first: eqx.nn.Linear
    change_last: eqx.nn.Linear

    def __init__(self, width: int, key: Any, *, edges: int = 2, dtype: Any = jnp.float32) -> None:
        if width < 1:
            raise InputError(f"width {width} must be at least 1, such as 64")
        keys = jax.random.split(key, 6)
        self.message_first = eqx.nn.Linear(2 * width + 1 + edges, width, dtype=dtype, key=keys[0])
        self.message_second = eqx.nn.Linear(width, width, dtype=dtype, key=keys[1])
        self.pull_first = eqx.nn.Linear(width, width, dtype=dtype, key=keys[2])
        last = eqx.nn.Linear(width, 1, use_bias=False, dtype=dtype, key=keys[3])
        bound = SMALL * math.sqrt(6 / (width + 1))
        weight = jax.random.uniform(keys[3], (1, width), dtype, -bound, bound)
        self.pull_last = eqx.tree_at(lambda layer: layer.weight, last, weight)
        self.change_first = eqx.nn.Linear(2 * width, width, dtype=dtype, key=keys[4])
        self.change_last = eqx.nn.Linear(width, width, dtype=dtype, key=keys[5])

    def __call__(
        self, features: Features, positions: Vectors, edges: Edges
    ) -> tuple[Vectors, Features]:
        """The accelerations and the changes of the features."""
        messages = self._messages(features, positions, edges)
        others = 1 - jnp.eye(positions.shape[-2], dtype=positions.dtype)[..., None]
        pull = dense(self.pull_last, _silu(dense(self.pull_first, messages)))
        apart = positions[..., :, None, :] - positions[..., None, :, :]
        pulls = jnp.clip(apart * pull, -MOST_ACCELERATION, MOST_ACCELERATION)
        acceleration = jnp.sum(pulls, axis=-2) / max(positions.shape[-2] - 1, 1)
        heard = jnp.sum(messages * others, axis=-2)
        hidden = _silu(dense(self.change_first, jnp.concatenate([features, heard], axis=-1)))
        return acceleration, dense(self.change_last, hidden)

    def _messages(self, features: Features, positions: Vectors, edges: Edges) -> Array:
        width, weight = features.shape[-1], self.message_first.weight
        bias: Any = self.message_first.bias
        of_pair = jnp.concatenate([squared_distances(positions)[..., None], edges], axis=-1)
        hidden = (features @ weight[:, :width].T + bias)[..., :, None, :]
        hidden += (features @ weight[:, width : 2 * width].T)[..., None, :, :]
        hidden += of_pair @ weight[:, 2 * width :].T
        return _silu(dense(self.message_second, _silu(hidden)))


class SEGNO(eqx.Module):
    """One second-order equation of motion, learned: `steps` equal steps of ONE interaction.

    Between two snapshots it follows `x'' = a(x, h)`, by the semi-implicit Euler rule
    `v += tau a; x += tau v`, `tau = span / steps`, while the features take a step of their own,
    `h += phi_h`. So the states on the way are states of the motion, and the number of parameters
    does not depend on the number of steps.

    **Arguments:** see `segno`, which makes one; `rate` gives the features their speed.

    **Called** with `Bodies`, it returns their positions at the end; `path` those after each step.

    **Cost:** `steps` calls of an `Interaction`.

    Paper: segno. Two differences from the authors' program: tau follows the number of steps (there
    it is 1/8 for any), and so does the span of the data (there it is 1 for any). Their decay of the
    weights (1e-12) changes nothing and is left out.
    """

    embed: eqx.nn.Linear
    interaction: Callable[..., Any]
    steps: int = eqx.field(static=True)
    rate: int = eqx.field(static=True)
    span: float = eqx.field(static=True, default=1.0)

    def __check_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"steps {self.steps} must be at least 1, such as 8")
        if self.rate < 0:
            raise InputError(f"rate {self.rate} must not be negative: 0 keeps the features")
        if not (self.span > 0 and math.isfinite(self.span)):
            raise InputError(f"span {self.span} must be a positive, finite time, such as 1.0")

    def __call__(self, bodies: Bodies) -> Vectors:
        return self._states(bodies)[0][0]

    def path(self, bodies: Bodies) -> Float[Array, "steps *batch bodies 3"]:
        """The positions after each step."""
        return self._states(bodies)[1]

    def _states(self, bodies: Bodies) -> tuple[Any, Array]:
        edges, tau = bodies.edges, self.span / self.steps
        share = self.rate / self.steps

        def step(state: Any, _: None) -> tuple[Any, Array]:
            positions, velocities, features = state
            acceleration, change = self.interaction(features, positions, edges)
            velocities += tau * acceleration
            positions += tau * velocities
            return (positions, velocities, features + share * change), positions

        return jax.lax.scan(step, self.initial(bodies), None, self.steps)

    def initial(self, bodies: Bodies) -> tuple[Vectors, Vectors, Features]:
        """The state at the start: positions, velocities, and features of the speeds."""
        speeds = lengths(bodies.velocities)[..., None]
        return bodies.positions, bodies.velocities, dense(self.embed, speeds)

    def field(self, t: Any, state: Any, edges: Edges) -> tuple[Vectors, Vectors, Features]:
        """The equation that the steps discretise, for `diffrax.ODETerm(model.field)`.

        `state` as `initial` makes it, `edges` (diffrax's args) as `Bodies.edges`, from time 0 to
        `span`. Any diffrax solver may take the place of the fixed steps; they differ from its
        solution by O(tau).
        """
        del t
        positions, velocities, features = state
        acceleration, change = self.interaction(features, positions, edges)
        return velocities, acceleration, self.rate / self.span * change

    def separable(self, bodies: Bodies) -> tuple[tuple[Any, Any], tuple[Vectors, Vectors]]:
        """Terms and the state (velocities, positions) for diffrax's symplectic solvers.

        `diffrax.SemiImplicitEuler` in `steps` steps is the model itself; `ReversibleAdjoint` then
        needs no memory of them. Raises `InputError` where the features change on the way: use
        `field`.
        """
        if self.rate:
            raise InputError(
                f"the features change at a rate of {self.rate}, so the motion does not separate: "
                "make the model with rate=0, or give a solver its `field`"
            )
        positions, velocities, features = self.initial(bodies)
        edges = bodies.edges

        def accelerate(t: Any, positions: Any, args: Any) -> Any:
            del t, args
            return self.interaction(features, positions, edges)[0]

        def drift(t: Any, velocities: Any, args: Any) -> Any:
            del t, args
            return velocities

        return (dfx.ODETerm(accelerate), dfx.ODETerm(drift)), (velocities, positions)

    def refined(self, factor: int) -> SEGNO:
        """The same equation of motion in `factor` times as many steps."""
        if factor < 1:
            raise InputError(f"factor {factor} must be at least 1, such as 4")
        return replace(self, steps=factor * self.steps)


def segno(
    key: Any,
    *,
    width: int = 64,
    steps: int = 8,
    span: float = 1.0,
    rate: int | None = None,
    dtype: Any = jnp.float32,
) -> SEGNO:
    """A `SEGNO` at its random start.

    **Arguments:**

    - `width` of features and messages; `steps` between the two snapshots; `span`, the time between
      them in that of the velocities.
    - `rate`: how often the features change in that time: the paper's once a step, by default; 0
      leaves them as they are at the start, see `SEGNO.separable`.

    Raises `InputError` for a width or steps below 1, a negative rate, a span that is not positive.
    Paper: segno.
    """
    first, second = jax.random.split(key)
    interaction = Interaction(width, second, dtype=dtype)
    embed = eqx.nn.Linear(1, width, dtype=dtype, key=first)
    return SEGNO(embed, interaction, steps, steps if rate is None else rate, span)


class Layer(eqx.Module):
    """A layer of EGNN: an interaction of its own, and how much of the first velocity it adds."""

    interaction: Callable[..., Any]
    first: eqx.nn.Linear
    last: eqx.nn.Linear

    def __call__(
        self, features: Features, positions: Vectors, velocities: Vectors, edges: Edges
    ) -> tuple[Features, Vectors]:
        shift, change = self.interaction(features, positions, edges)
        scale = dense(self.last, _silu(dense(self.first, features)))
        return features + change, positions + shift + scale * velocities


class EGNN(eqx.Module):
    """Layers that map one snapshot to the next (EGNN): the peer of `SEGNO` at equal width.

    Each of the layers has weights of its own, shifts the positions once, and adds the first
    velocity anew, scaled by a network of the features. `egnn` makes one.

    **Cost:** one call of an `Interaction` for each layer.
    """

    embed: eqx.nn.Linear
    layers: tuple[Layer, ...]

    def __call__(self, bodies: Bodies) -> Vectors:
        return self.path(bodies)[-1]

    def path(self, bodies: Bodies) -> Float[Array, "layers *batch bodies 3"]:
        """The positions after each layer."""
        edges, positions = bodies.edges, bodies.positions
        features = dense(self.embed, lengths(bodies.velocities)[..., None])
        passed: list[Any] = []
        for layer in self.layers:
            features, positions = layer(features, positions, bodies.velocities, edges)
            passed.append(positions)
        return jnp.stack(passed)


def egnn(key: Any, *, width: int = 64, layers: int = 4, dtype: Any = jnp.float32) -> EGNN:
    """An `EGNN` at its random start. Raises `InputError` for a number below 1."""
    if layers < 1:
        raise InputError(f"layers {layers} must be at least 1, such as 4")
    first, *rest = jax.random.split(key, layers + 1)
    embed = eqx.nn.Linear(1, width, dtype=dtype, key=first)
    return EGNN(embed, tuple(_layer(width, each, dtype) for each in rest))


def _layer(width: int, key: Any, dtype: Any) -> Layer:
    keys = jax.random.split(key, 3)
    return Layer(
        Interaction(width, keys[0], dtype=dtype),
        eqx.nn.Linear(width, width, dtype=dtype, key=keys[1]),
        eqx.nn.Linear(width, 1, dtype=dtype, key=keys[2]),
    )


def squared_distances(positions: Vectors) -> Float[Array, "*batch bodies bodies"]:
    """Of all pairs."""
    apart = positions[..., :, None, :] - positions[..., None, :, :]
    return jnp.sum(apart**2, axis=-1)


def lengths(vectors: Vectors) -> Float[Array, "*batch bodies"]:
    """Of each vector; its derivative at the vector zero is zero, not undefined."""
    squares = jnp.sum(vectors**2, axis=-1)
    rests = squares == 0
    return jnp.where(rests, 0, jnp.sqrt(jnp.where(rests, 1, squares)))


def _silu(x: Array) -> Array:
    return x * jax.nn.sigmoid(x)
