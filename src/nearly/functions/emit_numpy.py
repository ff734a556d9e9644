"""NumPy source from a `Program`: a module that imports nothing but numpy, equal bit for bit."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator

from nearly.functions import fma
from nearly.functions.formats import Format
from nearly.functions.program import Constant, Instruction, Program
from nearly.functions.statement import ErrorStatement

TEMPLATES = {
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "div": "{0} / {1}",
    "fma": "{fma}({0}, {1}, {2})",
    "sqrt": "np.sqrt({0})",
    "neg": "-{0}",
    "abs": "np.abs({0})",
    "round": "np.rint({0})",
    "to_int": "{0}.astype({i})",
    "to_float": "{0}.astype({r})",
    "bits": "{0}.view({i})",
    "from_bits": "{0}.view({r})",
    "iadd": "{0} + {1}",
    "isub": "{0} - {1}",
    "ishl": "{0} << ({1} & {w})",
    "ishr": "{0} >> ({1} & {w})",
    "iand": "{0} & {1}",
    "lt": "{0} < {1}",
    "le": "{0} <= {1}",
    "eq": "{0} == {1}",
    "select": "np.where({0}, {1}, {2})",
    "lookup": 'np.take({0}, {1}, mode="clip")',
}

FUSED = {32: fma.fma32, 64: fma.fma64}

# NumPy has no bfloat16: its bits travel, in an array of whichever 16-bit type came.
LOAD = {
    "float64": ["x = np.asarray(x, np.float64)"],
    "float32": ["x = np.asarray(x, np.float32)"],
    "float16": ["x = np.asarray(x, np.float16).astype(np.float32)"],
    "bfloat16": [
        "given = np.asarray(x)",
        "x = (given.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)",
    ],
}
STORE = {
    "float64": ["return y"],
    "float32": ["return y"],
    "float16": ["return y.astype(np.float16)"],
    "bfloat16": [
        "bits = y.view(np.uint32)",
        "upper = bits >> np.uint32(16)",
        "rounded = (bits + np.uint32(0x7FFF) + (upper & np.uint32(1))) >> np.uint32(16)",
        "stored = np.where(np.isnan(y), upper | np.uint32(0x40), rounded)",
        "return stored.astype(np.uint16).view(given.dtype)",
    ],
}


def to_numpy(program: Program, name: str, header: ErrorStatement) -> str:
    """The text of a module with `name(x)`, equal to `evaluate(program, x)` bit for bit."""
    register = program.format.computing
    fused = any(i[0] == "fma" for i in program.instructions)
    helpers = (fma.two_sum, fma.odd_sum, FUSED[register.bits]) if fused else ()
    note = ["x holds bfloat16 numbers, or uint16 with their bits"]
    parts = [
        docstring([*header.lines(), *(note if program.dtype == "bfloat16" else [])]),
        "import numpy as np\n" + ("from numpy.typing import ArrayLike\n" if fused else ""),
        *(inspect.getsource(f) for f in helpers),
        "\n".join(rows(label, t, register) for label, t in program.tables.items()),
        f"def {name}(x):\n" + "\n".join("    " + line for line in _body(program)),
    ]
    return "\n\n\n".join(p.rstrip("\n") for p in parts if p) + "\n"


def docstring(lines: list[str]) -> str:
    """A header as a module's docstring."""
    safe = "\n".join(lines).replace("\\", "/").replace('"""', "'''")
    return f'"""{safe}\n"""\n'


def number(value: Constant, register: Format) -> str:
    """A constant as Python's literal: decimal digits that read back exactly."""
    if isinstance(value, int):
        half = 1 << (register.bits - 1)
        return str((value + half) % (2 * half) - half)
    literal = repr(float(value))
    return f'float("{literal}")' if literal.lstrip("-") in ("inf", "nan") else literal


def rows(label: str, table: tuple[Constant, ...], register: Format) -> str:
    """A table as an assignment of a NumPy array."""
    numbers = textwrap.fill(", ".join(number(v, register) for v in table), 90)
    inner = textwrap.indent(numbers, " " * 8)
    return f"{label} = np.array(\n    [\n{inner}\n    ],\n    np.{register.name},\n)"


def _body(program: Program) -> Iterator[str]:
    register = program.format.computing
    yield 'with np.errstate(all="ignore"):'
    yield from ("    " + line for line in LOAD[program.dtype])
    for i, instruction in enumerate(program.instructions):
        yield f"    t{i} = {_expression(program, instruction)}"
    result = f"t{len(program.instructions) - 1}"
    spread = f"np.full(x.shape, {result}, np.{register.name})"
    yield f"    y = {result if result in program.depends else spread}"
    yield from ("    " + line for line in STORE[program.dtype])


def _expression(program: Program, instruction: Instruction) -> str:
    operation, *operands = instruction
    register = program.format.computing
    return TEMPLATES[operation].format(
        *(_operand(program, o) for o in operands),
        r=f"np.{register.name}",
        i=f"np.{register.integer.name}",
        w=f"np.{register.integer.name}({register.bits - 1})",
        fma=f"fma{register.bits}",
    )


def _operand(program: Program, name: str) -> str:
    if name not in program.constants:
        return name
    register, value = program.format.computing, program.constants[name]
    kind = register.integer if isinstance(value, int) else register.dtype
    return f"np.{kind.name}({number(value, register)})"
