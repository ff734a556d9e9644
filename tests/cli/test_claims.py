"""`nearly claims`: verdicts, the ledger and its page."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import nearly

from nearly.cli.ledger import page
from nearly.core import claim as claims_module
from nearly.core.claim import Claim, Expected, Inconclusive


def _undecided() -> float:
    raise Inconclusive("needs a GPU")


def made(name: str, evidence: Callable[[], Any], cost: Any = "fast", limits: str = "") -> Claim:
    expected = Expected("ratio | of two", "<=", 2.0, "Table 3", scaled="a tenth of the size")
    return Claim("some-paper", name, "functions", cost, expected, evidence, limits)


@pytest.fixture
def some_claims(monkeypatch: pytest.MonkeyPatch) -> list[Claim]:
    known = [
        made("it holds", lambda: [1.0, 1.5, 1.25]),
        made("it does not", lambda: 3.0, limits="the size of the cache limits it"),
        made("nobody knows", _undecided),
        made("dear", lambda: 1.0, "medium"),
    ]

    def claims(room: str | None = None, paper: str | None = None, cost: str = "all") -> list[Claim]:
        return [c for c in known if cost in ("all", c.cost)]

    monkeypatch.setattr(claims_module, "claims", claims)
    return known


@pytest.mark.usefixtures("some_claims")
def test_rows_are_as_documented() -> None:
    done = nearly("claims", "--json")
    assert done.status == 0
    rows = {row["claim"]: row for row in done.json}
    assert set(rows) == {"it holds", "it does not", "nobody knows"}
    columns = {
        "paper", "claim", "room", "cost", "expected", "measured", "holds", "reason", "seeds",
        "seconds", "date",
    }  # fmt: skip
    assert all(columns <= set(row) for row in rows.values())
    assert rows["it holds"]["holds"] is True
    assert rows["it holds"]["measured"] == {"value": 1.25, "low": 1.0, "high": 1.5}
    assert rows["it does not"]["holds"] is False
    assert rows["it does not"]["reason"] == "the size of the cache limits it"
    assert rows["nobody knows"]["holds"] is None
    assert rows["nobody knows"]["reason"] == "needs a GPU"


@pytest.mark.usefixtures("some_claims")
def test_the_table_says_what_holds() -> None:
    done = nearly("claims")
    assert "3 claims: 1 holds, 1 does not hold, 1 open" in done.out
    assert "needs a GPU" in done.out
    assert nearly("claims", "--quiet").out.count("\n") == 1


@pytest.mark.usefixtures("some_claims")
def test_other_costs_are_pointed_out() -> None:
    done = nearly("claims", "--cost", "gpu")
    assert done.status == 0
    assert "no gpu claims; there are others: --cost fast or medium" in done.out


@pytest.mark.usefixtures("some_claims")
def test_write_needs_a_checkout() -> None:
    done = nearly("claims", "--write")
    assert done.status == 2
    assert "--write needs a checkout" in done.err


def test_write_then_check(
    some_claims: list[Claim], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "src" / "nearly").mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    (tmp_path / "deep").mkdir()
    monkeypatch.chdir(tmp_path / "deep")
    assert nearly("claims", "--check", "--quiet").status == 1  # none of them is in the ledger yet
    assert nearly("claims", "--write", "--cost", "all").status == 0
    rows = json.loads((tmp_path / "docs" / "ledger.json").read_text())
    assert [row["claim"] for row in rows] == ["dear", "it does not", "it holds", "nobody knows"]
    text = (tmp_path / "docs" / "ledger.md").read_text()
    assert "4 claims: 2 holds, 1 does not hold, 1 open." in text
    assert "ratio \\| of two &lt;= 2 (Table 3; a tenth of the size)" in text
    assert nearly("claims", "--check").status == 0
    some_claims[0] = made("it holds", lambda: 9.0)
    changed = nearly("claims", "--check")
    assert changed.status == 1
    assert "the ledger says 'holds', it is 'does not hold'" in changed.err


def test_the_page_is_sorted_and_the_same_for_any_order() -> None:
    rows = [made(name, lambda: 1.0).check() for name in ("b", "a", "c")]
    titles = {"some-paper": "A title | with a bar"}
    assert page(rows, titles) == page(rows[::-1], titles)
    assert "### A title \\| with a bar" in page(rows, titles)
    body = page(rows, titles)
    assert body.index("| a |") < body.index("| b |") < body.index("| c |")


def test_an_interrupt_keeps_the_rows_so_far(
    some_claims: list[Claim], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt() -> float:
        raise KeyboardInterrupt

    some_claims[1] = made("it stops", interrupt)
    done = nearly("claims", "--json")
    assert done.status == 130
    assert [row["claim"] for row in done.json] == ["it holds"]
    assert "interrupted after 1 of 3 claims" in done.err
