"""Sparse systems against SciPy, pyamg and lineax: products, conjugate gradients, multigrid.

Everything runs in float64 on one thread, pinned to one core. Seconds are of alternating pairs in
one process, after compilation and set-up: the median ratio with the interval that holds it with
95% confidence.

    python benchmarks/linear_systems.py [NAME...]
"""

from __future__ import annotations

import importlib.util
import math
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

# One thread for all, which has to be said before they are imported.
ONE_THREAD = "--xla_cpu_multi_thread_eigen=false"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {ONE_THREAD}".strip()
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

import equinox as eqx  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import lineax as lx  # noqa: E402
import numpy as np  # noqa: E402
import scipy.sparse as sp  # noqa: E402
from alternating import Row, main, pairs  # noqa: E402
from scipy.sparse.linalg import cg  # noqa: E402

from nearly.linear import grids  # noqa: E402
from nearly.linear.conjugate_gradient import ConjugateGradient  # noqa: E402
from nearly.linear.incomplete import IncompleteCholesky  # noqa: E402
from nearly.linear.learned_direction import deep_conjugate_direction  # noqa: E402
from nearly.linear.multigrid import Multigrid  # noqa: E402
from nearly.linear.operators import SparseOperator, as_scipy  # noqa: E402
from nearly.linear.relaxation import Ssor  # noqa: E402

SIDE = 512  # points along a side of the square
PAIRS = 25
DEFINITE = lx.positive_semidefinite_tag


def _right(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape)


# ---- products


def products() -> list[Row]:
    """A x against SciPy's compressed rows."""
    rng = np.random.default_rng(1)
    square = grids.poisson2d(SIDE)
    holes = grids.poisson_with_obstacles((SIDE, SIDE), jax.random.key(0))
    network = sp.random_array((100_000, 100_000), density=8e-5, rng=rng, format="csr")
    near = _near(100_000, 9, 300)
    cases = {
        f"Poisson {SIDE}^2, stencil": (square, as_scipy(square)),
        f"Poisson {SIDE}^2, from its matrix": _pair(as_scipy(square)),
        f"Poisson {SIDE}^2 with obstacles, stencil": (holes, as_scipy(holes)),
        "Poisson 64^3, stencil": (grids.poisson3d(64), as_scipy(grids.poisson3d(64))),
        "8 entries a row, anywhere": _pair(network),
        "9 entries a row, within 300": _pair(near),
    }
    return [_product(name, *case) for name, case in cases.items()]


def _pair(matrix: sp.csr_array) -> tuple[SparseOperator, sp.csr_array]:
    return SparseOperator.from_scipy(matrix), matrix


def _near(rows: int, entries: int, reach: int) -> sp.csr_array:
    rng = np.random.default_rng(2)
    columns = np.arange(rows)[:, None] + rng.integers(-reach, reach, (rows, entries))
    columns = np.clip(columns, 0, rows - 1).ravel()
    matrix = sp.csr_array(
        (rng.normal(size=columns.size), columns, np.arange(0, columns.size + 1, entries)),
        shape=(rows, rows),
    )
    matrix.sum_duplicates()
    return matrix


def _product(name: str, operator: Any, matrix: sp.csr_array) -> Row:
    x = _right(operator.in_structure().shape)
    here, flat = jnp.asarray(x), x.ravel()
    product = eqx.filter_jit(lambda a, v: a.mv(v))
    error = np.abs(np.ravel(product(operator, here)) - matrix @ flat).max()
    assert error < 1e-12, f"{name}: the products differ by {error}"
    row = pairs(lambda: product(operator, here), lambda: matrix @ flat, 4 * PAIRS).row
    return {"product": name, "peer": "SciPy CSR", **row}


# ---- conjugate gradients


def conjugate_gradients() -> list[Row]:
    """Poisson 512^2 to 1e-6: ours plain and with SSOR against SciPy and lineax."""
    operator = grids.poisson2d(SIDE)
    matrix, b = as_scipy(operator), _right((SIDE, SIDE))
    from_matrix = SparseOperator.from_scipy(matrix, tags=DEFINITE)
    relaxed = {"preconditioner": Ssor(2 / (1 + math.sin(math.pi / (SIDE + 1))))(operator)}
    side = jnp.asarray(b)
    mine = ConjugateGradient(1e-6)
    contenders = {
        "ours, stencil": _solver(operator, side, mine, {}),
        "ours, from its matrix": _solver(from_matrix, side.ravel(), mine, {}),
        "ours with SSOR, stencil": _solver(operator, side, mine, relaxed),
        "lineax.CG, stencil": _solver(operator, side, lx.CG(1e-6, 1e-9, max_steps=5000), {}),
    }

    def scipy() -> np.ndarray:
        return cg(matrix, b.ravel(), rtol=1e-6, atol=0.0)[0]

    counted: list[int] = []
    cg(matrix, b.ravel(), rtol=1e-6, atol=0.0, callback=lambda _: counted.append(1))
    rows = []
    for name, (solve, steps) in contenders.items():
        row = pairs(solve, scipy, 5).row
        rows.append(
            {"solver": name, "iterations": steps, "peer": f"SciPy cg ({len(counted)})", **row}
        )
    return rows


def _solver(operator: Any, side: Any, solver: Any, options: Any) -> tuple[Callable[[], Any], int]:
    @eqx.filter_jit
    def solve(operator: Any, side: Any, options: Any) -> Any:
        solution = lx.linear_solve(operator, side, solver, options=options, throw=False)
        return solution.value, solution.stats["num_steps"]

    steps = int(solve(operator, side, options)[1])
    return lambda: solve(operator, side, options)[0], steps


# ---- multigrid


def multigrid() -> list[Row]:
    """V-cycles under conjugate gradients to 1e-8 against pyamg's, set-up apart."""
    try:
        import pyamg
    except ImportError as error:
        return [{"multigrid": f"not run: {error}"}]
    cases = {
        f"Poisson {SIDE}^2": grids.poisson2d(SIDE),
        "Poisson 256^2 with obstacles": grids.poisson_with_obstacles((256, 256), jax.random.key(0)),
        "anisotropic 256^2, 1:100": grids.anisotropic2d(256, 0.01),
        "Poisson 48^3": grids.poisson3d(48),
    }
    makers = {
        "Ruge-Stuben": pyamg.ruge_stuben_solver,
        "smoothed aggregation": pyamg.smoothed_aggregation_solver,
    }
    return [
        _cycles(name, operator, peer, make)
        for name, operator in cases.items()
        for peer, make in makers.items()
    ]


def _cycles(name: str, operator: Any, peer: str, make: Callable[..., Any]) -> Row:
    matrix = sp.csr_matrix(as_scipy(operator))
    side = grids.kept_inside(operator, jnp.asarray(_right(operator.shape)))
    begun = time.perf_counter()
    options = jax.block_until_ready({"preconditioner": Multigrid()(operator)})
    ours_setup = time.perf_counter() - begun
    begun = time.perf_counter()
    hierarchy = make(matrix)
    their_setup = time.perf_counter() - begun
    solve, steps = _solver(operator, side, ConjugateGradient(1e-8), options)
    flat = np.ravel(side)
    seen: list[float] = []
    hierarchy.solve(flat, tol=1e-8, accel="cg", residuals=seen)
    row = pairs(solve, lambda: hierarchy.solve(flat, tol=1e-8, accel="cg"), 7).row
    return {
        "system": name,
        "iterations": steps,
        "peer": f"pyamg {peer} ({len(seen) - 1})",
        **row,
        "set-up s": ours_setup,
        "peer set-up s": their_setup,
    }


# ---- learned directions


def learned_directions() -> list[Row]:
    """Poisson with four obstacles to 1e-6: directions from a network against all others."""
    return [row for size in (64, 128) for row in _directions(size)]


def _directions(size: int) -> Iterator[Row]:
    operator = grids.poisson_with_obstacles((size, size), jax.random.key(0))
    side = grids.kept_inside(operator, jnp.asarray(_right(operator.shape)))
    plain = ConjugateGradient(1e-6)
    learned, steps = _solver(operator, side, *deep_conjugate_direction(operator))
    rivals = {
        "conjugate gradients": _solver(operator, side, plain, {}),
        "with SSOR (1.8)": _preconditioned(operator, side, Ssor(1.8)),
        "with incomplete Cholesky": _preconditioned(operator, side, IncompleteCholesky()),
        "with a V-cycle": _preconditioned(operator, side, Multigrid()),
    }
    if importlib.util.find_spec("pyamg"):
        rivals["pyamg Ruge-Stuben"] = _by_pyamg(operator, side)
    for name, (solve, theirs) in rivals.items():
        row = pairs(learned, solve, 7).row
        yield {"grid": f"{size}^2", "learned": steps, "peer": name, "iterations": theirs, **row}


def _preconditioned(operator: Any, side: Any, make: Any) -> tuple[Callable[[], Any], int]:
    return _solver(operator, side, ConjugateGradient(1e-6), {"preconditioner": make(operator)})


def _by_pyamg(operator: Any, side: Any) -> tuple[Callable[[], Any], int]:
    import pyamg

    hierarchy, flat = pyamg.ruge_stuben_solver(sp.csr_matrix(as_scipy(operator))), np.ravel(side)
    seen: list[float] = []
    hierarchy.solve(flat, tol=1e-6, accel="cg", residuals=seen)
    return lambda: hierarchy.solve(flat, tol=1e-6, accel="cg"), len(seen) - 1


BENCHMARKS: dict[str, Callable[[], list[Row]]] = {
    "learned-directions": learned_directions,
    "products": products,
    "conjugate-gradients": conjugate_gradients,
    "multigrid": multigrid,
}


if __name__ == "__main__":
    with jax.enable_x64(True):
        main(BENCHMARKS, __doc__)
