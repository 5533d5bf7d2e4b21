"""`make test-handler` and `make test-lb-handler`: tests/handlers through the images' entry points."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

RUN: Final = Path(__file__).parents[1] / "handlers" / "run.py"
ENTRIES: Final = ("queue", "balanced")
#: Each job has a process of its own, which takes long on a busy machine.
LIMIT_S: Final = 400

ADD: Final = {
    "function_name": "add",
    "function_code": "def add(a, b):\n    return a + b",
    "args": [2, 3],
    "serialization_format": "json",
}


def run(entry: str, *arguments: Any, monkeypatch: pytest.MonkeyPatch, volume: Path) -> Any:
    monkeypatch.setenv("FLASHPOOL_VOLUME", str(volume))
    return subprocess.run(
        [sys.executable, RUN, entry, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


@pytest.mark.timeout(LIMIT_S + 20)
# Both use the same files. A queue's jobs have a process each, which takes half a minute.
@pytest.mark.parametrize("entry", [pytest.param("queue", marks=pytest.mark.slow), "balanced"])
def test_every_file_passes(entry: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ended = run(entry, monkeypatch=monkeypatch, volume=tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    files = len(list(RUN.parent.glob("test_*.json")))
    assert ended.stdout.endswith(f"{entry}: {files - 1} passed, 0 failed, 1 skipped\n")


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_wrong_answer_fails(entry: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wrong = {"input": ADD, "expect": {"success": True, "json_result": 6}}
    (tmp_path / "test_wrong.json").write_text(json.dumps(wrong))
    right = {"input": ADD, "expect": {"success": True, "json_result": 5}}
    (tmp_path / "test_right.json").write_text(json.dumps(right))
    ended = run(entry, "--tests", tmp_path, monkeypatch=monkeypatch, volume=tmp_path)
    assert ended.returncode == 1
    assert "pass right" in ended.stdout
    assert "FAIL wrong: json_result is 5, not 6" in ended.stdout
    assert f"{entry}: 1 passed, 1 failed, 0 skipped" in ended.stdout


@pytest.mark.parametrize("entry", ENTRIES)
def test_an_entry_point_that_does_not_start_fails(
    entry: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    right = {"input": ADD, "expect": {"success": True, "json_result": 5}}
    (tmp_path / "test_right.json").write_text(json.dumps(right))
    for name in ("handler.py", "lb_handler.py"):
        (tmp_path / name).write_text("raise SystemExit('broken')")
    arguments = ("--tests", tmp_path, "--folder", tmp_path)
    ended = run(entry, *arguments, monkeypatch=monkeypatch, volume=tmp_path)
    assert ended.returncode == 1
    assert "FAIL" in ended.stdout
    assert "broken" in ended.stdout
