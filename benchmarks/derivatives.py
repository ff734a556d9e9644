"""The derivatives room against its peers: seconds, compile seconds and flops, side by side.

    python benchmarks/derivatives.py [NAME...]

Seconds are medians of runs that alternate between the rivals in one process, after compilation;
ratios are medians of the pairs' own ratios, so that a busy machine harms all alike. Flops are what
XLA counts in the compiled program.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import equinox as eqx
import folx
import jax
import jax.numpy as jnp
import numpy as np
from alternating import Row, main
from jax.experimental.jet import jet as jax_jet

from nearly.derivatives.problems.function_table import CASES, known_derivatives
from nearly.derivatives.taylor import jet

ROUNDS = 15


# ---- measuring


def alternating(
    rivals: Mapping[str, Callable[..., Any]], arguments: Sequence[Any], first: str
) -> list[Row]:
    """One row for each rival: compile seconds, flops, milliseconds, and the ratio to `first`."""
    compiled, rows = {}, {}
    for name, function in rivals.items():
        begun = time.perf_counter()
        compiled[name] = jax.jit(function).lower(*arguments).compile()
        rows[name] = {
            "method": name,
            "Mflop": compiled[name].cost_analysis()["flops"] / 1e6,
            "compile s": time.perf_counter() - begun,
        }
        jax.block_until_ready(compiled[name](*arguments))
    samples: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(ROUNDS):
        for name, program in compiled.items():
            begun = time.perf_counter()
            jax.block_until_ready(program(*arguments))
            samples[name].append(1e3 * (time.perf_counter() - begun))
    for name, row in rows.items():
        row["ms"] = statistics.median(samples[name])
        ratios = [b / a for a, b in zip(samples[first], samples[name], strict=True)]
        row[f"ms over {first}"] = statistics.median(ratios)
    return list(rows.values())


# ---- Taylor mode

WIDTHS = (200, 128, 128, 128, 1)
POINTS, DIRECTIONS = 20, 16


def _network(weights: Sequence[jax.Array], x: jax.Array) -> jax.Array:
    for weight in weights[:-1]:
        x = jnp.tanh(x @ weight)
    return (x @ weights[-1])[0]


def _instance() -> tuple[Any, jax.Array, jax.Array]:
    keys = jax.random.split(jax.random.key(0), len(WIDTHS) + 1)
    sizes = list(pairwise(WIDTHS))
    weights = [
        jax.random.normal(key, size, jnp.float32) / size[0] ** 0.5
        for key, size in zip(keys[2:], sizes, strict=False)
    ]
    points = jax.random.normal(keys[0], (POINTS, WIDTHS[0]), jnp.float32)
    return weights, points, jax.random.normal(keys[1], (POINTS, DIRECTIONS, WIDTHS[0]), jnp.float32)


def _by_jet(transform: Any, zero: Callable[[Any], Any]) -> Callable[..., Any]:
    def derivative(function: Any, x: Any, v: Any, order: int) -> Any:
        return transform(function, (x,), ([v, *[zero(v)] * (order - 1)],))[1][order - 1]

    return derivative


def _by_nesting(function: Any, x: Any, v: Any, order: int) -> Any:
    along: Callable[[Any], Any] = lambda t: function(x + t * v)  # noqa: E731
    for _ in range(order):
        along = _differentiated(along)
    return along(jnp.zeros((), x.dtype))


def _differentiated(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda t: jax.jvp(function, (t,), (jnp.ones_like(t),))[1]


ENGINES: dict[str, Callable[..., Any]] = {
    "nearly": _by_jet(jet, lambda v: None),
    "jet": _by_jet(jax_jet, jnp.zeros_like),
    "nested jvp": _by_nesting,
}


def taylor_modes() -> list[Row]:
    """Derivatives of orders 2, 4, 6 of the network along 16 directions at each of 20 points."""
    arguments, rows = _instance(), []
    for order in (2, 4, 6):
        forward = {name: _summed(engine, order) for name, engine in ENGINES.items()}
        backward = {name: jax.grad(function) for name, function in forward.items()}
        for what, rivals in (("value", forward), ("parameter gradient", backward)):
            measured = alternating(rivals, arguments, "nearly")
            rows += [{"order": order, "of": what, **row} for row in measured]
    return rows


def _summed(engine: Callable[..., Any], order: int) -> Callable[..., Any]:
    def total(weights: Any, points: Any, directions: Any) -> Any:
        def derivative(x: Any, v: Any) -> Any:
            return engine(lambda y: _network(weights, y), x, v, order)

        along = jax.vmap(derivative, (None, 0))
        return jnp.sum(jax.vmap(along)(points, directions) ** 2)

    return total


def laplacians() -> list[Row]:
    """The exact Laplacian of a 16-128-128-128-1 network at 20 points, folx beside it."""
    weights, points, _ = _instance()
    weights = [weights[0][:16], *weights[1:]]

    def by_taylor(weights: Any, points: Any) -> Any:
        def second(x: Any, v: Any) -> Any:
            return ENGINES["nearly"](lambda y: _network(weights, y), x, v, 2)

        along = jax.vmap(second, (None, 0))
        return jax.vmap(lambda x: jnp.sum(along(x, jnp.eye(16, dtype=x.dtype))))(points)

    def by_folx(weights: Any, points: Any) -> Any:
        laplacian = folx.forward_laplacian(lambda y: _network(weights, y))
        return jax.vmap(lambda x: laplacian(x).laplacian)(points)

    def by_hessian(weights: Any, points: Any) -> Any:
        hessian = jax.hessian(lambda y: _network(weights, y))
        return jax.vmap(lambda x: jnp.trace(hessian(x)))(points)

    rivals = {"nearly": by_taylor, "folx": by_folx, "hessian trace": by_hessian}
    rows: list[Row] = []
    for what, functions in (("value", rivals), ("parameter gradient", _gradients(rivals))):
        measured = alternating(functions, (weights, points[:, :16]), "nearly")
        rows += [{"of": what, **row} for row in measured]
    return rows


def _gradients(rivals: Mapping[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    def gradient(function: Callable[..., Any]) -> Callable[..., Any]:
        return jax.grad(lambda weights, points: jnp.sum(function(weights, points) ** 2))

    return {name: gradient(function) for name, function in rivals.items()}


def coverage() -> list[Row]:
    """How many of the table's functions an engine expands to order 3, within 1e-10 of the truth."""
    failures: dict[str, list[str]] = {name: [] for name in ("nearly", "jet")}
    for name, case in CASES.items():
        known = known_derivatives(case, 3)
        for engine, transform, zero in (
            ("nearly", jet, lambda v: None),
            ("jet", jax_jet, jnp.zeros_like),
        ):
            if not _expands(transform, zero, case, known):
                failures[engine].append(name)
    return [
        {"method": engine, "of 96": len(CASES) - len(failed), "not": ", ".join(failed) or "none"}
        for engine, failed in failures.items()
    ]


def _expands(transform: Any, zero: Any, case: Any, known: Any) -> bool:
    with jax.enable_x64(True):
        x, v = jnp.asarray(case.point), jnp.asarray(case.direction)
        series = [v, zero(v), zero(v)]

        def leaves(y: Any) -> tuple[Any, ...]:
            return tuple(jax.tree.leaves(case.function(y)))

        try:
            _, terms = transform(leaves, (x,), (series,))
        except Exception:  # a peer may fail in any way
            return False
        rows = zip(*terms, strict=True) if transform is jet else terms
        return all(
            float(jnp.max(jnp.abs(c - t))) <= 1e-10 * (float(jnp.max(jnp.abs(t))) or 1.0)
            for row, truth in zip(rows, known, strict=True)
            for c, t in zip(row, truth[1:], strict=True)
        )


# ---- discrete choices


def categorical_choices() -> list[Row]:
    """One draw and its gradient, beside Gumbel straight-through written by hand."""
    from nearly.derivatives import straight_through

    def gumbel_by_hand(logits: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        noisy = logits + jax.random.gumbel(key, logits.shape, logits.dtype)
        soft = jax.nn.softmax(noisy / 0.5)
        hard = jax.nn.one_hot(jnp.argmax(noisy, -1), logits.shape[-1], dtype=logits.dtype)
        return soft + jax.lax.stop_gradient(hard - soft), soft

    def gradient(sampler: Callable[..., Any]) -> Callable[..., Any]:
        return jax.grad(lambda logits, key: jnp.sum((sampler(logits, key)[0] - 0.3) ** 2))

    names = ("reinmax", "straight_through", "gumbel_straight_through", "gumbel_rao")
    samplers = {name: getattr(straight_through, name) for name in names}
    rivals = {n: gradient(s) for n, s in {**samplers, "by hand": gumbel_by_hand}.items()}
    rows = []
    for shape in ((100, 8, 4), (256, 32, 16)):
        arguments = (jax.random.normal(jax.random.key(0), shape), jax.random.key(1))
        logits = " x ".join(map(str, shape))
        rows += [{"logits": logits, **row} for row in alternating(rivals, arguments, "by hand")]
    return rows


def quantised_training() -> list[Row]:
    """One gradient of a 64-128-10 network with two-bit weights on 128 examples."""
    from nearly.derivatives import fogzo

    quantiser = fogzo.Rounding(2, 0.28)
    keys = jax.random.split(jax.random.key(0), 4)
    weights = [
        jax.random.normal(key, size, jnp.float32) / size[0] ** 0.5
        for key, size in zip(keys, ((64, 128), (128, 10)), strict=False)
    ]
    inputs = jax.random.normal(keys[2], (128, 64), jnp.float32)
    targets = jax.random.randint(keys[3], (128,), 0, 10)

    def gradient(method: Callable[..., Any]) -> Callable[..., Any]:
        def run(weights: Any, inputs: Any, targets: Any) -> Any:
            def loss(weights: Any) -> Any:
                first, second = map(quantiser, weights)
                scores = jax.nn.log_softmax(jax.nn.relu(inputs @ first) @ second)
                return -jnp.mean(jnp.take_along_axis(scores, targets[:, None], 1))

            return method(loss, weights, key=jax.random.key(1), step=jnp.zeros((), jnp.int32))

        return run

    rivals = {
        "straight-through": gradient(fogzo.straight_through),
        "FOGZO, one pair": gradient(fogzo.FOGZO(quantiser.noise, quantiser.step)),
        "SPSA, one pair": gradient(fogzo.SPSA(quantiser.noise, quantiser.step)),
        "SPSA, 100 pairs": gradient(fogzo.SPSA(quantiser.noise, quantiser.step, 100)),
    }
    return alternating(rivals, (weights, inputs, targets), "straight-through")


# ---- implicit derivatives and inverses


def sensitivities() -> list[Row]:
    """The Jacobian of 500 steps of a ridge regression in its 20 penalties, float64, with errors.

    Forward and reverse mode; the error is relative to the Jacobian of the limit.
    """
    from nearly.derivatives import sensitivity_methods as methods
    from nearly.derivatives.problems.sensitivity import Sensitivity

    rivals = {
        "implicit": methods.implicit,
        "unrolled": methods.unrolled,
        "unrolled, checkpointed": methods.unrolled_checkpointed,
        "lax.custom_root": methods.lax_custom_root,
        "optimistix ImplicitAdjoint": methods.optimistix_implicit,
    }
    rows: list[Row] = [{"mode": "reverse", "method": "jaxopt", "Mflop": "not run: not installed"}]
    if importlib.util.find_spec("jaxopt"):
        rivals["jaxopt"], rows = methods.jaxopt_fixed_point, []
    with jax.enable_x64(True):
        for mode in ("reverse", "forward"):
            problem = Sensitivity("ridge", mode)
            able = {n: m for n, m in rivals.items() if mode == "reverse" or n != "jaxopt"}
            runs = {n: _sensitivity(problem, method) for n, method in able.items()}
            errors = {
                n: problem.errors(jax.device_get(run(problem.data))) for n, run in runs.items()
            }
            rows[:0] = [
                {"mode": mode, **row, "error": errors[row["method"]]["Jacobian error"]}
                for row in alternating(runs, (problem.data,), "implicit")
            ]
    return rows


def _sensitivity(problem: Any, method: Any) -> Callable[[Any], Any]:
    """One use of a method on the problem, its arrays as inputs of the program."""

    def run(data: Any) -> Any:
        given = eqx.tree_at(lambda p: p.data, problem, data)
        return given.apply((method, 500), key=None)

    return jax.jit(run)


def inverses() -> list[Row]:
    """4096 values of the inverse of a mixture of 8 smooth bumps, and their gradients, float64.

    Brackets to 1e-8 and what two Newton steps make of them, and optimistix's bisection to 1e-8
    under vmap; the error is that of f(x) = y.
    """
    import optimistix as optx

    from nearly.derivatives.inverse import invert, multi_bin_bisection
    from nearly.derivatives.smooth_flow import Bumps, circle_map

    def function(x: Any, raw: Any) -> Any:
        return circle_map(x, Bumps.free(raw))

    def by_optimistix(y: Any, raw: Any) -> Any:
        def one(y: Any, raw: Any) -> Any:
            solver, ends = optx.Bisection(rtol=1e-8, atol=1e-8), {"lower": 0.0, "upper": 1.0}
            residual: Callable[..., Any] = lambda x, a: function(x, a[0]) - a[1]  # noqa: E731
            start = jnp.asarray(0.5, y.dtype)
            found = optx.root_find(residual, solver, start, (raw, y), options=ends, throw=False)
            return found.value

        return jax.vmap(one)(y, raw)

    def gradient(inverse: Callable[..., Any]) -> Callable[..., Any]:
        return jax.grad(lambda y, raw: jnp.sum(jnp.sin(inverse(y, raw))), argnums=(0, 1))

    inverses = {"optimistix.Bisection": by_optimistix}
    for bins, polish in ((2, 0), (2, 2), (4, 2), (32, 2)):
        search = multi_bin_bisection(0.0, 1.0, bins=bins, polish=polish)
        inverses[f"{bins} bins, {polish} Newton steps"] = invert(function, search)
    with jax.enable_x64(True):
        y = jax.random.uniform(jax.random.key(0), (4096,), jnp.float64)
        raw = jax.random.normal(jax.random.key(1), (4096, 4, 8), jnp.float64)
        errors = {
            name: float(jnp.max(jnp.abs(function(jax.jit(inverse)(y, raw), raw) - y)))
            for name, inverse in inverses.items()
        }
        rivals = {name: gradient(inverse) for name, inverse in inverses.items()}
        rows = alternating(rivals, (y, raw), "optimistix.Bisection")
    return [{**row, "error": errors[row["method"]]} for row in rows]


# ---- differential operators in many dimensions


def stochastic_operators() -> list[Row]:
    """Parameter gradient of the squared Laplacian estimate, 16 directions, at 4 points."""
    from nearly.derivatives import operator_peers, stde
    from nearly.derivatives.operators import laplacian
    from nearly.derivatives.pinn import BallPoints, ball_network

    rows: list[Row] = []
    for dimension in (1_000, 10_000, 100_000):
        key = jax.random.key(0)
        arguments = (ball_network(dimension, key), BallPoints(4, dimension)(key))
        operator = laplacian()
        rivals = {
            "stde-sparse": _operator_step(stde.sparse(operator, 16)),
            "stde-sparse, plain": _operator_step(_plainly(stde.sparse(operator, 16))),
            "stde-dense": _operator_step(stde.dense(operator, 16)),
            "sdgd": _operator_step(operator_peers.sdgd(operator, 16)),
            "hutchinson": _operator_step(operator_peers.hutchinson(operator, 16)),
        }
        measured = alternating(rivals, arguments, "stde-sparse")
        rows += [{"dimension": dimension, **row} for row in measured]
    return rows


def _plainly(transformation: Any) -> Any:
    return lambda function: transformation(lambda x: function(x))


def _operator_step(transformation: Any) -> Callable[..., Any]:
    def loss(network: Any, points: Any) -> Any:
        keys = jax.random.split(jax.random.key(1), len(points))
        estimator = transformation(network)
        return jnp.mean(jax.vmap(lambda x, k: estimator(x, k).value ** 2)(points, keys))

    return jax.grad(loss)


def local_fits() -> list[Row]:
    """Gradients of a gridded distance at 1000 points: a quadratic fit, automatic, differences."""
    from nearly.derivatives.local_fit import local_polynomial, sobol_stencil
    from nearly.derivatives.problems.fields import circle_field, ring

    field = circle_field("float32")
    points = jnp.asarray(ring(np.random.default_rng(0), 1000), jnp.float32)

    def differences(x: Any) -> Any:
        steps = 0.025 * jnp.eye(2, dtype=x.dtype)
        return jax.vmap(lambda e: (field(x + e) - field(x - e)) / 0.05)(steps)

    rivals: dict[str, Callable[..., Any]] = {
        f"fit of {k}": _gradient_of(local_polynomial(field, sobol_stencil(k, 2), 0.02))
        for k in (256, 64, 16)
    }
    rivals |= {"automatic": jax.vmap(jax.grad(field)), "differences": jax.vmap(differences)}
    return [
        {**row, "angle error": _angle_error(rivals[row["method"]], points)}
        for row in alternating(rivals, (points,), "fit of 256")
    ]


def _gradient_of(fit: Any) -> Callable[..., Any]:
    return jax.vmap(lambda x: fit(x).gradient)


def _angle_error(gradients: Callable[..., Any], points: Any) -> float:
    """Root mean square angle to the radius, in degrees."""
    found = np.asarray(gradients(points), np.float64)
    sines = found[:, 0] * points[:, 1] - found[:, 1] * points[:, 0]
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(points, axis=1)
    return float(np.degrees(np.sqrt(np.mean((sines / lengths) ** 2))))


BENCHMARKS: dict[str, Callable[[], list[Row]]] = {
    "taylor_modes": taylor_modes,
    "laplacians": laplacians,
    "coverage": coverage,
    "stochastic_operators": stochastic_operators,
    "local_fits": local_fits,
    "categorical_choices": categorical_choices,
    "quantised_training": quantised_training,
    "sensitivities": sensitivities,
    "inverses": inverses,
}


if __name__ == "__main__":
    main(BENCHMARKS, __doc__)
