"""What the benchmarks share: alternating pairs in one process, tables, a command line."""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax

Row = Mapping[str, Any]
Benchmarks = Mapping[str, Callable[[], Iterable[Row]]]


@dataclass(frozen=True)
class Pairs:
    """Median milliseconds of both; the median of ours over theirs, and its 95% interval."""

    ours: float
    theirs: float
    ratio: float
    low: float
    high: float

    @property
    def row(self) -> Row:
        """As columns of a table."""
        return {
            "ours ms": self.ours,
            "peer ms": self.theirs,
            "ours / peer": self.ratio,
            "95%": f"{self.low:.2f} to {self.high:.2f}",
        }


def pairs(ours: Callable[[], Any], theirs: Callable[[], Any], count: int) -> Pairs:
    """Time both in turn, `count` times, after each has run once."""
    jax.block_until_ready((ours(), theirs()))
    both = [(milliseconds(ours), milliseconds(theirs)) for _ in range(count)]
    ratios = sorted(a / b for a, b in both)
    # Order statistics: how far from the middle the median may lie, by the binomial law.
    reach = math.ceil(0.98 * math.sqrt(count))
    return Pairs(
        statistics.median(a for a, _ in both),
        statistics.median(b for _, b in both),
        statistics.median(ratios),
        ratios[max(0, count // 2 - reach)],
        ratios[min(count - 1, count // 2 + reach)],
    )


def milliseconds(call: Callable[[], Any]) -> float:
    """Of one call, until its arrays are there."""
    begun = time.perf_counter()
    jax.block_until_ready(call())
    return 1e3 * (time.perf_counter() - begun)


def table(rows: Iterable[Row]) -> str:
    """Rows as a markdown table, columns in the order in which they first appear."""
    rows = list(rows)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [columns, ["---"] * len(columns)]
    lines += [[_shown(row.get(c, "")) for c in columns] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main(benchmarks: Benchmarks, description: str | None) -> None:
    """Run the benchmarks named on the command line, or all."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(benchmarks)}; all if none")
    names = parser.parse_args().names or list(benchmarks)
    if unknown := set(names) - set(benchmarks):
        parser.error(f"unknown benchmark {sorted(unknown)[0]!r}; there is {', '.join(benchmarks)}")
    for name in names:
        about = (benchmarks[name].__doc__ or "").strip()
        print(f"\n## {name}\n\n{about}\n\n{table(benchmarks[name]())}", flush=True)
