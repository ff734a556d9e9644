"""Rules for programs inside equations: jit, loops, branches, remat, custom derivatives, marks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from nearly.core.tally import oracle_p
from nearly.derivatives.taylor.interpreter import carries_derivative, evaluate_closed, rule
from nearly.derivatives.taylor.series import (
    Series,
    Value,
    filled,
    from_terms,
    order_of,
    primal,
    terms_of,
)

# Equations that contain one program and do nothing but run it, by the name of the parameter.
INLINED = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    # The rule of a custom_vjp function is for pulling back only: what is expanded is the function.
    "custom_vjp_call": "call_jaxpr",
}


@rule(*INLINED)
def _inlined(equation: JaxprEqn, arguments: Sequence[Value]) -> list[Value]:
    return evaluate_closed(equation.params[INLINED[equation.primitive.name]], arguments)


@rule("remat2", "checkpoint", "remat")
def _remat(equation: JaxprEqn, arguments: Sequence[Value]) -> list[Value]:
    again = jax.checkpoint(
        lambda values: evaluate_closed(equation.params["jaxpr"], values),
        prevent_cse=equation.params["prevent_cse"],
        policy=equation.params["policy"],
    )
    return again(list(arguments))


# ---- which results depend on t


def dependence(jaxpr: Any, moving: Sequence[bool]) -> list[bool]:
    """Which results of a program can depend on t, given which of its arguments do.

    Loops need to know before they are traced. It may say yes to what turns out not to depend.
    """
    if isinstance(jaxpr, ClosedJaxpr):
        jaxpr = jaxpr.jaxpr
    assert isinstance(jaxpr, Jaxpr)
    known: dict[Any, bool] = dict(zip(jaxpr.invars, moving, strict=True))

    def depends(atom: Any) -> bool:
        return not isinstance(atom, Literal) and known.get(atom, False)

    for equation in jaxpr.eqns:
        flags = [depends(atom) for atom in equation.invars]
        known.update(zip(equation.outvars, _results_depend(equation, flags), strict=True))
    return [depends(atom) for atom in jaxpr.outvars]


def _results_depend(equation: JaxprEqn, flags: Sequence[bool]) -> list[bool]:
    if not any(flags) or not carries_derivative(equation):
        return [False] * len(equation.outvars)
    name, parameters = equation.primitive.name, equation.params
    if name in INLINED:
        return dependence(parameters[INLINED[name]], flags)
    if name == "scan":
        count = parameters["num_consts"]
        carried, streamed = count + parameters["num_carry"], parameters["jaxpr"]
        moving = carry_dependence(streamed, flags[:count], flags[count:carried], flags[carried:])
        results = dependence(streamed, [*flags[:count], *moving, *flags[carried:]])
        return [*moving, *results[len(moving) :]]
    if name == "while":
        skip = parameters["cond_nconsts"]
        count = skip + parameters["body_nconsts"]
        return carry_dependence(parameters["body_jaxpr"], flags[skip:count], flags[count:], ())
    if name == "cond":
        branches = [dependence(branch, flags[1:]) for branch in parameters["branches"]]
        return [any(column) for column in zip(*branches, strict=True)]
    return [True] * len(equation.outvars)


def carry_dependence(
    body: Any, constants: Sequence[bool], carry: Sequence[bool], streamed: Sequence[bool]
) -> list[bool]:
    """Which parts of a loop's state depend on t after any number of steps."""
    carry = list(carry)
    while True:
        after = dependence(body, [*constants, *carry, *streamed])[: len(carry)]
        joined = [a or b for a, b in zip(carry, after, strict=True)]
        if joined == carry:
            return joined
        carry = joined


def _state(values: Sequence[Value], moving: Sequence[bool], order: int) -> list[Value]:
    """A loop's state in a form that stays the same from step to step."""
    return [filled(x, order) if m else x for x, m in zip(values, moving, strict=True)]


def _moving(values: Sequence[Value]) -> list[bool]:
    return [isinstance(x, Series) for x in values]


# ---- loops and branches


@rule("scan")
def _scan(equation: JaxprEqn, arguments: Sequence[Value]) -> list[Value]:
    parameters = equation.params
    body, count = parameters["jaxpr"], parameters["num_consts"]
    width, order = parameters["num_carry"], order_of(*arguments)
    constants, carry, streamed = (
        list(arguments[:count]),
        arguments[count : count + width],
        list(arguments[count + width :]),
    )
    moving = carry_dependence(body, _moving(constants), _moving(carry), _moving(streamed))

    def step(state: list[Value], slices: list[Value]) -> tuple[list[Value], list[Value]]:
        results = evaluate_closed(body, [*constants, *state, *slices])
        return _state(results[:width], moving, order), results[width:]

    last, stacked = lax.scan(
        step,
        _state(carry, moving, order),
        streamed,
        length=parameters["length"],
        reverse=parameters["reverse"],
        unroll=parameters["unroll"],
    )
    return [*last, *stacked]


@rule("while")
def _while(equation: JaxprEqn, arguments: Sequence[Value]) -> list[Value]:
    """The number of steps is that of t = 0."""
    parameters = equation.params
    split = parameters["cond_nconsts"]
    start = split + parameters["body_nconsts"]
    tested, constants, carry = arguments[:split], arguments[split:start], arguments[start:]
    order = order_of(*arguments)
    body = parameters["body_jaxpr"]
    moving = carry_dependence(body, _moving(constants), _moving(carry), ())
    fixed = [primal(x) for x in tested]

    def goes_on(state: list[Value]) -> Any:
        return evaluate_closed(parameters["cond_jaxpr"], [*fixed, *map(primal, state)])[0]

    def step(state: list[Value]) -> list[Value]:
        return _state(evaluate_closed(body, [*constants, *state]), moving, order)

    # A series among the constants of the test alone depends on t, but only through the test.
    if not any(moving):
        return lax.while_loop(goes_on, step, [primal(x) for x in carry])
    return lax.while_loop(goes_on, step, _state(carry, moving, order))


@rule("cond")
def _cond(equation: JaxprEqn, arguments: Sequence[Value]) -> list[Value]:
    """The branch is that of t = 0."""
    index, *operands = arguments
    order = order_of(*operands)
    branches = equation.params["branches"]
    flags = [dependence(branch, _moving(operands)) for branch in branches]
    moving = [any(column) for column in zip(*flags, strict=True)]

    def run(branch: Any) -> Any:
        return lambda values: _state(evaluate_closed(branch, values), moving, order)

    return lax.switch(index, [run(branch) for branch in branches], operands)


# ---- the mark of a counted oracle


@rule("nearly_oracle")
def _counted(equation: JaxprEqn, arguments: Sequence[Value]) -> list[Value]:
    """An oracle on a series of order K is one call and K pushforwards of its derivative."""
    parameters = dict(equation.params)
    order = order_of(*arguments)
    firsts = oracle_p.bind(*(primal(x) for x in arguments), **parameters)
    pushed = {"calls": "jvps", "jvps": "jvps", "vjps": "vjps"}[parameters["kind"]]
    rows = [terms_of(x, order)[1:] for x in arguments]
    coefficients = [c for row in rows for c in row if c is not None]
    marked = iter(
        oracle_p.bind(
            *coefficients, **parameters | {"kind": pushed, "times": order * parameters["times"]}
        )
    )
    return [
        from_terms([first, *(None if c is None else next(marked) for c in row)])
        for first, row in zip(firsts, rows, strict=True)
    ]
