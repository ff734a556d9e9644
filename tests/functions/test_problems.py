"""The functions room's problem: from a text to a pick."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nearly.core import catalogue
from nearly.core.compare import certified, compare
from nearly.core.errors import InputError, UnknownName
from nearly.functions.export import export
from nearly.functions.problems import Approximation, is_builder
from nearly.functions.program import Program

OWN = """
import numpy as np
p = [1.0, 0.6931, 0.2416, 0.0517, 0.0137]

def wrong(x):
    return 1.0 + 0.5 * x

def builder(function, dial):
    from nearly.functions.builders import minimax
    return minimax(function, dial)

def scaled(x):
    return np.sqrt(x * x + 1.0)
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    return path


def test_names_expressions_and_files_name_a_problem(own: Path) -> None:
    assert catalogue.problem("exp2").name == "exp2"
    assert catalogue.problem("log1p(x)/x", domain="0 1").name == "log1p(x)/x"
    problem = catalogue.problem(f"{own}:scaled", domain="0 1")
    frontier = compare(problem, ["remez"], dials=[3])
    assert frontier.runs[0].error < 1e-2


@pytest.mark.parametrize(
    ("text", "fields", "message"),
    [
        ("exp22", {}, "did you mean 'exp2'"),
        ("log1p(x", {}, "x"),
        ("expp(x)/x", {}, "did you mean"),
        ("exp2", {"domain": "1 0"}, "domain"),
        ("exp2", {"domain": "0"}, "takes 2 values"),
        ("exp2", {"domain": "0 nan"}, "domain|nan"),
        ("tan", {"domain": "1 2"}, "pole"),
        ("exp2", {"dtype": "float33"}, "did you mean"),
        ("exp2", {"error": "relativ"}, "did you mean"),
        ("exp2", {"error": "ulp"}, "ULP"),
        ("exp2", {"norm": "l3"}, "l3"),
        ("exp2", {"to": "fortran", "dtype": "float32"}, "fortran"),
        ("exp2", {"to": "c"}, "machine format"),
        ("exp2", {"domian": "0 1"}, "did you mean 'domain'"),
        ("exp2", {"domain": "-inf inf"}, "inf"),
    ],
)
def test_bad_input_names_the_value_and_the_remedy(
    text: str, fields: dict[str, str], message: str
) -> None:
    with pytest.raises((InputError, UnknownName), match=message):
        catalogue.problem(text, **fields)


def test_no_reduction_is_known_of_most_functions() -> None:
    problem = Approximation("bessel_j0", dtype="float32")
    with pytest.raises(InputError, match="finite --domain"):
        compare(problem, ["remez"])


def test_tolerances() -> None:
    assert Approximation("exp2", dtype="float32").tolerance("1ulp") == 1.0
    with pytest.raises(InputError, match="in ULP"):
        Approximation("exp2", ("0", "1")).tolerance("1ulp")


def test_a_users_coefficients_are_compared_and_proven(own: Path) -> None:
    frontier = compare(
        "exp2", [f"{own}:p", f"{own}:builder", "remez"], dials=[4], domain="0 1", within=1e-4
    )
    mine, built, ours = frontier.runs
    assert mine.source == "user"
    assert mine.status == "ok"
    assert mine.errors["proven"] == pytest.approx(mine.error, rel=1e-3)
    assert built.error == ours.error < mine.error


def test_what_is_a_builder() -> None:
    assert is_builder(lambda function, dial: None)
    assert not is_builder(lambda x: x)
    assert not is_builder([1.0, 2.0])
    assert not is_builder(np.sqrt)


def test_a_pick_is_certified_on_every_input_and_emitted() -> None:
    problem = Approximation("exp2", ("0", "1"), dtype="float16", to="numpy")
    frontier = certified(compare(problem, ["remez"], within="1ulp"), problem)
    run = frontier.runs[frontier.pick]  # type: ignore[index]
    assert run.certificate is not None
    assert run.certificate.label == "PROVEN"
    assert run.certificate.details["inputs"] == 0x3C00 + 2  # the bit patterns from 0 to 1, and -0
    text = export(problem, run, form="numpy", name="my_exp2", command="test")
    assert "PROVEN" in text.splitlines()[0]
    namespace: dict[str, object] = {}
    exec(text, namespace)
    x = np.linspace(0, 1, 33).astype(np.float16)
    assert np.array_equal(namespace["my_exp2"](x), run.standin.function(x))  # type: ignore[operator]


def test_operations_are_the_work_and_reals_have_no_seconds() -> None:
    frontier = compare("exp2", ["remez"], dials=[5], domain="0 1")
    (run,) = frontier
    assert run.work["ops"] == 10
    assert run.seconds is None
    assert frontier.unit == "ops"
    assert isinstance(run.standin.function, Program)


def test_the_stored_pareto_set_of_exp2_is_proven() -> None:
    """What examples/exp2_frontier.py printed and stored: operations 2 to 16 on [0, 1]."""
    path = Path(__file__).parents[2] / "docs" / "gallery" / "exp2-pareto.json"
    rows = json.loads(path.read_text())
    operations = [row["ops"] for row in rows]
    assert operations[0] == 2
    assert operations[-1] == 16
    for row in rows:
        program = Program.from_json(row["program"])
        assert program.cost.ops == row["ops"]
        from nearly.functions.proof import prove

        bound = prove(Approximation("exp2", ("0", "1")).target, program).total
        assert bound == pytest.approx(row["proven"], rel=1e-6)
        assert row["error"] <= bound <= 1.01 * row["error"]
