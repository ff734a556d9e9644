"""C99 from a `Program`: what is compiled computes what the program says, bit for bit.

What a usual generator leaves to chance, and what is done about it here:

- gcc contracts `a*b + c` on its own by default and ignores `#pragma STDC FP_CONTRACT`; its
  `optimize` pragma is obeyed, whatever stands on the command line, and neither inlining nor
  vectorisation carries the function back under other options. Everyone else gets the standard
  pragma.
- A fused multiply-add without hardware is thirty times slower than a product and a sum. A program
  that has one is written twice: as it is, and with each fma as a rounded product and a rounded sum.
- Flags that allow other results (`-ffast-math` and its parts, x87 registers) are an `#error`.
- Integers wrap through unsigned types, bits move through `memcpy`, pieces are selected by `?:`, so
  nothing is undefined and nothing branches. One read of a table outside it is not possible.
- 16-bit formats travel as `uint16_t` bit patterns: no compiler's half type is needed, and the
  conversions below round correctly, to nearest even, everywhere.
"""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterator

from nearly.core.errors import InputError
from nearly.functions.formats import Format
from nearly.functions.program import Constant, Instruction, Program
from nearly.functions.statement import ErrorStatement

# f: suffix of the type's functions; i, u: its integers; N: prefix of our names; w: width - 1.
TEMPLATES = {
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "div": "{0} / {1}",
    "fma": "fma{f}({0}, {1}, {2})",
    "sqrt": "sqrt{f}({0})",
    "neg": "-{0}",
    "abs": "fabs{f}({0})",
    "round": "rint{f}({0})",
    "to_int": "({i}){0}",
    "to_float": "({r}){0}",
    "bits": "{N}_bits({0})",
    "from_bits": "{N}_from_bits({0})",
    "iadd": "({i})(({u}){0} + ({u}){1})",
    "isub": "({i})(({u}){0} - ({u}){1})",
    "ishl": "{N}_shifted({0}, {1})",
    "ishr": "{0} >> {1}",
    "iand": "{0} & {1}",
    "lt": "{0} < {1}",
    "le": "{0} <= {1}",
    "eq": "{0} == {1}",
    "select": "{0} ? {1} : {2}",
    "lookup": "{N}_{0}[{1}]",
}

REFUSED = """\
#if defined(__FAST_MATH__) || defined(__ASSOCIATIVE_MATH__) || defined(__RECIPROCAL_MATH__) \\
    || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error "{name}: compile without -ffast-math and its parts: they void the error bound"
#endif
#if defined(FLT_EVAL_METHOD) && (FLT_EVAL_METHOD == 1 || FLT_EVAL_METHOD == 2)
#error "{name}: needs arithmetic in its own precision: add -msse2 -mfpmath=sse"
#endif
"""

CONTRACTION_OFF = """\
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC optimize ({options})
#else
#pragma STDC FP_CONTRACT OFF
#endif
"""

CONTRACTION_BACK = """\
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC pop_options
#endif
"""

HELPERS = {
    "bits": """\
static inline {i} {N}_bits({r} value)
{{
    {i} bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}}
""",
    "from_bits": """\
static inline {r} {N}_from_bits({i} bits)
{{
    {r} value;
    memcpy(&value, &bits, sizeof value);
    return value;
}}
""",
    # In line, gcc would warn of a negative number shifted where it can see one, converted or not.
    "ishl": """\
static inline {i} {N}_shifted({i} value, {i} by)
{{
    return ({i})(({u})value << by);
}}
""",
}

# Rounding to nearest even by integer addition: the carry runs into the exponent where it must.
# Below 2^-14 float16 has the spacing of float32 in [0.5, 1), so adding 0.5 rounds there.
STORAGE = {
    "bfloat16": """\
static inline float {N}_load(uint16_t x)
{{
    return {N}_from_bits((int32_t)((uint32_t)x << 16));
}}

static inline uint16_t {N}_store(float y)
{{
    const uint32_t bits = (uint32_t){N}_bits(y);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const uint32_t nan = (bits >> 16) | 0x40u;
    return (uint16_t)((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}}
""",
    "float16": """\
static inline float {N}_load(uint16_t x)
{{
    const uint32_t sign = (uint32_t)(x & 0x8000u) << 16;
    const uint32_t rest = x & 0x7fffu;
    const uint32_t subnormal = (uint32_t){N}_bits((float)(int32_t)rest * 0x1p-24f);
    const uint32_t normal = (rest << 13) + (rest < 0x7c00u ? 0x38000000u : 0x70000000u);
    return {N}_from_bits((int32_t)(sign | (rest < 0x400u ? subnormal : normal)));
}}

static inline uint16_t {N}_store(float y)
{{
    const uint32_t bits = (uint32_t){N}_bits(y);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t rest = bits & 0x7fffffffu;
    const float shifted = fabsf(y) + 0.5f;
    const uint32_t subnormal = (uint32_t){N}_bits(shifted) - 0x3f000000u;
    const uint32_t normal = (rest - 0x38000000u + 0xfffu + ((rest >> 13) & 1u)) >> 13;
    const uint32_t finite = rest < 0x38800000u ? subnormal : normal;
    const uint32_t large = rest > 0x7f800000u ? 0x7e00u : 0x7c00u;
    return (uint16_t)(sign | (rest < 0x47800000u ? finite : large));
}}
""",
}

FUNCTIONS = """\
{T} {N}({T} x)
{{
    return {N}_kernel(x);
}}

/* y[i] = {N}(x[i]); y may be x, and must not overlap it otherwise. */
void {N}_array(const {T} *x, {T} *y, size_t n)
{{
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC ivdep
#endif
    for (size_t i = 0; i < n; ++i)
        y[i] = {N}_kernel(x[i]);
}}
"""


_KEYWORDS = """
auto break case char const continue default do double else enum extern float for goto if
inline int long register restrict return short signed sizeof static struct switch typedef union
unsigned void volatile while _Bool _Complex _Imaginary asm typeof main memcpy
"""
_LIBRARY = """
acos acosh asin asinh atan atan2 atanh cbrt ceil copysign cos cosh erf erfc exp exp2 expm1
fabs fdim floor fma fmax fmin fmod frexp gamma hypot ilogb j0 j1 jn ldexp lgamma llrint llround
log log10 log1p log2 logb lrint lround modf nan nearbyint nextafter nexttoward pow remainder
remquo rint round scalbln scalbn sin sinh sqrt tan tanh tgamma trunc y0 y1 yn
"""
KEYWORDS, LIBRARY = frozenset(_KEYWORDS.split()), frozenset(_LIBRARY.split())


def storage_type(dtype: str) -> str:
    """The C type of arguments and results; 16-bit formats are `uint16_t` bit patterns."""
    return {"float64": "double", "float32": "float"}.get(dtype, "uint16_t")


def to_c(program: Program, name: str, header: ErrorStatement) -> str:
    """The C99 text of a program in a machine format: `T name(T x)` and `void name_array(...)`."""
    words = _words(program, name)
    used = {instruction[0] for instruction in program.instructions}
    if any(_negates_fma(program, i) for i in program.instructions):
        used |= {"bits", "from_bits"}
    narrow = program.format != program.format.computing
    parts = [
        _comment(header.lines() + _advice(program, used)),
        "#include <float.h>\n#include <math.h>\n#include <stddef.h>\n"
        "#include <stdint.h>\n#include <string.h>\n",
        REFUSED.format(name=name),
        CONTRACTION_OFF.format(options=_options(used)),
        *(_table(words, label, table) for label, table in program.tables.items()),
        *(
            t.format(**words)
            for op, t in HELPERS.items()
            if op in used or (narrow and op != "ishl")
        ),
        *([STORAGE[program.dtype].format(**words)] if narrow else []),
        _kernel(program, words),
        FUNCTIONS.format(**words),
        CONTRACTION_BACK,
    ]
    return "\n".join(parts)


def _words(program: Program, name: str) -> dict[str, str]:
    width = program.format.computing.bits
    return {
        "N": name,
        "T": storage_type(program.dtype),
        "r": "float" if width == 32 else "double",
        "f": "f" if width == 32 else "",
        "i": f"int{width}_t",
        "u": f"uint{width}_t",
        "w": str(width - 1),
    }


def _advice(program: Program, used: set[str]) -> list[str]:
    lines = []
    if program.format != program.format.computing:
        lines.append(f"uint16_t holds the bits of a {program.dtype}; computed in float")
    if "sqrt" in used:
        lines.append("add -fno-math-errno to let gcc vectorise the square root")
    return lines


def _comment(lines: list[str]) -> str:
    safe = (
        line.replace("*/", "* /").replace("/*", "/ *").replace("??", "? ?").replace("\n", " ")
        for line in lines
    )
    return "/* " + "\n * ".join(line.rstrip("\\ ") for line in safe) + "\n */\n"


def _table(words: dict[str, str], label: str, values: tuple[Constant, ...]) -> str:
    numbers = textwrap.indent(textwrap.fill(", ".join(_real(v, words) for v in values), 92), "    ")
    return f"static const {words['r']} {words['N']}_{label}[{len(values)}] = {{\n{numbers}\n}};\n"


def _options(used: Collection[str]) -> str:
    """What gcc may do. Free of traps it vectorises selects, but also takes (float)(int)x for
    trunc(x), whose zero has a sign."""
    options = ["fp-contract=off"]
    if not {"to_int", "to_float"} <= set(used):
        options.append("no-trapping-math")
    return ", ".join(f'"{option}"' for option in options)


def _kernel(program: Program, words: dict[str, str]) -> str:
    narrow = program.format != program.format.computing
    lines = [
        f"static inline {words['T']} {words['N']}_kernel({words['T']} {'h' if narrow else 'x'})"
    ]
    lines.append("{")
    if narrow:
        lines.append(f"    const {words['r']} x = {words['N']}_load(h);")
    if any(i[0] == "fma" for i in program.instructions):
        precision = "F" if words["f"] else ""
        lines.append(f"#if defined(FP_FAST_FMA{precision}) || defined(__FMA__)")
        lines.extend(_body(program, words))
        lines.append("#else")
        lines.extend(_body(program.unfused(), words))
        lines.append("#endif")
    else:
        lines.extend(_body(program, words))
    return "\n".join([*lines, "}\n"])


def _body(program: Program, words: dict[str, str]) -> Iterator[str]:
    types = {"r": words["r"], "i": words["i"], "b": "int"}
    if not any("x" in operands for _, *operands in program.instructions):
        yield "    (void)x;"
    for i, instruction in enumerate(program.instructions):
        kind = types[program.kinds[f"t{i}"]]
        yield f"    const {kind} t{i} = {_expression(program, instruction, words)};"
    result = f"t{len(program.instructions) - 1}"
    narrow = program.format != program.format.computing
    yield f"    return {words['N']}_store({result});" if narrow else f"    return {result};"


def _expression(program: Program, instruction: Instruction, words: dict[str, str]) -> str:
    operation, *operands = instruction
    shown = [_operand(program, o, words) for o in operands]
    if operation == "lookup" and not in_bounds(program, operands[0], operands[1]):
        last = len(program.tables[operands[0]]) - 1
        shown[1] = f"{shown[1]} < 0 ? 0 : {shown[1]} > {last} ? {last} : {shown[1]}"
    if operation in ("ishl", "ishr") and operands[1] not in program.constants:
        shown[1] = f"({shown[1]} & {words['w']})"
    template = FLIPPED if _negates_fma(program, instruction) else TEMPLATES[operation]
    return template.format(*shown, sign=_integer(_sign(program.format), program.format), **words)


# gcc makes one instruction of -fma(a, b, c), in which a zero has the other sign.
FLIPPED = "{N}_from_bits({N}_bits({0}) ^ {sign})"


def _negates_fma(program: Program, instruction: Instruction) -> bool:
    operation, operand = instruction[:2]
    is_made = operation == "neg" and operand.startswith("t")
    return is_made and program.instructions[int(operand[1:])][0] == "fma"


def _sign(form: Format) -> int:
    """The integer whose only bit is a register's sign."""
    return -(1 << (form.computing.bits - 1))


def in_bounds(program: Program, table: str, index: str) -> bool:
    """Whether an index is plainly within a table: a constant, or masked by one."""
    length = len(program.tables[table])
    candidates = [index]
    if index.startswith("t") and program.instructions[int(index[1:])][0] == "iand":
        candidates = list(program.instructions[int(index[1:])][1:])
    values = (program.constants.get(c) for c in candidates)
    return any(isinstance(v, int) and 0 <= v < length for v in values)


def _operand(program: Program, name: str, words: dict[str, str]) -> str:
    value = program.constants.get(name)
    if value is None:
        return name
    return _integer(value, program.format) if isinstance(value, int) else _real(value, words)


def _integer(value: int, form: Format) -> str:
    half = 1 << (form.computing.bits - 1)
    wrapped = (value + half) % (2 * half) - half
    literal = f"INT{form.computing.bits}_C({abs(wrapped)})"
    if wrapped == -half:
        return f"(-INT{form.computing.bits}_C({half - 1}) - 1)"
    return f"(-{literal})" if wrapped < 0 else literal


def _real(value: Constant, words: dict[str, str]) -> str:
    number = float(value)
    if number != number:
        return f"({words['r']})NAN"
    if number in (float("inf"), float("-inf")):
        return f"({'-' if number < 0 else ''}({words['r']})INFINITY)"
    digits, power = number.hex().split("p")
    literal = f"{digits.rstrip('0').rstrip('.') if '.' in digits else digits}p{power}{words['f']}"
    return f"({literal})" if number < 0 else literal


def check_name(name: str) -> None:
    """Raises `InputError` unless `name` can name a C function beside the library's."""
    if not name.isidentifier() or not name.isascii() or name in KEYWORDS:
        raise InputError(f"{name!r} cannot name a C function; use letters, digits and _")
    if name in LIBRARY or (name[:-1] in LIBRARY and name[-1] in "fl"):
        raise InputError(f"{name!r} is a function of math.h; use another name, like my_{name}")
