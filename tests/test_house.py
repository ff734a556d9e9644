"""The house rules that a machine can check."""

from __future__ import annotations

import ast
import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from nearly.core import catalogue
from nearly.core.claim import claims
from nearly.core.lazy import load

ROOT = Path(__file__).parents[1]
HEAVY = ("jax", "equinox", "scipy", "matplotlib", "jaxtyping")


@pytest.mark.parametrize(
    "code",
    [
        "import nearly",
        "import nearly.cli",
        "import nearly.functions; from nearly.core import catalogue; catalogue.methods()",
    ],
)
def test_imports_are_lazy(code: str) -> None:
    check = f"{code}\nimport sys; print([m for m in {HEAVY!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_public_names_load_and_are_typed() -> None:
    import nearly

    stub = (ROOT / "src" / "nearly" / "__init__.pyi").read_text()
    for name in nearly.__all__:
        assert getattr(nearly, name) is not None
        assert re.search(rf"\bas {name}\b", stub), name
    with pytest.raises(AttributeError, match="no attribute 'compere'"):
        nearly.compere  # noqa: B018


@pytest.mark.parametrize("room", catalogue.ROOMS)
def test_no_module_hides_a_public_name(room: str) -> None:
    """A module that is imported becomes an attribute of its package, whatever was there."""
    package = load(f"nearly.{room}")
    beside = {module.name for module in pkgutil.iter_modules(package.__path__)}
    for name in beside & {*package.__all__}:
        assert isinstance(package.__getattr__(name), ModuleType), name


def test_every_catalogue_line_loads_and_cites_a_known_paper() -> None:
    keys = bibliography()
    for name, line in catalogue.methods().items():
        assert loads(line), name
        assert line.paper is None or line.paper in keys, name
    for name, problem in catalogue.problems().items():
        assert callable(load(problem.target)), name


def loads(line: catalogue.Method) -> bool:
    """Whether a line's target is there, or is a peer of a package that is not installed."""
    try:
        return load(line.target) is not None
    except ModuleNotFoundError as error:
        return line.source == "peer" and not str(error.name).startswith("nearly")


def bibliography() -> set[str]:
    text = (ROOT / "docs" / "references.bib").read_text()
    found = re.findall(r"^@\w+\{([^,]+),", text, re.MULTILINE)
    assert len(found) == len(set(found))
    return set(found)


def test_every_claim_cites_a_known_paper_and_stands_in_the_ledger() -> None:
    keys = bibliography()
    ledger = json.loads((ROOT / "docs" / "ledger.json").read_text())
    rows = {(r["room"], r["paper"], r["claim"]) for r in ledger}
    assert rows == {(c.room, c.paper, c.claim) for c in claims()}
    assert {c.paper for c in claims()} <= keys


@pytest.mark.parametrize("claim", claims(cost="fast"), ids=lambda c: f"{c.paper}/{c.claim}")
def test_fast_claims_have_the_verdict_of_the_ledger(claim: object) -> None:
    ledger = json.loads((ROOT / "docs" / "ledger.json").read_text())
    row = claim.check()  # type: ignore[attr-defined]
    (known,) = [r for r in ledger if (r["paper"], r["claim"]) == (row["paper"], row["claim"])]
    assert row["holds"] == known["holds"]
    assert row["expected"] == known["expected"]


def test_locks_hold_names_versions_and_hashes_only() -> None:
    for path in (ROOT / "requirements").glob("*.lock"):
        text = path.read_text()
        assert "://" not in text
        requirements = re.findall(r"^\S+", text, re.MULTILINE)
        assert all("==" in r for r in requirements)
        assert text.count("--hash=sha256:") >= len(requirements)


def test_package_data_is_there() -> None:
    from importlib.resources import files

    for name in ("references.bib", "ledger.json"):
        assert (files("nearly") / "data" / name).read_text()


def test_every_page_of_the_site_is_there() -> None:
    pages = re.findall(r":\s+(\S+\.md)", (ROOT / "mkdocs.yml").read_text())
    assert len(pages) > 5
    for page in pages:
        assert (ROOT / "docs" / page).is_file(), page


def test_no_formula_of_a_docstring_reads_as_a_link() -> None:
    """`a[i][j]` outside backticks is a cross-reference to `j`, at which the site's build stops."""
    code = re.compile(r"```.*?```|`[^`]*`", re.DOTALL)
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                prose = code.sub("", ast.get_docstring(node) or "")
                assert "][" not in prose, f"{path}: {prose}"


def test_slow_tests_are_tests() -> None:
    for name in (ROOT / "tests" / "slow.txt").read_text().splitlines():
        path, function = name.split("[")[0].rsplit("::", 1)
        assert f"def {function}(" in (ROOT / path.split("::")[0]).read_text(), name
