"""The training loop: exact repetition, resumption, and every way a run can end."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import TypeCheckError

from nearly.core.errors import InputError, Interrupted, StoreError, UnknownName
from nearly.training import Trained, fit, loop
from nearly.training.architectures import mlp

KEY = jax.random.key(0)
ADAM = optax.adam(1e-2)
DRAW = np.random.default_rng(0)
INPUTS = DRAW.normal(size=(50, 2)).astype(np.float32)
DATA = (INPUTS, np.sin(INPUTS.sum(1, keepdims=True)))
MODEL = mlp([2, 8, 1], jax.random.key(1))


def loss(model: Any, batch: Any, key: Any) -> Any:
    noise = 0.01 * jax.random.normal(key, batch[1].shape)
    return jnp.mean((jax.vmap(model)(batch[0]) - batch[1] + noise) ** 2)


def held_out(model: Any) -> Any:
    return jnp.mean((jax.vmap(model)(DATA[0]) - DATA[1]) ** 2)


def run(**changes: Any) -> Trained:
    settings: dict[str, Any] = {"optimizer": ADAM, "steps": 40, "key": KEY, "batch": 16}
    return fit(loss, MODEL, DATA, **{**settings, **changes})


def leaves(model: Any) -> list[np.ndarray]:
    return [np.asarray(x) for x in jax.tree.leaves(eqx.filter(model, eqx.is_array))]


def assert_same(a: Any, b: Any) -> None:
    for x, y in zip(leaves(a), leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_gradient_descent_on_a_quadratic_is_what_one_computes_by_hand() -> None:
    target = jnp.array([1.0, -2.0])
    got = fit(
        lambda p, b, key: 0.5 * jnp.sum((p - b[0]) ** 2),
        jnp.zeros(2),
        target[None],
        optimizer=optax.sgd(0.25),
        steps=10,
        key=KEY,
    )
    np.testing.assert_allclose(got.model, target * (1 - 0.75**10), rtol=1e-6)
    np.testing.assert_allclose(got.losses, 2.5 * 0.75 ** (2 * np.arange(10)), rtol=1e-5)
    assert (got.status, got.steps) == ("done", 10)


def test_the_same_key_repeats_the_run_whatever_the_chunks() -> None:
    whole, one_by_one = run(chunk=40), run(chunk=7)
    np.testing.assert_array_equal(whole.losses, one_by_one.losses)
    assert_same(whole.model, one_by_one.model)
    other = run(key=jax.random.key(1), chunk=40)
    assert np.any(other.losses != whole.losses)


def test_the_model_handed_in_stays_usable() -> None:
    before = leaves(MODEL)
    run()
    for x, y in zip(before, leaves(MODEL), strict=True):
        np.testing.assert_array_equal(x, y)


def test_every_epoch_sees_every_example_once() -> None:
    def seen(counts: Any, batch: Any, key: Any) -> Any:
        return jnp.sum(counts[batch])  # the gradient counts the examples

    rows = np.arange(12)
    got = fit(seen, jnp.zeros(12), rows, optimizer=optax.sgd(1.0), steps=9, key=KEY, batch=4)
    np.testing.assert_array_equal(got.model, -3.0 * np.ones(12))
    # An incomplete last batch is left out, another one in each epoch.
    got = fit(seen, jnp.zeros(12), rows, optimizer=optax.sgd(1.0), steps=400, key=KEY, batch=5)
    assert float(-got.model.sum()) == 2000
    assert np.all(np.abs(got.model + 2000 / 12) < 5 * np.sqrt(200 * 5 / 36))


def test_batches_from_a_generator() -> None:
    class Draws(eqx.Module):
        centre: jax.Array

        def __call__(self, key: Any) -> Any:
            return self.centre + jax.random.normal(key, (64,))

    got = fit(
        lambda p, b, key: jnp.mean((p - b) ** 2),
        jnp.zeros(()),
        Draws(jnp.asarray(3.0)),
        optimizer=optax.sgd(optax.linear_schedule(0.4, 0.0, 200)),
        steps=200,
        key=KEY,
    )
    assert abs(float(got.model) - 3) < 0.1


def test_the_moving_average_is_bias_corrected() -> None:
    # The gradient is constant, so the weights are -1, -2, -3 and the average a weighted mean.
    got = fit(
        lambda p, b, key: p,
        jnp.zeros(()),
        jnp.zeros(1),
        optimizer=optax.sgd(1.0),
        steps=3,
        key=KEY,
        ema=0.5,
    )
    assert float(got.last) == -3
    assert float(got.model) == pytest.approx(-(1 * 0.25 + 2 * 0.5 + 3 * 1) / 1.75)


def test_early_stopping_returns_the_best() -> None:
    # Downhill past zero: |p| is smallest after 5 steps, then grows.
    settings: dict[str, Any] = {"optimizer": optax.sgd(1.0), "steps": 50, "key": KEY, "every": 1}
    got = fit(
        lambda p, b, key: p, jnp.asarray(5.0), jnp.zeros(1), validate=abs, patience=3, **settings
    )
    assert (got.status, got.steps, got.best_step) == ("stopped", 8, 5)
    assert (float(got.model), float(got.last)) == (0.0, -3.0)
    assert got.validations[0] == 5 and got.validations[8] == 3


def test_a_loss_that_is_not_finite_ends_the_run_before_that_step() -> None:
    got = fit(
        lambda p, b, key: jnp.log(p),
        jnp.asarray(2.5),
        jnp.zeros(1),
        steps=50,
        key=KEY,
        optimizer=optax.chain(optax.normalize_by_update_norm(), optax.scale(-1.0)),
    )
    assert (got.status, got.steps) == ("diverged", 3)
    assert float(got.model) == pytest.approx(-0.5, abs=1e-4)
    assert len(got.losses) == 4 and np.isnan(got.losses[-1])
    assert "step 4" in got.reason


def test_frozen_leaves_stay() -> None:
    moves = jax.tree.map(lambda _: False, MODEL)
    moves = eqx.tree_at(lambda m: m.layers[-1].bias, moves, True)
    got = run(trainable=moves).model
    assert np.any(got.layers[-1].bias != MODEL.layers[-1].bias)
    np.testing.assert_array_equal(got.layers[0].weight, MODEL.layers[0].weight)
    np.testing.assert_array_equal(got.layers[-1].weight, MODEL.layers[-1].weight)


def test_optimizers_that_need_more_than_gradients() -> None:
    def quadratic(p: Any, b: Any, key: Any) -> Any:
        return jnp.sum(jnp.arange(1.0, 4.0) * (p - 1) ** 2)

    settings: dict[str, Any] = {"steps": 15, "key": KEY}
    got = fit(quadratic, jnp.zeros(3), jnp.zeros(1), optimizer=optax.lbfgs(), **settings)
    np.testing.assert_allclose(got.model, 1, atol=1e-5)
    polyak = optax.polyak_sgd(max_learning_rate=1.0)
    got = fit(quadratic, jnp.zeros(3), jnp.zeros(1), optimizer=polyak, **settings)
    assert got.losses[-1] < 1e-3 * got.losses[0]


def test_a_gradient_of_ones_own() -> None:
    def differences(objective: Any, weights: Any, *, key: Any, step: Any) -> Any:
        def slope(unit: Any) -> Any:
            return (objective(weights + 1e-2 * unit) - objective(weights - 1e-2 * unit)) / 2e-2

        return objective(weights), jax.vmap(slope)(jnp.eye(2))

    # The objective is one function of the weights: the same noise at both ends of a difference.
    def noisy(p: Any, b: Any, key: Any) -> Any:
        return jnp.sum(p**2) + 100 * jax.random.normal(key)

    got = fit(
        noisy,
        jnp.ones(2),
        jnp.zeros(1),
        optimizer=optax.sgd(0.25),
        steps=5,
        key=KEY,
        gradient=differences,
    )
    np.testing.assert_allclose(got.model, 0.5**5, rtol=2e-2)


def test_float64_stays_float64() -> None:
    with jax.enable_x64(True):
        model = mlp([2, 4, 1], jax.random.key(1), dtype=jnp.float64)
        got = fit(loss, model, DATA, optimizer=ADAM, steps=3, key=jax.random.key(0), ema=0.9)
        assert got.losses.dtype == np.float64
        assert {x.dtype for x in leaves(got.model)} == {np.dtype(np.float64)}


# ---- checkpoints and interruption


def interrupt_after(steps: int) -> Any:
    def progress(done: int, total: int, text: str) -> None:
        if done >= steps:
            raise KeyboardInterrupt

    return progress


NOISY = optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(9)), optax.adam(1e-2))
FULL: dict[str, Any] = {
    "optimizer": NOISY, "ema": 0.9, "validate": held_out, "every": 10, "chunk": 8,
}  # fmt: skip


def test_an_interrupted_run_goes_on_to_the_bit(tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    with pytest.raises(Interrupted, match=r"18 of 40 steps; the same call takes up") as met:
        run(**FULL, checkpoint=path, progress=interrupt_after(18))
    assert met.value.done.status == "interrupted" and len(met.value.done.losses) == 18
    resumed, whole = run(**FULL, checkpoint=path), run(**FULL)
    np.testing.assert_array_equal(resumed.losses, whole.losses)
    assert_same(resumed.model, whole.model)
    assert_same(resumed.last, whole.last)
    assert resumed.validations == whole.validations
    finished = run(**FULL, checkpoint=path, progress=interrupt_after(0))  # nothing left to do
    assert_same(finished.model, whole.model)


def test_a_killed_run_goes_on_from_its_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def die(done: int, total: int, text: str) -> None:
        if done >= 20:
            raise Killed

    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    path = tmp_path / "run.npz"
    with pytest.raises(Killed):
        run(**FULL, checkpoint=path, progress=die)
    with np.load(path) as file:
        assert len(file["losses"]) == 18
    np.testing.assert_array_equal(run(**FULL, checkpoint=path).losses, run(**FULL).losses)
    assert list(tmp_path.iterdir()) == [path]


def test_single_steps_are_those_of_the_chunks() -> None:
    """Up to rounding: each step is another program than a loop of them."""
    whole, single = run(chunk=40), run(dispatch="steps")
    assert single.steps == whole.steps
    np.testing.assert_allclose(single.losses, whole.losses, rtol=1e-4)
    with pytest.raises((UnknownName, TypeCheckError), match="dispatch"):
        run(dispatch="step")


def test_ctrl_c_is_honoured_between_chunks_and_the_handler_put_back() -> None:
    before = signal.getsignal(signal.SIGINT)

    def press(done: int, total: int, text: str) -> None:
        if done == 8:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted) as met:
        run(chunk=8, progress=press)
    assert met.value.done.steps == 8
    assert signal.getsignal(signal.SIGINT) is before


def test_another_runs_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    run(checkpoint=path, steps=2)
    with pytest.raises(InputError, match="written with another key: delete it"):
        run(checkpoint=path, key=jax.random.key(7))
    with pytest.raises(InputError, match="is of another run"):
        run(checkpoint=path, optimizer=optax.sgd(0.1))
    wider = mlp([2, 9, 1], jax.random.key(1))
    with pytest.raises(InputError, match=r"float32\[8, 2\] instead of float32\[9, 2\]"):
        fit(loss, wider, DATA, optimizer=ADAM, steps=2, key=KEY, batch=16, checkpoint=path)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match="is no checkpoint"):
        run(checkpoint=path)
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot write the checkpoint"):
        run(checkpoint=tmp_path / "file" / "run.npz", steps=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps=0 must be at least 1"),
        ({"batch": 51}, "batch=51 exceeds the 50 examples"),
        ({"ema": 1.0}, "ema=1.0 must lie between 0 and 1"),
        ({"key": np.zeros(2)}, r"jax\.random\.key\(seed\)"),
        ({"checkpoint": "run.pkl"}, "must be an .npz file"),
        ({"trainable": lambda leaf: False}, "nothing to train"),
    ],
)
def test_bad_arguments_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(**changes)


def test_bad_losses_and_data_are_named() -> None:
    with pytest.raises(InputError, match=r"one real number, not float32\[3\]"):
        fit(lambda p, b, key: p, jnp.zeros(3), jnp.zeros(1), optimizer=ADAM, steps=1, key=KEY)
    ragged = (np.zeros(3), np.zeros(4))
    with pytest.raises(InputError, match=r"share their first axis, not \[\(3,\), \(4,\)\]"):
        fit(loss, MODEL, ragged, optimizer=ADAM, steps=1, key=KEY)
