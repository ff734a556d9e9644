"""`scan`: a `jax.lax.scan` whose steps a capture can tell apart, for recurrent models.

JAX traces the body of a loop once, so nothing in it knows which step it is. Here the body is told,
out of sight of the model: each step has its number, and a probe in it asks for that.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree


class Step(NamedTuple):
    """The number of a step, counted over all loops around it, and how many steps there are."""

    number: Array | int
    steps: int


_current: ContextVar[Step | None] = ContextVar("step", default=None)


def current_step() -> Step:
    """The step of the loops, made by `scan`, whose body is traced now; outside, the only one."""
    return _current.get() or Step(0, 1)


def scan(
    body: Callable[[Any, Any], tuple[Any, Any]],
    init: PyTree,
    xs: PyTree = None,
    length: int | None = None,
    *,
    reverse: bool = False,
    unroll: int | bool = 1,
) -> tuple[PyTree, PyTree]:
    """`jax.lax.scan`, with its arguments and results; layers used in `body` can be captured.

    Costs nothing unless a model is captured: then a layer's T uses cost T^2 copies of its row.
    """
    steps = len(jax.tree.leaves(xs)[0]) if length is None else length

    def told(carry: Any, numbered: tuple[Int[Array, ""], Any]) -> tuple[Any, Any]:
        number, x = numbered
        outer = current_step()
        with _at(Step(outer.number * steps + number, outer.steps * steps)):
            return body(carry, x)

    numbers = jnp.arange(steps, dtype=jnp.int32)
    return jax.lax.scan(told, init, (numbers, xs), steps, reverse=reverse, unroll=unroll)


@contextlib.contextmanager
def _at(step: Step) -> Generator[None]:
    token = _current.set(step)
    try:
        yield
    finally:
        _current.reset(token)
