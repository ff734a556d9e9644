"""`nearly train-live`: train a network beside running solvers, and say who waited for whom."""

from __future__ import annotations

import json as json_format
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from nearly.core.errors import UnknownName

Problem = Annotated[
    str,
    typer.Argument(
        metavar="PROBLEM",
        show_default=False,
        help="What names its solver and network: online-heat, online-burgers, file.py:attribute.",
    ),
]
Steps = Annotated[int, typer.Option(metavar="N", help="Optimiser steps.")]
Policy = Annotated[str, typer.Option(metavar="fifo|firo|reservoir", help="Of the buffer.")]
Capacity = Annotated[int, typer.Option(metavar="N", help="Samples the buffer holds.")]
Threshold = Annotated[int, typer.Option(metavar="N", help="Samples held before the first batch.")]
Workers = Annotated[int, typer.Option(metavar="N", help="Processes that solve.")]
Executor = Annotated[
    str | None, typer.Option(metavar="ADDRESS", help="A Dask scheduler whose workers solve.")
]
Runs = Annotated[
    int | None,
    typer.Option(metavar="N", help="Solver runs in all.", show_default="as many as come in time"),
]
Checkpoint = Annotated[
    Path | None,
    typer.Option(metavar="FILE.npz", help="Where to keep the run; taken up if it is there."),
]
Seed = Annotated[int, typer.Option(metavar="N", help="Of all randomness.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else there.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.")]


class Command(TyperCommand):
    """A command whose context is one of typer's own."""

    context_class = typer.Context


app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command("train-live", cls=Command)
def train_live(
    problem: Problem,
    steps: Steps = 2000,
    policy: Policy = "reservoir",
    capacity: Capacity = 1024,
    threshold: Threshold = 128,
    workers: Workers = 1,
    executor: Executor = None,
    runs: Runs = None,
    checkpoint: Checkpoint = None,
    seed: Seed = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a network on samples that solvers in other processes deliver meanwhile."""
    import jax

    from nearly.core import catalogue
    from nearly.core.progress import bar
    from nearly.operators import live
    from nearly.operators.reservoir import FIFO, FIRO, Reservoir

    policies = {"fifo": FIFO, "firo": FIRO, "reservoir": Reservoir}
    if policy not in policies:
        raise UnknownName("policy", policy, policies)
    key = jax.random.key(seed)
    with bar(quiet or json) as progress:
        trained = live.train_live(
            problem,
            steps=steps,
            key=key,
            policy=policies[policy](capacity, threshold),
            workers=workers,
            executor=executor,
            runs=runs,
            checkpoint=checkpoint,
            progress=progress,
        )
    built: Any = catalogue.problem(problem)
    with jax.enable_x64(built.dtype == "float64"):
        errors = built.errors(built.apply(trained.model, key=key))
    if json:
        outcome = {"status": trained.status, "steps": trained.steps, "errors": dict(errors)}
        print(json_format.dumps({**outcome, "utilisation": asdict(trained.utilisation)}))
        return
    shown = ", ".join(f"{name} {value:.3g}" for name, value in errors.items())
    print(f"{problem}: {trained.status} after {trained.steps} steps; held out: {shown}")
    print(trained.utilisation)
