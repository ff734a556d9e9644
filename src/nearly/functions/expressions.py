"""Safe expressions in `x`: parsed, checked and turned into oracles; nothing is ever evaluated."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Callable, Mapping
from fractions import Fraction

from flint import arb

from nearly.core.errors import InputError, UnknownName
from nearly.functions.named import ALIASES, ELEMENTARY, real_power
from nearly.functions.oracle import Oracle
from nearly.functions.terms import VARIABLE, Constant, Term, call, constant, named_constant, oracle

CONSTANTS: Mapping[str, Constant] = {
    "pi": arb.pi,
    "e": arb.const_e,
    "euler_gamma": arb.const_euler,
}

_LONGEST = 1000  # characters
_LARGEST_EXPONENT = 5000  # of a decimal literal: all formats end at 1e308
_INFINITY = re.compile(r"\s*[+-]?\s*inf(?:inity)?\s*\Z", re.IGNORECASE)
_NUMBER = re.compile(r"(?:\d+\.?\d*|\.\d+)(?:[eE]([+-]?\d+))?\Z")


def parse(text: str) -> Oracle:
    """The oracle of an expression in `x`, `"log1p(x)/x"`.

    Numbers are taken exactly as their decimals say. `+ - * / **` (or `^`), parentheses, `pi`, `e`
    and the named functions are understood; anything else raises `InputError` that names the place.
    """
    name = text.strip()
    name = ALIASES.get(name, name)
    return ELEMENTARY[name] if name in ELEMENTARY else oracle(parse_term(text), text.strip())


def parse_constant(text: str) -> Callable[[], arb]:
    """A constant expression, `"pi/4"` or `"-inf"`, as a function that encloses it.

    The precision is that of the call. Raises `InputError` where it depends on `x` or is no number.
    """
    number = constant_number(text)
    if number is not None:
        return lambda: constant(number).coefficients(arb(0), 1)[0]
    if _INFINITY.match(text):
        return arb.neg_inf if "-" in text else arb.pos_inf
    term = parse_term(text)
    if not term.is_constant:
        raise InputError(f"{text!r} depends on x: a constant is needed here, as 'pi/4'")
    if not term.coefficients(arb(0), 1)[0].is_finite():
        raise InputError(f"{text!r} is not a finite real number")
    return lambda: term.coefficients(arb(0), 1)[0]


def constant_number(text: str) -> Fraction | None:
    """The exact value of a constant expression that is rational by its form, else `None`."""
    return None if _INFINITY.match(text) else parse_term(text).number


def parse_term(text: str) -> Term:
    """The composition that an expression writes."""
    return _Reader(text).read()


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.source = text.strip().replace("^", "**")

    def read(self) -> Term:
        if not self.source:
            raise InputError("the expression is empty: write a function of x, as 'log1p(x)/x'")
        if len(self.source) > _LONGEST:
            raise InputError(
                f"the expression has {len(self.source)} characters; at most {_LONGEST} are read: "
                "put it into a Python function and pass 'file.py:name'"
            )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Python comments on odd literals; so do we
                tree = ast.parse(self.source, mode="eval")
            return self._term(tree.body)
        except SyntaxError as error:
            end = len(self.source) + 1  # Python reports column 0 for what is missing at the end
            raise self._error(error.msg, (error.offset or end) - 1) from None
        except (ValueError, MemoryError, RecursionError, OverflowError) as error:
            if isinstance(error, InputError):
                raise
            what = str(error) if isinstance(error, ValueError) else "it is nested too deep"
            raise InputError(f"cannot read {self._quoted()}: {what}") from None

    def _quoted(self) -> str:
        return repr(self.text if len(self.text) <= 60 else self.text[:57] + "...")

    def _error(self, what: str, column: int) -> InputError:
        place = self.source[max(column, 0) :][:20]
        where = f"at {place!r} (character {column + 1})" if place else "at its end"
        return InputError(f"cannot read {self._quoted()}: {what} {where}")

    def _term(self, node: ast.expr) -> Term:
        match node:
            case ast.BinOp():
                return self._binary(node)
            case ast.UnaryOp(op=ast.USub()):
                return -self._term(node.operand)
            case ast.UnaryOp(op=ast.UAdd()):
                return self._term(node.operand)
            case ast.Constant():
                return self._number(node)
            case ast.Name():
                return self._name(node)
            case ast.Call():
                return self._call(node)
        what = f"{type(node).__name__.lower()} is not allowed"
        raise self._error(f"{what}; use + - * / **, numbers, x and functions,", node.col_offset)

    def _binary(self, node: ast.BinOp) -> Term:
        left, right = self._term(node.left), self._term(node.right)
        match node.op:
            case ast.Add():
                return left + right
            case ast.Sub():
                return left - right
            case ast.Mult():
                return left * right
            case ast.Div():
                if right.number == 0:
                    raise self._error("division by zero", node.right.col_offset)
                return left / right
            case ast.Pow():
                return self._power(left, right, node)
        what = f"the operator {type(node.op).__name__.lower()} is not known;"
        raise self._error(f"{what} use + - * / **", node.right.col_offset)

    def _power(self, base: Term, exponent: Term, node: ast.BinOp) -> Term:
        if base.number == 0 and (exponent.number is None or exponent.number < 0):
            raise self._error("zero to a power that is not positive", node.col_offset)
        return real_power(base, exponent)

    def _number(self, node: ast.Constant) -> Term:
        text = ast.get_source_segment(self.source, node) or ""
        literal = _NUMBER.match(text.replace("_", ""))
        if not literal:
            raise self._error("not a decimal number", node.col_offset)
        if literal[1] and abs(int(literal[1])) > _LARGEST_EXPONENT:
            raise self._error("the exponent is beyond every format", node.col_offset)
        return constant(Fraction(literal[0]), text)

    def _name(self, node: ast.Name) -> Term:
        name = node.id
        if name == "x":
            return VARIABLE
        if name in CONSTANTS:
            return named_constant(name, CONSTANTS[name])
        if name in ELEMENTARY or name in ALIASES:
            raise self._error(f"{name} needs an argument, {name}(x),", node.col_offset)
        if name.lower() in ("inf", "infinity", "nan"):
            raise self._error(f"{name} is no number to compute with", node.col_offset)
        hint = f"(in {self._quoted()}; the variable is x)"
        raise UnknownName("name", name, [*CONSTANTS, "x"], hint)

    def _call(self, node: ast.Call) -> Term:
        if not isinstance(node.func, ast.Name):
            raise self._error("only named functions can be called", node.col_offset)
        name = ALIASES.get(node.func.id, node.func.id)
        starred = any(isinstance(a, ast.Starred) for a in node.args)
        if name == "pow" and len(node.args) == 2 and not node.keywords and not starred:
            pair = ast.BinOp(node.args[0], ast.Pow(), node.args[1])
            return self._binary(ast.copy_location(pair, node))
        if name == "x" or name in CONSTANTS:
            what = f"{name} is not a function: write {name}*(…) for a product;"
            raise self._error(what, node.col_offset)
        if name not in ELEMENTARY:
            raise UnknownName("function", node.func.id, [*ELEMENTARY, *ALIASES, "pow"])
        if len(node.args) != 1 or node.keywords or starred:
            raise self._error(f"{name} takes one argument", node.col_offset)
        return call(ELEMENTARY[name], self._term(node.args[0]))
