"""What a search hands over: its frontier with proofs, a picture, code, and the answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nearly.core.errors import InputError, NotProven, NotWithin, StoreError
from nearly.core.frontier import Frontier
from nearly.core.problem import Host
from nearly.core.progress import Progress
from nearly.core.run import Certificate, Run
from nearly.core.store import environment
from nearly.functions import record
from nearly.functions.certify import certify
from nearly.functions.discovery.certificate import Found, costs_of
from nearly.functions.discovery.evolve import Discovery
from nearly.functions.discovery.speed import (
    Kernel,
    fastest_within,
    form_here,
    in_format,
    kernels,
    suited,
)
from nearly.functions.emit import emit
from nearly.functions.function import Function
from nearly.functions.program import Program
from nearly.functions.rounding import round_program
from nearly.functions.statement import ErrorStatement

SUFFIXES = {"c": ".c", "numpy": ".py", "jax": "_jax.py"}
CODE = "float64"  # the format of code for programs over the reals
TIMED = "float32"  # the format of --measured


@dataclass(frozen=True)
class Delivery:
    """A finished search as the command hands it over.

    **Arguments:**

    - `discovery`, `command`: what was found, by which command line.
    - `kernels`: the timed programs, fastest first, where times were asked for.
    - `picked`: the kernel that a machine format asked for, with its certificate.
    - `refusal`: why there is none.
    """

    discovery: Discovery
    command: str
    kernels: tuple[Kernel, ...] = ()
    picked: tuple[Kernel, Certificate] | None = None
    refusal: NotWithin | None = None

    @staticmethod
    def of(
        discovery: Discovery,
        command: str,
        dtype: str | None,
        ulp: float,
        measured: bool,
        progress: Progress,
    ) -> Delivery:
        """Time and round what was found, if a machine format or times were asked for."""
        base = Delivery(discovery, command)
        function, found = discovery.search.function, discovery.candidates
        if measured:
            target = in_format(function, TIMED)
            return replace(base, kernels=tuple(kernels(target, found, form_here(), progress)))
        if dtype is None:
            return base
        target = in_format(function, dtype)
        archives = [island.archive for island in discovery.state.states]
        found = suited(target, function, archives, discovery.search.most, ulp, progress)
        try:
            return replace(base, picked=fastest_within(target, found, ulp, form_here(), progress))
        except NotWithin as refusal:
            return replace(base, refusal=refusal)

    @property
    def function(self) -> Function:
        return self.discovery.search.function

    def frontier(self) -> Frontier:
        """The proven programs as a frontier of runs; with times, in seconds of float32 code."""
        search = self.discovery.search
        timed = {id(kernel.found): kernel for kernel in self.kernels}
        shown = self.discovery.candidates if self.kernels else self.discovery.frontier
        runs = tuple(self._run(found, timed.get(id(found))) for found in shown)
        unit = "seconds" if self.kernels else search.objective
        return Frontier(
            self.function.name,
            f"{self.function.error} error",
            search.objective,
            runs,
            unit,
            asked=bool(self.kernels),
            settings={
                "function": self.function.name,
                "domain": list(self.function.domain),
                "error": self.function.error,
                "seed": search.seed,
                "islands": search.islands,
                "rounds": self.discovery.rounds,
            },
            environment={**environment(), "command": self.command},
        )

    def _run(self, found: Found, kernel: Kernel | None) -> Run:
        proof, error_name = found.proof, f"{self.function.error} error"
        costs = {**costs_of(found.program), "ops": found.program.cost.ops}
        return Run(
            "evolve",
            found.program.cost.ops,
            error=found.bound,
            errors={error_name: found.bound},
            work={name: float(value) for name, value in costs.items()},
            seconds=kernel.timing.median if kernel else None,
            seconds_iqr=kernel.timing.quartiles if kernel else None,
            note=f"{kernel.error:.3g} ulp in {TIMED}" if kernel else "",
            make=lambda: Host(found.program),
            certificate=Certificate(
                "PROVEN", found.bound, f"by ball arithmetic on {proof.pieces} pieces"
            ),
        )

    def programs(self) -> list[dict[str, Any]]:
        """The frontier's programs in the form of the records (docs/formats.md)."""
        return [self._record(found).to_json() for found in self.discovery.frontier]

    def _record(self, found: Found) -> record.Record:
        function = self.function
        try:
            program, bound = record.in_decimals(function, found.program, found.bound)
        except InputError:
            program, bound = found.program, found.bound
        return record.Record(
            function.name, function.domain, function.error, bound, program, self.how
        )

    @property
    def how(self) -> str:
        """How the programs were found, in one line."""
        search = self.discovery.search
        macros = " with macros" if search.mutation.macros else ""
        return f"evolve{macros}, seed {search.seed}, {self.discovery.rounds} rounds"

    def write(self, folder: Path, progress: Progress) -> None:
        """Write frontier (JSON, picture, page), programs and code into a folder."""
        frontier = self.frontier()
        frontier.save(folder / "frontier.json")
        frontier.plot(folder / "frontier.png")
        frontier.html(folder / "frontier.html")
        _write(folder / "programs.json", json.dumps(self.programs(), indent=1) + "\n")
        if self.picked is not None:
            self._emit(folder, "picked", self.picked[0].program, self.picked[1], "ulp")
            return
        function = replace(self.function, dtype=CODE)
        front = self.discovery.frontier
        for i, found in enumerate(front):
            progress(i, len(front), "writing code")
            try:
                program = round_program(function, found.program)
                known = certify(function, program, "numpy", float("inf"), progress)
            except (InputError, NotProven):
                continue  # a constant that the format cannot hold
            unit = f"{function.error} error"
            self._emit(folder, f"ops{found.program.cost.ops}", program, known, unit)

    def _emit(
        self, folder: Path, name: str, program: Program, known: Certificate, unit: str
    ) -> None:
        header = ErrorStatement(
            known.label,
            self.function.name,
            f"every {program.dtype} from {' to '.join(self.function.domain)}",
            f"{known.error:.6g} {unit}",
            self.command,
            tuple(known.details.get("flags", ())),
            (f"known by: {known.text}", f"method:  {self.how}"),
        )
        for form, suffix in SUFFIXES.items():
            code = emit(program, form, name=f"nearly_{name}", header=header)
            _write(folder / f"{name}{suffix}", code)

    def keep(self) -> list[int]:
        """Keep what beats the records; the counts of operations at which something did."""
        function = self.function
        return [
            found.program.cost.ops
            for found in self.discovery.frontier
            if record.keep(
                function.name, function.domain, function.error, found.program, found.bound, self.how
            )
        ]

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain data."""
        found: dict[str, Any] = {
            "frontier": self.frontier().to_json(),
            "programs": self.programs(),
            "rounds": self.discovery.rounds,
            "counts": self.discovery.counts,
            "seconds": self.discovery.seconds,
        }
        if self.picked is not None:
            kernel, certificate = self.picked
            found["picked"] = {
                "program": kernel.program.to_json(),
                "ulp": certificate.error,
                "label": certificate.label,
                "seconds": kernel.timing.median,
            }
        return found

    def lines(self, kept: Sequence[int], folder: Path | None) -> list[str]:
        """What is printed: the answer first."""
        search, rounds = self.discovery.search, self.discovery.rounds
        lines = [self._headline()]
        for found in self.discovery.frontier:
            cost = costs_of(found.program)
            lines.append(
                f"{cost['operations']:4d} operations, depth {cost['depth']:2d}, weighted "
                f"{cost['weighted']:3d}: {self.function.error} error <= {found.bound:.4g} PROVEN"
            )
        for kernel in self.kernels:
            lines.append(
                f"{kernel.timing.median * 1e9:8.3g} ns: {kernel.program.cost.ops} operations, "
                f"{kernel.error:.3g} ulp in {TIMED}"
            )
        counts, seconds = self.discovery.counts, self.discovery.seconds
        speed = f", {counts['children'] / seconds:,.0f} a second" if seconds else ""
        lines.append(
            f"{counts['children']:,} children, {counts['fits']:,} new structures fitted, "
            f"{counts['refits']:,} fitted again{speed}"
        )
        lines.append(
            f"the same again: --rounds {rounds} --seed {search.seed} --islands {search.islands}"
        )
        if kept:
            lines.append(f"new records at {', '.join(map(str, kept))} operations")
        if folder is not None:
            lines.append(f"wrote {folder}")
        return lines

    def _headline(self) -> str:
        if self.picked is not None:
            kernel, certificate = self.picked
            return (
                f"{kernel.program.dtype}: {kernel.program.cost.ops} operations, "
                f"{certificate.error:.4g} ulp {certificate.label} ({certificate.text}), "
                f"{kernel.timing.median * 1e9:.3g} ns an element"
            )
        if not self.discovery.frontier:
            return f"{self.function}: nothing was found that can be proven"
        best = self.discovery.frontier[-1]
        return (
            f"{self.function}: {self.function.error} error <= {best.bound:.4g} PROVEN with "
            f"{best.program.cost.ops} operations"
        )

    def answer(self) -> None:
        """Raise `NotWithin` where what was asked for was not found."""
        if self.refusal is not None:
            raise self.refusal
        if not self.discovery.frontier:
            raise NotWithin(
                f"nothing was found for {self.function} that can be proven; allow more --ops or "
                "--minutes"
            )


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}") from error
