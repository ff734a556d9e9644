"""Ninety-six functions that users write, each with a point and a direction to expand it along.

What they cover: elementary and special functions, activations, selection and sorting, indexing,
linear algebra, transforms, control flow, custom derivatives, equinox modules. Where mpmath has the
function, so does the table: that is a truth that owes nothing to automatic differentiation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.scipy as jsp
import mpmath as mp
import numpy as np
from jax import lax

POINT = np.array([0.3, 0.7, -0.4])
POSITIVE = np.array([0.4, 1.3, 2.2])
DIRECTION = np.array([0.5, -0.9, 0.8])


@dataclass(frozen=True)
class Case:
    """A function of a vector, where to expand it, and how its derivatives are known.

    **Arguments:**

    - `function`: of one float64 vector. `point`, `direction`: x and v of t -> f(x + t v).
    - `exact`: the function of one mpmath number, if it acts on each entry alone.
    - `plain`: what to differentiate by nested jvp, if not the function itself: one that has a
      `custom_vjp` rule has no forward mode.
    """

    function: Callable[[Any], Any]
    point: np.ndarray = field(default_factory=lambda: POINT)
    direction: np.ndarray = field(default_factory=lambda: DIRECTION)
    exact: Callable[[Any], Any] | None = None
    plain: Callable[[Any], Any] | None = None


def _positive(function: Callable[[Any], Any], exact: Callable[[Any], Any] | None = None) -> Case:
    return Case(function, POSITIVE, exact=exact)


def _entrywise(function: Callable[[Any], Any], exact: Callable[[Any], Any]) -> Case:
    return Case(function, exact=exact)


def _matrix(x: Any) -> Any:
    """A well-conditioned matrix with separated eigenvalues that moves with x."""
    return jnp.diag(jnp.array([1.0, 2.5, 5.0])) + jnp.outer(x, x + 0.5) / 2


def _symmetric(x: Any) -> Any:
    return jnp.diag(jnp.array([1.0, 2.5, 5.0])) + jnp.outer(x, x)


def _sigmoid(z: Any) -> Any:
    return 1 / (1 + mp.exp(-z))


def _normal(z: Any) -> Any:
    return mp.erfc(-z / mp.sqrt(2)) / 2


ELEMENTARY = {
    "exp": _entrywise(jnp.exp, mp.exp),
    "exp2": _entrywise(jnp.exp2, lambda z: mp.power(2, z)),
    "expm1": _entrywise(jnp.expm1, mp.expm1),
    "log": _positive(jnp.log, mp.log),
    "log1p": _entrywise(jnp.log1p, mp.log1p),
    "sqrt": _positive(jnp.sqrt, mp.sqrt),
    "rsqrt": _positive(lax.rsqrt, lambda z: 1 / mp.sqrt(z)),
    "cbrt": _entrywise(jnp.cbrt, lambda z: mp.sign(z) * mp.cbrt(abs(z))),
    "square": _entrywise(jnp.square, lambda z: z**2),
    "power": _positive(lambda x: x**2.5, lambda z: z ** mp.mpf(2.5)),
    "power_moving": _positive(lambda x: x**x, lambda z: z**z),
    "integer_power": _entrywise(lambda x: x**7, lambda z: z**7),
    "sin": _entrywise(jnp.sin, mp.sin),
    "cos": _entrywise(jnp.cos, mp.cos),
    "tan": _entrywise(jnp.tan, mp.tan),
    "arcsin": _entrywise(jnp.arcsin, mp.asin),
    "arccos": _entrywise(jnp.arccos, mp.acos),
    "arctan": _entrywise(jnp.arctan, mp.atan),
    "arctan2": _entrywise(
        lambda x: jnp.arctan2(jnp.sin(x), 1 + x), lambda z: mp.atan2(mp.sin(z), 1 + z)
    ),
    "sinh": _entrywise(jnp.sinh, mp.sinh),
    "cosh": _entrywise(jnp.cosh, mp.cosh),
    "tanh": _entrywise(jnp.tanh, mp.tanh),
    "arcsinh": _entrywise(jnp.arcsinh, mp.asinh),
    "arccosh": _positive(lambda x: jnp.arccosh(1 + x), lambda z: mp.acosh(1 + z)),
    "arctanh": _entrywise(jnp.arctanh, mp.atanh),
    "hypot": _entrywise(lambda x: jnp.hypot(x, 1 + x), lambda z: mp.sqrt(z**2 + (1 + z) ** 2)),
    "sinc": _entrywise(jnp.sinc, mp.sincpi),
    "logaddexp": _entrywise(
        lambda x: jnp.logaddexp(x, x**2), lambda z: mp.log(mp.exp(z) + mp.exp(z**2))
    ),
}

SPECIAL = {
    "erf": _entrywise(jsp.special.erf, mp.erf),
    "erfc": _entrywise(jsp.special.erfc, mp.erfc),
    "erfinv": _entrywise(jsp.special.erfinv, mp.erfinv),
    "gammaln": _positive(jsp.special.gammaln, mp.loggamma),
    "gamma": _positive(jsp.special.gamma, mp.gamma),
    "digamma": _positive(jsp.special.digamma, mp.digamma),
    "polygamma": _positive(lambda x: jsp.special.polygamma(2, x), lambda z: mp.polygamma(2, z)),
    "i0": _entrywise(jsp.special.i0, lambda z: mp.besseli(0, z)),
    "i1": _entrywise(jsp.special.i1, lambda z: mp.besseli(1, z)),
    "ndtr": _entrywise(jsp.special.ndtr, _normal),
    "log_ndtr": _entrywise(jsp.special.log_ndtr, lambda z: mp.log(_normal(z))),
    "gammainc": _positive(
        lambda x: jsp.special.gammainc(1.5, x), lambda z: mp.gammainc(1.5, 0, z, regularized=True)
    ),
    "betainc": _entrywise(
        lambda x: jsp.special.betainc(1.5, 2.5, 0.5 + x / 3),
        lambda z: mp.betainc(1.5, 2.5, 0, mp.mpf(0.5) + z / 3, regularized=True),
    ),
    "xlogy": _positive(lambda x: jsp.special.xlogy(x, 1 + x), lambda z: z * mp.log(1 + z)),
    "logit": _entrywise(
        lambda x: jsp.special.logit(0.5 + x / 3), lambda z: mp.log((3 + 2 * z) / (3 - 2 * z))
    ),
}

ACTIVATIONS = {
    "relu": _entrywise(jax.nn.relu, lambda z: max(z, mp.mpf(0))),
    "relu6": _entrywise(jax.nn.relu6, lambda z: max(z, mp.mpf(0))),
    "elu": _entrywise(jax.nn.elu, lambda z: z if z > 0 else mp.expm1(z)),
    "gelu": _entrywise(lambda x: jax.nn.gelu(x, approximate=False), lambda z: z * _normal(z)),
    "silu": _entrywise(jax.nn.silu, lambda z: z * _sigmoid(z)),
    "mish": _entrywise(jax.nn.mish, lambda z: z * mp.tanh(mp.log1p(mp.exp(z)))),
    "softplus": _entrywise(jax.nn.softplus, lambda z: mp.log1p(mp.exp(z))),
    "sigmoid": _entrywise(jax.nn.sigmoid, _sigmoid),
    "softmax": Case(jax.nn.softmax),
    "logsumexp": Case(jsp.special.logsumexp),
}

SELECTION = {
    "abs": _entrywise(jnp.abs, abs),
    "clip": _entrywise(lambda x: jnp.clip(x**2, -0.2, 0.3), lambda z: min(z**2, mp.mpf(0.3))),
    "where": _entrywise(
        lambda x: jnp.where(x > 0, jnp.sin(x), x**3), lambda z: mp.sin(z) if z > 0 else z**3
    ),
    "maximum": _entrywise(lambda x: jnp.maximum(x, x**2), lambda z: max(z, z**2)),
    "max": Case(lambda x: jnp.max(jnp.sin(x))),
    "prod": Case(jnp.prod),
    "cumsum": Case(lambda x: jnp.cumsum(jnp.exp(x))),
    "cumprod": Case(jnp.cumprod),
    "cummax": Case(lambda x: lax.cummax(jnp.sin(x))),
    "cumlogsumexp": Case(lax.cumlogsumexp),
    "sort": Case(lambda x: jnp.sort(jnp.sin(x))),
    "top_k": Case(lambda x: lax.top_k(jnp.sin(x), 2)[0]),
    "argmax": Case(lambda x: x[jnp.argmax(x)] * jnp.sin(x)),
    "median": Case(lambda x: jnp.median(jnp.exp(x))),
    "mod": Case(lambda x: jnp.mod(jnp.exp(x), 0.7)),
    "interp": Case(lambda x: jnp.interp(x, jnp.array([-1.0, 0.0, 1.0]), jnp.exp(x))),
    "set": Case(lambda x: jnp.ones(5).at[jnp.array([0, 3, 1])].set(jnp.sin(x))),
    "scatter_mul": Case(
        lambda x: jnp.exp(x).at[jnp.array([0, 2])].mul(jnp.sin(x[:2]), unique_indices=True)
    ),
    "segment_sum": Case(lambda x: jax.ops.segment_sum(x**2, jnp.array([0, 1, 0]), 2)),
    "convolve": Case(lambda x: jnp.convolve(x, jnp.sin(x))),
}

LINEAR_ALGEBRA = {
    "solve": Case(lambda x: jnp.linalg.solve(_matrix(x), jnp.sin(x))),
    "inv": Case(lambda x: jnp.linalg.inv(_matrix(x))),
    "slogdet": Case(lambda x: jnp.linalg.slogdet(_matrix(x))[1]),
    "cholesky": Case(lambda x: jnp.linalg.cholesky(_symmetric(x))),
    "triangular_solve": Case(
        lambda x: jsp.linalg.solve_triangular(_matrix(x), jnp.sin(x), lower=True)
    ),
    "qr": Case(lambda x: jnp.linalg.qr(_matrix(x))),
    "eigh": Case(lambda x: jnp.linalg.eigh(_symmetric(x))),
    "svd": Case(lambda x: jnp.linalg.svd(_matrix(x), full_matrices=False)),
    "norm": Case(jnp.linalg.norm),
}

TRANSFORMS = {
    "fft": Case(lambda x: jnp.abs(jnp.fft.fft(jnp.exp(x)))),
    "irfft": Case(lambda x: jnp.fft.irfft(jnp.fft.rfft(x, 4) ** 2, 4)),
}


@jax.custom_jvp
def _rule_forward(x: Any) -> Any:
    return jnp.sin(x) * x


_rule_forward.defjvp(
    lambda points, directions: (
        _rule_forward(points[0]),
        directions[0] * (jnp.cos(points[0]) * points[0] + jnp.sin(points[0])),
    )
)


@jax.custom_vjp
def _rule_backward(x: Any) -> Any:
    return jnp.sin(x) * x


_rule_backward.defvjp(
    lambda x: (_rule_backward(x), x),
    lambda x, pulled: (pulled * (jnp.cos(x) * x + jnp.sin(x)),),
)


def _sine_times(z: Any) -> Any:
    return mp.sin(z) * z


CONTROL_FLOW = {
    "scan": Case(lambda x: lax.scan(lambda c, y: (jnp.sin(c) * y, c * y), x, jnp.exp(x))),
    "fori_loop": Case(lambda x: lax.fori_loop(0, 3, lambda i, c: c * jnp.cos(x) + i, x)),
    "while_loop": Case(
        lambda x: lax.while_loop(lambda c: jnp.sum(c**2) < 10, lambda c: c * jnp.exp(x**2), x)
    ),
    "cond": Case(lambda x: lax.cond(x[0] > 0, jnp.sin, lambda y: y**2, x)),
    "remat": Case(jax.checkpoint(lambda x: jnp.sin(x) ** 2)),
    "custom_jvp": _entrywise(_rule_forward, _sine_times),
    "custom_vjp": Case(_rule_backward, exact=_sine_times, plain=lambda x: jnp.sin(x) * x),
    "custom_linear_solve": Case(
        lambda x: lax.custom_linear_solve(
            lambda y: _symmetric(x) @ y, jnp.sin(x), lambda _, b: jnp.linalg.solve(_symmetric(x), b)
        )
    ),
}


def _module(make: Callable[[Any], Any], *more: Any) -> Callable[[Any], Any]:
    """A module as a function of its first argument, with fixed weights of its precision.

    They are written down, not drawn: where nothing is compiled, drawing them would take longest.
    """

    def function(x: Any) -> Any:
        shapes = eqx.filter_eval_shape(lambda: make(jax.random.key(0)))
        module = jax.tree.map(lambda s: _weights(s, x.dtype), shapes, is_leaf=_is_shape)
        return module(x, *more)

    return function


def _is_shape(leaf: Any) -> bool:
    return isinstance(leaf, jax.ShapeDtypeStruct)


def _weights(leaf: Any, dtype: Any) -> Any:
    if not _is_shape(leaf):
        return leaf
    return jnp.asarray(np.sin(1 + np.arange(leaf.size)).reshape(leaf.shape), dtype)


class _SelfAttention(eqx.Module):
    """Attention of three tokens made from x, to each other."""

    layer: eqx.nn.MultiheadAttention

    def __call__(self, x: Any) -> Any:
        tokens = jnp.outer(x, jnp.array([1.0, -0.5, 0.3, 2.0]))
        return self.layer(tokens, tokens, tokens)


MODULES = {
    "equinox_mlp": Case(_module(lambda key: eqx.nn.MLP(3, 2, 8, 2, key=key))),
    "equinox_gru": Case(
        _module(lambda key: eqx.nn.GRUCell(3, 4, key=key), np.array([0.1, -0.2, 0.3, 0.4]))
    ),
    "equinox_layer_norm": Case(_module(lambda key: eqx.nn.LayerNorm(3))),
    "equinox_attention": Case(
        _module(lambda key: _SelfAttention(eqx.nn.MultiheadAttention(2, 4, key=key)))
    ),
}

CASES: dict[str, Case] = {
    **ELEMENTARY,
    **SPECIAL,
    **ACTIVATIONS,
    **SELECTION,
    **LINEAR_ALGEBRA,
    **TRANSFORMS,
    **CONTROL_FLOW,
    **MODULES,
}


def known_derivatives(case: Case, order: int) -> tuple[list[np.ndarray], ...]:
    """The derivatives of orders 0 … `order`, for each array of the result.

    From mpmath, at 60 digits, where it has the function; else by nesting `jax.jvp`, in float64
    and without compilation: 2^order times the function's own operations.
    """
    if case.exact is not None:
        return (_by_mpmath(case.exact, case, order),)
    with jax.enable_x64(True), jax.disable_jit():
        return _by_nesting(case.plain or case.function, case, order)


def _by_mpmath(exact: Callable[[Any], Any], case: Case, order: int) -> list[np.ndarray]:
    with mp.workdps(60):
        columns = [
            [c * mp.factorial(k) for k, c in enumerate(_coefficients(exact, x, v, order))]
            for x, v in zip(case.point, case.direction, strict=True)
        ]
    return [np.array([float(c) for c in row]) for row in zip(*columns, strict=True)]


def _coefficients(exact: Callable[[Any], Any], x: float, v: float, order: int) -> list[Any]:
    start, speed = mp.mpf(float(x)), mp.mpf(float(v))
    return [mp.re(c) for c in mp.taylor(lambda t: exact(start + t * speed), 0, order)]


def _by_nesting(
    function: Callable[[Any], Any], case: Case, order: int
) -> tuple[list[np.ndarray], ...]:
    point, direction = jnp.asarray(case.point), jnp.asarray(case.direction)

    def along(t: Any) -> list[Any]:
        return jax.tree.leaves(function(point + t * direction))

    rows: list[list[np.ndarray]] = []
    derivative: Callable[[Any], list[Any]] = along
    for _ in range(order + 1):
        rows.append([np.asarray(y) for y in derivative(jnp.zeros(()))])
        derivative = _differentiated(derivative)
    return tuple(list(column) for column in zip(*rows, strict=True))


def _differentiated(function: Callable[[Any], list[Any]]) -> Callable[[Any], list[Any]]:
    return lambda t: jax.jvp(function, (t,), (jnp.ones(()),))[1]
