"""Neural differential equations as small equinox modules: ordinary, controlled, stochastic.

Each is a vector field, a map from the input to the state it starts from, a map from the state to
the output, and an `Integration`: any solver, controller and adjoint of diffrax. All four parts are
ordinary modules or functions; the makers below put multilayer perceptrons in their places. They
take ONE example and are batched with `jax.vmap`.

- `NeuralODE`: from one vector to another, or to a trajectory.
- `NeuralCDE`: from a series of observations, irregular or with gaps.
- `NeuralSDE`: from noise; it generates trajectories.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nearly.core.errors import InputError
from nearly.dynamics.brownian import GridBrownianPath
from nearly.dynamics.data_paths import ControlledByWindows, LogPath
from nearly.training.architectures import MLP, mlp, normal_init

Map = Callable[[Array], Array]
LIPSWISH = 0.909  # SiLU's slope is at most 1.1


def lipswish(x: Array) -> Array:
    """SiLU scaled to a slope of at most one, for networks whose Lipschitz constant is bounded."""
    return LIPSWISH * jax.nn.silu(x)


def identity(x: Array) -> Array:
    """What goes in."""
    return x


class Integration(eqx.Module):
    """How an equation is solved: arguments of `diffrax.diffeqsolve`.

    **Arguments:**

    - `solver`, `controller`, `adjoint`: any of diffrax's or ours. The default, Tsit5 at relative
      and absolute tolerances of 1e-3 and 1e-6, is for smooth fields; what is driven by noise wants
      `fixed(diffrax.ReversibleHeun(), steps)` with `ReversibleAdjoint()`.
    - `dt0`: the first step, or every one; None for the controller's own choice.
    - `max_steps`: after so many the solve fails.

    Raises `InputError` for constant steps without a `dt0`.
    """

    solver: dfx.AbstractSolver[Any] = eqx.field(default_factory=dfx.Tsit5)
    controller: dfx.AbstractStepSizeController[Any, Any] = eqx.field(
        default_factory=lambda: dfx.PIDController(rtol=1e-3, atol=1e-6)
    )
    adjoint: dfx.AbstractAdjoint = eqx.field(default_factory=dfx.RecursiveCheckpointAdjoint)
    dt0: float | None = None
    max_steps: int = 4096

    def __check_init__(self) -> None:
        if self.dt0 is None and isinstance(self.controller, dfx.ConstantStepSize):
            raise InputError("dt0=None: constant steps need their length, such as 0.05")

    def solve(self, terms: Any, t0: Any, t1: Any, y0: Any, saveat: dfx.SaveAt) -> Any:
        """What `saveat` saves of the solution."""
        solution = dfx.diffeqsolve(
            terms,
            self.solver,
            t0=t0,
            t1=t1,
            dt0=self.dt0,
            y0=y0,
            saveat=saveat,
            stepsize_controller=self.controller,
            adjoint=self.adjoint,
            max_steps=self.max_steps,
        )
        return solution.ys


def fixed(
    solver: Any, steps: int, t0: float = 0.0, t1: float = 1.0, adjoint: Any = None
) -> Integration:
    """So many equal steps of a solver from `t0` to `t1`; by default with the default adjoint."""
    if steps < 1:
        raise InputError(f"steps={steps}: give at least 1")
    adjoint = dfx.RecursiveCheckpointAdjoint() if adjoint is None else adjoint
    controller, dt0 = dfx.ConstantStepSize(), (t1 - t0) / steps
    # One to spare: rounding can leave a sliver of a step.
    return Integration(solver, controller, adjoint, dt0, steps + 1)


# ---- parts


class Field(eqx.Module):
    """A perceptron of time and state as a vector field: `(t, y, args) -> shape`; see `field`."""

    network: MLP
    bound: Map
    shape: tuple[int, ...] = eqx.field(static=True)

    def __call__(self, t: Any, y: Float[Array, " state"], args: Any) -> Array:
        del args
        values = self.network(jnp.append(y, jnp.asarray(t, y.dtype)))
        return self.bound(values).reshape(self.shape)


def field(
    state: int,
    key: Any,
    *,
    columns: int | None = None,
    width: int = 32,
    depth: int = 2,
    activation: Map = jax.nn.softplus,
    bound: Map = identity,
    dtype: Any = jnp.float32,
) -> Field:
    """A vector field on `state` components; with `columns` a matrix of so many columns.

    **Arguments:**

    - `width`, `depth`: of the hidden layers, and how many. `bound`: applied to the values; tanh
      keeps long solves of controlled and stochastic equations from blowing up.
    - `activation`: smooth, for a solver's order and the adjoint's sake: not ReLU.
    """
    shape = (state,) if columns is None else (state, columns)
    sizes = [state + 1, *[width] * depth, math.prod(shape)]
    return Field(mlp(sizes, key, activation, gain=1.0, dtype=dtype), bound, shape)


class Augment(eqx.Module):
    """A start with `extra` further components, zero: room for trajectories to pass each other."""

    extra: int = eqx.field(static=True)

    def __check_init__(self) -> None:
        if self.extra < 0:
            raise InputError(f"extra={self.extra} must not be negative")

    def __call__(self, x: Float[Array, " inputs"]) -> Float[Array, " state"]:
        return jnp.concatenate([x, jnp.zeros(self.extra, x.dtype)])


def _linear(inputs: int, outputs: int, key: Any, dtype: Any) -> eqx.nn.Linear:
    return normal_init(eqx.nn.Linear(inputs, outputs, dtype=dtype, key=key), key)


# ---- ordinary


class NeuralODE(eqx.Module):
    """y' = field(t, y) from y(t0) = initial(x); its value is readout(y(t1)). See `neural_ode`.

    Without further components in `initial` (`Augment`), trajectories cannot cross: the map from
    y(t0) to y(t1) is continuous with a continuous inverse, and no universal approximator.
    """

    field: Callable[..., Any]
    initial: Map = identity
    readout: Map = identity
    integration: Integration = eqx.field(default_factory=Integration)
    t0: float = 0.0
    t1: float = 1.0

    def __call__(self, x: Float[Array, " inputs"]) -> Float[Array, " outputs"]:
        """The output at `t1`."""
        return self.readout(self._solve(x, self.t1, dfx.SaveAt(t1=True))[0])

    def at(
        self, x: Float[Array, " inputs"], times: Float[Array, " times"]
    ) -> Float[Array, "times outputs"]:
        """The outputs along the trajectory, at increasing times from `t0` on; also past `t1`."""
        return jax.vmap(self.readout)(self._solve(x, times[-1], dfx.SaveAt(ts=times)))

    def _solve(self, x: Array, end: Any, saveat: dfx.SaveAt) -> Any:
        terms = dfx.ODETerm(self.field)
        return self.integration.solve(terms, self.t0, end, self.initial(x), saveat)


def neural_ode(
    inputs: int,
    outputs: int,
    key: Any,
    *,
    extra: int = 0,
    width: int = 32,
    depth: int = 2,
    activation: Map = jax.nn.softplus,
    integration: Integration | None = None,
    dtype: Any = jnp.float32,
) -> NeuralODE:
    """A neural ODE on the input and `extra` components, with a linear output.

    From `neural-differential-equations` (chapter 2); with `extra` > 0 it is what that calls
    augmented, and a universal approximator.
    """
    first, last = jax.random.split(key)
    state = inputs + extra
    return NeuralODE(
        field(state, first, width=width, depth=depth, activation=activation, dtype=dtype),
        Augment(extra),
        _linear(state, outputs, last, dtype),
        Integration() if integration is None else integration,
    )


# ---- controlled


class NeuralCDE(eqx.Module):
    """dy = field(t, y) dX from y(t0) = initial(X(t0)): a recurrent network in continuous time.

    `field` gives a matrix [state, channels of X]. X is a path through the data: `hermite_path`
    (any solver), `linear_path` or `log_path` (steps that end at their nodes), or any other path of
    diffrax's with a derivative. The output depends on the path alone: not on where along it, nor
    how often, it was observed. See `neural_cde`.
    """

    field: Callable[..., Any]
    initial: Map
    readout: Map = identity
    integration: Integration = eqx.field(default_factory=Integration)

    def __call__(self, path: Any) -> Float[Array, " outputs"]:
        """The output at the path's end."""
        return self.readout(self._solve(path, dfx.SaveAt(t1=True))[0])

    def at(self, path: Any, times: Float[Array, " times"]) -> Float[Array, "times outputs"]:
        """The outputs at increasing times along the path, each from what came before it."""
        return jax.vmap(self.readout)(self._solve(path, dfx.SaveAt(ts=times)))

    def _solve(self, path: Any, saveat: dfx.SaveAt) -> Any:
        start = path.start if isinstance(path, LogPath) else path.evaluate(path.t0)
        terms = _driven(self.field, path)
        return self.integration.solve(terms, path.t0, path.t1, self.initial(start), saveat)


def _driven(field: Any, path: Any) -> Any:
    """The term of a path. A straight one gives its increments: its derivative jumps where steps
    end, and the left one would drive the next step's first stage."""
    if isinstance(path, LogPath):
        return ControlledByWindows(field, path)
    term = dfx.ControlTerm(field, path)
    return term if isinstance(path, dfx.LinearInterpolation) else term.to_ode()


def neural_cde(
    channels: int,
    outputs: int,
    key: Any,
    *,
    state: int = 16,
    width: int = 32,
    depth: int = 1,
    activation: Map = jax.nn.softplus,
    integration: Integration | None = None,
    dtype: Any = jnp.float32,
) -> NeuralCDE:
    """A neural CDE of `state` components, linear at both ends, its field bounded by tanh.

    **Arguments:** `channels`: of the data, without time, which the paths of `data_paths` add.

    From `neural-differential-equations` (chapter 3).
    """
    middle, first, last = jax.random.split(key, 3)
    made = field(
        state,
        middle,
        columns=channels + 1,
        width=width,
        depth=depth,
        activation=activation,
        bound=jnp.tanh,
        dtype=dtype,
    )
    return NeuralCDE(
        made,
        _linear(channels + 1, state, first, dtype),
        _linear(state, outputs, last, dtype),
        Integration() if integration is None else integration,
    )


# ---- stochastic


class NeuralSDE(eqx.Module):
    """dy = drift(t, y) dt + diffusion(t, y) dW from y(t0) = initial(v), v and W noise.

    `diffusion` gives a matrix [state, noises]. Ito's or Stratonovich's, as the solver has it. See
    `neural_sde`.

    **Arguments:**

    - `seeds`: components of v; `noises`: of W.
    - `integration`: it must have a `dt0`: the path has a node at each such step (`refinements`
      halvings of it between, for controllers that go below).

    Raises `InputError` for no `dt0`.
    """

    drift: Callable[..., Any]
    diffusion: Callable[..., Any]
    initial: Map
    readout: Map
    integration: Integration
    seeds: int = eqx.field(static=True)
    noises: int = eqx.field(static=True)
    t0: float = 0.0
    t1: float = 1.0
    refinements: int = eqx.field(static=True, default=0)

    def __check_init__(self) -> None:
        if self.integration.dt0 is None:
            raise InputError("a NeuralSDE needs dt0 in its integration, such as 0.01")

    def __call__(self, times: Float[Array, " times"], key: Any) -> Float[Array, "times outputs"]:
        """One trajectory's outputs at increasing times within `t0` and `t1`."""
        first, rest = jax.random.split(key)
        start = self.initial(jax.random.normal(first, (self.seeds,), times.dtype))
        assert self.integration.dt0 is not None
        cells = max(round((self.t1 - self.t0) / self.integration.dt0), 1)
        shape = jax.ShapeDtypeStruct((self.noises,), times.dtype)
        path = GridBrownianPath(rest, self.t0, self.t1, cells, shape, refinements=self.refinements)
        terms = dfx.MultiTerm(dfx.ODETerm(self.drift), dfx.ControlTerm(self.diffusion, path))
        saveat = dfx.SaveAt(ts=times)
        states = self.integration.solve(terms, self.t0, self.t1, start, saveat)
        return jax.vmap(self.readout)(states)


def neural_sde(
    outputs: int,
    key: Any,
    *,
    state: int = 16,
    noises: int = 4,
    seeds: int = 4,
    width: int = 16,
    depth: int = 1,
    integration: Integration,
    t1: float = 1.0,
    dtype: Any = jnp.float32,
) -> NeuralSDE:
    """A generator of trajectories from 0 to `t1`: perceptrons everywhere, bounded by tanh.

    Its hidden state is longer than its output, so that what is generated need not be Markov.

    From `neural-differential-equations` (chapter 4), LipSwish activations as there.
    """
    keys = jax.random.split(key, 4)

    def part(key: Any, columns: int | None) -> Field:
        return field(
            state,
            key,
            columns=columns,
            width=width,
            depth=depth,
            activation=lipswish,
            bound=jnp.tanh,
            dtype=dtype,
        )

    return NeuralSDE(
        part(keys[0], None),
        part(keys[1], noises),
        mlp([seeds, width, state], keys[2], lipswish, gain=1.0, dtype=dtype),
        _linear(state, outputs, keys[3], dtype),
        integration,
        seeds,
        noises,
        t1=t1,
    )
