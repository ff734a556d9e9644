"""MgNO: its convolutions against direct sums, its symmetries, grids, loss and errors."""

from __future__ import annotations

import itertools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from nearly.core.errors import InputError, UnknownName
from nearly.operators.data import Grid, Pairs
from nearly.operators.losses import RelativeH1
from nearly.operators.multigrid import MgNO, TrainedMgNO, mgno
from nearly.operators.v_cycle import Prolongation, v_cycle

KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def double() -> Any:
    with jax.enable_x64(True):
        yield


def small(**settings: Any) -> Any:
    chosen = {"width": 4, "layers": 2, "pre": (1, 1, 2), "dtype": jnp.float64} | settings
    return mgno(1, 2, KEY, **chosen)


def draw(*shape: int, seed: int = 1) -> Any:
    return jax.random.normal(jax.random.key(seed), shape, jnp.float64)


# ---- prolongation


def direct(weight: np.ndarray, coarse: np.ndarray, wrap: bool) -> np.ndarray:
    """The definition: tap k of coarse point i is added to fine point 2 i + k - 1."""
    out, _, *kernel = weight.shape
    fine = np.zeros((out, *(2 * n - (kernel[0] == 3) for n in coarse.shape[1:])))
    for i in itertools.product(*map(range, coarse.shape[1:])):
        for k in itertools.product(*map(range, kernel)):
            at = [2 * a + b - 1 for a, b in zip(i, k, strict=True)]
            if wrap:
                at = [a % n for a, n in zip(at, fine.shape[1:], strict=True)]
            if all(0 <= a < n for a, n in zip(at, fine.shape[1:], strict=True)):
                fine[(slice(None), *at)] += (
                    weight[(slice(None), slice(None), *k)] @ coarse[(slice(None), *i)]
                )
    return fine


@pytest.mark.parametrize("kernel", [3, 4])
@pytest.mark.parametrize("grid", [(5,), (4, 6), (2, 3, 4)])
def test_prolongation_is_the_transposed_convolution(kernel: int, grid: tuple[int, ...]) -> None:
    weight = draw(3, 3, *(kernel,) * len(grid))
    coarse = draw(3, *grid, seed=2)
    found = Prolongation(weight, "ZEROS")(coarse)
    expected = direct(np.asarray(weight), np.asarray(coarse), wrap=False)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_prolongation_goes_round_a_periodic_grid() -> None:
    weight, coarse = draw(2, 2, 4, 4), draw(2, 4, 3, seed=2)
    found = Prolongation(weight, "CIRCULAR")(coarse)
    expected = direct(np.asarray(weight), np.asarray(coarse), wrap=True)
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize(("size", "kernel"), [(8, 4), (9, 3)])
def test_prolongation_is_the_adjoint_of_a_strided_convolution(size: int, kernel: int) -> None:
    """Away from the boundary of even grids, where the strided one is only 3 wide."""
    weight = draw(2, 2, kernel, kernel)
    coarse = (size + 1) // 2
    u, v = draw(2, coarse, coarse), draw(2, size, size, seed=3)
    up = Prolongation(weight, "ZEROS")(u)
    down = jax.lax.conv_general_dilated(
        v[None], jnp.swapaxes(weight, 0, 1), (2, 2), [(1, kernel - 2)] * 2
    )[0]
    np.testing.assert_allclose(jnp.vdot(up, v), jnp.vdot(u, down), rtol=1e-12)


# ---- the V-cycle


def test_a_v_cycle_is_linear() -> None:
    cycle = v_cycle(2, 3, KEY, pre=(2, 1), post=(1,), restrict="residual", dtype=jnp.float64)
    cycle = eqx.filter_jit(cycle)
    f, g = draw(2, 8, 8), draw(2, 8, 8, seed=2)
    np.testing.assert_allclose(cycle(f + 3 * g), cycle(f) + 3 * cycle(g), atol=1e-12)


def test_it_can_be_the_textbook_cycle_for_poisson() -> None:
    """Damped Jacobi, full weighting of the residual, linear prolongation: -u'' = f, periodic.

    Two sweeps before and after shrink what a coarse grid cannot see by 3^-4, so a cycle's error
    is a few hundredths; a tenth is asked of one cycle, its square of two.
    """
    size = 32
    kernels = {
        "projection": jnp.zeros(3),  # coarse grids start from u = 0
        "restriction": jnp.array([1.0, 2.0, 1.0]),  # full weighting; 4 for the doubled spacing
        "prolongations": jnp.array([0.5, 1.0, 0.5, 0.0]),
        "operator": jnp.array([-1.0, 2.0, -1.0]),
        "": jnp.array([0.0, 1 / 3, 0.0]),  # 2/3 of the inverse diagonal
    }
    cycle = v_cycle(
        1, 1, KEY, pre=(2, 2, 2, 30), post=(2, 2, 2), restrict="residual",
        padding="CIRCULAR", dims=1, dtype=jnp.float64,
    )  # fmt: skip

    def textbook(path: Any, leaf: Any) -> Any:
        text = jax.tree_util.keystr(path)
        return next(k for name, k in kernels.items() if name in text).reshape(leaf.shape)

    cycle = jax.tree_util.tree_map_with_path(
        lambda path, x: textbook(path, x) if eqx.is_array(x) else x, cycle
    )
    solution = np.asarray(draw(1, size))
    error = solution = solution - solution.mean()
    for bound in (0.1, 0.01):
        source = 2 * error - np.roll(error, 1) - np.roll(error, -1)
        error = error - np.asarray(eqx.filter_jit(cycle)(source))
        error -= error.mean()
        assert np.linalg.norm(error) <= bound * np.linalg.norm(solution)


def test_each_step_has_kernels_of_its_own() -> None:
    cycle = v_cycle(2, 2, KEY, pre=(2, 2), post=(1,), dtype=jnp.float64)
    kernels = [np.asarray(x).ravel() for x in jax.tree.leaves(cycle) if x.shape[-1] == 3]
    assert len(kernels) == 1 + 2 * (1 + 2 + 1) + 2
    assert len({k.tobytes() for k in kernels}) == len(kernels)


# ---- symmetries and grids


def test_periodic_commutes_with_translations_by_the_coarsest_cell() -> None:
    model = eqx.filter_jit(small(boundary="periodic", pre=(1, 1, 1)))
    field = draw(1, 16, 8)
    moved = model(jnp.roll(field, (4, -4), (1, 2)))
    np.testing.assert_allclose(moved, jnp.roll(model(field), (4, -4), (1, 2)), atol=1e-12)


@pytest.mark.parametrize("points", ["even", "odd"])
def test_neumann_is_the_periodic_operator_on_mirrored_fields(points: Any) -> None:
    """With kernels that are even functions, mirroring a field mirrors the image.

    Even grids: a field of n cells and its mirror image are one of 2 n periodic cells; but kernels
    of stride 2 have no centre there, so only steps without coarsening are asked. Odd grids: n + 1
    points are half of 2 n periodic ones, and prolongation and restriction are centred.
    """
    levels = (2,) if points == "even" else (1, 2)
    model = small(boundary="neumann", points=points, pre=levels, dims=1)
    model = _with_even_kernels(model)
    field = draw(1, 8 if points == "even" else 9)
    if points == "even":
        whole = jnp.concatenate([field, field[:, ::-1]], 1)
    else:
        whole = jnp.concatenate([field, field[:, -2:0:-1]], 1)
    periodic = _periodic(model)
    periodic = MgNO(periodic.cycles, periodic.pointwise, periodic.head, periodic.activation, "even")
    found = periodic(whole)
    np.testing.assert_allclose(model(field), found[:, : field.shape[1]], atol=1e-12)


def _with_even_kernels(model: Any) -> Any:
    return jax.tree.map(lambda x: (x + x[..., ::-1]) / 2 if eqx.is_array(x) else x, model)


def _periodic(model: Any) -> Any:
    """The same kernels on a periodic grid; 3 wide prolongations get a fourth tap of 0."""

    def changed(node: Any) -> Any:
        if isinstance(node, Prolongation):
            weight = jnp.pad(node.weight, ((0, 0), (0, 0), (0, 1)))
            return Prolongation(weight, "CIRCULAR")
        if isinstance(node, eqx.nn.Conv) and node.kernel_size == (3,):
            made = eqx.nn.Conv(
                1, node.in_channels, node.out_channels, 3, node.stride, padding=1,
                padding_mode="CIRCULAR", use_bias=False, key=KEY,
            )  # fmt: skip
            return eqx.tree_at(lambda c: c.weight, made, node.weight)
        return node

    kinds = (Prolongation, eqx.nn.Conv)
    return jax.tree.map(changed, model, is_leaf=lambda x: isinstance(x, kinds))


def test_dirichlet_is_the_periodic_cycle_on_odd_fields() -> None:
    """Fields that are odd about the points next to the grid stay so: the zeros of the padding.

    Without coarser grids, where both ends of the grid have such a point.
    """
    cycle = _with_even_kernels(small(pre=(3,), dims=1, layers=1)).cycles[0]
    field = draw(1, 8)
    gap = jnp.zeros((1, 1))
    whole = jnp.concatenate([field, gap, -field[:, ::-1], gap], 1)
    np.testing.assert_allclose(cycle(field), _periodic(cycle)(whole)[:, :8], atol=1e-12)


@pytest.mark.parametrize(
    ("dims", "points", "sizes"),
    [(1, "even", (8, 32)), (2, "odd", (9, 17)), (3, "even", (4, 8))],
)
def test_any_resolution_of_its_kind(dims: int, points: Any, sizes: tuple[int, ...]) -> None:
    model = small(dims=dims, points=points)
    for size in sizes:
        field = draw(1, *(size,) * dims)
        assert eqx.filter_eval_shape(model, field).shape == (2, *(size,) * dims)


def test_batches_and_gradients() -> None:
    model = small(dims=1, post=(1, 0), restrict="residual")
    fields = draw(3, 1, 8)
    batch = jax.jit(jax.vmap(model))(fields)
    np.testing.assert_allclose(batch[1], eqx.filter_jit(model)(fields[1]), atol=1e-12)
    weights, rest = eqx.partition(model, eqx.is_inexact_array)

    @jax.jit
    def loss(scale: Any) -> Any:
        moved = jax.tree.map(lambda w: w * scale, weights)
        return jnp.sum(eqx.combine(moved, rest)(fields[0]) ** 2)

    step = 1e-5
    numeric = (loss(1 + step) - loss(1 - step)) / (2 * step)
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(1.0), numeric, rtol=1e-7)


# ---- the loss


@pytest.mark.parametrize("grid", [(16, 7), (9,), (4, 4, 5)])
@pytest.mark.parametrize("frequencies", [1, 3, 20])
def test_relative_h1_equals_the_sum_over_modes(grid: tuple[int, ...], frequencies: int) -> None:
    prediction, truth = draw(2, *grid), draw(2, *grid, seed=2)

    def norm(field: np.ndarray) -> float:
        modes = np.fft.fftn(field, axes=range(1, field.ndim), norm="ortho")
        waves = np.meshgrid(*(np.abs(np.fft.fftfreq(n, 1 / n)) for n in grid), indexing="ij")
        weight = 1 + sum(np.where(k < frequencies, k, 0) ** 2 for k in waves)
        return float(np.sqrt(np.sum(weight * np.abs(modes) ** 2)))

    expected = norm(np.asarray(prediction - truth)) / norm(np.asarray(truth))
    np.testing.assert_allclose(RelativeH1(frequencies)(prediction, truth), expected, rtol=1e-12)


def test_relative_h1_has_a_gradient_where_it_is_zero() -> None:
    truth = draw(1, 8)
    assert np.all(np.isfinite(jax.grad(RelativeH1())(truth, truth)))


# ---- the builder


def pairs(count: int, *grid: int, periodic: bool = False) -> Pairs:
    inputs = np.asarray(draw(count, 1, *grid), np.float32)
    outputs = inputs + 0.5 * np.roll(inputs, 1, -1)
    box = Grid((1.0,) * len(grid), periodic)
    return Pairs(inputs, outputs, np.zeros((count, 0), np.float32), box)


def test_the_builder_learns_and_keeps_boundary_zeros_unshifted() -> None:
    data = pairs(16, 8)
    built = TrainedMgNO(width=4, layers=1, steps=60, learning_rate=1e-2)
    map_ = built(data, key=KEY)
    again = built(data, key=KEY)
    assert map_.output_mean.tolist() == [0.0]
    assert map_.model.points == "even"
    predictions = jax.vmap(map_)(data.inputs)
    np.testing.assert_array_equal(predictions, jax.vmap(again)(data.inputs))
    error = np.linalg.norm(predictions - data.outputs) / np.linalg.norm(data.outputs)
    before = jax.vmap(built.untrained(data, KEY))(data.inputs)
    assert error < 0.5 * np.linalg.norm(before - data.outputs) / np.linalg.norm(data.outputs)


def test_the_builder_reads_the_grid() -> None:
    def made(*grid: int, **settings: Any) -> Any:
        data = pairs(1, *grid, periodic=settings.pop("periodic", False))
        built = TrainedMgNO(width=2, layers=1, **settings)
        return eqx.filter_eval_shape(lambda key: built.untrained(data, key).model, KEY)

    assert len(made(64).cycles[0].pre) == 6
    assert len(made(12).cycles[0].pre) == 3
    assert made(17, 17).points == "odd"
    assert len(made(17, 17).cycles[0].pre) == 5
    assert made(8, periodic=True).cycles[0].first.padding_mode == "CIRCULAR"
    assert made(8, boundary="neumann").cycles[0].first.padding_mode == "REPLICATE"
    assert made(9, boundary="neumann").cycles[0].first.padding_mode == "REFLECT"


# ---- errors


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 0}, "width=0 must be at least 1"),
        ({"pre": (0, 1)}, "the first at least 1"),
        ({"post": (1,)}, "must be 2 counts"),
        ({"dims": 4}, "dims=4"),
        ({"boundary": "periodic", "points": "odd"}, "leaves out its right end"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        small(**settings)


@pytest.mark.parametrize("name", ["restrict", "boundary", "points"])
def test_unknown_names(name: str) -> None:
    with pytest.raises((UnknownName, TypeCheckError)):
        small(**{name: "nonsense"})


def test_grids_it_cannot_take() -> None:
    with pytest.raises(InputError, match=r"10 x 8 points .* multiple of 4; resample"):
        small()(draw(1, 10, 8))
    with pytest.raises(InputError, match="multiple of 4 plus 1"):
        small(points="odd")(draw(1, 8, 8))
    with pytest.raises(InputError, match="of 1 channels on 2 axes"):
        small()(draw(1, 8))
    with pytest.raises(InputError, match="of 1 channels"):
        small()(draw(3, 8, 8))
    with pytest.raises(InputError, match="cannot be halved"):
        TrainedMgNO().untrained(pairs(1, 8, 9), KEY)
    with pytest.raises(InputError, match="frequencies=0"):
        RelativeH1(0)


def test_data_that_is_not_finite() -> None:
    data = pairs(2, 8)
    data.inputs[1, 0, 3] = np.nan
    with pytest.raises(InputError, match="sample 1"):
        TrainedMgNO()(data, key=KEY)
