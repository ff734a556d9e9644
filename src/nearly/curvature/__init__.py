"""Curvature of models: layer capture, Kronecker factors, inverse-Hessian products, influence,
spectra, certified Lipschitz bounds.

This module is the room's catalogue, readable without importing the room.
"""

from nearly.core.catalogue import Method, Problem
from nearly.core.lazy import attach

PROBLEMS: dict[str, Problem] = {}

METHODS: dict[str, Method] = {}

__getattr__, __all__ = attach(__name__, {})
