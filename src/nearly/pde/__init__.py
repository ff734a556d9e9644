"""One partial differential equation: reference solvers, and networks that solve one equation.

This module is the room's catalogue, readable without importing the room.
"""

from nearly.core.catalogue import Method, Problem
from nearly.core.lazy import attach

PROBLEMS: dict[str, Problem] = {}

METHODS: dict[str, Method] = {}

__getattr__, __all__ = attach(__name__, {})
