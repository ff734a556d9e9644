"""Training of context flows and of their peers: methods of the protocol `environment-models`."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from nearly.core.errors import InputError
from nearly.dynamics.context import ContextFlow, Joint, context_flow
from nearly.dynamics.problems.environments import (
    AdaptedField,
    EnvironmentLearning,
    Environments,
)
from nearly.dynamics.problems.trajectories import evaluations
from nearly.training import fit

DECAY = 1e-3  # of the mean context (absolute) and of the mean square weight
ADAM = optax.adam(3e-3)  # made once: compiled loops are kept with them
ADABELIEF = optax.adabelief(5e-3)

Pool = Callable[[Any, int, Any], Any]


class Whole(eqx.Module):
    """All of the data, at every step."""

    data: Any

    def __call__(self, key: Any) -> Any:
        del key
        return self.data


# ---- which contexts a field is expanded about


def random_pool(
    contexts: Float[Array, "environments context"], size: int, key: Any
) -> Int[Array, "environments pool"]:
    """The same `size` environments for all, drawn without repetition."""
    environments = contexts.shape[0]
    drawn = jax.random.permutation(key, environments)[:size]
    return jnp.broadcast_to(drawn, (environments, drawn.size))


def nearest_pool(
    contexts: Float[Array, "environments context"], size: int, key: Any
) -> Int[Array, "environments pool"]:
    """For each environment the `size` of the nearest contexts, its own among them."""
    del key
    apart = jnp.mean(jnp.abs(contexts[:, None] - contexts[None]), axis=-1)
    return jnp.argsort(apart, axis=-1)[:, :size]


# ---- alternating minimisation


class Turns(NamedTuple):
    """State of `alternating`: steps taken, what each side remembers, where a turn began."""

    step: Array
    field: Any
    contexts: Any
    anchor: Any


def alternating(
    field: optax.GradientTransformation,
    contexts: optax.GradientTransformation,
    turn: int = 1,
    proximal: float = 0.0,
) -> optax.GradientTransformation:
    """The field and the contexts of a `ContextFlow` take turns of `turn` steps each.

    **Arguments:** the optimizers of both; `proximal`: beta of a term `beta / 2 mean (w - old)^2`
    that holds what moves near to where it was when its turn began (nothing in a turn of one step).

    Raises `InputError` for a turn below 1 or a negative proximal weight.

    Paper: neural-context-flows, NCF-t1 (turns of one step) and NCF-t2 (25, beta = 100). The authors
    end a turn early once a step changes less than a tolerance; here all its steps are taken.
    """
    if turn < 1:
        raise InputError(f"turn {turn} must be at least 1 step")
    if proximal < 0:
        raise InputError(f"proximal {proximal} must not be negative")

    def init(weights: Any) -> Turns:
        return Turns(
            jnp.zeros((), jnp.int32),
            field.init(weights.field),
            contexts.init(weights.contexts),
            weights,
        )

    def update(gradient: Any, state: Turns, weights: Any = None) -> tuple[Any, Turns]:
        begins = state.step % turn == 0
        anchor = jax.tree.map(lambda a, w: jnp.where(begins, w, a), state.anchor, weights)

        def held(side: Any, now: Any, old: Any) -> Any:
            share = proximal / _size(now)
            return jax.tree.map(lambda g, w, o: g + share * (w - o), side, now, old)

        def of_field() -> tuple[Any, Any, Any]:
            pulled = held(gradient.field, weights.field, anchor.field)
            move, memory = field.update(pulled, state.field, weights.field)
            return _with(gradient, move, _zeros(gradient.contexts)), memory, state.contexts

        def of_contexts() -> tuple[Any, Any, Any]:
            pulled = held(gradient.contexts, weights.contexts, anchor.contexts)
            move, memory = contexts.update(pulled, state.contexts, weights.contexts)
            return _with(gradient, _zeros(gradient.field), move), state.field, memory

        moves, mine, theirs = jax.lax.cond(_fields_turn(state.step, turn), of_field, of_contexts)
        return moves, Turns(state.step + 1, mine, theirs, anchor)

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


@cache  # a compiled loop is kept with its optimizer
def _turns(both: Any, turn: int, proximal: float) -> optax.GradientTransformation:
    return alternating(both, both, turn, proximal)


class TurnsGradient(eqx.Module):
    """The gradient of the side whose turn it is, for `nearly.training.fit`; the other's is zero."""

    turn: int = eqx.field(static=True)

    def __call__(self, objective: Any, weights: Any, *, key: Any, step: Any) -> tuple[Any, Any]:
        del key

        def of_field() -> tuple[Any, Any]:
            value, slope = jax.value_and_grad(
                lambda side: objective(_with(weights, side, weights.contexts))
            )(weights.field)
            return value, _with(weights, slope, _zeros(weights.contexts))

        def of_contexts() -> tuple[Any, Any]:
            value, slope = jax.value_and_grad(
                lambda side: objective(_with(weights, weights.field, side))
            )(weights.contexts)
            return value, _with(weights, _zeros(weights.field), slope)

        return jax.lax.cond(_fields_turn(step, self.turn), of_field, of_contexts)


def _fields_turn(step: Any, turn: int) -> Any:
    return (step // turn) % 2 == 0


def _with(flow: Any, field: Any, contexts: Any) -> Any:
    return eqx.tree_at(lambda f: (f.field, f.contexts), flow, (field, contexts))


def _zeros(tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.zeros_like, tree)


def _size(tree: PyTree) -> int:
    return max(sum(leaf.size for leaf in jax.tree.leaves(tree)), 1)


# ---- losses


class ModulatedLoss(eqx.Module):
    """Mean square of all candidates, the mean absolute context, the mean square weight."""

    order: int = eqx.field(static=True)
    size: int = eqx.field(static=True)
    pool: Pool = eqx.field(static=True)
    substeps: int = eqx.field(static=True)
    decay: float = DECAY

    def __call__(self, flow: ContextFlow, data: Environments, key: Any) -> Any:
        contexts = flow.contexts
        if self.order == 0:  # nothing is expanded: one candidate
            pool = jnp.arange(contexts.shape[0])[:, None]
        else:
            pool = self.pool(contexts, self.size, key)
        found = counting(flow).candidates(
            contexts, data.starts, jnp.asarray(data.times), pool, self.order, self.substeps
        )
        wrong = jnp.mean((found - data.solutions[:, None]) ** 2)
        return wrong + self.decay * (jnp.mean(jnp.abs(contexts)) + _mean_square(flow.field))


class AdaptationLoss(eqx.Module):
    """The sum over environments of each one's loss: their contexts do not meet."""

    substeps: int = eqx.field(static=True)
    decay: float = DECAY

    def __call__(self, flow: ContextFlow, data: Environments, key: Any) -> Any:
        del key
        times = jnp.asarray(data.times)
        found = counting(flow).solve(flow.contexts, data.starts, times, self.substeps)
        wrong = jnp.mean((found - data.solutions) ** 2, axis=(0, 2, 3))
        return jnp.sum(wrong + self.decay * jnp.mean(jnp.abs(flow.contexts), axis=-1))


def counting(flow: ContextFlow) -> ContextFlow:
    """The flow, calls of its field counted."""

    def mark(leaf: Any) -> Any:
        return evaluations(leaf) if isinstance(leaf, Joint) else leaf

    return jax.tree.map(mark, flow, is_leaf=lambda x: isinstance(x, Joint))


def _mean_square(tree: PyTree) -> Any:
    leaves = jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array))
    return sum(jnp.sum(leaf**2) for leaf in leaves) / _size(leaves)


# ---- the method


def adapt(
    flow: ContextFlow,
    data: Environments,
    *,
    steps: int,
    key: Any,
    optimizer: optax.GradientTransformation = ADABELIEF,
    start: Float[Array, "environments context"] | None = None,
    substeps: int = 1,
) -> Float[Array, "environments context"]:
    """Contexts of new environments; the field stays as it is, and is not modulated.

    **Arguments:**

    - `data`: trajectories of one new environment or of many, which adapt at once.
    - `steps` of the `optimizer`. `start`: where contexts begin, by default N(0, 1).

    **Returns:** a context for each environment. An environment's does not depend on which others
    adapt with it (but for what the optimizer mixes; Adam and its kin mix nothing).

    **Cost:** a gradient of `flow.solve` each step.
    """
    if start is None:
        shape = (data.trajectories.shape[0], flow.contexts.shape[1])
        start = jax.random.normal(key, shape, flow.contexts.dtype)
    fresh = eqx.tree_at(lambda f: f.contexts, flow, start)
    moves = eqx.tree_at(lambda f: (f.field, f.contexts), fresh, (False, True))
    trained = fit(
        AdaptationLoss(substeps),
        fresh,
        Whole(jax.tree.map(jnp.asarray, data)),
        optimizer=optimizer,
        steps=steps,
        key=key,
        trainable=moves,
    )
    return trained.model.contexts


class ContextTraining(eqx.Module):
    """Train a context flow, then adapt to the new environments: `neural-context-flows`.

    **Arguments:**

    - `order` of the expansion; 0 is plain conditioning on a context. `turn`, `proximal`: see
      `alternating`. `size` of the pool of contexts that `pool` chooses.
    - `context`, `width`: of the networks. `optimizer`: of either side. `adaptation`: steps of it.
    - `dials`: gradients of training, the turns of both sides counted.

    Paper: neural-context-flows, whose sizes (contexts of 1,024 numbers, width 64, a pool of 6, Adam
    at 1e-4 for 24,000 gradients or more) take hours: the defaults here are for minutes, the rates
    the best of three tried on other data. A pool of one context, another at each step, is an
    unbiased draw of a larger one; at equal cost it led further (an error of 5e-4 after 3,000
    gradients, 2e-3 after 1,000 with three). Adaptation is the paper's, all environments at once.
    """

    order: int = 1
    turn: int = 1
    proximal: float = 0.0
    size: int = 1
    pool: Pool = random_pool
    context: int = 32
    width: int = 32
    optimizer: Any = ADAM
    adaptation: int = 500
    dials: tuple[int, ...] = (300,)

    def __check_init__(self) -> None:
        if min(self.size, self.adaptation) < 1:
            raise InputError(
                f"size {self.size} of the pool and adaptation {self.adaptation} must be at least 1"
            )

    def __call__(self, problem: EnvironmentLearning, steps: float, *, key: Any) -> AdaptedField:
        first, second = jax.random.split(key)
        flow = self.train(problem, int(steps), key=first)
        contexts = adapt(
            flow, problem.adapt, steps=self.adaptation, key=second, substeps=problem.substeps
        )
        known, new = (flow.field.embed(c)[:, None] for c in (flow.contexts, contexts))
        return AdaptedField(flow.field, known, new)

    def train(self, problem: EnvironmentLearning, steps: int, *, key: Any) -> ContextFlow:
        """The flow after so many gradients."""
        data = problem.train
        start, run = jax.random.split(key)
        flow = context_flow(
            data.trajectories.shape[-1],
            data.trajectories.shape[0],
            start,
            context=self.context,
            width=self.width,
        )
        trained = fit(
            ModulatedLoss(self.order, self.size, self.pool, problem.substeps),
            flow,
            Whole(jax.tree.map(jnp.asarray, data)),
            optimizer=_turns(self.optimizer, self.turn, self.proximal),
            steps=steps,
            key=run,
            gradient=TurnsGradient(self.turn),
        )
        return trained.model


ncf_t1 = ContextTraining()
ncf_t2 = ContextTraining(order=2, turn=25, proximal=100.0)
conditioned = ContextTraining(order=0)
