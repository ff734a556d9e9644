"""The linear room against its peers: seconds and errors, side by side.

    python benchmarks/linear.py [NAME...]

Ratios are medians of pairs that alternate between the two in one process, after compilation, with
the 95% interval of that median: a busy machine harms both alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
from alternating import Row, main, pairs

from nearly.datasets import breast_cancer
from nearly.linear import least_squares_peers, matrix_function_peers, matrix_functions
from nearly.linear.lyapunov import fixed_lyapunov
from nearly.linear.polynomial import symmetric_polynomial
from nearly.linear.preconditioned_descent import (
    KrylovGradientDescent,
    PreconditionedFastGradient,
    PreconditionedGradientDescent,
)
from nearly.linear.problems.least_squares import least_squares
from nearly.linear.problems.matrix_function import matrix_function
from nearly.linear.sketch import walsh_hadamard
from nearly.linear.sketched_regression import SketchAndSolve, SketchPreconditioned

PAIRS = 15


# ---- measuring


def against(
    ours: Callable[[], Any], rivals: Mapping[str, Callable[[], Any]], count: int = PAIRS
) -> dict[str, tuple[float, float, float, float]]:
    """For each rival: its median milliseconds, and ours over its as median, low and high."""
    found = {name: pairs(ours, rival, count) for name, rival in rivals.items()}
    return {name: (p.theirs, p.ratio, p.low, p.high) for name, p in found.items()}


# ---- sketches and matrix functions


def sketched_least_squares() -> list[Row]:
    """Our sketched solvers against direct and iterative ones: float32, rows x columns as shown."""
    rows: list[Row] = []
    for shape, instance in (((8192, 64), "gaussian"), ((8192, 64), "ill-conditioned")):
        problem = least_squares(instance, *shape, dtype="float32")
        ours = {
            "blendenpik": SketchPreconditioned(rtol=1e-6),
            "hadamard-sketch": SketchAndSolve(),
        }
        rivals = {
            "lineax QR": least_squares_peers.qr,
            "lineax LSMR": least_squares_peers.lsmr,
            "lineax normal Cholesky": least_squares_peers.normal_cholesky,
        }
        uses = {name: _solve(problem, method) for name, method in (ours | rivals).items()}
        uses["NumPy lstsq"] = lambda p=problem: np.linalg.lstsq(p.matrix, p.rhs, rcond=None)[0]
        errors = {n: problem.errors(np.asarray(use()))["relative error"] for n, use in uses.items()}
        for name in ours:
            others = {n: use for n, use in uses.items() if n not in ours}
            for rival, (ms, ratio, low, high) in against(uses[name], others, 5).items():
                rows.append(
                    {
                        "instance": f"{instance} {shape[0]} x {shape[1]}",
                        "ours": name,
                        "error": errors[name],
                        "rival": rival,
                        "its error": errors[rival],
                        "its ms": ms,
                        "ours / its": ratio,
                        "95%": f"{low:.3g} to {high:.3g}",
                    }
                )
    return rows


def _solve(problem: Any, method: Any) -> Callable[[], Any]:
    matrix, rhs = jnp.asarray(problem.matrix), jnp.asarray(problem.rhs)

    @jax.jit
    def solve(matrix: jax.Array, rhs: jax.Array) -> jax.Array:
        return lx.linear_solve(lx.MatrixLinearOperator(matrix), rhs, method, throw=False).value

    return lambda: solve(matrix, rhs)


def hadamard_transform() -> list[Row]:
    """The fast transform against the product with the dense Hadamard matrix, float32."""
    rows: list[Row] = []
    for size, columns in ((1024, 16), (4096, 16)):
        x = jnp.asarray(np.random.default_rng(0).normal(size=(size, columns)), jnp.float32)
        dense = walsh_hadamard(jnp.eye(size, dtype=jnp.float32))
        rival = {"dense": partial(jax.jit(jnp.matmul), dense, x)}
        found = against(partial(jax.jit(walsh_hadamard), x), rival)["dense"]
        rows.append(
            {
                "rows": size,
                "columns": columns,
                "dense ms": found[0],
                "ours / its": found[1],
                "95%": f"{found[2]:.3g} to {found[3]:.3g}",
            }
        )
    return rows


def matrix_square_roots() -> list[Row]:
    """Value and gradient of 64 square roots of 64 x 64 in float32, against eigh's, condition 10."""
    problem = matrix_function(batch=64, differentiate=True)
    ours = {
        "pade, 8 Lyapunov steps": matrix_functions.PadeRoot(lyapunov=fixed_lyapunov),
        "pade": matrix_functions.PadeRoot(),
        "pade, geometric mean": matrix_functions.pade_geometric,
        "taylor": matrix_functions.TaylorRoot(),
        "newton-schulz, 8 steps": matrix_functions.NewtonSchulzRoot(8),
    }
    rows: list[Row] = []
    rival = _root_and_gradient(problem, matrix_function_peers.jax_eigh)
    for name, method in ours.items():
        use = _root_and_gradient(problem, method)
        errors = problem.errors(jax.tree.map(np.asarray, use()))
        ms, ratio, low, high = against(use, {"eigh": rival})["eigh"]
        rows.append(
            {
                "ours": name,
                "error": errors["relative error"],
                "gradient error": errors["gradient error"],
                "eigh ms": ms,
                "ours / eigh": ratio,
                "95%": f"{low:.3g} to {high:.3g}",
            }
        )
    return rows


def _root_and_gradient(problem: Any, method: Any) -> Callable[[], Any]:
    matrices, weights = jnp.asarray(problem.matrices), jnp.asarray(problem.weights, jnp.float32)

    @jax.jit
    def both(matrices: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
        value, pull = jax.vjp(lambda a: method(a, 2), matrices)
        return value, pull(weights)[0]

    return lambda: both(matrices, weights)


def logistic_regression() -> list[Row]:
    """Minimisers on the breast-cancer data (damped by 1e-3), float32: milliseconds and loss."""
    data = breast_cancer()
    inputs = jnp.asarray(data.train_inputs, jnp.float32)
    signs = jnp.asarray(2.0 * data.train_targets - 1, jnp.float32)
    gram = inputs.T @ inputs / (4 * len(inputs)) + 1e-3 * jnp.eye(inputs.shape[1])
    curvature = lx.MatrixLinearOperator(gram, lx.positive_semidefinite_tag)
    tight = (1e-5, 1e-5)
    solvers = {
        f"polynomial of degree {degree}": PreconditionedGradientDescent(
            *tight, preconditioner=symmetric_polynomial(curvature, degree)
        )
        for degree in (0, 4)
    } | {
        "accelerated, degree 4": PreconditionedFastGradient(
            *tight, preconditioner=symmetric_polynomial(curvature, 4)
        ),
        "krylov of degree 4": KrylovGradientDescent(*tight, operator=curvature),
        "optimistix BFGS": optx.BFGS(*tight),
        "optimistix L-BFGS": optx.LBFGS(*tight),
    }

    def loss(weights: jax.Array, _: Any) -> jax.Array:
        return jnp.mean(jax.nn.softplus(-signs * (inputs @ weights))) + 0.5e-3 * weights @ weights

    def use(solver: Any) -> Callable[[], Any]:
        start = jnp.zeros(inputs.shape[1])
        return lambda: optx.minimise(loss, solver, start, max_steps=2000, throw=False).value

    uses = {name: use(solver) for name, solver in solvers.items()}
    rows: list[Row] = []
    for name, run in uses.items():
        ms, ratio, low, high = against(uses["polynomial of degree 4"], {name: run})[name]
        row = {"method": name, "loss": f"{float(loss(run(), None)):.6f}", "ms": ms}
        rows.append(row | {"degree 4 / it": ratio, "95%": f"{low:.3g} to {high:.3g}"})
    return rows


BENCHMARKS: dict[str, Callable[[], list[Row]]] = {
    "hadamard_transform": hadamard_transform,
    "sketched_least_squares": sketched_least_squares,
    "matrix_square_roots": matrix_square_roots,
    "logistic_regression": logistic_regression,
}


if __name__ == "__main__":
    main(BENCHMARKS, __doc__)
