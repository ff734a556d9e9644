"""JAX source, a JAX function and StableHLO from a `Program`.

XLA computes what it is told only up to its rewriting. On every backend it turns a division by a
constant into a product with the rounded reciprocal, `(x + c) + d` into `x + (c + d)`, so that
rounding by a large constant becomes nothing at all, `(a / b) / c` into `a / (b * c)`, `x / sqrt(y)`
into `x * rsqrt(y)`, `1 / (1 / x)` into `x`; all of it with other errors than those proven. So each
rounded operation here stands behind an optimization barrier. Barriers are gone before XLA fuses
loops and cost nothing. What is left is the contraction of a product with a sum, later, by LLVM: it
differs between processors and cannot be turned off, and bounds for this form allow it everywhere.

XLA flushes subnormal numbers to zero in arithmetic and comparisons; bitcasts, integer steps and
selections only move bits and leave them alone.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from nearly.core.errors import InputError, PrecisionError
from nearly.functions.derivative import differentiate
from nearly.functions.emit_numpy import docstring, number, rows
from nearly.functions.program import Instruction, Program
from nearly.functions.statement import ErrorStatement

TEMPLATES = {
    "add": "fixed({0} + {1})",
    "sub": "fixed({0} - {1})",
    "mul": "fixed({0} * {1})",
    "div": "fixed({0} / {1})",
    "fma": "fixed(fixed({0} * {1}) + {2})",
    "sqrt": "fixed(jnp.sqrt({0}))",
    "neg": "-{0}",
    "abs": "jnp.abs({0})",
    "round": "fixed(jnp.rint({0}))",
    "to_int": "lax.convert_element_type({0}, {i})",
    "to_float": "lax.convert_element_type({0}, {r})",
    "bits": "lax.bitcast_convert_type({0}, {i})",
    "from_bits": "lax.bitcast_convert_type({0}, {r})",
    "iadd": "{0} + {1}",
    "isub": "{0} - {1}",
    "ishl": "{0} << ({1} & {w})",
    "ishr": "{0} >> ({1} & {w})",
    "iand": "{0} & {1}",
    "lt": "{0} < {1}",
    "le": "{0} <= {1}",
    "eq": "{0} == {1}",
    "select": "jnp.where({0}, {1}, {2})",
    "lookup": 'jnp.take({0}, {1}, mode="clip")',
}

HELPERS = """\
# XLA rearranges sums, products, quotients and roots; behind a barrier each is computed as written.
fixed = lax.optimization_barrier


# A number XLA does not know, so that it keeps the operation: as wide as x, else it inverts a
# divisor once for all elements.
def opaque(value, x):
    return fixed(jnp.where(x == x, value, value))
"""

FUNCTION = """\
def {name}(x):
{guard}    return {name}_value(jnp.asarray(x, {storage}))


@jax.custom_jvp
def {name}_value(x):
{body}


@{name}_value.defjvp
def {name}_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    y = {name}_value(x)
    return y, {name}_slope(x, y) * dx
"""

NEAR = """\
# Beyond {reach} the range reduction is dear. One such number is enough to have it done for all, and
# most arrays hold none. A batch of arrays is one array.
@jax.custom_batching.custom_vmap
def {name}_chosen(x):
    return lax.cond(jnp.any(jnp.abs(x) > {reach}), {name}_everywhere, {name}_near, x)


@{name}_chosen.def_vmap
def {name}_batched(size, batched, x):
    return {name}_chosen(x), batched[0]


def {name}_everywhere(x):
{everywhere}


def {name}_near(x):
{near}
"""

SECOND = """\
# The bits of x are taken apart below, which JAX cannot differentiate: the slope of the slope
# stands beside it, and there is no third.
def {name}_slope(x, y):
    return {name}_first(x)


@jax.custom_jvp
def {name}_first(x):
{first}


@{name}_first.defjvp
def {name}_first_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    return {name}_first(x), {name}_second(x) * dx


@jax.custom_jvp
def {name}_second(x):
{second}


@{name}_second.defjvp
def {name}_second_jvp(primals, tangents):
    raise NotImplementedError("{name} has two derivatives; give derivative= to have them all")
"""

GUARD = """\
    if jnp.result_type(float) != jnp.float64:
        raise RuntimeError({message!r})
"""

MATHEMATICS = {
    name: f"jnp.{name}"
    for name in (
        *("exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sqrt", "cbrt", "abs"),
        *("sin", "cos", "tan", "arcsin", "arccos", "arctan"),
        *("sinh", "cosh", "tanh", "arcsinh", "arccosh", "arctanh"),
    )
} | {
    **{"asin": "jnp.arcsin", "acos": "jnp.arccos", "atan": "jnp.arctan", "rsqrt": "lax.rsqrt"},
    **{"asinh": "jnp.arcsinh", "acosh": "jnp.arccosh", "atanh": "jnp.arctanh"},
    **{"erf": "lax.erf", "erfc": "lax.erfc", "lgamma": "lax.lgamma"},
    **{"digamma": "psi", "trigamma": "trigamma", "clip": "jnp.clip"},
}
OPERANDS = {"clip": 3}  # of the others one

POLYGAMMA = """\
@jax.custom_jvp
def psi(x):
    return lax.digamma(x)


@psi.defjvp
def psi_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    return psi(x), trigamma(x) * dx


# JAX's polygamma is right for positive x alone: left of 0 by reflection.
def trigamma(x):
    left = x < 0
    right = lax.polygamma(jnp.ones_like(x), jnp.where(left, 1 - x, x))
    part = jnp.where(left, x - jnp.rint(x), 0.5)
    return jnp.where(left, (np.pi / jnp.sin(np.pi * part)) ** 2 - right, right)


"""

SIGNS: dict[type[ast.operator], str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.Pow: "**",
}


class Near(NamedTuple):
    """A cheaper program of the same function, for arrays of which no |x| exceeds `reach`."""

    program: Program
    reach: float


def to_source(
    program: Program,
    name: str,
    header: ErrorStatement | None = None,
    derivative: str | Program | None = None,
    near: Near | None = None,
) -> str:
    """The text of a module with `name(x)`, importing nothing but JAX and NumPy.

    `derivative` as in `to_jax`. With `near`, the text holds both programs and looks at the array:
    that costs a quarter of a nanosecond per element, and the function is not fused with others.
    """
    storage = f"jnp.{program.dtype}"
    guard = GUARD.format(message=_remedy(name)) if program.dtype == "float64" else ""
    slopes, text = _slopes(program, name, derivative)
    nearby = [near.program] if near else []
    tables = {v: k for k, v in _named_tables([program, *nearby, *slopes]).items()}
    body = f"    return {name}_chosen(x)" if near else _body(program, tables)
    parts = [
        docstring(header.lines()) if header else "",
        "import jax\nimport jax.numpy as jnp\nimport numpy as np\nfrom jax import lax\n",
        HELPERS,
        "\n".join(rows(label, t, program.format.computing) for t, label in tables.items()),
        FUNCTION.format(name=name, guard=guard, storage=storage, body=body),
        _choice(program, name, near, tables) if near else "",
        text(tables),
    ]
    return "\n\n".join(part.rstrip("\n") + "\n" for part in parts if part)


@dataclass(frozen=True)
class JaxFunction:
    """A program as a JAX function; see `to_jax`."""

    program: Program
    derivative: str | Program | None = None
    name: str = "approximation"

    @cached_property
    def source(self) -> str:
        """The text that is executed: what `emit(program, "jax", …)` prints, without a header."""
        return to_source(self.program, self.name, derivative=self.derivative)

    @cached_property
    def traced(self) -> Callable[[Any], Any]:
        """The plain function that the text defines."""
        namespace: dict[str, Any] = {}
        exec(compile(self.source, f"<{self.name}>", "exec"), namespace)
        return namespace[self.name]

    def __reduce__(self) -> tuple[Any, ...]:
        return JaxFunction, (self.program, self.derivative, self.name)

    def __call__(self, x: Any) -> Any:
        import jax.numpy as jnp

        if self.program.dtype == "float64" and jnp.result_type(float) != jnp.float64:
            raise PrecisionError(_remedy(self.name))
        return self.traced(x)


def to_jax(
    program: Program, derivative: str | Program | None = None, *, name: str = "approximation"
) -> JaxFunction:
    """A program as a pure JAX function, safe under `jit`, `vmap`, `grad` and `jvp`.

    **Arguments:**

    - `program`: in a machine format; a 16-bit one computes in float32 and is rounded once.
    - `derivative`: the derivative of the truth, as an expression in `x` and the value `y`
      (`"y*log(2)"`, differentiable again as often as JAX likes) or as a program. By default the
      derivative of the program itself; programs that take the bits of x apart then have two.
    - `name`: of the function, in traces and profiles.

    **Raises:** `InputError` over the real numbers, or where the program's own derivative cannot
    be read from its integer steps. Called in float64 with x64 off: `PrecisionError`.

    Values are those of the program up to the contraction of products with sums (see this file),
    whether x64 is on or off, jitted or not. Cost: that of the program; no barrier survives
    compilation.
    """
    if program.format.is_real:
        raise InputError(
            "a program over the real numbers has no JAX form; use in_format('float64')"
        )
    made = JaxFunction(program, derivative, name)
    _ = made.source  # what cannot be differentiated is refused here, not at the first call
    return made


def to_stablehlo(program: Program, name: str, header: ErrorStatement) -> str:
    """The program as StableHLO text, exported for any number of elements."""
    import jax
    from jax import export

    function = to_jax(program, name=name)
    with jax.enable_x64(program.dtype == "float64"):
        (n,) = export.symbolic_shape("n")
        argument = jax.ShapeDtypeStruct((n,), program.format.dtype)
        module = export.export(jax.jit(function.traced))(argument).mlir_module()
    # Locations name files of the machine that exported; nothing else depends on them.
    lines = (line for line in module.splitlines() if not line.startswith("#loc"))
    text = re.sub(r' loc\((?:"[^"]*"|[^()"])*(?:\([^()]*\))?\)', "", "\n".join(lines))
    return "\n".join([*(f"// {line}" for line in header.lines()), text, ""])


def _remedy(name: str) -> str:
    return (
        f"{name} computes in float64, and JAX is set to float32: call it inside "
        "`with jax.enable_x64(True):`, or set jax.config.update('jax_enable_x64', True)"
    )


def _slopes(program: Program, name: str, derivative: str | Program | None) -> Any:
    """The programs of the derivatives, and the text that defines `name_slope(x, y)`."""
    if isinstance(derivative, str):
        expression = expression_source(derivative)
        register = f"jnp.{program.format.computing.name}"
        lines = [
            f"def {name}_slope(x, y):",
            f"    x, y = x.astype({register}), y.astype({register})",
            f"    return jnp.asarray({expression}, {register}).astype(jnp.{program.dtype})",
        ]
        helpers = POLYGAMMA if re.search(r"\b(psi|trigamma)\(", expression) else ""
        return [], lambda tables: helpers + "\n".join(lines) + "\n"
    first = derivative or differentiate(program)
    if first.dtype != program.dtype:
        raise InputError(
            f"the derivative is a program in {first.dtype}, the function one in {program.dtype}; "
            "use in_format to make them agree"
        )
    if not any(i[0] in ("bits", "from_bits") for i in first.instructions):
        start = f"def {name}_slope(x, y):\n"
        return [first], lambda tables: start + _body(first, tables) + "\n"
    second = differentiate(first)
    return [first, second], lambda tables: SECOND.format(
        name=name, first=_body(first, tables), second=_body(second, tables)
    )


def _choice(program: Program, name: str, near: Near, tables: dict[Any, str]) -> str:
    return NEAR.format(
        name=name,
        reach=near.reach,
        everywhere=_body(program, tables),
        near=_body(near.program, tables),
    )


def _named_tables(programs: list[Program]) -> dict[str, Any]:
    distinct = dict.fromkeys(t for p in programs for t in p.tables.values())
    return {f"TABLE{i}": table for i, table in enumerate(distinct)}


def _body(program: Program, tables: dict[Any, str]) -> str:
    return "\n".join("    " + line for line in _lines(program, tables))


def _lines(program: Program, tables: dict[Any, str]) -> Iterator[str]:
    register = program.format.computing.name
    yield f"x = fixed(x.astype(jnp.{register}))"
    for i, instruction in enumerate(program.instructions):
        yield f"t{i} = {_expression(program, i, instruction, tables)}"
    result = f"t{len(program.instructions) - 1}"
    if result not in program.depends:
        result = f"jnp.full_like(x, {result})"
    yield f"return {result}.astype(jnp.{program.dtype})"


def _expression(program: Program, i: int, instruction: Instruction, tables: dict[Any, str]) -> str:
    operation, *operands = instruction
    register = program.format.computing
    names = [_operand(program, i, o, tables) for o in operands]
    if operation == "div":
        return _division(program, i, operands, names)
    if operation in ("add", "fma"):
        # x + 0 is not x where x is -0.
        names = [
            f"opaque({n}, x)" if program.constants.get(o) == 0 else n
            for o, n in zip(operands, names, strict=True)
        ]
    return TEMPLATES[operation].format(
        *names,
        r=f"np.{register.name}",
        i=f"np.{register.integer.name}",
        w=f"np.{register.integer.name}({register.bits - 1})",
    )


def _division(program: Program, i: int, operands: list[str], names: list[str]) -> str:
    """A quotient by a constant is a product where that is exact, else its divisor is hidden."""
    divisor = program.constants.get(operands[1])
    if divisor is not None and _is_power_of_two(program, divisor):
        reciprocal = number(1 / divisor, program.format.computing)
        return f"fixed({names[0]} * np.{program.format.computing.name}({reciprocal}))"
    if operands[1] not in program.depends:
        return f"fixed({names[0]} / opaque({names[1]}, x))"
    return f"fixed({names[0]} / {names[1]})"


def _is_power_of_two(program: Program, value: Any) -> bool:
    """Whether a constant and its reciprocal are normal powers of two."""
    register = program.format.computing
    if not value or value - value != 0:
        return False
    whole = abs(value.numerator * value.denominator)
    return whole & (whole - 1) == 0 and whole.bit_length() - 1 <= -register.emin


def _operand(program: Program, i: int, name: str, tables: dict[Any, str]) -> str:
    if name in program.tables:
        return tables[program.tables[name]]
    if name not in program.constants:
        return name
    register, value = program.format.computing, program.constants[name]
    kind = register.integer if isinstance(value, int) else register.dtype
    # NumPy's scalars would compute among themselves, and warn; where x comes in they need no array.
    module = "np" if f"t{i}" in program.depends else "jnp"
    return f"{module}.{kind.name}({number(value, register)})"


def expression_source(text: str) -> str:
    """An expression in `x` and `y` as JAX source; parsed and checked, never evaluated here.

    Raises `InputError` for anything but numbers, `pi`, `+ - * / **` and the functions of
    `MATHEMATICS`.
    """
    try:
        tree = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        raise InputError(f"{text!r} is not an expression in x and y") from error
    return _source(tree, text)


def _source(tree: ast.expr, text: str) -> str:
    match tree:
        case ast.Name(id="x" | "y" as name):
            return name
        case ast.Name(id="pi"):
            return "np.pi"
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return repr(float(value))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return f"(-{_source(operand, text)})"
        case ast.BinOp(left=left, op=ast.Pow(), right=ast.Constant(value=int() as power)):
            return f"({_source(left, text)} ** {power})"
        case ast.BinOp(left=left, op=op, right=right) if type(op) in SIGNS:
            return f"({_source(left, text)} {SIGNS[type(op)]} {_source(right, text)})"
        case ast.Call(func=ast.Name(id=name), args=operands, keywords=[]) if (
            name in MATHEMATICS and len(operands) == OPERANDS.get(name, 1)
        ):
            return f"{MATHEMATICS[name]}({', '.join(_source(o, text) for o in operands)})"
        case _:
            raise InputError(
                f"{ast.unparse(tree)!r} in the derivative {text!r} is not understood; use x, y, "
                f"pi, numbers, + - * / ** and {', '.join(sorted(MATHEMATICS))}"
            )
