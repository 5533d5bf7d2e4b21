"""The `flashpool` command as a newcomer types it."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from e2e.server import FLASHPOOL, serving, until

from support import wants

SOURCE = """
import time
import beside

STEP = 2

def double(n, plus=0):
    print("doubling", n, flush=True)
    return n * STEP + plus

def lacks():
    import no_such_module

def uses_a_neighbour():
    return beside.VALUE

def slow(path):
    print("begun", flush=True)
    time.sleep(60)

def bad():
    raise ValueError("no such luck")

def dies():
    import os
    print("last words", flush=True)
    os._exit(3)

def odd():
    return object()

class NoFunction:
    pass

if __name__ == "__main__":
    raise SystemExit("not to be run")
"""


def flashpool(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environ = {k: v for k, v in os.environ.items() if not k.startswith("FLASHPOOL_")}
    return subprocess.run(
        [FLASHPOOL, *arguments],
        env={**environ, **variables},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "beside.py").write_text("VALUE = 'from beside'")
    path = tmp_path / "functions.py"
    path.write_text(SOURCE)
    return path


@pytest.mark.parametrize(
    ("function", "arguments", "result"),
    [
        ("double", "[20, 2]", 42),
        ("double", '{"n": 20, "plus": 2}', 42),
        ("double", "21", 42),
        ("uses_a_neighbour", "[]", "from beside"),
    ],
)
def test_call_runs_a_function_of_a_file(
    source: Path, function: str, arguments: str, result: Any
) -> None:
    done = flashpool("call", f"{source}:{function}", arguments)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == result
    assert done.stderr == (
        "" if function != "double" else f"doubling {21 if arguments == '21' else 20}\n"
    )


def test_a_failed_call_exits_with_1(source: Path) -> None:
    done = flashpool("call", f"{source}:bad")
    assert (done.returncode, done.stdout) == (1, "")
    assert "in bad" in done.stderr
    assert 'raise ValueError("no such luck")' in done.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["functions.py:odd"], 1, "JSON"),
        (
            ["functions.py:absent"],
            1,
            "functions.py defines no function 'absent'; its functions: double,",
        ),
        (["functions.py:double", "[[1], 2, 3]"], 1, "write '[[[1], 2, 3]]'"),
        (["functions.py:double", '{"m": 1}'], 1, "called with keyword arguments"),
        ([".:double"], 2, "it is a folder"),
        (["functions.py:double", "1", "--with", "huma nize"], 2, "huma nize"),
        (["functions.py:STEP"], 1, "defines no function 'STEP'"),
        (["functions.py:slow", "[0]", "--timeout", "0.3"], 1, "Raise --timeout"),
        (["functions.py:slow", "[0]", "--timeout", "0"], 2, "0.0 is not in the range"),
        (["functions.py:slow", "[0]", "--memory-mb", "15"], 2, "15 is not in the range"),
        (["functions:slow"], 2, "no such file; did you mean functions.py?"),
        (["functions.py"], 2, "FILE.py:FUNCTION"),
        (["absent.py:f"], 2, "absent.py"),
        (["functions.py:double", "{"], 2, "ARGS is not JSON"),
    ],
    ids=str,
)
def test_mistakes_of_the_user_are_explained(
    source: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], status: int, text: str
) -> None:
    monkeypatch.chdir(source.parent)
    done = flashpool("call", *arguments)
    assert done.returncode == status
    assert text in done.stderr
    assert "NoFunction" not in done.stderr


def test_deeply_nested_arguments_are_refused(source: Path) -> None:
    done = flashpool("call", f"{source}:double", "[" * 50_000)
    assert done.returncode == 2
    assert "ARGS is not JSON: it is nested too deeply" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_message_is_printed_twice(source: Path) -> None:
    died = flashpool("call", f"{source}:dies")
    assert died.stderr.count("last words") == 1
    assert "exit code 3" in died.stderr
    slow = flashpool("call", f"{source}:slow", "[0]", "--timeout", "3")
    assert slow.stderr.count("begun") == 1
    assert slow.stderr.count("in slow") == 1
    assert flashpool("call", f"{source}:double").stderr.count("missing 1 required") == 1
    assert "Traceback" not in flashpool("call", f"{source}:absent").stderr
    lacking = flashpool("call", f"{source}:lacks").stderr
    assert "in --with" in lacking
    assert "dependencies" not in lacking


def test_output_is_live_and_an_interrupt_ends_the_call(source: Path) -> None:
    process = subprocess.Popen(
        [FLASHPOOL, "call", f"{source}:slow", "[0]"], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr
    with process, process.stderr:
        assert process.stderr.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 1
        assert "Cancelled" in process.stderr.read()


def test_settings_are_listed() -> None:
    shown = flashpool("settings", FLASHPOOL_PORT="18080", FLASHPOOL_TOKEN="hush")
    assert shown.returncode == 0
    assert "FLASHPOOL_QUEUE_LIMIT" in shown.stdout
    assert "hush" not in shown.stdout
    rows = json.loads(flashpool("settings", "--json", FLASHPOOL_PORT="18080").stdout)
    assert rows["FLASHPOOL_PORT"]["value"] == 18080
    assert rows["FLASHPOOL_PORT"]["origin"] == "environment"
    assert rows["FLASHPOOL_HOST"]["origin"] == "default"


def test_invalid_settings_stop_every_command() -> None:
    for command in (["settings"], ["serve", "lb"]):
        done = flashpool(*command, FLASHPOOL_PORT="x", FLASHPOOL_SLOTS="0")
        assert done.returncode == 2
        assert "FLASHPOOL_PORT='x'" in done.stderr
        assert "FLASHPOOL_SLOTS='0'" in done.stderr


def test_a_misspelt_setting_is_warned_of() -> None:
    done = flashpool("settings", FLASHPOOL_SLOT="3")
    assert "did you mean FLASHPOOL_SLOTS?" in done.stderr


def test_an_open_server_is_refused() -> None:
    done = flashpool("serve", "lb", "--host", "0.0.0.0", FLASHPOOL_PORT="0")
    assert done.returncode == 2
    assert "FLASHPOOL_TOKEN" in done.stderr
    assert "FLASHPOOL_ALLOW_OPEN" in done.stderr


def test_stats_are_not_shown_to_a_network_by_accident():
    done = flashpool("serve", "lb", FLASHPOOL_PORT="0", FLASHPOOL_ADMIN_HOST="0.0.0.0")
    assert done.returncode != 0
    assert "FLASHPOOL_ADMIN_HOST=127.0.0.1" in done.stderr


def test_a_port_in_use_is_reported() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = flashpool("serve", "lb", "--port", port)
        assert done.returncode == 2
        assert f"port {port}: it is in use; set --port" in done.stderr
        by_variable = flashpool("serve", "lb", FLASHPOOL_PORT=port)
        assert f"port {port}: it is in use; set FLASHPOOL_PORT" in by_variable.stderr
        admin = flashpool("serve", "lb", "--port", "0", FLASHPOOL_ADMIN_PORT=port)
        assert "set FLASHPOOL_ADMIN_PORT" in admin.stderr


def test_sigterm_during_the_start_ends_the_server() -> None:
    process = subprocess.Popen(
        [FLASHPOOL, "serve", "lb"],
        env={**os.environ, "FLASHPOOL_PORT": "0", "FLASHPOOL_ADMIN_PORT": "0"},
        stderr=subprocess.DEVNULL,
    )
    until(lambda: catches(process.pid, signal.SIGTERM), 20)
    process.terminate()
    assert process.wait(40) == 0


def catches(pid: int, signum: int) -> bool:
    """Return whether the process has a handler of its own for the signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (signum - 1) & 1)


def test_version_and_help_are_quick() -> None:
    assert flashpool("--version").stdout.startswith("flashpool ")
    done = subprocess.run(
        [sys.executable, "-X", "importtime", FLASHPOOL, "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    for module in ("fastapi", "rich", "asyncio", "msgspec"):
        assert f"| {module}\n" not in done.stderr


@wants.needs_program("curl")
def test_the_example_of_the_banner_works(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [FLASHPOOL, "serve", "lb"],
            env={**os.environ, "FLASHPOOL_PORT": "0", "FLASHPOOL_ADMIN_PORT": "0"},
            stderr=file,
        )
    try:
        line = until(lambda: [line for line in log.read_text().splitlines() if "curl" in line], 30)[
            0
        ]
        done = subprocess.run(line, shell=True, capture_output=True, check=True)
        assert json.loads(done.stdout)["json_result"] == 42
    finally:
        process.terminate()
        assert process.wait(40) == 0


class TestVolumeThatIsNotThere:
    @pytest.mark.parametrize(
        ("command", "status", "said"),
        [
            (["ls"], 0, "there is no environment yet"),
            (["ls", "--json"], 0, '"total_bytes": 0'),
            (["show", "abc"], 1, "no environment begins with 'abc'"),
            (["verify"], 0, "no environments to verify"),
            (["gc"], 0, "nothing to delete"),
            (["explain", "packaging"], 0, "base"),
        ],
    )
    def test_read_only_commands_create_no_files(
        self, tmp_path: Path, command: list[str], status: int, said: str
    ) -> None:
        volume, local = tmp_path / "typo" / "volume", tmp_path / "local"
        done = flashpool(
            "envs", *command, FLASHPOOL_VOLUME=str(volume), FLASHPOOL_LOCAL_DIR=str(local)
        )
        assert done.returncode == status, done.stderr
        assert said in done.stdout + done.stderr
        if command[0] == "ls":
            assert str(volume / "flashpool") in done.stdout
        assert list(tmp_path.iterdir()) == []

    def test_a_server_says_so(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        done = flashpool("serve", "lb", FLASHPOOL_VOLUME=str(tmp_path / "file" / "volume"))
        assert done.returncode == 2
        assert "cannot be created" in done.stderr
        with serving(tmp_path, FLASHPOOL_VOLUME=str(tmp_path / "no" / "volume")) as server:
            assert "is created now, and" in server.log()
            assert (tmp_path / "no" / "volume").is_dir()
