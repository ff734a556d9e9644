"""Linear systems: solvers and preconditioners in lineax's protocol, sequences of systems, least
squares, matrix functions.

This module is the room's catalogue, readable without importing the room.
"""

from nearly.core.catalogue import Method, Problem
from nearly.core.lazy import attach

PROBLEMS: dict[str, Problem] = {
    **{
        name: Problem(f"nearly.linear.problems.instances:{name.replace('-', '_')}")
        for name in (
            "poisson2d",
            "poisson3d",
            "poisson2d-obstacles",
            "anisotropic2d",
            "convection-diffusion2d",
        )
    },
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
    "graph-values": Problem("nearly.linear.problems.graph_values:GraphValues"),
}


def _system(target: str, source: str = "ours", *, default: bool = True) -> Method:
    return Method(f"nearly.linear.{target}", "linear-systems", None, source, default)


def _polynomial(target: str, paper: str | None) -> Method:
    source = "ours" if paper else "peer"
    where = f"nearly.linear.polynomial:{target}"
    return Method(where, "linear-systems", paper, source, default=False)


def _fixed(target: str) -> Method:
    return Method(f"nearly.linear.systems:{target}", "linear-sequences", default=True)


def _tuned(target: str, *, default: bool = True) -> Method:
    where = f"nearly.linear.autotune:{target}"
    return Method(where, "linear-sequences", "learning-to-relax", default=default)


def _graph(target: str, paper: str | None = None, source: str = "peer") -> Method:
    return Method(f"nearly.linear.graph_peers:{target}", "graph-solvers", paper, source, True)


def _least_squares(target: str, source: str = "ours", *, default: bool = True) -> Method:
    paper = "linf-sketched-regression" if source == "ours" else None
    return Method(f"nearly.linear.{target}", "least-squares", paper, source, default)


def _root(target: str, source: str = "ours", *, default: bool = True) -> Method:
    paper = "fast-matrix-square-root" if source == "ours" else None
    return Method(f"nearly.linear.{target}", "matrix-functions", paper, source, default)


METHODS: dict[str, Method] = {
    "conjugate-gradient": _system("systems:conjugate_gradient"),
    "jacobi-cg": _system("systems:jacobi_cg", default=False),
    "ssor-cg": _system("systems:ssor_cg"),
    "incomplete-cholesky-cg": _system("systems:incomplete_cholesky_cg"),
    "multigrid-cg": _system("systems:multigrid_cg"),
    "deflated-cg": _system("systems:deflated_cg", default=False),
    "flexible-cg": _system("systems:flexible_cg", default=False),
    "incomplete-lu-gmres": _system("systems:incomplete_lu_gmres"),
    "fixed-cg": _fixed("conjugate_gradient"),
    "fixed-gauss-seidel": _fixed("gauss_seidel"),
    "fixed-symmetric-gauss-seidel-cg": _fixed("symmetric_gauss_seidel_cg"),
    "lineax-cg": _system("peers:lineax_cg", "peer"),
    "lineax-gmres": _system("peers:lineax_gmres", "peer"),
    "lineax-bicgstab": _system("peers:lineax_bicgstab", "peer"),
    "lineax-lu": _system("peers:lineax_lu", "peer"),
    "scipy-cg": _system("peers:scipy_cg", "peer"),
    "scipy-gmres": _system("peers:scipy_gmres", "peer", default=False),
    "scipy-bicgstab": _system("peers:scipy_bicgstab", "peer"),
    "scipy-splu": _system("peers:scipy_splu", "peer"),
    "pyamg-ruge-stuben": _system("pyamg_peers:ruge_stuben", "peer"),
    "pyamg-smoothed-aggregation": _system("pyamg_peers:smoothed_aggregation", "peer"),
    "symmetric-polynomial-cg": _polynomial("symmetric_polynomial_cg", "polynomial-preconditioning"),
    "chebyshev-polynomial-cg": _polynomial("chebyshev_cg", None),
    "deep-conjugate-direction": Method(
        "nearly.linear.learned_direction:deep_conjugate_direction",
        "linear-systems",
        "deep-conjugate-direction",
    ),
    "tsallis-sor": _tuned("tsallis_sor", default=False),
    "tsallis-ssor-cg": _tuned("tsallis_ssor_cg"),
    "binned-sor": _tuned("binned_sor", default=False),
    "binned-ssor-cg": _tuned("binned_ssor_cg", default=False),
    "chebyshev-sor": _tuned("chebyshev_sor", default=False),
    "chebyshev-ssor-cg": _tuned("chebyshev_ssor_cg"),
    "convergent-graph": _graph("convergent", "convergent-graph-solvers", "ours"),
    "encoded-graph": _graph("EncodedGraph"),
    "unrolled-graph": _graph("UnrolledGraph"),
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

# What a system must be for a method to run unasked: symmetric positive definite, not so, on a
# structured grid, small enough for a dense matrix.
NEEDS: dict[str, tuple[str, ...]] = {
    "conjugate-gradient": ("definite",),
    "ssor-cg": ("definite",),
    "incomplete-cholesky-cg": ("definite",),
    "multigrid-cg": ("definite", "grid"),
    "incomplete-lu-gmres": ("general",),
    "lineax-cg": ("definite",),
    "lineax-gmres": ("general",),
    "lineax-bicgstab": ("general",),
    "lineax-lu": ("small",),
    "scipy-cg": ("definite",),
    "scipy-bicgstab": ("general",),
    "pyamg-ruge-stuben": ("definite",),
    "pyamg-smoothed-aggregation": ("definite",),
}

FILES = dict.fromkeys((".mtx", ".mtx.gz", ".npz"), "nearly.linear.matrix_market:resolve")

__getattr__, __all__ = attach(
    __name__,
    {
        "ConjugateGradient": "nearly.linear.conjugate_gradient:ConjugateGradient",
        "Deflation": "nearly.linear.deflation:Deflation",
        "FlexibleConjugateGradient": "nearly.linear.flexible_cg:FlexibleConjugateGradient",
        "IncompleteCholesky": "nearly.linear.incomplete:IncompleteCholesky",
        "IncompleteLU": "nearly.linear.incomplete:IncompleteLU",
        "Jacobi": "nearly.linear.relaxation:Jacobi",
        "LinearSystem": "nearly.linear.problems.system:LinearSystem",
        "Multigrid": "nearly.linear.multigrid:Multigrid",
        "Sor": "nearly.linear.relaxation:Sor",
        "SparseOperator": "nearly.linear.operators:SparseOperator",
        "Ssor": "nearly.linear.relaxation:Ssor",
        "Stationary": "nearly.linear.stationary:Stationary",
        "StencilOperator": "nearly.linear.operators:StencilOperator",
        "SystemSequence": "nearly.linear.problems.sequence:SystemSequence",
        "lanczos": "nearly.linear.krylov:lanczos",
        "EighRoot": "nearly.linear.matrix_functions:EighRoot",
        "KrylovGradientDescent": "nearly.linear.preconditioned_descent:KrylovGradientDescent",
        "LeastSquares": "nearly.linear.problems.least_squares:LeastSquares",
        "MatrixFunction": "nearly.linear.problems.matrix_function:MatrixFunction",
        "NewtonRoot": "nearly.linear.matrix_functions:NewtonRoot",
        "NewtonSchulzRoot": "nearly.linear.matrix_functions:NewtonSchulzRoot",
        "PadeRoot": "nearly.linear.matrix_functions:PadeRoot",
        "PreconditionedFastGradient": (
            "nearly.linear.preconditioned_descent:PreconditionedFastGradient"
        ),
        "PreconditionedGradientDescent": (
            "nearly.linear.preconditioned_descent:PreconditionedGradientDescent"
        ),
        "SketchAndSolve": "nearly.linear.sketched_regression:SketchAndSolve",
        "SketchPreconditioned": "nearly.linear.sketched_regression:SketchPreconditioned",
        "TaylorRoot": "nearly.linear.matrix_functions:TaylorRoot",
        "symmetric_polynomial": "nearly.linear.polynomial:symmetric_polynomial",
    },
)
