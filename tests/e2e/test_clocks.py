"""Machines whose clocks are wrong, on one volume: ages are those of the clock that stamps files."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from support.wants import program

WORKER = Path(__file__).with_name("clock_worker.py")
DIGEST = "a" * 40


def on_clock(shift: str, volume: Path, what: str) -> Any:
    """Run the worker with its clock this far ahead; the file system's and monotonic are right."""
    command = [sys.executable, str(WORKER), str(volume), what]
    if shift:
        command = [program("faketime"), "-f", shift, *command]
    variables = {**os.environ, "NO_FAKE_STAT": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("shift", ["+2h", "+2d", "-2d"])
def test_a_result_that_waits_outlives_a_restart_with_another_clock(
    shift: str, tmp_path: Path
) -> None:
    on_clock("", tmp_path, "keep")
    assert on_clock(shift, tmp_path, "resume") == ["job"]
    kept_elsewhen = on_clock(shift, tmp_path, "keep")
    assert abs(kept_elsewhen - time.time()) > 3600
    assert on_clock("", tmp_path, "resume") == ["job"]


@pytest.mark.parametrize("shift", ["+2d", "-2d"])
def test_a_pod_with_another_clock_deletes_nothing_of_others(shift: str, tmp_path: Path) -> None:
    on_clock("", tmp_path, "keep")
    place = tmp_path / "flashpool"
    # The holder is on another machine, so only its heartbeat shows that it lives.
    alive = place / "holders" / "feed1-7-7-01234567"
    alive.touch()
    environment, mark = place / "envs" / DIGEST, place / "leases" / DIGEST / alive.name
    environment.mkdir()
    mark.parent.mkdir()
    mark.touch()
    (mark.parent / "used").touch()
    preloads = place / "preloads" / f"{'b' * 40}.json"
    preloads.touch()
    found = on_clock(shift, tmp_path, "look_around")
    assert abs(found.pop("clock") - time.time()) > 86400
    assert found == {"problems": [], "evicted": [], "fresh": True}
    for path in (alive, environment, mark, preloads, place / "requests" / f"{DIGEST}.json"):
        assert path.exists()
    assert len(list((place / "results").iterdir())) == 2
    assert len(list((place / "outbox" / "endpoint" / "pod").iterdir())) == 1
    assert on_clock("", tmp_path, "resume") == ["job"]


def test_files_that_are_old_by_the_volumes_clock_are_removed(tmp_path: Path) -> None:
    on_clock("", tmp_path, "keep")
    place = tmp_path / "flashpool"
    for path in (*(place / "results").iterdir(), *(place / "outbox").rglob("*.json")):
        os.utime(path, (1, 1))
    on_clock("-2d", tmp_path, "look_around")
    assert on_clock("", tmp_path, "resume") == []
    assert len(list((place / "results").iterdir())) == 1
