"""Make or extend the records that ship: the best proven program for each count of operations.

    python scripts/records.py                     every function: textbook forms and compositions
    python scripts/records.py exp2 sin            these functions only
    python scripts/records.py --programs FILE     and programs found elsewhere, refitted: a list of
                                                  entries as in the records, bounds not needed
    python scripts/records.py --minutes 10        and a search of so many minutes for each
    python scripts/records.py --shifts            and, for counts that have no record of their own,
                                                  that of one operation less with a constant added
                                                  on one of its edges

Nothing is ever lost: a program is kept only where it beats what is on file. Minutes without a
search, most of them proofs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from nearly.core.errors import InputError, NotProven
from nearly.functions.builders import shortened
from nearly.functions.classical import forms
from nearly.functions.composition import doubling
from nearly.functions.discovery.minimax import minimax
from nearly.functions.function import Function
from nearly.functions.program import Program
from nearly.functions.proof import prove
from nearly.functions.record import SHIPPED, keep, load

RELATIVE = {
    "exp2": [("0", "1")],
    "exp": [("0", "log(2)")],
    "log2": [("1", "2")],
    "erf": [("0", "1"), ("1", "5")],
    "tanh": [("0", "1")],
    "sin": [("0", "pi/2")],
    "cos": [("0", "pi/4")],
    "tan": [("0", "pi/4")],
    "atan": [("0", "1")],
    "sigmoid": [("0", "4")],
}
ABSOLUTE = {"gelu": [("-4", "4")], "lgamma": [("1", "2")], "bessel_j0": [("0", "5")]}
COUNTS = range(3, 15)


class Candidate(NamedTuple):
    program: Program
    how: str


def targets() -> Iterator[Function]:
    for error, group in (("relative", RELATIVE), ("absolute", ABSOLUTE)):
        for name, domains in group.items():
            for domain in domains:
                yield Function(name, domain, error=error)


def textbook(function: Function) -> Iterator[Candidate]:
    """The best textbook form of each count."""
    for ops in COUNTS:
        exactly = [form for form in forms(function, ops) if form.ops == ops]
        for form in sorted(exactly, key=lambda form: form.error)[:1]:
            program = shortened(function, form.program)
            yield Candidate(program, f"classical: {form.form} of type {form.type}")


def compositions(function: Function) -> Iterator[Candidate]:
    for dial in doubling.dials(function):
        program = doubling(function, dial)
        if program.cost.ops in COUNTS:
            yield Candidate(program, f"composition: doubling family, {dial}")


def programs(function: Function, path: Path) -> Iterator[Candidate]:
    """Programs from a file, their constants fitted anew."""
    for entry in json.loads(path.read_text()):
        same = (entry["function"], tuple(entry["domain"]), entry["error"])
        if same != (function.name, function.domain, function.error):
            continue
        try:
            fitted = minimax(Program.from_json(entry), function).program
        except (InputError, NotProven) as error:
            print(f"  {entry['instructions']}: {error}")
            continue
        yield Candidate(fitted, entry["how"])


def searched(function: Function, minutes: float) -> Iterator[Candidate]:
    from nearly.functions.discovery.evolve import evolve
    from nearly.functions.discovery.islands import Search

    search = Search(function, most=max(COUNTS))
    found = evolve(search, minutes=minutes)
    for candidate in found.candidates:
        how = f"search: evolve, seed {search.seed}, {found.rounds} rounds"
        yield Candidate(candidate.program, how)


def shifted(function: Function) -> Iterator[Candidate]:
    """The best of the records with one operation more, a constant added, where counts are free."""
    for ops in COUNTS[:-1]:
        records = {r.ops: r for r in load(function.name) if r.target == function}
        if ops in records and ops + 1 not in records:
            found = [minimax(program, function) for program in with_shifts(records[ops].program)]
            best = min(found, key=lambda fitted: fitted.error)
            yield Candidate(best.program, f"{records[ops].how}, shifted")


def with_shifts(program: Program) -> Iterator[Program]:
    """The program with a small constant added to one operand of one instruction, each in turn."""
    for i, (_, *operands) in enumerate(program.instructions):
        for slot, operand in enumerate(operands):
            if operand in program.depends:
                for start in (Fraction(1, 100), Fraction(-1, 100)):
                    yield _with_shift(program, i, slot, start)


def _with_shift(program: Program, at: int, slot: int, start: Fraction) -> Program:
    def moved(name: str) -> str:
        later = name.startswith("t") and int(name[1:]) >= at
        return f"t{int(name[1:]) + 1}" if later else name

    operation, *operands = program.instructions[at]
    shift = ("add", operands[slot], "shift")
    operands[slot] = f"t{at}"
    after = ((o, *map(moved, names)) for o, *names in program.instructions[at + 1 :])
    before = program.instructions[:at]
    return Program(
        (*before, shift, (operation, *operands), *after), {**program.constants, "shift": start}
    )


def extend(function: Function, candidates: Iterator[Candidate]) -> None:
    path = SHIPPED / f"{function.name}.json"
    for program, how in candidates:
        try:
            bound = prove(function, program).total
            kept = keep(function.name, function.domain, function.error, program, bound, how, path)
        except (InputError, NotProven) as error:
            print(f"  {how}: {error}")
            continue
        if kept:
            print(f"  {program.cost.ops:2d} operations  {bound:.4e}  {how}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("functions", nargs="*", help="names; by default all")
    parser.add_argument("--programs", type=Path, help="a file of programs to refit")
    parser.add_argument("--shifts", action="store_true", help="fill counts by shifted records")
    parser.add_argument("--minutes", type=float, default=0.0, help="of search for each function")
    arguments = parser.parse_args()
    for function in targets():
        if arguments.functions and function.name not in arguments.functions:
            continue
        print(function, flush=True)
        extend(function, textbook(function))
        extend(function, compositions(function))
        if arguments.programs:
            extend(function, programs(function, arguments.programs))
        if arguments.minutes:
            extend(function, searched(function, arguments.minutes))
        if arguments.shifts:
            extend(function, shifted(function))
        counts = sorted({r.ops for r in load(function.name) if r.target == function})
        print(f"  records of {counts} operations")


if __name__ == "__main__":
    main()
