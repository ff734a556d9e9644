"""The user's own matrix on the command line, in every format, and every way it can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import lineax as lx
import numpy as np
import pytest
import scipy.io
import scipy.sparse as sp
from typer.testing import CliRunner

from nearly.cli.app import app
from nearly.core import catalogue
from nearly.core.errors import InputError
from nearly.linear import grids
from nearly.linear.operators import as_scipy


@pytest.fixture
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEARLY_CACHE", str(tmp_path / "store"))
    with jax.enable_x64(True):
        laplace = as_scipy(grids.poisson2d(5))
    scipy.io.mmwrite("poisson.mtx", laplace, symmetry="symmetric")
    scipy.io.mmwrite("b.mtx", np.arange(1.0, 26).reshape(-1, 1))
    np.save("b.npy", np.arange(1.0, 26))
    return tmp_path


def tags(problem: Any) -> tuple[bool, bool]:
    operator = problem.operator
    return bool(lx.is_symmetric(operator)), bool(lx.is_positive_semidefinite(operator))


def test_files_of_every_kind_make_the_same_problem(where: Path) -> None:
    laplace = scipy.io.mmread("poisson.mtx")
    sp.save_npz("poisson.npz", sp.csr_array(laplace))
    for name in ("poisson.mtx", "poisson.npz"):
        problem = catalogue.problem(name)
        assert problem.name == name and problem.random(None)
        assert tags(problem) == (True, True)
        np.testing.assert_array_equal(as_scipy(problem.operator).toarray(), laplace.toarray())
    for name in ("b.mtx", "b.npy"):
        problem = catalogue.problem("poisson.mtx", rhs=name, dtype="float32")
        np.testing.assert_array_equal(problem.side, np.arange(1.0, 26))
        assert problem.side.dtype == problem.operator.in_structure().dtype == np.float32


def test_what_the_matrix_is_is_found_out(where: Path) -> None:
    laplace = scipy.io.mmread("poisson.mtx").toarray()
    kinds = {"shifted": (True, False), "wind": (False, False)}
    scipy.io.mmwrite("shifted.mtx", sp.coo_array(laplace - 1.9 * np.eye(25)))
    scipy.io.mmwrite("wind.mtx", sp.coo_array(laplace + 0.3 * np.eye(25, k=1)))
    for name, expected in kinds.items():
        assert tags(catalogue.problem(f"{name}.mtx")) == expected


def command(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def test_the_command_line_compares_solvers_on_it(where: Path) -> None:
    methods = ("--methods", "scipy-cg,scipy-splu")
    done = command("compare", "poisson.mtx", "--rhs", "b.mtx", *methods, "--json")
    assert done.exit_code == 0
    runs = json.loads(done.stdout)["runs"]
    best = {run["method"]: run["errors"]["relative residual"] for run in runs}
    assert best["scipy-splu"] < 1e-14 and best["scipy-cg"] < 1e-9


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["missing.mtx"], "there is no file missing.mtx"),
        (["text.mtx"], "text.mtx is not a Matrix Market file"),
        (["text.npz"], "text.npz is not a SciPy sparse array"),
        (["wide.mtx"], "2 by 3"),
        (["complex.mtx"], "complex"),
        (["singular.mtx"], "singular"),
        (["poisson.mtx", "--rhs", "short.mtx"], "3 numbers, but the matrix has 25 rows"),
        (["poisson.mtx", "--rhs", "none.mtx"], "no file none.mtx for --rhs"),
        (["poisson.mtx", "--dtype", "float16"], "float16"),
        (["poisson.mtx", "--side", "b.mtx"], "--side"),
    ],
)
def test_a_bad_file_is_one_line_that_says_why(where: Path, arguments: list[str], says: str) -> None:
    Path("text.mtx").write_text("not a matrix\n")
    Path("text.npz").write_text("not a matrix\n")
    scipy.io.mmwrite("wide.mtx", np.ones((2, 3)))
    scipy.io.mmwrite("complex.mtx", 1j * np.eye(2))
    scipy.io.mmwrite("singular.mtx", np.ones((3, 3)))
    scipy.io.mmwrite("short.mtx", np.ones((3, 1)))
    done = command("compare", *arguments)
    assert done.exit_code == 2
    said = done.stderr.strip()
    assert says in said and "\n" not in said


def test_errors_in_python_are_input_errors(where: Path) -> None:
    with pytest.raises(InputError, match="there is no file"):
        catalogue.problem("nowhere.npz")
