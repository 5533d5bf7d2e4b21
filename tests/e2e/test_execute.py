"""Whatever a call does, it has a clear outcome, and the next call works."""

import base64
import json
import pickle
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from e2e.server import Server, report, request, serving, until

pytestmark = pytest.mark.shared_pool


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server"), FLASHPOOL_GRACE_S="0.5") as server:
        yield server


@pytest.fixture(autouse=True)
def _and_the_next_call_works(server: Server) -> Iterator[None]:
    yield
    answer = server.execute("def f(): return 42")
    assert answer["json_result"] == 42, report(answer)


FAILURES = [
    ("import sys; sys.exit(3)", "SystemExit", "3"),
    ("raise KeyboardInterrupt", "KeyboardInterrupt", ""),
    ("import os; os._exit(7)", "WorkerCrashed", "exit code 7"),
    ("import os; os._exit(0)", "WorkerCrashed", "exit"),
    ("import os; os.kill(os.getpid(), 11)", "WorkerCrashed", "SIGSEGV"),
    ("import os; os.kill(os.getpid(), 9)", "WorkerCrashed", "SIGKILL"),
    ("import ctypes; ctypes.string_at(0)", "WorkerCrashed", "SIGSEGV"),
    ("import os; os.abort()", "WorkerCrashed", "SIGABRT"),
    ("return object()", "ResultNotSerializable", "JSON"),
    ("return float('nan')", "ResultNotSerializable", "JSON"),
    ("return 'x' * (11 << 20)", "ResultTooLarge", ""),
    ("return undefined", "NameError", "undefined"),
]


@pytest.mark.parametrize(("line", "error_type", "text"), FAILURES, ids=[row[0] for row in FAILURES])
def test_each_failure_has_its_error_type(
    server: Server, line: str, error_type: str, text: str
) -> None:
    answer = server.execute(f"def f():\n    {line}")
    assert answer["success"] is False
    assert answer["error_type"] == error_type, report(answer)
    assert text in answer["error"]


def test_a_syntax_error(server: Server) -> None:
    answer = server.execute("def f(:\n    pass")
    assert answer["error_type"] == "SyntaxError"


def test_an_endless_loop_is_timed_out(server: Server) -> None:
    begun = time.monotonic()
    answer = server.execute("def f():\n    while True: pass", timeout_s=1)
    assert answer["error_type"] == "Timeout"
    assert answer["details"]["phase"] == "run"
    assert time.monotonic() - begun >= 1


def test_a_loop_that_ignores_sigterm_is_killed(server: Server) -> None:
    code = """def f():
    import signal
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    while True: pass"""
    assert server.execute(code, timeout_s=0.5)["error_type"] == "Timeout"


def test_a_daemonised_grandchild_is_killed(server: Server) -> None:
    code = """def f():
    import subprocess, sys
    hide = "import os, signal, time; os.setsid(); signal.signal(15, signal.SIG_IGN); time.sleep(99)"
    return subprocess.Popen([sys.executable, "-c", hide]).pid"""
    answer = server.execute(code)
    pid = answer["json_result"]
    until(lambda: pid not in [process.pid for process in server.tree()])


def test_a_gigabyte_of_output_is_truncated(server: Server) -> None:
    code = """def f():
    import os
    line = b"x" * 1023 + b"\\n"
    for _ in range(1 << 10):
        os.write(1, line * 1024)
    return "done" """
    answer = server.execute(code)
    assert answer["json_result"] == "done", report(answer)
    assert len(answer["stdout"]) < 1_200_000


def test_a_call_beyond_its_memory_limit_is_killed(server: Server) -> None:
    code = "def f():\n    import time\n    kept = bytearray(1 << 30)\n    time.sleep(40)"
    answer = server.execute(code, memory_mb=512)
    assert answer["error_type"] == "OutOfMemory", report(answer)
    assert answer["details"]["confidence"]


def test_an_exception_arrives_with_its_cause_and_traceback(server: Server) -> None:
    code = """def f():
    try:
        1 / 0
    except ZeroDivisionError as error:
        raise KeyError("outer") from error"""
    answer = server.execute(code)
    error = pickle.loads(base64.b64decode(answer["exception"]))
    assert isinstance(error, KeyError)
    assert isinstance(error.__cause__, ZeroDivisionError)
    assert error.__traceback__


def test_output_is_kept_per_call_and_in_order(server: Server) -> None:
    code = """def f():
    import os, sys, subprocess
    print("one")
    print("two", file=sys.stderr)
    sys.stdout.flush()
    subprocess.run(["echo", "three"])
    os.write(2, b"four\\n")"""
    assert server.execute(code)["stdout"].splitlines() == ["one", "two", "three", "four"]


def test_generators_return_a_list(server: Server) -> None:
    assert server.execute("def f(n):\n    yield from range(n)", 3)["json_result"] == [0, 1, 2]


def test_shipped_modules_are_never_stale(server: Server) -> None:
    code = "def f():\n    import shipped_here\n    return shipped_here.VALUE"
    for value in (1, 2):
        answer = server.execute(code, modules={"shipped_here.py": f"VALUE = {value}"})
        assert answer["json_result"] == value, report(answer)


@pytest.mark.parametrize("wrapped", [False, True])
def test_bare_and_wrapped_bodies_are_accepted(server: Server, wrapped: bool) -> None:
    body = request("def f(a): return a", 5)
    reply = server.http.post("/execute", json={"input": body} if wrapped else body)
    assert reply.json()["json_result"] == 5


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"function_name": "other"}, "other"),
        ({"modules": {"../x.py": ""}}, "modules"),
        ({"modules": {"/etc/x.py": ""}}, "modules"),
        ({"args": ["!!"], "serialization_format": "cloudpickle"}, "args"),
    ],
    ids=str,
)
def test_requests_that_only_a_worker_can_check_are_refused(
    server: Server, fields: dict[str, Any], text: str
) -> None:
    reply = server.http.post("/execute", json={**request("def f(*a): return 1"), **fields})
    assert (reply.status_code, reply.json()["error_type"]) == (422, "InvalidRequest")
    assert text in reply.json()["error"]


def test_variables_of_a_call_do_not_affect_others(server: Server) -> None:
    code = "def f():\n    import os\n    return os.environ.get('MINE')"
    assert server.execute(code, env={"MINE": "1"})["json_result"] == "1"
    assert server.execute(code)["json_result"] is None


def test_a_receipt(server: Server) -> None:
    receipt = server.execute("def f(): return 1")["receipt"]
    assert receipt["seconds"]["total"] > 0
    assert receipt["pid"] not in (None, server.process.pid)


def test_stats(server: Server) -> None:
    stats = server.stats()
    assert stats["slots"]["total"] >= 1
    assert stats["outcomes"]
    json.dumps(stats, allow_nan=False)


def test_requests_beyond_the_operators_limits_name_the_setting(tmp_path: Path) -> None:
    ceilings = {"FLASHPOOL_FORBID": "class,env", "FLASHPOOL_MAX_TIMEOUT_S": "2"}
    with serving(tmp_path, **ceilings) as server:
        for fields, setting in ({"env": {"A": "1"}}, "FORBID"), ({"timeout_s": 3}, "MAX_TIMEOUT_S"):
            reply = server.http.post("/execute", json=request("def f(): return 1", **fields))
            assert reply.status_code == 422
            assert f"FLASHPOOL_{setting}" in reply.json()["error"]
        assert server.execute("def f(): return 1", timeout_s=2)["json_result"] == 1
        late = server.execute("import time\ndef f(): time.sleep(60)")
        assert (late["error_type"], late["receipt"]["seconds"]["run"] < 20) == ("Timeout", True)


@pytest.mark.parametrize("page", [{"Host": "evil.example"}, {"Origin": "https://evil.example"}])
def test_web_pages_cannot_read_the_stats(server: Server, page: dict[str, str]) -> None:
    url = f"{server.admin}/stats"
    assert httpx.get(url, headers=page, trust_env=False).status_code == 403
    assert httpx.get(url, trust_env=False).status_code == 200
