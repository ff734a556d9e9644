"""Peers for linear systems: lineax's solvers, SciPy's on the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lineax as lx
import numpy as np
from scipy.sparse import linalg as splinalg

from nearly.core.problem import Host

Solve = Callable[[np.ndarray, float], np.ndarray]

# lineax's CG, BiCGStab and GMRES stop by components; without an atol a zero component would never
# be small enough.
lineax_cg = lx.CG(rtol=1e-3, atol=1e-12, max_steps=10_000)
lineax_bicgstab = lx.BiCGStab(rtol=1e-3, atol=1e-12, max_steps=10_000)
lineax_gmres = lx.GMRES(rtol=1e-3, atol=1e-12, restart=50, stagnation_iters=50, max_steps=10_000)
lineax_lu = lx.LU()


class Direct(Host):
    """A peer without a tolerance."""

    dials = ("direct",)


def _iterative(function: Any) -> Host:
    """One of SciPy's Krylov methods, with its own stopping rule on the Euclidean norm."""

    def set_up(matrix: Any) -> Solve:
        return lambda b, rtol: function(matrix, b, rtol=rtol, atol=0.0)[0]

    return Host(set_up)


def _factored(matrix: Any) -> Solve:
    factors = splinalg.splu(matrix.tocsc())
    return lambda b, rtol: factors.solve(b)


scipy_cg = _iterative(splinalg.cg)
scipy_bicgstab = _iterative(splinalg.bicgstab)
scipy_gmres = _iterative(splinalg.gmres)
scipy_splu = Direct(_factored)
