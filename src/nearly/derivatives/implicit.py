"""Derivatives of a solver's output, from the equations that the output satisfies.

    @custom_root(jax.grad(loss))          # loss(x, theta); the equations: its gradient is zero
    def fit(init, theta):                 # any solver: its inside is never differentiated
        return some_solver(loss, init, theta)

    jax.jacobian(fit, argnums=1)(init, theta)

Where F(x, theta) = 0 defines x(theta), the derivative solves (dF/dx) x' = -(dF/dtheta) theta'. How
x was found does not matter: by a loop, on the host, by a program that cannot be differentiated.

How it differs from the paper's JAXopt, and why:

- The solver stands outside the rule: its output is cut off from differentiation, and an identity
  at the solution carries the derivative. So the solver is traced once, may run on the host when
  its inputs are concrete, and may close over anything.
- One rule for tangents whose linear solve transposes, instead of one for cotangents: forward mode,
  reverse mode and all higher orders follow from it. JAXopt has reverse mode, first order.
- What `optimality` closes over is differentiated too, silently wrong or an error elsewhere.
- Small systems are solved by a factorisation whose conditioning is checked, so that a singular
  Jacobian is an error and not a large number.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from nearly.core.errors import InputError

DENSE = 512
"""Up to this many unknowns the Jacobian is formed and factorised unless a solver is given."""

_SINGULAR = (
    "the Jacobian of the optimality condition at the solution is singular to working precision, so "
    "the solution has no derivative there. Remove what is undetermined (`conditions.restricted` "
    "freezes unknowns, such as the zeros of a lasso), damp it (`conditions.damped`), or ask for "
    "the least-norm derivative with solve=lineax.AutoLinearSolver(well_posed=False)."
)
_NOT_FINITE = (
    "the solver returned a solution that is not finite, so it has no derivative: the solver "
    "diverged. Start it closer, shorten its step, or use another solver; the derivative does not "
    "depend on which."
)


class _System(eqx.Module):
    """The equations that the solution satisfies, and how their linearisation is solved."""

    optimality: Callable[..., Any]
    args: tuple[Any, ...]
    solve: lx.AbstractLinearSolver[Any] | None
    tags: frozenset[object] = eqx.field(static=True)

    def residual(self, x: PyTree) -> PyTree:
        return self.optimality(x, *self.args)


def implicit_root(
    optimality: Callable[..., PyTree],
    x: PyTree,
    *args: Any,
    solve: lx.AbstractLinearSolver[Any] | None = None,
    tags: Iterable[object] = (),
) -> PyTree:
    """A root that has been found, as a differentiable function of what its equations depend on.

    **Arguments:**

    - `optimality`: (x, *args) -> residual, zero at the solution; a pytree of as many real numbers
      as x. It must be differentiable JAX code; what it closes over is differentiated too.
    - `x`: the solution: a pytree of real arrays. Nothing is differentiated through it.
    - `args`: pytrees; leaves that are no floating-point arrays (integers, None, functions) are
      constants.
    - `solve`: the lineax solver for systems in the Jacobian dF/dx. By default the Jacobian is
      formed and factorised up to 512 unknowns (by Cholesky if `tags` say it is definite), and
      beyond that CG or GMRES use it through products only.
    - `tags`: what lineax should know of dF/dx, such as `lineax.positive_semidefinite_tag`.

    **Returns:** x, unchanged. Its tangents solve (dF/dx) x' = -(dF/dtheta) theta' at x, in forward
    and reverse mode and to any order.

    **Raises:** `InputError` if x holds no real arrays or the numbers of equations and unknowns
    differ; at run time, when a derivative is asked for, an error if the Jacobian is singular or x
    is not finite.

    **Cost:** nothing without differentiation. Per derivative one factorisation, n^3/3 for n
    unknowns and n^2 memory, or the products of an iterative solve; never the solver's memory.

    Paper: `implicit-differentiation`. If x is off by e, so is its derivative, by O(e) (there,
    Theorem 1); `implicit_jvp` estimates by how much.
    """
    x = jax.tree.map(_unknown, x)
    if not jax.tree.leaves(x):
        raise InputError("the solution holds no arrays, so there is nothing to differentiate")
    args = jax.tree.map(lambda leaf: jnp.asarray(leaf) if eqx.is_array(leaf) else leaf, args)
    closed = eqx.filter_closure_convert(optimality, x, *args)
    system = _System(closed, args, solve, frozenset(tags))
    _check_square(system, x)
    return _at_root(x, system)


def implicit_fixed_point(
    step: Callable[..., PyTree],
    x: PyTree,
    *args: Any,
    solve: lx.AbstractLinearSolver[Any] | None = None,
    tags: Iterable[object] = (),
) -> PyTree:
    """A fixed point that has been found, as a differentiable function of what it depends on.

    As `implicit_root` for the equations x - T(x, *args) = 0, with `step` the map T. Their Jacobian
    is I - dT/dx: positive definite if T is a gradient step. T need not be a contraction, as long
    as 1 is no eigenvalue of dT/dx. Paper: `implicit-differentiation`.
    """
    return implicit_root(_fixed_point_residual(step), x, *args, solve=solve, tags=tags)


def custom_root(
    optimality: Callable[..., PyTree],
    solve: lx.AbstractLinearSolver[Any] | None = None,
    *,
    tags: Iterable[object] = (),
    has_aux: bool = False,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates a solver so that its output is differentiated through the equations it solves.

    **Arguments:**

    - `optimality`, `solve`, `tags`: as in `implicit_root`.
    - `has_aux`: whether the solver returns (x, aux). Nothing is differentiated through aux.

    **Returns:** a decorator of solvers `(init, *args, **options) -> x`. `args` are also the
    arguments of `optimality` after x; `options` are for the solver alone and are not
    differentiated, nor is `init`, which may be None. The solver may be any Python function: JAX
    code, or code that runs on the host as long as it is not inside jit or vmap (there, wrap it
    with `on_host`).

    **Raises, cost, paper:** as `implicit_root`; the solver runs once, as it is.
    """
    tags = frozenset(tags)

    def decorate(solver: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(solver, updated=())
        def solved(init: Any, /, *args: Any, **options: Any) -> Any:
            frozen_init, frozen, options = _stopped((init, args, options))
            found = _stopped(solver(frozen_init, *frozen, **options))
            x, aux = found if has_aux else (found, None)
            x = implicit_root(optimality, x, *args, solve=solve, tags=tags)
            return (x, aux) if has_aux else x

        return solved

    return decorate


def custom_fixed_point(
    step: Callable[..., PyTree],
    solve: lx.AbstractLinearSolver[Any] | None = None,
    *,
    tags: Iterable[object] = (),
    has_aux: bool = False,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates a solver whose output x is a fixed point, x = T(x, *args), with `step` the map T.

    As `custom_root` for the equations x - T(x, *args) = 0; see `implicit_fixed_point`.
    """
    return custom_root(_fixed_point_residual(step), solve, tags=tags, has_aux=has_aux)


def on_host(solver: Callable[..., Any]) -> Callable[..., PyTree]:
    """Makes a NumPy or SciPy solver `(init, *args) -> x` usable inside jit and vmap.

    The result must have the shapes and dtypes of `init`, which decides what JAX expects; batches
    under vmap run one after the other. Leaves of args that are no arrays are handed over as they
    are.
    """

    @functools.wraps(solver, updated=())
    def called(init: PyTree, *args: Any) -> PyTree:
        init = jax.tree.map(jnp.asarray, init)
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), init)
        arrays, rest = eqx.partition(args, eqx.is_array)

        def call(init: PyTree, arrays: PyTree) -> PyTree:
            init, arrays = jax.tree.map(np.asarray, (init, arrays))
            found = solver(init, *eqx.combine(arrays, rest))
            return jax.tree.map(lambda leaf, like: np.asarray(leaf, like.dtype), found, shapes)

        return jax.pure_callback(call, shapes, init, arrays, vmap_method="sequential")

    return called


# ---- how far the derivative can be trusted


class ImplicitDerivative(eqx.Module):
    """A derivative along one direction, and how far it can be trusted.

    **Attributes:**

    - `value`: the tangent (or cotangents) at the solution as it was given.
    - `refined`: the same after one Newton step on the equations.
    - `error`: the norm of their difference: the estimated error of `value`. It is exact as the
      solution converges, if the equations are twice differentiable there.
    - `solution_error`: the norm of the Newton step: the estimated error of the solution.
    """

    value: PyTree
    refined: PyTree
    error: Float[Array, ""]
    solution_error: Float[Array, ""]


def implicit_jvp(
    optimality: Callable[..., PyTree],
    x: PyTree,
    args: tuple[Any, ...],
    tangents: tuple[Any, ...],
    solve: lx.AbstractLinearSolver[Any] | None = None,
) -> ImplicitDerivative:
    """The derivative of a root along `tangents`, with an estimate of its error.

    **Arguments:** as in `implicit_root`; `tangents` has the structure of `args`, all floating.

    **Returns:** an `ImplicitDerivative`, `value` of x's structure.

    **Raises:** as `implicit_root`. **Cost:** three linear solves with two factorisations.
    """

    def along(x: PyTree) -> PyTree:
        root = functools.partial(implicit_root, optimality, x, solve=solve)
        return jax.jvp(lambda *a: root(*a), args, tangents)[1]

    return _trusted(along, optimality, x, args, solve)


def implicit_vjp(
    optimality: Callable[..., PyTree],
    x: PyTree,
    args: tuple[Any, ...],
    cotangent: PyTree,
    solve: lx.AbstractLinearSolver[Any] | None = None,
) -> ImplicitDerivative:
    """The gradient of <cotangent, x(args)> in args, with an estimate of its error.

    As `implicit_jvp`, `value` of the structure of `args`.
    """

    def along(x: PyTree) -> PyTree:
        root = functools.partial(implicit_root, optimality, x, solve=solve)
        return jax.vjp(lambda *a: root(*a), *args)[1](cotangent)

    return _trusted(along, optimality, x, args, solve)


def _trusted(
    along: Callable[[PyTree], PyTree],
    optimality: Callable[..., PyTree],
    x: PyTree,
    args: tuple[Any, ...],
    solve: lx.AbstractLinearSolver[Any] | None,
) -> ImplicitDerivative:
    x = jax.tree.map(_unknown, x)
    system = _System(optimality, args, solve, frozenset())
    _check_square(system, x)
    newton = _solve_linearised(system, x, system.residual(x))
    better = jax.tree.map(jnp.subtract, x, newton)
    value, refined = along(x), along(better)
    difference = jax.tree.map(jnp.subtract, value, refined)
    return ImplicitDerivative(value, refined, _norm(difference), _norm(newton))


def _norm(tree: PyTree) -> Array:
    return jnp.linalg.norm(ravel_pytree(tree)[0])


# ---- the rule


@eqx.filter_custom_jvp
def _at_root(x: PyTree, system: _System) -> PyTree:
    del system
    return x


@_at_root.def_jvp
def _(primals: Any, tangents: Any) -> tuple[PyTree, PyTree]:
    (x, system), (_, moving) = primals, tangents
    fixed = jax.tree.map(lambda t: t is None, moving, is_leaf=lambda t: t is None)
    constant, varied = eqx.partition(system, fixed, is_leaf=lambda t: t is None)
    # Not x: the root must carry its own derivatives, or second orders would lack a term.
    root = _at_root(x, system)
    if not jax.tree.leaves(moving):
        return root, jax.tree.map(jnp.zeros_like, root)

    def residual(varied: PyTree) -> PyTree:
        return eqx.combine(varied, constant).residual(root)

    _, right = jax.jvp(residual, (varied,), (moving,))
    return root, jax.tree.map(jnp.negative, _solve_linearised(system, root, right))


def _solve_linearised(system: _System, root: PyTree, right: PyTree) -> PyTree:
    """The solution of (dF/dx) y = right, as a pytree like x."""
    flat, unflatten = ravel_pytree(root)
    if system.solve is None and flat.size <= DENSE:
        return unflatten(_solve_dense(system, flat, unflatten, ravel_pytree(right)[0]))
    root = eqx.error_if(root, ~jnp.all(jnp.isfinite(flat)), _NOT_FINITE)
    operator = lx.JacobianLinearOperator(
        lambda x, system: system.residual(x), root, system, tags=system.tags
    )
    solver = system.solve or _iterative(operator, flat)
    return lx.linear_solve(operator, right, solver).value


def _solve_dense(
    system: _System, flat: Array, unflatten: Callable[[Array], PyTree], right: Array
) -> Array:
    matrix = jax.jacfwd(lambda x: ravel_pytree(system.residual(unflatten(x)))[0])(flat)
    solver = lx.AutoLinearSolver(well_posed=True)
    operator = lx.MatrixLinearOperator(matrix, system.tags)
    factors = jax.lax.stop_gradient(solver.init(operator, {}))
    singular = _is_singular(jax.lax.stop_gradient(matrix), solver, factors)
    # One check for both causes: each costs a callback in the compiled program.
    cause = jnp.where(jnp.all(jnp.isfinite(flat)), 0, 1)
    failed = singular | (cause == 1)
    factors = eqx.branched_error_if(factors, failed, cause, [_SINGULAR, _NOT_FINITE])
    return lx.linear_solve(operator, right, solver, state=factors).value


def _is_singular(
    matrix: Float[Array, "n n"], solver: lx.AbstractLinearSolver[Any], factors: PyTree
) -> Array:
    """Whether the smallest singular value is zero to working precision, as in NumPy's rank.

    Two steps of inverse iteration, from a vector of random signs. A right side that happens to
    suit a singular matrix is solved without complaint, with an arbitrary part in the null space:
    looking at the solution is not enough.
    """
    size = matrix.shape[0]
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size)
    once, _, _ = solver.compute(factors, jnp.asarray(signs, matrix.dtype), {})
    transposed, _ = solver.transpose(factors, {})
    twice, _, _ = solver.compute(transposed, once / jnp.linalg.norm(once), {})
    inverse = jnp.linalg.norm(twice)
    rank_tolerance = size * jnp.finfo(matrix.dtype).eps
    return ~(jnp.linalg.norm(matrix) * inverse * rank_tolerance < 1)  # true for NaN as well


def _iterative(operator: lx.AbstractLinearOperator, flat: Array) -> lx.AbstractLinearSolver[Any]:
    tolerance = 1e-10 if flat.dtype == jnp.float64 else 1e-5
    if lx.is_positive_semidefinite(operator) or lx.is_negative_semidefinite(operator):
        return lx.CG(rtol=tolerance, atol=tolerance)
    return lx.GMRES(rtol=tolerance, atol=tolerance, restart=50)


# ---- what the user hands over


def _fixed_point_residual(step: Callable[..., PyTree]) -> Callable[..., PyTree]:
    def residual(x: PyTree, *args: Any) -> PyTree:
        return jax.tree.map(jnp.subtract, x, step(x, *args))

    return residual


def _stopped(tree: PyTree) -> PyTree:
    """A pytree of anything, cut off from differentiation."""
    return jax.tree.map(lambda x: jax.lax.stop_gradient(x) if eqx.is_array(x) else x, tree)


def _unknown(leaf: Any) -> Array:
    leaf = jax.lax.stop_gradient(jnp.asarray(leaf))
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        raise InputError(
            f"the solution has a leaf of dtype {leaf.dtype}; only real floating-point numbers have "
            "derivatives: return the rest as aux (has_aux=True), complex numbers as two real ones"
        )
    return leaf


def _check_square(system: _System, x: PyTree) -> None:
    residual = jax.eval_shape(system.residual, x)
    equations = sum(leaf.size for leaf in jax.tree.leaves(residual))
    unknowns = sum(leaf.size for leaf in jax.tree.leaves(x))
    if equations != unknowns:
        raise InputError(
            f"optimality returns {equations} equations for {unknowns} unknowns; it must return as "
            "many numbers as the solution has"
        )
