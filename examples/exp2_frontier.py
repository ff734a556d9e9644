"""The work-precision frontier of 2^x on [0, 1] over the real numbers, every program proven."""

import json
from pathlib import Path

import nearly

DOCS = Path(__file__).parents[1] / "docs"


def main(
    methods: list[str] | None = None,
    picture: Path = DOCS / "images" / "exp2.png",
    table: Path = DOCS / "gallery" / "exp2-pareto.json",
) -> nearly.Frontier:
    frontier = nearly.compare("exp2", methods, domain=("0", "1"), within=1e-12)
    frontier.plot(picture)
    table.write_text(json.dumps(pareto(frontier), indent=1) + "\n")
    return frontier


def pareto(frontier: nearly.Frontier) -> list[dict[str, object]]:
    """The best program at each number of operations up to 16, its error and proven bound."""
    runs = (frontier.runs[i] for i in frontier.pareto("ops"))
    return [
        {
            "ops": int(run.work["ops"]),
            "method": f"{run.method} {run.dial}",
            "error": run.error,
            "proven": run.errors["proven"],
            "program": run.standin.function.to_json(),
        }
        for run in runs
        if run.work["ops"] <= 16
    ]


if __name__ == "__main__":
    frontier = main()
    for row in pareto(frontier):
        print("{ops:>3} ops  proven {proven:.3e}  {method}".format(**row))
    run = frontier.within(1e-12)
    print(f"{run.method} at {run.dial}: {run.work['ops']:.0f} operations, error {run.error:.2e}")
