"""Mutations: programs stay programs, the paper's steps change one thing, all is reachable."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from nearly.core.errors import InputError, UnknownName
from nearly.functions.discovery.mutation import (
    MACROS,
    PAPER,
    ROOM,
    Mutation,
    child,
    graph,
    start,
    start_all,
)
from nearly.functions.discovery.random_numbers import stream_of
from nearly.functions.discovery.tape import Tape
from nearly.functions.program import Builder, Node


def empty() -> Tape:
    none = np.zeros(0, np.int16)
    return Tape(none.astype(np.int8), none, none, np.zeros(0))


def mutated(tape: Tape, mutation: Mutation, stream: np.ndarray) -> Tape:
    parts = (tape.operations, tape.left, tape.right, tape.constants)
    return Tape(*child(graph(), *parts, mutation.rates, stream))


def tape_of(build: Callable[[Node], Node]) -> Tape:
    b = Builder()
    return Tape.from_program(b.program(build(b.x))).canonical()


def structure(build: Callable[[Node], Node]) -> int:
    return tape_of(build).digest


@pytest.mark.parametrize("mutation", [Mutation(), PAPER, Mutation(macros=MACROS, macro=0.5)])
def test_children_are_programs_in_canonical_form(mutation: Mutation) -> None:
    stream, tape = stream_of(1), empty()
    for _ in range(2000):
        tape = mutated(empty() if tape.operations.size > 12 else tape, mutation, stream)
        n = tape.operations.size
        for i in range(n):
            assert max(tape.left[i], tape.right[i]) < i
        used = {-2 - int(code) for code in (*tape.left, *tape.right) if code < -1}
        assert used == set(range(tape.constants.size))
        assert n <= ROOM and np.isfinite(tape.constants).all()
        if n:
            assert tape.canonical().digest == tape.digest


def test_the_empty_program_grows_by_one_operation() -> None:
    stream = stream_of(2)
    sizes = {mutated(empty(), PAPER, stream).operations.size for _ in range(100)}
    assert sizes == {0, 1}  # 0: a constant of constants, or x - x


def test_a_published_mutation_adds_one_operation_at_most() -> None:
    stream = stream_of(3)
    parent = tape_of(lambda x: (x * x + 3.0) / (x - 0.5))
    sizes = [mutated(parent, PAPER, stream).operations.size for _ in range(500)]
    assert max(sizes) == parent.operations.size + 1
    assert min(sizes) < parent.operations.size


def test_all_programs_of_one_operation_are_reached_and_no_others() -> None:
    expected = {
        structure(lambda x: x + 2.0),
        structure(lambda x: x * 2.0),
        structure(lambda x: 2.0 - x),
        structure(lambda x: 2.0 / x),
        structure(lambda x: x * x),
        structure(lambda x: x + x),
    }
    stream, tape = stream_of(4), empty()
    seen: set[int] = set()
    for _ in range(4000):
        tape = mutated(tape, PAPER, stream)
        if tape.operations.size == 1:
            seen.add(tape.digest)
        if tape.operations.size > 3:
            tape = empty()
    assert seen == expected


def test_the_doubling_of_a_vertex_is_two_insertions_in_one_child() -> None:
    # y -> y + k / y is what makes accuracy double; its first half alone is worth nothing.
    stream, parent = stream_of(5), tape_of(lambda x: 3.0 / (x - 2.0))
    wanted = structure(lambda x: 3.0 / ((x + 5.0 / x) - 2.0))
    seen = {mutated(parent, Mutation(), stream).digest for _ in range(20_000)}
    assert wanted in seen


@pytest.mark.parametrize(
    ("name", "built"),
    [
        ("coupled", lambda y: y + 7.0 / y),
        ("square", lambda y: y * y),
        ("shifted-square", lambda y: y * y + 7.0),
    ],
)
def test_macros_replace_a_vertex_wherever_it_is_used(
    name: str, built: Callable[[Node], Node]
) -> None:
    only = Mutation(macros=(name,), macro=1.0, more=0.0)

    def on_x(x: Node) -> Node:
        y = built(x)
        return y * y - y

    def on_square(x: Node) -> Node:
        return built(x * x) - x

    def on_result(x: Node) -> Node:
        return built(x * x - x)

    stream, parent = stream_of(6), tape_of(lambda x: x * x - x)
    seen = {mutated(parent, only, stream).digest for _ in range(60)}
    assert seen == {structure(form) for form in (on_x, on_square, on_result)}


def test_starts_lie_in_their_decades_with_both_signs() -> None:
    rates, stream = Mutation(decades=(-2.0, 1.0)).rates, stream_of(7)
    drawn = np.array([start(rates, stream) for _ in range(500)])
    assert (drawn > 0).any() and (drawn < 0).any()
    assert np.abs(drawn).min() >= 1e-2 and np.abs(drawn).max() <= 10
    together = np.zeros(500)
    start_all(together, rates, stream)
    assert np.abs(together).min() >= 1e-1 and np.abs(together).max() <= np.sqrt(10)


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(UnknownName, match="square"):
        Mutation(macros=("squares",))
    with pytest.raises(InputError, match="above 0"):
        Mutation(insert=0.0)
    with pytest.raises(InputError, match=r"\[0, 1\)"):
        Mutation(more=1.0)
    with pytest.raises(InputError, match="powers of ten"):
        Mutation(decades=(1.0, -1.0))
