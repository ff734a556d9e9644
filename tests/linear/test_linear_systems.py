"""What every method for linear systems must do (over the catalogue), and how it is judged."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.sparse as sp

from nearly.core import catalogue
from nearly.core.errors import InputError
from nearly.core.problem import Host
from nearly.core.tally import tally
from nearly.linear import NEEDS, grids
from nearly.linear.conjugate_gradient import ConjugateGradient
from nearly.linear.direct import factor_of
from nearly.linear.problems.instances import convection_diffusion2d, poisson2d_obstacles
from nearly.linear.problems.system import LinearSystem
from nearly.linear.relaxation import Jacobi

# Those of a paper are trained, and tested where they live.
METHODS = [n for n, line in catalogue.methods("linear-systems").items() if line.paper is None]
DEFINITE = poisson2d_obstacles(size=9, obstacles=2)
GENERAL = convection_diffusion2d(size=8)
SINGLE = partial(grids.poisson2d, dtype="float32")


def solved(problem: LinearSystem, method: Any, dial: Any) -> tuple[dict[str, float], Any]:
    with jax.enable_x64(problem.dtype == "float64"):
        standin = problem.build(method, dial, key=jax.random.key(0))
        value = problem.apply(standin, key=jax.random.key(1))
        return dict(problem.errors(value)), value


@pytest.mark.parametrize("name", METHODS)
def test_every_method_solves_what_it_is_for(name: str) -> None:
    if name.startswith("pyamg"):
        pytest.importorskip("pyamg")
    problem = GENERAL if "general" in NEEDS.get(name, ()) else DEFINITE
    method = catalogue.method(name, "linear-systems")[0]
    dials = list(problem.dials(method))
    assert dials
    errors, (b, x) = solved(problem, method, dials[-2] if len(dials) > 1 else dials[0])
    assert errors["relative residual"] < 1e-7  # of 1e-8; some stop by other norms
    assert np.shape(x) == np.shape(b)
    assert np.asarray(x).dtype == np.float64
    if problem.is_definite:  # nothing leaks into or out of obstacles
        blocked = ~np.asarray(problem.operator.mask)
        assert np.abs(np.asarray(x)[blocked]).max() < 1e-7


def test_by_default_methods_run_that_the_matrix_allows() -> None:
    definite = {n for n, line in DEFINITE.methods().items() if line.default}
    general = {n for n, line in GENERAL.methods().items() if line.default}
    assert {"multigrid-cg", "scipy-cg", "conjugate-gradient", "lineax-lu"} <= definite
    assert {"lineax-gmres", "incomplete-lu-gmres", "scipy-splu"} <= general
    assert not definite & {"lineax-gmres"} and not general & {"scipy-cg", "multigrid-cg"}
    large = LinearSystem(operator=SINGLE(45), dtype="float32")
    assert not large.methods()["lineax-lu"].default


def test_errors_are_those_of_the_dense_solution() -> None:
    def halved(matrix: Any) -> Any:
        return lambda b, rtol: 0.5 * np.linalg.solve(matrix.toarray(), b)

    errors, _ = solved(DEFINITE, Host(halved), 1e-3)
    for name in ("relative residual", "relative error", "A-norm error"):
        assert errors[name] == pytest.approx(0.5, rel=1e-10)
    assert "A-norm error" not in solved(GENERAL, Host(halved), 1e-3)[0]


def test_work_is_products_and_applications_whoever_does_them() -> None:
    def ours(operator: Any) -> Any:
        return ConjugateGradient(1e-3), {"preconditioner": Jacobi()(operator)}

    def theirs(operator: Any) -> Any:
        solver = lx.CG(1e-3, 1e-12, stabilise_every=None, max_steps=500)
        return solver, {"preconditioner": Jacobi()(operator)}

    for method, extra in ((ours, 0), (theirs, 1)):
        with jax.enable_x64(True):
            standin = DEFINITE.build(method, 1e-6, key=jax.random.key(0))
            with tally() as counts:
                _, x = DEFINITE.apply(standin, key=jax.random.key(1))
                jax.block_until_ready(x)
            found = counts.read()
        # Without a first guess the first residual is b; lineax multiplies by zero all the same.
        assert found["preconditioner applications"] == found["matvecs"] + 1 - extra
        assert found["matvecs"] > 10


def test_a_given_right_hand_side_is_used_and_nothing_is_random() -> None:
    side = jnp.arange(9.0, dtype="float32").reshape(3, 3)
    problem = LinearSystem(operator=SINGLE(3), side=side, dtype="float32")
    assert not problem.random(ConjugateGradient(1e-3))
    errors, (b, _) = solved(problem, ConjugateGradient(1e-3), 1e-5)
    np.testing.assert_array_equal(b, side)
    assert errors["relative residual"] < 2e-5


def test_direct_factors_know_what_is_definite_and_refuse_what_is_singular() -> None:
    laplace = sp.csr_array(np.diag([2.0] * 6) - np.eye(6, k=1) - np.eye(6, k=-1))
    assert factor_of(laplace, symmetric=True).is_definite
    shifted = sp.csr_array(laplace - 0.5 * sp.eye_array(6))
    assert np.linalg.eigvalsh(shifted.toarray()).min() < 0
    assert not factor_of(shifted, symmetric=True).is_definite
    x = np.arange(6.0)
    for matrix in (laplace, shifted):
        found = factor_of(matrix, symmetric=True).solve(matrix @ x)
        np.testing.assert_allclose(found, x, atol=1e-13)
    with pytest.raises(InputError, match="singular"):
        factor_of(sp.csr_array(np.ones((3, 3))), symmetric=True)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda: LinearSystem(operator=grids.poisson2d(3, "float32")),
            "float32 in a problem of float64",
        ),
        (
            lambda: LinearSystem(
                operator=grids.poisson2d(3, "float32"), kind="rough", dtype="float32"
            ),
            "rough",
        ),
        (
            lambda: LinearSystem(
                operator=lx.MatrixLinearOperator(jnp.ones((2, 3), "float32")), dtype="float32"
            ),
            "not square",
        ),
        (
            lambda: LinearSystem(operator=SINGLE(3), side=jnp.ones(9, "float32"), dtype="float32"),
            r"shape \(9,\)",
        ),
        (lambda: DEFINITE.build("cg", 1e-3, key=None), "str is no method"),
    ],
)
def test_what_is_no_system_is_refused(make: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        make()
