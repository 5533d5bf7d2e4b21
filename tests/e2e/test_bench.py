"""The benchmarks still run; these tests do not check their figures."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
from bench.lb_server import until

pytestmark = pytest.mark.slow

BENCH: Final = Path(__file__).parents[1] / "bench"
needs_git = pytest.mark.skipif(
    not (BENCH.parents[1] / ".git").exists(), reason="these sources are not a git checkout"
)


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


def test_rows_of_deployed_apps_are_measured(tmp_path: Path) -> None:
    kept = tmp_path / "bench.json"
    names = ("app-limit", "app-unpacking")
    only = [part for name in names for part in ("--only", name)]
    run("run.py", "--rounds", "1", *only, "--json", str(kept))
    rows = json.loads(kept.read_text())["rows"]
    assert len(rows) == 3
    assert all("error" not in row for row in rows)


@pytest.mark.parametrize("way", [[], ["--pool"]])
def test_the_profile_of_a_call_ends_with_the_answer(way: list[str]) -> None:
    table = run("profile_call.py", "--calls", "20", *way).splitlines()
    assert any(line.startswith("answer ") for line in table)
    assert "share of a fork" in table[-1]


def against(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    argv = [sys.executable, str(BENCH / "against.py"), *arguments]
    return subprocess.Popen(
        argv,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(folder)},
    )


@needs_git
@pytest.mark.timeout(300)
def test_the_working_tree_is_compared_with_a_commit(tmp_path: Path) -> None:
    kept, folder = tmp_path / "against.json", tmp_path / "tmp"
    folder.mkdir()
    tricks = "FLASHPOOL_MEMORY_TRICKS"
    with against(
        folder,
        *("HEAD", "--pairs", "2", "--only", "throughput", "--json", str(kept)),
        *("--old-setting", f"{tricks}=none", "--new-setting", f"{tricks}=layout"),
    ) as running:
        output, errors = running.communicate(timeout=280)
    assert running.returncode == 0, output + errors
    found = json.loads(kept.read_text())
    assert found["pairs"] == 2
    assert found["settings"] == {"old": {tricks: "none"}, "new": {tricks: "layout"}}
    assert found["not_measured"] == []
    assert found["differing_packages"] == {}
    [row] = found["rows"]
    assert row["old"] > 0
    assert row["new"] > 0
    assert len(row["ratios"]) == 2
    assert row["low"] <= row["ratio"] <= row["high"]
    assert row["coverage"] == 0.5
    assert row["verdict"] in {"yes", "yes, by the profile", "no"}
    parts = {share["part"]: share for share in found["profile"]}
    assert list(parts) == ["all", "supervisor", "zygotes", "workers"]
    for side in ("old", "new"):
        # A worker has a hundred page faults at the very least.
        assert parts["workers"][f"{side}_faults"] > 100
        assert parts["all"][f"{side}_cpu_us"] > 100
    # Each server has its own settings.
    assert parts["workers"]["new_faults"] < parts["workers"]["old_faults"] - 10
    assert list(folder.iterdir()) == []


@needs_git
@pytest.mark.timeout(200)
@pytest.mark.parametrize("moment", ["old/venv", "new/server.log"], ids=["installing", "measuring"])
def test_a_comparison_that_is_interrupted_leaves_nothing(tmp_path: Path, moment: str) -> None:
    kept, folder = tmp_path / "against.json", tmp_path / "tmp"
    folder.mkdir()
    with against(folder, "HEAD", "--only", "latency", "--json", str(kept)) as running:

        def has_come() -> bool:
            assert running.poll() is None
            return any(folder.glob(f"flashpool-against-*/{moment}"))

        until(has_come, 150)
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=40)
    assert running.returncode == 130
    assert list(folder.iterdir()) == []
    assert not kept.exists()


@needs_git
def test_a_comparison_with_no_commit_says_so(tmp_path: Path) -> None:
    with against(tmp_path, "no-such-branch") as running:
        _, errors = running.communicate(timeout=60)
    assert running.returncode == 2
    assert errors == "error: COMMIT=no-such-branch: no such commit in this repository\n"
    assert list(tmp_path.iterdir()) == []
