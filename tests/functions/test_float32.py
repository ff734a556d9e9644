"""The float32 functions: drop-in behaviour, derivatives, and the shipped files against the truth.

Every input of each is tried by `scripts/float32.py`; here a spread of them is, against ball
arithmetic, on the shipped text itself.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flint import arb, ctx
from jax import lax

from nearly.core.errors import InputError
from nearly.functions import float32
from nearly.functions.float32.drop_in import measured
from nearly.functions.float32.recipes import RECIPES
from nearly.functions.reference import error_in_ulps

ROOT = Path(__file__).parents[2]
INF, NAN = math.inf, math.nan
SHIPPED = float32.NAMES

# (x, f(x)) where f(x) is exact or not a number; signs of zeros count.
SPECIAL: dict[str, list[tuple[float, float]]] = {
    "exp2": [(-INF, 0), (INF, INF), (0, 1), (-0.0, 1), (128, INF), (-149, 2**-149), (-151, 0)],
    "exp": [(-INF, 0), (INF, INF), (0, 1), (-0.0, 1), (89, INF), (-104, 0)],
    "expm1": [(-INF, -1), (INF, INF), (0, 0), (-0.0, -0.0), (89, INF), (-1e30, -1)],
    "log2": [(0, -INF), (-0.0, -INF), (1, 0), (INF, INF), (-1, NAN), (2**-149, -149), (8, 3)],
    "log": [(0, -INF), (-0.0, -INF), (1, 0), (INF, INF), (-1, NAN), (-INF, NAN)],
    "log1p": [(0, 0), (-0.0, -0.0), (-1, -INF), (INF, INF), (-1.5, NAN), (2**-149, 2**-149)],
    "sin": [(0, 0), (-0.0, -0.0), (INF, NAN), (-INF, NAN), (2**-149, 2**-149)],
    "cos": [(0, 1), (-0.0, 1), (INF, NAN), (-INF, NAN), (2**-149, 1)],
    "tan": [(0, 0), (-0.0, -0.0), (INF, NAN), (-INF, NAN), (2**-149, 2**-149)],
    "atan": [(0, 0), (-0.0, -0.0), (2**-149, 2**-149), (-(2**-149), -(2**-149))],
    "asin": [(0, 0), (-0.0, -0.0), (1.5, NAN), (-INF, NAN), (2**-149, 2**-149)],
    "acos": [(1, 0), (1.5, NAN), (-1.5, NAN), (INF, NAN)],
    "cbrt": [(0, 0), (-0.0, -0.0), (INF, INF), (-INF, -INF), (-27, -3), (2**-147, 2**-49)],
    "rsqrt": [(0, INF), (INF, 0), (-1, NAN), (4, 0.5), (2**-148, 2**74)],
    "erf": [(0, 0), (-0.0, -0.0), (INF, 1), (-INF, -1), (9, 1)],
    "erfc": [(0, 1), (INF, 0), (-INF, 2), (-9, 2), (11, 0)],
    "erf_inv": [(0, 0), (-0.0, -0.0), (1, INF), (-1, -INF), (1.5, NAN), (-INF, NAN)],
    "tanh": [(0, 0), (-0.0, -0.0), (INF, 1), (-INF, -1), (20, 1), (2**-149, 2**-149)],
    "sigmoid": [(0, 0.5), (INF, 1), (-INF, 0), (90, 1), (-110, 0)],
    "gelu": [(0, 0), (-0.0, -0.0), (INF, INF), (-INF, -0.0), (20, 20)],
    "lgamma": [(1, 0), (2, 0), (INF, INF), (0, INF), (-0.0, INF), (-1, INF), (1e38, INF)],
    "digamma": [(INF, INF), (-1, NAN), (-INF, NAN), (0, -INF)],
}
# Where derivatives are compared: away from zeros and poles.
PLACES = {"acos": 0.25, "asin": 0.25, "erf_inv": 0.25, "lgamma": 3.75, "digamma": 3.75, "log": 2.25}
STEP = 2.0**-7

# An odd stride, so that all significands and exponents meet.
SPREAD = np.arange(77, 2**32, (2**32 // 300) | 1).astype(np.uint32).view(np.float32)


def function(name: str) -> Callable[..., Any]:
    return getattr(float32, name)


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("float32_script", ROOT / "scripts/float32.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_recipe_is_shipped_with_its_figure() -> None:
    assert sorted(SHIPPED) == sorted(RECIPES) == sorted(measured())
    for name, found in measured().items():
        assert found["failures"] == 0, name
        assert found["worst_ulp"] <= RECIPES[name].tolerance, name


@cache
def computed(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Arguments and values: the special ones, two for a difference, and the spread; compiled once.

    All functions get as many, so that their tests compile them for one shape each.
    """
    special = [x for x, _ in SPECIAL[name]] + [NAN, place(name) - STEP, place(name) + STEP]
    x = np.concatenate([np.array(special, np.float32), SPREAD])
    return x, np.asarray(function(name)(x))


def place(name: str) -> float:
    return PLACES.get(name, 0.75)


@pytest.mark.parametrize("name", SHIPPED)
def test_special_values(name: str) -> None:
    expected = np.array([y for _, y in SPECIAL[name]] + [NAN], np.float32)
    found = computed(name)[1][: expected.size]
    np.testing.assert_array_equal(found, expected)
    zeros = expected == 0
    assert (np.signbit(found) == np.signbit(expected))[zeros].all()


@pytest.mark.parametrize("name", SHIPPED)
def test_a_spread_of_all_inputs(name: str) -> None:
    recipe = RECIPES[name]
    pairs = zip(*(a.tolist() for a in computed(name)), strict=True)
    worst = max(error_in_ulps(recipe.function, x, y, recipe.floor) for x, y in pairs)
    assert worst <= recipe.tolerance


@pytest.mark.parametrize("name", SHIPPED)
def test_derivatives_are_those_of_the_mathematics(name: str) -> None:
    x, f = place(name), function(name)
    with ctx.workprec(100):
        _, first, half = map(float, RECIPES[name].function.oracle.taylor(arb(x), 3))
    slope = jax.grad(f)
    found = jax.jit(lambda x: (slope(x), jax.grad(slope)(x)))(x)
    assert float(found[0]) == pytest.approx(first, rel=3e-6)
    assert float(found[1]) == pytest.approx(2 * half, rel=3e-5, abs=3e-6)
    # And of our own values, without anybody's derivative: a central difference.
    count = len(SPECIAL[name]) + 1
    low, high = computed(name)[1][count : count + 2].astype(np.float64)
    assert (high - low) / (2 * STEP) == pytest.approx(first, rel=3e-3)


def test_transformations_agree() -> None:
    x = jnp.linspace(-3, 3, 7, dtype=jnp.float32)
    f = float32.exp2
    expected = np.asarray(f(x))
    for g in (jax.jit(f), jax.vmap(f), jax.jit(jax.vmap(f)), lambda x: lax.map(f, x)):
        np.testing.assert_array_equal(np.asarray(g(x)), expected)
    assert f(x.reshape(7, 1)).shape == (7, 1)
    np.testing.assert_allclose(
        np.asarray(jax.jacfwd(f)(x)), np.diag(expected) * math.log(2), rtol=1e-6
    )


def test_what_goes_in_and_what_comes_out() -> None:
    f = float32.exp2
    for x in (3, 3.0, np.float32(3), jnp.float16(3), jnp.bfloat16(3), np.int8(3), jnp.uint32(3)):
        assert f(x).dtype == jnp.float32
        assert float(f(x)) == 8
    assert float(f(True)) == 2
    with pytest.raises(InputError, match="list"):
        f([1.0])
    with pytest.raises(InputError, match="complex64"):
        f(1j)
    with pytest.raises(AttributeError, match="exp3"):
        _ = float32.exp3


def test_float64_is_refused_where_there_is_float64() -> None:
    with jax.enable_x64(True):
        with pytest.raises(InputError, match=r"float64.*astype"):
            float32.exp2(np.float64(0.5))
        assert float32.exp2(3.0).dtype == jnp.float32  # a Python number takes any type
        assert float(float32.exp2(jnp.float32(3))) == 8
        assert jax.grad(float32.exp2)(jnp.float32(3)).dtype == jnp.float32
    # Without it JAX makes float32 of everything, for its own functions as for ours.
    assert float32.exp2(np.float64(3)).dtype == jnp.float32


def test_documentation_states_the_error() -> None:
    text = float32.exp2.__doc__ or ""
    assert f"{measured()['exp2']['worst_ulp']:.3g} ULP" in text
    assert float32.exp2.__name__ == "exp2"
    assert "exp2" in dir(float32)


def test_the_script_writes_the_same_bytes_again() -> None:
    name = "rsqrt"
    made = script().source(RECIPES[name], measured()[name])
    path = ROOT / "src/nearly/functions/float32/generated" / f"{name}.py"
    assert made == path.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_every_input_was_tried(name: str) -> None:
    assert measured()[name]["inputs"] == 2**32


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_the_script_writes_the_same_bytes_again_for_all(name: str) -> None:
    made = script().source(RECIPES[name], measured()[name])
    path = ROOT / "src/nearly/functions/float32/generated" / f"{name}.py"
    assert made == path.read_text()


def test_the_file_stands_alone() -> None:
    path = ROOT / "src/nearly/functions/float32/generated/exp2.py"
    namespace: dict[str, Any] = {}
    exec(path.read_text(), namespace)
    assert float(namespace["exp2"](10)) == 1024
    imports = [line for line in path.read_text().splitlines() if "import " in line]
    assert imports and not any("nearly" in line for line in imports)
