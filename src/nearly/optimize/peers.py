"""Minimisers of SciPy, on the host, in the form that `Smooth` documents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nearly.core.problem import Host

# SciPy stops by the gradient's largest entry, so that is the dial there.


def _scipy(method: str, option: str = "gtol", *, second: bool = False) -> Host:
    def minimise(
        both: Callable[[np.ndarray], tuple[float, np.ndarray]],
        hessian: Callable[[np.ndarray], np.ndarray],
        start: np.ndarray,
        tolerance: float,
    ) -> np.ndarray:
        from scipy.optimize import minimize

        extra: dict[str, Any] = {"hess": hessian} if second else {}
        options = {option: tolerance, "maxiter": 10_000, **_SETTINGS.get(method, {})}
        return minimize(both, start, jac=True, method=method, options=options, **extra).x

    return Host(minimise)


# L-BFGS-B also stops by the decrease of the value; at 0 only the gradient decides.
_SETTINGS: dict[str, dict[str, float]] = {"L-BFGS-B": {"ftol": 0.0, "maxfun": 100_000}}

scipy_bfgs = _scipy("BFGS")
scipy_lbfgs = _scipy("L-BFGS-B")
scipy_trust_exact = _scipy("trust-exact", second=True)
scipy_trust_ncg = _scipy("trust-ncg", second=True)
