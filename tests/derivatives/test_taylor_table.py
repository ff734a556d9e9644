"""The ninety-six functions: those that mpmath has, and all of them to order eight."""

from __future__ import annotations

import pytest
from taylor_truth import TOLERANCE, deviation

from nearly.derivatives.problems.function_table import CASES

BY_MPMATH = [name for name, case in CASES.items() if case.exact is not None]


def test_there_are_ninety_six() -> None:
    assert len(CASES) == 96


@pytest.mark.parametrize("name", BY_MPMATH)
def test_entrywise_functions_have_the_derivatives_that_mpmath_says(name: str) -> None:
    assert deviation(name, 4) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_up_to_order_eight(name: str) -> None:
    assert deviation(name, 8) < TOLERANCE
