"""`Function`: what a builder is asked to approximate - a function, a domain, an error, a format."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from flint import arb

from nearly.functions.formats import Format, format_named
from nearly.functions.oracle import Oracle


@dataclass(frozen=True)
class Function:
    """A scalar function to approximate.

    **Arguments:**

    - `name`: a known name (`"exp2"`), a safe expression in `x` (`"log1p(x)/x"`), or
      `"file.py:attribute"` of a Python callable.
    - `domain`: the two ends as expressions: `("0", "pi/4")`, `("-inf", "inf")`. In a machine
      format the domain is every number of the format between them.
    - `dtype`: `"real"`, `"float64"`, `"float32"`, `"bfloat16"` or `"float16"`.
    - `error`: what is measured: `"relative"`, `"absolute"` or `"ulp"`.
    - `norm`: `"sup"` or `"l2"` (root mean square over the domain).
    """

    name: str
    domain: tuple[str, str] = ("0", "1")
    dtype: str = "real"
    error: str = "relative"
    norm: str = "sup"

    @property
    def format(self) -> Format:
        return format_named(self.dtype)

    @cached_property
    def oracle(self) -> Oracle: ...

    @cached_property
    def ends(self) -> tuple[arb, arb]:
        """The two ends of the domain, as balls at the working precision (possibly infinite)."""
        ...

    @property
    def interval(self) -> tuple[Fraction, Fraction]:
        """A rational interval that contains the domain, within 2^-300 of it, relatively.

        What builders and provers use for an end like pi/4. Raises `InputError` if infinite.
        """
        ...
