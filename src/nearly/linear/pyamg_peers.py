"""Peers from pyamg: algebraic multigrid, as preconditioner of its own conjugate gradients.

In a file of its own, because pyamg need not be installed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyamg  # pyright: ignore[reportMissingImports]
import scipy.sparse as sp

from nearly.core.problem import Host

Solve = Callable[[np.ndarray, float], np.ndarray]


def _accelerated(hierarchy: Callable[..., Any]) -> Host:
    """A hierarchy set up once; pyamg's documented way to use it is under a Krylov method."""

    def set_up(matrix: Any) -> Solve:
        levels = hierarchy(sp.csr_matrix(matrix))
        return lambda b, rtol: levels.solve(b, tol=rtol, accel="cg", maxiter=500)

    return Host(set_up)


ruge_stuben = _accelerated(pyamg.ruge_stuben_solver)
smoothed_aggregation = _accelerated(pyamg.smoothed_aggregation_solver)
