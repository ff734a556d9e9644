"""Solvers that remember nothing from one step to the next."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import diffrax as dfx


class OneStep(dfx.AbstractSolver[None]):
    """A diffrax solver that is told by `advance`, what it makes of a step, and needs no more.

    A subclass says `order`, `term_structure` and `interpolation_cls` too, as any solver does.
    """

    def init(self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any) -> None:
        """There is no state."""
        del terms, t0, t1, y0, args

    def func(self, terms: Any, t0: Any, y0: Any, args: Any) -> Any:
        """The vector field."""
        return terms.vf(t0, y0, args)

    def step(
        self,
        terms: Any,
        t0: Any,
        t1: Any,
        y0: Any,
        args: Any,
        solver_state: None,
        made_jump: Any,
    ) -> tuple[Any, Any, dict[str, Any], None, Any]:
        """One step, for `diffrax.diffeqsolve`."""
        del solver_state, made_jump
        y1, error, dense = self.advance(terms, t0, t1, y0, args)
        return y1, error, dense, None, dfx.RESULTS.successful

    @abstractmethod
    def advance(
        self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any
    ) -> tuple[Any, Any, dict[str, Any]]:
        """The value at t1, its error (None where it is not estimated), and what the interpolation
        takes."""
