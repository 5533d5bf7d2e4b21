"""That what measures still runs; what it measures is its own matter."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

pytestmark = pytest.mark.slow

BENCH: Final = Path(__file__).parents[1] / "bench"


def run(script: str, *arguments: str) -> str:
    argv = [sys.executable, str(BENCH / script), *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_rows_are_measured_and_kept(tmp_path: Path) -> None:
    kept = tmp_path / "bench.json"
    run("run.py", "--rounds", "1", "--only", "death-http", "--only", "latency", "--json", str(kept))
    rows = json.loads(kept.read_text())["rows"]
    assert len(rows) == 2
    assert all(row["value"] > 0 for row in rows)


@pytest.mark.parametrize("way", [[], ["--pool"]])
def test_the_profile_of_a_call_ends_with_the_answer(way: list[str]) -> None:
    table = run("profile_call.py", "--calls", "20", *way).splitlines()
    assert any(line.startswith("answer ") for line in table)
    assert "share of a fork" in table[-1]
