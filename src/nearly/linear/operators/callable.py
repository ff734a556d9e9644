"""Any linear function as an operator: what preconditioners are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import lineax as lx
from jaxtyping import Array, Float

from nearly.linear.operators.registration import Tags, dense, register


class CallableOperator(lx.AbstractLinearOperator):
    """The operator that a linear function applies, kept as it is.

    Unlike `lineax.FunctionLinearOperator` it traces nothing when it is made and keeps the function,
    an `equinox.Module` say, as a part of the pytree: its arrays can be replaced, batched and
    differentiated.

    **Arguments:**

    - `function`: a linear map between arrays of `structure`.
    - `structure`: shape and dtype of what it takes and of what it returns.
    - `tags`: what is known of it, as `lineax.positive_semidefinite_tag`.
    """

    function: Callable[[Any], Any]
    structure: Any = eqx.field(static=True)
    tags: Tags = eqx.field(static=True, default=frozenset())

    def mv(self, vector: Float[Array, ...]) -> Float[Array, ...]:
        return self.function(vector)

    def as_matrix(self) -> Float[Array, "rows columns"]:
        return dense(self)

    def transpose(self) -> lx.AbstractLinearOperator:
        if lx.is_symmetric(self):
            return self
        return CallableOperator(
            Transposed(self.function, self.structure), self.structure, lx.transpose_tags(self.tags)
        )

    def in_structure(self) -> Any:
        return self.structure

    def out_structure(self) -> Any:
        return self.structure


class Transposed(eqx.Module):
    """The transpose of a linear function."""

    function: Callable[[Any], Any]
    structure: Any = eqx.field(static=True)

    def __call__(self, vector: Float[Array, ...]) -> Float[Array, ...]:
        return jax.linear_transpose(self.function, self.structure)(vector)[0]


register(CallableOperator)
