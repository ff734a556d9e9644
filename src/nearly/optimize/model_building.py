"""SGD whose rejected steps are replaced by those of a small model (`sgd-model-building`).

The trial step is `s = -lr g`. If the batch's loss at the trial has fallen by `c lr |g|^2` (over all
parameters), it is taken. Otherwise the gradient g' there, on the same batch, gives each leaf of the
parameters a model: with `y = g' - g`, on that leaf alone,

    sigma = (|s| (|y| + |g| / eta) - y.s) / 2
    (2 sigma I + s y^T + y s^T) x  =  -|s|^2 g

whose solution x is the leaf's step: a combination of g, y and s. It bends the direction as well as
shortens it, and sigma keeps it within the ball that has s for a diameter.

The first trial's loss costs a value, a rejection one gradient more; nothing is searched for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree
from optax import tree_utils as trees

from nearly.core.errors import InputError
from nearly.optimize.adaptive.settings import needs_params

LEAST_NORM = 1e-8  # below it a loss cannot show the decrease that is asked for: trials are taken
FALL, MOST_SHARE, LARGEST_RATE = 0.9, 0.05, 20.0


class ModelBuildingState(NamedTuple):
    """The learning rate, the steps taken, and how many of this epoch's were the model's."""

    learning_rate: Float[Array, ""]
    steps: Int[Array, ""]
    modelled: Int[Array, ""]


def model_building_sgd(
    learning_rate: Any = 0.5, c: float = 0.1, eta: float = 0.99, epoch: int | None = None
) -> optax.GradientTransformationExtraArgs:
    """SGD with model building, SMB.

    **Arguments:**

    - `learning_rate`, positive, of the trial. The method forgives rates that are too long.
    - `c` in (0, 1), the share of the decrease that the gradient promises which a trial must reach.
    - `eta` in (0, 1): smaller ones make shorter model steps.
    - `epoch`, the steps after which the learning rate is looked at: times 0.9 if more than 5% of
      the epoch's steps were the model's, divided by it (up to 20) otherwise. None leaves it alone.

    `update` needs the parameters, `value`, the batch's loss at them, and `value_fn`, the batch's
    loss as a function of the parameters. SMBi, which builds its models from another batch, is
    `independent_model_building`.

    **Raises:** `InputError` for values out of range and for an update without those arguments.

    **Cost:** O(parameters) time, no memory between steps beyond three numbers; a value each step, a
    gradient more in each rejected one (under `vmap` in every step, which it cannot skip).

    A leaf whose model has no unique solution (sigma or the determinant vanish), or whose trial has
    a loss or gradient that is not finite, takes its trial step shortened to a tenth; the authors'
    code divides by them.
    """
    _check(learning_rate, c, eta, epoch)

    def gradients(params: PyTree, trial: PyTree, here: PyTree, extra: Any) -> Any:
        del params
        return here, jax.grad(_value_fn(extra, "value_fn"))(trial)

    return _model_building(learning_rate, c, eta, epoch, gradients)


def independent_model_building(
    learning_rate: Any = 0.5, c: float = 0.1, eta: float = 0.99, epoch: int | None = None
) -> optax.GradientTransformationExtraArgs:
    """SMBi: as `model_building_sgd`, its models built from a batch independent of the trial's.

    `update` also needs `model_fn`, the loss of that other batch; a rejection costs two gradients
    more, both of it, so that model and difference are of the same function. Its steps are unbiased
    where those of SMB depend on the test that a batch has failed.
    """
    _check(learning_rate, c, eta, epoch)

    def gradients(params: PyTree, trial: PyTree, here: PyTree, extra: Any) -> Any:
        del here
        gradient = jax.grad(_value_fn(extra, "model_fn"))
        return gradient(params), gradient(trial)

    return _model_building(learning_rate, c, eta, epoch, gradients)


def model_step(
    gradient: Array,
    trial_gradient: Array,
    trial: Array,
    eta: float = 0.99,
) -> Array:
    """The model's step of one leaf: x above.

    **Arguments:** the gradients before and after the trial step, and that step, all of one shape;
    `eta` in (0, 1).

    **Cost:** O(size), six inner products, in float32 or better.
    """
    g, s = _precise(gradient), _precise(trial)
    y = _precise(trial_gradient) - g
    gg, ss, yy = (jnp.sum(jnp.square(a)) for a in (g, s, y))
    gs, gy, ys = (jnp.sum(a * b) for a, b in ((g, s), (g, y), (y, s)))
    # From here in units of the trial's length and the gradient's: no product over- or underflows.
    length, slope = jnp.sqrt(_or_one(ss)), jnp.sqrt(_or_one(gg))
    gs, gy, ys, yy = gs / (length * slope), gy / slope**2, ys / (length * slope), yy / slope**2
    bend = jnp.where(yy > 0, jnp.sqrt(_or_one(yy)), 0)  # whose derivative at 0 is a number
    sigma = (bend + 1 / eta - ys) / 2
    shifted = ys + 2 * sigma
    determinant = shifted**2 - yy
    usable = (sigma > 0) & (determinant > 0) & (gg > 0) & (ss > 0)
    scale = -1 / (2 * jnp.where(usable, sigma, 1))
    share = scale / jnp.where(usable, determinant, 1)
    along_y, along_s = share * (gy - shifted * gs), share * (yy * gs - shifted * gy)
    step = length / slope * (scale * g + along_y * y) + along_s * s
    return jnp.where(usable, step, 0.1 * s).astype(gradient.dtype)


Gradients = Callable[[PyTree, PyTree, PyTree, Any], tuple[PyTree, PyTree]]


def _model_building(
    learning_rate: Any, c: float, eta: float, epoch: int | None, gradients: Gradients
) -> optax.GradientTransformationExtraArgs:
    def init(params: PyTree) -> ModelBuildingState:
        del params
        zero = jnp.zeros((), jnp.int32)
        return ModelBuildingState(jnp.asarray(learning_rate, jnp.float32), zero, zero)

    def update(
        updates: PyTree, state: ModelBuildingState, params: Any = None, **extra: Any
    ) -> tuple[PyTree, ModelBuildingState]:
        needs_params(params, "SGD with model building")
        rate = state.learning_rate
        square = trees.tree_norm(jax.tree.map(_precise, updates), squared=True)
        trial = jax.tree.map(lambda g: -rate.astype(g.dtype) * g, updates)
        there = optax.apply_updates(params, trial)
        found = _value_fn(extra, "value_fn")(there)
        accepted = found <= _value(extra) - c * rate * square
        rejected = ~accepted & (square > LEAST_NORM**2)

        def modelled() -> PyTree:
            before, after = gradients(params, there, updates, extra)
            # Where the loss is no number its gradient tells nothing, whatever it is.
            after = jax.tree.map(lambda h: jnp.where(jnp.isfinite(found), h, jnp.nan), after)
            return jax.tree.map(lambda g, h, s: model_step(g, h, s, eta), before, after, trial)

        step = jax.lax.cond(rejected, modelled, lambda: trial)
        return step, _counted(state, rejected, epoch)

    return optax.GradientTransformationExtraArgs(init, cast("Any", update))


def _counted(state: ModelBuildingState, rejected: Array, epoch: int | None) -> ModelBuildingState:
    steps = state.steps + 1
    modelled = state.modelled + rejected.astype(jnp.int32)
    if epoch is None:
        return ModelBuildingState(state.learning_rate, steps, modelled)
    over = steps % epoch == 0
    longer = jnp.minimum(state.learning_rate / FALL, LARGEST_RATE)
    next_rate = jnp.where(modelled > MOST_SHARE * epoch, FALL * state.learning_rate, longer)
    return ModelBuildingState(
        jnp.where(over, next_rate, state.learning_rate), steps, jnp.where(over, 0, modelled)
    )


def _precise(leaf: Array) -> Array:
    return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))


def _or_one(x: Array) -> Array:
    return jnp.where(x > 0, x, 1)


def _value(extra: Any) -> Any:
    if "value" not in extra:
        raise InputError("SGD with model building needs value, the loss at the parameters")
    return extra["value"]


def _value_fn(extra: Any, name: str) -> Callable[[PyTree], Any]:
    if name not in extra:
        raise InputError(
            f"SGD with model building needs {name}, a batch's loss as function of the parameters: "
            f"update(updates, state, params, value=..., {name}=...)"
        )
    return extra[name]


def _check(rate: Any, c: float, eta: float, epoch: int | None) -> None:
    if isinstance(rate, (int, float)) and not 0 < rate < math.inf:  # a traced one is not looked at
        raise InputError(f"learning_rate {rate} must be positive and finite, such as 0.5")
    for name, value in {"c": c, "eta": eta}.items():
        if not 0 < value < 1:
            raise InputError(f"{name} {value} must lie in (0, 1)")
    if epoch is not None and epoch < 1:
        raise InputError(f"epoch {epoch} must be at least 1 step, or None for a rate that stays")
