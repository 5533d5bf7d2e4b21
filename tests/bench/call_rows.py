"""Rows of what `call_counts` counts: Python calls that a no-op makes in the server, and their files."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from bench.context import Bench
from bench.figures import Row, limited

#: The limits. Raising them needs a reason.
CALLS = 170
FILES = 28
COUNT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """Of the middle one of several calls; ``hops`` is how often the next call is in another file."""

    calls: int
    hops: int
    #: From most calls to fewest.
    by_file: dict[str, int]


def count(folder: Path) -> Counted:
    """Run the script, which serves for as long as it counts."""
    script = Path(__file__).with_name("call_counts.py")
    done = subprocess.run(
        [sys.executable, script],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        timeout=COUNT_S,
        check=True,
    )
    found = json.loads(done.stdout)
    return Counted(calls=found["calls"], hops=found["hops"], by_file=found["by_file"])


def counts(bench: Bench) -> list[Row]:
    """A count does not vary, so once is enough."""
    found = count(bench.folder)
    return [
        limited(
            "Python calls in the server for a no-op over /execute",
            "calls",
            [found.calls],
            at_most=CALLS,
            detail={"changes of file": found.hops, **dict(list(found.by_file.items())[:6])},
        ),
        limited("files that these are in", "files", [len(found.by_file)], at_most=FILES),
    ]
