"""The interpreter: evaluates a jaxpr on power series, one equation after the other.

An equation whose operands do not depend on t is run as it stands. One that cannot carry a
derivative (its results are integers, or it is piecewise constant) is run at t = 0. For all others
`RULES` has a rule by the primitive's name, or the derivative rule of the primitive itself does
(`by_jvp`), so that there is nothing JAX can differentiate once that cannot be expanded here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal
from jax.interpreters import partial_eval as pe

from nearly.core.errors import InputError
from nearly.derivatives.taylor.series import (
    Series,
    Value,
    antiderivative,
    derivative,
    order_of,
    primal,
    truncated,
)

Rule: TypeAlias = Callable[[JaxprEqn, Sequence[Value]], Sequence[Value]]

RULES: dict[str, Rule] = {}

# Constant wherever they are differentiable, though their results are floating-point numbers.
PIECEWISE_CONSTANT = frozenset({"floor", "ceil", "round", "sign", "stop_gradient", "nextafter"})


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register the decorated function for primitives of these names."""

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register


def evaluate(jaxpr: Jaxpr, constants: Sequence[Any], arguments: Sequence[Value]) -> list[Value]:
    """The results of a jaxpr on values that may depend on t."""
    known: dict[Any, Value] = dict(zip(jaxpr.constvars, constants, strict=True))
    known.update(zip(jaxpr.invars, arguments, strict=True))

    def read(atom: Any) -> Value:
        return atom.val if isinstance(atom, Literal) else known[atom]

    for equation in jaxpr.eqns:
        with equation.ctx.manager:
            results = apply(equation, [read(atom) for atom in equation.invars])
        known.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def evaluate_closed(jaxpr: Any, arguments: Sequence[Value]) -> list[Value]:
    """`evaluate` for a jaxpr with its constants, or one without any."""
    if isinstance(jaxpr, ClosedJaxpr):
        return evaluate(jaxpr.jaxpr, jaxpr.consts, arguments)
    return evaluate(jaxpr, (), arguments)


def apply(equation: JaxprEqn, arguments: Sequence[Value]) -> Sequence[Value]:
    """The results of one equation."""
    if not any(isinstance(x, Series) for x in arguments):
        return [_spread_zero(equation)] if _spreads_zero(equation) else bind(equation, arguments)
    if not carries_derivative(equation):
        return bind(equation, [primal(x) for x in arguments])
    return RULES.get(equation.primitive.name, by_jvp)(equation, arguments)


# Rules written for all arguments multiply by the zero tangents of those that hold still. That zero
# stays known, so that the products are not expanded.


def _spreads_zero(equation: JaxprEqn) -> bool:
    return equation.primitive.name == "broadcast_in_dim" and is_zero(
        getattr(equation.invars[0], "val", None)
    )


def _spread_zero(equation: JaxprEqn) -> Any:
    aval: Any = equation.outvars[0].aval
    return np.broadcast_to(np.zeros((), aval.dtype), aval.shape)  # takes no memory


def is_zero(x: Value) -> bool:
    """Whether a value is known, while tracing, to be zero all over: at once, without a search."""
    if x is None or isinstance(x, (Series, jax.Array)):
        return False
    array = np.asarray(x)
    return bool(array.size > 0 and not any(array.strides) and array.flat[0] == 0)


def carries_derivative(equation: JaxprEqn) -> bool:
    """Whether any result can depend on t smoothly."""
    if equation.primitive.name in PIECEWISE_CONSTANT:
        # The sign of a complex number is its direction.
        return any(_is_complex(v.aval) for v in equation.outvars)
    return any(is_inexact(v.aval) for v in equation.outvars)


def is_inexact(aval: Any) -> bool:
    """Whether values of this type can have a derivative."""
    return hasattr(aval, "dtype") and jnp.issubdtype(aval.dtype, jnp.inexact)


def _is_complex(aval: Any) -> bool:
    return hasattr(aval, "dtype") and jnp.issubdtype(aval.dtype, jnp.complexfloating)


def bind(equation: JaxprEqn, arguments: Sequence[Any]) -> list[Any]:
    """The equation on arrays."""
    parameters = equation.primitive.get_bind_params(equation.params)
    results = equation.primitive.bind(*arguments, **parameters)
    return list(results) if equation.primitive.multiple_results else [results]


def by_jvp(equation: JaxprEqn, arguments: Sequence[Value]) -> list[Value]:
    """Any primitive that has a derivative rule, `jax.custom_jvp` functions among them.

    The rule gives y' as a program in x and x'. That program, expanded to order K - 1, gives y to
    order K. Where it uses y again (as the exponential does) it comes back here with an order one
    less, so there are at most K levels; what they repeat, XLA's common-subexpression elimination
    removes.
    """
    order = order_of(*arguments)
    results = bind(equation, [primal(x) for x in arguments])
    moving = [i for i, x in enumerate(arguments) if isinstance(x, Series)]
    program = _tangent_program(equation, [primal(x) for x in arguments], moving)
    lower = [truncated(x, order - 1) for x in arguments]
    slopes = iter(
        evaluate(
            program.jaxpr, program.consts, [*lower, *(derivative(arguments[i]) for i in moving)]
        )
    )
    return [
        antiderivative(y, next(slopes), order) if is_inexact(v.aval) else y
        for y, v in zip(results, equation.outvars, strict=True)
    ]


def _tangent_program(equation: JaxprEqn, primals: Sequence[Any], moving: Sequence[int]) -> Any:
    """The jaxpr (*primals, *tangents of the moving ones) -> tangents of the inexact results."""

    def tangents(*operands: Any) -> list[Any]:
        points, directions = operands[: len(primals)], operands[len(primals) :]

        def function(*values: Any) -> list[Any]:
            inputs = list(points)
            for i, value in zip(moving, values, strict=True):
                inputs[i] = value
            results = bind(equation, inputs)
            return [y for y, v in zip(results, equation.outvars, strict=True) if is_inexact(v.aval)]

        return jax.jvp(function, [points[i] for i in moving], list(directions))[1]

    avals = [jax.ShapeDtypeStruct(jnp.shape(primals[i]), primals[i].dtype) for i in moving]
    try:
        closed = jax.make_jaxpr(tangents)(*primals, *avals)
    except (NotImplementedError, TypeError, ValueError) as error:
        raise InputError(
            f"no Taylor expansion of the primitive {equation.primitive.name!r}: there is no rule "
            f"for it here, and JAX cannot differentiate it ({error}); wrap the function that "
            "uses it in jax.custom_jvp, or keep the expanded arguments out of it"
        ) from error
    jaxpr, _ = pe.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars), instantiate=True)
    return ClosedJaxpr(jaxpr, closed.consts)
