"""Addition modulo a prime: the pairs, and both losses on it."""

import jax
import numpy as np
import optax
import pytest

import nearly
from nearly.errors import InputError, UnknownName
from nearly.optimize import orthogonal_gradient


def numbers(inputs):
    return np.argmax(inputs[:, :5], axis=1), np.argmax(inputs[:, 5:], axis=1)


def test_every_pair_is_there_once_with_its_sum():
    problem = nearly.problem("modular-addition", prime=5)
    inputs = np.concatenate([problem.inputs, problem.test_inputs])
    targets = np.concatenate([problem.targets, problem.test_targets])
    first, second = numbers(inputs)
    assert len(problem.inputs) == 10
    assert len(set(zip(first, second, strict=True))) == 25
    assert np.all(inputs.sum(axis=1) == 2)
    np.testing.assert_array_equal(targets, (first + second) % 5)


def test_the_training_pairs_are_fitted_with_stablemax():
    problem = nearly.problem("modular-addition", prime=5, loss="stablemax")
    optimizer = optax.chain(orthogonal_gradient(), optax.adam(1e-2))
    standin = problem.build(optimizer, 60, key=None)
    value = jax.device_get(jax.jit(lambda: problem.apply(standin, key=jax.random.key(0)))())
    errors = problem.errors(value)
    assert errors["training loss"] < 0.1
    assert 0 <= errors["test mistakes"] <= 1


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"prime": 57}, InputError, "prime 57"),
        ({"prime": 2}, InputError, "prime 2"),
        ({"loss": "stable"}, UnknownName, "stablemax"),
    ],
)
def test_bad_settings_are_named(settings, error, words):
    with pytest.raises(error, match=words):
        nearly.problem("modular-addition", **settings)
