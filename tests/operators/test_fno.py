"""Spectral convolutions and Fourier neural operators: exactness, invariances, errors."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nearly.core.errors import InputError
from nearly.operators.data import Grid, Pairs, Trajectories
from nearly.operators.fno import SpaceTime, TrainedFNO, TrainedFNOStepper, fno
from nearly.operators.spectral import (
    SpectralConvolution,
    analyse,
    available_modes,
    dense_is_cheaper,
    kept_shape,
    spectral_convolution,
    synthesise,
)

KEY = jax.random.key(0)
CASES = [  # grids, and modes up to the last there is
    ((16,), (9,)),
    ((15,), (5,)),
    ((8, 12), (4, 7)),
    ((7, 9), (2, 5)),
    ((6, 4, 10), (3, 2, 5)),
]


def layer(modes: tuple[int, ...], transform: Any = "auto", **kwargs: Any) -> SpectralConvolution:
    return spectral_convolution(3, 2, modes, KEY, transform=transform, **kwargs)


def noise(grid: tuple[int, ...], channels: int = 3, dtype: Any = jnp.float32) -> jax.Array:
    return jax.random.normal(jax.random.key(1), (channels, *grid), dtype)


@eqx.filter_jit
def jitted(model: Any, field: Any) -> Any:
    return model(field)


def by_numpy(convolution: SpectralConvolution, field: Any) -> np.ndarray:
    """The published layer: cut the spectrum of `rfftn`, multiply, transform back."""
    field = np.asarray(field, np.float64)
    axes, grid = range(1, field.ndim), field.shape[1:]
    spectrum = np.fft.rfftn(field, axes=axes)
    weight = np.asarray(convolution.weight, np.float64)
    weight = weight[..., 0, :, :] + 1j * weight[..., 1, :, :]
    *others, last = convolution.modes
    rows = np.ix_(*[np.r_[0:m, -m:0] for m in others], np.arange(last))
    out = np.zeros((weight.shape[-1], *spectrum.shape[1:]), complex)
    out[:, *rows] = np.einsum("i...,...io->o...", spectrum[:, *rows], weight)
    return np.fft.irfftn(out, grid, axes=axes)


@pytest.mark.parametrize(("grid", "modes"), CASES)
@pytest.mark.parametrize("transform", ["fft", "dense"])
def test_equals_the_published_layer(grid: Any, modes: Any, transform: Any) -> None:
    field = noise(grid)
    convolution = layer(modes, transform)
    expected = by_numpy(convolution, field)
    scale = np.abs(expected).max()
    assert np.abs(jitted(convolution, field) - expected).max() < 1e-5 * scale
    with jax.enable_x64(True):
        double = layer(modes, transform, dtype=jnp.float64)
        field = noise(grid, dtype=jnp.float64)
        assert np.abs(jitted(double, field) - by_numpy(double, field)).max() < 1e-12 * scale


@pytest.mark.parametrize(("grid", "modes"), CASES[2:])
def test_both_transforms_have_the_same_gradient(grid: Any, modes: Any) -> None:
    field = noise(grid)

    def gradient(transform: Any) -> Any:
        def loss(convolution: Any) -> Any:
            return jnp.sum(jnp.sin(convolution(field)))

        return eqx.filter_jit(eqx.filter_grad(loss))(layer(modes, transform)).weight

    dense = gradient("dense")
    assert np.abs(dense - gradient("fft")).max() < 1e-5 * np.abs(dense).max()


def test_coefficients_of_waves_by_hand() -> None:
    x = np.arange(8) / 8
    field = jnp.asarray(1 + 3 * np.cos(2 * np.pi * x) - 2 * np.sin(4 * np.pi * x))[:, None]
    expected = np.zeros((4, 2))
    expected[0, 0], expected[1, 0], expected[2, 1] = 1, 1.5, 1
    for transform in ("fft", "dense"):
        found = analyse(field.astype(jnp.float32), (4,), transform=transform)
        assert np.abs(found[..., 0] - expected).max() < 1e-6


def test_the_mode_at_half_the_points_is_shared_with_its_mirror_image() -> None:
    field = jnp.asarray([1.0, -1.0, 1.0, -1.0])[:, None]  # cos(4 pi x)
    for transform in ("fft", "dense"):
        coefficients = analyse(field, (3,), transform=transform)
        assert np.abs(coefficients[2, :, 0] - np.array([0.5, 0])).max() < 1e-6
        fine = synthesise(coefficients, (3,), (8,), transform=transform)
        assert np.abs(fine[:, 0] - np.cos(np.pi * np.arange(8) / 2)).max() < 1e-6


@pytest.mark.parametrize("transform", ["fft", "dense"])
def test_the_layer_is_the_same_map_at_every_resolution(transform: Any) -> None:
    def wave(n: int, m: int) -> jax.Array:
        x, y = np.meshgrid(np.arange(n) / n, np.arange(m) / m, indexing="ij")
        fields = [np.cos(2 * np.pi * (x + 2 * y)), np.sin(4 * np.pi * x), 1 + 0 * x]
        return jnp.asarray(np.stack(fields), jnp.float32)

    convolution = layer((3, 4), transform)
    coarse, fine = convolution(wave(8, 10)), convolution(wave(24, 20))
    assert np.abs(coarse - fine[:, ::3, ::2]).max() < 1e-6
    resampled = convolution(wave(8, 10), grid=(24, 20))
    assert np.abs(resampled - fine).max() < 1e-6


def test_a_coarse_grid_goes_without_the_modes_it_lacks() -> None:
    convolution = layer((6, 7))
    assert available_modes((4, 6), (6, 7)) == (2, 4)
    assert convolution(noise((4, 6))).shape == (2, 4, 6)
    kept = eqx.tree_at(
        lambda c: c.weight, layer((2, 4)), convolution.weight[jnp.array([0, 1, -2, -1])][:, :4]
    )
    assert np.abs(convolution(noise((4, 6))) - kept(noise((4, 6)))).max() < 1e-6


@pytest.mark.parametrize("transform", ["fft", "dense"])
def test_commutes_with_translations(transform: Any) -> None:
    convolution, field = layer((3, 4), transform), noise((8, 10))
    moved = convolution(jnp.roll(field, (3, 2), (1, 2)))
    assert np.abs(moved - jnp.roll(convolution(field), (3, 2), (1, 2))).max() < 1e-5


def test_the_rule_takes_products_for_few_modes_and_transforms_for_many() -> None:
    assert dense_is_cheaper((128,), (16,)) and dense_is_cheaper((64, 64), (12, 12))
    assert not dense_is_cheaper((1024,), (256,)) and not dense_is_cheaper((64, 64), (32, 32))


def test_the_initial_weights_are_the_published_ones() -> None:
    weight = np.asarray(spectral_convolution(20, 10, (4, 6), KEY).weight)
    assert weight.shape == (*kept_shape((4, 6)), 2, 20, 10) == (8, 6, 2, 20, 10)
    assert weight.min() >= 0 and weight.max() < 1 / 200
    assert abs(weight.mean() * 400 - 1) < 0.02


def test_bad_layers_and_fields_are_named() -> None:
    with pytest.raises(InputError, match=r"modes=\(0,\)"):
        layer((0,))
    with pytest.raises(InputError, match=r"begin with \[2, 2\]"):
        SpectralConvolution(jnp.zeros((3, 2, 1, 1)), (2,))
    with pytest.raises(InputError, match="2 channels, the layer takes 3"):
        layer((2,))(jnp.zeros((2, 8)))
    with pytest.raises(InputError, match=r"jax\.vmap"):
        layer((2,))(jnp.zeros((4, 3, 8)))
    with pytest.raises(InputError, match="must have 1 axes"):
        layer((2,))(jnp.zeros((3, 8)), grid=(8, 8))
    with pytest.raises(InputError, match="does not have the modes"):
        analyse(jnp.zeros((8, 1)), (6,))


# ---- the network


def operator(modes: tuple[int, ...] = (4, 4), **kwargs: Any) -> Any:
    return fno(1, 2, KEY, modes=modes, width=6, layers=2, projection=8, **kwargs)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_any_resolution_and_batches(dims: int) -> None:
    model = operator((3,) * dims)
    for n in (6, 9):
        fields = jax.random.normal(KEY, (2, 1, *(n,) * dims))
        out = jax.jit(jax.vmap(model))(fields)
        assert out.shape == (2, 2, *(n,) * dims)
        assert np.abs(out[1] - jitted(model, fields[1])).max() < 1e-5


def test_a_smooth_field_gives_the_same_function_at_every_resolution() -> None:
    def field(n: int) -> jax.Array:
        return jnp.asarray(np.sin(2 * np.pi * np.arange(n) / n), jnp.float32)[None]

    model = fno(1, 1, KEY, modes=(4,), width=6, periodic=True, activation=jnp.tanh)
    # The sawtooth of the coordinate is all that aliases.
    model = eqx.tree_at(lambda m: m.lift.weight, model, model.lift.weight.at[:, 1].set(0.0))
    fine = jitted(model, field(256))
    errors = [np.abs(jitted(model, field(n)) - fine[:, :: 256 // n]).max() for n in (16, 32)]
    assert errors[0] < 1e-3 and errors[1] < 1e-5


def test_padding_is_zeros_after_the_lift_and_is_cut_off_again() -> None:
    model = fno(
        1, 1, KEY, modes=(5,), width=3, layers=1, padding=0.25, periodic=False,
        activation=lambda x: x,
    )  # fmt: skip
    step = np.repeat([0.0, 1.0], 8)
    lifted = np.stack([step, (np.arange(16) + 0.5) / 16], -1) @ model.lift.weight.T
    padded = np.pad(lifted + model.lift.bias, [(0, 4), (0, 0)])
    (only,) = model.layers
    spectral = by_numpy(only.spectral, padded.T).T[:16]
    out = spectral + padded[:16] @ only.pointwise.weight.T + only.pointwise.bias
    for linear in (model.hidden, model.readout):
        out = out @ linear.weight.T + linear.bias
    assert np.abs(jitted(model, jnp.asarray(step, jnp.float32)[None]) - out.T).max() < 1e-5


def test_gradients_agree_with_differences() -> None:
    with jax.enable_x64(True):
        model = operator((3,), dtype=jnp.float64, activation=jnp.tanh, padding=0.25)
        field, along = (jax.random.normal(jax.random.key(s), (1, 8), jnp.float64) for s in (2, 3))

        @jax.jit
        def loss(field: jax.Array) -> jax.Array:
            return jnp.sum(model(field) ** 2)

        h = 1e-5
        difference = (loss(field + h * along) - loss(field - h * along)) / (2 * h)
        slope = jax.jit(lambda f, v: jax.jvp(loss, (f,), (v,))[1])(field, along)
        assert abs(slope - difference) < 1e-7 * abs(slope)
        assert abs(jnp.vdot(jax.jit(jax.grad(loss))(field), along) - slope) < 1e-12 * abs(slope)


def test_fields_and_settings_it_cannot_take_are_named() -> None:
    with pytest.raises(InputError, match=r"1 channels and 2 axes.*\[2, 8, 8\]"):
        operator()(jnp.zeros((2, 8, 8)))
    with pytest.raises(InputError, match="padding=2"):
        operator(padding=2.0)
    with pytest.raises(InputError, match="width=0"):
        fno(1, 1, KEY, modes=(2,), width=0)


def test_space_time_maps_frames_to_later_frames() -> None:
    model = SpaceTime(fno(3, 1, KEY, modes=(2, 2, 2), width=4), frames=5)
    assert jitted(model, jnp.ones((3, 6, 8))).shape == (5, 6, 8)


# ---- trained


def waves(count: int, n: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Random fields of two waves, and a nonlocal, nonlinear function of them."""
    rng = np.random.default_rng(0)
    x = 2 * np.pi * np.arange(n) / n
    a, b = rng.normal(size=(2, count, 1))
    fields = a * np.sin(x) + b * np.cos(x)
    return fields.astype("f4"), (a * np.cos(x) - b * np.sin(x) + fields**2).astype("f4")


def test_training_learns_a_nonlinear_map() -> None:
    inputs, outputs = waves(96)
    data = Pairs(
        inputs[:, None], outputs[:, None], np.zeros((96, 0), "f4"), Grid((1.0,), periodic=True)
    )
    model = TrainedFNO(modes=4, width=12, layers=2, steps=300)(data[:64], key=KEY)
    found = np.asarray(jax.jit(jax.vmap(model))(data.inputs[64:]))[:, 0]
    error = np.linalg.norm(found - outputs[64:]) / np.linalg.norm(outputs[64:])
    assert error < 0.1


@pytest.mark.slow
def test_a_stepper_learns_how_parameters_slow_it_down() -> None:
    inputs, _ = waves(64)
    rates = np.random.default_rng(1).uniform(0.5, 1.0, (64, 1)).astype("f4")
    factors = np.exp(-rates * np.arange(3))[:, :, None, None]
    data = Trajectories(
        inputs[:, None, None] * factors.astype("f4"), rates, Grid((1.0,), periodic=True), 1.0
    )
    model = TrainedFNOStepper(modes=4, width=12, steps=300)(data, key=KEY)
    step = jax.jit(jax.vmap(model))
    later = step(data.states[:, 0], data.parameters)
    rollout = step(later, data.parameters)
    truth = data.states[:, 2]
    assert np.linalg.norm(rollout - truth) < 0.15 * np.linalg.norm(truth)
    swapped = step(data.states[:, 0], data.parameters[::-1])
    assert np.linalg.norm(swapped - later) > 0.02 * np.linalg.norm(later)
