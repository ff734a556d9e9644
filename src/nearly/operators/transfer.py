"""Training on all pairs of snapshots, and fine-tuning from one equation to another (`poseidon`).

A trajectory of an autonomous equation holds more than its first state and what follows it: from
every snapshot the equation leads to every later one. `all_to_all` trains on all those pairs; the
pairs cost no further solve, and a comparison at equal data counts trajectories, not pairs.

Differences from the published training, and why:

- Pairs are drawn afresh at every step, uniformly with replacement, not run through in epochs.
- The i = j pairs (the identity at lead time 0) are among them, as published.
- What has one number per channel (biases, norms) is free of weight decay, as published; so are
  the sharpness of the attention and the scale of the skips.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from nearly.core.errors import InputError
from nearly.operators.data import Grid, Pairs, Trajectories, check_data, resample
from nearly.operators.training import Normalized, normalized, statistics
from nearly.operators.transformer import Boundary, LeadTimeNorm, ScOT, scot
from nearly.training.loop import fit

Indices = Int[np.ndarray, "pairs 2"]
PairChoice = Callable[[int], Indices]

TINY = 1e-10  # added to the norm of the target, as published


def all_to_all(frames: int) -> Indices:
    """Every pair (i, j) of snapshots with i <= j: frames (frames + 1) / 2 of them."""
    return np.stack(np.triu_indices(frames), -1)


def from_start(frames: int) -> Indices:
    """The pairs (0, j) with j >= 1: what a solution operator is usually trained on."""
    later = np.arange(1, frames)
    return np.stack([np.zeros_like(later), later], -1)


def consecutive(frames: int) -> Indices:
    """The pairs (i, i + 1): what a stepper of one fixed lead time is trained on."""
    first = np.arange(frames - 1)
    return np.stack([first, first + 1], -1)


class SnapshotPairs(eqx.Module):
    """Random batches of pairs of snapshots: a `data` of `nearly.training.fit`.

    **Arguments:**

    - `states`: `[samples, frames, channels, rows, columns]`, standardised.
    - `extra`: `[samples, more]`: numbers of the equation, fed as constant channels; may be empty.
    - `pairs`: which frames go together, of `all_to_all(frames)` and its like.
    - `batch`: pairs in a batch.

    Called with a key: the inputs `[batch, channels + more, rows, columns]`, the lead times
    `[batch]` in units of the whole trajectory, and the targets.
    """

    states: Float[Array, "samples frames channels rows columns"]
    extra: Float[Array, "samples more"]
    pairs: Int[Array, "pairs 2"]
    batch: int = eqx.field(static=True)

    def __call__(self, key: Any) -> tuple[Array, Array, Array]:
        samples, frames = self.states.shape[:2]
        first, second = jax.random.split(key)
        rows = jax.random.randint(first, (self.batch,), 0, samples)
        chosen = self.pairs[jax.random.randint(second, (self.batch,), 0, self.pairs.shape[0])]
        now, then = chosen[:, 0], chosen[:, 1]
        inputs = jax.vmap(with_constants)(self.states[rows, now], self.extra[rows])
        lead_times = (then - now).astype(inputs.dtype) / (frames - 1)
        return inputs, lead_times, self.states[rows, then]


def with_constants(
    field: Float[Array, " channels *grid"], numbers: Float[Array, " more"]
) -> Float[Array, " all *grid"]:
    """The field with each number as one more, constant, channel."""
    grid = field.shape[1:]
    spread = jnp.broadcast_to(
        numbers.astype(field.dtype).reshape(-1, *(1,) * len(grid)), (numbers.shape[0], *grid)
    )
    return jnp.concatenate([field, spread])


class GroupedL1(eqx.Module):
    """The L1 error of a batch over the L1 norm of its targets, averaged over groups of channels.

    **Arguments:**

    - `groups`: how many channels each group has, in their order: `(1, 2, 1)` for density, velocity
      and pressure.

    As published, a group's norm is that of the whole batch: a sample counts by its size.
    """

    groups: tuple[int, ...] = eqx.field(static=True)

    def __check_init__(self) -> None:
        if not self.groups or min(self.groups) < 1:
            raise InputError(f"groups={self.groups} must be the positive sizes of channel groups")

    def __call__(self, model: Any, batch: Any, key: Any) -> Float[Array, ""]:
        inputs, lead_times, targets = batch
        return self.between(jax.vmap(model)(inputs, lead_times), targets)

    def between(
        self,
        prediction: Float[Array, "batch channels *grid"],
        target: Float[Array, "batch channels *grid"],
    ) -> Float[Array, ""]:
        """The loss of predictions `[batch, channels, *grid]`; raises `InputError`."""
        channels = target.shape[1]
        if sum(self.groups) != channels:
            raise InputError(f"groups={self.groups} must add up to the {channels} channels")
        cuts = np.cumsum(self.groups)[:-1].tolist()
        each = [
            jnp.mean(jnp.abs(p - t)) / (jnp.mean(jnp.abs(t)) + TINY)
            for p, t in zip(jnp.split(prediction, cuts, 1), jnp.split(target, cuts, 1), strict=True)
        ]
        return jnp.mean(jnp.stack(each))


class AtResolution(eqx.Module):
    """A network of one resolution on fields of any: resampled to it and back, as published.

    Patches and windows are counted in points: on a finer grid they cover less of the box, and a
    transformer trained on another one is wrong there, without an error.
    """

    model: Normalized
    grid: Grid
    resolution: int = eqx.field(static=True)

    def __call__(self, field: Float[Array, " channels *grid"], *args: Any) -> Any:
        own = self.model(resample(field, self.grid, self.resolution), *args)
        return resample(own, self.grid, field.shape[-1])


class LeadTimeOperator(eqx.Module):
    """A trained operator transformer in the units of its data: a stepper, or a jump to any time.

    **Arguments:**

    - `model`: the network between the statistics of its channels, at its resolution.
    - `horizon`: the lead time that the network calls 1. `dt`: of one step.
    """

    model: AtResolution
    horizon: float = eqx.field(static=True)
    dt: float = eqx.field(static=True)

    def __call__(
        self,
        state: Float[Array, "channels rows columns"],
        parameters: Float[Array, " parameters"] | None = None,
        *,
        key: Any = None,
    ) -> Float[Array, "channels rows columns"]:
        """The state one `dt` later."""
        return self.after(state, self.dt, parameters)

    def after(
        self,
        state: Float[Array, "channels rows columns"],
        time: float | Float[Array, ""],
        parameters: Float[Array, " parameters"] | None = None,
    ) -> Float[Array, "channels rows columns"]:
        """The state after any `time`, in one call; trained on times up to the horizon."""
        numbers = jnp.zeros(0, state.dtype) if parameters is None else parameters
        return self.model(with_constants(state, jnp.asarray(numbers)), time / self.horizon)


# ---- learning rates by groups of weights


def parameter_groups(model: ScOT) -> Any:
    """For each weight which group it is fine-tuned in, a pytree of names as the model's.

    `embedding` (patch embedding, recovery, mixing), `time` (the norms), `backbone`, and
    `backbone-vectors`: its biases and the like, which do not decay.
    """

    def of(path: tuple[Any, ...], node: Any) -> Any:
        if isinstance(node, LeadTimeNorm):
            group = "embedding" if path[0].name == "embedding_norm" else "time"
            return jax.tree.map(lambda _: group, node)
        if path[0].name in ("embedding", "recovery", "mixing"):
            return "embedding"
        return "backbone" if node.ndim > 1 else "backbone-vectors"

    def is_norm(node: Any) -> bool:
        return isinstance(node, LeadTimeNorm)

    return jax.tree_util.tree_map_with_path(of, model, is_leaf=is_norm)


@lru_cache(32)  # an optimiser made anew would compile the training loop anew
def grouped_adamw(
    steps: int,
    *,
    backbone: float = 5e-5,
    embedding: float = 5e-4,
    time: float = 5e-4,
    weight_decay: float = 1e-6,
    clip: float = 5.0,
) -> optax.GradientTransformation:
    """AdamW with a rate for each group of a `ScOT`'s weights, cosine to 0, gradients clipped.

    The defaults are those published for fine-tuning: the pretrained backbone moves ten times
    slower than the patch embedding and recovery, which are new to the equation, and the norms that
    know the time.

    **Arguments:** `steps` in all; the peak rates; `clip`: the largest norm of the gradient.

    Raises `InputError` for a negative rate or decay, or a clip that is not positive.
    """
    if min(backbone, embedding, time, weight_decay) < 0 or clip <= 0:
        raise InputError("learning rates and weight_decay must not be negative, clip positive")

    def group(rate: float, decay: float = 0.0) -> optax.GradientTransformation:
        return optax.adamw(optax.cosine_decay_schedule(rate, steps), weight_decay=decay)

    each: dict[Hashable, optax.GradientTransformation] = {
        "backbone": group(backbone, weight_decay),
        "backbone-vectors": group(backbone),
        "embedding": group(embedding, weight_decay),
        "time": group(time),
    }
    return optax.chain(
        optax.clip_by_global_norm(clip), optax.multi_transform(each, parameter_groups)
    )


# ---- training


def standardised(data: Trajectories) -> tuple[Array, Array]:
    """The states and the parameters of trajectories, each channel with mean 0 and deviation 1."""
    mean, std = _statistics(data)
    channels = data.states.shape[2]
    shape = (1, 1, channels, 1, 1)
    states = (data.states - mean[:channels].reshape(shape)) / std[:channels].reshape(shape)
    extra = (data.parameters - mean[channels:]) / std[channels:]
    return jnp.asarray(states), jnp.asarray(extra, states.dtype)


def _statistics(data: Trajectories) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of the channels of the state, then of the parameters."""
    states, parameters = np.asarray(data.states), np.asarray(data.parameters)
    of_states = statistics(states.reshape(-1, *states.shape[2:]))
    of_parameters = statistics(parameters.astype(states.dtype))
    return (
        np.concatenate([of_states[0], of_parameters[0]]),
        np.concatenate([of_states[1], of_parameters[1]]),
    )


def train_on_snapshots(
    model: ScOT,
    data: Trajectories | Sequence[Trajectories],
    *,
    optimizer: optax.GradientTransformation,
    steps: int,
    batch: int,
    key: Any,
    choice: PairChoice = all_to_all,
    groups: tuple[int, ...] | None = None,
) -> ScOT:
    """The network trained on pairs of snapshots, of one equation or of several together.

    **Arguments:**

    - `model`: a fresh `scot`, or a pretrained one: then this is fine-tuning.
    - `data`: trajectories with equally many frames and channels. Each equation's channels are
      standardised by its own statistics, so that one network sees them alike.
    - `optimizer`: `grouped_adamw(steps)`, or any other of optax.
    - `choice`: which pairs: `all_to_all`, `from_start`, `consecutive`.
    - `groups`: sizes of the groups of channels of the loss; by default each channel is one.

    **Returns:** the network between standardised fields; `lead_time_operator` puts it in the units
    of an equation. Raises `InputError` for non-finite data, sets that do not go together, or
    training that diverged.
    """
    sets = [data] if isinstance(data, Trajectories) else list(data)
    shapes = {check_data(each).states.shape[1:3] + each.parameters.shape[1:] for each in sets}
    if len(shapes) != 1:
        raise InputError(
            f"frames, channels and parameters of the sets differ, {sorted(shapes)}: train on sets "
            "that agree, or fine-tune with with_new_channels"
        )
    states, extra = (jnp.concatenate(each) for each in zip(*map(standardised, sets), strict=True))
    _, frames, channels = states.shape[:3]
    trained = fit(
        GroupedL1(groups or (1,) * channels),
        model,
        SnapshotPairs(states, extra, jnp.asarray(choice(frames)), batch),
        optimizer=optimizer,
        steps=steps,
        key=key,
    )
    if trained.status == "diverged":
        raise InputError(f"training diverged: {trained.reason}; lower the learning rates")
    return trained.model


def lead_time_operator(model: ScOT, data: Trajectories) -> LeadTimeOperator:
    """A network of standardised fields in the units of the data it was trained on last."""
    mean, std = _statistics(data)
    channels = data.states.shape[2]
    inside = Normalized(model, mean, std, mean[:channels], std[:channels])
    horizon = data.dt * (data.states.shape[1] - 1)
    return LeadTimeOperator(
        AtResolution(inside, data.grid, data.states.shape[-1]), horizon, data.dt
    )


class ScOTSettings(eqx.Module):
    """What both builders share: the size of the network (see `scot`) and its training.

    **Arguments:** `steps`, `batch`, `learning_rate` (the same for all groups, cosine to 0),
    `weight_decay` and `clip` of `grouped_adamw`. The published pretraining takes 5e-4, 1e-6 and 5
    with batches of 640 for 40 epochs; steps, batch and width are scaled down to a CPU here.
    """

    width: int = 24
    depths: tuple[int, ...] = (2, 2)
    heads: tuple[int, ...] = (3, 6)
    skips: tuple[int, ...] = (1, 0)
    window: int = 4
    patch: int = 4
    boundary: Boundary = "zeros"
    steps: int = 300
    batch: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 1e-6
    clip: float = 5.0

    def network(self, inputs: int, outputs: int, grid: Grid, key: Any, dtype: Any) -> ScOT:
        """A fresh network; raises `InputError` unless the grid has two dimensions."""
        if grid.dims != 2:
            raise InputError(f"scOT takes fields on a plane, not in {grid.dims} dimension(s)")
        return scot(
            inputs,
            outputs,
            key,
            width=self.width,
            depths=self.depths,
            heads=self.heads,
            skips=self.skips,
            window=self.window,
            patch=self.patch,
            boundary=self.boundary,
            dtype=dtype,
        )

    def optimizer(self) -> optax.GradientTransformation:
        """One learning rate for all groups of weights."""
        rate = self.learning_rate
        return grouped_adamw(
            self.steps,
            backbone=rate,
            embedding=rate,
            time=rate,
            weight_decay=self.weight_decay,
            clip=self.clip,
        )


class ScOTStepper(ScOTSettings):
    """Builds a stepper: the operator transformer, trained on pairs of snapshots of trajectories.

    **Arguments:** `choice`: of the pairs; the rest of `ScOTSettings`.

    What it returns steps by the trajectories' `dt`, and jumps to other times by `after`.
    """

    choice: PairChoice = all_to_all
    dims: ClassVar[int] = 2

    def __call__(self, data: Trajectories, *, key: Any) -> LeadTimeOperator:
        """Trains on the trajectories; raises `InputError` (see `train_on_snapshots`)."""
        first, second = jax.random.split(key)
        channels, parameters = check_data(data).states.shape[2], data.parameters.shape[1]
        dtype = data.states.dtype
        model = self.network(channels + parameters, channels, data.grid, first, dtype)
        trained = train_on_snapshots(
            model,
            data,
            optimizer=self.optimizer(),
            steps=self.steps,
            batch=self.batch,
            key=second,
            choice=self.choice,
        )
        return lead_time_operator(trained, data)


class ScOTMap(ScOTSettings):
    """Builds a solution map: the operator transformer at lead time 1, as published for steady ones.

    The loss is that of training on snapshots, one group of channels each.
    """

    def __call__(self, data: Pairs, *, key: Any) -> AtResolution:
        """Trains on the pairs; raises `InputError` for non-finite data or if training diverged."""
        first, second = jax.random.split(key)
        inputs, outputs = check_data(data).inputs.shape[1], data.outputs.shape[1]
        model = self.network(inputs, outputs, data.grid, first, data.inputs.dtype)
        made = normalized(model, data)
        rows = (
            _standard(data.inputs),
            jnp.ones(len(data), data.inputs.dtype),
            _standard(data.outputs),
        )
        trained = fit(
            GroupedL1((1,) * outputs),
            model,
            rows,
            optimizer=self.optimizer(),
            steps=self.steps,
            batch=min(self.batch, len(data)),
            key=second,
        )
        if trained.status == "diverged":
            raise InputError(f"training diverged: {trained.reason}; lower learning_rate")
        inside = eqx.tree_at(lambda m: m.model, made, trained.model)
        return AtResolution(inside, data.grid, data.inputs.shape[-1])


def _standard(fields: Any) -> Array:
    mean, std = (x.reshape(-1, *(1,) * (fields.ndim - 2)) for x in statistics(fields))
    return jnp.asarray((fields - mean) / std)


# What the catalogue names.
scot_map = ScOTMap()
scot_stepper = ScOTStepper()
