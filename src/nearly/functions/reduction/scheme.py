"""`Reduction`: what stands between a whole format and the core that a builder approximates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from nearly.core.errors import InputError
from nearly.functions.function import Function
from nearly.functions.program import Program


@dataclass(frozen=True)
class Reduction:
    """A function over its whole domain, in terms of cores over small ones.

    **Arguments:**

    - `function`: what the wrapped program computes.
    - `cores`: what is left to approximate, in the format of `function`; none where the
      instructions compute the function by themselves (`sqrt`).
    - `assemble`: the cores' programs, in this order, to the program of `function`.
    - `bound`: the error in ULP that is not exceeded with cores accurate enough, fused or not.
    - `near`: how far from 0 a cheaper program does, and what assembles it from the same cores.
    """

    function: Function
    cores: tuple[Function, ...]
    assemble: Callable[..., Program] = field(repr=False)
    bound: float = 1.0
    near: tuple[float, Callable[..., Program]] | None = field(default=None, repr=False)

    def wrap(self, *programs: Program) -> Program:
        """Reduction, cores, reconstruction and special values as one straight-line program.

        The result has no branch: every lane computes all pieces, and selects.
        """
        self._check(programs)
        return self.assemble(*programs)

    def wrap_near(self, *programs: Program) -> Program:
        """As `wrap`, for |x| up to `near[0]` and NaN; the same program where there is no other."""
        self._check(programs)
        return self.near[1](*programs) if self.near else self.assemble(*programs)

    def _check(self, programs: Sequence[Program]) -> None:
        if len(programs) != len(self.cores):
            raise InputError(
                f"{self.function.name} is reduced to {len(self.cores)} cores, "
                f"got {len(programs)} programs: give one for each, in order"
            )
        wrong = {p.dtype for p in programs} - {self.function.dtype}
        if wrong:
            raise InputError(
                f"a core of {self.function.name} is a program in {wrong.pop()}: "
                f"build it in {self.function.dtype}"
            )
