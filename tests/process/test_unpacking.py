"""Several processes that unpack at once, some of which are killed."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import pytest

from flashpool.frontends.apps.artifacts.app_store import AppStore
from flashpool.frontends.apps.artifacts.tar_reader import ArchiveLimits
from flashpool.frontends.apps.artifacts.unpacking import unpack
from support.archives import file, folder, write_archive

UNPACKER: Final = Path(__file__).with_name("unpacker.py")
CONTENT: Final = {
    **{f"package/m{number}.py": f"N = {number}\n".encode() for number in range(40)},
    "large.bin": bytes(range(256)) * 8192,
    "main.py": b"import package.m1\n",
}
LIMITS: Final = ArchiveLimits(max_mb=100, max_files=1000, max_ratio=100)

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    members = [folder("./"), *(file(f"./{name}", content) for name, content in CONTENT.items())]
    return write_archive(tmp_path / "artifact.tar.gz", members)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "local" / "apps"


def begin(archive: Path, root: Path, *arguments: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, UNPACKER, archive, root, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )


def complete(path: Path) -> bool:
    return {
        str(each.relative_to(path)): each.read_bytes() for each in path.rglob("*") if each.is_file()
    } == CONTENT


def outcomes(processes: "list[subprocess.Popen[bytes]]") -> Iterator[dict[str, Any]]:
    for process in processes:
        assert process.stdin
        process.stdin.close()
    for process in processes:
        assert process.stdout
        answer = process.stdout.read()
        assert process.wait(60) == 0
        yield json.loads(answer)


@pytest.mark.parametrize("locks", ["work", "fail", "lie"])
def test_ten_servers_that_start_together_unpack_one_app(
    archive: Path, root: Path, locks: str
) -> None:
    with ExitStack() as stack:
        processes = [stack.enter_context(begin(archive, root, locks)) for _ in range(10)]
        found = list(outcomes(processes))
    paths = {each["path"] for each in found}
    assert len(paths) == 1
    assert complete(Path(paths.pop()))
    assert sum(len(each["made"]) for each in found) == 1
    assert {each["link"] for each in found} == {""}
    assert (root.parent.parent / "app").resolve().parent == root
    store = AppStore(root)
    assert os.listdir(store.scratch_root) == os.listdir(store.users_root) == []
    assert len(os.listdir(root.parent.parent)) == 3  # archive, link, local directory


def test_a_kill_at_any_moment_leaves_no_incomplete_app(
    archive: Path, root: Path, tmp_path: Path
) -> None:
    with begin(archive, tmp_path / "count" / "apps", "work") as process:
        (counted,) = outcomes([process])
    total = counted["events"]
    assert total > 50
    # Sample the beginning, the renames at the end, and some of the many files between.
    moments = [*range(1, 12, 3), *range(12, total - 8, total // 4), *range(total - 8, total + 1)]
    killed_with_app = 0
    for moment in moments:
        where = tmp_path / str(moment) / "local" / "apps"
        with begin(archive, where, "work", str(moment)) as process:
            process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
        store = AppStore(where)
        there = store.digests()
        assert all(complete(store.app(digest)) for digest in there)
        killed_with_app += bool(there)
        lease = unpack(archive, store, LIMITS, threading.Event())
        assert complete(lease.path)
        lease.release()
        assert os.listdir(store.scratch_root) == os.listdir(store.users_root) == []
    assert 0 < killed_with_app < len(moments)
