"""A frontier in words, as a table for the terminal, and as a page for the browser."""

from __future__ import annotations

import html as markup
import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nearly.core.errors import StoreError
from nearly.core.frontier import Frontier
from nearly.core.run import Certificate, Run, plain

PICK = "bold green"
PAYS_OFF = "pays off after"
STYLES = {"ours": "", "peer": "dim", "user": "magenta"}
MARKS = {"ok": "", "diverged": "diverged", "failed": "failed", "timeout": "not run in time"}


def figure(value: float | None) -> str:
    """A number in three digits, `-` where there is none."""
    if value is None or math.isnan(value):
        return "-"
    return re.sub(r"e([+-])0?", lambda e: "e" + e[1].strip("+"), f"{value:.3g}")


def spaced(value: Any) -> str:
    """A setting as it is typed: the values of a pair beside each other."""
    if not isinstance(value, (list, tuple)):
        return str(value)
    parts = cast(Sequence[Any], value)
    return " ".join(map(str, parts))


def called(run: Run) -> str:
    """A run's name: its method, and the dial if it has one."""
    return run.method if str(run.dial) in ("-", "") else f"{run.method} at {run.dial}"


def duration(seconds: float | None) -> str:
    """Seconds in the unit a person would say them in."""
    if seconds is None or math.isnan(seconds):
        return "-"
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def amount(value: float | None, unit: str) -> str:
    """A cost with its unit."""
    return duration(value) if unit == "seconds" else f"{figure(value)} {unit}"


def units(frontier: Frontier) -> list[str]:
    """The units some run has a cost in: the frontier's own first, seconds last."""
    found = dict.fromkeys([frontier.unit])
    found |= dict.fromkeys(unit for run in frontier for unit in run.work)
    found.pop("seconds", None)
    timed = any(run.seconds is not None for run in frontier)
    return [*found, *(["seconds"] if timed or frontier.unit == "seconds" else [])]


def error_text(run: Run) -> str:
    """A run's error: the median, its worst seed where that is larger, `<` under the floor."""
    if run.status != "ok":
        return "-"
    text = ("<" if run.floored else "") + figure(run.error)
    worst = replace(run, certificate=None).worst
    return text if worst <= run.error else f"{text} (worst {figure(worst)})"


def table(frontier: Frontier) -> Table:
    """Every run, cheap to dear within each method; the Pareto set starred, the pick in green."""
    order = {name: i for i, name in enumerate(dict.fromkeys(r.method for r in frontier))}

    def place(index: int) -> tuple[int, float, int]:
        run = frontier.runs[index]
        cost = frontier.cost(run)
        return order[run.method], math.inf if cost is None else cost, index

    return _table(frontier, sorted(range(len(frontier)), key=place), title(frontier))


def title(frontier: Frontier) -> str:
    """What was compared, in one line."""
    methods = len({run.method for run in frontier})
    settings = ", ".join(
        f"{name} {spaced(v)}"
        for name, v in frontier.settings.items()
        if v not in (None, "", frontier.problem)
    )
    counted = f"{_many(len(frontier), 'run')} of {_many(methods, 'method')}"
    return f"{frontier.problem}{f' ({settings})' if settings else ''}: {counted}"


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _table(frontier: Frontier, indices: Sequence[int], heading: str) -> Table:
    front = set(frontier.pareto())
    columns = units(frontier)
    made = _empty(heading)
    made.add_column("method", overflow="fold")
    made.add_column("dial", justify="right", overflow="fold")
    made.add_column(frontier.error_name, justify="right")
    for unit in columns:
        made.add_column(unit, justify="right")
    for unit in _setups(frontier):
        made.add_column(f"set-up {unit}", justify="right")
    if frontier.rival:
        made.add_column(PAYS_OFF, justify="right")
    made.add_column("", overflow="fold")
    for index in indices:
        run = frontier.runs[index]
        costs = [Text(_cost(run, unit)) for unit in columns]
        setups = [Text(_setup(run, unit)) for unit in _setups(frontier)]
        style = PICK if index == frontier.pick else STYLES.get(run.source, "")
        first = [Text(run.method), Text(str(run.dial)), Text(error_text(run))]
        paid = [Text(_outlasts(frontier, run))] if frontier.rival else []
        remark = Text(_remark(frontier, index, index in front))
        made.add_row(*first, *costs, *setups, *paid, remark, style=style)
    return made


def _empty(heading: str) -> Table:
    style = "bold"
    return Table(
        title=Text(heading, style), title_justify="left", header_style=style, box=box.SIMPLE_HEAD
    )


def _cost(run: Run, unit: str) -> str:
    cost = run.cost(unit)
    return duration(cost) if unit == "seconds" else figure(cost)


def _setups(frontier: Frontier) -> list[str]:
    """Set-up is shown where it has to pay off; else it is in the page and the JSON."""
    if not (frontier.uses or frontier.rival):
        return []
    return [*dict.fromkeys(u for r in frontier for u in r.setup.get("work", {})), "seconds"]


def _setup(run: Run, unit: str) -> str:
    if unit == "seconds":
        return duration(run.setup.get("seconds"))
    return figure(run.setup.get("work", {}).get(unit))


def _remark(frontier: Frontier, index: int, on_front: bool) -> str:
    run = frontier.runs[index]
    words = [MARKS[run.status], run.reason, run.note]
    if run.certificate:
        words.insert(0, f"{run.certificate.label} {figure(run.certificate.error)}")
    if index == frontier.pick:
        words.insert(0, "the pick")
    elif on_front:
        words.insert(0, "*")
    return "  ".join(w for w in words if w)


def summary(frontier: Frontier) -> RenderableType:
    """The frontier in one screen: its Pareto set, each method's best, what failed and why."""
    front = frontier.pareto()
    parts: list[RenderableType] = [Text(title(frontier), "bold")]
    if front:
        pick = [] if frontier.pick is None or frontier.pick in front else [frontier.pick]
        heading = f"Pareto set: {frontier.error_name} against {_axis(frontier)}"
        parts.append(_table(frontier, [*front, *pick], heading))
    parts += [_methods(frontier), *_failures(frontier)]
    return Group(*parts)


def _axis(frontier: Frontier) -> str:
    shared = f" with set-up shared over {figure(frontier.uses)} uses" if frontier.uses else ""
    return f"{frontier.unit}{shared}"


def _methods(frontier: Frontier) -> Table:
    """One row a method: its cheapest run within the tolerance, or its most accurate one."""
    tolerance = frontier.tolerance
    within = "most accurate" if tolerance is None else f"cheapest within {figure(tolerance)}"
    made = _empty(f"Methods: {within}")
    made.add_column("method", overflow="fold")
    made.add_column("runs", justify="right")
    made.add_column("dial", justify="right", overflow="fold")
    made.add_column(frontier.error_name, justify="right")
    columns = units(frontier)
    for unit in columns:
        made.add_column(unit, justify="right")
    setups = _setups(frontier) if frontier.rival else []
    for unit in setups:
        made.add_column(f"set-up {unit}", justify="right")
    if frontier.uses or frontier.rival:
        made.add_column(PAYS_OFF, justify="right")
    rows = [_best(frontier, name) for name in dict.fromkeys(r.method for r in frontier)]
    rows.sort(key=lambda row: (not row[1], _known(frontier.cost(row[0])), row[0].worst))
    rival = _first_use(frontier)
    for run, reached in rows:
        tried = frontier.select([run.method])
        counted = f"{sum(r.status == 'ok' for r in tried)}/{len(tried)}"
        style = STYLES.get(run.source, "") if reached else "dim"
        picked = frontier.pick is not None and run is frontier.runs[frontier.pick]
        cells = [run.method, counted, str(run.dial), error_text(run)]
        cells += [_cost(run, unit) for unit in columns]
        cells += [_setup(run, unit) for unit in setups]
        if frontier.rival:
            cells.append(_outlasts(frontier, run))
        elif frontier.uses:
            cells.append(_pays_off(frontier, run, rival))
        made.add_row(*map(Text, cells), style=PICK if picked else style)
    return made


def _known(cost: float | None) -> float:
    return math.inf if cost is None else cost


def _best(frontier: Frontier, method: str) -> tuple[Run, bool]:
    """A method's cheapest run within the tolerance, or its most accurate one, and which it is."""
    own = frontier.select([method])
    if own.tolerance is None:
        return min(own, key=lambda r: r.worst), True
    if frontier.pick is not None and frontier.runs[frontier.pick].method == method:
        return frontier.runs[frontier.pick], True
    best = min(own, key=lambda r: r.worst) if own.pick is None else own.runs[own.pick]
    return best, best.worst <= own.tolerance


def _first_use(frontier: Frontier) -> Run | None:
    """The run that is cheapest in seconds for somebody who uses it once."""
    good = [r for r in frontier if r.worst <= (frontier.tolerance or math.inf)]
    priced = [(cost, i) for i, r in enumerate(good) if (cost := r.cost("seconds", 1)) is not None]
    return good[min(priced)[1]] if priced else None


def _pays_off(frontier: Frontier, run: Run, rival: Run | None) -> str:
    if rival is None or run.cost("seconds") is None:
        return "-"
    if run is rival:
        return "at once"
    after = frontier.break_even(run, rival)
    return "never" if after is None else f"{math.ceil(after)} uses"


def _outlasts(frontier: Frontier, run: Run) -> str:
    """After how many uses a run is cheaper than the problem's rival at the same error."""
    if run.method == frontier.rival or run.status != "ok":
        return "-"
    rival = frontier.rival_of(run)
    return "no rival" if rival is None else _pays_off(frontier, run, rival)


def _failures(frontier: Frontier) -> list[Text]:
    """One line for each method and reason, with the dials at which it happened."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for run in frontier:
        if run.status != "ok":
            found.setdefault((run.method, run.status, run.reason), []).append(str(run.dial))
    return [
        Text(f"{method} {MARKS[status]} at {', '.join(dials)}: {reason}", "yellow")
        for (method, status, reason), dials in found.items()
    ]


def explain(frontier: Frontier) -> list[str]:
    """The pick in words: what it costs, why it and not another, and how its error is known."""
    if frontier.pick is None or frontier.tolerance is None:
        return []
    run = frontier.runs[frontier.pick]
    indices = frontier.candidates(frontier.tolerance)
    good = [i for i, r in enumerate(frontier.runs) if r.worst <= frontier.tolerance]
    unit = frontier.deciding_unit(good)
    costs = [amount(run.cost(u), u) for u in dict.fromkeys([unit, *_both(frontier)])]
    costs = [c for c in costs if not c.startswith("-")]
    lines = [
        f"pick: {called(run)}: {', '.join(costs)}; {frontier.error_name} "
        f"{error_text(run)}, asked for {figure(frontier.tolerance)}"
    ]
    lines.append(_why(frontier, indices, unit))
    if run.certificate:
        lines.append(_certificate(run.certificate))
    rival = _first_use(frontier)
    if frontier.uses and rival not in (None, run) and frontier.break_even(run, rival) is not None:
        after = _pays_off(frontier, run, rival)
        lines.append(f"set-up: pays off after {after} against {called(rival)}")
    if run.note:
        lines.append(f"note: {run.note}")
    return lines


def certificates(frontier: Frontier) -> list[str]:
    """What is certified of the runs beside the pick: those passed over, and the user's own."""
    return [
        f"{called(run)}: {_certificate(run.certificate)}"
        for i, run in enumerate(frontier.runs)
        if run.certificate is not None and i != frontier.pick
    ]


def _certificate(known: Certificate) -> str:
    return f"{known.label} {figure(known.error)}: {known.text}"


def _both(frontier: Frontier) -> list[str]:
    return [frontier.unit, frontier.work_name, "seconds"]


def _why(frontier: Frontier, indices: Sequence[int], unit: str) -> str:
    """In which unit it is cheapest, and by how much the next method misses."""
    run = frontier.runs[indices[0]]
    switched = "" if unit == frontier.unit else f" (some have no count of {frontier.unit})"
    shared = f", set-up shared over {figure(frontier.uses)} uses" if frontier.uses else ""
    why = f"why: the cheapest in {unit}{switched}{shared} of {_many(len(indices), 'run')} within it"
    others = (frontier.runs[i] for i in indices if frontier.runs[i].method != run.method)
    rival = next(others, None)
    if rival is None:
        return f"{why}; no other method is within it"
    cost = amount(frontier.cost(rival, unit), unit)
    return f"{why}; the next method is {called(rival)} with {cost}"


def html(frontier: Frontier, path: Path) -> Path:
    """Write a page that needs nothing else: the pick, a picture with hover, the table.

    Raises `StoreError` if the path cannot be written.
    """
    try:
        path.write_text(page(frontier), encoding="utf-8", errors="xmlcharrefreplace")
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}") from error
    return path


def page(frontier: Frontier) -> str:
    """The page as text. The table is there without scripts; they add the picture and sorting."""
    template = files("nearly.core").joinpath("report.html").read_text(encoding="utf-8")
    data = frontier.to_json()
    data["units"] = units(frontier)
    data["costs"] = [{u: frontier.cost(r, u) for u in data["units"]} for r in frontier]
    data["worst"] = [plain(replace(r, certificate=None).worst) for r in frontier]
    data["fronts"] = {u: frontier.pareto(u) for u in data["units"]}
    parts = {
        "TITLE": _escape(f"{frontier.problem}: {frontier.error_name} against {frontier.unit}"),
        "PROBLEM": _escape(frontier.problem),
        "SUBTITLE": _escape(title(frontier)),
        "PICK": _pick_html(frontier),
        "HEAD": _head_html(frontier),
        "ROWS": "\n".join(_row_html(frontier, i) for i in range(len(frontier))),
        "ENVIRONMENT": _environment_html(frontier),
        # "<" never occurs in the embedded JSON, so no name can end the script it stands in.
        "DATA": json.dumps(data, allow_nan=False).replace("<", "\\u003c"),
    }
    return re.sub("@([A-Z]+)@", lambda mark: parts[mark[1]], template)


def _escape(text: Any) -> str:
    return markup.escape(str(text))


def _pick_html(frontier: Frontier) -> str:
    lines = explain(frontier)
    if not lines:
        if frontier.tolerance is None:
            return "<p>No tolerance was asked for; the joined points are the best buys.</p>"
        reason = str(frontier.nothing_within(frontier.tolerance))
        return f'<p class="none">{_escape(reason)}</p>'
    assert frontier.pick is not None
    run = frontier.runs[frontier.pick]
    unit = "seconds" if frontier.unit == "seconds" else frontier.unit
    facts = [
        (f"{frontier.error_name}", error_text(run)),
        ("cost", amount(run.cost(unit), unit)),
        *([("seconds", duration(run.seconds))] if unit != "seconds" and run.seconds else []),
        *([(run.certificate.label, figure(run.certificate.error))] if run.certificate else []),
    ]
    cells = "".join(f"<div><dt>{_escape(k)}</dt><dd>{_escape(v)}</dd></div>" for k, v in facts)
    words = "".join(f"<p>{_escape(line)}</p>" for line in lines[1:])
    name = _escape(run.method)
    if called(run) != run.method:
        name += f" <small>at {_escape(run.dial)}</small>"
    return f"<h2>{name}</h2><dl>{cells}</dl>{words}"


def _head_html(frontier: Frontier) -> str:
    names = ["method", "dial", frontier.error_name, *units(frontier), "set-up", "source", "status"]
    return "".join(f'<th scope="col"><button>{_escape(n)}</button></th>' for n in names)


def _row_html(frontier: Frontier, index: int) -> str:
    run = frontier.runs[index]
    marks = [run.source]
    marks += ["front"] if index in frontier.pareto() else []
    marks += ["pick"] if index == frontier.pick else []
    worst = run.worst if math.isfinite(run.worst) else None
    cells = [
        (run.method, run.method),
        (run.dial, run.dial),
        (error_text(run), worst),
        *((_cost(run, u), run.cost(u)) for u in units(frontier)),
        (duration(run.setup.get("seconds")), run.setup.get("seconds")),
        (run.source, run.source),
        (_remark(frontier, index, False) or run.status, run.status),
    ]
    inner = "".join(f'<td data-key="{_key(key)}">{_escape(text)}</td>' for text, key in cells)
    return f'<tr class="{" ".join(marks)}" data-run="{index}">{inner}</tr>'


def _key(value: Any) -> str:
    return "" if value is None else _escape(repr(value) if isinstance(value, float) else value)


def _environment_html(frontier: Frontier) -> str:
    rows = _flat(dict(frontier.environment) | {"settings": dict(frontier.settings)})
    lines = (f"<tr><th>{_escape(n)}</th><td>{_escape(v)}</td></tr>" for n, v in rows)
    return "\n".join(lines)


def _flat(values: Any) -> list[tuple[str, Any]]:
    """Nested mappings as pairs, the inner ones under their own names."""
    pairs: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, dict):
            pairs += _flat(value)
        elif value not in (None, ""):
            pairs.append((name, spaced(value)))
    return pairs
