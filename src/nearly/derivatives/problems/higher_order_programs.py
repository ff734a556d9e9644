"""Random programs with functions as values: closures, currying, iteration, folds, branches, pairs.

The theory of automatic differentiation of higher-order functions (`higher-order-ad`,
`ad-correctness-gluing`) says that what matters is the function a program denotes from numbers to
numbers, whatever functions it passes around on the way. These programs are there to try that.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Function: TypeAlias = Callable[[Any], Any]  # of a vector, smooth, bounded near the unit ball
Draw: TypeAlias = np.random.Generator

WIDTH = 3


def random_program(seed: int, depth: int = 3) -> Function:
    """A program R^3 -> {"state": R^3, "history": (R^(n x 3), R)}, the same for the same seed."""
    draw = np.random.default_rng(seed)
    first, second = _function(draw, depth), _function(draw, depth)
    fold = _fold(draw, second)

    def program(x: Any) -> Any:
        state, history = fold(first(x))
        return {"state": state, "history": (history, jnp.sum(state * second(x)))}

    return program


def _function(draw: Draw, depth: int) -> Function:
    if depth == 0:
        return _primitive(draw)
    makers = (_composition, _iterate, _curried, _through_a_list, _branch, _mapped, _church)
    return makers[draw.integers(len(makers))](draw, depth - 1)


def _primitive(draw: Draw) -> Function:
    weight, shift = draw.uniform(-1, 1, (WIDTH, WIDTH)) / 2, draw.uniform(-1, 1, WIDTH) / 2
    smooth = (jnp.sin, jnp.tanh, jnp.arctan, jax.nn.sigmoid, lambda z: jnp.exp(-z * z))
    outer = smooth[draw.integers(len(smooth))]
    return lambda x: outer(x @ jnp.asarray(weight, x.dtype) + jnp.asarray(shift, x.dtype))


def _composition(draw: Draw, depth: int) -> Function:
    outer, inner = _function(draw, depth), _function(draw, depth)

    def compose(f: Function) -> Callable[[Function], Function]:
        return lambda g: lambda x: f(g(x))

    return compose(outer)(inner)


def _iterate(draw: Draw, depth: int) -> Function:
    step, count = _function(draw, depth), int(draw.integers(1, 4))
    return lambda x: lax.fori_loop(0, count, lambda _, y: step(y) + x / 2, x)


def _curried(draw: Draw, depth: int) -> Function:
    """x goes in as the argument of one function and stays in the closure of another."""
    f, g = _function(draw, depth), _function(draw, depth)

    def weighted(x: Any) -> Function:
        weight = f(x)
        return lambda y: weight * y

    return lambda x: weighted(x)(g(x))


def _through_a_list(draw: Draw, depth: int) -> Function:
    """A list of functions, folded into one."""
    functions = [_function(draw, depth) for _ in range(2)]
    return reduce(lambda f, g: lambda x: f(x) + g(f(x)), functions, lambda x: x)


def _branch(draw: Draw, depth: int) -> Function:
    yes, no, level = _function(draw, depth), _function(draw, depth), draw.uniform(-0.5, 0.5)
    return lambda x: lax.cond(jnp.sum(x) > level, yes, no, x)


def _mapped(draw: Draw, depth: int) -> Function:
    f = _function(draw, depth)

    def spread(x: Any) -> Any:
        rows = jnp.stack([x, x[::-1], x * x])
        return jnp.sum(jax.vmap(lambda row: f(row) * x)(rows), axis=0)

    return spread


def _church(draw: Draw, depth: int) -> Function:
    """A number as the function that iterates: twice(twice)(f) is f four times."""
    f = _function(draw, depth)

    def twice(g: Any) -> Any:
        return lambda y: g(g(y))

    return twice(twice)(f)


def _fold(draw: Draw, f: Function) -> Function:
    scale = draw.uniform(0.3, 0.9, 2)

    def fold(x: Any) -> tuple[Any, Any]:
        def step(carry: Any, factor: Any) -> tuple[Any, Any]:
            after = f(carry) * factor + x / 4
            return after, carry * after

        return lax.scan(step, x, jnp.asarray(scale, x.dtype))

    return fold
