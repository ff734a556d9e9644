"""Rules for what moves, sums, multiplies and selects: no derivatives, only coefficients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import JaxprEqn

from nearly.derivatives.taylor.interpreter import (
    RULES,
    bind,
    by_jvp,
    evaluate_closed,
    is_zero,
    rule,
)
from nearly.derivatives.taylor.series import (
    Series,
    Term,
    Value,
    add,
    from_terms,
    mapped,
    multiply,
    order_of,
    power,
    primal,
    square,
    terms_of,
    total,
)

# ---- linear primitives: each coefficient on its own

# Name: the operands in which it is jointly linear (None: all of them). The others hold still.
LINEAR: dict[str, tuple[int, ...] | None] = {
    "add_any": None,
    "all_gather": None,
    "all_to_all": None,
    "broadcast_in_dim": None,
    "complex": None,
    "concatenate": None,
    "conj": None,
    "convert_element_type": None,
    "copy": None,
    "copy_p": None,
    "cumsum": None,
    "device_put": None,
    "dynamic_slice": (0,),
    "dynamic_update_slice": (0, 1),
    "fft": None,
    "gather": (0,),
    "imag": None,
    "name": None,
    "neg": None,
    "optimization_barrier": None,
    "pad": (0, 1),
    "pbroadcast": None,
    "ppermute": None,
    "psum": None,
    "pvary": None,
    "real": None,
    "reduce_precision": None,
    "reduce_sum": None,
    "reduce_window_sum": None,
    "reshape": None,
    "reshard": None,
    "rev": None,
    "scatter": (0, 2),
    "scatter-add": (0, 2),
    "scatter-sub": (0, 2),
    "select_and_gather_add": (0,),
    "select_and_scatter_add": (0,),
    "sharding_constraint": None,
    "slice": None,
    "split": None,
    "squeeze": None,
    "stack": None,
    "tie": None,
    "transpose": None,
    "unstack": None,
}


def _linear(equation: JaxprEqn, arguments: Sequence[Value]) -> list[Value]:
    operands = LINEAR[equation.primitive.name]
    moving = range(len(arguments)) if operands is None else operands
    order = order_of(*arguments)
    columns = {i: terms_of(arguments[i], order) for i in moving}
    points = [primal(x) for x in arguments]
    results = [bind(equation, points)]
    for k in range(1, order + 1):
        if all(column[k] is None for column in columns.values()):
            results.append([None] * len(results[0]))
            continue
        operands_k = list(points)
        for i, column in columns.items():
            operands_k[i] = jnp.zeros_like(points[i]) if column[k] is None else column[k]
        results.append(bind(equation, operands_k))
    return [from_terms(terms) for terms in zip(*results, strict=True)]


for _name in LINEAR:
    RULES[_name] = _linear


@rule("add", "sub")
def _add(equation: JaxprEqn, arguments: Sequence[Value]) -> list[Value]:
    x, y = arguments
    first = bind(equation, [primal(x), primal(y)])[0]
    sign = 1 if equation.primitive.name == "add" else -1
    order = order_of(x, y)

    def combine(a: Term, b: Term) -> Term:
        if a is not None and b is not None:
            return bind(equation, [a, b])[0]
        lone = a if b is None else sign * b
        return None if lone is None else jnp.broadcast_to(lone, first.shape)

    pairs = list(zip(terms_of(x, order), terms_of(y, order), strict=True))
    return [from_terms([first, *(combine(a, b) for a, b in pairs[1:])])]


# ---- products


@rule("mul", "dot_general", "conv_general_dilated")
def _bilinear(equation: JaxprEqn, arguments: Sequence[Value]) -> list[Value]:
    x, y = arguments
    if is_zero(x) or is_zero(y):
        return bind(equation, [primal(x), primal(y)])
    if x is y and equation.primitive.name == "mul":
        return [square(x)]
    return [multiply(x, y, lambda a, b: bind(equation, [a, b])[0])]


@rule("reduce_prod", "cumprod", "cummax", "cummin", "cumlogsumexp")
def _scanned(equation: JaxprEqn, arguments: Sequence[Value]) -> list[Value]:
    """Written out as a tree of products, maxima, … and expanded as such."""
    program = jax.make_jaxpr(_WRITTEN_OUT[equation.primitive.name](equation.params))
    return evaluate_closed(program(primal(arguments[0])), arguments)


def _cumulative(combine: Callable[[Any, Any], Any]) -> Callable[[Any], Callable[[Any], Any]]:
    def written_out(parameters: Any) -> Callable[[Any], Any]:
        axis, reverse = parameters["axis"], parameters["reverse"]
        return lambda x: lax.associative_scan(combine, x, reverse=reverse, axis=axis)

    return written_out


def _product(parameters: Any) -> Callable[[Any], Any]:
    def product(x: Any) -> Any:
        for axis in sorted(parameters["axes"], reverse=True):
            x = _product_along(x, axis)
        return x

    return product


def _product_along(x: Any, axis: int) -> Any:
    x = jnp.moveaxis(x, axis, 0)
    if not len(x):
        return jnp.ones_like(x, shape=x.shape[1:])
    while len(x) > 1:
        half = len(x) // 2
        paired = x[:half] * x[half : 2 * half]
        x = jnp.concatenate([paired, x[2 * half :]]) if len(x) % 2 else paired
    return x[0]


_WRITTEN_OUT: dict[str, Callable[[Any], Callable[[Any], Any]]] = {
    "reduce_prod": _product,
    "cumprod": _cumulative(jnp.multiply),
    "cummax": _cumulative(jnp.maximum),
    "cummin": _cumulative(jnp.minimum),
    "cumlogsumexp": _cumulative(jnp.logaddexp),
}


# ---- selection: the branch is that of t = 0


@rule("select_n")
def _select_n(equation: JaxprEqn, arguments: Sequence[Value]) -> list[Value]:
    which, *cases = arguments
    order = order_of(*cases)
    columns = [terms_of(case, order) for case in cases]
    return [
        from_terms([_selected(equation, which, cases, row) for row in zip(*columns, strict=True)])
    ]


def _selected(equation: JaxprEqn, which: Any, cases: Sequence[Value], row: Sequence[Term]) -> Term:
    if all(c is None for c in row):
        return None
    zeros = [jnp.zeros_like(primal(case)) for case in cases]
    filled = [zero if c is None else c for zero, c in zip(zeros, row, strict=True)]
    return bind(equation, [which, *filled])[0]


@rule("max", "min")
def _extremum(equation: JaxprEqn, arguments: Sequence[Value]) -> list[Value]:
    """Where the two are equal, the mean of the two series, as JAX's derivative has it."""
    x, y = arguments
    a, b = primal(x), primal(y)
    first = bind(equation, [a, b])[0]
    x_wins = (a > b) if equation.primitive.name == "max" else (a < b)
    order = order_of(x, y)

    def choose(c: Term, d: Term) -> Term:
        if c is None and d is None:
            return None
        c, d = (jnp.zeros((), first.dtype) if e is None else e for e in (c, d))
        return jnp.where(x_wins, c, jnp.where(a == b, (c + d) / 2, d))

    pairs = list(zip(terms_of(x, order), terms_of(y, order), strict=True))
    return [from_terms([first, *(choose(c, d) for c, d in pairs[1:])])]


@rule("clamp")
def _clamp(equation: JaxprEqn, arguments: Sequence[Value]) -> list[Value]:
    low, x, high = arguments
    points = [primal(v) for v in arguments]
    first = bind(equation, points)[0]
    order = order_of(*arguments)
    inside = (points[1] > points[0]) & (points[1] < points[2])
    weights = ((points[0] > points[1]), inside, (points[2] < points[1]))
    terms: list[Term] = [first]
    for row in list(zip(*(terms_of(v, order) for v in (low, x, high)), strict=True))[1:]:
        parts = [jnp.where(w, c, 0) for w, c in zip(weights, row, strict=True) if c is not None]
        terms.append(total(parts))
    return [from_terms(terms)]


@rule("abs")
def _abs(equation: JaxprEqn, arguments: Sequence[Value]) -> list[Value]:
    (x,) = arguments
    first = bind(equation, [x.primal])[0]
    if jnp.iscomplexobj(x.primal):
        real, imaginary = mapped(jnp.real, x), mapped(jnp.imag, x)
        size = _away_from_zero(add(square(real), square(imaginary)))
        found = power(jnp.sqrt(size.primal), size, 0.5)
        return [from_terms([first, *(_zero_where(first == 0, c) for c in found.terms[1:])])]
    turned = [None if c is None else jnp.where(x.primal >= 0, c, -c) for c in x.terms[1:]]
    return [from_terms([first, *turned])]


def _away_from_zero(x: Series) -> Series:
    return Series((jnp.where(x.primal == 0, 1, x.primal), *x.terms[1:]))


def _zero_where(condition: Any, term: Term) -> Term:
    """At 0 the modulus has no derivative, and JAX's is 0: a vanishing entry must not spread NaN."""
    return None if term is None else jnp.where(condition, 0, term)


@rule("sign")
def _direction(equation: JaxprEqn, arguments: Sequence[Value]) -> list[Value]:
    """z / abs(z) of a complex number; the sign of a real one holds still."""
    (z,) = arguments
    real, imaginary = mapped(jnp.real, z), mapped(jnp.imag, z)
    inverse = power(1 / jnp.abs(z.primal), add(square(real), square(imaginary)), -0.5)
    return [multiply(z, mapped(lambda c: c.astype(z.primal.dtype), inverse))]


@rule("rem")
def _rem(equation: JaxprEqn, arguments: Sequence[Value]) -> list[Value]:
    """x - n y, n the whole quotient at t = 0."""
    x, y = arguments
    first = bind(equation, [primal(x), primal(y)])[0]
    if not isinstance(y, Series):
        return [from_terms([first, *terms_of(x, x.order)[1:]])]
    order = y.order
    whole = jnp.trunc(primal(x) / primal(y))
    pairs = list(zip(terms_of(x, order), terms_of(y, order), strict=True))[1:]
    return [from_terms([first, *(total([a, None if b is None else -whole * b]) for a, b in pairs)])]


@rule("reduce_max", "reduce_min")
def _reduce_extremum(equation: JaxprEqn, arguments: Sequence[Value]) -> list[Value]:
    (x,) = arguments
    axes = equation.params["axes"]
    first = bind(equation, [x.primal])[0]
    chosen = x.primal == jnp.expand_dims(first, axes)
    count = jnp.sum(chosen, axes).astype(first.dtype)

    def mean(term: Term) -> Term:
        return None if term is None else jnp.sum(jnp.where(chosen, term, 0), axes) / count

    return [from_terms([first, *map(mean, x.terms[1:])])]


# ---- sorting: the permutation is that of t = 0


@rule("sort")
def _sort(equation: JaxprEqn, arguments: Sequence[Value]) -> list[Value]:
    dimension, points = equation.params["dimension"], [primal(x) for x in arguments]
    positions = lax.broadcasted_iota(jnp.int32, points[0].shape, dimension)
    *firsts, places = lax.sort(
        [*points, positions],
        dimension=dimension,
        is_stable=equation.params["is_stable"],
        num_keys=equation.params["num_keys"],
    )
    return [_taken(first, x, places, dimension) for first, x in zip(firsts, arguments, strict=True)]


def _taken(first: Any, x: Value, places: Any, axis: int) -> Value:
    if not isinstance(x, Series):
        return first
    moved = [None if c is None else jnp.take_along_axis(c, places, axis) for c in x.terms[1:]]
    return from_terms([first, *moved])


@rule("top_k")
def _top_k(equation: JaxprEqn, arguments: Sequence[Value]) -> list[Value]:
    (x,) = arguments
    first, places = bind(equation, [x.primal])
    return [_taken(first, x, places, equation.params["axis"]), places]


# ---- scattering products


@rule("scatter-mul")
def _scatter_multiply(equation: JaxprEqn, arguments: Sequence[Value]) -> list[Value]:
    """Where positions may repeat, which JAX does not differentiate, one update after the other."""
    numbers = equation.params["dimension_numbers"]
    if equation.params["unique_indices"] or numbers.operand_batching_dims:
        return by_jvp(equation, arguments)
    windows = numbers.update_window_dims
    operand, indices, updates = arguments
    along = [i for i in range(jnp.ndim(primal(updates))) if i not in windows]
    single = lax.ScatterDimensionNumbers(
        update_window_dims=tuple(range(len(windows))),
        inserted_window_dims=numbers.inserted_window_dims,
        scatter_dims_to_operand_dims=numbers.scatter_dims_to_operand_dims,
    )

    def in_turn(operand: Any, indices: Any, updates: Any) -> Any:
        ordered = jnp.transpose(updates, (*along, *windows))
        rows = jnp.reshape(ordered, (-1, *ordered.shape[len(along) :]))
        places = jnp.reshape(indices, (-1, indices.shape[-1]))

        def step(state: Any, update: tuple[Any, Any]) -> tuple[Any, None]:
            place, row = update
            return lax.scatter_mul(
                state, place, row, single, unique_indices=True, mode=equation.params["mode"]
            ), None

        return lax.scan(step, operand, (places, rows))[0]

    program = jax.make_jaxpr(in_turn)(*(primal(x) for x in arguments))
    return evaluate_closed(program, [operand, indices, updates])
