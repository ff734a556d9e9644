"""What `compare` and `within` share: asking for a sweep, showing it, handing over the pick."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import typer

from nearly.cli.arguments import OFFERED, fields_given
from nearly.cli.terminal import console
from nearly.core import catalogue
from nearly.core.errors import InputError, Interrupted, NotWithin, StoreError, UnknownName
from nearly.core.frontier import Frontier
from nearly.core.run import Run

FILES = ("frontier.json", "frontier.png", "frontier.html")
LARGEST_SEED = 2**32  # what a random key holds


@dataclass(frozen=True)
class Sweep:
    """A comparison as the command line asks for it."""

    text: str
    problem: Any
    fields: Mapping[str, Any]
    methods: str | None
    tolerance: str | None
    quiet: bool
    command: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def asked(
        ctx: typer.Context,
        text: str,
        methods: str | None,
        tolerance: str | None,
        work: str | None,
        uses: float | None,
        budget: float | None,
        seeds: str,
        workers: int,
        executor: str | None,
        reuse: bool,
        quiet: bool,
        to: str | None = None,
    ) -> Sweep:
        """Read the command line; raises `InputError` for what can be told before anything runs."""
        fields = fields_given(ctx)
        if to is not None and any(p.name == "to" for p in ctx.meta[OFFERED]):
            fields["to"] = to
        options = {
            "work": work,
            "uses": uses,
            "budget": budget,
            "seeds": read_seeds(seeds),
            "workers": workers,
            "executor": executor,
            "reuse": reuse,
        }
        problem = catalogue.problem(text, **fields)
        return Sweep(text, problem, fields, methods, tolerance, quiet, ctx.obj, options)

    def run(self) -> Frontier:
        """Compare, and certify the pick and the user's own; the frontier knows the command.

        Raises `Interrupted` with what was computed so far.
        """
        from nearly.core.compare import compare
        from nearly.core.progress import bar

        try:
            with bar(self.quiet) as progress:
                frontier = compare(
                    self.text,
                    self.methods,
                    within=self.tolerance,
                    progress=progress,
                    **self.options,
                    **self.fields,
                )
        except Interrupted as stop:
            raise Interrupted(str(stop), self._signed(stop.frontier)) from None
        frontier = self._signed(frontier)
        if not any(run.status == "ok" for run in frontier):
            raise _nothing_ran(frontier)
        return frontier if self.tolerance is None else self._certified(frontier)

    def _signed(self, frontier: Frontier) -> Frontier:
        return replace(frontier, environment={**frontier.environment, "command": self.command})

    def _certified(self, frontier: Frontier) -> Frontier:
        from nearly.core.compare import certified

        try:
            return self._certified_own(certified(frontier, self.problem))
        except KeyboardInterrupt:
            message = "interrupted while certifying; the same command takes up the finished runs"
            raise Interrupted(message, frontier) from None

    def _certified_own(self, frontier: Frontier) -> Frontier:
        """Certify the best run of each of the user's own methods: that is what they came for."""
        from nearly.core.compare import certificate_of

        tolerance = frontier.tolerance
        assert tolerance is not None
        for name in dict.fromkeys(r.method for r in frontier if r.source == "user"):
            index = _best_of(frontier, name)
            run = frontier.runs[index]
            if run.status != "ok" or run.certificate is not None:
                continue
            found = certificate_of(self.problem, run, tolerance)
            frontier = frontier.with_run(index, replace(run, certificate=found))
        return frontier


def _best_of(frontier: Frontier, method: str) -> int:
    """A method's cheapest run within the tolerance, else its most accurate one."""
    assert frontier.tolerance is not None
    own = [i for i in frontier.candidates(frontier.tolerance) if frontier.runs[i].method == method]
    if own:
        return own[0]
    indices = [i for i, run in enumerate(frontier.runs) if run.method == method]
    return min(indices, key=lambda i: frontier.runs[i].worst)


def _nothing_ran(frontier: Frontier) -> NotWithin:
    reasons = [f"{r.method}: {r.reason}" for r in frontier]
    first = reasons[0] if reasons else "there was nothing to run"
    more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
    return NotWithin(f"no run succeeded on {frontier.problem}: {first}{more}", None, frontier)


def read_seeds(text: str) -> tuple[int, ...]:
    """`0,1,2` as numbers; raises `InputError` for anything else."""
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--seeds takes whole numbers such as 0,1,2, not {text!r}") from None
    if any(not 0 <= seed < LARGEST_SEED for seed in seeds):
        raise InputError(f"--seeds {text} must lie between 0 and {LARGEST_SEED - 1}")
    return seeds


def out_folder(out: Path | None, text: str, as_json: bool) -> Path | None:
    """The folder for a comparison's files, known to be writable before anything runs.

    None, with `--json`, unless the user names one.
    """
    if out is None and as_json:
        return None
    folder = out or Path(f"nearly-{_slug(text)}")
    refuse_unwritable(folder)
    return folder


def _slug(text: str) -> str:
    name = text.rpartition("/")[2] if catalogue.is_file_reference(text) else text
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.")[:60] or "problem"


def refuse_unwritable(path: Path) -> None:
    """Raise `StoreError` if a folder cannot be made or written at this path."""
    there = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not there.is_dir():
        raise StoreError(f"cannot write into {path}: {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise StoreError(f"cannot write into {path}: no permission to write in {there}")


def deliver(frontier: Frontier, folder: Path | None, show: str) -> None:
    """Print a frontier (`summary`, `all`, `quiet` or `json`) and write its files.

    A frontier without runs, of a sweep that was interrupted at once, is not delivered.
    """
    if not len(frontier):
        return
    from nearly.core import report

    if show == "json":
        print_json(frontier.to_json())
    elif show in ("summary", "all"):
        shown = report.summary(frontier) if show == "summary" else report.table(frontier)
        console().print(shown)
    if show != "json":
        for line in [*report.explain(frontier), *report.certificates(frontier)]:
            print(line)
    if folder is not None:
        write_files(frontier, folder)
        if show != "json":
            print(f"wrote {', '.join(str(folder / name) for name in FILES)}")


def write_files(frontier: Frontier, folder: Path) -> None:
    """Write the frontier as JSON, picture and page; raises `StoreError` if that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot make {folder}: {error.strerror}") from error
    data, picture, page = (folder / name for name in FILES)
    frontier.save(data)
    frontier.plot(picture)
    frontier.html(page)


def print_json(data: Any) -> None:
    """JSON alone on stdout."""
    print(json.dumps(data, indent=1, allow_nan=False))


@dataclass(frozen=True)
class Emission:
    """How the stand-in is to be handed over: a room's export, a name, a file."""

    to: str | None
    target: str | None
    name: str | None
    output: Path | None

    @staticmethod
    def asked(to: str | None, name: str | None, output: Path | None) -> Emission:
        """Read the options; raises `InputError` for what can be told before anything runs."""
        exports = catalogue.offers("EXPORTS")
        if to is None and (name is not None or output is not None):
            option = "--name" if name is not None else "-o"
            raise InputError(f"{option} needs --to {'|'.join(exports)}")
        if to is not None and to not in exports:
            raise UnknownName("form for --to", to, exports)
        if name is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise InputError(f"--name {name!r} is no name of a function, such as my_exp2")
        if output is not None:
            _refuse_file(output)
        return Emission(to, exports.get(to or ""), name, output)

    def code(self, sweep: Sweep, run: Run) -> str | None:
        """The stand-in in the form that was asked for; None if none was."""
        if self.target is None:
            return None
        from nearly.core.lazy import load

        name = self.name or "nearly_" + re.sub(r"\W+", "_", sweep.problem.name, flags=re.A)
        return load(self.target)(sweep.problem, run, form=self.to, name=name, command=sweep.command)


def _refuse_file(path: Path) -> None:
    if path.is_dir():
        raise StoreError(f"cannot write {path}: it is a folder")
    if not path.parent.is_dir():
        raise StoreError(f"cannot write {path}: there is no folder {path.parent}")
    refuse_unwritable(path.parent)
    if path.exists() and not os.access(path, os.W_OK):
        raise StoreError(f"cannot write {path}: no permission")


def answer(
    frontier: Frontier, sweep: Sweep, emission: Emission, as_json: bool, quiet: bool
) -> None:
    """Print the pick and why it is it, and emit it; raises `NotWithin` if there is none."""
    from nearly.core import report

    if frontier.pick is None:
        assert frontier.tolerance is not None
        if as_json:
            print_json({**frontier.to_json(), "code": None})
        raise frontier.nothing_within(frontier.tolerance)
    code = emission.code(sweep, frontier.runs[frontier.pick])
    if code is not None and emission.output is not None:
        _write(emission.output, code)
    if as_json:
        print_json({**frontier.to_json(), "code": code})
        return
    code_on_stdout = code is not None and emission.output is None
    lines = [*report.explain(frontier), *report.certificates(frontier)]
    for line in lines[:1] if quiet else lines:
        print(line, file=sys.stderr if code_on_stdout else sys.stdout)
    if code is not None and code_on_stdout:
        print(code, end="" if code.endswith("\n") else "\n")
    elif emission.output is not None and not quiet:
        print(f"wrote {emission.output}")


def _write(path: Path, code: str) -> None:
    try:
        path.write_text(code, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}") from error
