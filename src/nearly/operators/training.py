"""Training of solution operators: losses, schedules, normalisation, over `nearly.training.fit`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from nearly.core.errors import InputError, UnknownName
from nearly.operators.data import Pairs, check_data
from nearly.pde.metrics import relative_l2
from nearly.training.loop import Trained, fit

Schedule = Literal["cosine", "halving", "one-cycle", "constant"]
FieldLoss = Callable[[Any, Any], Any]
Predict = Callable[[Any, Any, Any, Any], Any]

HALVINGS = 5  # as often as the FNO paper's settings halve: every 100 of 500 epochs
TINY = 1e-12


class Normalized(eqx.Module):
    """A model between fields of mean 0 and deviation 1, in front of and behind the real ones.

    One mean and deviation a channel, never a pixel: statistics of pixels would tie the model to one
    resolution. They have no gradient, and `trainable` leaves them out.

    **Arguments:**

    - `model`: any module `field -> field`; further arguments of the call are handed on.
    - `input_mean`, `input_std`: `[channels in]`. `output_mean`, `output_std`: `[channels out]`.
    """

    model: Any
    input_mean: Any
    input_std: Any
    output_mean: Any
    output_std: Any

    def __call__(self, field: Float[Array, " inputs *grid"], *args: Any, **kwargs: Any) -> Any:
        """The model's output field `[channels out, *grid]`.

        Raises `InputError` for another number of channels than it was trained on.
        """
        channels = self.input_mean.shape[0]
        if field.shape[0] != channels:
            raise InputError(
                f"a field of {field.shape[0]} channels for a model of {channels}: "
                "the first axis is the channel"
            )
        inside = (field - _spread(self.input_mean, field)) / _spread(self.input_std, field)
        out = self.model(inside, *args, **kwargs)
        return out * _spread(self.output_std, out) + _spread(self.output_mean, out)


def normalized(model: Any, data: Pairs) -> Normalized:
    """The model between the statistics of the data's inputs and outputs."""
    return Normalized(model, *statistics(data.inputs), *statistics(data.outputs))


def statistics(fields: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each channel of `[samples, channels, *grid]`; 1 for a constant."""
    values = np.asarray(fields)
    axes = (0, *range(2, values.ndim))
    mean = values.mean(axes, dtype=np.float64)
    std = values.std(axes, dtype=np.float64)
    std = np.where(std > TINY, std, 1.0)
    return mean.astype(values.dtype), std.astype(values.dtype)


def _spread(channels: Any, field: Any) -> Any:
    column = jnp.asarray(channels, field.dtype).reshape(-1, *(1,) * (field.ndim - 1))
    return jax.lax.stop_gradient(column)


def trainable(model: Any) -> Any:
    """Which leaves of a model move in training: arrays of floats, but no statistics."""

    def moves(node: Any) -> Any:
        if not isinstance(node, Normalized):
            return eqx.is_inexact_array(node)
        still = jax.tree.map(lambda _: False, node)
        return eqx.tree_at(lambda n: n.model, still, trainable(node.model))

    return jax.tree.map(moves, model, is_leaf=lambda node: isinstance(node, Normalized))


# ---- losses of one sample


def relative_l2_loss(
    prediction: Float[Array, " channels *grid"], truth: Float[Array, " channels *grid"]
) -> Float[Array, ""]:
    """|prediction - truth| / |truth| over all channels and points."""
    return relative_l2(prediction, truth)


def mean_squared_loss(
    prediction: Float[Array, " channels *grid"], truth: Float[Array, " channels *grid"]
) -> Float[Array, ""]:
    """The mean of (prediction - truth)^2."""
    return jnp.mean((prediction - truth) ** 2)


# ---- the optimiser


@lru_cache(64)  # an optimiser made anew would compile the training loop anew
def optimizer(
    learning_rate: float, steps: int, schedule: str = "cosine", weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """Adam (decoupled weight decay if any) on a schedule of the learning rate over `steps`.

    `cosine` goes down to 0; `halving` halves five times; `one-cycle` rises over the first 30% and
    falls to nearly nothing; `constant` stays. Raises `InputError` or `UnknownName`.
    """
    if not (learning_rate > 0 and weight_decay >= 0):
        raise InputError(
            f"learning_rate={learning_rate} must be positive, "
            f"weight_decay={weight_decay} not below 0"
        )
    if schedule not in get_args(Schedule):
        raise UnknownName("schedule", schedule, get_args(Schedule))
    rates: dict[str, Callable[[], Any]] = {
        "cosine": lambda: optax.cosine_decay_schedule(learning_rate, steps),
        "halving": lambda: optax.exponential_decay(
            learning_rate, max(steps // HALVINGS, 1), 0.5, staircase=True
        ),
        "one-cycle": lambda: optax.cosine_onecycle_schedule(max(steps, 4), learning_rate),
        "constant": lambda: learning_rate,
    }
    rate = rates[schedule]()
    return optax.adamw(rate, weight_decay=weight_decay) if weight_decay else optax.adam(rate)


# ---- training


def as_map(model: Any, field: Any, parameters: Any, key: Any) -> Any:
    """How a solution map is called: `model(field)`."""
    del parameters, key
    return model(field)


def as_stepper(model: Any, field: Any, parameters: Any, key: Any) -> Any:
    """How a stepper is called: `model(state, parameters, key=key)`."""
    return model(field, parameters, key=key)


class BatchLoss(eqx.Module):
    """The mean over a batch of one sample's loss: what `fit` minimises."""

    loss: FieldLoss
    predict: Predict

    def __call__(self, model: Any, batch: Any, key: Any) -> Any:
        inputs, outputs, parameters = batch
        keys = jax.random.split(key, inputs.shape[0])
        predictions = jax.vmap(self.predict, (None, 0, 0, 0))(model, inputs, parameters, keys)
        return jnp.mean(jax.vmap(self.loss)(predictions, outputs))


def train(
    model: Any,
    data: Pairs,
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    key: Any,
    loss: FieldLoss = relative_l2_loss,
    schedule: str = "cosine",
    weight_decay: float = 0.0,
    ema: float | None = None,
    predict: Predict = as_map,
    **options: Any,
) -> Trained:
    """Train a model of one sample on pairs of fields.

    **Arguments:**

    - `model`: an equinox module; see `predict` for how it is called. Wrap it by `normalized`.
    - `data`: `Pairs` (of a stepper: `trajectories.steps()`).
    - `steps`, `batch`: optimiser steps, samples in each (at most all of them).
    - `loss`: `(prediction, truth) -> scalar` of one sample.
    - `schedule`, `weight_decay`: see `optimizer`. `ema`: decay of a moving average of the weights.
    - `predict`: `(model, input, parameters, key) -> output`: `as_map` or `as_stepper`.
    - `options`: handed on to `nearly.training.fit` (validate, checkpoint, progress, ...).

    **Returns:** `Trained`; `.model` is the one to use. Raises `InputError` for non-finite data, or
    if training diverged: a model that is not to be used.
    """
    check_data(data)
    trained = fit(
        BatchLoss(loss, predict),
        model,
        (data.inputs, data.outputs, data.parameters),
        optimizer=optimizer(learning_rate, steps, schedule, weight_decay),
        steps=steps,
        batch=min(batch, len(data)),
        ema=ema,
        trainable=trainable(model),
        key=key,
        **options,
    )
    if trained.status == "diverged":
        raise InputError(
            f"training diverged: {trained.reason}; lower learning_rate={learning_rate}"
        )
    return trained


class MapBuilder(eqx.Module):
    """Builds a convolutional solution map from pairs of fields: its training, once for all of them.

    **Arguments:** `steps`, `batch`, `learning_rate`, `schedule`, `weight_decay`, `loss` of `train`.
    **Subclasses** say what is trained: `untrained`. Every step is dispatched on its own, which on
    a CPU is several times faster for convolutions than a compiled loop of steps.

    **Cost:** `steps` gradients of `batch` samples.
    """

    steps: eqx.AbstractVar[int]
    batch: eqx.AbstractVar[int]
    learning_rate: eqx.AbstractVar[float]
    schedule: eqx.AbstractVar[Schedule]
    weight_decay: eqx.AbstractVar[float]
    loss: eqx.AbstractVar[FieldLoss]

    @abstractmethod
    def untrained(self, data: Pairs, key: Any) -> Normalized:
        """The model before training, with the data's statistics in it."""

    def __call__(self, data: Pairs, *, key: Any) -> Normalized:
        """A module `[inputs, *grid] -> [outputs, *grid]`. Raises `InputError` if it diverges."""
        start, order = jax.random.split(key)
        check_data(data)
        return train(
            self.untrained(data, start),
            data,
            steps=self.steps,
            batch=self.batch,
            learning_rate=self.learning_rate,
            schedule=self.schedule,
            weight_decay=self.weight_decay,
            loss=self.loss,
            dispatch="steps",
            key=order,
        ).model


def parameter_count(model: Any) -> int:
    """How many numbers training moves; a complex one counts twice."""
    leaves = jax.tree.leaves(eqx.filter(model, trainable(model)))
    return sum(leaf.size * (2 if jnp.iscomplexobj(leaf) else 1) for leaf in leaves)
