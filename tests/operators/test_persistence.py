"""Models as files."""

from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nearly.core.errors import InputError, StoreError
from nearly.operators.baselines import CoarseSolver, LinearMap, ResidualStepper
from nearly.operators.families import burgers
from nearly.operators.persistence import (
    export_model,
    load,
    load_exported,
    read_about,
    save,
)
from nearly.operators.training import Normalized

KEY = jax.random.key(0)


class Mixed(eqx.Module):
    """One of everything that can be saved."""

    complex_weight: jax.Array
    brain: jax.Array
    host: np.ndarray
    parts: tuple[Any, ...]
    table: dict[str, Any]
    activation: Any
    rate: float
    nothing: None = None


def network() -> Normalized:
    inside = eqx.nn.Sequential(
        [
            eqx.nn.Conv1d(2, 4, 3, padding=1, padding_mode="CIRCULAR", key=KEY),
            eqx.nn.Lambda(jax.nn.gelu),
            eqx.nn.GroupNorm(2, 4),
            eqx.nn.Conv1d(4, 1, 1, key=KEY),
        ]
    )
    one, two = np.ones(1, np.float32), np.full(2, 0.5, np.float32)
    return Normalized(inside, two, two, one, one)


def test_a_model_comes_back_as_it_was(tmp_path: Path) -> None:
    model = network()
    path = save(tmp_path / "model.npz", model, about={"error": 0.01, "settings": [1, 2]})
    again = load(path)
    assert eqx.tree_equal(again, model)
    assert isinstance(again.input_mean, np.ndarray)
    field = jnp.ones((2, 8), jnp.float32)
    np.testing.assert_array_equal(again(field), model(field))
    assert read_about(path) == {"error": 0.01, "settings": [1, 2]}


def test_every_kind_of_part_is_kept(tmp_path: Path) -> None:
    model = Mixed(
        jnp.asarray([1 + 2j], jnp.complex64),
        jnp.asarray([1.5], jnp.bfloat16),
        np.arange(3),
        (1, "two", None, [True, 0.1]),
        {"a": jnp.ones(2, jnp.float32)},
        jnp.tanh,
        0.1,
    )
    again = load(save(tmp_path / "model.npz", model), trusted=[__name__.partition(".")[0]])
    assert eqx.tree_equal(again, model)
    assert again.activation is jnp.tanh and again.rate == 0.1 and again.parts[3] == [True, 0.1]


def test_a_solver_is_a_model_too(tmp_path: Path) -> None:
    model = CoarseSolver().at(burgers(reference=32), 16)
    again = load(save(tmp_path / "model.npz", model))
    assert again == model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda x: x, "no place from which it can be loaded again"),
        (jax.random.key(0), "a random key cannot be saved"),
        (object(), "a object cannot be saved"),
    ],
)
def test_what_cannot_be_saved_says_so(model: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        save(tmp_path / "model.npz", model)
    assert not list(tmp_path.iterdir())


def test_files_that_are_no_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must end in \.npz"):
        save(tmp_path / "model.bin", network())
    with pytest.raises(InputError, match="there is no file"):
        load(tmp_path / "none.npz")
    rubbish = tmp_path / "rubbish.npz"
    rubbish.write_bytes(b"rubbish")
    with pytest.raises(InputError, match="is no saved model"):
        load(rubbish)
    with pytest.raises(StoreError, match="cannot write"):
        save(tmp_path / "nowhere" / "model.npz", network())


def test_only_trusted_packages_are_looked_up(tmp_path: Path) -> None:
    path = save(tmp_path / "model.npz", {"attack": __import__("shutil").rmtree})
    with pytest.raises(InputError, match="shutil:rmtree, of a package that is not trusted"):
        load(path)


def test_a_double_precision_model_needs_double_precision(tmp_path: Path) -> None:
    with jax.enable_x64(True):
        model = LinearMap(jnp.eye(2), jnp.eye(2), jnp.zeros(2), (1, 2), (1, 2))
        path = save(tmp_path / "model.npz", model)
        assert eqx.tree_equal(load(path), model)
    with pytest.raises(InputError, match=r"inside jax\.enable_x64"):
        load(path)


def test_an_exported_model_takes_batches_of_any_size(tmp_path: Path) -> None:
    model = network()
    fields = jax.random.normal(KEY, (5, 2, 8), jnp.float32)
    exported = load_exported(export_model(model, tmp_path / "function.npz", fields[0]))
    for size in (1, 5):
        expected = jax.vmap(model)(fields[:size])
        np.testing.assert_allclose(exported(fields[:size]), expected, atol=1e-6)


def test_an_exported_stepper_is_given_its_key_first(tmp_path: Path) -> None:
    stepper = ResidualStepper(eqx.nn.Conv1d(1, 1, 1, key=KEY), conditioned=False)
    states, nothing = jnp.ones((3, 1, 8), jnp.float32), jnp.zeros((3, 0), jnp.float32)
    step = partial(stepper, key=KEY)
    exported = load_exported(export_model(step, tmp_path / "step.npz", states[0], nothing[0]))
    np.testing.assert_allclose(exported(states, nothing), jax.vmap(step)(states, nothing))


def test_the_two_kinds_of_file_are_told_apart(tmp_path: Path) -> None:
    example = jnp.ones((2, 8), jnp.float32)
    function = export_model(network(), tmp_path / "function.npz", example)
    with pytest.raises(InputError, match="load_exported"):
        load(function)
    with pytest.raises(InputError, match="holds no exported function"):
        load_exported(save(tmp_path / "model.npz", network()))
