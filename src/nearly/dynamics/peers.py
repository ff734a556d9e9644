"""SciPy's solvers, on the host, in the form that `InitialValueProblem` documents."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from nearly.core.problem import Host

Function = Callable[[float, np.ndarray], np.ndarray]

# Those that solve linear systems; they get the exact Jacobian, which is their best setting.
IMPLICIT = ("Radau", "BDF", "LSODA")


def integrate(
    method: str,
    function: Function,
    jacobian: Function,
    start: np.ndarray,
    times: np.ndarray,
    rtol: float,
    atol: float,
) -> tuple[np.ndarray, Mapping[str, int]]:
    """`scipy.integrate.solve_ivp`: values at `times[1:]`, and what it counted itself.

    Rows that it did not reach are infinite.
    """
    from scipy.integrate import solve_ivp

    extra: dict[str, Any] = {"jac": jacobian} if method in IMPLICIT else {}
    if method == "LSODA":
        extra = {"jac": lambda t, y: np.asarray(jacobian(t, y), order="C")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it fails is told by the rows it leaves out
        found = solve_ivp(
            function,
            (times[0], times[-1]),
            start,
            method=method,
            t_eval=times[1:],
            rtol=rtol,
            atol=atol,
            **extra,
        )
    values = np.full((len(times) - 1, len(start)), np.inf)
    values[: found.y.shape[1]] = found.y.T
    return values, {"Jacobians*": found.njev, "factorisations*": found.nlu}


def _scipy(method: str) -> Host:
    def solve(*problem: Any) -> tuple[np.ndarray, Mapping[str, int]]:
        return integrate(method, *problem)

    return Host(solve)


scipy_bdf = _scipy("BDF")
scipy_dop853 = _scipy("DOP853")
scipy_lsoda = _scipy("LSODA")
scipy_radau = _scipy("Radau")
