"""`Program`: the straight-line form to which every approximation of a scalar function lowers.

Counting, evaluating, bounding, verifying and emitting are written once, over `Program`; a Taylor
polynomial, a minimax rational and an evolved program differ only in how theirs came to be.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from typing import Any, NamedTuple

from nearly.core.errors import InputError, UnknownName
from nearly.functions.formats import Format, format_named

Constant = Fraction | int | float


class Operation(NamedTuple):
    """What an instruction takes and gives. Types: r(eal register), i(nteger), b(ool), T(able)."""

    takes: str
    gives: str
    ops: int  # + - * / on values that depend on x
    instructions: int
    weight: float  # reciprocal throughput against an addition, on a present-day core


# The closed list. `bitcast` comes in its two directions; `a` means "r or i, both the same".
OPERATIONS: Mapping[str, Operation] = {
    "add": Operation("rr", "r", 1, 1, 1),
    "sub": Operation("rr", "r", 1, 1, 1),
    "mul": Operation("rr", "r", 1, 1, 1),
    "div": Operation("rr", "r", 1, 1, 6),
    "fma": Operation("rrr", "r", 2, 1, 1),  # fma(a, b, c) = a*b + c
    "sqrt": Operation("r", "r", 0, 1, 6),
    "neg": Operation("r", "r", 0, 1, 1),
    "abs": Operation("r", "r", 0, 1, 1),
    "round": Operation("r", "r", 0, 1, 1),  # to the nearest integer, ties to even
    "to_int": Operation("r", "i", 0, 1, 1),  # truncates; out of range or NaN: any integer
    "to_float": Operation("i", "r", 0, 1, 1),
    "bits": Operation("r", "i", 0, 1, 1),  # bitcast register -> integer
    "from_bits": Operation("i", "r", 0, 1, 1),  # bitcast integer -> register
    "iadd": Operation("ii", "i", 0, 1, 1),  # wraps
    "isub": Operation("ii", "i", 0, 1, 1),  # wraps
    "ishl": Operation("ii", "i", 0, 1, 1),  # shift in [0, width)
    "ishr": Operation("ii", "i", 0, 1, 1),  # arithmetic; shift in [0, width)
    "iand": Operation("ii", "i", 0, 1, 1),
    "lt": Operation("aa", "b", 0, 1, 1),
    "le": Operation("aa", "b", 0, 1, 1),
    "eq": Operation("aa", "b", 0, 1, 1),
    "select": Operation("baa", "a", 0, 1, 1),  # select(condition, if true, if false)
    "lookup": Operation("Ti", "r", 0, 1, 3),  # index in [0, len(table))
}

REAL_OPERATIONS = ("add", "sub", "mul", "div", "fma", "sqrt", "neg", "abs")

Instruction = tuple[str, ...]


class Cost(NamedTuple):
    """What a program costs to run once.

    `ops` counts + - * / on values that depend on x, one each, fma two, no sqrt. `instructions`
    counts everything that depends on x once (fma 1, sqrt 1). `weighted` sums reciprocal
    throughputs (a division is six additions). `depth` is the longest chain of instructions.
    """

    ops: int
    instructions: int
    weighted: float
    depth: int


@dataclass(frozen=True)
class Program:
    """A straight-line program in one variable.

    **Arguments:**

    - `instructions`: tuples `(operation, *operands)`. Instruction `i` defines `t{i}`; the last one
      is the result. Operands are `x`, an earlier `t{i}`, a constant (`c0`, `k0`, …) or, first in a
      `lookup`, a table.
    - `constants`: name -> exact `Fraction`, `int` (an integer operand) or a `float` inf/nan.
      Those of a program in a machine format are already numbers of its register format.
    - `tables`: name -> tuple of Fractions.
    - `dtype`: name of the number format. Over `"real"` only `REAL_OPERATIONS` may stand.

    Hashable, picklable, immutable. Calling it with a NumPy array evaluates it in its format, bit
    for bit as the emitted C does.
    """

    instructions: tuple[Instruction, ...]
    constants: Mapping[str, Constant] = field(default_factory=dict)
    tables: Mapping[str, tuple[Fraction, ...]] = field(default_factory=dict)
    dtype: str = "real"

    def __post_init__(self) -> None:
        if not self.instructions:
            raise InputError("a program needs at least one instruction; use add(x, 0) for x itself")
        kinds = self.kinds  # checks every operand
        if kinds[f"t{len(self.instructions) - 1}"] != "r":
            raise InputError("the last instruction of a program must give a number")

    def __hash__(self) -> int:
        return hash((self.instructions, tuple(sorted(self.constants.items())), self.dtype))

    @property
    def format(self) -> Format:
        return format_named(self.dtype)

    @cached_property
    def kinds(self) -> dict[str, str]:
        """The type (r, i, b, T) of every name; raises `InputError` on a malformed program."""
        kinds = {"x": "r"} | dict.fromkeys(self.tables, "T")
        for name, value in self.constants.items():
            kinds[name] = "i" if isinstance(value, int) else "r"
        for i, instruction in enumerate(self.instructions):
            kinds[f"t{i}"] = self._kind(i, instruction, kinds)
        return kinds

    def _kind(self, i: int, instruction: Instruction, kinds: Mapping[str, str]) -> str:
        name, *operands = instruction
        if name not in OPERATIONS:
            raise UnknownName(f"operation in instruction {i}", name, OPERATIONS)
        if self.dtype == "real" and name not in REAL_OPERATIONS:
            raise InputError(f"instruction {i}: {name} needs a machine format, not real numbers")
        takes = OPERATIONS[name].takes
        missing = [o for o in operands if o not in kinds]
        if missing or len(operands) != len(takes):
            what = f"{missing[0]} is not defined" if missing else f"takes {len(takes)} operands"
            raise InputError(f"instruction {i}: {' '.join(instruction)}: {what}")
        found = "".join(kinds[o] for o in operands)
        generic = found[takes.index("a")] if "a" in takes else ""
        if generic not in ("", "r", "i") or found != takes.replace("a", generic or "a"):
            raise InputError(f"instruction {i}: {name} takes {takes}, got {found}")
        return OPERATIONS[name].gives.replace("a", generic or "a")

    @cached_property
    def depends(self) -> frozenset[str]:
        """The names whose value depends on x."""
        names = {"x"}
        for i, (_, *operands) in enumerate(self.instructions):
            if names.intersection(operands):
                names.add(f"t{i}")
        return frozenset(names)

    @cached_property
    def cost(self) -> Cost:
        ops, instructions, weighted = 0, 0, 0.0
        depth: dict[str, int] = {}
        for i, (name, *operands) in enumerate(self.instructions):
            if f"t{i}" not in self.depends:
                continue
            operation = OPERATIONS[name]
            ops += operation.ops
            instructions += operation.instructions
            weighted += operation.weight
            depth[f"t{i}"] = 1 + max(depth.get(o, 0) for o in operands)
        return Cost(ops, instructions, weighted, max(depth.values(), default=0))

    def run(self, x: Any, arithmetic: Mapping[str, Callable[..., Any]], constant: Any) -> Any:
        """Interpret the program over any arithmetic.

        **Arguments:**

        - `x`: the value of the variable.
        - `arithmetic`: operation name -> function of the operands' values.
        - `constant`: function of a constant's (or a whole table's) exact value.

        This is the one interpreter: balls, series, NumPy, JAX and tracers all come through here.
        """
        values: dict[str, Any] = {"x": x}
        values |= {name: constant(value) for name, value in self.constants.items()}
        values |= {name: constant(value) for name, value in self.tables.items()}
        result = x
        for i, (name, *operands) in enumerate(self.instructions):
            result = arithmetic[name](*(values[o] for o in operands))
            values[f"t{i}"] = result
        return result

    def __call__(self, x: Any) -> Any:
        """Evaluate in the program's own format (real programs: in float64) on a NumPy array."""
        from nearly.functions.evaluate import evaluate

        return evaluate(self, x)

    def unfused(self) -> Program:
        """The same program with every fma as a product rounded, then a sum rounded."""
        builder = Builder(self.dtype)
        split = builder.arithmetic | {"fma": lambda a, b, c: builder.apply("add", a * b, c)}
        return builder.program(self.run(builder.x, split, builder.constant))

    def fused(self) -> Program:
        """The same program with every sum of a product and something as an fma."""
        builder = Builder(self.dtype)

        def value(operand: Any) -> Any:
            return builder.apply("mul", *operand) if isinstance(operand, tuple) else operand

        def add(a: Any, b: Any) -> Any:
            product, other = (b, a) if isinstance(b, tuple) else (a, b)
            if isinstance(product, tuple):
                return builder.apply("fma", *product, value(other))
            return builder.apply("add", a, b)

        def copied(name: str) -> Callable[..., Any]:
            return lambda *operands: builder.apply(name, *map(value, operands))

        arithmetic: dict[str, Callable[..., Any]] = {name: copied(name) for name in OPERATIONS}
        # A product waits for who takes it; written twice, it is one instruction all the same.
        arithmetic |= {"add": add, "mul": lambda a, b: (value(a), value(b))}
        return builder.program(value(self.run(builder.x, arithmetic, builder.constant)))

    def in_format(self, dtype: str) -> Program:
        """The same instructions in another format, each constant rounded to its registers."""
        register = format_named(dtype).computing

        def rounded(value: Constant) -> Constant:
            return register.round(value) if isinstance(value, Fraction) else value

        return replace(
            self,
            constants={n: rounded(v) for n, v in self.constants.items()},
            tables={n: tuple(register.round(v) for v in t) for n, t in self.tables.items()},
            dtype=dtype,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data: constants as exact `numerator/denominator` or decimal strings."""
        return {
            "instructions": [list(i) for i in self.instructions],
            "constants": {n: _write(v) for n, v in self.constants.items()},
            "tables": {n: [_write(v) for v in t] for n, t in self.tables.items()},
            "dtype": self.dtype,
        }

    @staticmethod
    def from_json(data: Mapping[str, Any] | str) -> Program:
        """The program that `to_json` (or a hand-written file in docs/formats.md's form) wrote."""
        loaded: Mapping[str, Any] = json.loads(data) if isinstance(data, str) else data
        constants: dict[str, Constant] = {n: _read(v) for n, v in loaded["constants"].items()}
        tables = {n: tuple(Fraction(v) for v in t) for n, t in loaded.get("tables", {}).items()}
        instructions = tuple(tuple(map(str, i)) for i in loaded["instructions"])
        return Program(instructions, constants, tables, loaded.get("dtype", "real"))

    def __str__(self) -> str:
        def show(name: str) -> str:
            value = self.constants.get(name)
            return name if value is None else str(value if isinstance(value, int) else float(value))

        lines = (
            f"t{i} = {name}({', '.join(map(show, operands))})"
            for i, (name, *operands) in enumerate(self.instructions)
        )
        return "\n".join(lines)


def _write(value: Constant) -> str | int:
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return str(value)
    denominator = value.denominator
    twos = (denominator & -denominator).bit_length() - 1
    fives = 0
    while denominator % 5 == 0:
        denominator, fives = denominator // 5, fives + 1
    if denominator != 2**twos or max(twos, fives) > 400:
        return str(value)
    places = max(twos, fives)
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    sign = "-" if value < 0 else ""
    point = len(digits) - places
    # A point is always written: a string without one and without a slash would read as an integer.
    return f"{sign}{digits[:point]}.{digits[point:] or '0'}"


def _read(text: str | int) -> Constant:
    if isinstance(text, int):
        return text
    if text.lower().lstrip("+-") in ("inf", "infinity", "nan"):
        return float(text)
    return Fraction(text)


UFUNCS: Mapping[str, str] = {
    "add": "add",
    "subtract": "sub",
    "multiply": "mul",
    "divide": "div",
    "negative": "neg",
    "absolute": "abs",
    "fabs": "abs",
    "sqrt": "sqrt",
    "rint": "round",
}


class Node:
    """A value inside a program under construction; arithmetic on it appends instructions."""

    __slots__ = ("builder", "name")

    def __init__(self, builder: Builder, name: str) -> None:
        self.builder, self.name = builder, name

    def __add__(self, other: Any) -> Node:
        return self.builder.apply("add", self, other)

    def __radd__(self, other: Any) -> Node:
        return self.builder.apply("add", other, self)

    def __sub__(self, other: Any) -> Node:
        return self.builder.apply("sub", self, other)

    def __rsub__(self, other: Any) -> Node:
        return self.builder.apply("sub", other, self)

    def __mul__(self, other: Any) -> Node:
        return self.builder.apply("mul", self, other)

    def __rmul__(self, other: Any) -> Node:
        return self.builder.apply("mul", other, self)

    def __truediv__(self, other: Any) -> Node:
        return self.builder.apply("div", self, other)

    def __rtruediv__(self, other: Any) -> Node:
        return self.builder.apply("div", other, self)

    def __neg__(self) -> Node:
        return self.builder.apply("neg", self)

    def __abs__(self) -> Node:
        return self.builder.apply("abs", self)

    def __array_ufunc__(self, ufunc: Any, method: str, *operands: Any, **options: Any) -> Any:
        """NumPy's functions on a node (`np.sqrt`, `np.float32(2) * node`) append instructions."""
        name = UFUNCS.get(ufunc.__name__)
        plain = all(isinstance(o, Node) or getattr(o, "ndim", 0) == 0 for o in operands)
        if name is None or method != "__call__" or options or not plain:
            raise TypeError(f"a program has no instruction for np.{ufunc.__name__} here")
        return self.builder.apply(name, *operands)

    def __pow__(self, exponent: int) -> Node:
        """An integer power by repeated squaring; of a negative one the reciprocal, last."""
        if exponent != int(exponent):
            raise TypeError(f"a program has no instruction for the power {exponent}")
        if exponent < 0:
            return Fraction(1) / self**-exponent
        if exponent == 0:
            return self.builder.constant(Fraction(1))
        if exponent == 1:
            return self
        half = self ** (exponent // 2)
        return half * half * self if exponent % 2 else half * half


class Builder:
    """Writes a `Program`: arithmetic on its nodes appends instructions, equal ones shared.

    ```python
    b = Builder("float32")
    y = b.fma(b.x, Fraction(1, 3), 1) / b.x     # numbers become constants
    program = b.program(y)
    ```

    Every operation of `OPERATIONS` is a method. A Python `int` operand becomes a real constant
    where a real is expected, an integer constant where an integer is; `float` and `Fraction` are
    taken exactly. In a machine format constants are rounded to the registers. Nothing is folded or
    reordered: what is written is what is computed.
    """

    def __init__(self, dtype: str = "real") -> None:
        self.dtype = dtype
        self.x = Node(self, "x")
        self._register = format_named(dtype).computing
        self._instructions: list[Instruction] = []
        self._known: dict[Instruction, Node] = {}
        self._constants: dict[str, Constant] = {}
        self._names: dict[tuple[str, Any], str] = {}
        self._tables: dict[str, tuple[Fraction, ...]] = {}
        self._kinds: dict[str, str] = {"x": "r"}

    def constant(self, value: Any, kind: str | None = None) -> Any:
        """A constant or table as an operand. An `int` is an integer constant unless kind is 'r'."""
        if isinstance(value, Node):
            return value
        if isinstance(value, tuple):
            return self.table(value)
        return Node(self, self._constant(value, kind or ("i" if isinstance(value, int) else "r")))

    def _constant(self, value: Any, kind: str) -> str:
        value = value.item() if hasattr(value, "item") else value  # NumPy's scalars
        exact: Constant
        if kind == "i":
            exact = int(value)
        elif isinstance(value, float) and value - value != 0:
            exact = value
        else:
            exact = self._register.round(Fraction(value))
        key = (kind, str(exact))
        if key not in self._names:
            prefix = "k" if kind == "i" else "c"
            name = f"{prefix}{sum(n.startswith(prefix) for n in self._constants)}"
            self._names[key] = name
            self._constants[name] = exact
            self._kinds[name] = kind
        return self._names[key]

    def table(self, values: Any) -> Node:
        """A table of reals, to be read with `lookup(table, index)`."""
        rounded = tuple(self._register.round(Fraction(v)) for v in values)
        for name, known in self._tables.items():
            if known == rounded:
                return Node(self, name)
        name = f"T{len(self._tables)}"
        self._tables[name] = rounded
        self._kinds[name] = "T"
        return Node(self, name)

    def apply(self, name: str, *operands: Any) -> Node:
        """Append `name(*operands)`, or return the node that already computes it."""
        if name not in OPERATIONS:
            raise UnknownName("operation", name, OPERATIONS)
        takes = OPERATIONS[name].takes
        generic = self._generic(takes, operands)
        names = tuple(
            o.name if isinstance(o, Node) else self._constant(o, generic if t == "a" else t)
            for t, o in zip(takes, operands, strict=True)
        )
        instruction = (name, *names)
        if instruction not in self._known:
            node = Node(self, f"t{len(self._instructions)}")
            self._instructions.append(instruction)
            self._known[instruction] = node
            self._kinds[node.name] = OPERATIONS[name].gives.replace("a", generic)
        return self._known[instruction]

    def _generic(self, takes: str, operands: tuple[Any, ...]) -> str:
        kinds = [
            self._kinds[o.name]
            for t, o in zip(takes, operands, strict=True)
            if t == "a" and isinstance(o, Node)
        ]
        return kinds[0] if kinds else "r"

    @property
    def arithmetic(self) -> dict[str, Callable[..., Node]]:
        """Operation name -> the method that appends it: a program run over it is copied."""
        return {name: self._applier(name) for name in OPERATIONS}

    def _applier(self, name: str) -> Callable[..., Node]:
        return lambda *operands: self.apply(name, *operands)

    def __getattr__(self, name: str) -> Callable[..., Node]:
        if name not in OPERATIONS:
            raise AttributeError(name)
        return self._applier(name)

    def inline(self, program: Program, x: Node) -> Node:
        """The value of another program of this format at `x`."""
        return program.run(x, self.arithmetic, self.constant)

    def program(self, result: Node) -> Program:
        """The program that computes `result`: dead instructions and constants dropped."""
        if not result.name.startswith("t"):
            result = self.apply("add", result, Fraction(0))  # a program has at least one step
        live = set(self._live(result.name))
        order = [i for i in range(len(self._instructions)) if f"t{i}" in live]
        rename = {f"t{old}": f"t{new}" for new, old in enumerate(order)}
        rename |= _renumbered("c", [c for c in self._constants if c in live])
        rename |= _renumbered("k", [c for c in self._constants if c in live])
        rename |= _renumbered("T", [t for t in self._tables if t in live])
        instructions = tuple(
            (name, *(rename.get(o, o) for o in operands))
            for name, *operands in (self._instructions[i] for i in order)
        )
        return Program(
            instructions,
            {rename[n]: v for n, v in self._constants.items() if n in live},
            {rename[n]: v for n, v in self._tables.items() if n in live},
            self.dtype,
        )

    def _live(self, name: str) -> Iterator[str]:
        pending, seen = [name], {name}
        while pending:
            current = pending.pop()
            yield current
            if current.startswith("t"):
                operands = self._instructions[int(current[1:])][1:]
                fresh = [o for o in operands if o not in seen]
                seen.update(fresh)
                pending.extend(fresh)


def _renumbered(prefix: str, names: list[str]) -> dict[str, str]:
    mine = [n for n in names if n.startswith(prefix)]
    return {old: f"{prefix}{new}" for new, old in enumerate(mine)}
