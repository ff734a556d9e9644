"""Equations that solutions satisfy, to hand to `implicit`: residuals F, or maps T with x = T(x).

    fit = custom_root(conditions.stationarity(loss))(any_solver)
    fit = custom_fixed_point(conditions.projected_gradient(loss, projections.simplex))(any_solver)

They need not be the ones the solver works with: a fixed point of the proximal gradient step is the
solution of a coordinate descent solver as well. Paper: `implicit-differentiation`, Table 1.

Which to take. The derivative needs a Jacobian that is not singular at the solution:

- Without constraints: `stationarity`.
- Equality and inequality constraints with multipliers at hand: `kkt`. Inactive constraints are no
  trouble; one that is active with multiplier 0 has no derivative.
- A projection or proximal operator at hand: `projected_gradient`, `proximal_gradient`. Coordinates
  held at a bound or at 0 take the identity's rows, so a lasso needs no restriction to its support.
- Otherwise `restricted` freezes unknowns by a rule of your own, `damped` regularises them all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from nearly.core.errors import InputError

Condition = Callable[..., PyTree]
Objective = Callable[..., Array]
Blocks = tuple[PyTree, ...] | list[PyTree]


def stationarity(objective: Objective) -> Condition:
    """F = gradient of objective(x, *args) in x: for unconstrained minima (and other extrema).

    Its Jacobian is the Hessian: at a minimum, pass `tags=lineax.positive_semidefinite_tag`.
    """
    return jax.grad(objective)


# ---- constraints and their multipliers


class Multipliers(NamedTuple):
    """A solution with the multipliers of its constraints: the unknowns of `kkt`."""

    x: PyTree
    equality: PyTree = ()
    inequality: PyTree = ()


def kkt(
    objective: Objective,
    equality: Condition | None = None,
    inequality: Condition | None = None,
) -> Condition:
    """The Karush-Kuhn-Tucker equations of min objective, equality = 0, inequality <= 0.

    **Arguments:** functions of (x, *args); the constraints return pytrees of arrays.

    **Returns:** F on `Multipliers(x, nu, mu)` with the equations

        grad objective + nu . grad equality + mu . grad inequality = 0
        equality = 0
        mu * inequality = 0

    Signs are not part of F: it is for differentiating a solution, which has mu >= 0. The Jacobian
    is not singular if no active inequality has mu = 0, the gradients of the active constraints are
    independent, and the objective is curved along them.

    **Raises:** `InputError` if there are no constraints at all (then take `stationarity`).
    """
    if equality is None and inequality is None:
        raise InputError("kkt needs equality or inequality; without both, use stationarity")
    equal, unequal = equality or _nothing, inequality or _nothing

    def residual(point: Multipliers, *args: Any) -> Multipliers:
        def lagrangian(x: PyTree) -> Array:
            held = _dot(point.equality, equal(x, *args))
            bounded = _dot(point.inequality, unequal(x, *args))
            return objective(x, *args) + held + bounded

        slack = jax.tree.map(jnp.multiply, point.inequality, unequal(point.x, *args))
        return Multipliers(jax.grad(lagrangian)(point.x), equal(point.x, *args), slack)

    return residual


def _nothing(*_: Any) -> tuple[()]:
    return ()


def _dot(a: PyTree, b: PyTree) -> Array | float:
    return sum(jnp.sum(x * y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def conic(cone: Callable[[Float[Array, " m"]], Float[Array, " m"]]) -> Condition:
    """The residual of min c . x with A x + s = b, s in a cone K, and its dual.

    **Arguments:**

    - `cone`: the projection onto the *dual* cone of K: `projections.nonnegative` for inequalities,
      the identity for equalities, `projections.second_order_cone`, or blocks of them.

    **Returns:** F on (x, v), v = y - s the dual variable less the slack, with args (A, b, c):
    A^T y + c and b - A x - s, where y is the projection of v and s = y - v.

    It is the homogeneous self-dual embedding at scale 1. The embedding itself is homogeneous, so
    its Jacobian is singular along every solution; the equation for the scale, which says that the
    duality gap is 0, follows from the other two.
    """

    def residual(
        point: tuple[Array, Array], matrix: Array, offset: Array, cost: Array
    ) -> tuple[Array, Array]:
        x, v = point
        y = cone(v)
        return matrix.T @ y + cost, offset - matrix @ x - (y - v)

    return residual


# ---- steps of algorithms, as fixed points


def gradient_descent(objective: Objective, stepsize: float = 1.0) -> Condition:
    """T = x - stepsize * gradient of objective(x, *args)."""

    def step(x: PyTree, *args: Any) -> PyTree:
        return _descend(x, jax.grad(objective)(x, *args), stepsize)

    return step


def projected_gradient(
    objective: Objective, projection: Callable[..., PyTree], stepsize: float = 1.0
) -> Condition:
    """T = projection(x - stepsize * gradient of objective(x, theta), *bounds).

    **Arguments:**

    - `objective`: of (x, theta). `projection`: of (point, *bounds), onto a convex set.
    - `stepsize`: positive. It does not change the fixed point or its derivative, only how well
      conditioned the equations are: one over the objective's curvature is good.

    **Returns:** T, (x, theta, *bounds) -> x; `bounds` may be left out.
    """
    return proximal_gradient(objective, lambda x, _, *bounds: projection(x, *bounds), stepsize)


def proximal_gradient(
    objective: Objective, prox: Callable[..., PyTree], stepsize: float = 1.0
) -> Condition:
    """T = prox(x - stepsize * gradient of objective(x, theta), stepsize, *rest).

    **Arguments:**

    - `objective`: the smooth part, of (x, theta).
    - `prox`: of (point, scale, *rest): the proximal operator of scale * g(., *rest). For a lasso
      with a penalty to be differentiated: `lambda x, scale, lam: soft_threshold(x, scale * lam)`.
    - `stepsize`: as in `projected_gradient`.

    **Returns:** T, (x, theta, *rest) -> x.
    """
    _check_stepsize(stepsize)

    def step(x: PyTree, theta: Any, *rest: Any) -> PyTree:
        descended = _descend(x, jax.grad(objective)(x, theta), stepsize)
        return prox(descended, stepsize, *rest)

    return step


def mirror_descent(
    objective: Objective,
    mirror: Callable[[PyTree], PyTree],
    projection: Callable[..., PyTree],
    stepsize: float = 1.0,
) -> Condition:
    """T = projection(mirror(x) - stepsize * gradient of objective(x, theta), *bounds).

    **Arguments:**

    - `mirror`: the gradient of the generating function phi, x -> dual point.
    - `projection`: dual point -> the point of the set nearest in the Bregman divergence of phi. On
      the simplex with entropy they are `jnp.log` and `jax.nn.softmax`.
    - `objective`, `stepsize`, returns: as in `projected_gradient`.
    """
    _check_stepsize(stepsize)

    def step(x: PyTree, theta: Any, *bounds: Any) -> PyTree:
        return projection(_descend(mirror(x), jax.grad(objective)(x, theta), stepsize), *bounds)

    return step


def newton(optimality: Condition, stepsize: float = 1.0) -> Condition:
    """T = x - stepsize * (dF/dx)^-1 F(x, *args): Newton's step for F(x, *args) = 0.

    Its derivative is that of `optimality` itself, at the price of a solve inside the linearised
    equations; take `implicit.custom_root(optimality)` unless T is what you iterate.
    """
    _check_stepsize(stepsize)

    def step(x: PyTree, *args: Any) -> PyTree:
        flat, unflatten = ravel_pytree(x)

        def residual(point: Array) -> Array:
            return ravel_pytree(optimality(unflatten(point), *args))[0]

        jacobian = lx.MatrixLinearOperator(jax.jacfwd(residual)(flat))
        return unflatten(flat - stepsize * lx.linear_solve(jacobian, residual(flat)).value)

    return step


def block_coordinate_descent(
    objective: Objective,
    proxes: Sequence[Callable[..., PyTree]],
    stepsizes: Sequence[float] | None = None,
) -> Condition:
    """T: one sweep of proximal gradient steps, block after block, each seeing those before it.

    **Arguments:**

    - `objective`: the smooth part, of (x, theta), x a tuple or list of blocks.
    - `proxes`: for each block, of (block, scale, *rest), as in `proximal_gradient`.
    - `stepsizes`: for each block; by default 1.

    **Returns:** T, (x, theta, *rest) -> x, differentiated as the sweep that it is. The paper uses
    the gradient at the old point for all blocks; both have the same fixed points and derivatives,
    and the sweep converges wherever block coordinate descent does.

    **Raises:** `InputError` if the numbers of blocks and step sizes differ.
    """
    sizes = [1.0] * len(proxes) if stepsizes is None else list(stepsizes)
    if len(sizes) != len(proxes):
        raise InputError(f"{len(sizes)} stepsizes for {len(proxes)} blocks; give one for each")
    for size in sizes:
        _check_stepsize(size)

    def step(x: Blocks, theta: Any, *rest: Any) -> Blocks:
        if len(x) != len(proxes):
            raise InputError(f"x has {len(x)} blocks, but there are {len(proxes)} proxes")
        blocks = list(x)
        for i, (prox, size) in enumerate(zip(proxes, sizes, strict=True)):
            slope = jax.grad(lambda block, i=i: objective(_with(x, blocks, i, block), theta))
            blocks[i] = prox(_descend(blocks[i], slope(blocks[i]), size), size, *rest)
        return type(x)(blocks)

    return step


def _with(x: Blocks, blocks: list[PyTree], index: int, block: PyTree) -> Blocks:
    return type(x)([block if i == index else other for i, other in enumerate(blocks)])


def _descend(x: PyTree, gradient: PyTree, stepsize: float) -> PyTree:
    return jax.tree.map(lambda leaf, slope: leaf - stepsize * slope, x, gradient)


def _check_stepsize(stepsize: float) -> None:
    if not stepsize > 0:
        raise InputError(f"stepsize {stepsize} must be positive, such as 1 / curvature")


# ---- where the Jacobian would be singular


def restricted(optimality: Condition, free: Callable[..., PyTree]) -> Condition:
    """F on the unknowns that are free; the others keep their values and have derivative 0.

    **Arguments:**

    - `free`: (x, *args) -> booleans of x's structure, True where an unknown may move: for a lasso
      `lambda w, *_: w != 0`. The residual must have the structure of x.

    The restricted derivative is that of the problem in which the rest is held fixed. It is the
    true one if a small change of args leaves them where they are.
    """

    def residual(x: PyTree, *args: Any) -> PyTree:
        # A frozen unknown stands still by an equation of its own, whose Jacobian is the identity.
        still = jax.tree.map(lambda leaf: leaf - jax.lax.stop_gradient(leaf), x)
        return jax.tree.map(jnp.where, free(x, *args), optimality(x, *args), still)

    return residual


def damped(optimality: Condition, damping: float) -> Condition:
    """F + damping * (x - x*), x* the solution: its derivative solves (dF/dx + damping I) x' = ….

    The value of F at the solution is unchanged, its Jacobian is shifted. For a positive
    semi-definite Jacobian with smallest eigenvalue m above 0 this biases the derivative by at most
    damping / (m + damping), relative; along null directions it gives finite values where there is
    no derivative.
    """
    if not damping > 0:
        raise InputError(f"damping {damping} must be positive, such as 1e-6 times the curvature")

    def residual(x: PyTree, *args: Any) -> PyTree:
        def shift(leaf: Array, value: Array) -> Array:
            return value + damping * (leaf - jax.lax.stop_gradient(leaf))

        return jax.tree.map(shift, x, optimality(x, *args))

    return residual
