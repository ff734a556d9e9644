"""What is captured of a layer is its gradient, for every kind of layer and every use of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nearly.core.errors import InputError
from nearly.curvature.capture import Capture, layer_names, uncovered

KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def x64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def normal(*shape: int, seed: int = 1) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, "float64")


def worst(model: Any, inputs: jax.Array, predict: Callable[..., Any], **options: Any) -> float:
    """The largest difference between captured and true per-sample gradients, under jit and vmap."""
    capture = Capture.of(model, inputs[0], predict=predict, **options)
    parameters, rest = eqx.partition(model, eqx.is_inexact_array)
    outputs = jax.vmap(lambda x: predict(model, x))(inputs)
    cotangents = normal(*outputs.shape, seed=5)

    def truth(x: Any, c: Any) -> Any:
        _, pull = jax.vjp(lambda p: predict(eqx.combine(p, rest), x), parameters)
        return capture.matrices(pull(c)[0])

    def captured(x: Any, c: Any) -> Any:
        return {n: got.gradient for n, got in capture.pull(model, x, c).items()}

    expected = jax.vmap(truth)(inputs, cotangents)
    found = jax.jit(jax.vmap(captured))(inputs, cotangents)
    assert found.keys() == expected.keys()
    return max(float(jnp.max(jnp.abs(found[n] - expected[n]))) for n in expected)


def call(model: Any, x: Any) -> Any:
    return model(x)


def test_mlp() -> None:
    model = eqx.nn.MLP(3, 2, 5, 2, key=KEY)
    assert layer_names(model) == ("layers[0]", "layers[1]", "layers[2]")
    assert uncovered(model) == ()
    assert worst(model, normal(4, 3), call) < 1e-12


def test_scalar_features_and_no_bias() -> None:
    model = eqx.nn.MLP("scalar", "scalar", 4, 1, use_bias=False, key=KEY)
    assert worst(model, normal(5), call) < 1e-12


class Convolutional(eqx.Module):
    first: eqx.nn.Conv2d
    second: eqx.nn.Conv2d
    last: eqx.nn.Linear

    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = jnp.tanh(self.first(x))
        return self.last(jnp.tanh(self.second(hidden)).ravel())


@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect", "replicate"])
def test_convolutions(mode: str) -> None:
    a, b, c = jax.random.split(KEY, 3)
    first = eqx.nn.Conv2d(2, 3, 3, stride=2, padding=1, padding_mode=mode, key=a)
    second = eqx.nn.Conv2d(3, 2, 2, dilation=2, key=b)
    model = Convolutional(first, second, eqx.nn.Linear(8, 2, key=c))
    assert worst(model, normal(3, 2, 8, 8), call) < 1e-12


def test_convolution_padded_same() -> None:
    model = eqx.nn.Conv1d(2, 3, 4, padding="SAME", use_bias=False, key=KEY)
    assert worst(model, normal(3, 2, 6), call) < 1e-12


def test_attention_has_a_row_for_every_token() -> None:
    model = eqx.nn.MultiheadAttention(2, 6, key=KEY)

    def predict(m: Any, x: Any) -> Any:
        return m(x, x, x)

    tokens = normal(3, 7, 6)
    capture = Capture.of(model, tokens[0], predict=predict)
    assert set(capture.uses.values()) == {7}
    assert worst(model, tokens, predict) < 1e-12


def test_rows_are_the_tokens_in_order() -> None:
    layer = eqx.nn.Linear(3, 2, key=KEY)

    def predict(m: Any, x: Any) -> Any:
        return jax.vmap(m)(x)

    tokens, cotangent = normal(5, 3), normal(5, 2, seed=2)
    captured = Capture.of(layer, tokens, predict=predict).pull(layer, tokens, cotangent)["model"]
    np.testing.assert_array_equal(captured.rows[:, :3], tokens)
    np.testing.assert_array_equal(captured.rows[:, 3], 1)
    np.testing.assert_array_equal(captured.deltas, cotangent)


def test_embedding() -> None:
    model = eqx.nn.Sequential(
        [eqx.nn.Embedding(10, 4, key=KEY), eqx.nn.Linear(4, 2, key=jax.random.key(1))]
    )
    tokens = jax.random.randint(KEY, (3, 6), 0, 10)
    assert worst(model, tokens, lambda m, x: jax.vmap(m)(x)) < 1e-12


@pytest.mark.parametrize(
    "predict",
    [
        lambda m, x: m(jnp.tanh(m(x))),
        lambda m, x: jax.vmap(m)(jnp.stack([x, 2 * x])).sum(0) + m(3 * x),
        lambda m, x: jax.vmap(jax.vmap(m))(x * jnp.arange(1.0, 7.0).reshape(2, 3, 1)).sum((0, 1)),
        lambda m, x: jax.checkpoint(lambda y: jnp.tanh(m(y)))(x),
        lambda m, x: jax.lax.cond(x[0] > -100, lambda y: m(y), lambda y: y, x),
    ],
    ids=["twice", "vmap and call", "nested vmap", "checkpoint", "cond"],
)
def test_shared_weights(predict: Callable[..., Any]) -> None:
    assert worst(eqx.nn.Linear(3, 3, key=KEY), normal(4, 3), predict) < 1e-12


def test_some_layers_only() -> None:
    model = eqx.nn.MLP(3, 2, 5, 2, key=KEY)
    assert worst(model, normal(4, 3), call, layers=["layers[1]"]) < 1e-12
    kept = Capture.of(model, normal(3), layers=["layers[1]"]).filter(model)
    assert len(jax.tree.leaves(kept)) == 2


def test_matrices_and_parameters_invert_each_other() -> None:
    model = eqx.nn.MLP(3, 2, 5, 2, key=KEY)
    capture = Capture.of(model, normal(3))
    kept = capture.filter(model)
    assert eqx.tree_equal(capture.parameters(kept, capture.matrices(kept)), kept)


def test_float32() -> None:
    with jax.enable_x64(False):
        model = eqx.nn.MLP(3, 2, 5, 2, key=KEY)
        x = jnp.ones((3,), "float32")
        found = Capture.of(model, x).pull(model, x, jnp.ones((2,), "float32"))
        assert {c.rows.dtype for c in found.values()} == {np.dtype("float32")}


# ------------------------------------------------------------------ what is refused


class WithNorm(eqx.Module):
    norm: eqx.nn.LayerNorm
    linear: eqx.nn.Linear

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.linear(self.norm(x))


def test_a_parameter_outside_the_layers_is_named() -> None:
    model = WithNorm(eqx.nn.LayerNorm(3), eqx.nn.Linear(3, 2, key=KEY))
    with pytest.raises(InputError, match=r"norm\.weight lies in no layer.*layer_names"):
        Capture.of(model, normal(3))
    assert worst(model, normal(4, 3), call, layers=["linear"]) < 1e-12


def test_scan_is_refused() -> None:
    def predict(m: Any, x: Any) -> Any:
        return jax.lax.scan(lambda h, _: (m(h), None), x, None, length=3)[0]

    with pytest.raises(InputError, match="used in a loop"):
        Capture.of(eqx.nn.Linear(3, 3, key=KEY), normal(3), predict=predict)


def test_weights_used_outside_their_call_are_refused() -> None:
    with pytest.raises(InputError, match="also used outside its own call"):
        Capture.of(
            eqx.nn.Linear(3, 3, key=KEY), normal(3), predict=lambda m, x: m(x) + m.weight @ x
        )


def test_tied_weights_are_refused() -> None:
    pair = (eqx.nn.Embedding(5, 4, key=KEY), eqx.nn.Linear(4, 5, use_bias=False, key=KEY))
    tied = eqx.nn.Shared(pair, lambda p: p[1].weight, lambda p: p[0].weight)
    with pytest.raises(InputError, match=r"\[1\]\.weight is .*tied"):
        Capture.of(tied, jnp.asarray(2), predict=lambda m, x: m()[1](m()[0](x)))


def test_a_stack_of_layers_is_refused() -> None:
    stack = eqx.filter_vmap(lambda k: eqx.nn.Linear(3, 3, key=k))(jax.random.split(KEY, 4))
    with pytest.raises(InputError, match=r"shape \(4, 3, 3\)"):
        Capture.of(stack, normal(3), predict=lambda m, x: x)


def test_groups_are_refused() -> None:
    with pytest.raises(InputError, match="2 groups"):
        Capture.of(eqx.nn.Conv1d(2, 2, 1, groups=2, key=KEY), normal(2, 4))


def test_unused_and_unknown_layers_are_refused() -> None:
    model = eqx.nn.MLP(3, 2, 5, 2, key=KEY)
    with pytest.raises(InputError, match="not used for the example"):
        Capture.of(model, normal(3), predict=lambda m, x: m.layers[0](x))
    with pytest.raises(InputError, match="no linear layer of the model"):
        Capture.of(model, normal(3), layers=["layers[9]"])
    with pytest.raises(InputError, match="no layer is to be read"):
        Capture.of(model, normal(3), layers=[])


def test_another_use_of_the_model_than_the_examples_is_refused() -> None:
    layer = eqx.nn.Linear(3, 3, key=KEY)

    def predict(m: Any, x: Any) -> Any:
        return m(x) if x.dtype == "float64" else m(m(x))

    capture = Capture.of(layer, normal(3), predict=predict)
    with pytest.raises(InputError, match="called 2 times, but 1 times for the example"):
        capture.pull(layer, normal(3).astype("float32"), normal(3))
