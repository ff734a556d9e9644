"""Mutations of a program's graph, compiled: insert a vertex, remove one, switch an edge.

A program is a graph of binary vertices over x and free constants. Every operand that is a constant
is a constant of its own: to share one saves no operation and costs freedom. `child` mutates a
program and brings it into canonical form, in which dead vertices are gone.

Differences from the paper (`autonumerics-zero`), all switched off by `PAPER`:

- a child may get several mutations even where the first changed it (`more`), and a further one may
  be an insertion beside the vertex just inserted (`near`): y + k/y, which doubles the accuracy of
  a rational program, takes two insertions of which the first alone is worth nothing;
- the other operand of an inserted vertex is often the operand it was put behind (`again`) or a
  fresh constant (`fresh`), not any vertex with equal probability;
- macros, if asked for, do y -> y + k/y, y -> y^2 or y -> y^2 + k in one mutation.

The paper's renaming of vertices is left out: it changes no structure, and a child whose structure
did not change is mutated again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, no_type_check

import numba
import numpy as np

from nearly.core.errors import InputError, UnknownName
from nearly.functions.discovery.canonical import canonical
from nearly.functions.discovery.kernels import ADD, DIV, MUL
from nearly.functions.discovery.random_numbers import below, uniform

X = -1  # the operand x; below it are constants
ROOM = 48  # vertices of a graph
LARGEST = 32  # vertices of a program that is mutated
MACROS = ("coupled", "square", "shifted-square")  # y + k/y, y^2, y^2 + k


class Graph(NamedTuple):
    """A graph under mutation; its number of vertices and its root are kept beside it.

    Operand `side` of vertex `i`, if it is a constant, is the constant `2 i + side`.
    """

    operations: np.ndarray  # int8 (ROOM,)
    operands: np.ndarray  # int16 (2, ROOM)
    constants: np.ndarray  # float64 (2 ROOM,)


class Rates(NamedTuple):
    """`Mutation` as compiled code takes it."""

    insert: float
    remove: float
    constant: float
    more: float
    near: float
    again: float
    fresh: float
    low: float
    high: float
    macro: float
    macros: np.ndarray  # int64: indices into MACROS


@dataclass(frozen=True)
class Mutation:
    """How children differ from their parents.

    **Arguments:**

    - `insert`, `remove`, `switch`: relative rates of the three mutations, the paper's.
    - `constant`: the share of insertions that put a constant in the place of an operand.
    - `more`: the probability of each further mutation of a child.
    - `near`: the probability that a further one is an insertion beside the last inserted vertex.
    - `again`, `fresh`: the probability that an inserted vertex's other operand is the one it was
      put behind, or a new constant; otherwise it is x, a vertex or a constant, equally likely.
    - `decades`: new constants are ±10^U(low, high).
    - `macros`: names out of `MACROS`; a child gets one of them with probability `macro`.
    """

    insert: float = 1.0
    remove: float = 2.0
    switch: float = 3.0
    constant: float = 0.1
    more: float = 0.5
    near: float = 0.5
    again: float = 0.3
    fresh: float = 0.35
    decades: tuple[float, float] = (-2.0, 3.0)
    macro: float = 0.125
    macros: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in self.macros:
            if name not in MACROS:
                raise UnknownName("macro mutation", name, MACROS)
        if min(self.insert, self.remove, self.switch) < 0 or self.insert == 0:
            raise InputError("the rates of mutations are 0 or more, that of insertion above 0")
        if not (0 <= self.more < 1 and 0 <= self.again + self.fresh <= 1):
            raise InputError("more must lie in [0, 1), again + fresh in [0, 1]")
        if not self.decades[0] < self.decades[1]:
            raise InputError(f"decades {self.decades} must be two powers of ten, the lower first")

    @property
    def rates(self) -> Rates:
        """The same for compiled code."""
        total = self.insert + self.remove + self.switch
        return Rates(
            self.insert / total,
            self.remove / total,
            self.constant,
            self.more,
            self.near,
            self.again,
            self.fresh,
            float(self.decades[0]),
            float(self.decades[1]),
            self.macro if self.macros else 0.0,
            np.array([MACROS.index(name) for name in self.macros] or [0], dtype=np.int64),
        )


# As published: rates 1 : 2 : 3, one of {constant, +, -, *, /} inserted, one mutation that changes
# something, operands drawn alike, starts over 16 decades.
PAPER = Mutation(1.0, 2.0, 3.0, 0.2, 0.0, 0.0, 0.0, 0.0, (-16.0, 0.0))


def graph() -> Graph:
    """Room for one graph."""
    return Graph(
        np.zeros(ROOM, dtype=np.int8), np.zeros((2, ROOM), dtype=np.int16), np.zeros(2 * ROOM)
    )


@numba.njit(cache=True, nogil=True)
@no_type_check
def child(work, operations, left, right, constants, rates, stream):
    """A mutated program in canonical form, empty where it is x or a constant."""
    size = operations.size
    for i in range(size):
        work.operations[i] = operations[i]
        _read(work, i, 0, left[i], constants)
        _read(work, i, 1, right[i], constants)
    size, root = _mutated(work, size, rates, stream)
    if root < 0:
        size = 0
    elif root != size - 1:  # the result comes last
        work.operations[size] = work.operations[root]
        _copy(work, root, 0, size, 0)
        _copy(work, root, 1, size, 1)
        size += 1
    made = canonical(
        work.operations[:size],
        work.operands[0, :size],
        work.operands[1, :size],
        work.constants[: 2 * size],
    )
    for k in range(made[3].size):
        if not np.isfinite(made[3][k]):  # constants of constants, divided by 0
            made[3][k] = start(rates, stream)
    return made


@numba.njit(cache=True, nogil=True)
@no_type_check
def _mutated(work, size, rates, stream):
    """Mutate a graph whose root is its last vertex; returns (size, root), vertices in any order."""
    root = size - 1 if size else X
    last = -1
    if uniform(stream) < rates.macro:
        size, root = _macro(work, size, root, rates, stream)
    else:
        size, root, last = _step(work, size, root, rates, stream)
    while size < ROOM - 4 and uniform(stream) < rates.more:
        if last >= 0 and uniform(stream) < rates.near:
            edge = 2 * last + below(stream, 2)
            size, root, last = _insert(work, size, root, edge, rates, stream)
        else:
            size, root, last = _step(work, size, root, rates, stream)
    return size, root


@numba.njit(cache=True, nogil=True)
@no_type_check
def _step(work, size, root, rates, stream):
    """One mutation; returns (size, root, the inserted vertex or -1)."""
    choice = uniform(stream)
    if size == 0 or choice < rates.insert:
        edge = below(stream, 2 * size + 1)
        return _insert(work, size, root, edge, rates, stream)
    if choice < rates.insert + rates.remove:
        return size, _remove(work, size, root, rates, stream), -1
    edge = below(stream, 2 * size)
    _switch(work, size, edge // 2, edge % 2, rates, stream)
    return size, root, -1


@numba.njit(cache=True, nogil=True)
@no_type_check
def _insert(work, size, root, edge, rates, stream):
    """Put a vertex on an edge (2 * vertex + side; the last one leads out of the graph)."""
    at_output = edge == 2 * size
    target, side = (-1, 0) if at_output else (edge // 2, edge % 2)
    if not at_output and uniform(stream) < rates.constant:
        _set_constant(work, target, side, rates, stream)
        return size, root, -1
    new, own = size, below(stream, 2)
    work.operations[new] = below(stream, 4)
    if at_output:
        work.operands[own, new] = root
    else:
        _copy(work, target, side, new, own)
    choice = uniform(stream)
    if choice < rates.again:
        _copy(work, new, own, new, 1 - own)
    elif choice < rates.again + rates.fresh:
        _set_constant(work, new, 1 - own, rates, stream)
    else:
        _attach(work, size, target, new, 1 - own, rates, stream)
    if at_output:
        root = new
    else:
        work.operands[side, target] = new
    return size + 1, root, new


@numba.njit(cache=True, nogil=True)
@no_type_check
def _remove(work, size, root, rates, stream):
    """Take out a vertex, whose consumers get one of its operands, or a constant; the new root."""
    chosen = below(stream, size + _constants(work, size))
    if chosen < size:
        side = below(stream, 2)
        for i in range(size):
            for s in range(2):
                if work.operands[s, i] == chosen:
                    _copy(work, chosen, side, i, s)
        return work.operands[side, chosen] if root == chosen else root
    chosen -= size
    for i in range(size):
        for s in range(2):
            if work.operands[s, i] < X:
                if chosen == 0:
                    _attach(work, size, i, i, s, rates, stream)
                    return root
                chosen -= 1
    return root


@numba.njit(cache=True, nogil=True)
@no_type_check
def _switch(work, size, target, side, rates, stream):
    """Give an operand another source: a new constant as often as `fresh` says, else any."""
    if uniform(stream) < rates.fresh:
        _set_constant(work, target, side, rates, stream)
    else:
        _attach(work, size, target, target, side, rates, stream)


@numba.njit(cache=True, nogil=True)
@no_type_check
def _attach(work, size, target, vertex, side, rates, stream):
    """Let an operand be x, a vertex that does not need `target`, or a constant, equally likely.

    Constants count as often as the graph has them, as if one of them were shared.
    """
    behind = np.zeros(ROOM, dtype=np.bool_)  # the target and what needs it
    if target >= 0:
        behind[target] = True
    grown = target >= 0
    while grown:
        grown = False
        for i in range(size):
            a, b = work.operands[0, i], work.operands[1, i]
            if not behind[i] and ((a >= 0 and behind[a]) or (b >= 0 and behind[b])):
                behind[i] = grown = True
    free = 0
    for i in range(size):
        free += not behind[i]
    chosen = below(stream, 1 + free + _constants(work, size))
    if chosen > free:
        _set_constant(work, vertex, side, rates, stream)
        return
    code = X
    for i in range(size):
        if not behind[i]:
            chosen -= 1
            if chosen == 0:
                code = i
    work.operands[side, vertex] = code


@numba.njit(cache=True, nogil=True)
@no_type_check
def _macro(work, size, root, rates, stream):
    """Replace a vertex or x, wherever it is used, by y + k/y, y^2 or y^2 + k."""
    kind = rates.macros[below(stream, rates.macros.size)]
    chosen = below(stream, size + 1) - 1
    first, second = size, size + 1
    if kind == 0:
        work.operations[first], work.operations[second] = DIV, ADD
        _set_constant(work, first, 0, rates, stream)
        work.operands[1, first] = work.operands[1, second] = chosen
        work.operands[0, second] = first
    else:
        work.operations[first], work.operations[second] = MUL, ADD
        work.operands[0, first] = work.operands[1, first] = chosen
        work.operands[0, second] = first
        _set_constant(work, second, 1, rates, stream)
    result = first if kind == 1 else second
    for i in range(size):
        for s in range(2):
            if work.operands[s, i] == chosen:
                work.operands[s, i] = result
    return size + 2, result if root == chosen else root


@numba.njit(cache=True, nogil=True)
@no_type_check
def start(rates, stream):
    """A start of a constant: of either sign, its size log-uniform between two powers of ten."""
    size = 10.0 ** (rates.low + (rates.high - rates.low) * uniform(stream))
    return size if uniform(stream) < 0.5 else -size


@numba.njit(cache=True, nogil=True)
@no_type_check
def start_all(constants, rates, stream):
    """Draw all constants anew, from half the decades: all together they rarely are extreme."""
    for k in range(constants.size):
        drawn = start(rates, stream)
        constants[k] = np.sqrt(drawn) if drawn > 0 else -np.sqrt(-drawn)


@numba.njit(cache=True, nogil=True)
@no_type_check
def _set_constant(work, vertex, side, rates, stream):
    work.operands[side, vertex] = -2 - (2 * vertex + side)
    work.constants[2 * vertex + side] = start(rates, stream)


@numba.njit(cache=True, nogil=True)
@no_type_check
def _copy(work, vertex, side, to_vertex, to_side):
    """Give an operand the source of another; a constant becomes one of its own."""
    code = work.operands[side, vertex]
    if code < X:
        work.operands[to_side, to_vertex] = -2 - (2 * to_vertex + to_side)
        work.constants[2 * to_vertex + to_side] = work.constants[2 * vertex + side]
    else:
        work.operands[to_side, to_vertex] = code


@numba.njit(cache=True, nogil=True)
@no_type_check
def _read(work, vertex, side, code, constants):
    if code < X:
        work.operands[side, vertex] = -2 - (2 * vertex + side)
        work.constants[2 * vertex + side] = constants[-2 - code]
    else:
        work.operands[side, vertex] = code


@numba.njit(cache=True, nogil=True)
@no_type_check
def _constants(work, size):
    count = 0
    for i in range(size):
        count += (work.operands[0, i] < X) + (work.operands[1, i] < X)
    return count
