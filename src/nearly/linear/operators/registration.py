"""lineax's questions about an operator, answered from its tags.

lineax asks through `functools.singledispatch` functions, so each class of operators has to be
registered with all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float

Tags = frozenset[object]

# What follows from a tag (the arithmetic is real throughout the room).
_QUESTIONS: dict[Any, tuple[object, ...]] = {
    lx.is_symmetric: (
        lx.symmetric_tag,
        lx.diagonal_tag,
        lx.positive_semidefinite_tag,
        lx.negative_semidefinite_tag,
    ),
    lx.is_diagonal: (lx.diagonal_tag,),
    lx.is_tridiagonal: (lx.tridiagonal_tag, lx.diagonal_tag),
    lx.has_unit_diagonal: (lx.unit_diagonal_tag,),
    lx.is_lower_triangular: (lx.lower_triangular_tag, lx.diagonal_tag),
    lx.is_upper_triangular: (lx.upper_triangular_tag, lx.diagonal_tag),
    lx.is_positive_semidefinite: (lx.positive_semidefinite_tag,),
    lx.is_negative_semidefinite: (lx.negative_semidefinite_tag,),
}


def register(kind: type[Any]) -> None:
    """Make lineax's functions of operators know a class of operators that has `tags`.

    What is symmetric, definite, triangular … is read off the tags; `lineax.diagonal` and
    `lineax.tridiagonal` read the dense matrix, so a class that can do better registers its own.
    `linearise` and `materialise` return the operator as it is: a sparse operator is meant to stay
    sparse.
    """
    for question, tags in _QUESTIONS.items():
        question.register(kind)(_answer(tags))
    lx.linearise.register(kind)(_itself)
    lx.materialise.register(kind)(_itself)
    lx.conj.register(kind)(_conjugate)
    lx.diagonal.register(kind)(_diagonal)
    lx.tridiagonal.register(kind)(_tridiagonal)


def tags_of(tags: object | Iterable[object]) -> Tags:
    """One tag, or several, as a set; `()` for none."""
    if isinstance(tags, (frozenset, set, list, tuple)):
        return frozenset(tags)
    return frozenset([tags])


def is_definite(operator: lx.AbstractLinearOperator) -> bool:
    """Whether an operator is said to be symmetric positive (semi)definite."""
    return bool(lx.is_positive_semidefinite(operator))


def dense(operator: lx.AbstractLinearOperator) -> Float[Array, "rows columns"]:
    """The matrix of an operator between single arrays, by one product for each column.

    **Cost:** `in_size` products and `in_size * out_size` numbers.
    """
    structure: Any = operator.in_structure()
    size = math.prod(structure.shape)
    units = jnp.eye(size, dtype=structure.dtype).reshape(size, *structure.shape)
    return jax.vmap(operator.mv)(units).reshape(size, -1).T


def _answer(tags: tuple[object, ...]) -> Any:
    def answer(operator: Any) -> bool:
        return any(tag in operator.tags for tag in tags)

    return answer


def _itself(operator: Any) -> Any:
    return operator


def _conjugate(operator: Any) -> Any:
    arrays, rest = eqx.partition(operator, eqx.is_inexact_array)
    return eqx.combine(jax.tree.map(jnp.conj, arrays), rest)


def _diagonal(operator: Any) -> Any:
    return jnp.diagonal(operator.as_matrix())


def _tridiagonal(operator: Any) -> Any:
    matrix = operator.as_matrix()
    return jnp.diagonal(matrix), jnp.diagonal(matrix, -1), jnp.diagonal(matrix, 1)
