"""One step of training, and many of them in one compiled program."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Inexact, Int, PyTree

from nearly.core.errors import InputError

Loss = Callable[[Any, Any, Any], Any]
Gradient = Callable[..., tuple[Any, Any]]

STREAM = 5  # what folds a run's key into that of its stream's first state
CHUNK_STEPS = 4096  # the most steps in a chunk, and so the length of the buffer of losses


class Stream(eqx.Module):
    """A source of batches that remembers what it has done: a solver that runs on, a buffer.

    Its state is part of the training run's: checkpoints hold it, and a resumed run goes on with it.
    """

    @abstractmethod
    def initial(self, key: Any) -> PyTree:
        """The state before the first batch, a pytree of arrays."""

    @abstractmethod
    def draw(self, state: PyTree, key: Any) -> tuple[PyTree, Any]:
        """The next state and a batch. The key is new at every step."""


class Run(eqx.Module):
    """What stays the same from step to step; its arrays are inputs of the compiled loop."""

    loss: Loss
    gradient: Gradient
    optimizer: optax.GradientTransformationExtraArgs
    frozen: PyTree
    data: Any
    key: Any
    batch: int | None = eqx.field(static=True)
    ema: float | None = eqx.field(static=True)

    @property
    def examples(self) -> int:
        return jax.tree.leaves(self.data)[0].shape[0]

    def drawn(self, state: State, order: Int[Array, " n"], key: Any) -> tuple[PyTree, Any]:
        """The state of the stream, if there is one, and the batch."""
        if isinstance(self.data, Stream):
            return self.data.draw(state.stream, key)
        return None, self.batch_of(state.step, order, key)

    def batch_of(self, step: Int[Array, ""], order: Int[Array, " n"], key: Any) -> Any:
        if callable(self.data):
            return self.data(key)
        if self.batch is None:
            return self.data
        start = step % (self.examples // self.batch) * self.batch
        rows = jax.lax.dynamic_slice_in_dim(order, start, self.batch)
        return jax.tree.map(lambda x: x[rows], self.data)

    def reordered(self, step: Int[Array, ""], order: Int[Array, " n"], key: Any) -> Any:
        """The order of the examples at a step: a new permutation where an epoch begins."""
        if self.batch is None:
            return order
        epoch, place = jnp.divmod(step, self.examples // self.batch)

        def draw() -> Any:
            return jax.random.permutation(jax.random.fold_in(key, epoch), jnp.arange(order.size))

        return jax.lax.cond(place == 0, lambda: draw().astype(order.dtype), lambda: order)

    def averaged(self, state: State) -> PyTree:
        """The weights to use: their bias-corrected moving average, or simply the last ones."""
        if self.ema is None:
            return state.weights
        seen = jnp.maximum(state.step, 1)
        average = jax.tree.map(
            lambda a: a / (1 - jnp.asarray(self.ema, a.real.dtype) ** seen), state.average
        )
        return _where(state.step > 0, average, state.weights)


class State(eqx.Module):
    """What a step changes."""

    step: Int[Array, ""]
    finite: Bool[Array, ""]
    weights: PyTree
    optimizer: PyTree
    average: PyTree
    order: Int[Array, " n"]
    stream: PyTree = None

    @staticmethod
    def initial(run: Run, weights: PyTree) -> State:
        return State(
            jnp.zeros((), jnp.int32),
            jnp.ones((), bool),
            weights,
            jax.tree.map(_own, run.optimizer.init(weights)),
            None if run.ema is None else jax.tree.map(jnp.zeros_like, weights),
            jnp.zeros(0 if run.batch is None else run.examples, jnp.int32),
            _started(run),
        )


def _started(run: Run) -> PyTree:
    if not isinstance(run.data, Stream):
        return None
    key = jax.random.fold_in(run.key, STREAM)
    return jax.tree.map(_own, eqx.filter_jit(run.data.initial)(key))


def reverse_mode(objective: Any, weights: PyTree, *, key: Any, step: Any) -> tuple[Any, PyTree]:
    del key, step
    value, gradient = jax.value_and_grad(objective)(weights)
    return value, jax.tree.map(jnp.conj, gradient)  # optax descends along the conjugate


def _step(run: Run, state: State) -> tuple[State, Inexact[Array, ""]]:
    order_key, batch_key, loss_key, gradient_key = jax.random.split(run.key, 4)
    order = run.reordered(state.step, state.order, order_key)
    stream, batch = run.drawn(state, order, jax.random.fold_in(batch_key, state.step))
    noise = jax.random.fold_in(loss_key, state.step)

    def objective(weights: PyTree) -> Any:
        return _scalar(run.loss(eqx.combine(weights, run.frozen), batch, noise))

    own_key = jax.random.fold_in(gradient_key, state.step)
    value, gradient = run.gradient(objective, state.weights, key=own_key, step=state.step)
    updates, optimizer = run.optimizer.update(
        gradient, state.optimizer, state.weights, value=value, grad=gradient, value_fn=objective
    )
    weights = optax.apply_updates(state.weights, updates)
    finite = jnp.isfinite(value) & _all_finite(weights)
    average = state.average
    if run.ema is not None:
        average = optax.incremental_update(weights, average, 1 - run.ema)
    moved = State(state.step + 1, finite, weights, optimizer, average, order)
    stayed = State(state.step, finite, state.weights, state.optimizer, state.average, state.order)
    # The stream goes on either way: choosing would copy its buffer at every step.
    chosen = _where(finite, moved, stayed)
    return eqx.tree_at(lambda s: s.stream, chosen, stream, is_leaf=lambda x: x is None), value


@eqx.filter_jit(donate="all-except-first")
def advance(
    run_and_count: tuple[Run, Int[Array, ""]], state: State
) -> tuple[State, Inexact[Array, " steps"]]:
    """At most `count` steps, fewer if one is not finite, and the losses met on the way."""
    run, count = run_and_count
    kind = eqx.filter_eval_shape(_step, run, state)[1]

    def one(carry: Any) -> Any:
        done, state, losses = carry
        state, value = _step(run, state)
        return done + 1, state, losses.at[done].set(value)

    start = (jnp.zeros((), jnp.int32), state, jnp.zeros(CHUNK_STEPS, kind.dtype))
    _, state, losses = jax.lax.while_loop(lambda c: (c[0] < count) & c[1].finite, one, start)
    return state, losses


@eqx.filter_jit
def evaluate(validate: Callable[[Any], Any], run: Run, state: State) -> tuple[Any, PyTree]:
    weights = run.averaged(state)
    return validate(eqx.combine(weights, run.frozen)), weights


@eqx.filter_jit(donate="all-except-first")
def advance_once(run: Run, state: State) -> tuple[State, Inexact[Array, " steps"]]:
    """One step as a program of its own, and the loss met."""
    state, value = _step(run, state)
    return state, value[None]


def _scalar(value: Any) -> Any:
    value = jnp.asarray(value)
    if value.shape != () or not jnp.issubdtype(value.dtype, jnp.floating):
        raise InputError(
            f"the loss must be one real number, not {value.dtype}{list(value.shape)}: "
            "take a mean or a sum"
        )
    return value


def _where(condition: Bool[Array, ""], yes: PyTree, no: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def _all_finite(tree: PyTree) -> Bool[Array, ""]:
    return jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]).all()


def _own(leaf: Any) -> Any:
    """An array that nobody else holds: donating it invalidates nothing of the caller's."""
    return jnp.copy(leaf) if eqx.is_array(leaf) else jnp.asarray(leaf)
