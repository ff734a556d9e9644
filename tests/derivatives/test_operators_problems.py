"""The operators' problem: truths, catalogue conformance, exact peers; and grid fields."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nearly.core import catalogue
from nearly.core.errors import InputError, UnknownName
from nearly.core.measure import run_trial
from nearly.derivatives.grid_field import GridField, fine_tune, grid_field
from nearly.derivatives.local_fit import local_polynomial, sobol_stencil
from nearly.derivatives.operators import laplacian
from nearly.derivatives.problems.operators import CASES, DerivativeOperator, takes_directions

LINES = catalogue.methods("differential-operators")


@pytest.mark.parametrize("name", [c for c in CASES if c != "gridfield_sdf"])
def test_truth_is_what_every_summand_adds_up_to(name: str) -> None:
    problem = DerivativeOperator(name, dimension=5)
    trial, _ = run_trial(problem, catalogue.method("taylor-exact", problem.protocol)[0], "exact", 0)
    assert trial.status == "ok", trial.reason
    assert trial.errors["relative error"] < 1e-11


@pytest.mark.parametrize("name", LINES)
def test_every_method_estimates_a_laplacian(name: str) -> None:
    """In one place for all lines of the protocol: right to within its own spread, and counted."""
    if name == "folx":
        pytest.importorskip("folx")
    problem = DerivativeOperator("laplacian_mlp", dimension=4)
    method = catalogue.method(name, problem.protocol)[0]
    dial = 64 if takes_directions(method) else "exact"
    trial, _ = run_trial(problem, method, dial, 0)
    assert trial.status == "ok", trial.reason
    assert trial.work["flops"] > 0
    systematic = 1e-2 if name == "local-fit" else 1e-12  # third derivatives times sigma^2
    assert trial.errors["bias"] <= 2 * trial.errors["spread"] / 16**0.5 + systematic


def test_what_a_method_cannot_do_is_a_reason() -> None:
    problem = DerivativeOperator("biharmonic", dimension=3)
    for name in ("folx", "sdgd", "hutchinson", "hessian-trace", "jvp-of-grad", "local-fit"):
        method = catalogue.method(name, problem.protocol)[0]
        trial, _ = run_trial(problem, method, 4 if takes_directions(method) else "exact", 0)
        assert trial.status == "failed"
        assert "use stde" in trial.reason


def test_the_grid_s_curvature_is_seen_by_fits_alone() -> None:
    problem = DerivativeOperator("gridfield_sdf")
    found = {}
    for name, dial in (("jvp-of-grad", "exact"), ("local-fit", 256)):
        method = catalogue.method(name, problem.protocol)[0]
        found[name] = run_trial(problem, method, dial, 0)[0].errors["relative error"]
    assert found["jvp-of-grad"] == pytest.approx(1.0, abs=1e-6)
    assert found["local-fit"] < 0.1


def test_errors_name_the_value_and_the_remedy() -> None:
    with pytest.raises(UnknownName, match="biharmonic"):
        DerivativeOperator("biharmonics")
    with pytest.raises(InputError, match="at least 2"):
        DerivativeOperator(dimension=1)
    with pytest.raises(InputError, match="2 dimensions, not 3"):
        DerivativeOperator("gridfield_sdf", dimension=3).points()
    with pytest.raises(InputError, match="fewer than a batch of 256"):
        field = local_polynomial(lambda x: x @ x, sobol_stencil(16, 2), 0.1)
        fine_tune(field, jnp.zeros((3, 2)), key=jax.random.key(0))
    with pytest.raises(InputError, match="at least one grid"):
        grid_field(2, jax.random.key(0), cells=())
    assert laplacian().order == 2


def test_grids_interpolate_linear_functions_exactly_and_their_corners() -> None:
    axis = jnp.linspace(-1, 1, 5)
    level = (2 * axis[:, None] - axis[None, :])[..., None]
    field = GridField((level,))
    for x in np.random.default_rng(0).uniform(-1, 1, (5, 2)):
        assert field(jnp.asarray(x, "float32")) == pytest.approx(2 * x[0] - x[1], abs=1e-6)
    assert field(jnp.array([1.0, -1.0])) == pytest.approx(3.0)
    decoded = grid_field(3, jax.random.key(0), cells=(4, 8))
    assert jnp.isfinite(decoded(jnp.zeros(3)))


def test_fine_tuning_takes_the_fit_s_gradients_and_keeps_the_values() -> None:
    """A grid whose values jitter around a plane: its own gradients are wrong, the fit's are not."""
    axis = jnp.linspace(-1, 1, 17)
    jitter = 0.01 * jax.random.normal(jax.random.key(0), (17, 17), "float32")
    field = GridField(((axis[:, None] + jitter)[..., None],))
    points = jax.random.uniform(jax.random.key(1), (512, 2), "float32", -0.7, 0.7)
    fitted = local_polynomial(field, sobol_stencil(64, 2), 0.2, degree=1)
    tuned = fine_tune(fitted, points, key=jax.random.key(2), epochs=40).model

    def slope_error(f: Any) -> float:
        gradients = jax.vmap(jax.grad(f))(points)
        return float(jnp.abs(gradients[:, 1] / gradients[:, 0]).mean())

    assert slope_error(tuned) < 0.7 * slope_error(field)
    change = jax.vmap(tuned)(points) - jax.vmap(field)(points)
    assert float(jnp.abs(change).mean()) < 0.02
