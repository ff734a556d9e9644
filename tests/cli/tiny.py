"""Problems and methods so small that a whole command line takes milliseconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from nearly.core.errors import MissingDependency
from nearly.core.problem import Host, Problem
from nearly.core.run import Certificate


class Root(Problem):
    """The square root of 2 by iteration; the dial is the number of steps."""

    domain: tuple[str, str] = ("0", "1")
    start: float = 1.0
    steps: int = 4
    careful: bool = False
    dtype: str = "float32"
    to: str = "numpy"
    name: ClassVar[str] = "root"
    error_name: ClassVar[str] = "absolute error"
    work_name: ClassVar[str] = "steps"
    protocol: ClassVar[str] = "tiny"

    def dials(self, method: Any) -> Sequence[int]:
        return tuple(range(1, self.steps + 1))

    def random(self, method: Any) -> bool:
        return False

    def build(self, method: Any, dial: Any, *, key: Any) -> Any:
        return Host(lambda: method(self.start, dial)), dial, method

    def apply(self, standin: Any, *, key: Any) -> Any:
        return standin[0]()

    def errors(self, value: Any) -> Mapping[str, float]:
        return {"absolute error": abs(value - 2**0.5)}

    def work(self, standin: Any) -> Mapping[str, float]:
        return {} if standin[2] is exact else {"steps": standin[1]}

    def floor(self) -> float:
        return 1e-15

    def seconds(self, use: Any, standin: Any) -> Sequence[float]:
        return [1e-6 * standin[1], 2e-6 * standin[1], 3e-6 * standin[1]]

    def certify(self, standin: Any, tolerance: float) -> Certificate:
        error = self.errors(standin[0]())["absolute error"]
        return Certificate("PROVEN", 1.5 * error + 1e-15, "by hand, worst at x = 2")


def newton(x: float, steps: int) -> float:
    for _ in range(steps):
        x = (x + 2 / x) / 2
    return x


def bisection(x: float, steps: int) -> float:
    low, high = 1.0, 2.0
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if middle**2 < 2 else (low, middle)
    return (low + high) / 2


def exact(x: float, steps: int) -> float:
    return 2**0.5


def nan(x: float, steps: int) -> float:
    return float("nan")


def broken(x: float, steps: int) -> float:
    raise RuntimeError("this method [always] fails")


def absent(x: float, steps: int) -> float:
    raise MissingDependency("needs a [package] nobody has")


finished = Root(steps=2)
number = 7


def export(problem: Any, run: Any, *, form: str, name: str, command: str) -> str:
    made = f"{name} = {run.method!r}, {problem.to!r}, {form!r}"
    return f"# {command}\n# {run.certificate.label}\n{made}"


def greet(whom: str) -> None:
    print(f"hello {whom}")
