"""Timing: orders that no noise can turn round, refusals, and the interval's ranks."""

from __future__ import annotations

from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest
from test_emit import needs_compiler

from nearly.core.errors import InputError, UnknownName
from nearly.functions.program import Builder, Program
from nearly.functions.timing import (
    _ranks_outside,
    compare_c,
    compare_jax,
    ratio,
    seconds_per_element,
)


def horner(degree: int, dtype: str = "float32") -> Program:
    b = Builder(dtype)
    y = b.constant(Fraction(1, degree + 1))
    for k in range(degree, 0, -1):
        y = b.fma(y, b.x, Fraction(1, k))
    return b.program(y)


def roots(count: int) -> Program:
    """A chain of divisions: slow on every machine, whatever else it does."""
    b = Builder("float64")
    y = b.x
    for _ in range(count):
        y = 1 / (y + 1)
    return b.program(y)


@needs_compiler
def test_dearer_programs_take_longer_in_c() -> None:
    cheap, dear = (
        seconds_per_element(horner(4, "float64"), "c"),
        seconds_per_element(roots(40), "c"),
    )
    assert 0 <= cheap.median < dear.median < 1e-6
    low, high = dear.quartiles
    assert low <= dear.median <= high
    assert min(dear.samples) <= low


def test_dearer_programs_take_longer_in_jax() -> None:
    cheap = seconds_per_element(horner(4, "float64"), "jax")
    dear = seconds_per_element(roots(40), "jax")
    assert 0 <= cheap.median < dear.median < 1e-6


def test_numpy_is_timed_too() -> None:
    points = np.linspace(0, 1, 100)
    timing = seconds_per_element(horner(4), "numpy", points)
    assert 1e-10 < timing.median < 1e-4


def test_two_jax_functions_of_anybody() -> None:
    x = np.linspace(0.5, 1, 100)
    found = compare_jax(lambda x: jnp.sin(x) / (1 + jnp.cos(x)), jnp.sqrt, x, pairs=11)
    assert 1 < found.ratio.low <= found.ratio.median <= found.ratio.high
    assert found.first.median > found.second.median > 0
    with pytest.raises(InputError, match="use 6"):
        compare_jax(jnp.sin, jnp.cos, x, pairs=3)


@needs_compiler
def test_two_c_functions_of_anybody() -> None:
    include = "#include <stddef.h>\n#include <math.h>\n"
    loop = "void kernel_array(const float *x, float *y, size_t n)"
    dear = f"{include}{loop} {{ for (size_t i = 0; i < n; ++i) y[i] = tanf(sinf(x[i])); }}"
    cheap = f"{include}{loop} {{ for (size_t i = 0; i < n; ++i) y[i] = x[i] * x[i]; }}"
    found = compare_c(dear, cheap, np.linspace(0.5, 1, 100), pairs=7)
    assert found.ratio.low > 1
    assert found.first.median > found.second.median > 0


@needs_compiler
def test_ratio_of_a_pair() -> None:
    pair = ratio(roots(40), roots(4), "c", pairs=11)
    assert pair.low <= pair.median <= pair.high
    assert pair.median > 2  # ten times the work
    assert len(pair.samples) == 11
    with pytest.raises(InputError, match="use 6"):
        ratio(roots(4), roots(4), "c", pairs=5)


@pytest.mark.parametrize(("pairs", "outside"), [(6, 0), (10, 1), (20, 5), (31, 9), (50, 17)])
def test_interval_ranks_are_those_of_the_tables(pairs: int, outside: int) -> None:
    # Ranks of the 95% interval of a median: 1-6, 2-9, 6-15, 10-22, 18-33 (Conover, table A3).
    assert _ranks_outside(pairs) == outside


def test_refusals() -> None:
    with pytest.raises(InputError, match="--dtype"):
        seconds_per_element(horner(2, "real"), "c")
    with pytest.raises(UnknownName, match="'jax'"):
        seconds_per_element(horner(2), "jaxx")
