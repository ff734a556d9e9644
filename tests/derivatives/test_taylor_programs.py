"""Higher-order programs: what they denote is differentiated, however they are written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from nearly.derivatives.problems.higher_order_programs import WIDTH, random_program
from nearly.derivatives.taylor import directional_derivatives, jet

X, V = np.array([0.2, -0.3, 0.4]), np.array([0.5, 0.1, -0.4])


def close(computed: Any, truth: Any, tolerance: float = 1e-11) -> None:
    for a, b in zip(jax.tree.leaves(computed), jax.tree.leaves(truth), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.max(np.abs(b)))


def nested(function: Callable[[Any], Any], order: int) -> Any:
    """The derivative of one order along the line, by nesting forward mode, uncompiled."""
    along: Callable[[Any], Any] = lambda t: function(jnp.asarray(X) + t * V)  # noqa: E731
    for _ in range(order):
        along = differentiated(along)
    with jax.disable_jit():
        return along(jnp.zeros(()))


def differentiated(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda t: jax.jvp(function, (t,), (jnp.ones(()),))[1]


@pytest.mark.parametrize("seed", [10, 11])
def test_random_programs(seed: int) -> None:
    with jax.enable_x64(True):
        program = random_program(seed, depth=1)
        ours = directional_derivatives(program, jnp.asarray(X), jnp.asarray(V), 2)
        close(jax.tree.map(lambda a: a[2], ours), nested(program, 2))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20, 40))
def test_deep_random_programs(seed: int) -> None:
    with jax.enable_x64(True):
        program = random_program(seed, depth=3)
        ours = jax.jit(lambda x, v: directional_derivatives(program, x, v, 3))(X, V)
        close(jax.tree.map(lambda a: a[3], ours), nested(program, 3), 1e-9)


def test_two_ways_to_write_a_program_have_one_derivative() -> None:
    def looped(x: Any) -> Any:
        return lax.fori_loop(0, 3, lambda _, y: jnp.sin(y) * x, x)

    def unrolled(x: Any) -> Any:
        return jnp.sin(jnp.sin(jnp.sin(x) * x) * x) * x

    with jax.enable_x64(True):
        a, b = (
            directional_derivatives(f, jnp.asarray(X), jnp.asarray(V), 5)
            for f in (looped, unrolled)
        )
        close(a, b)


def test_a_series_of_a_series_is_the_series_of_the_composition() -> None:
    """Functoriality, at the heart of the proof: jet(g o f) = jet(g) after jet(f)."""
    f, g = (lambda x: jnp.sin(x) * x), (lambda y: jnp.exp(y) / (2 + y))
    with jax.enable_x64(True):
        series = [jnp.asarray(V), jnp.asarray(X), jnp.asarray(V * X)]
        whole = jet(lambda x: g(f(x)), (jnp.asarray(X),), (series,))
        between, terms = jet(f, (jnp.asarray(X),), (series,))
        close(whole, jet(g, (between,), (terms,)))


def test_expansions_nest() -> None:
    """The second derivative along u of the second along v, at once and one after the other."""

    def function(x: Any) -> Any:
        return jnp.exp(x[0]) * x[1] ** 3 * jnp.sin(x[2])

    with jax.enable_x64(True):
        x, v, u = jnp.asarray(X), jnp.asarray(V), jnp.ones(WIDTH)

        def inner(y: Any) -> Any:
            return directional_derivatives(function, y, v, 2)[2]

        mixed = jax.jit(lambda y: directional_derivatives(inner, y, u, 2)[2])(x)
        hessian = jax.hessian(lambda y: v @ jax.hessian(function)(y) @ v)(x)
        close(mixed, u @ hessian @ u)


def test_parameters_that_move_in_a_closure_do_not_leak() -> None:
    """A derivative inside a derivative: the two directions must not be confused."""
    with jax.enable_x64(True):

        def outer(x: Any) -> Any:
            return directional_derivatives(
                lambda y: x * y * y, jnp.asarray(2.0), jnp.asarray(1.0), 1
            )[1]

        # d/dy (x y^2) = 2 x y = 4 x at y = 2, whose derivative in x is 4 and not more.
        close(
            directional_derivatives(outer, jnp.asarray(3.0), jnp.asarray(1.0), 2),
            np.array([12.0, 4.0, 0.0]),
        )
