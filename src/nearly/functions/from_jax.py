"""A `Program` from a JAX-traceable Python function: its jaxpr, instruction by instruction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from nearly.core.errors import InputError
from nearly.functions.evaluate import registers
from nearly.functions.formats import format_named
from nearly.functions.program import Builder, Node, Program

INLINED = frozenset(
    {"jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint"}
    | {"custom_jvp_call", "custom_vjp_call"}
)
IDENTITIES = (
    *("copy", "copy_p", "stop_gradient", "optimization_barrier"),
    *("reshape", "squeeze", "broadcast_in_dim", "expand_dims"),
)
LONGEST_SCAN = 4096


def from_jax(function: Callable[[Any], Any], dtype: str) -> Program:
    """The program that a function of one scalar computes.

    **Arguments:**

    - `function`: built from `jax.numpy` and `jax.lax`; arithmetic, roots, powers, comparisons,
      `where`, `clip`, rounding, bit operations on signed integers, and scans of fixed length.
    - `dtype`: the format of the program. The function is traced in its registers (float32 for the
      16-bit formats, float64 over the reals).

    **Raises:** `InputError` naming the first JAX operation that no instruction can do.
    """
    import jax

    builder = Builder(dtype)
    register = registers(format_named(dtype))
    with jax.enable_x64(register.name == "float64"):
        traced = jax.make_jaxpr(function)(jax.ShapeDtypeStruct((), register.dtype))
        results = _Translation(builder, register.dtype).run(
            traced.jaxpr, traced.consts, [builder.x]
        )
    if len(results) != 1 or np.shape(traced.out_avals[0]) != ():
        raise InputError("the function must return one number for one number")
    result = results[0]
    if traced.out_avals[0].dtype != register.dtype:
        raise InputError(
            f"the function returns {traced.out_avals[0].dtype}, its argument was "
            f"{register.name}; keep to one type"
        )
    node = result if isinstance(result, Node) else builder.constant(float(result))
    return builder.program(node)


class _Translation:
    """Values are nodes, or NumPy arrays where nothing depends on x."""

    def __init__(self, builder: Builder, real: np.dtype[Any]) -> None:
        self.builder, self.real = builder, real
        self.integer = np.dtype(f"int{8 * real.itemsize}")
        self.rules = self._rules()

    def run(self, jaxpr: Any, constants: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
        known: dict[Any, Any] = dict(zip(jaxpr.constvars, constants, strict=True))
        known |= dict(zip(jaxpr.invars, arguments, strict=True))

        def read(atom: Any) -> Any:
            return atom.val if hasattr(atom, "val") else known[atom]

        for equation in jaxpr.eqns:
            results = self._equation(equation, [read(atom) for atom in equation.invars])
            known |= dict(zip(equation.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, equation: Any, operands: list[Any]) -> Sequence[Any]:
        name, settings = equation.primitive.name, equation.params
        many = equation.primitive.multiple_results
        if name in INLINED:
            inner = settings.get("jaxpr", settings.get("call_jaxpr"))
            return self.run(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), operands)
        if not any(isinstance(o, Node) for o in operands):
            done = equation.primitive.bind(*operands, **settings)
            return [np.asarray(v) for v in done] if many else [np.asarray(done)]
        if name == "scan":
            return self._scan(settings, operands)
        if name not in self.rules or any(v.aval.shape != () for v in equation.outvars):
            where = " on arrays" if name in self.rules else ""
            raise InputError(
                f"a program has no instruction for JAX's {name}{where}; it has arithmetic, sqrt, "
                "integer powers, comparisons, where, rounding, conversions and integers' bits"
            )
        types = [v.aval.dtype for v in (*equation.invars, *equation.outvars)]
        foreign = [t for t in types if t not in (self.real, self.integer, np.dtype(bool))]
        if foreign:
            raise InputError(
                f"{name} computes in {foreign[0]}; a program in registers of {self.real} "
                f"knows {self.real}, {self.integer} and bool"
            )
        nodes = [self._node(o) for o in operands]
        return [self.rules[name](*nodes, types=types, **settings)]

    def _scan(self, settings: Mapping[str, Any], operands: list[Any]) -> Sequence[Any]:
        constants, carried = settings["num_consts"], settings["num_carry"]
        inner, length = settings["jaxpr"], settings["length"]
        fixed, state = operands[:constants], operands[constants : constants + carried]
        over = operands[constants + carried :]
        if len(inner.out_avals) != carried or length > LONGEST_SCAN:
            raise InputError("a scan in a program must be short and return only what it carries")
        if any(isinstance(o, Node) for o in over):
            raise InputError("a scan in a program must run over constants, not over values of x")
        steps = range(length)[::-1] if settings["reverse"] else range(length)
        for i in steps:
            slices = [np.asarray(o)[i] for o in over]
            state = self.run(inner.jaxpr, inner.consts, [*fixed, *state, *slices])
        return state

    def _node(self, value: Any) -> Any:
        if isinstance(value, Node):
            return value
        number = np.asarray(value)
        if number.shape != ():
            raise InputError("a program works on single numbers; this function uses an array")
        if number.dtype == bool:
            return bool(number)
        kind = "i" if number.dtype.kind == "i" else "r"
        return self.builder.constant(number.item(), kind)

    def _rules(self) -> dict[str, Callable[..., Any]]:
        b = self.builder

        def either(real: str, integer: str) -> Callable[..., Node]:
            return lambda p, q, types, **_: b.apply(
                real if types[0] == self.real else integer, p, q
            )

        def plain(name: str) -> Callable[..., Node]:
            return lambda *operands, **_: b.apply(name, *operands)

        def swapped(name: str) -> Callable[..., Node]:
            return lambda p, q, **_: b.apply(name, q, p)

        return {
            "add": either("add", "iadd"),
            "add_any": either("add", "iadd"),
            "sub": either("sub", "isub"),
            "mul": plain("mul"),
            "div": plain("div"),
            "neg": lambda a, types, **_: -a if types[0] == self.real else b.isub(0, a),
            "abs": plain("abs"),
            "sqrt": plain("sqrt"),
            "rsqrt": lambda a, **_: Fraction(1) / b.sqrt(a),
            "square": lambda a, **_: a * a,
            "integer_pow": lambda a, y, **_: a**y,
            "lt": plain("lt"),
            "le": plain("le"),
            "eq": plain("eq"),
            "gt": swapped("lt"),
            "ge": swapped("le"),
            "ne": lambda p, q, **_: self._not(b.eq(p, q)),
            "not": lambda p, types, **_: self._not(p) if _is_bool(types[0]) else b.isub(-1, p),
            "and": lambda p, q, types, **_: (self._and if _is_bool(types[0]) else b.iand)(p, q),
            "or": self._or,
            "select_n": self._select,
            "max": lambda p, q, **_: self._extreme(p, b.le(q, p), q),
            "min": lambda p, q, **_: self._extreme(p, b.le(p, q), q),
            "clamp": self._clamp,
            "round": self._round,
            "floor": lambda a, **_: self._floor(a),
            "ceil": lambda a, **_: -self._floor(-a),
            "sign": lambda a, **_: b.select(
                b.lt(a, 0), Fraction(-1), b.select(b.lt(0, a), Fraction(1), a)
            ),
            "is_finite": lambda a, **_: b.lt(b.abs(a), float("inf")),
            "convert_element_type": self._convert,
            "bitcast_convert_type": self._bitcast,
            "shift_left": plain("ishl"),
            "shift_right_arithmetic": plain("ishr"),
            **{name: lambda a, **_: a for name in IDENTITIES},
        }

    def _not(self, p: Any) -> Any:
        return (not p) if isinstance(p, bool) else self.builder.eq(self._flag(p), 0)

    def _flag(self, p: Node) -> Node:
        b = self.builder
        return b.select(p, b.constant(1, "i"), b.constant(0, "i"))

    def _and(self, p: Any, q: Any) -> Any:
        if isinstance(p, bool) or isinstance(q, bool):
            known, other = (p, q) if isinstance(p, bool) else (q, p)
            return other if known else False
        b = self.builder
        return b.eq(b.select(p, self._flag(q), b.constant(0, "i")), 1)

    def _or(self, p: Any, q: Any, types: Any, **_: Any) -> Any:
        if not _is_bool(types[0]):
            raise InputError("a program has no integer or; disjoint bits can be added")
        return self._not(self._and(self._not(p), self._not(q)))

    def _select(self, condition: Any, no: Any, yes: Any, types: Any, **_: Any) -> Any:
        if isinstance(condition, bool):
            return yes if condition else no
        if not _is_bool(types[0]) or _is_bool(types[1]):
            raise InputError("a program selects between numbers, by one condition")
        return self.builder.select(condition, yes, no)

    def _extreme(self, p: Any, first: Node, q: Any) -> Node:
        """p where `first` holds, else q; NaN where either is, as JAX has it."""
        b = self.builder
        return b.select(b.eq(p, p), b.select(first, p, q), p)

    def _clamp(self, low: Any, a: Any, high: Any, **_: Any) -> Node:
        b = self.builder
        raised = self._extreme(a, b.le(low, a), low)
        return self._extreme(raised, b.le(raised, high), high)

    def _round(self, a: Node, rounding_method: Any, **_: Any) -> Node:
        if int(rounding_method) != 1:
            raise InputError("a program rounds ties to even; use jnp.rint instead of lax.round")
        return self.builder.round(a)

    def _floor(self, a: Node) -> Node:
        b = self.builder
        nearest = b.round(a)
        return b.select(b.lt(a, nearest), nearest - 1, nearest)

    def _convert(self, a: Any, types: Any, **_: Any) -> Any:
        b, (source, target) = self.builder, types
        if source == target:
            return a
        if _is_bool(source):
            one = b.constant(1, "r" if target == self.real else "i")
            zero = b.constant(0, "r" if target == self.real else "i")
            return b.select(a, one, zero)
        if _is_bool(target):
            return self._not(b.eq(a, 0))
        return b.to_int(a) if source == self.real else b.to_float(a)

    def _bitcast(self, a: Any, types: Any, **_: Any) -> Any:
        if types[0] == types[1]:
            return a
        return self.builder.bits(a) if types[0] == self.real else self.builder.from_bits(a)


def _is_bool(dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "b"
