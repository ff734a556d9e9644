"""Oracles of Python callables: traced where every step is known, else measured in float64.

A NumPy function is traced by calling it with a symbol in place of the array, a JAX function through
its jaxpr. Either way the steps become a composition that Arb encloses, in the arithmetic of real
numbers: constants are the float64 numbers that the callable holds, and rounding between float
formats is left out.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
from flint import arb, arb_series, ctx

from nearly.core.catalogue import load_file
from nearly.core.errors import InputError, NotProven
from nearly.functions.named import ALIASES, ELEMENTARY, real_power
from nearly.functions.oracle import Oracle
from nearly.functions.terms import VARIABLE, Base, Term, call, constant, oracle, power

_PROBES = (-2.5, -0.7, -0.3, 0.0, 0.3, 0.7, 2.5)
_AGREEMENT = 1e-4  # a callable may compute in float32 inside


class Unsupported(Exception):
    """A step that has no enclosure; the message says which."""


def load_oracle(reference: str) -> Oracle:
    """The oracle of the callable that `file.py:attribute` names.

    Raises `InputError` if there is no such callable of one number. Where it cannot be traced, the
    oracle gives its float64 values, and says why in `unproven`.
    """
    function = load_file(reference)
    if not callable(function):
        raise InputError(f"{reference} is {type(function).__name__}, not a function of one number")
    return callable_oracle(function, reference)


def callable_oracle(function: Callable[[Any], Any], text: str) -> Oracle:
    """The oracle of a NumPy, JAX or plain Python function of one number."""
    plain = _plain(function)
    try:
        samples = [(x, float(plain(np.float64(x)))) for x in _PROBES]
    except Exception as error:
        problem = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(f"{text} cannot be called with one float64 number: {problem}") from error
    try:
        found = oracle(trace(function), text)
        _check_agreement(found, samples)
    except Unsupported as reason:
        return _Measured(text, _unknown_value(plain), _unknown(text), unproven=str(reason), f=plain)
    return found


def trace(function: Callable[[Any], Any]) -> Term:
    """The composition that a callable computes. Raises `Unsupported` where a step is not known."""
    try:
        return _term(function(_Symbol(VARIABLE)))
    except Exception as error:  # a JAX function refuses the symbol
        if "jax" not in sys.modules:
            raise _unsupported(error) from None
    return _trace_jax(function)


def _unsupported(error: Exception) -> Unsupported:
    if isinstance(error, Unsupported):
        return error
    return Unsupported(f"it cannot be traced ({str(error).splitlines()[0][:100]})")


def _check_agreement(found: Oracle, samples: Sequence[tuple[float, float]]) -> None:
    """A callable that branches on the type of its argument would be traced along another path."""
    for x, value in samples:
        with ctx.workprec(128):
            truth = found.value(arb(x))
        if np.isfinite(value) and truth.is_finite():
            distance = abs(float(truth) - value)
            if distance > _AGREEMENT * max(abs(value), 1e-4):
                raise Unsupported(f"traced it gives {float(truth):.6g} at {x}, called {value:.6g}")


# ------------------------------------------------------------------------------ NumPy functions


class _Symbol:
    """Stands for the argument of a NumPy function; arithmetic and ufuncs on it become terms."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, term: Term) -> None:
        self.term = term

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> _Symbol:
        if method != "__call__" or kwargs:
            raise Unsupported(f"numpy.{ufunc.__name__} with options is not supported")
        name = _UFUNCS.get(ufunc.__name__, ufunc.__name__)
        return _Symbol(_apply(name, [_term(i) for i in inputs]))

    def __add__(self, other: Any) -> _Symbol:
        return _Symbol(self.term + _term(other))

    def __radd__(self, other: Any) -> _Symbol:
        return _Symbol(_term(other) + self.term)

    def __sub__(self, other: Any) -> _Symbol:
        return _Symbol(self.term - _term(other))

    def __rsub__(self, other: Any) -> _Symbol:
        return _Symbol(_term(other) - self.term)

    def __mul__(self, other: Any) -> _Symbol:
        return _Symbol(self.term * _term(other))

    def __rmul__(self, other: Any) -> _Symbol:
        return _Symbol(_term(other) * self.term)

    def __truediv__(self, other: Any) -> _Symbol:
        return _Symbol(_apply("div", [self.term, _term(other)]))

    def __rtruediv__(self, other: Any) -> _Symbol:
        return _Symbol(_apply("div", [_term(other), self.term]))

    def __pow__(self, other: Any) -> _Symbol:
        return _Symbol(real_power(self.term, _term(other)))

    def __rpow__(self, other: Any) -> _Symbol:
        return _Symbol(real_power(_term(other), self.term))

    def __neg__(self) -> _Symbol:
        return _Symbol(-self.term)

    def __pos__(self) -> _Symbol:
        return self

    def __abs__(self) -> _Symbol:
        return _Symbol(_apply("abs", [self.term]))

    def _undecidable(self, *_: Any) -> Any:
        raise Unsupported("a comparison with the argument decides what it computes")

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __bool__ = _undecidable  # type: ignore[assignment]


_UFUNCS: Mapping[str, str] = {
    "add": "add", "subtract": "sub", "multiply": "mul", "divide": "div", "true_divide": "div",
    "negative": "neg", "positive": "copy", "power": "pow", "float_power": "pow",
    "absolute": "abs", "maximum": "max", "minimum": "min", "fmax": "max", "fmin": "min",
    "erf_inv": "erfinv", "logistic": "sigmoid", "add_any": "add",
}  # fmt: skip


def _term(value: Any) -> Term:
    """A value of the traced program as a term."""
    if isinstance(value, _Symbol):
        return value.term
    if isinstance(value, Term):
        return value
    try:
        array = np.asarray(value)
        if array.dtype == object and array.size == 1 and isinstance(array.item(), _Symbol):
            return array.item().term
        number = array.astype(np.float64).item() if array.size == 1 else float("nan")
    except (TypeError, ValueError):
        raise Unsupported(f"a {type(value).__name__} among its values is not supported") from None
    if array.size != 1:
        raise Unsupported(f"an array of shape {array.shape} among its values is not supported")
    if number - number != 0:
        raise Unsupported(f"the constant {number} is not supported")
    return constant(Fraction(number))


def _apply(name: str, terms: Sequence[Term]) -> Term:
    """A step with a name that NumPy, SciPy or JAX gives it."""
    if name in _STEPS:
        return _STEPS[name](*terms)
    name = ALIASES.get(name, name)
    if name not in ELEMENTARY or len(terms) != 1:
        raise Unsupported(f"{name} is not supported")
    return call(ELEMENTARY[name], terms[0])


def _divide(a: Term, b: Term) -> Term:
    if b.number == 0:
        raise Unsupported("a division by zero among its steps is not supported")
    return a / b


def _log_add_exp(a: Term, b: Term) -> Term:
    return b + call(ELEMENTARY["softplus"], a - b)


def _scaled_bessel(name: str) -> Callable[[Term], Term]:
    def step(a: Term) -> Term:
        decay = call(ELEMENTARY["exp"], -call(ELEMENTARY["abs"], a))
        return decay * call(ELEMENTARY[name], a)

    return step


def _extremum(name: str) -> Callable[[Term, Term], Term]:
    first = 1 if name == "max" else -1

    def rule(base: Base, a: arb_series, b: arb_series) -> arb_series:
        gap = (a[0] - b[0]) * first
        if gap > 0 or gap < 0:
            return a if gap > 0 else b
        return _kink(getattr(a[0], name)(b[0]), a, b)

    return lambda a, b: Term(f"{name}({a.text}, {b.text})", rule, (a, b))


def _kink(value: arb, a: arb_series, b: arb_series) -> arb_series:
    """Where either branch may hold: the value, but no derivatives."""
    length = min(a.prec, b.prec)
    return arb_series([value] + [arb.nan()] * (length - 1), prec=length)


_STEPS: Mapping[str, Callable[..., Term]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": _divide,
    "neg": lambda a: -a,
    "copy": lambda a: a,
    "pow": real_power,
    "max": _extremum("max"),
    "min": _extremum("min"),
    "logaddexp": _log_add_exp,
    "bessel_i0e": _scaled_bessel("bessel_i0"),
    "bessel_i1e": _scaled_bessel("bessel_i1"),
}


# -------------------------------------------------------------------------------- JAX functions


@dataclass(frozen=True)
class _Condition:
    """A comparison of two terms: `decide` says yes, no or (None) that a ball leaves it open."""

    left: Term
    right: Term
    decide: Callable[[arb, arb], bool | None]


def _certain(yes: Callable[[arb, arb], bool], no: Callable[[arb, arb], bool]) -> Any:
    return lambda a, b: True if yes(a, b) else False if no(a, b) else None


_COMPARISONS: Mapping[str, Callable[[arb, arb], bool | None]] = {
    "lt": _certain(lambda a, b: bool(a < b), lambda a, b: bool(a >= b)),
    "le": _certain(lambda a, b: bool(a <= b), lambda a, b: bool(a > b)),
    "gt": _certain(lambda a, b: bool(a > b), lambda a, b: bool(a <= b)),
    "ge": _certain(lambda a, b: bool(a >= b), lambda a, b: bool(a < b)),
    "eq": _certain(lambda a, b: bool(a == b), lambda a, b: bool(a != b)),
    "ne": _certain(lambda a, b: bool(a != b), lambda a, b: bool(a == b)),
}
_SAME = {"lt": False, "le": True, "gt": False, "ge": True, "eq": True, "ne": False}
_SHAPE_ONLY = ("copy", "copy_p", "stop_gradient", "reduce_precision", "optimization_barrier")
_RESHAPES = ("broadcast_in_dim", "reshape", "squeeze", "expand_dims")
_CALLS = ("jaxpr", "call_jaxpr", "fun_jaxpr")


def _trace_jax(function: Callable[[Any], Any]) -> Term:
    import jax

    with jax.enable_x64(True):
        try:
            argument = jax.ShapeDtypeStruct((), np.float64)
            closed = jax.make_jaxpr(function)(argument)
        except Exception as error:
            raise _unsupported(error) from None
        outputs = _interpret(closed.jaxpr, closed.consts, [VARIABLE])
    if len(outputs) != 1:
        raise Unsupported(f"it returns {len(outputs)} values, not one")
    return _term(outputs[0])


def _interpret(jaxpr: Any, constants: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, constants, strict=True))
    values |= dict(zip(jaxpr.invars, arguments, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if hasattr(atom, "val") else values[atom]

    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            if getattr(variable.aval, "size", 1) != 1:
                shape = variable.aval.shape
                raise Unsupported(f"{equation.primitive.name} to shape {shape} is not supported")
        results = _step(equation, [read(atom) for atom in equation.invars])
        values |= dict(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _step(equation: Any, inputs: Sequence[Any]) -> list[Any]:
    name, settings = equation.primitive.name, equation.params
    inner = next((settings[key] for key in _CALLS if key in settings), None)
    if inner is not None and name not in ("scan", "while", "cond"):
        return _called(inner, inputs)
    if name in _COMPARISONS:
        return [_compared(name, inputs)]
    if name == "select_n":
        return [_selected(*inputs)]
    if name == "integer_pow":
        return [power(_term(inputs[0]), Fraction(settings["y"]))]
    if name in _SHAPE_ONLY or name in _RESHAPES:
        return [inputs[0]]
    if name == "convert_element_type":
        return [_converted(inputs[0], np.dtype(settings["new_dtype"]))]
    if not all(np.issubdtype(v.aval.dtype, np.floating) for v in equation.outvars):
        raise Unsupported(f"{name} on integers is not supported")
    return [_apply(_UFUNCS.get(name, name), [_term(value) for value in inputs])]


def _called(inner: Any, inputs: Sequence[Any]) -> list[Any]:
    jaxpr, constants = getattr(inner, "jaxpr", inner), getattr(inner, "consts", ())
    known = _known_functions().get(str(jaxpr))
    if known is not None:
        return [known(*(_term(value) for value in inputs))]
    return _interpret(jaxpr, constants, inputs)


@cache
def _known_functions() -> Mapping[str, Callable[..., Term]]:
    """Functions of JAX that branch where they are smooth, by the exact text of their program."""
    import jax
    import jax.numpy as jnp

    number = jax.ShapeDtypeStruct((), np.float64)

    def text(function: Callable[..., Any], *arguments: Any) -> str:
        (equation,) = jax.make_jaxpr(function)(*arguments).jaxpr.eqns
        inner = next(equation.params[key] for key in _CALLS if key in equation.params)
        return str(getattr(inner, "jaxpr", inner))

    pi = constant(Fraction(np.pi))
    return {
        text(jnp.logaddexp, number, number): _log_add_exp,
        text(jnp.sinc, number): lambda a: call(ELEMENTARY["sinc"], pi * a),
    }


def _converted(value: Any, dtype: np.dtype[Any]) -> Any:
    if isinstance(value, _Condition | bool):
        raise Unsupported("arithmetic with the result of a comparison is not supported")
    term = _term(value)
    if not np.issubdtype(dtype, np.floating) and term.number is None:
        raise Unsupported(f"a conversion to {dtype} is not supported")
    return term


def _compared(name: str, inputs: Sequence[Any]) -> _Condition | bool:
    if inputs[0] is inputs[1]:  # isnan(x) is x != x
        return _SAME[name]
    left, right = (_term(value) for value in inputs)
    return _Condition(left, right, _COMPARISONS[name])


def _selected(condition: Any, *cases: Any) -> Any:
    """`select_n`: the second case where the condition holds."""
    if isinstance(condition, bool | np.bool_):
        return cases[int(condition)]
    if not isinstance(condition, _Condition) or len(cases) != 2:
        raise Unsupported("select_n on a computed index is not supported")
    no, yes = (_term(case) for case in cases)
    decide = condition.decide

    def rule(base: Base, left: arb_series, right: arb_series, a: arb_series, b: arb_series) -> Any:
        decided = decide(left[0], right[0])
        if decided is None:
            return _kink(a[0].union(b[0]), a, b)
        chosen = b if decided else a
        # On the very border the value is certain, the derivatives are not.
        border = chosen.prec > 1 and (left[0] - right[0]).contains(0)
        return _kink(chosen[0], chosen, chosen) if border else chosen

    text = f"where({condition.left.text} ? {condition.right.text}, {yes.text}, {no.text})"
    return Term(text, rule, (condition.left, condition.right, no, yes))


# ------------------------------------------------------------------------- functions only measured


def _plain(function: Callable[[Any], Any]) -> Callable[[Any], np.ndarray]:
    """The callable in float64, over arrays where it accepts them."""

    def evaluate(points: Any) -> np.ndarray:
        with _double_precision(), np.errstate(all="ignore"):
            try:
                result = np.asarray(function(points), np.float64)
                if result.shape == np.shape(points):
                    return result
            except (TypeError, ValueError):
                if np.ndim(points) == 0:
                    raise
            return np.array([_one(function, x) for x in np.ravel(points)]).reshape(points.shape)

    return evaluate


def _one(function: Callable[[Any], Any], x: np.float64) -> float:
    try:
        return float(function(float(x)))
    except (ArithmeticError, ValueError):
        return float("nan")


def _double_precision() -> AbstractContextManager[Any]:
    if "jax" not in sys.modules:
        return nullcontext()
    import jax

    return jax.enable_x64(True)


def _unknown_value(plain: Callable[[np.ndarray], np.ndarray]) -> Callable[[arb], arb]:
    return lambda x: arb(float(plain(np.array(float(x.mid())))))


def _unknown(text: str) -> Callable[[arb, int], list[arb]]:
    def coefficients(x: arb, n: int) -> list[arb]:
        raise NotProven(f"{text} is known by its float64 values alone: it has no Taylor series")

    return coefficients


@dataclass(frozen=True, eq=False)
class _Measured(Oracle):
    """An oracle that is only measured: `value` is the float64 value at the ball's midpoint."""

    f: Callable[[np.ndarray], np.ndarray] = field(default=np.asarray)

    def at(self, x: arb | Fraction | int, bits: int = 64) -> arb:
        point = float(x.mid()) if isinstance(x, arb) else float(x)
        result = float(self.f(np.array(point)))
        if not np.isfinite(result):
            raise NotProven(f"{self.text} gives {result} at x = {point!r}")
        return arb(result)

    def table(self, points: np.ndarray, bits: int = 106) -> tuple[np.ndarray, np.ndarray]:
        high = self.f(np.asarray(points, np.float64))
        return high, np.zeros_like(high)
