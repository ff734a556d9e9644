"""Rounded-coefficient polynomials against Sollya's `fpminimax`: accuracy and seconds, case by case.

Both approximate the same function by the same powers with coefficients of the same format, in the
relative error. Sollya's `supnorm` judges both. Seconds are those of the whole fit (minimax and
rounding), alternating between the two, as medians; Sollya's are taken inside its own session, so
that starting it is not counted.

    python benchmarks/functions.py [--repeat 3] [--json PATH] [NAME...]
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

from nearly.functions import polynomial, target
from nearly.functions.function import Function
from nearly.functions.rounding import round_coefficients

JUDGE = "2^(-40)"  # relative accuracy of the sup norms


@dataclass(frozen=True)
class Case:
    """A function on its reduced domain, and the powers that suit it."""

    name: str
    sollya: str
    domain: tuple[str, str]
    first: int
    step: int
    single: tuple[int, ...]  # degrees in float32
    double: tuple[int, ...]  # degrees in float64

    def powers(self, degree: int) -> tuple[int, ...]:
        return tuple(range(self.first, degree + 1, self.step))


CASES = (
    Case("exp2", "2^x", ("0", "1"), 0, 1, (3, 4, 5, 6, 7), (8, 9, 10, 11, 12)),
    Case("exp2", "2^x", ("-1/2", "1/2"), 0, 1, (3, 4, 5, 6, 7), (8, 9, 10, 11, 12)),
    Case("log2(1+x)", "log2(1+x)", ("0", "1"), 1, 1, (4, 5, 6, 7, 8), (8, 10, 12, 14)),
    Case(
        "log2(1+x)",
        "log2(1+x)",
        ("sqrt(1/2)-1", "sqrt(2)-1"),
        1,
        1,
        (4, 5, 6, 7, 8),
        (8, 10, 12, 14),
    ),
    Case("erf", "erf(x)", ("0", "1"), 1, 2, (5, 7, 9, 11), (13, 17, 21, 23)),
    Case("sin", "sin(x)", ("0", "pi/4"), 1, 2, (3, 5, 7, 9), (9, 11, 13, 15)),
    Case("atan", "atan(x)", ("0", "1"), 1, 2, (5, 7, 11, 15), (13, 17, 21, 25)),
    Case("tanh", "tanh(x)", ("0", "1/2"), 1, 2, (3, 5, 7, 9), (9, 13, 15, 17)),
)


@dataclass(frozen=True)
class Row:
    """One case: sup errors by Sollya's `supnorm`, seconds as medians."""

    function: str
    domain: tuple[str, str]
    dtype: str
    degree: int
    ours: float
    sollya: float
    ratio: float
    ours_seconds: float
    sollya_seconds: float

    def __str__(self) -> str:
        where = f"{self.function} on [{self.domain[0]}, {self.domain[1]}]"
        return (
            f"{where:40} {self.dtype} {self.degree:3}  ours {self.ours:.6e}  "
            f"fpminimax {self.sollya:.6e}  ratio {self.ratio:.6f}  "
            f"{self.ours_seconds:6.3f} s  {self.sollya_seconds:6.3f} s"
        )


def fit(case: Case, dtype: str, degree: int) -> tuple[Fraction, ...]:
    """Our coefficients, from nothing: no fit of an earlier repetition is reused."""
    for module in (polynomial, target):
        for cached in vars(module).values():
            if hasattr(cached, "cache_clear"):
                cached.cache_clear()
    function = Function(case.name, case.domain, dtype)
    powers = case.powers(degree)
    best = polynomial.minimax(function, exponents=powers).polynomial
    return round_coefficients(function, best.exponents, best.coefficients)


def run_sollya(script: str) -> list[str]:
    """The lines that Sollya prints; a script that fails raises."""
    done = subprocess.run(
        ["sollya"], input=script + "\nquit;\n", capture_output=True, text=True, timeout=600
    )
    if done.returncode or "error" in done.stdout.lower():
        raise RuntimeError(f"Sollya stopped: {done.stdout[-300:]} {done.stderr[-300:]}")
    return [line for line in done.stdout.splitlines() if not line.startswith(("Warning", "The "))]


def _preamble(case: Case) -> str:
    low, high = case.domain
    return f"prec=300!; verbosity=0!; f={case.sollya}; I=[{low};{high}];"


def fpminimax(case: Case, dtype: str, degree: int) -> tuple[float, tuple[Fraction, ...]]:
    """Seconds inside Sollya, and its coefficients."""
    powers = ",".join(map(str, case.powers(degree)))
    form = {"float32": "SG", "float64": "D"}[dtype]
    coefficients = " ".join(f"print(coeff(p,{k}));" for k in case.powers(degree))
    seconds, *printed = run_sollya(
        f"{_preamble(case)} t=time({{p=fpminimax(f,[|{powers}|],[|{form}...|],I,relative,floating);"
        f"}}); print(t); display=powers!; {coefficients}"
    )
    return float(seconds), tuple(map(_fraction, printed))


def _fraction(text: str) -> Fraction:
    mantissa, _, power = text.replace(" ", "").partition("*2^")
    return Fraction(mantissa) * Fraction(2) ** int(power.strip("()") or "0")


def sup_norms(case: Case, degree: int, *polynomials: Sequence[Fraction]) -> list[float]:
    """Relative sup errors, by Sollya's certified `supnorm`."""

    def written(coefficients: Sequence[Fraction]) -> str:
        terms = zip(case.powers(degree), coefficients, strict=True)
        return "+".join(f"({c.numerator}/{c.denominator})*x^{k}" for k, c in terms)

    lines = run_sollya(
        _preamble(case)
        + "".join(f"print(sup(supnorm({written(p)},f,I,relative,{JUDGE})));" for p in polynomials)
    )
    return list(map(float, lines))


def compare(case: Case, dtype: str, degree: int, repeat: int) -> Row:
    """Both fits, alternating, and their errors."""
    ours_seconds, sollya_seconds, found = [], [], []
    for _ in range(repeat):
        start = time.perf_counter()
        ours = fit(case, dtype, degree)
        ours_seconds.append(time.perf_counter() - start)
        seconds, theirs = fpminimax(case, dtype, degree)
        sollya_seconds.append(seconds)
        found = [ours, theirs]
    a, b = sup_norms(case, degree, *found)
    return Row(
        case.name,
        case.domain,
        dtype,
        degree,
        a,
        b,
        a / b,
        statistics.median(ours_seconds),
        statistics.median(sollya_seconds),
    )


def rows(names: Sequence[str], repeat: int) -> Iterator[Row]:
    """All cases of the functions named (all functions if none is)."""
    for case in CASES:
        if names and case.name not in names:
            continue
        for dtype, degrees in (("float32", case.single), ("float64", case.double)):
            for degree in degrees:
                yield compare(case, dtype, degree, repeat)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", help="functions, as written in CASES")
    parser.add_argument("--repeat", type=int, default=3, help="times each fit is timed")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    options = parser.parse_args()
    if shutil.which("sollya") is None:
        print("not run: Sollya is not installed (Debian: apt install sollya)")
        return
    found = []
    for row in rows(options.names, options.repeat):
        print(row, flush=True)
        found.append(row)
    worse = [row for row in found if row.ratio > 1 + 2**-36]  # the judge's own uncertainty
    print(f"{len(found)} cases, worse than fpminimax in {len(worse)}")
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in found], indent=1) + "\n")


if __name__ == "__main__":
    main()
