"""`nearly discover`: breed programs for a function, prove them, write them as code."""

from __future__ import annotations

import json as json_format
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from nearly.core.errors import InputError, Interrupted, StoreError, UnknownName
from nearly.functions import DOMAINS
from nearly.functions.formats import FORMATS

Function = Annotated[
    str,
    typer.Argument(
        metavar="FUNCTION",
        show_default=False,
        help="A name (exp2), an expression in x, or file.py:attribute.",
    ),
]
Domain = Annotated[
    tuple[str, str] | None,
    typer.Option(metavar="LO HI", help="Its two ends, as expressions.", show_default="usual one"),
]
Ops = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="The dearest program, in units of the objective.",
        show_default="10; with --dtype 16",
    ),
]
Objective = Annotated[
    str | None,
    typer.Option(
        metavar="operations|weighted|depth",
        help="What is cheap.",
        show_default="operations; with --dtype weighted",
    ),
]
ErrorKind = Annotated[
    str, typer.Option("--error", metavar="relative|absolute", help="The error that counts.")
]
Minutes = Annotated[
    float | None,
    typer.Option(metavar="M", help="End after the round in which they have passed."),
]
Rounds = Annotated[int | None, typer.Option(metavar="N", help="End after so many rounds.")]
Seed = Annotated[int, typer.Option(metavar="N", help="Of all randomness.")]
Islands = Annotated[int, typer.Option(metavar="N", help="Archives that grow apart.")]
Workers = Annotated[
    int, typer.Option(metavar="N", help="Processes to run in.", show_default="0: this one")
]
Executor = Annotated[
    str | None, typer.Option(metavar="ADDRESS", help="A Dask scheduler to run on.")
]
Macros = Annotated[
    bool, typer.Option("--macros", help="Also mutate y to y + k/y, y^2 and y^2 + k at once.")
]
Paper = Annotated[
    bool,
    typer.Option("--paper", help="The paper's own way: its rates, NSGA-II and CMA-ES; slow."),
]
Dtype = Annotated[
    str | None,
    typer.Option(metavar="FORMAT", help="Find the fastest code in a machine format."),
]
Ulp = Annotated[float, typer.Option(metavar="TOL", help="How many ULP that code may be off.")]
Measured = Annotated[
    bool, typer.Option("--measured", help="Time the programs in float32; cheap means fast.")
]
Keep = Annotated[bool, typer.Option("--keep", help="Keep what beats the records.")]
Out = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Where frontier, programs, code and the state to resume from go.",
        show_default="nearly-discover-FUNCTION; with --json nowhere",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else there.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print the answer alone; no progress.")]

USUAL_MINUTES = 1.0
PAPER_CHILDREN = 20  # of a round: fits by CMA-ES take a second


class Command(TyperCommand):
    """A command whose context is one of typer's own."""

    context_class = typer.Context


app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command("discover", cls=Command)
def discover(
    ctx: typer.Context,
    function: Function,
    domain: Domain = None,
    ops: Ops = None,
    objective: Objective = None,
    error: ErrorKind = "relative",
    minutes: Minutes = None,
    rounds: Rounds = None,
    seed: Seed = 0,
    islands: Islands = 4,
    workers: Workers = 0,
    executor: Executor = None,
    macros: Macros = False,
    paper: Paper = False,
    dtype: Dtype = None,
    ulp: Ulp = 1.0,
    measured: Measured = False,
    keep: Keep = False,
    out: Out = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Breed programs for a function from nothing, prove their errors, and write them as code."""
    from nearly.functions.discovery.delivery import Delivery

    _check(error, dtype, ulp, measured, paper, macros)
    # Code for a machine pays for a division what six additions cost.
    usual = ("weighted", 16) if dtype else ("operations", 10)
    cheap, most = objective or usual[0], usual[1] if ops is None else ops
    search = _search(function, domain, most, cheap, error, seed, islands, macros, paper)
    folder = out or (None if json else Path(f"nearly-discover-{_slug(function)}"))
    state = _prepared(folder)
    with _progress(json or quiet) as progress:
        found = _run(search, minutes, rounds, workers, executor, state, progress)
        delivery = Delivery.of(found, ctx.obj, dtype, ulp, measured, progress)
        if folder is not None:
            delivery.write(folder, progress)
        kept = delivery.keep() if keep else []
    if state is not None:
        state.unlink(missing_ok=True)  # a search that is over begins anew
    if json:
        print(json_format.dumps({**delivery.to_json(), "kept": kept}, indent=1, allow_nan=False))
    else:
        for line in delivery.lines(kept, folder)[: 1 if quiet else None]:
            print(line)
    delivery.answer()


def _check(
    error: str, dtype: str | None, ulp: float, measured: bool, paper: bool, macros: bool
) -> None:
    if error not in ("relative", "absolute"):
        raise UnknownName("error measure", error, ("relative", "absolute"))
    machine = [name for name in FORMATS if name != "real"]
    if dtype is not None and dtype not in machine:
        raise UnknownName("machine format", dtype, machine)
    if not 0 < ulp < math.inf:
        raise InputError(f"--ulp {ulp:g} must be above 0")
    if dtype is not None and measured:
        raise InputError("--measured times float32 already; --dtype picks by time: give one")
    if paper and macros:
        raise InputError("the paper has no macro mutations: give --paper or --macros")


def _search(
    function: str,
    domain: tuple[str, str] | None,
    ops: int,
    objective: str,
    error: str,
    seed: int,
    islands: int,
    macros: bool,
    paper: bool,
) -> Any:
    from nearly.functions.discovery.islands import Search
    from nearly.functions.discovery.mutation import MACROS, PAPER, Mutation
    from nearly.functions.discovery.selection import NonDominatedSorting
    from nearly.functions.function import Function

    target = Function(function, domain or DOMAINS.get(function, ("0", "1")), error=error)
    settings: dict[str, Any] = {"mutation": Mutation(macros=MACROS if macros else ())}
    if paper:
        settings = {
            "mutation": PAPER,
            "selection": NonDominatedSorting(),
            "fitter": "cma",
            "children": PAPER_CHILDREN,
        }
    return Search(target, ops, objective, seed, islands, **settings)


def _slug(text: str) -> str:
    letters = "".join(c if c.isalnum() or c == "." else "-" for c in text.rpartition("/")[2])
    return letters.strip("-.")[:60] or "function"


def _prepared(folder: Path | None) -> Path | None:
    """The file of the state, in a folder that is known to be writable before anything runs."""
    if folder is None:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / "state.npz.part"
        probe.touch()
        probe.unlink()
    except OSError as problem:
        raise StoreError(f"cannot write into {folder}: {problem.strerror}") from problem
    return folder / "state.npz"


@contextmanager
def _progress(quiet: bool) -> Iterator[Any]:
    from nearly.core.progress import bar

    with bar(quiet) as progress:
        yield progress


def _run(
    search: Any,
    minutes: float | None,
    rounds: int | None,
    workers: int,
    executor: str | None,
    state: Path | None,
    progress: Any,
) -> Any:
    """The search; a Ctrl-C says how it goes on."""
    from nearly.functions.discovery.evolve import evolve

    if minutes is None and rounds is None:
        minutes = USUAL_MINUTES
    try:
        return evolve(
            search,
            most_rounds=rounds,
            minutes=minutes,
            workers=workers,
            executor=executor,
            state=state,
            progress=progress,
        )
    except KeyboardInterrupt:
        how = "goes on from its last round" if state else "begins anew (give --out to go on)"
        raise Interrupted(f"interrupted; the same command {how}") from None
    finally:
        sys.stdout.flush()
