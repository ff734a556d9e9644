"""Operator networks: their sums by hand, both kinds of data, resolutions, training, errors."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nearly.core.errors import InputError
from nearly.operators.data import Grid, Pairs
from nearly.operators.deeponet import (
    OnGrid,
    TrainedDeepONet,
    TrainedMultiONet,
    TrainedPOD,
    at_pairs,
    deeponet,
    grid_points,
    multionet,
    plain_network,
    principal_components,
)

KEY = jax.random.key(0)
SENSORS, AXES = 6, 2
LINE = Grid((2.0,), periodic=False)


@eqx.filter_jit
def called(function: Any, *arguments: Any) -> Any:
    return function(*arguments)


def inputs(count: int = 4) -> tuple[jax.Array, jax.Array]:
    sensors, points = jax.random.split(jax.random.key(1))
    return (
        jax.random.normal(sensors, (count, SENSORS)),
        jax.random.uniform(points, (count, AXES)),
    )


def numpy_layers(network: Any, x: np.ndarray) -> list[np.ndarray]:
    """What each layer gives before its activation, ReLU, is applied."""
    outputs = []
    for layer in network.layers:
        outputs.append(x @ np.asarray(layer.weight).T + np.asarray(layer.bias))
        x = np.maximum(outputs[-1], 0)
    return outputs


def test_the_sum_over_branch_and_trunk_by_hand() -> None:
    model = deeponet(SENSORS, AXES, KEY, terms=5, branch=(7,), trunk=(8,))
    model = eqx.tree_at(lambda m: m.bias, model, jnp.array([0.3]))
    u, y = map(np.asarray, inputs())
    basis = np.maximum(numpy_layers(model.trunk, y)[-1], 0)
    expected = numpy_layers(model.branch, u[0])[-1] @ basis.T + 0.3
    assert np.abs(called(model, u[0], y) - expected).max() < 1e-5


def test_stacked_branches_are_separate_networks() -> None:
    model = deeponet(SENSORS, AXES, KEY, terms=5, branch=(7,), trunk=(8,), stacked=True)
    u, y = inputs()
    arrays = eqx.filter(model.branch, eqx.is_array)
    single = [jax.tree.map(lambda w, k=k: w[k], arrays) for k in range(5)]
    terms = np.array([numpy_layers(one.networks, np.asarray(u[0]))[-1][0] for one in single])
    assert np.abs(called(model.branch, u[0]) - terms).max() < 1e-5
    assert len({float(t) for t in terms}) == 5
    assert called(model, u[0], y).shape == (1, 4)


def test_multionet_is_the_mean_of_weighted_products_of_layers() -> None:
    model = multionet(SENSORS, AXES, KEY, width=5, depth=3, layers=2)
    model = eqx.tree_at(lambda m: m.weights, model, jnp.array([2.0, -1.0]))
    u, y = map(np.asarray, inputs())
    branch, trunk = numpy_layers(model.branch, u[0]), numpy_layers(model.trunk, y)
    middle = np.maximum(trunk[1], 0) @ np.maximum(branch[1], 0)
    last = np.maximum(trunk[2], 0) @ branch[2]
    found = called(model, u[0], y)[0]
    assert np.abs(found - (2 * middle - last) / 2).max() < 1e-5


def test_a_multionet_of_one_layer_is_a_deeponet() -> None:
    multi = multionet(SENSORS, AXES, KEY, width=5, depth=3, layers=1)
    deep = deeponet(SENSORS, AXES, KEY, terms=5, branch=(5, 5), trunk=(5, 5))
    deep = eqx.tree_at(lambda m: (m.branch, m.trunk), deep, (multi.branch, multi.trunk))
    u, y = inputs()
    assert np.abs(called(multi, u[0], y) - called(deep, u[0], y)).max() < 1e-6


@pytest.mark.parametrize(
    "make",
    [
        lambda: deeponet(SENSORS, AXES, KEY, terms=5),
        lambda: deeponet(SENSORS, AXES, KEY, terms=5, stacked=True, bias=False),
        lambda: multionet(SENSORS, AXES, KEY, width=5),
        lambda: plain_network(SENSORS, AXES, KEY, hidden=(5,)),
    ],
)
def test_pairs_are_the_diagonal_of_cartesian_data(make: Any) -> None:
    model, (u, y) = make(), inputs()
    cartesian = jax.jit(jax.vmap(lambda u: model(u, y)[0]))(u)
    assert np.abs(called(at_pairs, model, u, y)[:, 0] - jnp.diagonal(cartesian)).max() < 1e-5


def test_the_paper_s_sizes() -> None:
    def weights(model: Any) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(model, eqx.is_array)))

    branch, trunk = 100 * 40 + 40 + 40 * 40 + 40, 2 * 40 + 2 * (40 * 40 + 40)
    assert weights(deeponet(100, 1, KEY)) == branch + trunk + 1
    assert weights(deeponet(100, 1, KEY, stacked=True)) == 40 * (100 * 40 + 81) + trunk + 1
    assert abs(weights(plain_network(100, 1, KEY)) / (branch + trunk + 1) - 1) < 0.02


def test_gradients_agree_with_differences_and_double_precision_stays() -> None:
    with jax.enable_x64(True):
        model = deeponet(SENSORS, AXES, KEY, terms=5, activation=jnp.tanh, dtype=jnp.float64)
        u, y, along = (
            jax.random.normal(jax.random.key(s), shape, jnp.float64)
            for s, shape in enumerate([(SENSORS,), (3, AXES), (3, AXES)])
        )

        @jax.jit
        def total(y: jax.Array) -> jax.Array:
            return jnp.sum(model(u, y) ** 2)

        h = 1e-6
        difference = (total(y + h * along) - total(y - h * along)) / (2 * h)
        assert total(y).dtype == jnp.float64
        assert abs(jnp.vdot(jax.jit(jax.grad(total))(y), along) - difference) < 1e-6


# ---- on grids


def test_points_of_a_grid_are_its_axes_in_units_of_the_box() -> None:
    points = grid_points(Grid((2.0, 3.0), periodic=True), (2, 3))
    assert points.tolist() == [[x, y] for x in (0.0, 0.5) for y in (0, 1 / 3, 2 / 3)]


def test_a_field_of_another_resolution_is_asked_at_the_same_sensors() -> None:
    model = OnGrid(deeponet(8, 1, KEY, terms=5, activation=jnp.tanh), LINE, 8)

    def field(n: int) -> jax.Array:
        return jnp.asarray(LINE.axis(n)[None] ** 3, jnp.float32)  # resampled exactly

    coarse, fine = called(model, field(8)), called(model, field(24))
    assert fine.shape == (1, 24)
    assert np.abs(coarse - fine[:, 1::3]).max() < 1e-5  # the middle of three cells


def samples(count: int = 48, n: int = 16) -> Pairs:
    """Antiderivatives of random cosines on [0, 2]."""
    rng, x = np.random.default_rng(0), LINE.axis(n)
    waves = np.pi * np.arange(1, 4)[:, None] / 2
    a = rng.normal(size=(count, 3))
    u, s = a @ np.cos(waves * x), a @ (np.sin(waves * x) / waves)
    empty = np.zeros((count, 0), "f4")
    return Pairs(u[:, None].astype("f4"), s[:, None].astype("f4"), empty, LINE)


def test_components_are_orthogonal_and_complete() -> None:
    fields = samples().outputs
    basis, mean = principal_components(fields, 3)
    rows = basis.reshape(3, -1)
    gram = rows @ rows.T
    assert np.abs(gram - np.diag(np.diag(gram))).max() < 1e-6
    centred = (fields - mean).reshape(len(fields), -1)
    assert np.abs(centred - centred @ np.linalg.pinv(rows) @ rows).max() < 1e-5
    assert np.diag(gram).sum() == pytest.approx(centred.var(0).sum(), rel=1e-4)
    with pytest.raises(InputError, match="terms=17"):
        principal_components(fields, 17)


@pytest.mark.parametrize(
    "builder",
    [
        TrainedDeepONet(terms=8, width=24, steps=400, learning_rate=5e-3),
        TrainedPOD(terms=3, width=24, depth=1, steps=400, learning_rate=5e-3),
        TrainedMultiONet(width=24, depth=3, layers=2, steps=400, learning_rate=5e-3),
    ],
)
def test_training_learns_an_integral(builder: Any) -> None:
    data = samples()
    model = builder(data[:32], key=KEY)
    found = jax.jit(jax.vmap(model))(data.inputs[32:])
    truth = data.outputs[32:]
    assert np.linalg.norm(found - truth) < 0.2 * np.linalg.norm(truth)
    fine = called(model, jnp.repeat(jnp.asarray(data.inputs[0]), 2, 1))
    assert fine.shape == (1, 32)


def test_bad_sizes_and_inputs_are_named() -> None:
    model = deeponet(SENSORS, AXES, KEY, terms=5)
    with pytest.raises(InputError, match=r"6 sensors.*\[7\]"):
        model(jnp.zeros(7), jnp.zeros((2, AXES)))
    with pytest.raises(InputError, match=r"\[points, 2\]"):
        model(jnp.zeros(SENSORS), jnp.zeros((2, 3)))
    with pytest.raises(InputError, match="layers=9"):
        multionet(SENSORS, AXES, KEY, layers=9)
    two = samples(4)
    doubled = Pairs(two.inputs, np.repeat(two.outputs, 2, 1), two.parameters, LINE)
    with pytest.raises(InputError, match="train one for each"):
        TrainedMultiONet()(doubled, key=KEY)
