"""An operator whose products a tally counts."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import lineax as lx
from jaxtyping import Array, Float

from nearly.core.tally import counted


class CountedOperator(lx.AbstractLinearOperator):
    """Another operator, each of whose products `nearly.tally` counts under `unit`.

    What needs the operator's structure (a sweep through its entries, say) finds it with `bare`;
    such use is not counted here, but by whoever uses it, under a unit of its own.
    """

    operator: lx.AbstractLinearOperator
    unit: str = eqx.field(static=True)

    def mv(self, vector: Float[Array, ...]) -> Float[Array, ...]:
        return counted(self.operator.mv, self.unit)(vector)

    def as_matrix(self) -> Float[Array, "rows columns"]:
        return self.operator.as_matrix()

    def transpose(self) -> CountedOperator:
        return CountedOperator(self.operator.transpose(), self.unit)

    def in_structure(self) -> Any:
        return self.operator.in_structure()

    def out_structure(self) -> Any:
        return self.operator.out_structure()


def bare(operator: lx.AbstractLinearOperator) -> lx.AbstractLinearOperator:
    """The operator inside counters and lineax's tags, where its structure can be seen."""
    while isinstance(operator, (CountedOperator, lx.TaggedLinearOperator)):
        operator = operator.operator
    return operator


def _delegate(question: Any) -> None:
    @question.register(CountedOperator)
    def _(operator: CountedOperator) -> Any:
        return question(operator.operator)


def _delegate_wrapped(change: Any) -> None:
    @change.register(CountedOperator)
    def _(operator: CountedOperator) -> Any:
        return CountedOperator(change(operator.operator), operator.unit)


for _question in (
    lx.is_symmetric,
    lx.is_diagonal,
    lx.is_tridiagonal,
    lx.has_unit_diagonal,
    lx.is_lower_triangular,
    lx.is_upper_triangular,
    lx.is_positive_semidefinite,
    lx.is_negative_semidefinite,
    lx.diagonal,
    lx.tridiagonal,
):
    _delegate(_question)
for _change in (lx.linearise, lx.materialise, lx.conj):
    _delegate_wrapped(_change)
