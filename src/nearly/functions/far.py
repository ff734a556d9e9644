"""Truth in float64 far out, where a function oscillates too fast for a table of pieces.

From libraries, which are not believed: `reference` checks them against ball arithmetic first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

DOUBT = 2.0**-48  # relative to the terms that are added

Terms = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Far:
    """A function far out.

    **Arguments:**

    - `terms`: x -> two terms, float64, whose sum is the function.
    - `start`: for |x| >= start, a power of two,
    - `left_only`: but x < 0 alone.
    """

    terms: Terms
    start: float
    left_only: bool

    def reaches(self, x: np.ndarray) -> np.ndarray:
        """Where it stands for the truth."""
        size = np.abs(x)
        beyond = (size >= self.start) & (size < np.inf)
        return beyond & (x < 0) if self.left_only else beyond

    def __call__(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Truth and its uncertainty."""
        with np.errstate(divide="ignore", invalid="ignore"):
            first, second = self.terms(x)
            truth = first + second
            doubt = DOUBT * (np.abs(first) + np.abs(second))
        return truth, np.where(np.isfinite(doubt), doubt, 0.0)


def _alone(function: Callable[[np.ndarray], np.ndarray]) -> Far:
    return Far(lambda x: (function(x), np.zeros_like(x)), 64.0, left_only=False)


def _fraction(x: np.ndarray) -> np.ndarray:
    """x less the nearest integer: exact."""
    return x - np.rint(x)


def _lgamma(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The reflection formula: log(pi / |sin(pi x)|) - lgamma(1 - x)."""
    from scipy.special import gammaln

    return np.log(np.pi / np.abs(np.sin(np.pi * _fraction(x)))), -gammaln(1 - x)


def _digamma(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The reflection formula: digamma(1 - x) - pi / tan(pi x); NaN at the poles."""
    from scipy.special import digamma

    part = _fraction(x)
    return digamma(1 - x), np.where(part == 0, np.nan, -np.pi / np.tan(np.pi * part))


FUNCTIONS: Mapping[str, Far] = {
    "sin": _alone(np.sin),
    "cos": _alone(np.cos),
    "tan": _alone(np.tan),
    "lgamma": Far(_lgamma, 16.0, left_only=True),
    "digamma": Far(_digamma, 16.0, left_only=True),
}
