"""Pairs of snapshots, the loss of channel groups, rates by groups of weights, the two builders."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nearly.core.errors import InputError
from nearly.operators.data import Grid, Pairs, Trajectories
from nearly.operators.transfer import (
    GroupedL1,
    ScOTMap,
    ScOTStepper,
    SnapshotPairs,
    all_to_all,
    consecutive,
    from_start,
    grouped_adamw,
    lead_time_operator,
    parameter_groups,
    standardised,
    train_on_snapshots,
    with_constants,
)
from nearly.operators.transformer import ScOT, scot, with_new_channels

BOX = Grid((1.0, 1.0), periodic=True)
TINY = {"width": 4, "depths": (1,), "heads": (1,), "skips": (1,), "window": 2, "patch": 4}


@eqx.filter_jit
def tiny(inputs: int = 1, outputs: int = 1) -> ScOT:
    return scot(inputs, outputs, jax.random.key(0), **TINY)


def waves(count: int) -> np.ndarray:
    """Smooth fields of two random amplitudes, `[count, 1, 8, 8]`."""
    x = 2 * np.pi * np.arange(8) / 8
    first, second = np.random.default_rng(0).normal(size=(2, count, 1, 1))
    return (first * np.sin(x)[:, None] + second * np.cos(x))[:, None].astype(np.float32)


def decaying(count: int = 6, frames: int = 4, parameters: int = 0) -> Trajectories:
    """u' = -u from random fields, around 5: frame j is 5 + exp(-j / 4) times the first's rest."""
    fade = np.exp(-np.arange(frames) / 4).reshape(1, frames, 1, 1, 1)
    states = 5 + fade * waves(count)[:, None]
    numbers = np.arange(count * parameters, dtype=np.float32).reshape(count, parameters)
    return Trajectories(states.astype(np.float32), numbers, BOX, 0.5)


def test_pairs() -> None:
    assert {tuple(p) for p in all_to_all(3).tolist()} == {
        (0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2),
    }  # fmt: skip
    assert from_start(4).tolist() == [[0, 1], [0, 2], [0, 3]]
    assert consecutive(4).tolist() == [[0, 1], [1, 2], [2, 3]]
    assert len(all_to_all(11)) == 66  # as the paper counts its 11 snapshots


def test_batches_hold_what_their_lead_times_say() -> None:
    """A state that says its own number of sample and frame shows which pair was drawn."""
    samples, frames = np.meshgrid(np.arange(5), np.arange(4), indexing="ij")
    states = np.broadcast_to(
        (10.0 * samples + frames)[:, :, None, None, None], (5, 4, 1, 2, 2)
    ).astype(np.float32)
    extra = jnp.arange(5.0)[:, None]
    stream = SnapshotPairs(jnp.asarray(states), extra, jnp.asarray(all_to_all(4)), 400)
    inputs, lead_times, targets = stream(jax.random.key(0))
    first, last = np.asarray(inputs[:, 0, 0, 0]), np.asarray(targets[:, 0, 0, 0])
    np.testing.assert_array_equal(first // 10, last // 10)
    np.testing.assert_allclose((last - first) / 3, lead_times, rtol=1e-6)
    np.testing.assert_array_equal(inputs[:, 1, 0, 0], first // 10)
    drawn, counts = np.unique(np.stack([first % 10, last % 10]), axis=1, return_counts=True)
    assert drawn.shape[1] == 10 and counts.min() > 400 / 10 / 2


def test_loss_weighs_groups_alike() -> None:
    target = jnp.asarray([[[2.0], [100.0], [300.0]]])
    prediction = target + jnp.asarray([[[1.0], [20.0], [0.0]]])
    # Group 1: 1 / 2; group 2: mean(20, 0) / mean(100, 300).
    loss = GroupedL1((1, 2)).between(prediction, target)
    assert float(loss) == pytest.approx((0.5 + 10 / 200) / 2)
    with pytest.raises(InputError, match=r"groups=\(1, 1\) must add up to the 3 channels"):
        GroupedL1((1, 1)).between(prediction, target)
    with pytest.raises(InputError, match=r"groups=\(\)"):
        GroupedL1(())


def test_groups_of_weights() -> None:
    groups = parameter_groups(eqx.filter(tiny(), eqx.is_inexact_array))
    assert groups.embedding.weight == groups.recovery.bias == groups.mixing.weight == "embedding"
    assert groups.embedding_norm.scale == "embedding"
    block = groups.encoder[0][0]
    assert block.attention_norm.scale_slope == block.mlp_norm.shift == "time"
    assert block.attention.query.weight == groups.skips[0][0].depthwise.weight == "backbone"
    assert block.attention.query.bias == block.attention.log_sharpness == "backbone-vectors"


def test_each_group_moves_at_its_rate() -> None:
    """The first step of Adam is the learning rate, whatever the gradient."""
    weights = eqx.filter(tiny(), eqx.is_inexact_array)
    optimizer = grouped_adamw(100, backbone=1e-3, embedding=2e-3, time=3e-3, weight_decay=0.0)
    gradient = jax.tree.map(jnp.ones_like, weights)
    step = jax.jit(lambda w, g: optimizer.update(g, optimizer.init(w), w)[0])(weights, gradient)
    rates = {"backbone": 1e-3, "backbone-vectors": 1e-3, "embedding": 2e-3, "time": 3e-3}
    for moved, group in zip(
        jax.tree.leaves(step), jax.tree.leaves(parameter_groups(weights)), strict=True
    ):
        np.testing.assert_allclose(moved, -rates[group], rtol=1e-3)
    with pytest.raises(InputError, match="clip positive"):
        grouped_adamw(10, clip=0.0)


def test_only_matrices_decay() -> None:
    weights = jax.tree.map(jnp.ones_like, eqx.filter(tiny(), eqx.is_inexact_array))
    optimizer = grouped_adamw(10, backbone=1.0, embedding=1.0, time=1.0, weight_decay=0.5)
    nothing = jax.tree.map(jnp.zeros_like, weights)
    step, _ = optimizer.update(nothing, optimizer.init(weights), weights)
    block = step.encoder[0][0]
    np.testing.assert_allclose(block.attention.query.weight, -0.5)
    np.testing.assert_allclose(block.attention.query.bias, 0.0)
    np.testing.assert_allclose(block.mlp_norm.scale, 0.0)


def test_new_channels_keep_the_backbone() -> None:
    old = tiny()
    new = with_new_channels(old, 3, 2, jax.random.key(1))
    assert jax.eval_shape(new, jnp.zeros((3, 8, 8))).shape == (2, 8, 8)
    same = jax.tree.map(
        lambda a, b: bool(jnp.array_equal(a, b)),
        eqx.filter((old.encoder, old.skips, old.decoder), eqx.is_array),
        eqx.filter((new.encoder, new.skips, new.decoder), eqx.is_array),
    )
    assert all(jax.tree.leaves(same))


def test_standardised() -> None:
    states, extra = standardised(decaying(parameters=1))
    assert float(states.mean()) == pytest.approx(0, abs=1e-5)
    assert float(states.std()) == pytest.approx(1, rel=1e-4)
    assert float(extra.std()) == pytest.approx(1, rel=1e-4)


def test_constants_are_channels() -> None:
    made = with_constants(jnp.zeros((1, 2, 3)), jnp.asarray([4.0, 5.0]))
    np.testing.assert_array_equal(made.max((1, 2)), [0, 4, 5])
    np.testing.assert_array_equal(made.min((1, 2)), [0, 4, 5])


def test_stepper_learns_and_knows_its_units() -> None:
    """u' = -u pointwise: after training the jump to any time beats standing still."""
    data = decaying(parameters=1)
    builder = ScOTStepper(**TINY, steps=300, batch=16, learning_rate=1e-2)
    stepper = builder(data, key=jax.random.key(1))
    state, later = data.states[0, 0], data.states[0, 3]
    call = eqx.filter_jit(lambda s, x, t, p: s.after(x, t, p))
    jumped = call(stepper, jnp.asarray(state), 1.5, jnp.asarray(data.parameters[0]))
    assert np.abs(jumped - later).mean() < 0.5 * np.abs(state - later).mean()
    once = call(stepper, jnp.asarray(state), 0.5, jnp.asarray(data.parameters[0]))
    stepped = eqx.filter_jit(stepper)(jnp.asarray(state), jnp.asarray(data.parameters[0]))
    np.testing.assert_allclose(stepped, once, rtol=1e-5)
    fine = jax.eval_shape(stepper, jnp.zeros((1, 24, 24)), jnp.zeros(1))
    assert fine.shape == (1, 24, 24)


def test_map_learns() -> None:
    inputs = waves(16)
    data = Pairs(inputs, 3 + 2 * inputs, np.zeros((16, 0)), BOX)
    model = ScOTMap(**TINY, steps=300, batch=16, learning_rate=1e-2)(data, key=jax.random.key(1))
    found = eqx.filter_jit(lambda m, x: jax.vmap(m)(x))(model, jnp.asarray(inputs))
    assert np.abs(found - data.outputs).mean() < 0.3 * np.abs(data.outputs - 3).mean()


def test_resolution_is_that_of_training() -> None:
    """A field the coarse grid resolves gives the same answer at twice the resolution."""
    points = np.arange(16) / 16
    wave = np.sin(2 * np.pi * points)[:, None] * np.cos(2 * np.pi * points)[None]
    model = lead_time_operator(tiny(), decaying())
    fine = eqx.filter_jit(model)(jnp.asarray(5 + wave[None], jnp.float32))
    coarse = eqx.filter_jit(model)(jnp.asarray(5 + wave[None, ::2, ::2], jnp.float32))
    np.testing.assert_allclose(fine[:, ::2, ::2], coarse, rtol=1e-3, atol=1e-3)


def test_errors_name_the_value_and_the_remedy() -> None:
    optimizer = optax.sgd(1e-3)
    options = {"optimizer": optimizer, "steps": 1, "batch": 2, "key": jax.random.key(0)}
    with pytest.raises(InputError, match="frames, channels and parameters of the sets differ"):
        train_on_snapshots(tiny(), [decaying(), decaying(frames=3)], **options)
    bad = decaying()
    bad.states[2, 0, 0, 0, 0] = np.nan
    with pytest.raises(InputError, match="sample 2 are not finite"):
        train_on_snapshots(tiny(), bad, **options)
    line = Trajectories(
        np.zeros((2, 3, 1, 8), np.float32), np.zeros((2, 0)), Grid((1.0,), True), 1.0
    )
    with pytest.raises(InputError, match="not in 1 dimension"):
        ScOTStepper()(line, key=jax.random.key(0))
    diverging = {**options, "optimizer": optax.sgd(1e30), "steps": 5}
    with pytest.raises(InputError, match="training diverged"):
        train_on_snapshots(tiny(), decaying(), **diverging)
