"""NeuralStagger (`neuralstagger`): interleaved coarse fields, each stepped by a network of its own.

A field is cut into the coarse fields of every s-th point. Each has a network for each of the next
time steps; all are evaluated at once and interleaved back. One network's work is that of the coarse
grid, so on parallel hardware a step is as fast as a coarse one. Training needs no solution: the
loss is the residual of the original scheme, fine in space and time, of the reassembled frames, and
couples all networks.

Differences from the published method, and why:

- The networks start as the identity and add a correction: of an untrained one the residual is
  finite however long the rollout.
- What is trained on beyond the initial fields is rolled out by the networks themselves, a random
  number of calls without gradient: states of all times are seen, and still none is solved for.
- Convolutions are computed as products: XLA has no fast convolution with weights that are mapped
  over (the stacked networks), and none inside a loop on a CPU.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nearly.core.errors import InputError
from nearly.operators.data import Grid, Trajectories, check_data
from nearly.operators.training import optimizer, statistics
from nearly.operators.transfer import with_constants
from nearly.pde.semilinear import Semilinear
from nearly.training.architectures import residual_cnn
from nearly.training.convolution import as_products
from nearly.training.loop import fit

Sight = Literal["own", "all"]
NetworkMaker = Callable[..., Any]


def decompose(
    field: Float[Array, " channels *grid"], strides: tuple[int, ...]
) -> Float[Array, " pieces channels *coarse"]:
    """The interleaved coarse fields `field[:, i::s, j::t]`, in the order of (i, j).

    Nothing is averaged: what the coarse grid does not resolve is aliased, and is not lost, since
    all pieces together are the field. Raises `InputError` if a stride does not divide its side.
    """
    grid = field.shape[1:]
    if len(strides) != len(grid) or min(strides) < 1:
        raise InputError(
            f"strides {strides} must be one positive number for each of the {len(grid)} axes"
        )
    if any(n % s for n, s in zip(grid, strides, strict=True)):
        multiples = " x ".join(map(str, strides))
        raise InputError(
            f"strides {strides} do not divide the grid {grid}: resample the field to multiples of "
            f"{multiples}, or take strides that divide it"
        )
    split = [x for n, s in zip(grid, strides, strict=True) for x in (n // s, s)]
    dims = len(grid)
    order = (*range(2, 2 * dims + 1, 2), 0, *range(1, 2 * dims, 2))
    apart = field.reshape(field.shape[0], *split).transpose(order)
    return apart.reshape(math.prod(strides), *apart.shape[dims:])


def reassemble(
    pieces: Float[Array, " pieces channels *coarse"], strides: tuple[int, ...]
) -> Float[Array, " channels *grid"]:
    """The field whose `decompose` the pieces are."""
    dims = len(strides)
    channels, coarse = pieces.shape[1], pieces.shape[2:]
    apart = pieces.reshape(*strides, channels, *coarse)
    order = (dims, *(x for axis in range(dims) for x in (dims + 1 + axis, axis)))
    grid = (n * s for n, s in zip(coarse, strides, strict=True))
    return apart.transpose(order).reshape(channels, *grid)


class Work(NamedTuple):
    """Floating-point operations of the networks for one fine step of time."""

    parallel: float
    serial: float


class Staggered(eqx.Module):
    """A stepper of coarse networks: see `staggered`."""

    networks: Any
    scale: Float[Array, " channels"]
    strides: tuple[int, ...] = eqx.field(static=True)
    frames_ahead: int = eqx.field(static=True)
    sees: Sight = eqx.field(static=True)

    def frames(
        self, state: Float[Array, " channels *grid"], parameters: Any = None
    ) -> Float[Array, " frames channels *grid"]:
        """The states one, two, ... fine steps later, as many as there are temporal pieces."""
        pieces = decompose(state, self.strides)
        inputs = jax.vmap(lambda own: self._inside(own, pieces, parameters))(pieces)
        over_pieces = eqx.filter_vmap(self._ahead)
        over_frames = eqx.filter_vmap(
            lambda networks: over_pieces(networks, pieces, inputs), axis_size=self.frames_ahead
        )
        ahead = over_frames(self.networks)
        return jax.vmap(lambda frame: reassemble(frame, self.strides))(ahead)

    def __call__(
        self, state: Float[Array, " channels *grid"], parameters: Any = None, *, key: Any = None
    ) -> Float[Array, " channels *grid"]:
        """The last of the frames: rollouts go on from it."""
        return self.frames(state, parameters)[-1]

    def coarse_frames(
        self, coarse: Float[Array, " channels *coarse"], piece: int = 0, parameters: Any = None
    ) -> Float[Array, " frames channels *coarse"]:
        """A simulation on the coarse grid alone, by the networks of one piece.

        Raises `InputError` if the networks were made to see all pieces.
        """
        if self.sees == "all":
            raise InputError(
                "networks that see all pieces cannot step one alone: make them with sees='own'"
            )
        inside = self._inside(coarse, coarse[None], parameters)
        networks = jax.tree.map(lambda x: x[:, piece] if eqx.is_array(x) else x, self.networks)
        return eqx.filter_vmap(lambda network: self._ahead(network, coarse, inside))(networks)

    def work(self, state: Float[Array, " channels *grid"], parameters: Any = None) -> Work:
        """What one network does (all run side by side), and what all do, per fine step of time.

        Counted by XLA in the program before it is optimised.
        """
        coarse = decompose(state, self.strides)
        inside = self._inside(coarse[0], coarse, parameters)
        arrays, rest = eqx.partition(self.networks, eqx.is_array)
        first = jax.tree.map(lambda x: x[0, 0], arrays)
        program = jax.jit(lambda weights, x: eqx.combine(weights, rest)(x))
        counted: Any = program.lower(first, inside).cost_analysis()
        each = float(counted["flops"]) / self.frames_ahead
        return Work(each, each * coarse.shape[0] * self.frames_ahead)

    def _inside(self, own: Array, pieces: Array, parameters: Any) -> Array:
        scale = self._spread(own)
        seen = own / scale if self.sees == "own" else jnp.concatenate([own[None], pieces]) / scale
        numbers = jnp.zeros(0, own.dtype) if parameters is None else jnp.asarray(parameters)
        return with_constants(seen.reshape(-1, *own.shape[1:]), numbers)

    def _ahead(self, network: Any, own: Array, inside: Array) -> Array:
        return own + self._spread(own) * network(inside)

    def _spread(self, field: Array) -> Array:
        column = jax.lax.stop_gradient(self.scale).astype(field.dtype)
        return column.reshape(-1, *(1,) * (field.ndim - 1))


def staggered(
    channels: int,
    key: Any,
    *,
    strides: tuple[int, ...] = (2, 2),
    frames: int = 2,
    sees: Sight = "own",
    parameters: int = 0,
    scale: Any = 1.0,
    network: NetworkMaker | None = None,
    grid: Grid | None = None,
    dtype: Any = jnp.float32,
) -> Staggered:
    """Networks for the pieces of a field of `channels`, `frames` fine steps of time ahead.

    **Arguments:**

    - `strides`: of the decomposition in space, one for each axis; all 1: none.
    - `frames`: temporal pieces: how many steps ahead the networks look, one network each.
    - `sees`: `"own"`: a network reads its own coarse field, as published, and knows of the others
      through the loss alone. `"all"`: it reads all pieces (its own first), for little more work and
      without aliasing, but the pieces must be exchanged between steps.
    - `parameters`: how many numbers of the equation are fed as constant channels.
    - `scale`: the fields' typical size, a number or one for each channel.
    - `network`: `(inputs, outputs, key) -> module` of one coarse field; by default a residual CNN
      of width 16 with four convolutions, periodic if the `grid` is (by default it is). Published
      are U-Nets and low-rank mixers of hundreds of channels: hand over `unet` for those.

    Raises `InputError` for settings out of range, and when called if the strides do not divide the
    grid. **Cost:** `prod(strides) * frames` networks, each on a grid of `1 / prod(strides)` the
    points; see `Staggered.work`. **Paper:** `neuralstagger`; for the differences see the module.
    """
    if frames < 1 or channels < 1 or min(strides) < 1:
        raise InputError(
            f"channels={channels}, frames={frames}, strides={strides} must be positive"
        )
    pieces = math.prod(strides)
    inputs = channels * (1 if sees == "own" else 1 + pieces) + parameters
    make = network or _default_network(len(strides), grid is None or grid.periodic, dtype)
    keys = jax.random.split(key, (frames, pieces))
    build = eqx.filter_vmap(eqx.filter_vmap(lambda k: make(inputs, channels, k)))
    size = jnp.broadcast_to(jnp.asarray(scale, dtype), (channels,))
    return Staggered(build(keys), size, tuple(strides), frames, sees)


def _default_network(dims: int, periodic: bool, dtype: Any) -> NetworkMaker:
    padding = "CIRCULAR" if periodic else "ZEROS"

    def make(inputs: int, outputs: int, key: Any) -> Any:
        model = residual_cnn(
            inputs, outputs, key, width=16, blocks=1, dims=dims, padding=padding, dtype=dtype
        )
        # Silent at first: a step begins as the identity.
        model = eqx.tree_at(lambda m: m.head.weight, model, replace_fn=jnp.zeros_like)
        return as_products(model)

    return make


# ---- what it is trained by


class TrapezoidalResidual(eqx.Module):
    """after - before - dt/2 (F(before) + F(after)), F the equation's right side on the fine grid.

    The scheme of Crank and Nicolson in time and Fourier in space: each channel is a field of its
    own. It is implicit: nobody solves it, the networks learn to.
    """

    equation: Semilinear
    dt: float

    def __call__(
        self,
        before: Float[Array, " channels *grid"],
        after: Float[Array, " channels *grid"],
        parameters: Any = None,
    ) -> Float[Array, " channels *grid"]:
        """The residual at every point."""
        del parameters
        return after - before - self.dt / 2 * (self._right(before) + self._right(after))

    def _right(self, field: Array) -> Array:
        grid = self.equation.grid(field.shape[1:], field.dtype)
        symbol, nonlinear = self.equation.discretise(grid)

        def one(values: Array) -> Array:
            spectrum = grid.transform(values)
            return grid.values(symbol * spectrum + nonlinear(spectrum))

        return jax.vmap(one)(field)


class PreconditionedResidual(eqx.Module):
    """The trapezoidal residual over 1 - dt/2 L, L the equation's linear part: the same zeros.

    By itself the residual weighs an error of wave number k by about 1 + dt/2 |L(k)|, so that what
    only the fine grid resolves is learned first and what carries the solution last. Divided, all
    count alike: for Burgers' equation on 32 x 32 points in four pieces the error after 250 steps of
    training was a fifth. Not in the paper.
    """

    residual: TrapezoidalResidual

    def __call__(
        self,
        before: Float[Array, " channels *grid"],
        after: Float[Array, " channels *grid"],
        parameters: Any = None,
    ) -> Float[Array, " channels *grid"]:
        """The residual at every point."""
        equation, dt = self.residual.equation, self.residual.dt
        grid = equation.grid(before.shape[1:], before.dtype)
        symbol, _ = equation.discretise(grid)

        def one(values: Array) -> Array:
            return grid.values(grid.transform(values) / (1 - dt / 2 * symbol))

        return jax.vmap(one)(self.residual(before, after, parameters))


class SolverResidual(eqx.Module):
    """after - solver(before): the residual of an explicit scheme.

    **Arguments:** `evolve`: `(state, parameters, frames) -> states`, as `Evolution.evolve`.
    """

    evolve: Callable[..., Any]

    def __call__(self, before: Any, after: Any, parameters: Any = None) -> Any:
        """The residual at every point."""
        return after - self.evolve(before, parameters, 1)[0]


class PhysicsLoss(eqx.Module):
    """The mean squared residual of the reassembled frames, the known first one in front.

    **Arguments:** `residual`: `(before, after, parameters) -> field` of one fine step. `calls`: the
    most calls that the networks take on their own before the frames that are judged.
    """

    residual: Any
    calls: int = eqx.field(static=True)

    def __call__(self, model: Staggered, batch: Any, key: Any) -> Float[Array, ""]:
        fields, parameters = batch
        still = jax.tree.map(
            lambda x: jax.lax.stop_gradient(x) if eqx.is_inexact_array(x) else x, model
        )
        count = jax.random.randint(key, (), 0, self.calls + 1)
        start = jax.lax.fori_loop(
            0, count, lambda _, states: jax.vmap(still)(states, parameters), fields
        )
        return jnp.mean(jax.vmap(self._squared, (None, 0, 0))(model, start, parameters))

    def _squared(self, model: Staggered, start: Array, parameters: Any) -> Array:
        after = model.frames(start, parameters)
        before = jnp.concatenate([start[None], after[:-1]])
        residual = jax.vmap(self.residual, (0, 0, None))(before, after, parameters)
        return jnp.mean(residual**2)


def train_by_physics(
    model: Staggered,
    fields: Float[Array, " samples channels *grid"] | Float[np.ndarray, " samples channels *grid"],
    residual: Any,
    *,
    steps: int,
    batch: int,
    key: Any,
    calls: int = 0,
    parameters: Any = None,
    learning_rate: float = 1e-3,
) -> Staggered:
    """Train on initial fields and the equation alone.

    **Arguments:** see `PhysicsLoss`; `learning_rate` of Adam, cosine to 0. Raises `InputError` for
    fields that are not finite, or if training diverged.
    """
    if not np.isfinite(np.asarray(fields)).all():
        raise InputError("the initial fields are not finite: leave out those that are not")
    numbers = jnp.zeros((len(fields), 0)) if parameters is None else jnp.asarray(parameters)
    moves = eqx.tree_at(lambda m: m.scale, jax.tree.map(eqx.is_inexact_array, model), False)
    trained = fit(
        PhysicsLoss(residual, calls),
        model,
        (jnp.asarray(fields), numbers),
        optimizer=optimizer(learning_rate, steps),
        steps=steps,
        batch=batch,
        trainable=moves,
        key=key,
    )
    if trained.status == "diverged":
        raise InputError(f"training diverged: {trained.reason}; lower learning_rate")
    return trained.model


class NeuralStagger(eqx.Module):
    """Builds a stepper: coarse networks trained by the equation of the trajectories' family.

    **Arguments:**

    - `stride`: in space, along every axis. `frames`: temporal pieces of one `dt` of the data.
    - `sees`, `network`: see `staggered`. `calls`: see `PhysicsLoss`.
    - `steps`, `batch`, `learning_rate`: of training.

    The states of the trajectories are used as initial fields only; the residual is that of the
    family's solver with steps of `dt / frames` on the data's grid.
    """

    stride: int = 2
    frames: int = 1
    sees: Sight = "own"
    network: NetworkMaker | None = None
    calls: int = 0
    steps: int = 300
    batch: int = 16
    learning_rate: float = 2e-3

    def __call__(self, data: Trajectories, *, key: Any) -> Staggered:
        """Trains; raises `InputError` for data without a family, or as `train_by_physics` does."""
        if data.family is None:
            raise InputError(
                "these trajectories name no equation: train_by_physics takes a residual instead"
            )
        states = np.asarray(check_data(data).states)
        flat = states.reshape(-1, *states.shape[2:])
        parameters = np.repeat(np.asarray(data.parameters), states.shape[1], 0)
        first, second = jax.random.split(key)
        model = staggered(
            flat.shape[1],
            first,
            strides=(self.stride,) * data.grid.dims,
            frames=self.frames,
            sees=self.sees,
            parameters=parameters.shape[1],
            scale=statistics(flat)[1],
            network=self.network,
            grid=data.grid,
            dtype=flat.dtype,
        )
        return train_by_physics(
            model,
            flat,
            SolverResidual(_finer(data.family, self.frames).evolve),
            steps=self.steps,
            batch=min(self.batch, len(flat)),
            key=second,
            calls=self.calls,
            parameters=parameters,
            learning_rate=self.learning_rate,
        )


def _finer(family: Any, frames: int) -> Any:
    return dataclasses.replace(family, dt=family.dt / frames)


neural_stagger = NeuralStagger()  # what the catalogue names
