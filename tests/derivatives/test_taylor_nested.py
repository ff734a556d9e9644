"""The functions of the table that mpmath lacks, against nested `jax.jvp`.

But linear algebra: there the defining equations are a better truth (test_taylor_linear_algebra).
Attention is among the slow tests alone: its nested derivatives are the dearest of all.
"""

from __future__ import annotations

import pytest
from taylor_truth import TOLERANCE, deviation

from nearly.derivatives.problems.function_table import CASES, LINEAR_ALGEBRA

LACKING = [name for name, case in CASES.items() if case.exact is None]
BY_NESTING = [name for name in LACKING if name not in {*LINEAR_ALGEBRA, "equinox_attention"}]


@pytest.mark.parametrize("name", BY_NESTING)
def test_they_have_the_derivatives_of_nested_jvp(name: str) -> None:
    assert deviation(name, 2) < TOLERANCE
