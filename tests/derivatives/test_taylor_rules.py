"""The engine's rules at their edges, its face, and its errors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental.jet import jet as jax_jet

from nearly.core.errors import InputError
from nearly.core.tally import counted, tally
from nearly.derivatives.taylor import directional_derivatives, jet, taylor


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def line(function: Any, x: Any, v: Any, order: int) -> np.ndarray:
    return np.asarray(directional_derivatives(function, jnp.asarray(x), jnp.asarray(v), order))


# ---- closed forms


def test_the_exponential_of_a_line() -> None:
    found = line(jnp.exp, 0.3, 2.0, 8)
    np.testing.assert_allclose(found, [math.exp(0.3) * 2.0**k for k in range(9)], rtol=1e-14)


def test_a_polynomial_ends() -> None:
    found = line(lambda x: x**3 - 2 * x, 2.0, 1.0, 6)
    np.testing.assert_array_equal(found, [4, 10, 12, 6, 0, 0, 0])


def test_taylor_coefficients_are_derivatives_over_factorials() -> None:
    coefficients = taylor(lambda x: 1 / (1 - x), jnp.asarray(0.0), jnp.asarray(1.0), 7)
    np.testing.assert_array_equal(coefficients, np.ones(8))


def test_a_curve_is_followed_to_its_own_order() -> None:
    """x(t) = 1 + 2 t + 3 t^2: x^2 = 1 + 4 t + 10 t^2 + …, as derivatives 4 and 20."""
    value, higher = jet(jnp.square, (jnp.asarray(1.0),), ([2.0, 6.0],))
    assert (float(value), [float(d) for d in higher]) == (1.0, [4.0, 20.0])


# ---- powers at zero


@pytest.mark.parametrize("exponent", [0, 1, 2, 3, 4])
def test_whole_powers_at_zero(exponent: int) -> None:
    expected = np.zeros(5)
    expected[exponent] = math.factorial(exponent)
    np.testing.assert_array_equal(line(lambda x: x**exponent, 0.0, 1.0, 4), expected)
    np.testing.assert_array_equal(line(lambda x: x ** float(exponent), 0.0, 1.0, 4), expected)
    runtime = jax.jit(lambda r: directional_derivatives(lambda x: x**r, 0.0, 1.0, 4))
    np.testing.assert_array_equal(runtime(jnp.asarray(float(exponent))), expected)


def test_a_broken_power_at_zero_has_as_many_derivatives_as_it_has() -> None:
    found = jax.jit(lambda r: directional_derivatives(lambda x: x**r, 0.0, 1.0, 3))(
        jnp.asarray(1.5)
    )
    assert found[0] == found[1] == 0
    assert np.isposinf(found[2])


def test_exponents_that_move() -> None:
    found = line(lambda r: 2.0**r, 3.0, 1.0, 4)
    np.testing.assert_allclose(found, [8 * math.log(2) ** k for k in range(5)], rtol=1e-14)


# ---- choices are those of JAX's own derivative


@pytest.mark.parametrize(
    "function",
    [
        jax.nn.relu,
        jnp.abs,
        lambda x: jnp.maximum(x, 2 * x),
        lambda x: jnp.max(jnp.stack([x, 2 * x])),
        jnp.sinc,
        jax.nn.softplus,
        lambda x: jnp.clip(x, 0.0, 1.0),
        lambda x: jnp.where(x > 0, x**2, -(x**2)),
    ],
)
def test_at_ties_and_kinks_the_first_derivatives_are_those_of_jvp(function: Any) -> None:
    zero = jnp.asarray(0.0)
    _, slope = jax.jvp(function, (zero,), (jnp.ones(()),))
    assert line(function, 0.0, 1.0, 3)[1] == slope


def test_softplus_at_zero_has_the_derivatives_of_a_smooth_function() -> None:
    found = line(jax.nn.softplus, 0.0, 1.0, 6)
    np.testing.assert_allclose(found, [math.log(2), 1 / 2, 1 / 4, 0, -1 / 8, 0, 1 / 4], atol=1e-15)


def test_bessel_functions_on_both_sides_of_their_two_expansions() -> None:
    for x in (1e-3, 39.9, 40.1, 300.0):
        found = line(jax.scipy.special.i1e, -x, 1.0, 3)
        mirrored = line(jax.scipy.special.i1e, x, 1.0, 3)
        np.testing.assert_allclose(
            found, -mirrored * (-1.0) ** np.arange(4), rtol=1e-12, atol=1e-16
        )
    below, above = (line(jax.scipy.special.i0e, x, 1.0, 6) for x in (40 - 1e-9, 40 + 1e-9))
    np.testing.assert_allclose(below, above, rtol=1e-8)


def test_i0_at_zero() -> None:
    np.testing.assert_allclose(
        line(jax.scipy.special.i0, 0.0, 1.0, 4), [1, 0, 1 / 2, 0, 3 / 8], atol=1e-15
    )


def test_complex_numbers() -> None:
    found = line(lambda x: jnp.abs(jnp.exp(1j * x) + 2), 0.4, 1.0, 3)
    truth = line(lambda x: jnp.sqrt(5 + 4 * jnp.cos(x)), 0.4, 1.0, 3)
    np.testing.assert_allclose(found, truth, rtol=1e-14)
    direction = line(lambda x: jnp.sign((1 + x) * jnp.exp(1j * x)), 0.4, 1.0, 3)
    np.testing.assert_allclose(direction, np.exp(0.4j) * 1j ** np.arange(4), rtol=1e-13)


def test_sorted_pairs_move_together() -> None:
    def function(x: Any) -> Any:
        keys, payload = lax.sort([x, jnp.sin(x)], num_keys=1)
        return keys * payload

    x = jnp.asarray([0.5, -0.2, 0.1])
    np.testing.assert_allclose(
        line(function, x, x, 3), line(lambda y: (y * jnp.sin(y))[np.array([1, 2, 0])], x, x, 3)
    )


def test_random_numbers_hold_still() -> None:
    def function(x: Any) -> Any:
        return x * jax.random.normal(jax.random.key(0), (), x.dtype)

    found = line(function, 2.0, 1.0, 2)
    np.testing.assert_array_equal(found, [2 * found[1], found[1], 0])


def test_loops_whose_state_starts_constant() -> None:
    """The state depends on t only from the second step on, a counter and a clock never."""

    def step(state: Any) -> Any:
        i, clock, _, moving = state
        return i + 1, clock + 0.5, moving, moving * x0[0]

    x0: list[Any] = []

    def function(x: Any) -> Any:
        x0[:] = [x]
        start = (0, jnp.zeros(()), jnp.ones(()), jnp.ones(()))
        return lax.while_loop(lambda s: s[0] < 4, step, start)[2:]

    held, moving = directional_derivatives(function, jnp.asarray(1.0), jnp.asarray(1.0), 4)
    np.testing.assert_allclose(moving, [1, 4, 12, 24, 24])
    np.testing.assert_allclose(held, [1, 3, 6, 6, 0])


def test_products_scattered_to_one_place() -> None:
    """Where JAX has no derivative: two of the three updates meet at entry 1."""
    places = jnp.asarray([1, 0, 1])

    def scattered(x: Any) -> Any:
        return jnp.exp(x).at[places].mul(jnp.sin(x))

    def multiplied(x: Any) -> Any:
        factors = jnp.stack([jnp.sin(x[1]), jnp.sin(x[0]) * jnp.sin(x[2]), jnp.ones(())])
        return jnp.exp(x) * factors

    x, v = jnp.asarray([0.3, 0.7, -0.4]), jnp.asarray([1.0, -1.0, 0.5])
    np.testing.assert_allclose(line(scattered, x, v, 4), line(multiplied, x, v, 4), rtol=1e-12)

    def rows(x: Any) -> Any:
        return jnp.ones((2, 3)).at[jnp.asarray([1, 1])].mul(jnp.stack([x, jnp.sin(x)]))

    np.testing.assert_allclose(line(rows, x, v, 3)[:, 1], line(lambda y: y * jnp.sin(y), x, v, 3))


def test_a_vanishing_modulus_does_not_spread_nan() -> None:
    found = line(lambda x: jnp.abs(jnp.stack([x, 1 + x]) + 0j), 0.0, 1.0, 2)
    np.testing.assert_array_equal(found, [[0, 1], [0, 1], [0, 0]])


def test_results_that_cannot_move_are_returned_as_they_are() -> None:
    def function(x: Any) -> Any:
        return {"y": x**2, "n": jnp.argmax(x), "c": 3.0, "key": jax.random.key(0)}

    value, (slope,) = jet(function, (jnp.asarray([1.0, 2.0]),), ([jnp.ones(2)],))
    np.testing.assert_array_equal(slope["y"], [2, 4])
    assert (int(value["n"]), float(value["c"])) == (1, 3.0)
    assert (int(slope["n"]), float(slope["c"])) == (0, 0.0)
    assert slope["key"].dtype == jax.dtypes.float0


# ---- transformations of the result


def network(weights: Any, x: Any) -> Any:
    return jnp.sum(jnp.tanh(weights["second"] @ jax.nn.softplus(weights["first"] @ x)))


WEIGHTS = {
    "first": np.cos(np.arange(12.0)).reshape(4, 3),
    "second": np.sin(np.arange(8.0)).reshape(2, 4),
}


def test_gradients_of_a_high_derivative_agree_with_differences() -> None:
    x, v = jnp.asarray([0.1, 0.2, -0.3]), jnp.asarray([1.0, -0.5, 0.2])

    def loss(weights: Any) -> Any:
        return directional_derivatives(lambda y: network(weights, y), x, v, 3)[3]

    weights = jax.tree.map(jnp.asarray, WEIGHTS)
    gradient = jax.jit(jax.grad(loss))(weights)
    h, compiled = 1e-5, jax.jit(loss)
    moved = [{**weights, "first": weights["first"].at[1, 2].add(s)} for s in (h, -h)]
    difference = (compiled(moved[0]) - compiled(moved[1])) / (2 * h)
    np.testing.assert_allclose(gradient["first"][1, 2], difference, rtol=1e-7)


def test_mapped_jitted_and_eager_agree() -> None:
    points = jnp.linspace(-1, 1, 12).reshape(4, 3)
    v = jnp.ones(3)

    def derivatives(x: Any) -> Any:
        return directional_derivatives(lambda y: network(WEIGHTS, y), x, v, 4)

    mapped = jax.jit(jax.vmap(derivatives))(points)
    np.testing.assert_allclose(mapped[2], derivatives(points[2]), rtol=1e-13)


def test_single_precision_stays_single() -> None:
    x = jnp.asarray(0.5, jnp.float32)
    found = directional_derivatives(lambda y: jnp.sin(y) ** 2.5 / (1 + y), x, x, 4)
    assert found.dtype == jnp.float32
    truth = line(lambda y: jnp.sin(y) ** 2.5 / (1 + y), 0.5, 0.5, 4)
    np.testing.assert_allclose(found, truth, rtol=1e-4)


# ---- its face


def test_arrays_are_given_and_returned_as_jax_does() -> None:
    primals = (jnp.asarray([0.1, 0.4]), jnp.asarray(0.7))
    series = (
        [jnp.ones(2), jnp.arange(2.0), jnp.ones(2)],
        [jnp.asarray(c) for c in (1.0, 0.5, -1.0)],
    )

    def function(x: Any, y: Any) -> Any:
        return jnp.exp(x) * jnp.sin(y)

    for scaled in (True, False):
        ours = jet(function, primals, series, factorial_scaled=scaled)
        theirs = jax_jet(function, primals, series, factorial_scaled=scaled)
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)  # jet's factorials are rounded


def test_structures_with_parts_that_hold_still() -> None:
    layer = eqx.nn.MLP(2, "scalar", 4, 1, key=jax.random.key(0))
    direction = jax.tree.map(lambda a: jnp.ones_like(a) if eqx.is_array(a) else None, layer)
    x = {"input": jnp.asarray([0.3, 0.5]), "index": jnp.asarray(1)}
    moving = {"input": jnp.ones(2), "index": None}
    value, (slope,) = jet(
        lambda m, x: m(x["input"])[None] * x["index"], (layer, x), ([direction], [moving])
    )
    arrays, rest = eqx.partition(layer, eqx.is_array)
    _, truth = jax.jvp(
        lambda a, y: eqx.combine(a, rest)(y)[None], (arrays, x["input"]), (direction, jnp.ones(2))
    )
    np.testing.assert_allclose(slope, truth)
    assert value.shape == slope.shape == (1,)


def test_an_argument_without_a_series_holds_still() -> None:
    _, higher = jet(lambda x, y: x * y, (jnp.asarray(2.0), jnp.asarray(3.0)), (None, [1.0, None]))
    assert [float(d) for d in higher] == [2.0, 0.0]


def test_a_counted_oracle_is_one_call_and_as_many_jvps_as_orders() -> None:
    oracle = counted(jnp.sin, "sines")
    with tally() as counts:
        jax.block_until_ready(
            jax.jit(lambda x: taylor(lambda y: oracle(y) ** 2, x, x, 5))(jnp.ones(3))
        )
    assert counts.read() == {"sines": 1, "sines jvps": 5, "sines vjps": 0}


# ---- errors


def bad(name: str) -> Any:
    x = jnp.asarray([1.0, 2.0])
    return {
        "order": lambda: taylor(jnp.sin, x, x, 0),
        "lengths": lambda: jet(jnp.add, (x, x), ([x], [x, x])),
        "counts": lambda: jet(jnp.add, (x, x), ([x],)),
        "shape": lambda: jet(jnp.sin, (x,), ([jnp.ones(3)],)),
        "integer": lambda: jet(lambda n: n * 1.0, (jnp.arange(3),), ([jnp.ones(3)],)),
        "complex": lambda: jet(jnp.sin, (x,), ([1j * x],)),
        "structure": lambda: jet(lambda d: d["a"], ({"a": x},), ([{"b": x}],)),
        "static": lambda: jet(lambda d: d[1], (("name", x),), ([(x, x)],)),
        "primitive": lambda: taylor(lambda a: lax.igamma(a, x), x, x, 2),
        "callback": lambda: taylor(
            lambda y: jax.pure_callback(np.sin, jax.ShapeDtypeStruct((2,), x.dtype), y), x, x, 1
        ),
    }[name]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("order", "order 0 of an expansion: it must be at least 1"),
        ("lengths", r"series of orders \[1, 2\]"),
        ("counts", "2 primals, but series for 1"),
        ("shape", r"shape \(3,\), its primal \(2,\)"),
        ("integer", "int64 and cannot move: convert it"),
        ("complex", "make the primal complex"),
        ("structure", "order 1 of argument 0 is not of its structure"),
        ("static", "leaf 'name' that is no array"),
        ("primitive", "'igamma_grad_a'.*jax.custom_jvp"),
        ("callback", "'pure_callback'.*jax.custom_jvp"),
    ],
)
def test_errors_name_the_value_and_the_remedy(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        bad(name)()
