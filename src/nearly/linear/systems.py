"""Ready-made solvers for the catalogue: of systems, set up once; of sequences, always the same."""

from __future__ import annotations

from typing import Any

import jax
import lineax as lx

from nearly.linear.conjugate_gradient import ConjugateGradient
from nearly.linear.deflation import Deflation
from nearly.linear.flexible_cg import FlexibleConjugateGradient
from nearly.linear.incomplete import IncompleteCholesky, IncompleteLU
from nearly.linear.krylov import lowest_ritz_vectors
from nearly.linear.multigrid import Multigrid
from nearly.linear.peers import lineax_gmres
from nearly.linear.relaxation import Jacobi, Sor, Ssor
from nearly.linear.stationary import Stationary

Method = tuple[lx.AbstractLinearSolver[Any], dict[str, Any]]
MOST = 20_000  # iterations before a solver gives up

conjugate_gradient = ConjugateGradient(1e-3, max_steps=MOST)
gauss_seidel = Stationary(1e-3, preconditioner=Sor(1.0), max_steps=MOST)
symmetric_gauss_seidel_cg = ConjugateGradient(1e-3, preconditioner=Ssor(1.0), max_steps=MOST)


def _preconditioned(make: Any, operator: lx.AbstractLinearOperator) -> Method:
    return conjugate_gradient, {"preconditioner": make(operator)}


def jacobi_cg(operator: lx.AbstractLinearOperator) -> Method:
    """Conjugate gradients with the diagonal."""
    return _preconditioned(Jacobi(), operator)


def ssor_cg(operator: lx.AbstractLinearOperator) -> Method:
    """Conjugate gradients with SSOR, over-relaxed by 1.8."""
    return _preconditioned(Ssor(1.8), operator)


def flexible_cg(operator: lx.AbstractLinearOperator) -> Method:
    """Flexible conjugate gradients with SSOR: what flexibility alone costs."""
    return FlexibleConjugateGradient(1e-3, max_steps=MOST), {"preconditioner": Ssor(1.8)(operator)}


def incomplete_cholesky_cg(operator: lx.AbstractLinearOperator) -> Method:
    """Conjugate gradients with an incomplete Cholesky factor without fill."""
    return _preconditioned(IncompleteCholesky(), operator)


def multigrid_cg(operator: lx.AbstractLinearOperator) -> Method:
    """Conjugate gradients with a geometric V-cycle, on structured grids."""
    return _preconditioned(Multigrid(), operator)


def deflated_cg(operator: lx.AbstractLinearOperator) -> Method:
    """Conjugate gradients without the 16 lowest Ritz vectors of 150 Lanczos steps."""
    steps = min(150, operator.in_size())
    key = jax.random.key(0)
    vectors = lowest_ritz_vectors(operator, key, steps=steps, count=min(16, steps))
    return _preconditioned(Deflation(vectors, Jacobi()), operator)


def incomplete_lu_gmres(operator: lx.AbstractLinearOperator) -> Method:
    """lineax's GMRES with an incomplete LU factorisation without fill."""
    return lineax_gmres, {"preconditioner": IncompleteLU()(operator)}
