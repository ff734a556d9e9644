"""Linear systems: solvers and preconditioners in lineax's protocol, sequences of systems, least
squares, matrix functions.

This module is the room's catalogue, readable without importing the room.
"""

from nearly.core.catalogue import Method, Problem
from nearly.core.lazy import attach

PROBLEMS: dict[str, Problem] = {
    "heat2d-sequence": Problem("nearly.linear.problems.sequence:heat2d_sequence"),
    "shifted-poisson-sequence": Problem("nearly.linear.problems.sequence:shifted_poisson_sequence"),
    **{
        f"least-squares-{instance}": Problem(
            "nearly.linear.problems.least_squares:least_squares", {"instance": instance}
        )
        for instance in ("gaussian", "spiky", "coherent", "ill-conditioned")
    },
    **{
        f"matrix-{name}{suffix}": Problem(
            "nearly.linear.problems.matrix_function:matrix_function",
            {"root": root, "differentiate": bool(suffix)},
        )
        for name, root in (("sqrt", 2), ("inverse-sqrt", -2), ("inverse-fourth-root", -4))
        for suffix in ("", "-gradient")
    },
}


def _least_squares(target: str, source: str = "ours", *, default: bool = True) -> Method:
    paper = "linf-sketched-regression" if source == "ours" else None
    return Method(f"nearly.linear.{target}", "least-squares", paper, source, default)


def _root(target: str, source: str = "ours", *, default: bool = True) -> Method:
    paper = "fast-matrix-square-root" if source == "ours" else None
    return Method(f"nearly.linear.{target}", "matrix-functions", paper, source, default)


METHODS: dict[str, Method] = {
    "hadamard-sketch": _least_squares("sketched_regression:hadamard_and_solve"),
    "sparse-sketch": _least_squares("sketched_regression:sparse_and_solve"),
    "count-sketch": _least_squares("sketched_regression:count_and_solve"),
    "gaussian-sketch": _least_squares("sketched_regression:gaussian_and_solve"),
    "blendenpik": _least_squares("sketched_regression:blendenpik"),
    "lsrn": _least_squares("sketched_regression:lsrn"),
    "lineax-qr": _least_squares("least_squares_peers:qr", "peer"),
    "lineax-svd": _least_squares("least_squares_peers:svd", "peer", default=False),
    "lineax-lsmr": _least_squares("least_squares_peers:lsmr", "peer"),
    "lineax-normal-cg": _least_squares("least_squares_peers:normal_cg", "peer"),
    "lineax-normal-cholesky": _least_squares("least_squares_peers:normal_cholesky", "peer"),
    "numpy-lstsq": _least_squares("least_squares_peers:numpy_lstsq", "peer"),
    "scipy-clarkson-woodruff": _least_squares("least_squares_peers:clarkson_woodruff", "peer"),
    "taylor-root": _root("matrix_functions:taylor"),
    "pade-root": _root("matrix_functions:pade"),
    "pade-root-geometric": _root("matrix_functions:pade_geometric"),
    "newton-schulz-root": _root("matrix_functions:newton_schulz"),
    "newton-root": _root("matrix_functions:newton"),
    "eigh-root": _root("matrix_functions:eigh"),
    "jax-eigh": _root("matrix_function_peers:jax_eigh", "peer"),
    "jax-sqrtm": _root("matrix_function_peers:jax_sqrtm", "peer", default=False),
    "scipy-sqrtm": _root("matrix_function_peers:scipy_sqrtm", "peer", default=False),
}

__getattr__, __all__ = attach(__name__, {})
