"""The room's problem: approximate a scalar function on a domain, in a format, in an error."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

from nearly.core import catalogue
from nearly.core.errors import InputError, NotProven, UnknownName
from nearly.core.problem import Host, Problem
from nearly.core.progress import Progress, silent
from nearly.core.run import Certificate
from nearly.functions import DOMAINS
from nearly.functions.emit import FORMS
from nearly.functions.function import Function
from nearly.functions.program import Program
from nearly.functions.reduction import Reduction, reduction
from nearly.functions.user import Compiled, as_program

ERROR_NAMES = {"relative": "relative error", "absolute": "absolute error", "ulp": "ulp"}
Standin = Program | Compiled


class Approximation(Problem):
    """Approximate a scalar function by a `Program`.

    **Arguments:**

    - `function`: a known name, an expression in `x`, or `file.py:attribute` of a callable.
    - `domain`: its two ends, as expressions; by default the function's standard reduced domain
      over the reals, and every number of the format in a machine format.
    - `dtype`: `real`, `float64`, `float32`, `bfloat16` or `float16`.
    - `error`: `relative`, `absolute` or `ulp`; by default relative over the reals, ulp otherwise.
    - `norm`: `sup` or `l2`.
    - `to`: the emitted form whose seconds are measured in a machine format: `c`, `numpy`, `jax`
      (the default) or `stablehlo`. Programs over the reals have no seconds.

    The stand-in is a `Program`; work is counted in operations that depend on x.
    """

    function: str
    domain: tuple[str, str] | None = None
    dtype: str = "real"
    error: str = ""
    norm: str = "sup"
    to: str = ""

    work_name: ClassVar[str] = "ops"
    protocol: ClassVar[str] = "functions"

    def __check_init__(self) -> None:
        if self.to and self.to not in FORMS:
            raise UnknownName("form", self.to, FORMS)
        if self.to and self.dtype == "real":
            raise InputError(
                f"--to {self.to} needs a machine format: a bound over the real numbers leaves "
                "rounding out; give --dtype float64 (or float32, bfloat16, float16)"
            )
        self.target  # noqa: B018  (a malformed function is refused here, not in the sweep)

    @property
    def target(self) -> Function:
        """What builders are asked for, on the whole domain."""
        real = self.dtype == "real"
        low, high = self.domain or (
            DOMAINS.get(self.function, ("0", "1")) if real else ("-inf", "inf")
        )
        error = self.error or ("relative" if real else "ulp")
        return Function(self.function, (low, high), self.dtype, error, self.norm)

    @property
    def form(self) -> str:
        """The emitted form that is timed and checked."""
        return self.to or "jax"

    @property
    def name(self) -> str:
        return self.function

    @property
    def error_name(self) -> str:
        return ERROR_NAMES[self.target.error]

    def unit(self) -> str:
        return "ops" if self.dtype == "real" else "seconds"

    def tolerance(self, text: str | float) -> float:
        """A number, or one of ULP as in `1ulp`."""
        number = str(text).strip().lower()
        if number.endswith("ulp"):
            if self.target.error != "ulp":
                raise InputError(
                    f"tolerance {text!r} is in ULP, but the error asked for is "
                    f"{self.error_name}: give --dtype float32 (or another format) and --error ulp"
                )
            number = number.removesuffix("ulp")
        return super().tolerance(number)

    def random(self, method: Any) -> bool:
        return False

    def dials(self, method: Any) -> Sequence[Any]:
        """The builder's own dials; for a function of several cores one for each, as `"8+6"`.

        The cores' lists are aligned at their ends, where each core is as good as its format shows.
        """
        if not is_builder(method) or not self._cores:
            return ("as given",)
        listed = getattr(method, "dials", _degrees)
        lists = [list(listed(core)) for core in self._cores]
        if len(lists) == 1 or not all(lists):
            return lists[0] if len(lists) == 1 else ()
        longest = max(map(len, lists))
        aligned = [[each[0]] * (longest - len(each)) + each for each in lists]
        return ["+".join(map(str, together)) for together in zip(*aligned, strict=True)]

    @property
    def _cores(self) -> tuple[Function, ...]:
        """What builders are asked for; nothing where the instructions compute the function."""
        reduced = self._reduction
        return reduced.cores if reduced else (self._unreduced,)

    @property
    def _reduction(self) -> Reduction | None:
        return reduction(self.target)

    @property
    def _unreduced(self) -> Function:
        """The function itself as what builders approximate; its domain has to be finite."""
        function = self.target
        if any(math.isinf(float(end)) for end in function.ends):
            raise InputError(
                f"no range reduction is known for {function.name} over "
                f"{' to '.join(function.domain)}: give a finite --domain"
            )
        return function

    def build(self, method: Any, dial: Any, *, key: Any) -> Host:
        return Host(self.program(method, dial))

    def program(self, method: Any, dial: Any) -> Standin:
        """The program a builder makes at a dial: around its cores, where the range is reduced."""
        if not is_builder(method):
            return as_program(method, self.target)
        cores, reduced = self._cores, self._reduction
        programs = [method(c, d) for c, d in zip(cores, _parts(dial, len(cores)), strict=True)]
        return reduced.wrap(*programs) if reduced else programs[0]

    def apply(self, standin: Any, *, key: Any) -> Any:
        """The program itself: its error is a property of all its values, found in `errors`."""
        return standin.function

    def errors(self, value: Standin) -> Mapping[str, float]:
        from nearly.functions.verify import measure

        found = measure(self.target, value)
        errors = {self.error_name: found.error, "root mean square": found.l2, "at": found.at}
        proper = isinstance(value, Program) and self.dtype == "real" and self.norm == "sup"
        if proper and math.isfinite(found.error):
            errors["proven"] = self._proven(value)
        return errors

    def _proven(self, program: Any) -> float:
        from nearly.functions.proof import prove

        try:
            return prove(self.target, program).total
        except NotProven:
            return math.nan

    def work(self, standin: Any) -> Mapping[str, float]:
        program = standin.function
        if not isinstance(program, Program):
            return {}  # what a compiled library computes is not known
        return {name: float(count) for name, count in program.cost._asdict().items()}

    def seconds(self, use: Callable[[], Any], standin: Any) -> Sequence[float]:
        """Seconds per element of the emitted form; none over the reals."""
        from nearly.functions.timing import seconds_per_element

        if self.dtype == "real" or not isinstance(standin.function, Program):
            return ()
        return seconds_per_element(standin.function, self.form).samples

    def certify(
        self, standin: Any, tolerance: float, progress: Progress = silent
    ) -> Certificate | None:
        from nearly.functions.certify import certify

        return certify(self.target, standin.function, self.form, tolerance, progress)


def is_builder(method: Any) -> bool:
    """Whether a method is `(function, dial) -> Program`, and not itself an approximation."""
    if hasattr(method, "dials"):
        return True
    if not callable(method) or isinstance(method, (Program, Compiled)):
        return False
    try:
        parameters = inspect.signature(method).parameters.values()
    except (TypeError, ValueError):  # NumPy's own functions tell nothing
        return False
    required = [p for p in parameters if p.default is p.empty and p.kind == p.POSITIONAL_OR_KEYWORD]
    return len(required) == 2


def _degrees(function: Function) -> Sequence[int]:
    """What a builder that lists no dials of its own is tried at."""
    return range(1, 13)


def _parts(dial: Any, cores: int) -> Sequence[Any]:
    """One dial for each core: `"8+6"`, or the same for all."""
    parts = str(dial).split("+")
    if len(parts) not in (1, cores) and cores:
        raise InputError(f"dial {dial!r} has {len(parts)} parts, the function {cores} cores")
    whole = [int(part) if part.isdigit() else part for part in parts]
    return whole * cores if len(parts) == 1 else whole


def resolve(text: str) -> Callable[..., Approximation] | None:
    """The problem that an expression in x, or a callable of the user's, asks for.

    None for a word that names nothing; a malformed expression raises `InputError`.
    """
    if not catalogue.is_file_reference(text):
        from nearly.functions.expressions import parse

        try:
            parse(text)
        except UnknownName:
            if text.isidentifier():
                return None
            raise
    return partial(Approximation, text)
