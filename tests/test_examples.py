"""Every example runs, on less than it runs on for the docs, and makes its picture."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_has_a_test_and_a_place_in_the_gallery() -> None:
    gallery = (EXAMPLES.parent / "docs" / "gallery.md").read_text()
    tests = Path(__file__).read_text()
    for path in EXAMPLES.glob("*.py"):
        assert path.name in gallery
        assert path.stem in tests


def test_exp2_frontier(tmp_path: Path) -> None:
    frontier = example("exp2_frontier").main(
        ["remez", "rational-even"], tmp_path / "p.png", tmp_path / "p.json"
    )
    assert (tmp_path / "p.png").stat().st_size > 10_000
    assert frontier.within(1e-12).work["ops"] < 20


def test_float32_speed(tmp_path: Path) -> None:
    frontier = example("float32_speed").main(["remez"], tmp_path / "p.png")
    assert (tmp_path / "p.png").exists()
    assert frontier.within(1.0).seconds is not None


def test_own_problem(tmp_path: Path) -> None:
    module = example("own_problem")
    frontier = module.main(module.Smoothing(size=30), tmp_path / "p.png")
    assert (tmp_path / "p.png").exists()
    assert frontier.within(1e-6).work["matvecs"] <= 2 * 30


def test_relaxation_regret(tmp_path: Path) -> None:
    regret = example("relaxation_regret").main(40, 2, 2, tmp_path / "p.png")
    assert (tmp_path / "p.png").exists()
    assert {curves.shape for curves in regret.values()} == {(2, 40)}


def test_pinn_million(tmp_path: Path) -> None:
    (solved,) = example("pinn_million").main([200], 40, 50, tmp_path / "p.png")
    assert (tmp_path / "p.png").exists()
    assert solved.errors[40] < 0.7 * solved.errors[0]


def test_coarse_solvers(tmp_path: Path) -> None:
    module = example("coarse_solvers")
    frontier = module.main(module.CoarseSolvers(batch=2, finest=64), tmp_path / "p.png")
    assert (tmp_path / "p.png").exists()
    assert frontier.within(1e-4).method.startswith("spectral")
