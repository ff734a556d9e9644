"""Finite elements: exactness, order, scikit-fem's matrices, gradients, errors."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nearly.core.errors import InputError
from nearly.pde.finite_elements import (
    FiniteElements,
    Mesh,
    rectangle_mesh,
    solve_diffusion,
    solve_diffusion_direct,
)

CELLS = pytest.mark.parametrize("cell", ["quadrilateral", "triangle"])


def skewed(cell: str, n: int = 3, m: int = 4) -> Mesh:
    """A mesh without right angles."""
    mesh = rectangle_mesh(n, m, sides=(2.0, 1.0), cell=cell)  # pyright: ignore
    x, y = mesh.points.T
    return Mesh(jnp.stack([x + 0.2 * y, y + 0.1 * x * y], axis=1), mesh.cells)


@CELLS
def test_a_linear_function_is_found_whatever_the_mesh(cell: str) -> None:
    with jax.enable_x64(True):
        mesh = skewed(cell)
        space, (x, y) = FiniteElements(mesh), mesh.points.T
        linear = 1 + 2 * x - 3 * y
        found = solve_diffusion(space, 2.0, 0.0, fixed=mesh.boundary(), values=linear)
        np.testing.assert_allclose(found, linear, atol=1e-9)
        gradient = space.gradient(linear)
        np.testing.assert_allclose(
            gradient, jnp.broadcast_to(jnp.asarray([2.0, -3.0]), gradient.shape), atol=1e-12
        )


@CELLS
def test_matrices_are_those_of_scikit_fem(cell: str) -> None:
    skfem = pytest.importorskip("skfem")
    from skfem.models.poisson import laplace, mass

    with jax.enable_x64(True):
        mesh = skewed(cell)
        space = FiniteElements(mesh)
        triangle = cell == "triangle"
        kind = skfem.MeshTri if triangle else skfem.MeshQuad
        element = skfem.ElementTriP1() if triangle else skfem.ElementQuad1()
        theirs = kind(np.asarray(mesh.points).T, np.asarray(mesh.cells, np.int64).T)
        basis = skfem.Basis(theirs, element, intorder=2 if triangle else 3)
        stiffness = space.assemble(space.stiffness()).toarray()
        np.testing.assert_allclose(stiffness, laplace.assemble(basis).toarray(), atol=1e-12)
        masses = space.assemble(space.mass()).toarray()
        np.testing.assert_allclose(masses, mass.assemble(basis).toarray(), atol=1e-12)
        boundary = np.flatnonzero(np.asarray(mesh.boundary()))
        np.testing.assert_array_equal(boundary, np.sort(theirs.boundary_nodes()))


@CELLS
def test_the_order_is_two_with_a_variable_coefficient(cell: str) -> None:
    with jax.enable_x64(True):
        errors: list[float] = []
        for n in (8, 16, 32):
            mesh = rectangle_mesh(n, n, cell=cell)  # pyright: ignore
            space = FiniteElements(mesh)
            x, y = jnp.moveaxis(space.gauss_points(), -1, 0)
            pi, sx, sy = math.pi, jnp.sin(math.pi * x), jnp.sin(math.pi * y)
            slope = pi * (y * jnp.cos(pi * x) * sy + x * sx * jnp.cos(pi * y))
            a, source = 1 + x * y, 2 * pi**2 * (1 + x * y) * sx * sy - slope
            found = solve_diffusion_direct(space, a, source, fixed=mesh.boundary())
            error = space.values(jnp.asarray(found)) - sx * sy
            errors.append(float(jnp.sqrt(jnp.sum(space.weights * error**2))))
        assert np.all(np.abs(np.log2(np.divide(errors[:-1], errors[1:])) - 2) < 0.1)


@CELLS
def test_forms_agree_with_each_other(cell: str) -> None:
    with jax.enable_x64(True):
        mesh = skewed(cell)
        space, u = FiniteElements(mesh), jax.random.normal(jax.random.key(0), (20,), jnp.float64)
        a = 1 + space.gauss_points()[..., 0] ** 2
        matrix = space.assemble(space.stiffness(a))
        by_flux = space.divergence(a[..., None] * space.gradient(u))
        np.testing.assert_allclose(matrix @ np.asarray(u), by_flux, atol=1e-12)
        np.testing.assert_allclose(space.apply(space.stiffness(a), u), by_flux, atol=1e-12)
        np.testing.assert_allclose(space.diagonal(space.stiffness(a)), matrix.diagonal())
        np.testing.assert_allclose(
            space.apply(space.mass(a), u), space.load(a * space.values(u)), atol=1e-13
        )
        # The area: the integral of the map's determinant, 1 + x / 10 - y / 50.
        np.testing.assert_allclose(space.weights.sum(), 2 + 0.2 - 0.02, rtol=1e-12)


def test_points_without_given_values_have_no_flux() -> None:
    with jax.enable_x64(True):
        mesh = rectangle_mesh(8, 2)
        x = mesh.points[:, 0]
        fixed = x == 0
        found = solve_diffusion(FiniteElements(mesh), 1.0, 2.0, fixed=fixed, values=0.5)
        # -u'' = 2, u(0) = 1/2, u'(1) = 0; nodal values are exact in one dimension.
        np.testing.assert_allclose(found, 0.5 + 2 * x - x**2, atol=1e-9)


def test_the_iteration_finds_what_the_direct_solver_finds_and_is_differentiable() -> None:
    with jax.enable_x64(True):
        mesh = skewed("quadrilateral")
        space, fixed = FiniteElements(mesh), mesh.boundary()
        a = 1 + space.gauss_points()[..., 0]
        values = mesh.points[:, 1] ** 2

        def solve(a: jax.Array) -> jax.Array:
            return solve_diffusion(space, a, 3.0, fixed=fixed, values=values, rtol=1e-13)

        direct = solve_diffusion_direct(space, a, 3.0, fixed=fixed, values=values)
        np.testing.assert_allclose(solve(a), direct, atol=1e-11)
        bump = jnp.zeros_like(a).at[5, 2].set(1e-4)
        difference = jnp.sum(solve(a + bump) ** 2 - solve(a - bump) ** 2) / 2e-4
        gradient = jax.jit(jax.grad(lambda a: jnp.sum(solve(a) ** 2)))(a)
        np.testing.assert_allclose(gradient[5, 2], difference, rtol=1e-5)


def test_errors_name_the_value_and_the_remedy() -> None:
    mesh = rectangle_mesh(2, 2, dtype=jnp.float32)
    space = FiniteElements(mesh)
    with pytest.raises(InputError, match="least value -1 must be positive"):
        solve_diffusion(space, -1.0, 1.0, fixed=mesh.boundary())
    with pytest.raises(InputError, match="no point is fixed"):
        solve_diffusion(space, 1.0, 1.0, fixed=jnp.zeros(9, bool))
    with pytest.raises(InputError, match=r"cell 0 .* clockwise"):
        FiniteElements(Mesh(mesh.points, mesh.cells[:, ::-1]))
    with pytest.raises(InputError, match="name points 0 to 9, there are 0 to 8"):
        Mesh(mesh.points, mesh.cells + (mesh.cells == 8))
    with pytest.raises(InputError, match=r"n=0, m=1"):
        rectangle_mesh(0, 1)
