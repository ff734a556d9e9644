"""`Problem`: something expensive, with a truth to measure stand-ins against."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import equinox as eqx

from nearly.core import catalogue
from nearly.core.errors import InputError
from nearly.core.progress import Progress, silent
from nearly.core.run import Certificate


@dataclass(frozen=True)
class Host:
    """A stand-in that cannot be traced (SciPy, torch, a NumPy program): timed, not compiled."""

    function: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


@dataclass(frozen=True)
class Tuned:
    """A method whose settings are chosen on the problem, every method getting equal trials.

    **Arguments:**

    - `factory`: keyword arguments -> a method of the problem's protocol.
    - `grid`: argument -> values in increasing order. All combinations are tried with keys that no
      measured run uses; their seconds and work are billed as set-up. The run says what was
      chosen, and whether it lies at an edge of the grid (then the grid is too small).
    """

    factory: Callable[..., Any]
    grid: Mapping[str, Sequence[Any]]

    def __post_init__(self) -> None:
        if not self.grid or not all(self.grid.values()):
            raise InputError("Tuned needs at least one value for every argument of its grid")


class Problem(eqx.Module):
    """Something expensive, and how a stand-in for it is built, used and judged.

    Fields are settings and data: arrays enter the compiled program as inputs, never as constants.
    A subclass says its `name`, `error_name`, `work_name`, `protocol` and `dtype` (as fields,
    class variables or properties) and defines `dials`, `build`, `apply` and `errors`.
    """

    name: eqx.AbstractVar[str]
    error_name: eqx.AbstractVar[str]
    work_name: eqx.AbstractVar[str]
    protocol: eqx.AbstractVar[str]
    dtype: eqx.AbstractVar[str]

    def methods(self) -> Mapping[str, catalogue.Method]:
        """The methods that can be handed this problem: by default its protocol's catalogue."""
        return catalogue.methods(self.protocol)

    def dials(self, method: Any) -> Sequence[Any]:
        """The settings at which a method runs, cheap to dear: numbers or strings."""
        raise NotImplementedError(f"{type(self).__name__} must define dials")

    def build(self, method: Any, dial: Any, *, key: Any) -> Any:
        """ONCE: train, fit, factorise, set the tolerance. The stand-in, in its own protocol."""
        raise NotImplementedError(f"{type(self).__name__} must define build")

    def apply(self, standin: Any, *, key: Any) -> Any:
        """EACH USE: pure; compiled once by the core, the dial an array leaf where it can be."""
        raise NotImplementedError(f"{type(self).__name__} must define apply")

    def errors(self, value: Any) -> Mapping[str, float]:
        """How wrong a value is, on the host in float64 or better; the first is `error_name`."""
        raise NotImplementedError(f"{type(self).__name__} must define errors")

    def trouble(self, value: Any) -> str:
        """Why a value's error is not finite, in a few words; "" to say no more than what it is."""
        return ""

    def floor(self) -> float:
        """The smallest error this problem can tell from zero."""
        return 0.0

    def tolerance(self, text: str | float) -> float:
        """A tolerance as the user writes it; raises `InputError` if it is not positive."""
        try:
            value = float(text)
        except ValueError:
            raise InputError(f"tolerance {text!r} is not a number such as 1e-9") from None
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"tolerance {text!r} must be positive and finite, such as 1e-9")
        return value

    def rival(self) -> str:
        """The method every other has to pay off against, at equal error; "" for none in particular.

        Then the table shows set-up, and for each run the uses after which it is cheaper than the
        rival's cheapest run that is at least as accurate.
        """
        return ""

    def spent(self, method: Any, dial: Any) -> float:
        """Seconds of set-up that `build` does not spend again: for data that were kept, say."""
        return 0.0

    def random(self, method: Any) -> bool:
        """Whether a method's result depends on its key; if so it runs over all seeds."""
        return True

    def trials(self, methods: Sequence[Any], dial: Any, *, key: Any) -> Sequence[float] | None:
        """The errors of the settings that tuning tries, where they can run together.

        None (the default) has them built and used one after the other.
        """
        return None

    def work(self, standin: Any) -> Mapping[str, float]:
        """Work per use that is read off the stand-in, beside what the tally counts.

        A unit the method reports itself (not this problem) ends in an asterisk.
        """
        return {}

    def unit(self) -> str:
        """What "cheapest" means here unless the user says otherwise: `work_name` or seconds."""
        return self.work_name

    def seconds(self, use: Callable[[], Any], standin: Any) -> Sequence[float]:
        """Samples of the seconds of one use; empty where seconds mean nothing."""
        from nearly.core.measure import stopwatch

        return stopwatch(use)

    def certify(
        self, standin: Any, tolerance: float, progress: Progress = silent
    ) -> Certificate | None:
        """What can be proven, or exhaustively checked, of a picked stand-in; None: nothing."""
        return None
