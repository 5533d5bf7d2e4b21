"""Untrusted content on the volume ends neither a heartbeat nor a lease."""

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from unit.envs.store.test_layout import A, B, Pod, backdate, environment
from unit.envs.store.test_volume_files import nested

from flashpool.envs.acquiring import open_store
from flashpool.envs.acquiring.open_store import HeartbeatThread, Seldom
from flashpool.envs.archives import archive
from flashpool.envs.errors import Tampered
from flashpool.envs.resolving.memo import StoredMemo
from flashpool.envs.store import growth, lease_files, manifest, volume_files
from flashpool.envs.store.counts import StoreCounts
from flashpool.envs.store.eviction import evict_archives, sweep
from flashpool.envs.store.layout import Store
from flashpool.envs.store.liveness import parse_holder, start_time
from flashpool.envs.store.preloads import read_preloads

ODD_NAMES = [
    "x-\u00b2-1-y",
    "x-1-\u00b2-y",
    "\u0661-\u0661-\u0661-\u0661",
    "a-" + "9" * 200 + "-1-b",
    "a-1-1-b\n",
    "-1-1-",
    "a-1-1-" + "b" * 200,
    "..",
    "-",
    "\udcff-1-1-a",
    "evicting.",
    "evicting.x-\u00b2-1-y",
]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "flashpool")
    made.prepare()
    return made


@pytest.mark.parametrize("name", ODD_NAMES)
def test_an_odd_name_is_not_a_holder(name: str, store: Store) -> None:
    pod = Pod(store)
    assert parse_holder(name) is None
    assert pod.holders.dead(name)
    assert pod.holders.stalled(name)


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_odd_names_do_not_disturb_sweeping_claims_and_eviction(kind: str, store: Store) -> None:
    environment(store, A)
    user, other = Pod(store), Pod(store)
    user.marks.put(A)
    for name in ODD_NAMES:
        if name == "..":
            continue
        for folder in ("holders", "scratch", "trash", "claims", "requests", f"leases/{A}", "envs"):
            path = store.root / folder / name
            if kind == "file":
                path.touch()
            else:
                (path / "inner").mkdir(parents=True)
    store.claim(B).symlink_to("x-\u00b2-1-y")
    assert sweep(store, other.holders, trimmed=True) == []
    assert other.claims.take(B)
    assert not other.evictor(store).evict(A)
    assert other.marks.users(A) == [user.holders.me]
    assert sorted(os.listdir(store.holders)) == sorted([user.holders.me, other.holders.me])
    assert os.listdir(store.trash) == []
    user.marks.take_away(A)
    assert other.evictor(store).evict(A)


def test_a_deep_tree_in_the_trash_is_removed(store: Store) -> None:
    pod = Pod(store)
    nested(store.trash / "tree", 1200)
    nested(store.scratch_root / "x-\u00b2-1-y.0", 1200)
    assert sweep(store, pod.holders) == []
    assert os.listdir(store.trash) == os.listdir(store.scratch_root) == []


def test_a_failing_step_does_not_prevent_the_others(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pod = Pod(store)
    (store.root / "claims" / "x").symlink_to("a stranger")

    def fails() -> None:
        raise RecursionError("a mistake of ours")

    monkeypatch.setattr(store, "empty_trash", fails)
    assert sweep(store, pod.holders) == ["trash: RecursionError: a mistake of ours"]
    assert os.listdir(store.root / "claims") == []
    assert "Traceback" in caplog.text


def test_a_heartbeat_that_cannot_be_read_is_not_a_death(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the environment of a running call would be evicted after a read error."""
    environment(store, A)
    here, there = Pod(store), Pod(store).elsewhere()
    there.marks.put(A)
    real = volume_files.os.stat

    def stat(path: Any, **options: Any) -> os.stat_result:
        if path == there.holders.me:
            raise OSError(116, "Stale file handle")
        return real(path, **options)

    monkeypatch.setattr(volume_files.os, "stat", stat)
    with pytest.raises(OSError, match="Stale"):
        here.evictor(store).evict(A)
    assert store.environment(A).is_dir()


def test_start_times_are_read_whatever_the_process_name(tmp_path: Path) -> None:
    code = (
        "import ctypes, sys\n"
        "ctypes.CDLL(None).prctl(15, b'\\xff\\xfe) Z 1', 0, 0, 0)\n"
        "print(flush=True)\n"
        "sys.stdin.read()\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(["python3", "-c", code], **pipes) as odd:  # type: ignore[call-overload]
        try:
            assert odd.stdout
            odd.stdout.readline()
            assert start_time(odd.pid).isdigit()
        finally:
            odd.kill()


def test_too_many_marks_prevent_eviction_until_they_are_swept(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment(store, A)
    pod = Pod(store)
    monkeypatch.setattr(lease_files, "MOST_NAMES", 3)
    monkeypatch.setattr(volume_files, "MOST_NAMES", 3)
    folder = store.leases(A)
    folder.mkdir()
    for number in range(3):
        (folder / f"stranger {number}").touch()
    assert not pod.evictor(store).evict(A)
    assert pod.evictor(store).evict(A), "they were nobody's, and are gone"


# -- Contents of files --------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"resolved": 10**400},
        {"resolved": -(10**400)},
        {"resolved": "1"},
        {"resolved": True},
        {"digest": 7},
        {"digest": "A" * 40},
        {"mac": 7},
        {"digest": ["a"]},
    ],
)
@pytest.mark.parametrize("key", [None, b"key"])
def test_a_malformed_memo_is_ignored(
    change: dict[str, Any], key: bytes | None, store: Store
) -> None:
    memo = StoredMemo(store, 60, key, Pod(store).holders)
    value = {"digest": B, "resolved": time.time(), "mac": "", **change}
    store.request(A).write_text(json.dumps(value))
    assert memo.get(A) is None


@pytest.mark.parametrize("depth", [100, 900, 5000])
def test_a_deeply_nested_memo_is_ignored(depth: int, store: Store) -> None:
    deep = "[" * depth + "]" * depth
    text = f'{{"digest": "{B}", "resolved": 1, "mac": "", "more": {deep}}}'
    store.request(A).write_text(text)
    assert StoredMemo(store, 60, b"key").get(A) is None


def test_a_memos_age_goes_by_the_volumes_clock(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clocks of pods differ: a memo that one pod just wrote is fresh for all."""
    pod = Pod(store)
    memo = StoredMemo(store, 60, None, pod.holders)
    now = time.time()
    for ahead in (-7200, 7200):
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda ahead=ahead: now + ahead)
            memo.put(A, B, ())
        found = memo.get(A)
        assert found is not None
        assert found.fresh
        assert found.age_s < 60
    backdate(store.request(A), 61)
    found = memo.get(A)
    assert found is not None
    assert not found.fresh


def test_a_signed_memo_is_as_old_as_its_signed_time(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anyone who can write to the volume can set a file's time."""
    memo = StoredMemo(store, 60, b"key", Pod(store).holders)
    now = time.time()
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: now - 7200)
        memo.put(A, B, ())
    found = memo.get(A)
    assert found is not None
    assert not found.fresh


@pytest.mark.parametrize("modules", ["x", 7, {"a": 1}, [1, None, "a b", "x" * 300, "ok"]])
def test_malformed_preloads_are_filtered(modules: Any, store: Store) -> None:
    store.preloads(A).write_text(json.dumps({"modules": modules, "entries": modules}))
    found = read_preloads(store, A)
    assert found.modules == found.entries == (("ok",) if isinstance(modules, list) else ())


@pytest.mark.parametrize("row", ["5\ta\0b", "x", "\t", "1" * 5000 + "\tdata", "5\t" + "x/" * 5000])
def test_a_malformed_list_of_files_counts_as_tampering(row: str, store: Store) -> None:
    path = environment(store, A)
    (path / manifest.FILES).write_text(f"{row}\n")
    with pytest.raises(Tampered):
        manifest.check_sizes(path)


def test_a_sparse_file_is_not_hashed_to_its_end(store: Store) -> None:
    path = environment(store, A)
    manifest.seal(path, b"key")
    (path / "large").touch()
    os.truncate(path / "large", 1 << 43)
    with pytest.raises(Tampered, match="more in it than was built"):
        manifest.check_seal(path, b"key")


@pytest.mark.parametrize(
    "change",
    [
        {"size": 10**400},
        {"size": "7"},
        {"members": -1},
        {"members": 1.5},
        {"content_bytes": -1},
        {"sha256": None},
        {"facts": []},
        {"facts": {"digest": A}},
        {"digest": 1},
    ],
)
def test_a_malformed_archive_manifest_counts_as_tampering(
    change: dict[str, Any], store: Store
) -> None:
    archive.pack(environment(store, A), store, Pod(store).holders.me, None)
    path = store.archive_manifest(A)
    assert archive.read_manifest(store, A, None) is not None
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(Tampered):
        archive.read_manifest(store, A, None)


@pytest.mark.parametrize("kind", ["link", "pipe", "directory", "missing"])
def test_an_archive_that_is_not_a_regular_file_is_not_read(
    kind: str, store: Store, tmp_path: Path
) -> None:
    archive.pack(environment(store, A), store, Pod(store).holders.me, None)
    path = store.archive(A)
    path.rename(tmp_path / "archive")
    if kind == "link":
        path.symlink_to(tmp_path / "archive")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    with pytest.raises(Tampered):
        archive.read_manifest(store, A, None)


def test_a_pipe_in_an_environment_does_not_block_packing(store: Store) -> None:
    path = environment(store, A)
    os.mkfifo(path / "pipe")
    with pytest.raises(Tampered, match="neither a file nor a directory"):
        archive.pack(path, store, Pod(store).holders.me, None)


def test_an_archive_counts_with_the_blocks_it_occupies(store: Store) -> None:
    """A sparse file may have any apparent size, and would get all others evicted."""
    for digest in (A, B):
        archive.pack(environment(store, digest), store, Pod(store).holders.me, None)
    os.truncate(store.archive(B), 1 << 40)
    assert evict_archives(store, 1 << 30) == []
    assert store.archived() == [A, B]


def test_a_file_or_link_in_place_of_an_environment_is_replaced(
    store: Store, tmp_path: Path
) -> None:
    made = environment(store, A)
    for number, plant in enumerate((Path.touch, lambda path: path.symlink_to(tmp_path))):
        complete = store.make_scratch("holder") / "env"
        made.rename(complete)
        plant(made)
        assert store.publish(complete, made), number
        manifest.check_sizes(made)


# -- Bounds on what only grows ------------------------------------------------------------


def test_requests_and_preloads_are_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "MOST_ENTRIES", 5)
    pod = Pod(store)
    keys = [f"{number:040x}" for number in range(8)]
    for age, key in enumerate(reversed(keys)):
        for path in (store.request(key), store.preloads(key)):
            path.write_text("{}")
            backdate(path, 100 * (age + 1))
    (store.root / "requests" / "notes.txt").touch()
    backdate(store.root / "requests" / "notes.txt", 1e8)
    sweep(store, pod.holders)
    assert len(os.listdir(store.root / "requests")) == 9, "not each time"
    assert sweep(store, pod.holders, trimmed=True) == []
    kept = {f"{key}.json" for key in keys[3:]}
    assert set(os.listdir(store.root / "preloads")) == kept
    assert set(os.listdir(store.root / "requests")) == kept | {"notes.txt"}


def test_old_requests_and_preloads_are_swept_by_the_volumes_clock(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod = Pod(store)
    environment(store, B)
    c = "c" * 40
    for digest, days in ((A, 31), (B, 31), (c, 29)):
        for path in (store.request(digest), store.preloads(digest)):
            path.write_text("{}")
            backdate(path, days * 86400)
    then = time.time() + 10 * 86400
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: then)
        sweep(store, pod.holders, trimmed=True)
    assert os.listdir(store.root / "requests") == [f"{c}.json"]
    # Preloads of an environment that still exists remain useful.
    assert sorted(os.listdir(store.root / "preloads")) == [f"{B}.json", f"{c}.json"]


def test_a_seldom_task_is_due_once_per_period() -> None:
    seldom = Seldom(3600)
    assert [seldom.due(), seldom.due()] == [True, False]


# -- The heartbeat ------------------------------------------------------------------------


class Failing:
    """An open store in which one step after another raises an unexpected exception."""

    def __init__(self) -> None:
        self.store = SimpleNamespace(root="here", digests=tuple)
        self.counts = StoreCounts()
        self.disk = SimpleNamespace(watch=None)
        self.table = self
        self.beats = 0
        self.errors: Iterator[BaseException] = iter(())

    def beat(self) -> None:
        self.beats += 1
        for error in self.errors:
            raise error

    def sweep(self) -> list[str]:
        raise RecursionError("too deep")

    def close(self) -> None:
        pass


def wait_for(holds: Callable[[], object]) -> None:
    limit = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < limit
        time.sleep(0.005)


def test_a_heartbeat_survives_any_exception_and_logs_it(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_store, "_SWEEP_EVERY", 2)
    failing = Failing()
    errors = [ValueError("odd"), RecursionError("deep"), OverflowError("large"), MemoryError()]
    failing.errors = iter([*errors, OSError("gone"), AssertionError("ours")])
    heartbeat = HeartbeatThread(failing, 0.001)  # type: ignore[arg-type]
    try:
        wait_for(lambda: failing.beats > 20)
        pulse = heartbeat.pulse
    finally:
        heartbeat.stop()
    assert pulse.failures > 6
    assert pulse.age_s < 60
    assert (
        pulse.problem
        == "no look at leases: RecursionError: too deep; no cleaning up: RecursionError: too deep"
    )
    for error in errors:
        assert f"heartbeat in here: {type(error).__name__}: {error}" in caplog.text
    assert "no heartbeat in here: gone" in caplog.text
    assert caplog.text.count("no look at leases in here: RecursionError") == 1, (
        "told once, not each time"
    )
    assert not [each for each in threading.enumerate() if "heartbeat" in each.name]
