"""What 2^x costs in float32, in nanoseconds of compiled code rather than operations."""

from pathlib import Path

import nearly

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "exp2-float32.png"


def main(methods: list[str] | None = None, picture: Path = PICTURE) -> nearly.Frontier:
    frontier = nearly.compare(
        "exp2", methods, domain=("-1/2", "1/2"), dtype="float32", within="1ulp"
    )
    frontier.plot(picture)
    return frontier


if __name__ == "__main__":
    frontier = main()
    run = frontier.within(1.0)
    print(f"{run.method} at {run.dial}: {1e9 * (run.seconds or 0):.2f} ns, {run.error:.3f} ulp")
