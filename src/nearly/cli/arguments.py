"""A problem's own fields as options (`--domain -inf pi/4`), known only once the problem is."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args, get_origin

import typer
from typer.core import TyperCommand

from nearly.core import catalogue
from nearly.core.errors import InputError, UnknownName

FIELDS = "nearly.fields"
OFFERED = "nearly.offered"
Parameters = Sequence[inspect.Parameter]


@dataclass
class Arguments:
    """A command line taken apart: the command's options, its positionals, the problem's fields."""

    options: list[str] = field(default_factory=list)
    positionals: list[str] = field(default_factory=list)
    fields: dict[str, Any] = field(default_factory=dict)
    offered: Parameters = ()


def take_apart(
    tokens: Sequence[str],
    known: Mapping[str, int],
    positionals: int,
    fields_of: Callable[[str], Parameters],
) -> Arguments:
    """Sort a command line's tokens.

    A field takes as many tokens as its annotation asks, whatever they look like, so that negative
    numbers and expressions need no quoting. For the same reason a token with a single dash is an
    option only where the command has that very option.

    **Arguments:**

    - `known`: the command's own options -> how many values each takes.
    - `positionals`: how many there are; the last one is the problem.
    - `fields_of`: the problem's text -> the fields it accepts.

    Raises `UnknownName` for an option of neither, `InputError` for too few values.
    """
    found = Arguments()
    left = list(tokens)
    while left:
        token = left.pop(0)
        name, equals, value = token.partition("=")
        if token == "--":
            found.positionals += left
            break
        if name in known:
            found.options.append(token)
            if not equals:
                found.options += _take(left, known[name])
        elif not token.startswith("--"):
            found.positionals.append(token)
            if len(found.positionals) == positionals:
                found.offered = fields_of(token)
        elif len(found.positionals) < positionals:
            raise _too_early(name, known)
        else:
            parameter = _parameter(name, found.offered, known)
            given = [value] if equals else []
            found.fields[parameter.name] = _values(name, parameter.annotation, given, left, known)
    return found


def _take(left: list[str], count: int) -> list[str]:
    taken = left[:count]
    del left[:count]
    return taken


def _too_early(name: str, known: Mapping[str, int]) -> InputError:
    if difflib.get_close_matches(name, known, cutoff=0.7):
        return UnknownName("option", name, known)
    return InputError(f"unknown option {name!r}; a problem's own options come after the problem")


def _parameter(name: str, offered: Parameters, known: Mapping[str, int]) -> inspect.Parameter:
    by_option = {option_of(p): p for p in offered}
    if name not in by_option:
        raise UnknownName("option", name, {*known, *by_option})
    return by_option[name]


def option_of(parameter: inspect.Parameter) -> str:
    """The option that sets a problem's field."""
    return "--" + parameter.name.replace("_", "-")


def _values(
    name: str, kind: Any, given: list[str], left: list[str], known: Mapping[str, int]
) -> str | tuple[str, ...]:
    """The one or more values of a field; `--domain "0 1"` and `--domain=0 1` are two as well."""
    count = arity(kind)
    values = _pieces(given, count)
    while len(values) < count and left and not _is_option(left[0], known):
        values += _pieces([left.pop(0)], count)
    if len(values) != count:
        wanted = "a value" if count == 1 else f"{count} values"
        got = f"got {len(values)}: {' '.join(values)!r}" if values else "got none"
        raise InputError(f"{name} takes {wanted}, {got}")
    return values[0] if count == 1 else tuple(values)


def _pieces(given: list[str], count: int) -> list[str]:
    return [piece for text in given for piece in (text.split() if count > 1 else [text])]


def _is_option(token: str, known: Mapping[str, int]) -> bool:
    return token.partition("=")[0] in known or token.startswith("--")


def arity(kind: Any) -> int:
    """How many values a field of this annotation takes."""
    return len(get_args(kind)) if get_origin(kind) is tuple else 1


class ProblemCommand(TyperCommand):
    """A command that takes a problem and, as options, the fields of that problem."""

    context_class = typer.Context

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        options = [p for p in self.get_params(ctx) if p.param_type_name == "option"]
        known = {
            name: 0 if getattr(option, "is_flag", False) else option.nargs
            for option in options
            for name in (*option.opts, *option.secondary_opts)
        }
        positionals = sum(p.param_type_name == "argument" for p in self.params)
        found = take_apart(args, known, positionals, _fields_of)
        ctx.meta[FIELDS], ctx.meta[OFFERED] = found.fields, found.offered
        return super().parse_args(ctx, [*found.options, "--", *found.positionals])

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        if ctx.meta.get(OFFERED):
            _print_fields(ctx.meta[OFFERED])


def _fields_of(text: str) -> Parameters:
    from nearly.cli.process import prepare

    prepare()  # from here on JAX may be imported
    return catalogue.fields_of(text)


def _print_fields(offered: Parameters) -> None:
    from rich.console import Console
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 3))
    for p in offered:
        values = " ".join([p.name.upper()] * arity(p.annotation))
        default = "required" if p.default is p.empty else f"[default: {_shown(p.default)}]"
        table.add_row(Text(option_of(p), "bold cyan"), Text(values), Text(default, "dim"))
    Console().print(Panel(table, title="The problem's own options", title_align="left"))


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def fields_given(ctx: typer.Context) -> dict[str, Any]:
    """The problem's fields that this command line set."""
    return dict(ctx.meta[FIELDS])
