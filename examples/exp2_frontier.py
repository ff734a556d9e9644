"""The work-precision frontier of 2^x on [0, 1] over the real numbers."""

from pathlib import Path

import nearly

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "exp2.png"


def main(methods: list[str] | None = None, picture: Path = PICTURE) -> nearly.Frontier:
    frontier = nearly.compare("exp2", methods, domain=("0", "1"), within=1e-12)
    frontier.plot(picture)
    return frontier


if __name__ == "__main__":
    frontier = main()
    run = frontier.within(1e-12)
    print(f"{run.method} at {run.dial}: {run.work['ops']:.0f} operations, error {run.error:.2e}")
