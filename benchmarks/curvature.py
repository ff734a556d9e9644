"""Curvature: ours beside the best peer, in seconds.

    python benchmarks/curvature.py [NAME ...]

Ratios are medians of alternating pairs in one process, after compilation, equal threads.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from alternating import Row, main, pairs
from jax.flatten_util import ravel_pytree

from nearly.curvature import influence, inverses, kronecker
from nearly.curvature.fisher import Window, static, woodbury
from nearly.curvature.lipschitz.bounds import LinearPropagation, RecurJac
from nearly.curvature.lipschitz.forward import Interval
from nearly.curvature.objective import Objective, SquaredError
from nearly.curvature.operators import Hessian, gauss_newton
from nearly.curvature.problems.inverse import exact_influence, pearson
from nearly.curvature.problems.lipschitz import random_network
from nearly.curvature.problems.spectrum import softmax_regression
from nearly.curvature.problems.trained import case, trained
from nearly.curvature.spectrum import lanczos_quadrature

PAIRS = 7


def against(what: str, ours: Callable[[], Any], peer: Callable[[], Any], count: int = PAIRS) -> Row:
    """A row for what ours and a peer's are."""
    return {"what: ours / peer": what, **pairs(ours, peer, count).row}


def not_run(what: str, reason: str) -> Row:
    """A row for a peer that cannot run."""
    return {"what: ours / peer": what, "ours / peer": f"not run: {reason}"}


# ------------------------------------------------------------------ M-FAC


def mfac() -> Iterator[Row]:
    """The static algorithm and the ring beside the plain Woodbury identity."""
    for m, d in ((64, 100_000), (256, 20_000), (256, 100_000)):
        gradients = jax.random.normal(jax.random.key(0), (m, d), jnp.float32)
        x = jax.random.normal(jax.random.key(1), (d,), jnp.float32)
        size = f"m = {m}, d = {d}"

        def product(method: Any) -> Any:
            return jax.jit(lambda g, v: method(g, v).mv(v))

        def diagonal(method: Any) -> Any:
            return jax.jit(lambda g, v: method(g, v).diagonal())

        for what, made in (("set-up and product", product), ("set-up and diagonal", diagonal)):
            ours, peer = made(woodbury), made(static)
            yield against(
                f"Woodbury / static, {what}, {size}",
                lambda f=ours, g=gradients, x=x: f(g, x),
                lambda f=peer, g=gradients, x=x: f(g, x),
                3,
            )
        step = jax.jit(lambda w, g: w.push(g).solve(g, 1e-5))
        again = jax.jit(lambda g, v: woodbury(g, v).mv(v))
        window = Window(gradients, gradients @ gradients.T, jnp.zeros((), jnp.int32))
        yield against(
            f"ring, push and solve / Woodbury anew, {size}",
            lambda f=step, w=window, x=x: f(w, x),
            lambda f=again, g=gradients, x=x: f(g, x),
            3,
        )


# ------------------------------------------------------------------ capture and matvecs


def _network(width: int) -> Objective:
    model = eqx.nn.MLP(64, 10, width, 2, key=jax.random.key(0))
    inputs = jax.random.normal(jax.random.key(1), (256, 64))
    return Objective.of(model, SquaredError(), inputs, jnp.zeros((256, 10)))


def capture() -> Iterator[Row]:
    """The second moments of per-sample gradients, from captured rows or from the gradients."""
    for width in (64, 256):
        objective = _network(width)
        read = objective.capture()

        @eqx.filter_jit
        def captured(o: Objective, read: Any = read) -> Any:
            def one(x: Any, t: Any) -> Any:
                outputs, pull = read.linearise(o.model, x)
                return pull(jax.grad(o.loss)(outputs, t))

            rows = jax.vmap(one)(*o.data)
            return {n: (c.deltas[:, 0] ** 2).T @ c.rows[:, 0] ** 2 for n, c in rows.items()}

        @eqx.filter_jit
        def gradients(o: Objective) -> Any:
            return jnp.sum(o.gradients(*o.data) ** 2, axis=0)

        yield against(
            f"squared gradients of 256 samples, 64-{width}-{width}-10: capture / vmap of grad",
            partial(captured, objective),
            partial(gradients, objective),
        )


def matvec() -> Iterator[Row]:
    """A Gauss-Newton product beside one composed of lineax's Jacobian operators."""
    for width in (64, 256):
        objective = _network(width)
        vector = jax.tree.map(jnp.ones_like, objective.parameters)

        @eqx.filter_jit
        def ours(o: Objective, v: Any) -> Any:
            return gauss_newton(o).mv(v)

        @eqx.filter_jit
        def composed(o: Objective, v: Any) -> Any:
            jacobian = lx.JacobianLinearOperator(
                lambda p, _: jax.vmap(o.output, (None, 0))(p, o.inputs), o.parameters
            )
            return jacobian.T.mv(jacobian.mv(v))  # the squared error's Hessian is the identity

        yield against(
            f"Gauss-Newton product, 64-{width}-{width}-10, 256 samples: ours / lineax J^T J",
            partial(ours, objective, vector),
            partial(composed, objective, vector),
        )


# ------------------------------------------------------------------ influence


def ekfac() -> Iterator[Row]:
    """EK-FAC influence on digits beside conjugate gradients on the exact matrix."""
    with jax.enable_x64(True):
        found = case("digits", None, 0)
        key = jax.random.key(0)
        truth = exact_influence(found)
        ready = inverses.influence_ekfac(found.objective, found.damping, 8, key=key)
        ours = pearson(jax.device_get(ready(found.objective, found.queries)), truth)
        steps = 1
        while steps < 64:
            exact = inverses.influence_conjugate_gradients(
                found.objective, found.damping, steps, key=key
            )
            theirs = pearson(jax.device_get(exact(found.objective, found.queries)), truth)
            if theirs >= ours:
                break
            steps *= 2
        yield against(
            f"20 products: EK-FAC (Pearson {ours:.2f}) / CG of {steps} steps ({theirs:.2f})",
            lambda: influence.precondition(ready.inverse, found.queries),
            lambda: influence.precondition(exact.inverse, found.queries),
        )
        yield against(
            "set-up of EK-FAC, one pass each, / of K-FAC",
            lambda: kronecker.ekfac(found.objective, key=key).blocks,
            lambda: kronecker.kfac(found.objective, key=key).blocks,
        )


def kronfluence() -> Iterator[Row]:
    """EK-FAC influence of the digits net, float32, one drawn label a sample, beside kronfluence.

    Both start from the trained weights; kronfluence goes through its files, as it is meant to.
    """
    missing = [n for n in ("torch", "kronfluence") if importlib.util.find_spec(n) is None]
    if missing:
        yield not_run("EK-FAC / kronfluence", f"{' and '.join(missing)} not installed")
        return
    from peers.torch_influence import Kronfluence

    damping = 0.1
    found = case("digits", damping)
    single = partial(
        jax.tree.map, lambda x: x.astype(jnp.float32) if eqx.is_inexact_array(x) else x
    )
    objective, amounts, queries = map(single, (found.objective, found.damping, found.queries))
    test = tuple(x[: len(queries)] for x in trained("digits")[1])
    peer = Kronfluence(objective.model.layers, objective.data, test, damping)
    key = jax.random.key(0)
    ready = inverses.influence_ekfac(objective, amounts, 1, key=key)
    ours = eqx.filter_jit(lambda method, o, q: method(o, q))
    peer.factors()
    truth = exact_influence(found)
    agree = [
        abs(pearson(np.asarray(scores, np.float64), truth))
        for scores in (ours(ready, objective, queries), peer.scores())
    ]
    yield against(
        "factors, a pass over 1,438 samples: ours / kronfluence",
        lambda: kronecker.ekfac(objective, key=key).blocks,
        peer.factors,
    )
    yield against(
        f"20 x 1,438 scores (Pearson {agree[0]:.2f}) / kronfluence ({agree[1]:.2f})",
        lambda: ours(ready, objective, queries),
        peer.scores,
    )


# ------------------------------------------------------------------ Lipschitz bounds, spectra


def lipschitz() -> Iterator[Row]:
    """Linear propagation beside RecurJac, whose bound it is compared with too."""
    for activation in ("relu", "tanh", "gelu"):
        problem = random_network(activation=activation)
        with jax.enable_x64(True):
            box = Interval(problem.lower, problem.upper)
            ours, peer = (
                functools.partial(method, problem.chain, box, "inf")
                for method in (LinearPropagation(), RecurJac())
            )
            found, theirs = float(ours()), float(peer())
            yield against(
                f"{activation} 16-64x4-10: linear bound {found:.3g} / RecurJac {theirs:.3g}, "
                f"sampled {problem.attained:.3g}",
                ours,
                peer,
            )
    yield not_run("linear bound / auto_LiRPA", "its release 0.3 does not import with NumPy 2")


def spectrum() -> Iterator[Row]:
    """Lanczos quadrature beside the dense eigendecomposition, softmax regression on digits.

    matfree takes all probes at once; ours one after the other, in the memory of one.
    """
    problem = softmax_regression()
    operator = Hessian(problem.objective)
    key = jax.random.key(0)
    ours = jax.jit(lambda: lanczos_quadrature(operator, key, steps=30, probes=4).nodes)
    dense = jax.jit(lambda: jnp.linalg.eigvalsh(operator.as_matrix()))
    yield against("30 steps, 4 probes / dense eigenvalues, 650 parameters", ours, dense)
    if importlib.util.find_spec("matfree") is None:
        yield not_run("Lanczos quadrature / matfree", "not installed")
        return
    logarithm = jax.jit(lambda: lanczos_quadrature(operator, key, steps=30, probes=4).trace(_log))
    yield against(
        "trace of a logarithm, 30 steps, 4 probes / matfree", logarithm, _matfree(operator)
    )


def _log(x: Any) -> Any:
    return jnp.log(1 + x**2)


def _matfree(operator: Any) -> Callable[[], Any]:
    from matfree import decomp, funm, stochtrace

    like = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), operator.in_structure())
    flat, unravel = ravel_pytree(like)
    integrand = funm.monte_carlo_funm_sym(
        funm.dense_funm_sym_eigh(_log), decomp.tridiag_sym(30, reortho="full")
    )
    sampler = stochtrace.sampler_signs(flat, num=4)
    estimate = stochtrace.estimator_monte_carlo(integrand, sampler=sampler)
    return jax.jit(
        lambda: estimate(lambda v: ravel_pytree(operator.mv(unravel(v)))[0], jax.random.key(0))
    )


BENCHMARKS: dict[str, Callable[[], Iterator[Row]]] = {
    "m-fac": mfac,
    "capture": capture,
    "matvec": matvec,
    "ekfac": ekfac,
    "kronfluence": kronfluence,
    "lipschitz": lipschitz,
    "spectrum": spectrum,
}


if __name__ == "__main__":
    main(BENCHMARKS, __doc__)
