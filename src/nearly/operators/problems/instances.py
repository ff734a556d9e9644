"""The catalogued instances of the room's problems."""

from __future__ import annotations

from nearly.operators import families
from nearly.operators.problems.operator_map import OperatorMap, operator_map


def burgers(
    viscosity: float = 0.1, resolution: int = 128, samples: int = 256, tests: int = 64
) -> OperatorMap:
    """Burgers' equation: the field at time 1 from the one at time 0."""
    family = families.burgers(viscosity)
    return operator_map("burgers", family, resolution=resolution, samples=samples, tests=tests)
