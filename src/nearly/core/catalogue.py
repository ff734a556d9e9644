"""The catalogue: what every room offers, as strings that can be read without importing the room."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin

from nearly.core.errors import InputError, UnknownName
from nearly.core.lazy import load

if TYPE_CHECKING:
    from nearly.core.problem import Problem as ProblemObject

ROOMS = (
    "functions",
    "derivatives",
    "linear",
    "curvature",
    "optimize",
    "dynamics",
    "pde",
    "operators",
)
ENTRY_POINTS = "nearly.rooms"
_HYPHENATED = re.compile(r"[A-Za-z][\w.]*(-[\w.]+)+")


@dataclass(frozen=True)
class Method:
    """A catalogue line for a method.

    **Arguments:**

    - `target`: `"package.module:attribute"`, an object of its ecosystem's own protocol.
    - `protocol`: which problems it can be handed to.
    - `paper`: key in `references.bib`, if it comes from one.
    - `source`: `"ours"`, `"peer"` or `"user"`.
    - `default`: whether it runs when nobody names methods.
    """

    target: str
    protocol: str
    paper: str | None = None
    source: str = "ours"
    default: bool = False


@dataclass(frozen=True)
class Problem:
    """A catalogue line for a problem: a factory and the settings that make this instance."""

    target: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reference:
    """What rebuilds a problem in another process: its text and the fields given with it."""

    text: str
    fields: tuple[tuple[str, Any], ...] = ()

    def build(self) -> ProblemObject:
        return problem(self.text, **dict(self.fields))


def room_names() -> tuple[str, ...]:
    """Our rooms, then those that other packages registered under `nearly.rooms`."""
    return ROOMS + tuple(sorted(_entry_points()))


@lru_cache(1)
def _entry_points() -> dict[str, str]:
    from importlib.metadata import entry_points

    found = entry_points(group=ENTRY_POINTS)
    return {point.name: point.value for point in found if point.name not in ROOMS}


def room(name: str) -> types.ModuleType:
    """The module that holds a room's catalogue; raises `UnknownName`."""
    if name in ROOMS:
        return importlib.import_module(f"nearly.{name}")
    if name not in _entry_points():
        raise UnknownName("room", name, room_names())
    return importlib.import_module(_entry_points()[name])


def methods(protocol: str | None = None) -> dict[str, Method]:
    """All catalogued methods, or those of one protocol, by name."""
    return {
        name: line
        for each in room_names()
        for name, line in _lines(each, "METHODS").items()
        if protocol in (None, line.protocol)
    }


def problems() -> dict[str, Problem]:
    """All catalogued problems by name."""
    return {n: p for each in room_names() for n, p in _lines(each, "PROBLEMS").items()}


def offers(kind: str) -> dict[str, str]:
    """What rooms offer as strings under `kind`.

    `"RESOLVERS"`, `"FILES"` (the end of a data file's name -> what makes a problem of it),
    `"EXPORTS"` or `"COMMANDS"`.
    """
    return {n: t for each in room_names() for n, t in _lines(each, kind).items()}


def _lines(name: str, kind: str) -> Mapping[str, Any]:
    lines: Mapping[str, Any] = getattr(room(name), kind, {})
    return lines


def problem(text: str, **fields: Any) -> ProblemObject:
    """The problem that a text names.

    **Arguments:**

    - `text`: a catalogued name, `"file.py:attribute"` of the user's own, a data file (a matrix),
      or whatever a room's resolver understands (an expression in x).
    - `fields`: the problem's own settings; strings are read as the factory's annotations say.

    Raises `UnknownName` with the nearest names, or `InputError` for a bad field.
    """
    factory, settings = _factory(text)
    if not callable(factory):
        return _as_is(factory, fields, text)
    return _construct(factory, {**settings, **fields}, text)


def _factory(text: str) -> tuple[Any, Mapping[str, Any]]:
    """What makes the problem that a text names (or the finished problem), and its settings."""
    lines = problems()
    if text in lines:
        return load(lines[text].target), lines[text].settings
    for suffix, target in offers("FILES").items():
        if text.endswith(suffix):
            return load(target)(text), {}
    own = load_file(text) if is_file_reference(text) else None
    if own is not None and not _takes_a_variable(own):
        return own, {}
    unknown = UnknownName("problem", text, lines, "(or an expression in x, or file.py:attribute)")
    for target in offers("RESOLVERS").values():
        try:
            factory = load(target)(text)
        except UnknownName as error:
            # To a resolver a misspelt `rosenbrock-100` is a difference of two unknowns.
            raise (unknown if unknown.close and _HYPHENATED.fullmatch(text) else error) from None
        if factory is not None:
            return factory, {}
    raise unknown


def _takes_a_variable(own: Any) -> bool:
    """Whether a user's object is a function of something, for a room to approximate."""
    if not inspect.isfunction(own):
        return False
    parameters = inspect.signature(own).parameters.values()
    return any(p.default is p.empty for p in parameters)


def _as_is(own: Any, fields: Mapping[str, Any], text: str) -> Any:
    if fields:
        raise InputError(f"{text} is a finished problem and takes no --{next(iter(fields))}")
    return _checked(own, text)


def _checked(made: Any, text: str) -> Any:
    from nearly.core.problem import Problem as ProblemObject

    if not isinstance(made, ProblemObject):
        raise InputError(f"{text} is no problem: it is a {type(made).__name__}")
    return made


def _construct(factory: Any, fields: Mapping[str, Any], text: str) -> Any:
    signature = inspect.signature(factory)
    parameters = signature.parameters
    for name in fields:
        if name not in parameters:
            raise UnknownName(f"field of {text}", name, parameters)
    annotations = _annotations(factory)
    values = {n: _read(n, v, _kind(annotations.get(n, str))) for n, v in fields.items()}
    try:
        signature.bind(**values)
    except TypeError as error:
        raise InputError(f"{text} does not make a problem: {error}") from None
    return _checked(factory(**values), text)


def _annotations(factory: Any) -> dict[str, Any]:
    function = getattr(factory, "func", factory)  # a functools.partial hides its annotations
    target = function.__init__ if inspect.isclass(function) else function
    try:
        hints = inspect.get_annotations(target, eval_str=True)
    except (NameError, TypeError):
        hints = {}
    if inspect.isclass(function) and not hints:
        for base in reversed(function.__mro__):
            hints |= inspect.get_annotations(base, eval_str=True)
    return hints


def _kind(annotation: Any) -> Any:
    """An annotation without its None: `tuple[str, str] | None` is read as a pair."""
    if get_origin(annotation) in (Union, types.UnionType):
        kinds = [k for k in get_args(annotation) if k is not type(None)]
        return kinds[0] if len(kinds) == 1 else str
    return annotation


def _read(name: str, value: Any, kind: Any) -> Any:
    """A field's value from the command line's string(s), as its annotation asks."""
    if get_origin(kind) is tuple:
        parts = value if isinstance(value, (tuple, list)) else str(value).split()
        kinds = get_args(kind)
        if len(parts) != len(kinds):
            raise InputError(f"--{name} takes {len(kinds)} values, got {len(parts)}: {value!r}")
        return tuple(_read(name, p, k) for p, k in zip(parts, kinds, strict=True))
    if not isinstance(value, str) or kind is str:
        return value
    if kind is bool:
        if value.lower() not in ("true", "false", "yes", "no", "1", "0"):
            raise InputError(f"--{name} is yes or no, not {value!r}")
        return value.lower() in ("true", "yes", "1")
    if kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            raise InputError(f"--{name} takes a {kind.__name__}, not {value!r}") from None
    return value


def method(name: str, protocol: str) -> tuple[Any, Method]:
    """The method that a name (or `file.py:attribute`) means for a protocol, and its line.

    Raises `UnknownName` with the nearest names of that protocol.
    """
    line = method_line(name, protocol, methods(protocol))
    return (load_file(name) if line.source == "user" else load(line.target)), line


def method_line(name: str, protocol: str, known: Mapping[str, Method]) -> Method:
    """The catalogue line of a name among those known, or one made up for a file of the user's."""
    if name in known:
        return known[name]
    if is_file_reference(name):
        return Method(name, protocol, source="user")
    elsewhere = methods().get(name)
    hint = f"({name} is for {elsewhere.protocol} problems)" if elsewhere else ""
    raise UnknownName(f"{protocol} method", name, known, hint)


def is_file_reference(text: str) -> bool:
    """Whether a text reads as `path:attribute` (or names a data file such as a program)."""
    path, colon, attribute = text.rpartition(":")
    if colon and attribute:
        return path.endswith((".py", ".so", ".dylib", ".dll"))
    return text.endswith((".json", *offers("FILES")))


def load_file(text: str) -> Any:
    """The attribute of a Python file that `path.py:attribute` names, or the path of a data file.

    Raises `InputError` when there is no such file, it does not run, or has no such attribute.
    """
    path, _, attribute = text.rpartition(":")
    if not path.endswith(".py"):
        if not Path(path or text).is_file():
            raise InputError(f"there is no file {path or text}")
        return text
    where = Path(path).resolve()
    if not where.is_file():
        raise InputError(f"there is no file {path}")
    module = _module(str(where), where.stat().st_mtime_ns)
    if not hasattr(module, attribute):
        names = [n for n in vars(module) if not n.startswith("_")]
        raise UnknownName(f"attribute of {path}", attribute, names)
    return getattr(module, attribute)


@lru_cache
def _module(path: str, changed: int) -> types.ModuleType:
    name = "nearly_user_" + Path(path).stem
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and equinox look their module up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise InputError(f"{path} does not run: {type(error).__name__}: {error}") from error
    return module


def fields_of(text: str) -> Sequence[inspect.Parameter]:
    """The settings a problem's text accepts, with their defaults, for help and parsing.

    Annotations are resolved and without `None`. Raises as `problem` does.
    """
    factory, settings = _factory(text)
    if not callable(factory):
        return []
    kinds = {name: _kind(annotation) for name, annotation in _annotations(factory).items()}
    return [
        p.replace(annotation=kinds.get(p.name, str), default=settings.get(p.name, p.default))
        for p in inspect.signature(factory).parameters.values()
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
