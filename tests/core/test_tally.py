"""The conformance test of the tally: a table of transformations, each with its exact counts.

Every expected count is derived by hand (the comment says how), by a NumPy version of the loop, or
from the step count that the ecosystem's library itself reports. None is copied from the output.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.monitoring
import jax.numpy as jnp
import jax.scipy.sparse.linalg
import lineax as lx
import numpy as np
import optax
import optimistix as optx
import pytest
from jax import lax

from nearly.core.tally import clean, counted, tally

Counts = tuple[int, int, int]  # calls, jvps, vjps
Mark = Callable[..., Any]
Build = Callable[[Mark], tuple[Callable[..., Any], tuple[Any, ...]]]

REPEATS = 100


def mark(oracle: Callable[..., Any]) -> Callable[..., Any]:
    return counted(oracle, "calls")


def plain(oracle: Callable[..., Any]) -> Callable[..., Any]:
    return oracle


def names(counts: Counts) -> dict[str, int]:
    return dict(zip(("calls", "calls jvps", "calls vjps"), counts, strict=True))


def run(program: Callable[..., Any], *args: Any) -> dict[str, int]:
    with tally() as counts:
        jax.block_until_ready(program(*args))
    return counts.counts


# ---- the oracles. All are nonlinear unless said otherwise, so that a derivative needs the primal
# input: then neither the call nor its mark is dead code in a compiled gradient.


def loss(x: Any) -> Any:
    return jnp.sum(jnp.sin(x) ** 2)


def field(x: Any) -> Any:
    return 0.9 * jnp.sin(x) + 0.1


def ode(t: Any, y: Any, args: Any) -> Any:
    del t
    return -args * jnp.sin(y) - y**3


X = np.linspace(0.1, 0.9, 3, dtype=np.float32)
DIM = len(X)


def spd(size: int) -> np.ndarray:
    random = np.random.default_rng(0).normal(size=(size, size))
    return (random @ random.T / size + np.eye(size)).astype(np.float32)


class Matrix(eqx.Module):
    """A linear oracle that is a pytree, so its matrix passes through the mark too."""

    matrix: jax.Array

    def __call__(self, x: Any) -> Any:
        return self.matrix @ x


# ---- the table


@dataclass(frozen=True)
class Case:
    name: str
    build: Build
    expected: Counts | Callable[[Any], Counts]  # the latter takes the program's output
    eager: Counts | None  # where it differs: without jit nothing is dead code

    def counts(self, output: Any, *, compiled: bool = True) -> dict[str, int]:
        if self.eager is not None and not compiled:
            return names(self.eager)
        return names(self.expected(output) if callable(self.expected) else self.expected)


TRANSFORMATIONS: list[Case] = []
LIBRARIES: list[Case] = []
SLOW: list[Case] = []


def case(expected: Counts, *, eager: Counts | None = None) -> Callable[[Build], Build]:
    def register(build: Build) -> Build:
        TRANSFORMATIONS.append(Case(build.__name__, build, expected, eager))
        return build

    return register


def library(
    expected: Counts | Callable[[Any], Counts], *, slow: bool = False
) -> Callable[[Build], Build]:
    """A case of some seconds, mostly compilation; `slow` where others cover most of it."""

    def register(build: Build) -> Build:
        (SLOW if slow else LIBRARIES).append(Case(build.__name__, build, expected, None))
        return build

    return register


# -- control flow


@case((1, 0, 0))
def call(mark):
    return mark(loss), (X,)


@case((2, 0, 0))
def nested_jit(mark):
    f = jax.jit(mark(field))
    return lambda x: f(f(x)), (X,)


@case((7, 0, 0))
def scan(mark):
    f = mark(field)
    return lambda x: lax.scan(lambda c, _: (f(c), None), x, length=7)[0], (X,)


# An unrolled loop has the body several times, but runs it as often.
@case((7, 0, 0))
def scan_unrolled(mark):
    f = mark(field)
    return lambda x: lax.scan(lambda c, _: (f(c), None), x, length=7, unroll=3)[0], (X,)


@case((6, 0, 0))
def scan_in_scan(mark):
    f = mark(field)

    def outer(c, _):
        return lax.scan(lambda c, _: (f(c), None), c, length=2)[0], None

    return lambda x: lax.scan(outer, x, length=3)[0], (X,)


@case((5, 0, 0))
def while_loop(mark):
    f = mark(field)

    def program(x, n):
        return lax.while_loop(lambda s: s[0] < n, lambda s: (s[0] + 1, f(s[1])), (0, x))

    return program, (X, 5)


# A condition is evaluated once more than the body.
@case((6, 0, 0))
def while_loop_condition(mark):
    f = mark(lambda i: i * 2)
    return lambda n: lax.while_loop(lambda i: f(i) < 2 * n, lambda i: i + 1, 0), (5,)


@case((4, 0, 0))
def fori_loop(mark):
    f = mark(field)
    return lambda x, n: lax.fori_loop(0, n, lambda _, c: f(c), x), (X, 4)


# Only the branch that is taken: 3 times the first, 2 times the second, which calls twice.
@case((7, 0, 0))
def cond(mark):
    f = mark(field)

    def body(i, c):
        return lax.cond(i < 3, f, lambda c: f(f(c)), c)

    return lambda x, n: lax.fori_loop(0, n, body, x), (X, 5)


@case((4, 0, 0))
def lax_map(mark):
    return lambda xs: lax.map(mark(loss), xs), (np.ones((4, DIM), np.float32),)


# Two batches of 2 and a remainder of 1.
@case((5, 0, 0))
def lax_map_in_batches(mark):
    return lambda xs: lax.map(mark(loss), xs, batch_size=2), (np.ones((5, DIM), np.float32),)


# -- batches


@case((4, 0, 0))
def vmap(mark):
    return jax.vmap(mark(loss)), (np.ones((4, DIM), np.float32),)


@case((20, 0, 0))
def vmap_vmap(mark):
    return jax.vmap(jax.vmap(mark(loss))), (np.ones((4, 5, DIM), np.float32),)


@case((4, 0, 0))
def vmap_of_jit(mark):
    return jax.vmap(jax.jit(mark(loss))), (np.ones((4, DIM), np.float32),)


# The input is the same for all lanes, so the oracle runs once.
@case((1, 0, 0))
def vmap_unbatched(mark):
    f = mark(loss)
    return lambda x, s: jax.vmap(lambda s: s * f(x))(s), (X, np.ones(4, np.float32))


# Only the oracle's own array is batched: every lane has its own matrix.
@case((4, 0, 0))
def vmap_of_module(mark):
    def program(matrices, x):
        return jax.vmap(lambda a: mark(Matrix(a))(x))(matrices)

    return program, (np.ones((4, DIM, DIM), np.float32), X)


@case((4 * 7, 0, 0))
def vmap_scan(mark):
    f = mark(field)
    program = jax.vmap(lambda x: lax.scan(lambda c, _: (f(c), None), x, length=7)[0])
    return program, (np.ones((4, DIM), np.float32),)


# Lockstep: all 3 lanes run until the slowest has done its 5 steps.
@case((3 * 5, 0, 0))
def vmap_while(mark):
    f = mark(field)

    def program(x, n):
        return lax.while_loop(lambda s: s[0] < n, lambda s: (s[0] + 1, f(s[1])), (0, x))

    return jax.vmap(program), (np.ones((3, DIM), np.float32), np.array([1, 5, 3]))


# A condition that differs between lanes runs both branches for all: 4 * (1 + 2).
@case((12, 0, 0))
def vmap_cond(mark):
    f = mark(field)
    program = jax.vmap(lambda p, x: lax.cond(p, f, lambda x: f(f(x)), x))
    return program, (np.array([True, False, True, True]), np.ones((4, DIM), np.float32))


# -- derivatives


@case((1, 1, 0))
def jvp(mark):
    return lambda x: jax.jvp(mark(loss), (x,), (x,)), (X,)


@case((1, 0, 1))
def grad(mark):
    return jax.grad(mark(loss)), (X,)


@case((1, 0, 1))
def value_and_grad(mark):
    return jax.value_and_grad(mark(loss)), (X,)


@case((1, 3, 0))
def linearize(mark):
    def program(x):
        value, push = jax.linearize(mark(field), x)
        return value, push(x), push(2 * x), push(3 * x)

    return program, (X,)


@case((1, 0, 3))
def vjp(mark):
    def program(x):
        value, pull = jax.vjp(mark(field), x)
        return value, pull(x), pull(2 * x), pull(3 * x)

    return program, (X,)


# One tangent per input, or one cotangent per output; the primal is not batched.
@case((1, DIM, 0))
def jacfwd(mark):
    return jax.jacfwd(mark(field)), (X,)


@case((1, 0, DIM))
def jacrev(mark):
    return jax.jacrev(mark(field)), (X,)


# Several arguments are one oracle input: one jvp, one vjp each, also if only one is perturbed. The
# three derivatives linearise `f` once each.
@case((3, 1, 2))
def many_arguments(mark):
    f = mark(lambda tree, y: jnp.sum(tree["a"] * tree["b"] * y * y))

    def program(a, b, y):
        tree = {"a": a, "b": b}
        pushed = jax.jvp(f, (tree, y), (tree, y))[1]
        both = jax.vjp(f, tree, y)[1](pushed)
        one = jax.grad(lambda y: f(tree, y))(y)
        return pushed, both, one

    return program, (X, X, X)


# The mark on x is pushed for DIM tangents, the mark on the gradient for their DIM tangents. The
# gradient itself is not returned, so compiled code drops its vjp.
@case((1, DIM, DIM), eager=(1, DIM, DIM + 1))
def hessian_forward_over_reverse(mark):
    return jax.jacfwd(jax.jacrev(mark(loss))), (X,)


# DIM inner tangents; the outer backward pass starts from DIM components of the gradient.
@case((1, DIM, DIM))
def hessian_reverse_over_forward(mark):
    return jax.jacrev(jax.jacfwd(mark(loss))), (X,)


# The transpose of the inner backward pass is a forward one: DIM jvps. The inner one as above.
@case((1, DIM, DIM), eager=(1, DIM, DIM + 1))
def hessian_reverse_over_reverse(mark):
    return jax.jacrev(jax.jacrev(mark(loss))), (X,)


# DIM tangents each for the outer and the inner derivative.
@case((1, 2 * DIM, 0))
def hessian_forward_over_forward(mark):
    return jax.jacfwd(jax.jacfwd(mark(loss))), (X,)


# With the gradient returned too, nothing is dead: 1 vjp for it, 1 for its tangent.
@case((1, 1, 2))
def hessian_vector_product(mark):
    return lambda x: jax.jvp(jax.grad(mark(loss)), (x,), (x,)), (X,)


@case((7, 0, 7))
def grad_scan(mark):
    f = mark(field)

    def program(x):
        return jnp.sum(lax.scan(lambda c, _: (f(c), None), x, length=7)[0] ** 2)

    return jax.grad(program), (X,)


# JAX hoists a loop-invariant call out of a differentiated loop, so it runs once.
@case((1, 0, 0))
def grad_scan_invariant(mark):
    f = mark(field)

    def program(x, y):
        return jnp.sum(lax.scan(lambda c, _: (jnp.sin(c) * f(y), None), x, length=7)[0])

    return jax.grad(program), (X, X)


@case((4, 0, 4))
def grad_fori_loop(mark):
    f = mark(field)
    return jax.grad(lambda x: jnp.sum(lax.fori_loop(0, 4, lambda _, c: f(c), x) ** 2)), (X,)


@case((5, 5, 0))
def jvp_while(mark):
    f = mark(field)

    def program(x):
        return lax.while_loop(lambda s: s[0] < 5, lambda s: (s[0] + 1, f(s[1])), (0, x))[1]

    return lambda x: jax.jvp(program, (x,), (x,)), (X,)


@case((4, 0, 4))
def vmap_grad(mark):
    return jax.vmap(jax.grad(mark(loss))), (np.ones((4, DIM), np.float32),)


@case((4, 0, 4))
def grad_vmap(mark):
    f = mark(loss)
    return jax.grad(lambda xs: jnp.sum(jax.vmap(f)(xs) ** 2)), (np.ones((4, DIM), np.float32),)


@case((4 * 7, 0, 4 * 7))
def vmap_grad_scan(mark):
    program, _ = grad_scan(mark)
    return jax.vmap(program), (np.ones((4, DIM), np.float32),)


# Once forward, once again in the backward pass.
@case((2, 0, 1))
def remat(mark):
    f = mark(loss)
    return jax.value_and_grad(jax.checkpoint(lambda x: jnp.sin(f(x)))), (X,)


@case((1, 0, 1))
def remat_that_saves_everything(mark):
    f = mark(loss)
    policy = jax.checkpoint_policies.everything_saveable
    return jax.value_and_grad(jax.checkpoint(lambda x: jnp.sin(f(x)), policy=policy)), (X,)


# Nothing of a linear oracle is needed to pull a cotangent through it, so it is not recomputed.
@case((1, 0, 1))
def remat_of_linear(mark):
    f = mark(Matrix(spd(DIM)))
    return jax.value_and_grad(jax.checkpoint(lambda x: jnp.sum(f(x)))), (X,)


@case((2 * 7, 0, 7))
def remat_scan(mark):
    f = mark(field)

    def program(x):
        step = jax.checkpoint(lambda c, _: (jnp.sin(f(c)), None))
        return jnp.sum(lax.scan(step, x, length=7)[0] ** 2)

    return jax.value_and_grad(program), (X,)


# A custom adjoint that calls the oracle: once in `fwd`, twice in `bwd`, and never a vjp.
@case((3, 0, 0))
def custom_vjp_around(mark):
    f = mark(field)

    @jax.custom_vjp
    def g(x):
        return f(x)

    g.defvjp(lambda x: (f(x), x), lambda x, ct: (f(f(x)) * ct,))
    return jax.value_and_grad(lambda x: jnp.sum(g(x) ** 2)), (X,)


@case((1, 0, 1))
def custom_vjp_inside(mark):
    @jax.custom_vjp
    def g(x):
        return jnp.sin(x)

    g.defvjp(lambda x: (jnp.sin(x), x), lambda x, ct: (jnp.cos(x) * ct,))
    f = mark(g)
    return jax.value_and_grad(lambda x: jnp.sum(f(x) ** 2)), (X,)


@case((1, 1, 1))
def custom_jvp_inside(mark):
    @jax.custom_jvp
    def g(x):
        return jnp.sin(x)

    g.defjvp(lambda x, t: (g(*x), jnp.cos(*x) * t[0]))
    f = mark(g)

    def program(x):
        value, push = jax.linearize(f, x)
        return value, push(x), jax.linear_transpose(push, x)(x)

    return program, (X,)


@case((0, 0, 1))
def linear_transpose(mark):
    f = mark(Matrix(spd(DIM)))
    return lambda x: jax.linear_transpose(f, x)(x), (X,)


@case((0, 1, 0))
def linear_transpose_twice(mark):
    f = mark(Matrix(spd(DIM)))

    def program(x):
        return jax.linear_transpose(lambda y: jax.linear_transpose(f, x)(y)[0], x)(x)

    return program, (X,)


@case((0, 0, 4))
def linear_transpose_scan(mark):
    f = mark(Matrix(spd(DIM)))

    def program(x):
        def loop(v):
            return lax.scan(lambda c, _: (f(c), None), v, length=4)[0]

        return jax.linear_transpose(loop, x)(x)

    return program, (X,)


@case((0, 0, 1))
def linear_transpose_remat(mark):
    f = mark(Matrix(spd(DIM)))
    return lambda x: jax.linear_transpose(jax.checkpoint(lambda v: f(v)), x)(x), (X,)


# The derivative with respect to the oracle's own arrays is a vjp through the oracle.
@case((1, 0, 1))
def grad_of_module(mark):
    def program(a, x):
        return jnp.sum(jnp.sin(mark(Matrix(a))(x)))

    return jax.value_and_grad(program), (spd(DIM), X)


# -- linear solvers. Tolerances are zero where possible: then the number of steps is the limit.

STEPS = 25
SPD = spd(40)
RHS = np.ones(40, np.float32)


def operator(mark: Mark, **tags: Any) -> lx.FunctionLinearOperator:
    return lx.FunctionLinearOperator(mark(Matrix(SPD)), jax.eval_shape(lambda: RHS), **tags)


def psd(mark: Mark) -> lx.FunctionLinearOperator:
    return operator(mark, tags=lx.positive_semidefinite_tag)


# 1 for the first residual, though it starts from zero; 1 a step; and the residual afresh every
# 10th step: in steps 10 and 20.
CG = lx.CG(rtol=0, atol=0, max_steps=STEPS)
CG_CALLS = 1 + STEPS + STEPS // 10


@library((CG_CALLS, 0, 0), slow=True)
def lineax_cg(mark):
    return lambda b: lx.linear_solve(psd(mark), b, CG).value, (RHS,)


# A positive operator is its own transpose: the backward pass is a solve with the same calls.
@library((2 * CG_CALLS, 0, 0))
def lineax_cg_grad(mark):
    return jax.value_and_grad(lambda b: jnp.sum(lx.linear_solve(psd(mark), b, CG).value)), (RHS,)


# The zero at which all three systems start is one vector, so the first matvec is one for all.
@library((1 + 3 * (CG_CALLS - 1), 0, 0), slow=True)
def lineax_cg_vmap(mark):
    b = np.random.default_rng(1).normal(size=(3, 40)).astype(np.float32)
    return jax.vmap(lambda b: lx.linear_solve(psd(mark), b, CG).value), (b,)


# With a tolerance, from the steps that lineax reports.
@library(lambda out: (1 + int(out[1]) + int(out[1]) // 10, 0, 0), slow=True)
def lineax_cg_tolerance(mark):
    def program(b):
        solution = lx.linear_solve(psd(mark), b, lx.CG(rtol=1e-4, atol=1e-4))
        return solution.value, solution.stats["num_steps"]

    return program, (RHS,)


# 1 for the first residual, 2 a step.
@library((1 + 2 * 4, 0, 0))
def lineax_bicgstab(mark):
    solver = lx.BiCGStab(rtol=0, atol=0, max_steps=4)
    return lambda b: lx.linear_solve(operator(mark), b, solver, throw=False).value, (RHS,)


# The first of 3 steps only forms a residual; the others take 2 Arnoldi vectors and a residual.
GMRES = lx.GMRES(rtol=0, atol=0, max_steps=3, restart=2)
GMRES_CALLS = 1 + 2 * (2 + 1)


@library((GMRES_CALLS, 0, 0), slow=True)
def lineax_gmres(mark):
    return lambda b: lx.linear_solve(operator(mark), b, GMRES, throw=False).value, (RHS,)


@library((0, 0, GMRES_CALLS), slow=True)
def lineax_gmres_transposed(mark):
    return lambda b: lx.linear_solve(operator(mark).T, b, GMRES, throw=False).value, (RHS,)


@library((GMRES_CALLS, 0, GMRES_CALLS))
def lineax_gmres_grad(mark):
    def program(b):
        return jnp.sum(lx.linear_solve(operator(mark), b, GMRES, throw=False).value)

    return jax.value_and_grad(program), (RHS,)


# A Jacobian as operator is linearised once; then every matvec is a jvp.
@library((1, GMRES_CALLS, 0), slow=True)
def lineax_jacobian(mark):
    f = mark(lambda x, _: 3 * x + jnp.sin(x) * jnp.roll(x, 1))

    def program(x):
        return lx.linear_solve(lx.JacobianLinearOperator(f, x), x, GMRES, throw=False).value

    return program, (np.linspace(0.1, 1, 40, dtype=np.float32),)


# A column of the matrix for every input.
@library((DIM, 0, 0))
def lineax_materialise(mark):
    def program(x):
        op = lx.FunctionLinearOperator(mark(Matrix(spd(DIM))), jax.eval_shape(lambda: x))
        return op.as_matrix()

    return program, (X,)


# As lineax's, without the fresh residuals.
@library((2 * (1 + 8), 0, 0))
def jax_cg_grad(mark):
    def program(b):
        x, _ = jax.scipy.sparse.linalg.cg(mark(Matrix(SPD)), b, tol=0.0, maxiter=8)
        return jnp.sum(x)

    return jax.value_and_grad(program), (RHS,)


# -- optax and optimistix


@library((12, 0, 12))
def optax_scan(mark):
    optimizer = optax.adam(0.1)
    f = mark(loss)

    def step(carry, _):
        x, state = carry
        value, gradient = jax.value_and_grad(f)(x)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(x, updates), state), value

    return lambda x: lax.scan(step, (x, optimizer.init(x)), length=12), (X,)


# A line search evaluates on its own: it asks for value and gradient at every trial point, and
# reports how many there were. The step itself takes one more of both.
@library(lambda out: (6 + int(out[1].sum()), 0, 6 + int(out[1].sum())), slow=True)
def optax_lbfgs(mark):
    optimizer = optax.lbfgs()
    f = mark(lambda x: jnp.sum((x - 1) ** 4) + jnp.sum(x**2))

    def step(carry, _):
        x, state = carry
        value, gradient = jax.value_and_grad(f)(x)
        updates, state = optimizer.update(
            gradient, state, x, value=value, grad=gradient, value_fn=f
        )
        trials = state[-1].info.num_linesearch_steps
        return (optax.apply_updates(x, updates), state), trials

    def program(x):
        (x, _), trials = lax.scan(step, (x, optimizer.init(x)), length=6)
        return x, trials

    return program, (5 * X,)


def cubic(y: Any, args: Any) -> Any:
    return y**3 + args * y - 1


def newton_steps() -> int:
    """optimistix's Newton on `cubic`, in NumPy: it stops when step and residual are small."""
    y, theta, steps = np.full(DIM, 0.5), X.astype(float), 0
    while True:
        f = y**3 + theta * y - 1
        step = f / (3 * y**2 + theta)
        # The test looks at the point before the step, but at the step taken from it.
        small = np.all(np.abs(step) < 1e-4 + 1e-4 * np.abs(y)) and np.all(np.abs(f) < 1e-4)
        y, steps = y - step, steps + 1
        if small:
            return steps


NEWTON = newton_steps()
NEWTON_SOLVER = optx.Newton(rtol=1e-4, atol=1e-4)
HALVES = np.full(DIM, 0.5, np.float32)


# A step linearises once and pushes one tangent per unknown, to have the matrix for its LU.
@library((NEWTON, DIM * NEWTON, 0), slow=True)
def optimistix_newton(mark):
    f = mark(cubic)
    return lambda theta: optx.root_find(f, NEWTON_SOLVER, HALVES, theta).value, (X,)


# The implicit function theorem, at the root: the Jacobian with respect to y (1 call, DIM jvps), one
# pullback to theta (1 call, 1 vjp), and lineax linearises once more (1 call) to hand the transposed
# Jacobian to its transposed solve, which does not apply it, having its LU.
def implicit(calls: int, jvps: int) -> Counts:
    return calls + 3, jvps + DIM, 1


@library(implicit(NEWTON, DIM * NEWTON))
def optimistix_newton_implicit(mark):
    f = mark(cubic)

    def program(theta):
        return jnp.sum(optx.root_find(f, NEWTON_SOLVER, HALVES, theta).value)

    return jax.value_and_grad(program), (X,)


def fixed_point_steps() -> int:
    y, steps = HALVES.astype(float), 0
    while True:
        new = 0.9 * np.sin(y) + 0.1
        error = np.max(np.abs(y - new) / (1e-3 + 1e-3 * np.abs(new)))
        y, steps = new, steps + 1
        if error < 1:
            return steps


@library((fixed_point_steps(), 0, 0))
def optimistix_fixed_point(mark):
    f = mark(lambda y, _: field(y))
    solver = optx.FixedPointIteration(rtol=1e-3, atol=1e-3)
    return lambda y: optx.fixed_point(f, solver, y).value, (HALVES,)


# Every step evaluates, only an accepted one takes the gradient; both are reported.
@library(lambda out: (int(out[1]), 0, int(out[2])))
def optimistix_bfgs(mark):
    f = mark(lambda y, _: jnp.sum((1 - y[:-1]) ** 2 + 100 * (y[1:] - y[:-1] ** 2) ** 2))
    solver = optx.BFGS(rtol=1e-3, atol=1e-3)

    def program(y):
        solution = optx.minimise(f, solver, y, max_steps=500)
        return solution.value, solution.stats["num_steps"], solution.state.num_accepted_steps

    return program, (X,)


# -- diffrax. N fixed steps; a step of Euler is one evaluation.

N = 10
THETA = np.float32(0.7)


def solve(f: Any, y: Any, theta: Any, **kwargs: Any) -> dfx.Solution:
    settings: dict[str, Any] = {"solver": dfx.Euler(), "dt0": 0.1, "t1": 1.0, "max_steps": N}
    return dfx.diffeqsolve(dfx.ODETerm(f), t0=0.0, y0=y, args=theta, **(settings | kwargs))


def final(f: Any, **kwargs: Any) -> Callable[..., Any]:
    return lambda y, theta: jnp.sum(solve(f, y, theta, **kwargs).ys)


# Tsit5 has 7 stages, but the first is the last of the step before: 7 in the first step, then 6.
@library((6 * N + 1, 0, 0))
def diffrax_fixed(mark):
    f = mark(ode)
    return lambda y, theta: solve(f, y, theta, solver=dfx.Tsit5()).ys, (X, THETA)


def van_der_pol(t: Any, y: Any, args: Any) -> Any:
    del t
    return jnp.stack([y[1], 30 * args * (1 - y[0] ** 2) * y[1] - y[0]])


# Rejected steps cost 6 too. (The first step must not be one, for it would cost 7.)
@library(lambda out: (6 * int(out[1]) + 1, 0, 0))
def diffrax_adaptive(mark):
    f = mark(van_der_pol)

    def program(y, theta):
        solution = solve(
            f,
            y,
            theta,
            solver=dfx.Tsit5(),
            dt0=1e-3,
            t1=3.0,
            stepsize_controller=dfx.PIDController(rtol=1e-3, atol=1e-3),
            max_steps=1000,
        )
        return solution.ys, solution.stats["num_steps"], solution.stats["num_rejected_steps"]

    return program, (np.array([2.0, 0.0], np.float32), np.float32(1.0))


# As many checkpoints as steps: each step is recomputed once, inside its vjp.
@library((2 * N, 0, N))
def diffrax_checkpointed(mark):
    adjoint = dfx.RecursiveCheckpointAdjoint(checkpoints=N)
    return jax.value_and_grad(final(mark(ode), adjoint=adjoint), (0, 1)), (X, THETA)


# Heun has 2 stages in a loop of their own, checkpointed too: in the backward pass the stages of a
# step are run to have their inputs, and then again each inside its vjp.
@library((3 * 2 * N, 0, 2 * N), slow=True)
def diffrax_checkpointed_stages(mark):
    adjoint = dfx.RecursiveCheckpointAdjoint(checkpoints=N)
    program = final(mark(ode), adjoint=adjoint, solver=dfx.Heun())
    return jax.value_and_grad(program, (0, 1)), (X, THETA)


# One checkpoint, the start: the vjp of step k has to come from there, in k evaluations.
@library((N + N * (N + 1) // 2, 0, N), slow=True)
def diffrax_one_checkpoint(mark):
    adjoint = dfx.RecursiveCheckpointAdjoint(checkpoints=1)
    return jax.value_and_grad(final(mark(ode), adjoint=adjoint), (0, 1)), (X, THETA)


# A scan over at most 16 steps, of which N are run, and all residuals are saved.
@library((N, 0, N), slow=True)
def diffrax_direct(mark):
    program = final(mark(ode), adjoint=dfx.DirectAdjoint(), max_steps=16)
    return jax.value_and_grad(program, (0, 1)), (X, THETA)


# Room for more than 16 steps takes a scan of checkpointed scans: everything is run once more.
@library((2 * N, 0, N))
def diffrax_direct_two_levels(mark):
    program = final(mark(ode), adjoint=dfx.DirectAdjoint(), max_steps=17)
    return jax.value_and_grad(program, (0, 1)), (X, THETA)


@library((N, N, 0), slow=True)
def diffrax_direct_jvp(mark):
    program = final(mark(ode), adjoint=dfx.DirectAdjoint(), max_steps=16)
    return lambda y, theta: jax.jvp(program, (y, theta), (y, theta)), (X, THETA)


@library((N, N, 0))
def diffrax_forward(mark):
    program = final(mark(ode), adjoint=dfx.ForwardMode())
    return lambda y, theta: jax.jvp(program, (y, theta), (y, theta)), (X, THETA)


# Backwards in time as many steps, each with an evaluation and a vjp.
@library((2 * N, 0, N))
def diffrax_backsolve(mark):
    program = final(mark(ode), adjoint=dfx.BacksolveAdjoint())
    return jax.value_and_grad(program, (0, 1)), (X, THETA)


# Until a steady state: the event evaluates at the start and after each step, besides the step
# itself. Then the implicit function theorem as for Newton.
@library(lambda out: implicit(1 + 2 * int(out[0][1]), 0))
def diffrax_implicit(mark):
    f = mark(lambda t, y, args: jnp.sin(args) - y - y**3 * args)
    event = dfx.Event(dfx.steady_state_event(rtol=1e-2, atol=1e-2, norm=optx.rms_norm))

    def program(theta):
        solution = solve(
            f, X, theta, adjoint=dfx.ImplicitAdjoint(), event=event, t1=100.0, max_steps=500
        )
        return jnp.sum(solution.ys), solution.stats["num_steps"]

    return jax.value_and_grad(program, has_aux=True), (THETA,)


# Every lane takes its evaluations for as long as the slowest has steps to do.
@library(lambda out: (3 * (6 * int(np.max(out[1])) + 1), 0, 0), slow=True)
def diffrax_adaptive_vmap(mark):
    program, (y, theta) = diffrax_adaptive(mark)
    return jax.vmap(program, (None, 0)), (y, theta * np.array([0.1, 1.0, 0.5], np.float32))


# ---- the table, tested


def table(cases: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


@pytest.fixture(scope="module", autouse=True)
def _clear() -> Iterator[None]:
    yield
    jax.clear_caches()


@table(TRANSFORMATIONS + LIBRARIES)
def test_compiled(case: Case) -> None:
    check_compiled(case)


@pytest.mark.slow
@table(SLOW)
def test_compiled_slow(case: Case) -> None:
    check_compiled(case)


def check_compiled(case: Case) -> None:
    program, args = case.build(mark)
    compiled = jax.jit(program)
    for _ in range(REPEATS):
        with tally() as counts:
            output = jax.block_until_ready(compiled(*args))
        assert counts.counts == case.counts(output)


# Loops are compiled in any case.
EAGER = [c for c in TRANSFORMATIONS if not re.search("scan|loop|while|lax_map|cond|jit", c.name)]


@table(EAGER)
def test_eager(case: Case) -> None:
    program, args = case.build(mark)
    args = jax.tree.map(jnp.asarray, args)
    with tally() as counts:
        output = jax.block_until_ready(program(*args))
    assert counts.counts == case.counts(output, compiled=False)


def jaxpr(build: Build, mark: Mark) -> str:
    program, args = build(mark)
    return re.sub(r"0x[0-9a-f]+", "0x", str(jax.make_jaxpr(program)(*args)))


def hlo(build: Build, mark: Mark) -> str:
    program, args = build(mark)
    return jax.jit(program).lower(*args).as_text()


@table(TRANSFORMATIONS)
def test_clean_has_the_jaxpr_of_the_bare_oracle(case: Case) -> None:
    with clean():
        assert jaxpr(case.build, mark) == jaxpr(case.build, plain)


@table(TRANSFORMATIONS)
def test_silent_has_the_program_of_the_bare_oracle(case: Case) -> None:
    assert hlo(case.build, mark) == hlo(case.build, plain)


def operations(text: str) -> Counter[str]:
    return Counter(re.findall(r"stablehlo\.\w+|call @\w+", text))


HEAVY = pytest.param(diffrax_checkpointed, marks=pytest.mark.slow)


@pytest.mark.parametrize("build", [lineax_cg_grad, optimistix_newton, HEAVY])
def test_clean_and_silent_in_libraries(build: Build) -> None:
    with clean():
        bare = hlo(build, plain)
        assert hlo(build, mark) == bare
    # A silent mark can change the order of independent operations.
    assert operations(hlo(build, mark)) == operations(bare)


# ---- switching


def test_switching_compiles_once_each() -> None:
    traces, compilations = [], []

    def oracle(x: Any) -> Any:
        traces.append(x)
        return jnp.sin(x)

    def listen(event: str, *_: Any, **__: Any) -> None:
        if "backend_compile" in event:
            compilations.append(event)

    program = jax.jit(jax.grad(mark(oracle)))
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for _ in range(5):
            with clean():
                program(1.0)
            with tally() as counts:
                program(1.0)
            assert counts.counts == names((1, 0, 1))
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert len(traces) == 2
    assert len(compilations) == 2


def test_outside_a_tally_nothing_is_counted() -> None:
    program = jax.jit(mark(loss))
    assert run(program, X) == names((1, 0, 0))
    program(X)
    with tally() as counts, clean():
        program(X)
        mark(loss)(X)
    assert counts.counts == {}


def test_a_jaxpr_traced_outside_a_tally_is_counted_inside() -> None:
    built_outside = operator(mark)
    assert run(lambda: built_outside.mv(RHS)) == names((1, 0, 0))
    with tally():
        built_inside = operator(mark)
    apply = eqx.filter_jit(built_inside.mv)
    apply(RHS)
    assert run(apply, RHS) == names((1, 0, 0))


def test_a_program_compiled_ahead_of_time_keeps_the_switch_of_its_compilation() -> None:
    program = jax.jit(mark(loss))
    with tally():
        counting = program.lower(X).compile()
    silent = program.lower(X).compile()
    assert run(counting, X) == names((1, 0, 0))
    assert run(silent, X) == {}
    with tally() as outer, tally() as inner:
        counting(X)
    assert outer.counts == inner.counts == names((1, 0, 0))


# ---- reading


def test_reading_waits_for_what_runs() -> None:
    f = mark(field)
    program = jax.jit(lambda x, n: lax.fori_loop(0, n, lambda _, c: f(c), x))
    with tally() as counts:
        for repeat in range(1, 6):
            pending = program(X, 2000)
            assert counts.read() == names((2000 * repeat, 0, 0))
        pending = program(X, 2000)
    assert counts.counts == names((12000, 0, 0))
    del pending


def test_programs_still_running_do_not_leak_into_the_next_tally() -> None:
    f = mark(field)
    program = jax.jit(lambda x, n: lax.fori_loop(0, n, lambda _, c: f(c), x))
    with tally():
        program(X, 2)
    with tally() as first:
        pending = program(X, 2000)
        with tally() as nested:
            later = program(X, 3)
    with tally() as second:
        pass
    assert first.counts == names((2003, 0, 0))
    assert nested.counts == names((3, 0, 0))
    assert second.counts == {}
    del pending, later


def test_nested_tallies() -> None:
    program = jax.jit(mark(loss))
    with tally() as outer:
        program(X)
        with tally() as inner:
            program(X)
            program(X)
        assert inner.read() == names((2, 0, 0))
        program(X)
    assert outer.counts == names((4, 0, 0))


def test_a_failing_program_leaves_the_tally_in_order() -> None:
    f = mark(field)

    @jax.jit
    def program(x: Any) -> Any:
        return eqx.error_if(f(x), jnp.all(x > 0), "deliberate")

    with pytest.raises(Exception, match="deliberate"), tally() as counts:
        jax.block_until_ready(program(X))
    assert counts.counts == names((1, 0, 0))
    assert run(mark(loss), X) == names((1, 0, 0))


def test_units_are_apart() -> None:
    f, g = counted(field, "evaluations"), counted(loss, "losses")
    nested = counted(f, "outer")
    with tally() as counts:
        jax.block_until_ready(jax.jit(jax.grad(lambda x: g(f(x)) + jnp.sum(nested(x))))(X))
    assert counts.counts == {
        "evaluations": 2,
        "evaluations jvps": 0,
        "evaluations vjps": 2,
        "losses": 1,
        "losses jvps": 0,
        "losses vjps": 1,
        "outer": 1,
        "outer jvps": 0,
        "outer vjps": 1,
    }


# ---- threads


def test_concurrent_tallies_do_not_mix() -> None:
    f = mark(field)
    program = jax.jit(lambda x, n: lax.fori_loop(0, n, lambda _, c: f(c), x))
    start = threading.Barrier(4)

    def work(n: int) -> list[dict[str, int]]:
        start.wait()
        return [run(program, X, n) for _ in range(50)]

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(work, (1, 2, 3, 50)))
    for n, counts in zip((1, 2, 3, 50), results, strict=True):
        assert counts == [names((n, 0, 0))] * 50


def test_other_threads_are_not_counted() -> None:
    program = jax.jit(mark(loss))
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            jax.block_until_ready(program(X))
            mark(loss)(X)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(50):
            assert run(program, X) == names((1, 0, 0))
    finally:
        stop.set()
        thread.join()


# ---- devices

SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from nearly.core.tally import counted, tally

mesh = jax.make_mesh((4,), ("i",))
x = jax.device_put(np.ones((8, 3), np.float32), NamedSharding(mesh, P("i")))
f = counted(jnp.sin, "calls")
whole = jax.jit(lambda x: jax.lax.scan(lambda c, _: (f(c), None), x, length=3)[0])
shards = jax.jit(jax.shard_map(f, mesh=mesh, in_specs=P("i"), out_specs=P("i")))
for program, calls in ((whole, 3), (shards, 4)):
    with tally() as counts:
        jax.block_until_ready(program(x))
    assert counts.counts["calls"] == calls, counts.counts
"""


@pytest.mark.slow
def test_devices() -> None:
    # A sharded program is one program on all devices; in a `shard_map` each device calls its own.
    flags = "--xla_force_host_platform_device_count=4"
    subprocess.run(
        [sys.executable, "-c", SHARDED], env=os.environ | {"XLA_FLAGS": flags}, check=True
    )


# ---- what an oracle may be


def test_oracles_keep_their_values_and_trees() -> None:
    f = mark(lambda tree, *, scale: {"out": tree["x"] * scale, "n": tree["n"]})
    out = f({"x": jnp.asarray(X), "n": 3}, scale=2.0)
    assert out["n"] == 3
    assert type(out["n"]) is int
    np.testing.assert_array_equal(out["out"], 2.0 * X)


def test_values_and_derivatives_are_untouched() -> None:
    expected = jax.jit(jax.hessian(loss))(X)
    hessian = jax.jit(jax.hessian(mark(loss)))
    for mode in (tally, clean):
        with mode():
            np.testing.assert_array_equal(hessian(X), expected)


def test_static_leaves_stay_static() -> None:
    def oracle(x: Any, power: int, axis: str, index: np.ndarray) -> Any:
        # None of these could be decided on a tracer.
        assert [power, axis, *index] == [2, "all", 0, 2]
        return jnp.sum(x[index] ** power)

    f = mark(oracle)
    assert run(jax.jit(lambda x: f(x, 2, "all", np.array([0, 2]))), X) == names((1, 0, 0))


def test_integers_keys_and_float0() -> None:
    def oracle(x: Any, n: Any, key: Any, tangent: Any) -> Any:
        assert tangent.dtype == jax.dtypes.float0
        return jnp.sum(x * n) + jax.random.normal(key)

    f = mark(oracle)
    zero = np.zeros((), jax.dtypes.float0)
    key = jax.random.key(0)
    n = jnp.asarray(2)

    def forward(x: Any) -> Any:
        return jax.jvp(lambda x, n: f(x, n, key, zero), (x, n), (x, zero))

    assert run(jax.jit(forward), X) == names((1, 1, 0))
    assert run(forward, jnp.asarray(X)) == names((1, 1, 0))
    assert run(jax.jit(jax.grad(lambda x: f(x, n, key, zero) ** 2)), X) == names((1, 0, 1))
    keys = jax.random.split(key, 5)
    batched = jax.vmap(lambda key: f(jnp.asarray(X), n, key, zero))
    assert run(jax.jit(batched), keys) == names((5, 0, 0))


def test_host_oracles_stay_on_the_host() -> None:
    def oracle(x: Any) -> Any:
        assert type(x) is np.ndarray
        assert x.dtype == np.float64
        return SPD @ x

    assert run(mark(oracle), np.ones(40)) == names((1, 0, 0))
    assert run(mark(lambda x: x + 1), 1.5) == names((1, 0, 0))


def test_a_module_oracle_is_a_pytree() -> None:
    f = mark(Matrix(jnp.asarray(SPD)))
    assert [leaf.shape for leaf in jax.tree.leaves(f)] == [(40, 40)]
    gradient = eqx.filter_jit(eqx.filter_grad(lambda f: jnp.sum(jnp.sin(f(RHS)))))
    assert run(gradient, f) == names((1, 0, 1))


def test_what_a_function_closes_over_is_invisible() -> None:
    # The documented limit: the derivative with respect to `a` does not pass through the input, so
    # only the call is seen; and one call is seen where the closed-over matrix is batched.
    program = jax.value_and_grad(lambda a, x: jnp.sum(jnp.sin(mark(lambda x: a @ x)(x))))
    assert run(jax.jit(program), SPD, RHS) == names((1, 0, 0))
    batched = jax.vmap(lambda a, x: mark(lambda x: a @ x)(x), (0, None))
    assert run(jax.jit(batched), np.stack([SPD, SPD]), RHS) == names((1, 0, 0))


def test_dead_code_is_not_counted() -> None:
    f = mark(field)

    def program(x: Any) -> Any:
        f(x)
        return x + 1

    assert run(jax.jit(program), X) == {}
    # Without jit it does run.
    assert run(program, X) == names((1, 0, 0))
    # A gradient does not need the value of a linear oracle,
    matrix = jnp.asarray(spd(DIM))

    def gradient(f: Any) -> Any:
        return jax.grad(lambda x: jnp.sum(f(x)))

    assert run(jax.jit(gradient(mark(lambda x: matrix @ x))), X) == names((0, 0, 1))
    # but it does need its matrix, which comes out of the mark if the oracle is a pytree.
    assert run(jax.jit(gradient(mark(Matrix(matrix)))), X) == names((1, 0, 1))


@pytest.mark.parametrize("mode", [tally, clean])
def test_a_loop_saves_no_copies_of_its_constants(mode: Any) -> None:
    length = 100
    matrix, x = spd(40), RHS

    def program(matrix: Any, x: Any) -> Any:
        f = mark(Matrix(matrix))
        return jnp.sum(lax.scan(lambda c, _: (jnp.sin(f(c)), None), x, length=length)[0])

    with mode():
        compiled = jax.jit(jax.grad(program, (0, 1))).lower(matrix, x).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < length * matrix.nbytes / 2


def test_errors() -> None:
    with pytest.raises(ValueError, match="unit"):
        counted(field, "")
    with pytest.raises(TypeError, match="matvecs"):
        counted(lambda: 1, "matvecs")()


def test_a_unit_never_met_has_no_entry() -> None:
    mark(loss)
    with tally() as counts:
        pass
    assert counts.read() == {}
