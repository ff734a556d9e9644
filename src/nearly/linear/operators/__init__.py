"""Sparse operators in lineax's protocol, and what all of the room's operators share."""

from nearly.linear.operators.callable import CallableOperator
from nearly.linear.operators.counted import CountedOperator, bare
from nearly.linear.operators.registration import dense, is_definite, register
from nearly.linear.operators.sparse import SparseOperator, as_rows, as_scipy
from nearly.linear.operators.stencil import StencilOperator, shift

__all__ = [
    "CallableOperator",
    "CountedOperator",
    "SparseOperator",
    "StencilOperator",
    "as_rows",
    "as_scipy",
    "bare",
    "dense",
    "is_definite",
    "register",
    "shift",
]
