"""Python callables as truth: traced where every step is known, measured and said so elsewhere."""

from __future__ import annotations

import math
import pickle
import textwrap
from fractions import Fraction
from pathlib import Path

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from flint import arb, ctx

from nearly.core.errors import InputError, NotProven, UnknownName
from nearly.functions.expressions import parse
from nearly.functions.function import Function
from nearly.functions.tracing import callable_oracle


@jax.custom_jvp
def log_ratio(x):
    return jnp.log1p(x) / x


log_ratio.defjvps(lambda t, y, x: t * x)


@jax.custom_vjp
def doubled(x):
    return 2.0 * x


doubled.defvjp(lambda x: (2.0 * x, None), lambda r, g: (g,))


# callable -> the same function as an expression
TRACED = {
    "numpy": (lambda x: np.log1p(x) / x, "log1p(x)/x"),
    "numpy powers": (lambda x: x**3 + 2.0**x + x**0.5, "x**3 + 2**x + x**0.5"),
    "numpy reflected": (lambda x: 1 - (2 / (3 + x)), "1 - 2/(3 + x)"),
    "numpy ufuncs": (lambda x: np.sqrt(np.abs(np.negative(x))) * np.exp2(x), "sqrt(x)*exp2(x)"),
    "jax": (lambda x: jnp.log1p(x) / x, "log1p(x)/x"),
    "jit": (jax.jit(lambda x: jnp.sin(x) * jnp.cosh(x)), "sin(x)*cosh(x)"),
    "custom jvp": (log_ratio, "log1p(x)/x"),
    "custom vjp": (lambda x: doubled(x) ** 2, "4*x**2"),
    "grad": (jax.grad(jnp.tanh), "1 - tanh(x)**2"),
    "second derivative": (jax.grad(jax.grad(jnp.exp)), "exp(x)"),
    "softplus": (jax.nn.softplus, "softplus(x)"),
    "silu": (jax.nn.silu, "silu(x)"),
    "mish": (jax.nn.mish, "mish(x)"),
    "erfinv": (jax.scipy.special.erfinv, "erfinv(x)"),
    "bessel i0": (jax.scipy.special.i0, "bessel_i0(x)"),
    "lgamma": (jax.scipy.special.gammaln, "lgamma(x)"),
    "digamma": (jax.scipy.special.digamma, "digamma(x)"),
    "power": (lambda x: jnp.power(x, 2.5), "x**2.5"),
    "shapes": (lambda x: jnp.reshape(jnp.exp(jnp.reshape(x, (1, 1))), ()), "exp(x)"),
    "checkpoint": (jax.checkpoint(jnp.atan), "atan(x)"),
    "branch taken": (lambda x: jnp.where(x < 4, x * x, x), "x**2"),
    "relu": (jax.nn.relu6, "x"),
    "elu": (jax.nn.elu, "x"),
    "constant function": (lambda x: jnp.float64(2.0) + 0 * x, "2 + 0*x"),
}


@pytest.mark.parametrize("name", TRACED)
def test_traced_callables_equal_their_expression(name):
    function, text = TRACED[name]
    found, expected = callable_oracle(function, name), parse(text)
    assert found.provable
    with ctx.workprec(150):
        for x in (0.25, 0.625):
            a, b = found.taylor(arb(x), 5), expected.taylor(arb(x), 5)
            for k in range(5):
                assert a[k].overlaps(b[k]), k
                assert a[k].rad() < 1e-35, k
        wide = found.taylor(arb(0.5, 1e-3), 5)
        assert all(c.is_finite() and c.rad() < 5 for c in wide)


def test_jax_functions_that_branch_where_they_are_smooth():
    """softplus and sinc are written with select; their enclosures must not stop at the branch."""
    for function, text in [(jax.nn.softplus, "softplus(x)"), (jnp.sinc, "sinc(pi*x)")]:
        found, expected = callable_oracle(function, text), parse(text)
        with ctx.workprec(150):
            a, b = found.taylor(arb(0, 0.01), 4), expected.taylor(arb(0, 0.01), 4)
            # JAX's pi is a float64
            assert all(p.is_finite() and abs(p - q).contains(0) for p, q in zip(a, b, strict=True))


def test_the_constants_are_those_the_callable_holds():
    found = callable_oracle(lambda x: jnp.float32(0.1) * x, "tenth")
    assert found.at(1, 100) == arb(float(np.float32(0.1)))


def test_a_branch_is_decided_or_left_open():
    found = callable_oracle(lambda x: jnp.where(x < 1, x, 3 * x), "jump")
    with ctx.workprec(100):
        assert found.value(arb(0.5)) == 0.5
        assert found.value(arb(1)) == 3
        assert found.value(arb(2)) == 6
        straddling = found.taylor(arb(1, 0.125), 2)
        assert straddling[0].contains(arb(0.875))
        assert straddling[0].contains(arb(3.375))
        assert not straddling[1].is_finite()
        assert not found.taylor(arb(1), 2)[1].is_finite()


def test_a_kink_has_a_value_but_no_derivative():
    for function in (jax.nn.relu, lambda x: np.maximum(x, 0.0)):
        found = callable_oracle(function, "relu")
        with ctx.workprec(100):
            assert found.value(arb(0, 0.5)).contains(arb(0.5))
            assert found.value(arb(-1)) == 0
            assert not found.taylor(arb(0, 0.5), 2)[1].is_finite()


MEASURED = {
    "math": lambda x: math.exp(x) if x < 1 else math.e * x,
    "numpy branch": lambda x: np.where(np.asarray(x) < 0.5, np.exp(x), x),
    "python branch": lambda x: x if x == 0 else np.sin(x),
    "loop": lambda x: jax.lax.fori_loop(0, 3, lambda i, c: c * x, 1.0),
    "array": lambda x: jnp.sum(jnp.arange(3.0) * x),
    "interpolation": lambda x: np.interp(x, [0.0, 1.0], [0.0, 2.0]),
    "type of the argument": lambda x: x if isinstance(x, float | np.ndarray) else x + 1,
}


@pytest.mark.parametrize("name", MEASURED)
def test_what_cannot_be_traced_is_measured(name):
    function = MEASURED[name]
    found = callable_oracle(function, name)
    assert not found.provable
    assert found.unproven
    points = np.array([0.25, 0.5, 0.875])
    expected = [float(np.asarray(function(x))) for x in points.tolist()]
    high, low = found.table(points)
    np.testing.assert_allclose(high, expected, rtol=1e-6)  # JAX outside computes in float32
    assert not low.any()
    assert float(found.at(Fraction(1, 4))) == pytest.approx(expected[0], rel=1e-6)
    with pytest.raises(NotProven, match="float64"):
        found.taylor(arb(0.5), 3)


def test_measured_values_are_float64():
    found = callable_oracle(lambda x: jax.lax.fori_loop(0, 1, lambda i, c: jnp.exp(x), 1.0), "exp")
    assert not found.provable
    with mpmath.workdps(30):
        truth = float(mpmath.exp(0.25))
    assert float(found.at(Fraction(1, 4))) == pytest.approx(truth, rel=1e-15)


def test_shared_steps_cost_once():
    def squared(x):
        for _ in range(60):
            x = x * x * 0.5 + 0.5  # 2^60 leaves, were they written out
        return x

    assert callable_oracle(squared, "squared").at(1) == 1


def test_the_flag_of_jax_is_left_alone():
    before = jax.config.jax_enable_x64  # type: ignore[attr-defined]
    callable_oracle(jax.nn.softplus, "softplus").at(1)
    assert jax.config.jax_enable_x64 == before  # type: ignore[attr-defined]


SOURCE = """
    import math
    import numpy as np

    def ratio(x):
        return np.log1p(x) / x

    def plain(x):
        return math.erf(x)

    def broken(x):
        raise RuntimeError("boom")

    def inverse(x):
        return 1 / x

    number = 3
"""


@pytest.fixture
def mine(tmp_path: Path) -> str:
    path = tmp_path / "mine.py"
    path.write_text(textwrap.dedent(SOURCE))
    return str(path)


def test_a_function_of_a_file(mine):
    function = Function(f"{mine}:ratio", ("0", "1"))
    assert function.is_callable
    assert function.provable
    assert function.oracle.at(0).contains(1)
    again = pickle.loads(pickle.dumps(function))
    assert again == function
    assert again.oracle.at(0).contains(1)


def test_a_measured_function_of_a_file(mine):
    function = Function(f"{mine}:plain", ("0", "1"))
    assert not function.provable
    assert function.zeros == ()
    assert float(function.oracle.at(Fraction(1, 2))) == math.erf(0.5)


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("ratios", "did you mean 'ratio'"),
        ("broken", "RuntimeError: boom"),
        ("number", "not a function"),
    ],
)
def test_errors_of_a_file(mine, attribute, message):
    with pytest.raises(InputError, match=message):
        _ = Function(f"{mine}:{attribute}").oracle


def test_other_errors_of_a_file(mine, tmp_path):
    with pytest.raises(InputError, match="no file"):
        _ = Function(f"{tmp_path}/other.py:f").oracle
    with pytest.raises(UnknownName):
        _ = Function(f"{mine}:nothing_like_it").oracle
    (tmp_path / "bad.py").write_text("def f(:\n")
    with pytest.raises(InputError, match="does not run"):
        _ = Function(f"{tmp_path}/bad.py:f").oracle
    with pytest.raises(InputError, match="pole at x = 0 "):
        _ = Function(f"{mine}:inverse", ("-1", "1")).oracle
