"""Families, their data sets, and fields at other resolutions."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nearly.core.errors import InputError
from nearly.operators import families
from nearly.operators.data import Grid, Pairs, check_data, resample

KEY = jax.random.key(7)
LINE, SQUARE = Grid((2.0,), periodic=True), Grid((1.0, 1.0), periodic=False)


def waves(points: int) -> np.ndarray:
    x = LINE.axis(points)
    return np.sin(np.pi * x) + 0.3 * np.cos(3 * np.pi * x) + 0.5


@pytest.mark.parametrize(("before", "after"), [(16, 64), (64, 16), (9, 30), (64, 24), (8, 16)])
def test_periodic_resampling_is_exact_on_shared_waves(before: int, after: int) -> None:
    with jax.enable_x64(True):
        made = resample(jnp.asarray(waves(before)), LINE, after)
        np.testing.assert_allclose(made, waves(after), atol=1e-14)


@pytest.mark.parametrize(("before", "after"), [(8, 32), (32, 8), (5, 7)])
def test_resampling_between_cell_centres_is_exact_on_cubics(before: int, after: int) -> None:
    def cubic(points: int) -> np.ndarray:
        x = SQUARE.axis(points)
        return (x**3)[:, None] * (1 - x**2)[None]

    with jax.enable_x64(True):
        made = resample(jnp.asarray(cubic(before))[None], SQUARE, after)
        np.testing.assert_allclose(made[0], cubic(after), atol=1e-13)


def test_resampling_names_the_least_number_of_points() -> None:
    with pytest.raises(InputError, match="resample 8 points to 3: at least 4"):
        resample(jnp.zeros((1, 8, 8)), SQUARE, 3)


SMALL = {
    "antiderivative": families.antiderivative(reference=32),
    "burgers": families.burgers(reference=32),
    "darcy": families.darcy(reference=16),
    "heat": families.heat(reference=32),
    "poisson": families.poisson(reference=16),
}


@pytest.mark.parametrize("name", SMALL)
def test_samples_depend_on_the_key_and_their_number_alone(name: str, fresh_store: Path) -> None:
    family = SMALL[name]
    points = family.reference // 2
    many, few = family.pairs(KEY, 5, points), family.pairs(KEY, 2, points)
    np.testing.assert_array_equal(many.inputs[:2], few.inputs)
    np.testing.assert_array_equal(many.outputs[:2], few.outputs)
    assert len(many) == 5 and many.inputs.shape[2:] == (points,) * family.grid.dims
    assert many.inputs.dtype == np.float32 and many.solve_seconds > 0
    other = family.pairs(jax.random.key(8), 2, points)
    assert np.abs(other.outputs - few.outputs).max() > 1e-4


def test_a_data_set_is_solved_for_once(fresh_store: Path, monkeypatch: Any) -> None:
    family = SMALL["heat"]
    first = family.pairs(KEY, 2, 16)
    assert len(list((fresh_store / "datasets").glob("*.npz"))) == 1
    monkeypatch.setattr("nearly.operators.family._solved", None)  # not to be called again
    again = family.pairs(KEY, 2, 16)
    np.testing.assert_array_equal(first.outputs, again.outputs)


def test_heat_is_what_the_decay_of_its_waves_says(fresh_store: Path) -> None:
    data = SMALL["heat"].pairs(KEY, 2, 32)
    decay = np.exp(-0.01 * (2 * np.pi * np.arange(17)) ** 2 * 0.5)
    expected = np.fft.irfft(np.fft.rfft(data.inputs) * decay)
    np.testing.assert_allclose(data.outputs, expected, atol=2e-6)


def test_the_antiderivative_has_the_function_as_its_derivative(fresh_store: Path) -> None:
    data = families.antiderivative(reference=256).pairs(KEY, 2, 128)
    middle = (data.inputs[..., 1:] + data.inputs[..., :-1]) / 2
    np.testing.assert_allclose(np.diff(data.outputs) * 128, middle, atol=5e-3)


def test_the_medium_of_darcy_flow_has_two_materials(fresh_store: Path) -> None:
    data = SMALL["darcy"].pairs(KEY, 3, 8)
    assert set(np.unique(data.inputs)) == {3.0, 12.0}
    assert (data.outputs > 0).all()  # the maximum principle


def test_helmholtz_solves_its_equation(fresh_store: Path) -> None:
    family = families.helmholtz(reference=64)
    with jax.enable_x64(True):
        medium = 0.1 * jnp.sin(jnp.pi * SQUARE.axis(64))[None, :, None] * jnp.ones((1, 64, 64))
        u = np.asarray(family.solve(medium, jnp.zeros(0)))[0]
    # Second differences at a point far from the source see the waves alone.
    around = u[50, 11] + u[52, 11] + u[51, 10] + u[51, 12] - 4 * u[51, 11]
    expected = -64 * (1 + float(medium[0, 51, 11])) * u[51, 11]
    assert around * 64**2 == pytest.approx(expected, rel=0.02)


def test_trajectories_begin_where_a_map_does_and_step_by_dt(fresh_store: Path) -> None:
    family = families.burgers(reference=32, frames=3)
    data, maps = family.trajectories(KEY, 2, 16, 4), family.pairs(KEY, 2, 16)
    assert data.states.shape == (2, 4, 1, 16) and data.dt == 0.1
    np.testing.assert_allclose(data.states[:, 0], maps.inputs, atol=1e-6)
    np.testing.assert_allclose(data.states[:, 3], maps.outputs, atol=1e-6)
    steps = data.steps()
    assert len(steps) == 6
    np.testing.assert_array_equal(steps.outputs[0], data.states[0, 1])


def test_each_sample_has_its_own_viscosity(fresh_store: Path) -> None:
    family = families.burgers((0.01, 1.0), reference=32)
    data = family.trajectories(KEY, 8, 16, 2)
    assert data.parameters.shape == (8, 1)
    assert (data.parameters >= 0.01).all() and (data.parameters <= 1).all()
    decay = np.linalg.norm(data.states[:, 1], axis=(1, 2)) / np.linalg.norm(
        data.states[:, 0], axis=(1, 2)
    )
    order = np.argsort(data.parameters[:, 0])
    assert decay[order[-1]] < decay[order[0]]


def test_the_reference_solver_knows_its_own_error(fresh_store: Path) -> None:
    assert SMALL["heat"].uncertainty(KEY, 16) < 1e-12  # exact
    rough, fine = (families.antiderivative(reference=n).uncertainty(KEY, 8) for n in (16, 64))
    assert 0 < fine < rough / 8  # second order


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: f.pairs(KEY, 0, 16), "count=0 must be at least 1"),
        (lambda f: f.pairs(KEY, 1, 64), "resolution=64 must lie between 2 and the reference's 32"),
        (lambda f: f.trajectories(KEY, 1, 16, 1), "frames=1 must be at least 2"),
        (lambda f: families.burgers(-1.0), "viscosity=-1.0 must be positive"),
        (lambda f: families.heat((1.0, 0.1)), r"diffusivity=\(1.0, 0.1\) must be positive"),
        (lambda f: families.darcy(low=20.0), "low=20.0 and high=12.0"),
        (lambda f: families.helmholtz(contrast=1.0), "contrast=1.0"),
    ],
)
def test_errors_name_the_value(call: Any, message: str, fresh_store: Path) -> None:
    with pytest.raises(InputError, match=message):
        call(SMALL["heat"])


def test_data_must_be_finite_and_complete() -> None:
    fields = np.ones((3, 1, 8), np.float32)
    bad = fields.copy()
    bad[1] = np.nan
    nothing = np.zeros((3, 0))
    with pytest.raises(InputError, match="the outputs of sample 1 are not finite"):
        check_data(Pairs(fields, bad, nothing, LINE))
    with pytest.raises(InputError, match="3 samples, but 2 outputs"):
        check_data(Pairs(fields, fields[:2], nothing, LINE))
