"""What every method of the protocols `solution-maps` and `solution-steppers` must do: one suite."""

import dataclasses
from functools import cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nearly.core import catalogue
from nearly.core.errors import InputError
from nearly.operators import families
from nearly.operators.baselines import CoarseSolver
from nearly.operators.data import Grid, Pairs, Trajectories
from nearly.operators.persistence import load, save
from nearly.operators.training import parameter_count

POINTS, SAMPLES = 16, 3
SETTINGS = {"steps": 1, "batch": 2, "depths": (1,), "heads": (1,), "skips": (1,)}
KEY = jax.random.key(0)


def learned(protocol: str) -> list[str]:
    lines = catalogue.methods(protocol)
    return [n for n in lines if not isinstance(catalogue.method(n, protocol)[0], CoarseSolver)]


def brief(name: str, protocol: str) -> Any:
    """The catalogued builder, with as little training as it can be told to do."""
    builder = catalogue.method(name, protocol)[0]
    if not dataclasses.is_dataclass(builder):
        return builder
    known = {f.name: getattr(builder, f.name) for f in dataclasses.fields(builder)}
    alike = {n: v for n, v in SETTINGS.items() if type(known.get(n)) is type(v)}
    return dataclasses.replace(builder, **alike)


def smooth(shape: tuple[int, ...], dims: int) -> np.ndarray:
    """Random fields of a few waves, `[*shape, POINTS, ...]`."""
    rng = np.random.default_rng(1)
    x = 2 * np.pi * np.arange(POINTS) / POINTS
    field = np.zeros((*shape, *(POINTS,) * dims), np.float32)
    for waves in range(1, 4):
        wave = np.sin(waves * x) if dims == 1 else np.sin(waves * x)[:, None] * np.cos(x)
        field += (rng.standard_normal(shape)[(..., *(None,) * dims)] * wave / waves).astype("f4")
    return field


def pairs() -> Pairs:
    inputs = smooth((SAMPLES, 1), 2)
    outputs = np.tanh(inputs) + 0.1
    grid = Grid((1.0, 1.0), periodic=False)
    return Pairs(inputs, outputs, np.zeros((SAMPLES, 0), np.float32), grid)


def trajectories(dims: int = 1) -> Trajectories:
    start = smooth((SAMPLES, 1, 1), dims)
    states = np.concatenate([start * 0.9**i for i in range(4)], 1)
    grid = Grid((1.0,) * dims, periodic=True)
    parameters = np.array([[0.1], [0.2], [0.3]], np.float32)
    return Trajectories(states, parameters, grid, 0.1, Decay())


class Decay(eqx.Module):
    """The equation of these trajectories, for the methods that are taught by it."""

    dt: float = 0.1

    def evolve(self, state: Any, parameters: Any, frames: int) -> Any:
        factors = 0.9 ** (self.dt / 0.1 * jnp.arange(1, frames + 1))
        return factors.reshape(-1, *(1,) * state.ndim) * state


def dimensions(name: str) -> int:
    """In how many dimensions a stepper is tried: one, unless it says that it needs more."""
    return getattr(catalogue.method(name, "solution-steppers")[0], "dims", 1)


def spoiled(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flat[0] = np.nan
    return array


# Modules are arguments of what is compiled: as constants XLA folds them, some for minutes.
def over_batch(module: Any, fields: Any) -> Any:
    return jax.vmap(module)(fields)


def stepped(module: Any, states: Any, parameters: Any, keys: Any) -> Any:
    return jax.vmap(lambda s, p, k: module(s, p, key=k))(states, parameters, keys)


@cache
def made(name: str, protocol: str) -> Any:
    """A method's module, built once."""
    data = pairs() if protocol == "solution-maps" else trajectories(dimensions(name))
    return brief(name, protocol)(data, key=KEY)


@pytest.mark.parametrize("name", learned("solution-maps"))
def test_a_map_takes_a_field_and_is_saved_and_loaded(name: str, tmp_path: Any) -> None:
    data, module = pairs(), made(name, "solution-maps")
    batch = eqx.filter_jit(over_batch)(module, jnp.asarray(data.inputs))
    assert batch.shape == data.outputs.shape and batch.dtype == jnp.float32
    assert np.isfinite(batch).all()
    assert parameter_count(module) > 0
    again = load(save(tmp_path / "model.npz", module))
    assert eqx.tree_equal(again, module)


@pytest.mark.parametrize("name", learned("solution-maps"))
def test_a_map_refuses_another_number_of_channels(name: str) -> None:
    wrong = jax.ShapeDtypeStruct((3, POINTS, POINTS), jnp.float32)
    with pytest.raises(InputError, match=r"channel|shape"):
        eqx.filter_eval_shape(made(name, "solution-maps"), wrong)


@pytest.mark.parametrize("name", learned("solution-maps"))
def test_a_map_refuses_data_that_are_not_finite(name: str) -> None:
    data = dataclasses.replace(pairs(), inputs=spoiled(pairs().inputs))
    with pytest.raises(InputError, match="inputs of sample 0 are not finite"):
        brief(name, "solution-maps")(data, key=KEY)


@pytest.mark.parametrize("name", learned("solution-steppers"))
def test_a_stepper_steps_and_is_saved_and_loaded(name: str, tmp_path: Any) -> None:
    data, module = trajectories(dimensions(name)), made(name, "solution-steppers")
    keys = jnp.stack([KEY] * SAMPLES)
    inputs = jnp.asarray(data.states[:, 0]), jnp.asarray(data.parameters), keys
    batch = eqx.filter_jit(stepped)(module, *inputs)
    assert batch.shape == data.states[:, 0].shape and batch.dtype == jnp.float32
    assert np.isfinite(batch).all()
    again = load(save(tmp_path / "model.npz", module))
    assert eqx.tree_equal(again, module)


@pytest.mark.parametrize("name", [n for n in learned("solution-steppers") if n != "persistence"])
def test_a_stepper_refuses_data_that_are_not_finite(name: str) -> None:
    whole = trajectories(dimensions(name))
    data = dataclasses.replace(whole, states=spoiled(whole.states))
    with pytest.raises(InputError, match="not finite"):
        brief(name, "solution-steppers")(data, key=KEY)


def test_the_coarse_solver_at_the_full_resolution_is_the_solver() -> None:
    family = families.burgers(reference=64)
    solver = catalogue.method("coarse-solver", "solution-maps")[0]
    data = family.pairs(KEY, 2, 64)
    field, parameters = jnp.asarray(data.inputs[0]), jnp.asarray(data.parameters[0])
    np.testing.assert_allclose(solver.at(family, 64)(field, parameters), data.outputs[0], atol=1e-5)
