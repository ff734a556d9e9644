"""The generated functions as JAX users expect them: typed, promoted, compiled, documented."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from functools import lru_cache
from importlib.resources import files
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nearly.core.errors import InputError
from nearly.functions.float32.recipes import RECIPES

NARROW = ("bool", "float16", "bfloat16", "float32")


def drop_in(name: str) -> Callable[[Any], jax.Array]:
    """The float32 function called `name`, compiled when it is first used.

    Takes an array or a number, elementwise; gives float32. Raises `InputError` for float64,
    complex numbers, and what is no array. Inside another compiled function it is inlined.
    """
    generated = importlib.import_module(f"nearly.functions.float32.generated.{name}")
    compute = getattr(generated, name)

    def function(x: Any) -> jax.Array:
        return compute(single(name, x))

    function.__name__ = function.__qualname__ = name
    function.__doc__ = RECIPES[name].sentence(measured()[name])
    compiled = jax.jit(function, inline=True)

    def checked(x: Any) -> jax.Array:
        if not (isinstance(x, (bool, int, float, complex)) or hasattr(x, "dtype")):
            raise InputError(
                f"{name} takes an array or a number, not {type(x).__name__}: use jnp.asarray(x), "
                f"or jax.tree.map(float32.{name}, x) for a tree of arrays"
            )
        return compiled(x)

    checked.__name__, checked.__qualname__ = name, name
    checked.__doc__ = function.__doc__
    checked.__module__ = "nearly.functions.float32"
    return checked


def single(name: str, x: Any) -> jax.Array:
    """An array or number as float32, if nothing of it is lost by that."""
    array = jnp.asarray(x)
    integral = jnp.issubdtype(array.dtype, jnp.integer)
    # With x64 on a Python number is a weak float64: it takes the type of what it meets.
    weak = array.dtype == np.float64 and getattr(array, "weak_type", False)
    if not (integral or weak or array.dtype.name in NARROW):
        raise InputError(
            f"float32.{name} got {array.dtype.name}, which does not fit into float32: convert it "
            f"with x.astype(jnp.float32), or use JAX's own function for {array.dtype.name}"
        )
    return array.astype(jnp.float32)


@lru_cache(maxsize=1)
def measured() -> dict[str, Any]:
    """What trying every input has found, by function: the contents of `errors.json`."""
    text = files("nearly.functions.float32").joinpath("errors.json").read_text()
    return json.loads(text)
