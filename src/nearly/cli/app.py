"""The commands, and what every one of them promises about errors, interrupts and exit statuses."""

from __future__ import annotations

import io
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from nearly import __version__
from nearly.cli.arguments import ProblemCommand
from nearly.core import catalogue
from nearly.core.errors import Interrupted, NearlyError, NotProven, NotWithin, UnknownName

DONE, NO, BAD_INPUT, INTERNAL, INTERRUPTED = 0, 1, 2, 70, 130


class Nearly(TyperGroup):
    """The group of all commands: ours, and those that rooms offer, loaded when called."""

    context_class = typer.Context

    def main(self, args: Sequence[str] | None = None, *_: Any, **extra: Any) -> NoReturn:
        tokens = list(sys.argv[1:] if args is None else args)
        command = shlex.join(["nearly", *tokens])
        _printable()

        def run() -> Any:
            extra.update(args=tokens, prog_name="nearly", obj=command, standalone_mode=False)
            return super(Nearly, self).main(**extra)

        sys.exit(_status(run, command))

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *catalogue.offers("COMMANDS")]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        offered = catalogue.offers("COMMANDS")
        if cmd_name in offered:
            return Deferred(cmd_name, offered[cmd_name])
        return super().get_command(ctx, cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        known = self.list_commands(ctx)
        if args and args[0] not in known:
            kind = "option" if args[0].startswith("-") else "command"
            raise UnknownName(kind, args[0], known, "(nearly --help)")
        return super().resolve_command(ctx, args)


class Deferred(TyperCommand):
    """A room's command, which is imported only once it is called."""

    def __init__(self, name: str, target: str) -> None:
        super().__init__(name, short_help=f"(see nearly {name} --help)")
        self.target = target

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> Any:
        from nearly.core.lazy import load

        offered = load(self.target)
        if not isinstance(offered, typer.Typer):
            single = typer.Typer(add_completion=False, rich_markup_mode=None)
            single.command(self.name)(offered)
            offered = single
        return typer.main.get_command(offered).make_context(info_name, args, parent, **extra)


def _printable() -> None:
    """Let no name, whatever its bytes, break printing on a narrow terminal encoding."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _status(run: Any, command: str) -> int:
    """Run the command line; every outcome is an exit status and at most one line on stderr."""
    try:
        status = run() or DONE
        if status == INTERRUPTED:  # Ctrl-C outside a sweep, which typer has caught
            complain(f"interrupted; to run it again: {command}")
        return status
    except Interrupted as stop:
        complain(f"{stop}: {command}")
        return INTERRUPTED
    except KeyboardInterrupt:
        complain(f"interrupted; to run it again: {command}")
        return INTERRUPTED
    except (NotWithin, NotProven) as answer:
        complain(str(answer))
        return NO
    except NearlyError as error:
        complain(str(error))
        return BAD_INPUT
    except typer.TyperException as error:
        complain(error.format_message())
        return BAD_INPUT
    except BrokenPipeError:
        return _reader_left()
    except OSError as error:
        complain(f"{error.filename or 'the system'}: {error.strerror or error}")
        return BAD_INPUT
    except Exception as error:
        if os.environ.get("NEARLY_DEBUG"):
            raise
        text = f"internal error: {type(error).__name__}: {error}"
        complain(f"{text} - please report it; NEARLY_DEBUG=1 shows the traceback")
        return INTERNAL


def complain(message: str) -> None:
    """One line on stderr, whatever the message is made of."""
    line = " ".join(message.split())
    print(f"nearly: {line}", file=sys.stderr)


def _reader_left() -> int:
    """Nobody reads our output any more (`| head`): be quiet about it, also at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return DONE


app = typer.Typer(
    cls=Nearly,
    add_completion=False,
    no_args_is_help=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)


def _version(wanted: bool) -> bool:
    if wanted:
        print(f"nearly {__version__}")
        raise typer.Exit
    return wanted


@app.callback(invoke_without_command=True)
def root(
    ctx: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Say which version this is.", callback=_version, is_eager=True
        ),
    ] = False,
) -> None:
    """The cheapest stand-in for something expensive, what it costs, and how wrong it is.

    Exit status: 0 done, 1 the answer is no, 2 bad input, 130 interrupted.
    """
    if ctx.invoked_subcommand is None:
        print(ctx.get_help(), end="")


ProblemText = Annotated[
    str,
    typer.Argument(
        metavar="PROBLEM",
        show_default=False,
        help="A name (nearly list problems), an expression in x, or file.py:attribute; "
        "its own options follow it (nearly compare PROBLEM --help).",
    ),
]
Methods = Annotated[
    str | None,
    typer.Option(
        metavar="A,B|all",
        help="Methods by name or file.py:attribute.",
        show_default="the standard ones",
    ),
]
Work = Annotated[
    str | None,
    typer.Option(metavar="UNIT", help='The unit in which "cheapest" is meant, such as seconds.'),
]
Uses = Annotated[float | None, typer.Option(metavar="N", help="Share set-up out over N uses.")]
Budget = Annotated[
    float | None,
    typer.Option(metavar="SECONDS", help="Do not start what is forecast not to fit."),
]
Seeds = Annotated[str, typer.Option(metavar="0,1,2", help="Seeds of random methods.")]
Workers = Annotated[
    int, typer.Option(metavar="N", help="Processes to run in.", show_default="0: this one")
]
Executor = Annotated[
    str | None, typer.Option(metavar="ADDRESS", help="A Dask scheduler to run on.")
]
Reuse = Annotated[bool, typer.Option("--reuse", help="Take finished runs from the store.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else there.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print the answer alone; no progress.")]


@app.command(cls=ProblemCommand)
def compare(
    ctx: typer.Context,
    problem: ProblemText,
    methods: Methods = None,
    within: Annotated[
        str | None, typer.Option(metavar="TOL", help="A tolerance, such as 1e-9 or 1ulp.")
    ] = None,
    work: Work = None,
    uses: Uses = None,
    budget: Budget = None,
    seeds: Seeds = "0,1,2",
    workers: Workers = 0,
    executor: Executor = None,
    reuse: Reuse = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where frontier.json, .png and .html go.",
            show_default="nearly-PROBLEM; with --json nowhere",
        ),
    ] = None,
    all_runs: Annotated[
        bool, typer.Option("--all-runs", help="Print every run, not the best ones.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run methods on a problem and show error against work."""
    from nearly.cli.sweep import Sweep, deliver, out_folder

    sweep = Sweep.asked(
        ctx, problem, methods, within, work, uses, budget, seeds, workers, executor, reuse,
        json or quiet,
    )  # fmt: skip
    folder = out_folder(out, problem, json)
    show = "json" if json else "quiet" if quiet else "all" if all_runs else "summary"
    try:
        frontier = sweep.run()
    except Interrupted as stop:
        deliver(stop.frontier, folder, show)
        raise
    deliver(frontier, folder, show)
    if frontier.tolerance is not None and frontier.pick is None:
        raise frontier.nothing_within(frontier.tolerance)


@app.command(cls=ProblemCommand)
def within(
    ctx: typer.Context,
    tolerance: Annotated[
        str, typer.Argument(metavar="TOL", show_default=False, help="Such as 1e-9 or 1ulp.")
    ],
    problem: ProblemText,
    methods: Methods = None,
    work: Work = None,
    uses: Uses = None,
    budget: Budget = None,
    seeds: Seeds = "0,1,2",
    workers: Workers = 0,
    executor: Executor = None,
    reuse: Reuse = False,
    to: Annotated[
        str | None, typer.Option(metavar="c|numpy|jax|stablehlo", help="Emit the stand-in as code.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="The name of the emitted function.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Where the code goes.")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Pick the cheapest stand-in within a tolerance, say why, and emit it."""
    from nearly.cli.sweep import Emission, Sweep, answer

    emission = Emission.asked(to, name, output)
    sweep = Sweep.asked(
        ctx, problem, methods, tolerance, work, uses, budget, seeds, workers, executor, reuse,
        json or quiet, to=to,
    )  # fmt: skip
    frontier = sweep.run()
    answer(frontier, sweep, emission, json, quiet)


@app.command()
def claims(
    room: Annotated[str | None, typer.Option(metavar="R", help="Of one room only.")] = None,
    paper: Annotated[str | None, typer.Option(metavar="KEY", help="Of one paper only.")] = None,
    cost: Annotated[
        str, typer.Option(metavar="fast|medium|slow|gpu|all", help="How dear they may be.")
    ] = "fast",
    json: Json = False,
    write: Annotated[
        bool, typer.Option("--write", help="Merge the rows into docs/ledger.json and its page.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Exit 1 if a verdict differs from the ledger's.")
    ] = False,
    quiet: Quiet = False,
) -> int:
    """Rerun what papers promise and say whether it holds."""
    from nearly.cli.ledger import run_claims

    return run_claims(room, paper, cost, json=json, write=write, check=check, quiet=quiet)


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(metavar="rooms|problems|methods|papers")],
    json: Json = False,
) -> None:
    """Say what there is, importing none of it."""
    from nearly.cli.listing import show

    show(what, json)
