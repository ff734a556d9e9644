"""The exact local Lipschitz constant of a small ReLU network, by mixed-integer programming."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from nearly.core.errors import InputError, NotProven
from nearly.curvature.lipschitz import activations
from nearly.curvature.lipschitz.backward import derivative_ranges, jacobian_bounds
from nearly.curvature.lipschitz.bounds import prepared
from nearly.curvature.lipschitz.chain import Chain
from nearly.curvature.lipschitz.forward import Interval, pre_activation_bounds


def exact_lipschitz(model: Any, lower: Any, upper: Any, *, seconds: float = 60.0) -> float:
    """The largest inf-norm of the Jacobian over a box, to the solver's tolerance (about 1e-6).

    A binary says on which side of its kink each unit is; another which sign each entry of the
    Jacobian has; products with binaries are exact by bounds ("big M"). One program per output.

    **Arguments:** as of `lipschitz_bound`; `seconds` is the limit of each program.

    Raises `InputError` for other activations than ReLU, `NotProven` when time runs out. Cost grows
    exponentially with the unstable units: for tens of them. Paper: `local-lipschitz` compares with
    LipMIP, which is this program. At a kink it counts both sides, so where kinks coincide it may
    exceed the supremum over differentiable points.
    """
    with jax.enable_x64(True):
        chain, box = prepared(model, lower, upper)
        if any(a not in (activations.relu, activations.identity) for a in chain.activations):
            names = ", ".join(a.name for a in chain.activations)
            raise InputError(f"the exact constant is known for relu only, not {names}")
        if not chain.activations:
            return float(np.max(np.sum(np.abs(np.asarray(chain.weights[0])), axis=1)))
        known = jax.tree.map(np.asarray, _known(chain, box))
        weights = [np.asarray(weight) for weight in chain.weights]
        return max(_of_output(chain, weights, box, known, o, seconds) for o in range(chain.outputs))


class _Known(NamedTuple):
    """What bound propagation knows beforehand: it bounds the program's variables."""

    pre_activations: tuple[Interval, ...]
    derivatives: list[Interval]
    jacobian: Interval


@eqx.filter_jit
def _known(chain: Chain, box: Interval) -> _Known:
    found = pre_activation_bounds(chain, box)[:-1]
    bounds = jacobian_bounds(chain, found)
    return _Known(found, derivative_ranges(chain, found), Interval(bounds.lower, bounds.upper))


@dataclass
class _Program:
    """A mixed-integer program under construction: variables by index, rows as dictionaries."""

    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)
    whole: list[int] = field(default_factory=list)
    rows: list[tuple[dict[int, float], float, float]] = field(default_factory=list)

    def variables(self, low: Any, high: Any, *, whole: bool = False) -> list[int]:
        first = len(self.low)
        self.low += list(map(float, low))
        self.high += list(map(float, high))
        self.whole += [int(whole)] * (len(self.low) - first)
        return list(range(first, len(self.low)))

    def constrain(self, row: dict[int, float], low: float, high: float) -> None:
        self.rows.append((row, low, high))

    def equal(self, variable: int, terms: list[int], weights: Any, offset: float) -> None:
        """variable = weights . terms + offset"""
        row = dict(zip(terms, map(float, weights)))
        self.constrain({**row, variable: -1.0}, -offset, -offset)

    def gated(self, product: int, gate: int, factor: int, low: float, high: float) -> None:
        """product = gate * factor, for a binary gate and a factor within [low, high]."""
        self.constrain({product: 1, gate: -high}, -np.inf, 0)
        self.constrain({product: 1, gate: -low}, 0, np.inf)
        self.constrain({product: 1, factor: -1, gate: -low}, -np.inf, -low)
        self.constrain({product: 1, factor: -1, gate: -high}, -high, np.inf)

    def maximise(self, terms: list[int], seconds: float) -> float:
        cost = np.zeros(len(self.low))
        cost[terms] = -1.0
        entries = [(i, j, v) for i, (row, _, _) in enumerate(self.rows) for j, v in row.items()]
        i, j, v = zip(*entries)
        matrix = csr_array((v, (i, j)), shape=(len(self.rows), len(cost)))
        least, most = _ends([row[1:] for row in self.rows])
        low, high = _ends(list(zip(self.low, self.high)))
        result = milp(
            cost,
            integrality=self.whole,
            bounds=Bounds(low, high),
            constraints=LinearConstraint(matrix, least, most),
            options={"time_limit": seconds, "mip_rel_gap": 1e-9},
        )
        if result.status != 0:
            raise NotProven(f"the exact constant was not found in {seconds:g} s: {result.message}")
        return -float(result.fun)


def _ends(pairs: list[Any]) -> Any:
    """Pairs as two arrays (untyped: SciPy's stubs promise scalars alone)."""
    return np.asarray(pairs).T


def _of_output(
    chain: Chain,
    weights: list[np.ndarray],
    box: Interval,
    known: _Known,
    output: int,
    seconds: float,
) -> float:
    program = _Program()
    gates = _forward(program, chain, weights, box, known.pre_activations)
    return program.maximise(_backward(program, weights, known, gates, output), seconds)


def _forward(
    program: _Program,
    chain: Chain,
    weights: list[np.ndarray],
    box: Interval,
    found: tuple[Interval, ...],
) -> list[list[int | float]]:
    """Constrain the gates: which units are on, a variable or (where it is known) a number."""
    inputs = program.variables(np.asarray(box.lower), np.asarray(box.upper))
    gates: list[list[int | float]] = []
    for k, bounds in enumerate(found):
        low, high = bounds
        before = program.variables(low, high)
        for unit, offset in zip(before, np.asarray(chain.biases[k])):
            program.equal(unit, inputs, weights[k][unit - before[0]], float(offset))
        if chain.activations[k] == activations.identity:
            inputs, states = before, [1.0] * len(before)
        else:
            inputs, states = _rectified(program, before, low, high)
        gates.append(states)
    return gates


def _rectified(
    program: _Program, before: list[int], low: np.ndarray, high: np.ndarray
) -> tuple[list[int], list[int | float]]:
    after = program.variables(np.maximum(low, 0), np.maximum(high, 0))
    states: list[int | float] = []
    for z, h, least, most in zip(before, after, low, high):
        if least >= 0 or most <= 0:
            states.append(float(least >= 0))
            program.constrain({h: 1, z: -float(least >= 0)}, 0, 0)
            continue
        (gate,) = program.variables([0], [1], whole=True)
        states.append(gate)
        program.constrain({h: 1, z: -1}, 0, np.inf)
        program.constrain({h: 1, gate: -float(most)}, -np.inf, 0)
        program.constrain({h: 1, z: -1, gate: -float(least)}, -np.inf, -float(least))
        # Gate and sign agree: z >= 0 where it is on, z <= 0 where it is off.
        program.constrain({z: 1, gate: float(least)}, float(least), np.inf)
        program.constrain({z: 1, gate: -float(most)}, -np.inf, 0)
    return after, states


def _backward(
    program: _Program,
    weights: list[np.ndarray],
    known: _Known,
    gates: list[list[int | float]],
    output: int,
) -> list[int]:
    """Variables whose sum is the row's sum of absolute values."""
    last = weights[-1][output]
    gradient = program.variables(last, last)
    low, high = last, last
    for k in reversed(range(len(gates))):
        a, b = known.derivatives[k]
        corners = np.stack([g * s for g in (low, high) for s in (a, b)])
        products = program.variables(corners.min(axis=0), corners.max(axis=0))
        for v, gate, g, least, most in zip(products, gates[k], gradient, low, high):
            if isinstance(gate, float):
                program.constrain({v: 1, g: -gate}, 0, 0)
            else:
                program.gated(v, gate, g, float(least), float(most))
        low, high = _input_bounds(corners, weights[k])
        gradient = program.variables(low, high)
        for column, g in enumerate(gradient):
            program.equal(g, products, weights[k][:, column], 0.0)
    return _absolute(program, gradient, known.jacobian.lower[output], known.jacobian.upper[output])


def _input_bounds(corners: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    low, high = corners.min(axis=0), corners.max(axis=0)
    positive, negative = np.maximum(weight, 0), np.minimum(weight, 0)
    slack = 1e-9 * (1 + np.maximum(np.abs(low), np.abs(high)) @ np.abs(weight))
    return low @ positive + high @ negative - slack, high @ positive + low @ negative + slack


def _absolute(
    program: _Program, gradient: list[int], low: np.ndarray, high: np.ndarray
) -> list[int]:
    sizes = program.variables(np.zeros(len(gradient)), np.maximum(np.abs(low), np.abs(high)))
    for size, g, least, most in zip(sizes, gradient, low, high):
        (sign,) = program.variables([0], [1], whole=True)
        reach = 2 * max(abs(float(least)), abs(float(most)))
        program.constrain({size: 1, g: -1, sign: reach}, -np.inf, reach)
        program.constrain({size: 1, g: 1, sign: -reach}, -np.inf, 0)
    return sizes
