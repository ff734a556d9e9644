"""What must stay light: help, version and lists import nothing heavy."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from commands import clean_environment, nearly

HEAVY = ("jax", "jaxlib", "equinox", "scipy", "matplotlib", "jaxtyping", "numpy", "diffrax")
PROBE = """
import sys
sys.argv = ["nearly", *{line!r}]
from nearly.cli import main
try:
    main()
except SystemExit as stop:
    assert stop.code in (0, None), stop.code
print("\\n" + " ".join(m for m in {heavy!r} if m in sys.modules), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "line",
    [["--help"], ["--version"], ["list", "problems"], ["list", "papers", "--json"],
     ["compare", "--help"]],
    ids=" ".join,
)  # fmt: skip
def test_nothing_heavy_is_imported(line: list[str]) -> None:
    code = PROBE.format(line=line, heavy=HEAVY)
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=clean_environment(),
        check=True,
    )
    assert done.stderr.strip() == ""
    assert done.stdout


def test_version() -> None:
    import nearly as package

    assert nearly("--version").out == f"nearly {package.__version__}\n"


@pytest.mark.parametrize(
    ("what", "columns"),
    [
        ("rooms", {"room", "problems", "methods", "about"}),
        ("problems", {"problem", "room", "settings"}),
        ("methods", {"method", "room", "protocol", "source", "paper", "default"}),
        ("papers", {"paper", "title", "year", "claims", "hold", "fail", "open"}),
    ],
)
def test_lists_are_json_on_request(what: str, columns: set[str]) -> None:
    done = nearly("list", what, "--json")
    assert done.status == 0
    for row in done.json:
        assert set(row) == columns
    assert nearly("list", what).status == 0


def test_the_catalogue_is_listed() -> None:
    assert "exp2" in {row["problem"] for row in nearly("list", "problems", "--json").json}
    assert "functions" in {row["room"] for row in nearly("list", "rooms", "--json").json}


def test_bibliography() -> None:
    from nearly.cli.listing import parse_bibliography

    text = """
    % a comment with an @ sign
    @article{adan,
      title = {{Adan}: Adaptive {N}esterov momentum},
      author = "Xie, X. and others",
      year = 2022
    }
    @comment{nothing}
    @misc{zero, year={2023}, title="Auto{N}umerics-Zero = programs"}
    """
    found = {entry["key"]: entry for entry in parse_bibliography(text)}
    assert found["adan"] == {
        "key": "adan",
        "title": "Adan: Adaptive Nesterov momentum",
        "year": "2022",
    }
    assert found["zero"]["title"] == "AutoNumerics-Zero = programs"
    assert json.dumps(list(found)) == '["adan", "zero"]'
