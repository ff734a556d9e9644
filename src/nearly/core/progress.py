"""Progress on stderr when a person watches; nothing on a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[int, int, str], None]  # (done, total, what): what long work tells its watcher


def silent(done: int, total: int, text: str) -> None:
    """Tell nobody."""


@contextmanager
def bar(quiet: bool = False) -> Iterator[Progress]:
    """A progress bar on stderr, or silence if asked for or if stderr is no terminal."""
    if quiet or not sys.stderr.isatty():
        yield silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[text]}"),
    )
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("", total=None, text="")
        yield lambda done, total, text: bars.update(task, completed=done, total=total, text=text)
