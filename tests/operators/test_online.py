"""Buffers keep their laws, and streams of live solvers train as stored sets do."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nearly.core import catalogue
from nearly.core.compare import compare
from nearly.core.errors import InputError
from nearly.operators.online import Buffered, FixedSet, Fresh, LiveStream, solve
from nearly.operators.problems.online import HeatPlate, heat_plate
from nearly.operators.reservoir import FIFO, FIRO, Buffer, Policy, Reservoir
from nearly.training import fit

POLICIES = (FIFO, FIRO, Reservoir)
ADAM = optax.adam(1e-2)


def numbered(first: int, count: int) -> Any:
    return jnp.arange(first, first + count, dtype=jnp.int32)


def filled(policy: Policy, count: int) -> Buffer:
    empty = policy.empty(jax.ShapeDtypeStruct((), jnp.int32))
    return policy.put(empty, numbered(0, count), key=jax.random.key(0))[0]


def held(buffer: Buffer) -> set[int]:
    return set(np.asarray(buffer.samples)[np.asarray(buffer.held)].tolist())


def seen(buffer: Buffer) -> set[int]:
    return set(np.asarray(buffer.samples)[np.asarray(buffer.seen)].tolist())


# ---- the laws of the buffers


@pytest.mark.parametrize("kind", POLICIES)
def test_unseen_samples_are_never_evicted(kind: type[Policy]) -> None:
    policy = kind(6)
    buffer, taken = policy.put(filled(policy, 4), numbered(4, 5), key=jax.random.key(1))
    assert int(taken) == 2  # the other three wait
    assert held(buffer) == {0, 1, 2, 3, 4, 5}
    buffer, taken = policy.put(buffer, numbered(6, 1), key=jax.random.key(2))
    assert int(taken) == 0
    assert held(buffer) == {0, 1, 2, 3, 4, 5}


@pytest.mark.parametrize("seed", range(5))
def test_an_arrival_evicts_a_seen_sample(seed: int) -> None:
    policy = Reservoir(8)
    keys = jax.random.split(jax.random.key(seed), 2)
    buffer, batch = policy.draw(filled(policy, 8), 3, key=keys[0])
    drawn = set(np.asarray(batch).tolist())
    assert seen(buffer) == drawn
    after, taken = policy.put(buffer, numbered(8, 8), key=keys[1])
    assert int(taken) == len(drawn)  # as many as had been seen, and no more
    assert held(after) == (set(range(8)) - drawn) | set(range(8, 8 + len(drawn)))
    assert seen(after) == set()


def test_the_evicted_sample_is_chosen_at_random() -> None:
    policy = Reservoir(8)
    buffer = filled(policy, 8)
    buffer = Buffer(
        buffer.samples, buffer.held, buffer.held, buffer.arrival, buffer.arrived, buffer.drawn
    )
    evicted = [
        (set(range(8)) - held(policy.put(buffer, numbered(8, 1), key=jax.random.key(k))[0])).pop()
        for k in range(64)
    ]
    counts = np.bincount(evicted, minlength=8)
    assert counts.min() >= 1 and counts.max() <= 24


def test_only_valid_arrivals_are_taken_in() -> None:
    policy = FIFO(8)
    valid = jnp.array([True, False, True, False])
    buffer, taken = policy.put(filled(policy, 1), numbered(10, 4), valid, key=jax.random.key(1))
    assert int(taken) == 2
    assert held(buffer) == {0, 10, 12}


def test_first_in_is_first_out() -> None:
    policy = FIFO(6)
    buffer = filled(policy, 6)
    order: list[int] = []
    for step in range(5):
        buffer, batch = policy.draw(buffer, 2, key=jax.random.key(step))
        order += np.asarray(batch).tolist()
        buffer, _ = policy.put(buffer, numbered(6 + 2 * step, 2), key=jax.random.key(step))
    assert order == list(range(10))


@pytest.mark.parametrize("kind", (FIFO, FIRO))
def test_without_a_reservoir_each_sample_is_drawn_once(kind: type[Policy]) -> None:
    policy = kind(12)
    buffer = filled(policy, 12)
    drawn: list[int] = []
    for step in range(3):
        buffer, batch = policy.draw(buffer, 4, key=jax.random.key(step))
        drawn += np.asarray(batch).tolist()
    assert sorted(drawn) == list(range(12))
    assert int(buffer.count) == 0


def test_random_out_is_not_first_out() -> None:
    policy = FIRO(12)
    firsts = {
        int(policy.draw(filled(policy, 12), 1, key=jax.random.key(k))[1][0]) for k in range(30)
    }
    assert len(firsts) > 6


def test_a_reservoir_draws_uniformly_from_seen_and_unseen() -> None:
    policy = Reservoir(10)
    buffer = filled(policy, 7)
    draw = jax.jit(lambda b, k: policy.draw(b, 50, key=k))
    counts = np.zeros(10)
    for step in range(40):
        buffer, batch = draw(buffer, jax.random.key(step))
        counts += np.bincount(np.asarray(batch), minlength=10)
    assert counts[7:].sum() == 0  # empty slots are never drawn
    np.testing.assert_allclose(counts[:7] / counts.sum(), 1 / 7, atol=0.04)
    assert int(buffer.count) == 7
    assert int(buffer.drawn) == 2000


def test_batches_wait_for_the_threshold_until_the_solvers_have_ended() -> None:
    for policy, least in ((Reservoir(10, 5), 5), (FIRO(10, 5), 5), (FIFO(10, 2), 4)):
        for count in range(1, 10):
            buffer = filled(policy, count)
            assert bool(policy.ready(buffer, 4, ended=False)) == (count >= least)
            assert bool(policy.ready(buffer, 4, ended=True))
    assert not bool(policy.ready(filled(policy, 0), 4, ended=True))


@pytest.mark.parametrize("kind", POLICIES)
def test_a_buffer_drains_once_the_solvers_have_ended(kind: type[Policy]) -> None:
    policy = kind(16)
    buffer = filled(policy, 10)
    drawn: list[list[int]] = []
    while bool(policy.ready(buffer, 4, ended=True)):
        buffer, batch = policy.draw(buffer, 4, True, key=jax.random.key(len(drawn)))
        drawn.append(np.asarray(batch).tolist())
    assert len(drawn) == 3
    assert sorted(drawn[0] + drawn[1] + drawn[2][:2]) == list(range(10))
    assert drawn[2][2:] == drawn[2][:2]  # a short batch is filled by drawing again
    assert int(buffer.count) == 0


# ---- streams


def squares(key: Any) -> Any:
    """Three frames of (x + frame, its square)."""
    x = jax.random.uniform(key, (), jnp.float32) + jnp.arange(3, dtype=jnp.float32)
    return x, x**2


def frames(key: Any) -> Any:
    """What tells a run and its frame: the run's number in hundreds, and the frame."""
    run = jax.random.uniform(key, (), jnp.float32)
    return jnp.stack([run, run + 1, run + 2])


def loss(model: Any, batch: Any, key: Any) -> Any:
    x, y = batch
    return jnp.mean((model[0] + model[1] * x + model[2] * x**2 - y) ** 2)


def trained(source: Any, steps: int = 40) -> Any:
    model = jnp.zeros(3, jnp.float32)
    feed = source(squares, loss, batch=6, key=jax.random.key(1))
    return fit(loss, model, optimizer=ADAM, steps=steps, key=jax.random.key(2), **feed)


@pytest.mark.parametrize("name", catalogue.methods("sample-sources"))
def test_every_catalogued_source_trains(name: str) -> None:
    source, _ = catalogue.method(name, "sample-sources")
    run = trained(source)
    assert run.status == "done"
    assert run.losses[-5:].mean() < 0.7 * run.losses[:5].mean()
    assert source.runs(squares, run) > 0


def test_solver_runs_are_counted() -> None:
    # 12 and 6 samples of 3 frames; a batch of 6 frames takes two runs, 40 times.
    assert FixedSet(12, 6).runs(squares, None) == 6
    assert Fresh().runs(squares, trained(Fresh())) == 80
    # Four runs give 12 samples, two batches of 6: a round every other step.
    fifo = Buffered(FIFO(64), solvers=4, every=2)
    assert fifo.runs(squares, trained(fifo)) == 80
    # A reservoir sees samples again, and so needs no more than its rounds.
    rare = Buffered(Reservoir(64, 16), solvers=4, every=10)
    assert rare.runs(squares, trained(rare)) == 4 * (40 // 10) + 4  # 4 more for the threshold


def test_frames_arrive_time_by_time() -> None:
    stream = LiveStream(frames, FIFO(32), batch=4, runs=4)
    state = stream.initial(jax.random.key(0))
    for time in range(3):
        state, batch = stream.draw(state, jax.random.key(time))
        np.testing.assert_array_equal(np.floor(np.asarray(batch)), time)


def test_a_stream_repeats_nothing_and_misses_nothing() -> None:
    # Through a FIFO of few slots, in odd batches, every frame of every run comes out in order.
    stream = LiveStream(frames, FIFO(32), batch=5, runs=4)
    draw = jax.jit(stream.draw)
    state = stream.initial(jax.random.key(0))
    out: list[float] = []
    for step in range(12):
        state, batch = draw(state, jax.random.key(step))
        out += np.asarray(batch).tolist()
    keys = [jax.random.fold_in(jax.random.key(0), i) for i in range(int(state.runs))]
    expected = [
        float(frames(key)[time])
        for first in range(0, len(keys), 4)
        for time in range(3)
        for key in keys[first : first + 4]
    ]
    np.testing.assert_allclose(out, expected[: len(out)], rtol=1e-6)


def test_a_full_reservoir_of_unseen_samples_puts_the_next_round_off() -> None:
    stream = LiveStream(frames, Reservoir(32), batch=1, runs=8)  # 24 arrive, 1 is drawn
    state = stream.initial(jax.random.key(0))
    for step in range(10):
        state, _ = stream.draw(state, jax.random.key(step))
        assert int(state.buffer.arrived) == 3 * int(state.runs)  # what was solved was taken in
    assert int(state.runs) == 8


def test_sample_i_depends_on_its_key_alone() -> None:
    few, many = solve(frames, 6, jax.random.key(4)), solve(frames, 12, jax.random.key(4))
    np.testing.assert_array_equal(few, many[:6])


def test_live_training_is_repeated_to_the_bit() -> None:
    source = Buffered(Reservoir(64, 16), solvers=4)
    np.testing.assert_array_equal(trained(source).losses, trained(source).losses)


def test_errors_name_the_value_and_the_remedy() -> None:
    with pytest.raises(InputError, match="threshold=9 must lie between 1 and capacity=8"):
        Reservoir(8, 9)
    with pytest.raises(InputError, match=r"capacity=8 cannot hold .* give at least 18"):
        LiveStream(squares, FIFO(8), batch=6, runs=4).initial(jax.random.key(0))
    with pytest.raises(InputError, match="batch=7 is no whole number of runs of 3 frames"):
        Fresh()(squares, loss, batch=7, key=jax.random.key(0))
    with pytest.raises(InputError, match="share their first axis"):
        solve(lambda key: jnp.zeros(()), 3, jax.random.key(0))
    with pytest.raises(InputError, match="every=0 must be at least 1"):
        LiveStream(squares, FIFO(64), every=0)


def test_a_comparison_shows_solver_runs_beside_errors() -> None:
    problem = heat_plate(points=3, frames=4, width=8, batch=8, tests=8, steps=8)
    methods = {"stored": FixedSet(16, 8, every=4), "fresh": Fresh()}
    frontier = compare(problem, methods, dials=[8], seeds=(0,), timed=False)
    runs = {run.method: run.work["solver runs"] for run in frontier.runs}
    assert runs == {"stored": 6, "fresh": 16}


def test_the_plate_warms_as_heat_does() -> None:
    # All edges at 0: the slowest mode decays by exp(-2 pi^2 t); all at 1 with 1 inside: nothing.
    plate, times = HeatPlate(points=23), jnp.array([0.2, 0.3])
    cooled = plate.fields(jnp.array([1.0, 0, 0, 0, 0]), times)
    np.testing.assert_allclose(cooled[1] / cooled[0], np.exp(-2 * np.pi**2 * 0.1), rtol=5e-3)
    constant = plate.fields(jnp.ones(5), times)
    np.testing.assert_allclose(constant, 1, atol=1e-4)
    # An edge's temperature is nearly met next to it, and the edges are told apart.
    left = plate.fields(jnp.array([0.0, 1, 0, 0, 0]), jnp.array([5.0]))[0]
    assert left[0].mean() > 0.8 and left[-1].mean() < 0.05
    np.testing.assert_allclose(left, left[:, ::-1], atol=1e-4)
