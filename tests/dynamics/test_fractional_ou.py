"""The fractional Ornstein-Uhlenbeck problem: its truth is the solution, on the same paths."""

from __future__ import annotations

import diffrax as dfx
import numpy as np
import pytest

from nearly.core.errors import InputError
from nearly.dynamics.problems.fractional_ou import fractional_ou


@pytest.mark.slow
def test_solutions_converge_to_the_truth() -> None:
    """Heun's method has strong order 1 where the noise is additive."""
    problem = fractional_ou(size=2, paths=20, cells=512)
    errors = [problem.errors(problem.solution(dfx.Heun(), n))["strong"] for n in (64, 256)]
    assert np.log2(errors[0] / errors[1]) / 2 == pytest.approx(1.0, abs=0.25)


def test_mistakes_name_value_and_remedy() -> None:
    with pytest.raises(InputError, match=r"hurst=1.2 must lie"):
        fractional_ou(1.2)
    with pytest.raises(InputError, match="size=0"):
        fractional_ou(size=0)
