"""What the theory of higher-order differentiation promises of Taylor mode, rerun."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nearly.core.claim import Expected, claim
from nearly.derivatives.problems.function_table import CASES, Case, known_derivatives
from nearly.derivatives.problems.higher_order_programs import WIDTH, random_program
from nearly.derivatives.taylor import directional_derivatives, jet

SEEDS = (0, 1, 2)
ROUNDING = 1e-10  # double precision, with room for what conditioning takes


def _line(seed: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(1000 + seed)
    return draw.uniform(-0.5, 0.5, WIDTH), draw.uniform(-0.5, 0.5, WIDTH)


def _deviation(computed: Any, truth: Any) -> float:
    """Largest difference over the largest entry, of any leaf."""
    pairs = zip(jax.tree.leaves(computed), jax.tree.leaves(truth), strict=True)
    return max(float(np.max(np.abs(a - b)) / np.max(np.abs(b))) for a, b in pairs)


@claim(
    "higher-order-ad",
    "taylor-mode-is-correct-on-higher-order-programs",
    cost="fast",
    expected=Expected(
        "largest relative deviation of the third derivative along a line from nested forward mode, "
        "a random program with closures, folds, branches and iterated functionals for each seed",
        "<=",
        ROUNDING,
        "derived: the correctness theorem (the Taylor macro computes the derivatives of the "
        "function denoted), up to rounding in double precision",
    ),
)
def higher_order_programs() -> list[float]:
    with jax.enable_x64(True):
        return [_third_derivatives(seed) for seed in SEEDS]


def _third_derivatives(seed: int) -> float:
    program, (x, v) = random_program(seed, depth=1), map(jnp.asarray, _line(seed))
    ours = jax.jit(lambda x, v: directional_derivatives(program, x, v, 3))(x, v)
    nested: Callable[[Any], Any] = lambda t: program(x + t * v)  # noqa: E731
    for _ in range(3):
        nested = _differentiated(nested)
    with jax.disable_jit():  # of the truth alone: it would unroll the loops that ours must expand
        truth = nested(jnp.zeros(()))
    return _deviation(jax.tree.map(lambda a: a[3], ours), truth)


def _differentiated(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda t: jax.jvp(function, (t,), (jnp.ones(()),))[1]


@claim(
    "ad-correctness-gluing",
    "forward-and-continuation-modes-agree-on-higher-order-programs",
    cost="fast",
    expected=Expected(
        "relative difference of the first derivative pushed forward as a series and pulled back "
        "(the continuation-based mode), paired with a random covector; a random program each seed",
        "<=",
        ROUNDING,
        "derived: both macros are correct, so they compute one derivative, up to rounding in "
        "double precision",
    ),
)
def both_modes() -> list[float]:
    with jax.enable_x64(True):
        return [_pairing(seed) for seed in SEEDS]


def _pairing(seed: int) -> float:
    program, (x, v) = random_program(seed, depth=1), map(jnp.asarray, _line(seed))
    _, (pushed,) = jet(program, (x,), ([v],))
    draw = np.random.default_rng(seed)
    covector = jax.tree.map(lambda a: jnp.asarray(draw.normal(size=a.shape)), pushed)
    with jax.disable_jit():
        _, pull = jax.vjp(program, x)
        (pulled,) = pull(covector)
    forward = sum(jnp.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (covector, pushed))))
    return _deviation(forward, jnp.vdot(pulled, v))


@claim(
    "higher-order-ad",
    "every-function-of-the-table-is-expanded",
    cost="medium",
    expected=Expected(
        "functions whose derivatives along a line, orders 0 to 3, are within 1e-10 of mpmath's or "
        "nested forward mode's; of 96 that users write",
        ">=",
        96,
        "derived: the correctness theorem asks only that every primitive be smooth and have a rule",
        unit="functions",
    ),
)
def functions_expanded() -> float:
    return float(sum(_is_expanded(case) for case in CASES.values()))


def _is_expanded(case: Case) -> bool:
    known = known_derivatives(case, 3)
    with jax.enable_x64(True):
        point, direction = jnp.asarray(case.point), jnp.asarray(case.direction)
        found = jax.tree.leaves(directional_derivatives(case.function, point, direction, 3))
    return all(
        _close(np.asarray(a[k]), row[k])
        for a, row in zip(found, known, strict=True)
        for k in (1, 2, 3)
    )


def _close(computed: np.ndarray, truth: np.ndarray) -> bool:
    size = float(np.max(np.abs(truth))) or 1.0
    return bool(np.max(np.abs(computed - truth)) <= ROUNDING * size)


@claim(
    "higher-order-ad",
    "fewer-operations-than-jet",
    cost="medium",
    expected=Expected(
        "flops of jax.experimental.jet over ours, as XLA counts the compiled programs: fourth "
        "derivatives of a 200-128-128-128-1 tanh network at 20 points along 16 directions each",
        ">=",
        1.7,
        "derived: the project's bar; a constant weight is applied K + 1 times and not up to "
        "(K + 1)(K + 2)/2 times, of which XLA's simplifications give jet a part back",
    ),
)
def operations() -> float:
    from jax.experimental.jet import jet as peer

    with jax.enable_x64(False):
        return _flops(_along_lines(peer, 4, zeros=True)) / _flops(_along_lines(jet, 4, zeros=False))


NETWORK = (200, 128, 128, 128, 1)


def _along_lines(transform: Any, order: int, *, zeros: bool) -> Callable[..., Any]:
    """The derivatives of one order of a network at points along directions, by a jet."""

    def network(weights: Any, x: Any) -> Any:
        for weight in weights[:-1]:
            x = jnp.tanh(x @ weight)
        return (x @ weights[-1])[0]

    def derivative(weights: Any, x: Any, v: Any) -> Any:
        rest = [jnp.zeros_like(v) if zeros else None] * (order - 1)
        return transform(lambda y: network(weights, y), (x,), ([v, *rest],))[1][order - 1]

    over_directions = jax.vmap(derivative, (None, None, 0))
    return jax.vmap(over_directions, (None, 0, 0))


def _flops(function: Callable[..., Any]) -> float:
    f32 = jnp.float32
    weights = [jax.ShapeDtypeStruct(s, f32) for s in pairwise(NETWORK)]
    points = jax.ShapeDtypeStruct((20, NETWORK[0]), f32)
    directions = jax.ShapeDtypeStruct((20, 16, NETWORK[0]), f32)
    analysis = jax.jit(function).lower(weights, points, directions).compile().cost_analysis()
    assert analysis is not None
    return float(analysis["flops"])
