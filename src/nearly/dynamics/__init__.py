"""Solutions of differential equations over time, in diffrax's protocol: every call of the vector
field is on the bill.

This module is the room's catalogue, readable without importing the room.
"""

from nearly.core.catalogue import Method, Problem
from nearly.core.lazy import attach


def _initial_value(target: str, **settings: object) -> Problem:
    return Problem(f"nearly.dynamics.problems.initial_value:{target}", settings)


_STANDARD = (
    "lotka-volterra",
    "henon-heiles",
    "pleiades",
    "rober",
    "hires",
    "orego",
    "pollu",
    "van-der-pol",
)

PROBLEMS: dict[str, Problem] = {
    **{case: _initial_value("standard", case=case) for case in _STANDARD},
    "prothero-robinson": _initial_value("prothero_robinson"),
    "airy": _initial_value("airy"),
}


def _ours(target: str, paper: str | None, *, default: bool = True) -> Method:
    return Method(f"nearly.dynamics.{target}", "ode-solvers", paper, "ours", default)


def _peer(target: str, *, default: bool = True) -> Method:
    return Method(f"nearly.dynamics.{target}", "ode-solvers", None, "peer", default)


METHODS: dict[str, Method] = {
    "msrktase2": _ours("solvers:msrktase2", "msrktase"),
    "msrktase3": _ours("solvers:msrktase3", "msrktase"),
    "bdf2": _ours("solvers:deferred_bdf2", None, default=False),
    "deferred-bdf3": _ours("solvers:deferred_bdf3", "bdf2-deferred-correction", default=False),
    "deferred-bdf4": _ours("solvers:deferred_bdf4", "bdf2-deferred-correction"),
    "diffrax-tsit5": _peer("solvers:tsit5"),
    "diffrax-dopri8": _peer("solvers:dopri8", default=False),
    "diffrax-kvaerno3": _peer("solvers:kvaerno3", default=False),
    "diffrax-kvaerno5": _peer("solvers:kvaerno5"),
    "diffrax-kencarp4": _peer("solvers:kencarp4"),
    "scipy-lsoda": _peer("peers:scipy_lsoda"),
    "scipy-bdf": _peer("peers:scipy_bdf", default=False),
    "scipy-radau": _peer("peers:scipy_radau"),
    "scipy-dop853": _peer("peers:scipy_dop853", default=False),
}

__getattr__, __all__ = attach(
    __name__,
    {
        "Banded": "nearly.dynamics.jacobians:Banded",
        "DeferredBDF2": "nearly.dynamics.deferred:DeferredBDF2",
        "Given": "nearly.dynamics.jacobians:Given",
        "Sparse": "nearly.dynamics.jacobians:Sparse",
        "deferred_bdf": "nearly.dynamics.deferred:deferred_bdf",
        "msrktase2": "nearly.dynamics.wmethods:msrktase2",
        "msrktase3": "nearly.dynamics.wmethods:msrktase3",
        "InitialValueProblem": "nearly.dynamics.problems.initial_value:InitialValueProblem",
        "Oscillator": "nearly.dynamics.problems.oscillator:Oscillator",
    },
)
