"""Convolutions as products: the same values as `eqx.nn.Conv`, for whole models too."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nearly.training.convolution import ProductConvolution, as_products

CASES = (
    (1, "ZEROS", 3, 1),
    (1, "CIRCULAR", 3, 2),
    (1, "REFLECT", 5, 1),
    (2, "REPLICATE", 4, 3),
    (2, "CIRCULAR", 1, 1),
    (3, "ZEROS", 3, 2),
)


@pytest.mark.parametrize(("dims", "mode", "kernel", "stride"), CASES)
def test_values_are_those_of_the_convolution(
    dims: int, mode: str, kernel: int, stride: int
) -> None:
    layer = eqx.nn.Conv(
        dims, 3, 5, kernel, stride, padding=kernel // 2, padding_mode=mode, key=jax.random.key(0)
    )
    x = jax.random.normal(jax.random.key(1), (3, *(8, 9, 6)[:dims]))
    converted = as_products(layer)
    assert isinstance(converted, ProductConvolution)
    np.testing.assert_allclose(converted(x), layer(x), atol=1e-5)


@pytest.mark.parametrize("groups", (2, 4))
def test_groups_of_channels_stay_apart(groups: int) -> None:
    layer = eqx.nn.Conv2d(4, 8, 3, padding=1, groups=groups, key=jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (4, 6, 7))
    np.testing.assert_allclose(as_products(layer)(x), layer(x), atol=1e-5)


@pytest.mark.parametrize("settings", ({"dilation": 2}, {"padding": "SAME"}))
def test_others_stay_as_they_are(settings: dict[str, Any]) -> None:
    layer = eqx.nn.Conv1d(3, 6, 3, key=jax.random.key(0), **settings)
    assert as_products(layer) is layer


def test_a_model_is_converted_as_a_whole_and_has_the_same_gradient() -> None:
    first, second = jax.random.split(jax.random.key(0))
    model = eqx.nn.Sequential(
        [
            eqx.nn.Conv1d(1, 4, 3, padding=1, padding_mode="CIRCULAR", key=first),
            eqx.nn.Lambda(jnp.tanh),
            eqx.nn.Conv1d(4, 1, 3, 2, padding=1, key=second),
        ]
    )
    converted = as_products(model)
    assert isinstance(converted[0], ProductConvolution)
    assert isinstance(converted[2], ProductConvolution)
    x = jax.random.normal(jax.random.key(1), (1, 8))

    def gradient(model: object) -> list[jax.Array]:
        return jax.tree.leaves(eqx.filter_grad(lambda m: jnp.sum(m(x) ** 2))(model))

    for ours, theirs in zip(gradient(converted), gradient(model), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
