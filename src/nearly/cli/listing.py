"""`nearly list`: the catalogue and the bibliography, read without importing a room's code."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nearly.core import catalogue
from nearly.core.errors import UnknownName

DATA = Path(__file__).resolve().parents[1] / "data"
Rows = list[dict[str, Any]]


def show(what: str, as_json: bool) -> None:
    """Print the rows of `rooms`, `problems`, `methods` or `papers`."""
    kinds: Mapping[str, Callable[[], Rows]] = {
        "rooms": rooms,
        "problems": problems,
        "methods": methods,
        "papers": papers,
    }
    if what not in kinds:
        raise UnknownName("kind of list", what, kinds)
    rows = kinds[what]()
    if as_json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    _print(rows)


def rooms() -> Rows:
    """What each room offers, counted."""
    found: Rows = []
    for name in catalogue.room_names():
        module = catalogue.room(name)
        about = (module.__doc__ or "").strip().splitlines()
        found.append(
            {
                "room": name,
                "problems": len(getattr(module, "PROBLEMS", {})),
                "methods": len(getattr(module, "METHODS", {})),
                "about": about[0] if about else "",
            }
        )
    return found


def problems() -> Rows:
    """The catalogued problems and their settings."""
    return [
        {"problem": name, "room": room, "settings": dict(line.settings)}
        for room in catalogue.room_names()
        for name, line in getattr(catalogue.room(room), "PROBLEMS", {}).items()
    ]


def methods() -> Rows:
    """The catalogued methods: for which problems, whose, from which paper, run by default?"""
    return [
        {
            "method": name,
            "room": room,
            "protocol": line.protocol,
            "source": line.source,
            "paper": line.paper,
            "default": line.default,
        }
        for room in catalogue.room_names()
        for name, line in getattr(catalogue.room(room), "METHODS", {}).items()
    ]


def papers() -> Rows:
    """The bibliography, with how many claims of each paper were checked and what came of them."""
    verdicts: dict[str, list[bool | None]] = {}
    for row in ledger(DATA / "ledger.json"):
        verdicts.setdefault(row["paper"], []).append(row["holds"])
    return [
        {
            "paper": entry["key"],
            "title": entry["title"],
            "year": entry["year"],
            "claims": len(found := verdicts.get(entry["key"], [])),
            "hold": found.count(True),
            "fail": found.count(False),
            "open": found.count(None),
        }
        for entry in references()
    ]


def ledger(path: Path) -> Rows:
    """The ledger's rows; none if there is no such file."""
    rows: Rows = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return rows


def references() -> list[dict[str, str]]:
    """The bibliography that ships with the package: key, title and year of each entry."""
    path = DATA / "references.bib"
    return parse_bibliography(path.read_text(encoding="utf-8")) if path.is_file() else []


def parse_bibliography(text: str) -> list[dict[str, str]]:
    """Key, title and year of each BibTeX entry; braces are dropped, macros are not expanded."""
    entries: list[dict[str, str]] = []
    position = 0
    while (start := text.find("@", position)) >= 0:
        opened = text.find("{", start)
        if opened < 0:
            break
        body, position = _braced(text, opened)
        if text[start + 1 : opened].strip().lower() in ("comment", "preamble", "string"):
            continue
        key, _, rest = body.partition(",")
        fields = _fields(rest)
        entries.append(
            {"key": key.strip(), "title": fields.get("title", ""), "year": fields.get("year", "")}
        )
    return entries


def _braced(text: str, opened: int) -> tuple[str, int]:
    """What stands between a brace and its partner, and where it ends."""
    depth = 0
    for position in range(opened, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[opened + 1 : position], position + 1
    return text[opened + 1 :], len(text)


def _fields(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    position = 0
    while (equals := text.find("=", position)) >= 0:
        name = text[position:equals].strip(" ,\n\t").lower()
        start = equals + 1 + len(text[equals + 1 :]) - len(text[equals + 1 :].lstrip())
        if text[start : start + 1] == "{":
            value, position = _braced(text, start)
        elif text[start : start + 1] == '"':
            close = text.find('"', start + 1)
            close = len(text) if close < 0 else close
            value, position = text[start + 1 : close], close + 1
        else:
            comma = text.find(",", start)
            position = len(text) if comma < 0 else comma
            value = text[start:position]
        found[name] = " ".join(value.replace("{", "").replace("}", "").split())
    return found


def _print(rows: Sequence[Mapping[str, Any]]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from nearly.cli.terminal import console

    if not rows:
        console().print("none")
        return
    table = Table(box=box.SIMPLE_HEAD, header_style="bold")
    for name, value in rows[0].items():
        table.add_column(name, justify="right" if isinstance(value, int) else "left")
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row.values()))
    console().print(table)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, Mapping):
        return ", ".join(f"{n}={_cell(v)}" for n, v in value.items())
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return "" if value is None else str(value)
