"""STDE: unbiased for every operator and sampler, honest errors, cost that knows no dimension."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nearly.core.errors import InputError
from nearly.derivatives.curves import Blocks, Projected, SparseVector
from nearly.derivatives.curves import Dense as DenseMap
from nearly.derivatives.operators import D, directional, laplacian, power_sum, trace
from nearly.derivatives.pinn import (
    BallPoints,
    ball_network,
    single_sample_residual_loss,
    unbiased_residual_loss,
)
from nearly.derivatives.samplers import GAUSSIAN, GOLDEN, Dense, Sparse, draw_subset
from nearly.derivatives.stde import exact, stde

DRAWS = 3000


@pytest.fixture(autouse=True)
def float64() -> Any:
    with jax.enable_x64(True):
        yield


def cubic(x: Any) -> Any:
    """Its derivatives are known by hand: second -2i - 6 x_i at i, third -6, mixed d_0 d_1 = x_2."""
    weights = jnp.arange(x.size)
    return -jnp.sum(weights * x**2) - jnp.sum(x**3) + x[0] * x[1] * x[2]


def point(size: int = 7) -> Any:
    return jnp.asarray(np.random.default_rng(3).normal(size=size))


def draws(operator: Any, sampler: Any, f: Any = cubic) -> Any:
    keys = jax.random.split(jax.random.key(11), DRAWS)
    return jax.jit(jax.vmap(lambda k: stde(operator, sampler)(f)(point(), k)))(keys)


def hand(x: Any) -> float:
    return float(sum(-2 * i - 6 * v for i, v in enumerate(x)))


@pytest.mark.parametrize(
    ("operator", "sampler"),
    [
        (laplacian(), Sparse(3)),
        (laplacian(), Dense(3)),
        (laplacian() + power_sum(3), Dense(3, GOLDEN)),
        (laplacian() + 0.1 * power_sum(2) * power_sum(1), Sparse(5)),
        (laplacian() + D(0) * D(1) - directional(jnp.ones(7)), Dense(2)),
    ],
    ids=lambda v: type(v).__name__,
)
def test_estimates_are_unbiased_and_know_their_error(operator: Any, sampler: Any) -> None:
    found = draws(operator, sampler)
    truth = applied(operator)
    error = found.value.std(ddof=1) / DRAWS**0.5
    assert abs(found.value.mean() - truth) <= 3 * error
    claimed = jnp.sqrt(jnp.mean(found.standard_error**2))
    assert claimed == pytest.approx(float(found.value.std()), rel=0.1)
    np.testing.assert_allclose(found.function, cubic(point()), rtol=1e-14)


def applied(operator: Any) -> Any:
    return jax.jit(exact(operator)(cubic))(point())


def test_exact_operators_by_hand() -> None:
    x = point()
    assert applied(laplacian() + power_sum(3)) == pytest.approx(hand(x) - 6 * 7)
    assert applied(D(0) * D(1)) == pytest.approx(float(x[2]))
    weights = jnp.arange(2.0)
    weighted = applied(power_sum(2, start=-2, weights=weights))
    assert weighted == pytest.approx(float(-12 - 6 * x[6]))
    second = -2 * jnp.arange(7) - 6 * x
    hessian = (
        jnp.diag(second)
        .at[:3, :3]
        .add(jnp.array([[0, x[2], x[1]], [x[2], 0, x[0]], [x[1], x[0], 0]]))
    )
    sigma = jnp.asarray(np.random.default_rng(5).normal(size=(7, 2)))
    truth = jnp.trace(sigma.T @ hessian @ sigma)
    assert applied(trace(sigma)) == pytest.approx(float(truth))


def test_biharmonic_of_the_fourth_power_of_the_radius() -> None:
    """The square of the Laplacian of |x|^4 is 8 d (d + 2)."""
    truth = 8 * 7 * 9

    def quartic(x: Any) -> Any:
        return jnp.sum(x**2) ** 2

    assert jax.jit(exact(laplacian() ** 2)(quartic))(point()) == pytest.approx(truth)
    for sampler in (Dense(4, GAUSSIAN), Dense(2)):
        found = draws(laplacian() ** 2, sampler, quartic).value
        assert abs(found.mean() - truth) <= 3 * found.std() / DRAWS**0.5


def test_all_summands_are_no_estimate() -> None:
    found = stde(laplacian(), Sparse(7))(cubic)(point(), jax.random.key(0))
    assert found.standard_error == 0
    assert found.value == pytest.approx(hand(point()))
    assert found.jets == 7


def test_one_jet_serves_all_orders_along_a_direction() -> None:
    found = stde(laplacian() + power_sum(3) + power_sum(1), Sparse(3))(cubic)(
        point(), jax.random.key(0)
    )
    assert found.jets == 3


@pytest.mark.parametrize(("population", "count"), [(5, 5), (20, 7), (10**9, 16), (30, 5)])
def test_subsets_are_drawn_without_replacement(population: int, count: int) -> None:
    found = np.asarray(draw_subset(jax.random.key(2), population, count))
    assert len(set(found.tolist())) == count
    assert 0 <= found.min() <= found.max() < population


def test_every_element_is_as_likely() -> None:
    keys = jax.random.split(jax.random.key(4), 8000)
    found = np.asarray(jax.vmap(lambda k: draw_subset(k, 30, 5))(keys))
    counts = np.bincount(found.ravel(), minlength=30)
    assert np.abs(counts - 8000 * 5 / 30).max() < 4.5 * (8000 * 5 / 30 * 25 / 30) ** 0.5


@pytest.mark.parametrize(("dtype", "sampler"), [("float32", Sparse(4)), ("float64", Dense(4))])
def test_a_projected_network_has_the_derivatives_of_the_function_it_is(
    dtype: str, sampler: Any
) -> None:
    network = ball_network(12, jax.random.key(1), width=6, depth=3, block=3, dtype=dtype)
    x = jnp.asarray(np.random.default_rng(0).normal(size=12) / 4, dtype)
    transformation = stde(laplacian() + D(0) * D(5) ** 2, sampler)
    functions = (network, lambda x: network(x))
    fast, plain = (jax.jit(transformation(f))(x, jax.random.key(3)).value for f in functions)
    assert fast.dtype == dtype
    assert float(fast) == pytest.approx(float(plain), rel=1e-10 if dtype == "float64" else 1e-3)


def test_shared_weights_are_a_matrix() -> None:
    kernel, weight = (
        jnp.array([1.0, -2.0]),
        jnp.asarray(np.random.default_rng(1).normal(size=(3, 4))),
    )
    blocks = Blocks(kernel, weight)
    matrix = jnp.kron(weight, kernel[:, None])
    x = point(6)
    np.testing.assert_allclose(blocks(x), DenseMap(matrix)(x), rtol=1e-14)
    indices = jnp.array([5, 0, 3])
    np.testing.assert_allclose(blocks.columns(indices), matrix[indices].T, rtol=1e-14)
    vector = SparseVector(indices, jnp.array([1.0, 2.0, -1.0]))
    np.testing.assert_allclose(blocks.along(vector), blocks(vector.dense(6)), rtol=1e-13)


def test_sparse_directions_cost_the_same_in_any_dimension() -> None:
    """Compiled from shapes alone: what 8 more directions add does not depend on d."""

    def flops(directions: int, dimension: int) -> float:
        model = jax.eval_shape(lambda k: ball_network(dimension, k, width=8), jax.random.key(0))
        x = jax.ShapeDtypeStruct((dimension,), jnp.float32)

        def value(m: Projected, x: Any) -> Any:
            return stde(laplacian(), Sparse(directions))(m)(x, jax.random.key(0)).value

        return jax.jit(value).lower(model, x).compile().cost_analysis()["flops"]

    in_a_million = flops(16, 10**6) - flops(8, 10**6)
    in_a_thousand = flops(16, 10**3) - flops(8, 10**3)
    assert in_a_million == pytest.approx(in_a_thousand, rel=0.05)


def test_the_gradient_of_the_unbiased_loss_is_unbiased() -> None:
    """u = a sum w_i x_i^2: the residual is a S - 1 with S = 2 sum w_i, its square's slope known."""
    weights = jnp.array([1.0, 5.0, -3.0, 2.0])
    total = 2 * float(weights.sum())

    def family(scale: Any) -> Any:
        return lambda x: scale * jnp.sum(weights * x**2)

    def residual(found: Any, x: Any) -> Any:
        return found.value - 1.0

    truth = 2 * total * (total - 1)
    mean, error = _slopes(unbiased_residual_loss(laplacian(), residual, Sparse(2)), family)
    assert abs(mean - truth) <= 3 * error
    variance = 4 * 16 * float(weights.var(ddof=1)) / 2 * (1 - 2 / 4)
    mean, error = _slopes(single_sample_residual_loss(laplacian(), residual, Sparse(2)), family)
    assert abs(mean - truth - 2 * variance) <= 3 * error
    assert variance > 10 * error


def _slopes(loss: Any, family: Any) -> tuple[float, float]:
    """Mean and standard error of the slope of a loss in the family's one parameter, at 1."""
    slope = jax.grad(lambda a, k: loss(family(a), jnp.ones((1, 4)), k))
    keys = jax.random.split(jax.random.key(0), 4000)
    found = jax.jit(jax.vmap(lambda k: slope(1.0, k)))(keys)
    return float(found.mean()), float(found.std()) / 4000**0.5


def test_points_lie_in_the_ball_and_networks_vanish_on_its_surface() -> None:
    x = BallPoints(50, 20, "float64")(jax.random.key(0))
    radii = np.linalg.norm(x, axis=1)
    assert radii.max() <= 1
    assert 0.2 < radii.mean() < 0.8
    network = ball_network(20, jax.random.key(1), dtype="float64")
    assert abs(network(x[0] / radii[0])) < 1e-14
    assert abs(network(x[0])) > 1e-3


def test_errors_name_the_value_and_the_remedy() -> None:
    x, key = point(), jax.random.key(0)
    with pytest.raises(InputError, match="use Sparse directions or the law GOLDEN"):
        stde(power_sum(3), Dense(2))(cubic)(x, key)
    with pytest.raises(InputError, match="order 4: use Sparse"):
        stde(power_sum(4), Dense(2, GAUSSIAN))(cubic)(x, key)
    with pytest.raises(InputError, match="dense directions take no weights"):
        stde(power_sum(2, weights=jnp.ones(7)), Dense(2))(cubic)(x, key)
    with pytest.raises(InputError, match="axis 9 does not exist in 7 dimensions"):
        stde(D(9))(cubic)(x, key)
    with pytest.raises(InputError, match="3 weights for 7 axes"):
        stde(power_sum(2, weights=jnp.ones(3)))(cubic)(x, key)
    with pytest.raises(InputError, match="summands are too many to take all of"):
        exact(laplacian() ** 2)(cubic)(jnp.ones(10**5))
    with pytest.raises(InputError, match="0 directions: at least 1"):
        Sparse(0)
    with pytest.raises(InputError, match="divide the dimension 10"):
        ball_network(10, key, block=3)
    with pytest.raises(InputError, match="from 0 on"):
        laplacian() ** -1
