"""Calls that fail in ten ways: stats, metrics and the log name the same cause, the right one."""

import json
import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from e2e.server import FLASHPOOL, Server, report, request, until
from e2e.world import World
from prometheus_client.parser import text_string_to_metric_families

TOKEN: Final = "the-operator-s"
KEY: Final = "for-replay"
FINE: Final = "def fine(): return 1"
GREEDY: Final = """def greedy():
    held = []
    while True:
        held.append(b"x" * (8 << 20))
"""
BACKEND: Final = """
def refuse(*_args, **_named):
    raise SystemExit("the answer is no")

build_wheel = prepare_metadata_for_build_wheel = refuse
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One way to fail, and what has to be reported about it."""

    code: str
    error_type: str
    #: The cause in stats and metrics.
    cause: str
    #: Words of the log line; messages of user code are not repeated there.
    logged: str
    #: Words of the evidence in ``recent_failures``.
    evidence: str
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def level(self) -> str:
        """The level of the log line: no failure is the server's fault, some are the user's."""
        return "INFO" if self.cause in ("UserException", "Cancelled") else "WARNING"


RAISED: Final = "raised by the call's code"
KINDS: Final = {
    "exception": Kind(
        code="def wrong(): return 1 / 0",
        error_type="ZeroDivisionError",
        cause="UserException",
        logged=RAISED,
        evidence="division by zero",
    ),
    "exit": Kind(
        code="def leaves():\n    import os\n    os._exit(3)",
        error_type="WorkerCrashed",
        cause="WorkerCrashed",
        logged="exit code 3",
        evidence="exit 3",
    ),
    "signal": Kind(
        code="def crashes():\n    import ctypes\n    ctypes.string_at(0)",
        error_type="WorkerCrashed",
        cause="WorkerCrashed",
        logged="SIGSEGV",
        evidence="SIGSEGV",
    ),
    "memory": Kind(
        code=GREEDY,
        error_type="OutOfMemory",
        cause="OutOfMemory",
        logged="used too much memory",
        evidence="the limit is 400 MB",
        fields={"memory_mb": 400},
    ),
    "time limit": Kind(
        code="def late():\n    import time\n    time.sleep(60)",
        error_type="Timeout",
        cause="Timeout",
        logged="0.5 s",
        evidence="0.5 s",
        fields={"timeout_s": 0.5},
    ),
    "unpicklable result": Kind(
        code="def odd(): return {1, 2}",
        error_type="ResultNotSerializable",
        cause="ResultNotSerializable",
        logged="set",
        evidence="set",
    ),
    "missing module": Kind(
        code="def lacks():\n    import no_such_module_anywhere",
        error_type="ModuleNotFoundError",
        cause="UserException",
        logged=RAISED,
        evidence="no_such_module_anywhere",
    ),
    "failed build": Kind(
        code="def unbuilt(): return 1",
        error_type="EnvironmentError",
        cause="EnvironmentError",
        logged="broken",
        evidence="broken",
    ),
    "too large result": Kind(
        code="def large(): return 'x' * (3 << 20)",
        error_type="ResultTooLarge",
        cause="ResultTooLarge",
        logged="the answer may hold 1048576",
        evidence="FLASHPOOL_RESULT_LIMIT_MB sets the limit",
    ),
    "cancelled": Kind(
        code="def stopped():\n    import time\n    time.sleep(60)",
        error_type="Cancelled",
        cause="Cancelled",
        logged="cancelled by an operator",
        evidence="cancelled by an operator",
    ),
}
#: Successful calls among the failing ones.
WELL: Final = 5


@pytest.fixture
def broken(tmp_path: Path) -> str:
    """Create a requirement whose build fails."""
    source = tmp_path / "broken"
    source.mkdir()
    (source / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "own"\nbackend-path = ["."]\n'
        '[project]\nname = "broken"\nversion = "1"\n'
    )
    (source / "own.py").write_text(BACKEND)
    return f"broken @ {source.as_uri()}"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    variables = {
        "FLASHPOOL_ADMIN_TOKEN": TOKEN,
        "FLASHPOOL_STATE_DIR": str(tmp_path / "state"),
        "FLASHPOOL_LOG_FORMAT": "json",
        "FLASHPOOL_RESULT_LIMIT_MB": "1",
        "FLASHPOOL_GRACE_S": "0.3",
        "FLASHPOOL_KEEP_FAILED_MB": "10",
        "FLASHPOOL_VOLUME_KEY": KEY,
    }
    with World(tmp_path).server(**variables) as one:
        yield one


def sent(server: Server, name: str, code: str, **fields: Any) -> dict[str, Any]:
    """Send a call with that id; return the answer."""
    answer: dict[str, Any] = httpx.post(
        f"{server.url}/execute",
        json=request(code, **fields),
        headers={"X-Request-Id": name},
        timeout=100,
        trust_env=False,
    ).json()
    return answer


def cancel(admin: httpx.Client, name: str) -> None:
    """Cancel a call once it runs."""
    until(lambda: admin.get(f"/calls/{name}").json().get("state") == "running", 60)
    assert admin.delete(f"/calls/{name}").status_code == 200


def of_metrics(text: str, name: str) -> dict[str, float]:
    """Return the samples of a metric, by their only label."""
    return {
        "".join(sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


def lines(server: Server, name: str) -> list[dict[str, Any]]:
    """Return the log lines about the outcome of a call."""
    found = (json.loads(line) for line in server.log().splitlines() if line.startswith("{"))
    ends = (one for one in found if one["logger"] == "flashpool.frontends.logs")
    return [one for one in ends if one["request_id"] == name]


def is_kept(server: Server, name: str) -> bool:
    """Return whether the log says that the request was kept."""
    found = (json.loads(line) for line in server.log().splitlines() if line.startswith("{"))
    return any(one["request_id"] == name and "Kept its" in one["message"] for one in found)


def replayed(world: Path, name: str) -> "subprocess.CompletedProcess[str]":
    """Run `flashpool replay` for a call, on the same volume."""
    known = {k: v for k, v in os.environ.items() if not k.startswith("FLASHPOOL")}
    variables = {
        "FLASHPOOL_VOLUME": str(world / "volume"),
        "FLASHPOOL_LOCAL_DIR": str(world / "local"),
        "FLASHPOOL_FIND_LINKS": str(world / "index"),
        "FLASHPOOL_INDEX_URL": (world / "empty").as_uri(),
        "FLASHPOOL_VOLUME_KEY": KEY,
        "FLASHPOOL_GRACE_S": "0.3",
    }
    return subprocess.run(
        [FLASHPOOL, "replay", name],
        env={**known, **variables},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.timeout(300)
def test_each_of_ten_ways_to_fail_has_its_cause(
    server: Server, broken: str, tmp_path: Path
) -> None:
    ids = {name: name.replace(" ", "-") for name in KINDS}
    with (
        ThreadPoolExecutor(4) as callers,
        httpx.Client(
            base_url=server.admin,
            headers={"Authorization": f"Bearer {TOKEN}"},
            timeout=60,
            trust_env=False,
        ) as admin,
    ):
        answers = {}
        for name, kind in KINDS.items():
            more = {"dependencies": [broken]} if name == "failed build" else {}
            fields = {**kind.fields, **more}
            answers[name] = callers.submit(sent, server, ids[name], kind.code, **fields)
        well = [callers.submit(sent, server, f"well-{number}", FINE) for number in range(WELL)]
        cancel(admin, ids["cancelled"])
        for name, kind in KINDS.items():
            answer = answers[name].result()
            assert answer["error_type"] == kind.error_type, (name, report(answer))
        assert all(call.result()["success"] for call in well)
        stats = admin.get("/stats").json()
        metrics = admin.get("/metrics").text
    expected = Counter(kind.cause for kind in KINDS.values()) + Counter({"ok": WELL})
    assert stats["outcomes"] == expected
    assert stats["calls"] == expected.total() == len(KINDS) + WELL
    assert of_metrics(metrics, "flashpool_calls_total") == expected
    assert sum(minute["calls"] for minute in stats["last_hour"]) == stats["calls"]
    assert sum(minute["failed"] for minute in stats["last_hour"]) == len(KINDS)
    assert stats["supervisor"]["callback_errors"] == 0
    by_id = {one["receipt"]["call_id"]: one for one in stats["recent_failures"]}
    assert len(by_id) == len(KINDS)
    for name, kind in KINDS.items():
        receipt = answers[name].result()["receipt"]
        failure = by_id[receipt["call_id"]]
        assert (failure["cause"], failure["error_type"]) == (kind.cause, kind.error_type), name
        assert kind.evidence in failure["error"] + json.dumps(failure["receipt"]), (name, failure)
        (line,) = until(lambda name=ids[name]: lines(server, name))  # type: ignore[misc]
        assert (line["level"], line["call"]) == (kind.level, receipt["call_id"]), name
        assert f": {kind.error_type}: " in line["message"], (name, line)
        assert kind.logged in line["message"], (name, line)
    for number in range(WELL):
        assert lines(server, f"well-{number}") == []
    # A call that an operator cancelled is not a failure, and is not kept.
    kept = [ids[name] for name, kind in KINDS.items() if kind.cause != "Cancelled"]
    for name in kept:
        until(lambda name=name: is_kept(server, name))  # type: ignore[misc]
    with ThreadPoolExecutor(3) as callers:
        for name, again in zip(
            kept, callers.map(lambda name: replayed(tmp_path, name), kept), strict=True
        ):
            told = again.stdout + again.stderr
            assert (again.returncode, "It failed the same way." in told) == (1, True), (name, told)
