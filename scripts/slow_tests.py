"""Add to tests/slow.txt the tests that a fresh machine's suite leaves to `make claims`.

    TMPDIR=$(mktemp -d) .venv/bin/pytest -n 2 --dist loadfile --durations=0 > durations.txt
    python scripts/slow_tests.py durations.txt

A new directory for temporary files is one without compiled programs: most tests do little else than
compile, and the first run on a machine is the one that must end in time. A test's seconds are those
of its call; what its module shares stays. What a slow test compiled for others is then compiled by
one of them: after many additions, measure and add again.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

SECONDS = 1.6
LIST = Path(__file__).parents[1] / "tests" / "slow.txt"
LINE = re.compile(r"^([\d.]+)s call +(tests/\S.*)$", re.MULTILINE)


def main(log: Path) -> None:
    calls = {name: float(seconds) for seconds, name in LINE.findall(log.read_text())}
    quickest = {min(names, key=calls.__getitem__) for names in by_file(calls)}
    slow = {name for name, seconds in calls.items() if seconds > SECONDS} - quickest
    known = set(LIST.read_text().splitlines())
    LIST.write_text("".join(f"{name}\n" for name in sorted(slow | known)))


def by_file(calls: dict[str, float]) -> list[list[str]]:
    """The tests of each file, of which one at least stays."""
    files: dict[str, list[str]] = {}
    for name in calls:
        files.setdefault(name.split("::")[0], []).append(name)
    return list(files.values())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
