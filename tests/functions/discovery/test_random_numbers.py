"""Streams of random words: a published sequence, independence of keys, ranges."""

from __future__ import annotations

import numpy as np

from nearly.functions.discovery.random_numbers import below, draw, stream_of, uniform


def test_published_sequence_of_splitmix64() -> None:
    # Vigna's reference implementation from the seed 1234567.
    stream = np.array([1234567], dtype=np.uint64)
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [int(draw(stream)) for _ in expected] == expected


def test_streams_depend_on_every_key_and_its_place() -> None:
    keys = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (2**63, 0, 0)]
    assert len({int(stream_of(*key)[0]) for key in keys}) == len(keys)


def test_uniform_numbers_fill_the_unit_interval() -> None:
    stream = stream_of(5)
    drawn = np.array([uniform(stream) for _ in range(4000)])
    assert drawn.min() >= 0 and drawn.max() < 1
    counts, _ = np.histogram(drawn, 10, (0, 1))
    assert np.abs(counts - 400).max() < 5 * 20  # five standard deviations


def test_integers_stay_below() -> None:
    stream = stream_of(6)
    assert {int(below(stream, 3)) for _ in range(200)} == {0, 1, 2}
