"""Deep operator networks (`deeponet`): a solution at any point from values of the input at sensors.

    G(u)(y) = sum over k of branch_k(u at the sensors) · trunk_k(y) + bias

- `deeponet`: one branch network of many outputs (unstacked), or one for each k (`stacked`).
- `multionet`: products of all the last layers of branch and trunk, not of the very last alone.
- `plain_network`: one network of (u, y), what the paper compares with.
- `PODDeepONet`: the trunk is fixed to the principal components of the training solutions.

A model is called with the sensors of one input and any number of points, `(u [m], y [q, d]) ->
[outputs, q]`; the branch is then computed once for all of them ("Cartesian" data). Pairs of one u
and one y go through `at_pairs`. `OnGrid` makes a model of them that maps fields to fields.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nearly.core.errors import InputError
from nearly.operators.data import Grid, Pairs, check_data, resample
from nearly.operators.training import (
    Schedule,
    normalized,
    train,
)
from nearly.training.architectures import MLP, Activation, mlp

Branch = Callable[[Any], Any]
Made = Callable[..., Any]


class DeepONet(eqx.Module):
    """The sum over k of branch_k(u) · trunk_k(y), plus a bias: see `deeponet`."""

    branch: Branch
    trunk: MLP
    bias: Float[Array, " outputs"] | None

    def __call__(
        self, sensors: Float[Array, " sensors"], points: Float[Array, "points axes"]
    ) -> Float[Array, "outputs points"]:
        """The solution of one input at all the points."""
        _check(sensors, points, sensor_count(self.branch), self.trunk)
        basis = self.trunk.activation(jax.vmap(self.trunk)(points))
        terms = self.branch(sensors).reshape(-1, basis.shape[1])
        values = terms @ basis.T
        return values if self.bias is None else values + self.bias[:, None]


class Stack(eqx.Module):
    """One network for each number: `[inputs] -> [networks]`."""

    networks: MLP  # every array with a leading axis, one network each

    def __call__(self, x: Float[Array, " inputs"]) -> Float[Array, " networks"]:
        each = eqx.filter_vmap(lambda network, x: network(x)[0], in_axes=(eqx.if_array(0), None))
        return each(self.networks, x)


class MultiONet(eqx.Module):
    """The mean over the last layers l of weight_l · <branch_l(u), trunk_l(y)>: see `multionet`."""

    branch: MLP
    trunk: MLP
    weights: Float[Array, " layers"]
    bias: Float[Array, " outputs"]

    def __call__(
        self, sensors: Float[Array, " sensors"], points: Float[Array, "points axes"]
    ) -> Float[Array, "outputs points"]:
        """The solution of one input at all the points, one channel."""
        _check(sensors, points, sensor_count(self.branch), self.trunk)
        count = self.weights.shape[0]
        terms = layer_outputs(self.branch, sensors)[-count:]
        *basis, last = jax.vmap(lambda y: layer_outputs(self.trunk, y))(points)
        basis = [*basis, self.trunk.activation(last)][-count:]
        products = [b @ t for b, t in zip(basis, terms, strict=True)]  # [points] of each layer
        return (self.weights @ jnp.stack(products) / count)[None] + self.bias[:, None]


class PlainNetwork(eqx.Module):
    """One network of the sensors and the point together: see `plain_network`."""

    network: MLP

    def __call__(
        self, sensors: Float[Array, " sensors"], points: Float[Array, "points axes"]
    ) -> Float[Array, "outputs points"]:
        """The solution of one input at all the points, each a pass through the whole network."""
        return jax.vmap(lambda y: self.network(jnp.concatenate([sensors, y])))(points).T


def deeponet(
    sensors: int,
    axes: int,
    key: Any,
    *,
    outputs: int = 1,
    terms: int = 40,
    branch: Sequence[int] = (40,),
    trunk: Sequence[int] = (40, 40),
    stacked: bool = False,
    bias: bool = True,
    activation: Activation = jax.nn.relu,
    dtype: Any = jnp.float32,
) -> DeepONet:
    """A deep operator network; the defaults are the paper's for the antiderivative.

    **Arguments:**

    - `sensors`: how many values of the input it is given. `axes`: of a point.
    - `terms`: p, the products that are summed. `branch`, `trunk`: hidden widths; the trunk's last
      layer is activated too, the branch's is not.
    - `stacked`: whether each term has a branch network of its own: `terms` times as many weights.
    - `bias`: whether a number is added, which the paper finds to help.

    Raises `InputError` for sizes below 1. **Cost:** one pass of the branch for each input, one of
    the trunk for each point. Paper: `deeponet`.
    """
    keys = jax.random.split(key, 3)
    basis = mlp([axes, *trunk, terms], keys[0], activation, dtype=dtype)
    branch_of = _stack if stacked else mlp
    made = branch_of([sensors, *branch, terms * outputs], keys[1], activation, dtype=dtype)
    return DeepONet(made, basis, jnp.zeros(outputs, dtype) if bias else None)


def _stack(sizes: Sequence[int], key: Any, activation: Activation, dtype: Any) -> Stack:
    *before, count = sizes

    def one(key: Any) -> MLP:
        return mlp([*before, 1], key, activation, dtype=dtype)

    return Stack(eqx.filter_vmap(one)(jax.random.split(key, count)))


def multionet(
    sensors: int,
    axes: int,
    key: Any,
    *,
    width: int = 40,
    depth: int = 5,
    layers: int = 4,
    activation: Activation = jax.nn.relu,
    dtype: Any = jnp.float32,
) -> MultiONet:
    """Branch and trunk of `depth` layers of one width; the last `layers` of each are multiplied.

    A DeepONet of the same layers has as many weights, but for the `layers` ones here. Hidden
    layers are activated, as is the last one of the trunk. One output channel.

    Raises `InputError` unless 1 <= layers <= depth. Paper: `dgno`.
    """
    if not 1 <= layers <= depth:
        raise InputError(f"layers={layers} must lie between 1 and the depth, {depth}")
    keys = jax.random.split(key, 2)
    hidden = [width] * depth
    return MultiONet(
        mlp([sensors, *hidden], keys[0], activation, dtype=dtype),
        mlp([axes, *hidden], keys[1], activation, dtype=dtype),
        jnp.ones(layers, dtype),
        jnp.zeros(1, dtype),
    )


def plain_network(
    sensors: int,
    axes: int,
    key: Any,
    *,
    outputs: int = 1,
    hidden: Sequence[int] = (57, 57),
    activation: Activation = jax.nn.relu,
    dtype: Any = jnp.float32,
) -> PlainNetwork:
    """A network of u and y together; the default has as many weights as `deeponet`'s does."""
    return PlainNetwork(mlp([sensors + axes, *hidden, outputs], key, activation, dtype=dtype))


def layer_outputs(network: MLP, x: Float[Array, " inputs"]) -> list[Array]:
    """What each layer of a network gives, all activated but the last."""
    outputs: list[Array] = []
    for layer in network.layers[:-1]:
        x = network.activation(layer(x))
        outputs.append(x)
    return [*outputs, network.layers[-1](x)]


def at_pairs(
    model: Any, sensors: Float[Array, "pairs sensors"], points: Float[Array, "pairs axes"]
) -> Float[Array, "pairs outputs"]:
    """The model at pairs of one input and one point each."""
    return jax.vmap(lambda u, y: model(u, y[None])[:, 0])(sensors, points)


def sensor_count(branch: Any) -> int:
    """How many values of the input a branch takes."""
    network = branch.networks if isinstance(branch, Stack) else branch
    return network.layers[0].weight.shape[-1]


def _check(sensors: Array, points: Array, count: int, trunk: MLP) -> None:
    if sensors.shape != (count,):
        raise InputError(
            f"the network was made for {count} sensors, not for an input of shape "
            f"{list(sensors.shape)}: give the input's values at those sensors"
        )
    axes = trunk.layers[0].weight.shape[-1]
    if points.ndim != 2 or points.shape[1] != axes:
        raise InputError(
            f"points of shape {list(points.shape)} must be [points, {axes}]: one row for each"
        )


# ---- from fields to fields


class OnGrid(eqx.Module):
    """An operator network as a map of fields: the sensors are a grid, the points the field's own.

    A field of another resolution is resampled to the sensors and answered at its own points.

    **Arguments:** `model`: `(sensors, points) -> values`. `grid`: the box. `resolution`: of the
    sensors along each axis.
    """

    model: Any
    grid: Grid = eqx.field(static=True)
    resolution: int = eqx.field(static=True)

    def __call__(self, field: Float[Array, " inputs *grid"]) -> Float[Array, " outputs *grid"]:
        """The output field at the input's resolution."""
        values = self.model(
            resample(field, self.grid, self.resolution).reshape(-1),
            jnp.asarray(grid_points(self.grid, field.shape[1:]), field.dtype),
        )
        return values.reshape(-1, *field.shape[1:])


class PODDeepONet(eqx.Module):
    """A branch network of the coefficients of principal components: the trunk is data.

    **Arguments:** `basis`: the components times the deviation of their coefficients, `[terms,
    outputs, *grid]`; `mean`: of the solutions. Neither is trained.
    """

    branch: MLP
    basis: Float[Array, "terms outputs *grid"]
    mean: Float[Array, " outputs *grid"]
    grid: Grid = eqx.field(static=True)

    def __call__(self, field: Float[Array, " inputs *grid"]) -> Float[Array, " outputs *grid"]:
        """The output field; away from the training's resolution its components are resampled."""
        basis, mean = jax.lax.stop_gradient((self.basis, self.mean))
        resolution = mean.shape[-1]
        terms = self.branch(resample(field, self.grid, resolution).reshape(-1))
        out = mean + jnp.tensordot(terms, basis, 1)
        return resample(out, self.grid, field.shape[-1])


def principal_components(
    fields: Any, terms: int
) -> tuple[Float[np.ndarray, "terms _ *grid"], Float[np.ndarray, " _ *grid"]]:
    """The first components, each times the deviation of its coefficient, and the mean field."""
    rows = np.asarray(fields, np.float64).reshape(len(fields), -1)
    mean = rows.mean(0)
    _, sizes, right = np.linalg.svd(rows - mean, full_matrices=False)
    if terms > len(sizes):
        raise InputError(f"terms={terms} exceeds the {len(sizes)} components the data have")
    scaled = (sizes[:terms, None] / np.sqrt(len(rows))) * right[:terms]
    shape = np.shape(fields)[1:]
    dtype = np.asarray(fields).dtype
    return scaled.reshape(terms, *shape).astype(dtype), mean.reshape(shape).astype(dtype)


def grid_points(grid: Grid, shape: Sequence[int]) -> Float[np.ndarray, "points axes"]:
    """The points of a grid in units of its box, one row each."""
    axes = [grid.axis(n, axis) / grid.lengths[axis] for axis, n in enumerate(shape)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(shape))


# ---- builders


class Settings(eqx.Module):
    """What a trained operator network may be told.

    **Arguments:** `terms`, `width` and `depth` (hidden layers of branch and trunk); the others as
    in `operators.training.train`. GELU where the paper has ReLU: solutions are smooth.
    """

    terms: int = 64
    width: int = 128
    depth: int = 2
    steps: int = 2000
    batch: int = 32
    learning_rate: float = 1e-3
    schedule: Schedule = "cosine"

    def trained(self, model: Any, data: Pairs, key: Any) -> Any:
        """The model after the steps of these settings, normalised."""
        return train(
            normalized(model, data),
            data,
            steps=self.steps,
            batch=self.batch,
            learning_rate=self.learning_rate,
            schedule=self.schedule,
            key=key,
        ).model


class TrainedDeepONet(Settings):
    """Builds a DeepONet whose sensors are the training's grid: see `Settings`."""

    def __call__(self, data: Pairs, *, key: Any) -> Any:
        """A module `[inputs, *grid] -> [outputs, *grid]` of any resolution."""
        draw, learn = jax.random.split(key)
        hidden = (self.width,) * self.depth
        model = deeponet(
            int(np.prod(data.inputs.shape[1:])),
            data.grid.dims,
            draw,
            outputs=data.outputs.shape[1],
            terms=self.terms,
            branch=hidden,
            trunk=hidden,
            activation=jax.nn.gelu,
            dtype=data.inputs.dtype,
        )
        return self.trained(OnGrid(model, data.grid, data.inputs.shape[-1]), data, learn)


class TrainedPOD(Settings):
    """Builds a DeepONet on principal components of the training solutions: see `Settings`.

    `terms` is cut to the number of samples.
    """

    def __call__(self, data: Pairs, *, key: Any) -> Any:
        """A module `[inputs, *grid] -> [outputs, *grid]` of any resolution."""
        check_data(data)
        draw, learn = jax.random.split(key)
        terms = min(self.terms, len(data), int(np.prod(data.outputs.shape[1:])))
        outputs = normalized(None, data)
        spread = (-1,) + (1,) * data.grid.dims
        fields = np.asarray(data.outputs) - outputs.output_mean.reshape(spread)
        basis, mean = principal_components(fields / outputs.output_std.reshape(spread), terms)
        sensors = int(np.prod(data.inputs.shape[1:]))
        sizes = [sensors, *(self.width,) * self.depth, terms]
        branch = mlp(sizes, draw, jax.nn.gelu, dtype=data.inputs.dtype)
        model = PODDeepONet(branch, jnp.asarray(basis), jnp.asarray(mean), data.grid)
        return self.trained(model, data, learn)


class TrainedMultiONet(Settings):
    """Builds a MultiONet whose sensors are the training's grid: see `Settings`.

    Raises `InputError` for solutions of several channels.
    """

    depth: int = 4
    layers: int = 3

    def __call__(self, data: Pairs, *, key: Any) -> Any:
        """A module `[inputs, *grid] -> [1, *grid]` of any resolution."""
        if data.outputs.shape[1] != 1:
            raise InputError(
                f"a MultiONet has one output channel, the solutions {data.outputs.shape[1]}: "
                "train one for each"
            )
        draw, learn = jax.random.split(key)
        model = multionet(
            int(np.prod(data.inputs.shape[1:])),
            data.grid.dims,
            draw,
            width=self.width,
            depth=self.depth,
            layers=self.layers,
            activation=jax.nn.gelu,
            dtype=data.inputs.dtype,
        )
        return self.trained(OnGrid(model, data.grid, data.inputs.shape[-1]), data, learn)


# What the catalogue names: settings of a training of seconds on one core.
deeponet_map = TrainedDeepONet()
multionet_map = TrainedMultiONet()
pod_deeponet_map = TrainedPOD()
