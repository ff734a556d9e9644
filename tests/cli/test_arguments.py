"""Taking a command line apart, when a problem's options are known only once the problem is."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import pytest

from nearly.cli.arguments import Arguments, take_apart
from nearly.core.errors import InputError, UnknownName

KNOWN = {"--within": 1, "--json": 0, "-o": 1}


def fields_of(text: str) -> Sequence[inspect.Parameter]:
    def factory(
        domain: tuple[str, str], dtype: str = "real", error_measure: str = "sup"
    ) -> None: ...

    return list(inspect.signature(factory, eval_str=True).parameters.values())


def apart(line: str, positionals: int = 1) -> Arguments:
    return take_apart(line.split(), KNOWN, positionals, fields_of)


@pytest.mark.parametrize(
    ("line", "domain"),
    [
        ("exp2 --domain 0 1", ("0", "1")),
        ("exp2 --domain -inf inf", ("-inf", "inf")),
        ("exp2 --domain 0 pi/4 --json", ("0", "pi/4")),
        ("exp2 --domain -pi/4 -1e-3", ("-pi/4", "-1e-3")),
        ("exp2 --domain=0 1", ("0", "1")),
        ("--within 1e-3 exp2 --domain -log(2)/2 log(2)/2", ("-log(2)/2", "log(2)/2")),
        ("exp2 --domain 3 4 --domain 0 1", ("0", "1")),
    ],
)
def test_a_domain_needs_no_quoting(line: str, domain: tuple[str, str]) -> None:
    assert apart(line).fields["domain"] == domain


def test_quoted_pairs_are_pairs() -> None:
    for tokens in (["exp2", "--domain", "-1 1"], ["exp2", "--domain=-1 1"]):
        assert take_apart(tokens, KNOWN, 1, fields_of).fields["domain"] == ("-1", "1")


def test_the_commands_options_and_the_problems_may_mix() -> None:
    found = apart("exp2 --json --dtype float32 --within 1ulp --error-measure l2")
    assert found.options == ["--json", "--within", "1ulp"]
    assert found.positionals == ["exp2"]
    assert found.fields == {"dtype": "float32", "error_measure": "l2"}


def test_a_negative_tolerance_and_an_expression_are_positionals() -> None:
    assert apart("-1 -x**2 --dtype real", 2).positionals == ["-1", "-x**2"]


def test_what_follows_two_dashes_is_positional() -> None:
    assert apart("exp2 -- --json").positionals == ["exp2", "--json"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("exp2 --domian 0 1", "did you mean '--domain'"),
        ("exp2 --jsn", "did you mean '--json'"),
        ("--withn 3 exp2", "did you mean '--within'"),
        ("--domain 0 1 exp2", "come after the problem"),
        ("exp2 --domain 0", "--domain takes 2 values, got 1: '0'"),
        ("exp2 --domain 0 --json", "--domain takes 2 values, got 1: '0'"),
        ("exp2 --domain -o -1", "--domain takes 2 values, got none"),
        ("exp2 --dtype", "--dtype takes a value, got none"),
    ],
)
def test_a_mistake_is_named_with_its_remedy(line: str, message: str) -> None:
    with pytest.raises((UnknownName, InputError), match=message):
        apart(line)
