"""Reduction of any finite argument modulo pi/2, after Payne and Hanek, without integers' products."""
from __future__ import annotations
from nearly.functions.program import Builder, Node
from nearly.functions.reduction.layout import Layout

def whole_format(b: Builder, place: Layout) -> tuple[Node, Node, Node]:
    raise NotImplementedError
