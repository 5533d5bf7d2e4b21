"""An older and a newer server share a volume, in both orders, without harm."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.versions import older, variables

#: A version without checks of untrusted files, and with another format of digests.
OLD = "b91e52e"
#: The last version with unsigned reports.
UNSIGNED = "105c3f7"
HERE = Path(__file__).parent


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return older(OLD, tmp_path / "old")


@pytest.fixture(params=["an older one acts", "a newer one acts"])
def versions(request: pytest.FixtureRequest, old: Path) -> tuple[Path | None, Path | None]:
    """The version that ran before, and the version that starts."""
    return (None, old) if request.param == "an older one acts" else (old, None)


class Servers:
    """Processes of either version with the same settings."""

    def __init__(self, setup: Any) -> None:
        self._setup = setup
        self.running: list[subprocess.Popen[str]] = []

    def _order(self, **more: Any) -> dict[str, Any]:
        setup = self._setup
        return {
            "base_python": str(setup.base.python),
            "volume": str(setup.volume),
            "local": str(setup.local),
            "find_links": [str(setup.base.index.folder)],
            "mode": "volume",
            **more,
        }

    def acquires(self, version: Path | None, *requirements: str, **more: Any) -> Any:
        """Acquire an environment and keep the lease; return what was acquired."""
        order = self._order(requirements=requirements, hold=True, **more)
        process = subprocess.Popen(
            [sys.executable, str(HERE / "child_acquire.py"), json.dumps(order)],
            env=variables(version),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.running.append(process)
        assert process.stdout
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        return json.loads(line)

    def leave(self) -> None:
        """Make all processes release their leases and exit."""
        for process in self.running:
            _, errors = process.communicate("", timeout=60)
            assert process.returncode == 0, errors
            assert "Traceback" not in errors
        self.running.clear()

    def maintains(self, version: Path | None, do: str, **more: Any) -> Any:
        order = self._order(do=do, **more)
        done = subprocess.run(
            [sys.executable, str(HERE / "child_maintains.py"), json.dumps(order)],
            env=variables(version),
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert Path(found["version"]).is_relative_to(version) if version else True
        return found["does"]


@pytest.fixture
def servers(setup: Any) -> Iterator[Servers]:
    made = Servers(setup)
    yield made
    for process in made.running:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize("mode", ["volume", "archive"])
def test_environments_used_by_another_version_stay(
    mode: str,
    versions: tuple[Path | None, Path | None],
    servers: Servers,
    setup: Any,
    version_in: Callable[[Path, str], str],
) -> None:
    first, second = versions
    before = servers.acquires(first, "beta", mode=mode)
    after = servers.acquires(second, "beta", mode=mode)
    assert before["digest"] != after["digest"], "their formats differ"
    assert before["origin"] == after["origin"] == "built"
    for version in (second, first):
        found = servers.maintains(version, "evict", mode=mode)
        assert found["evicted"] == []
        assert sorted(found["wanted"]) == sorted([before["digest"], after["digest"]])
    for one in (before, after):
        assert version_in(Path(one["python"]), "beta") == "1.0"
    servers.leave()
    if mode == "archive":
        packed = {path.name.partition(".")[0] for path in setup.store("archives").iterdir()}
        assert packed == {before["digest"], after["digest"]}
    # Each version finds its own environment again, and not the other's.
    for version, one in ((first, before), (second, after)):
        again = servers.acquires(version, "beta", mode=mode)
        assert again["digest"] == one["digest"]
        assert again["origin"] != "built"
    servers.leave()
    assert setup.store("holders").is_dir()
    assert os.listdir(setup.store("holders")) == []


@pytest.mark.parametrize("key", ["", "key"])
def test_memos_and_preloads_of_another_version_are_read(
    key: str, versions: tuple[Path | None, Path | None], servers: Servers
) -> None:
    first, second = versions
    servers.maintains(first, "write", key=key)
    found = servers.maintains(second, "read", key=key)
    assert found == {"fresh": True, "digest": "2" * 40, "modules": ["json", "os.path"]}


def test_either_version_may_evict_unused_environments(
    versions: tuple[Path | None, Path | None], servers: Servers
) -> None:
    first, second = versions
    digest = servers.acquires(first, "alpha")["digest"]
    servers.leave()
    assert servers.maintains(second, "evict")["evicted"] == [digest]


QUEUE = """
import json, sys
from pathlib import Path
from flashpool.frontends.qb.outbox import JobReport, Outbox
folder, do, *key = sys.argv[1:]
outbox = Outbox(Path(folder), *(one.encode() for one in key))
if do == "keep":
    outbox.keep(JobReport(job_id="job", body=b'{"output": 1}', streamed=True))
if do == "forget":
    outbox.forget_others(60)
print(json.dumps([[one.job_id, one.body.decode(), one.streamed] for one in outbox.waiting(60)]))
"""


def queue(version: Path | None, folder: Path, do: str) -> Any:
    key = [] if version else ["key"]
    done = subprocess.run(
        [sys.executable, "-c", QUEUE, str(folder), do, *key],
        env=variables(version),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_report_of_a_newer_version_is_posted_by_an_older_one(tmp_path: Path) -> None:
    unsigned = older(UNSIGNED, tmp_path / "old")
    folder = tmp_path / "outbox" / "endpoint" / "pod"
    assert queue(None, folder, "keep") == [["job", '{"output": 1}', True]]
    assert queue(unsigned, folder, "read") == [["job", '{"output": 1}', True]]
    other = queue(unsigned, folder.with_name("other"), "forget")
    assert other == []
    assert queue(None, folder, "read") == [["job", '{"output": 1}', True]]


def test_an_unsigned_report_waits_for_an_older_version(tmp_path: Path) -> None:
    """An unsigned report looks like a forged one; the version that wrote it may come back."""
    unsigned = older(UNSIGNED, tmp_path / "old")
    folder = tmp_path / "outbox" / "endpoint" / "pod"
    assert queue(unsigned, folder, "keep") == [["job", '{"output": 1}', True]]
    assert queue(None, folder, "read") == []
    assert queue(None, folder.with_name("other"), "forget") == []
    assert queue(unsigned, folder, "read") == [["job", '{"output": 1}', True]]
    # The job's new report replaces it.
    assert queue(None, folder, "keep") == [["job", '{"output": 1}', True]]
