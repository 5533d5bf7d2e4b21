"""Files by which servers share news of their instances, on an untrusted volume."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from flashpool.envs.settings import EnvSettings
from flashpool.frontends import instance_files
from flashpool.frontends.instance_files import (
    KEPT_S,
    MOST_FILES,
    MOST_INSTANCES,
    InstanceFiles,
    Known,
    key_of,
    parse,
)
from flashpool.pool.instance_records import Elsewhere

#: Holders on another machine whose heartbeat is missing, so they count as dead.
GONE = "f{:x}-7-7-ab.json"
KEY = key_of("counter")


def server(volume: Path, pod: str = "pod-a") -> InstanceFiles:
    return InstanceFiles(volume, EnvSettings(), pod)


def written(folder: Path, name: str, instances: Any, pod: Any = "pod-x") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(json.dumps({"pod": pod, "instances": instances}))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "flashpool" / "instances"


def test_a_server_sees_present_and_past_instances_of_another(tmp_path: Path) -> None:
    now = time.time()
    one, other = server(tmp_path, "pod-a"), server(tmp_path, "pod-b")
    assert one.exchange({KEY: Known(now, True)}) == {}
    assert other.exchange({}) == {KEY: Elsewhere("pod-a", True, now)}
    assert one.exchange({KEY: Known(now, True)}) == {}
    one.close({KEY: Known(now, True)})
    assert other.exchange({}) == {KEY: Elsewhere("pod-a", False, now)}
    other.close({})
    assert list((tmp_path / "flashpool" / "holders").iterdir()) == []


def test_ids_are_not_on_the_volume(tmp_path: Path, folder: Path) -> None:
    one = server(tmp_path)
    one.exchange({key_of("the-customer-s-name"): Known(time.time(), True)})
    (path,) = folder.iterdir()
    assert "customer" not in path.read_text()
    one.close({})


def test_a_server_without_a_heartbeat_is_dead(tmp_path: Path, folder: Path) -> None:
    now = time.time()
    written(folder, GONE.format(0), {KEY: [now, True]})
    one = server(tmp_path)
    assert one.exchange({}) == {KEY: Elsewhere("pod-x", False, now)}
    one.close({})


def test_of_several_pods_a_living_instance_counts_else_the_latest(
    tmp_path: Path, folder: Path
) -> None:
    now = time.time()
    for number, at in enumerate((now - 9, now - 5, now - 7)):
        written(folder, GONE.format(number), {KEY: [at, True]}, f"pod-{number}")
    one, other = server(tmp_path), server(tmp_path, "pod-other")
    assert one.exchange({}) == {KEY: Elsewhere("pod-1", False, now - 5)}
    other.exchange({KEY: Known(now - 60, True)})
    assert one.exchange({}) == {KEY: Elsewhere("pod-other", True, now - 60)}
    one.close({})
    other.close({})


def test_without_instances_no_files_are_created(tmp_path: Path) -> None:
    one = server(tmp_path)
    assert one.exchange({}) == {}
    one.close({})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{",
        b"\xff\xfe",
        b'{"pod": "x"}',
        b'{"pod": "", "instances": {}}',
        b'{"pod": "a\\nb", "instances": {"' + KEY.encode() + b'": [1, true]}}',
        b'{"pod": ["x"], "instances": {}}',
        b'{"pod": "x", "instances": []}',
        b'{"pod": "x", "instances": ' + b"[" * 100_000,
    ],
)
def test_malformed_files_are_ignored(text: bytes) -> None:
    assert parse(text).instances == {}


@pytest.mark.parametrize(
    "entry",
    [
        None,
        [],
        [1],
        [1, True, 1],
        ["1", True],
        [True, True],
        [-1, True],
        [1e300, True],
        [10**39, True],
        [time.time() + 10 * 86_400, True],
        [1, "yes"],
        [1, 1],
    ],
)
def test_a_malformed_entry_is_skipped_and_the_others_count(entry: object) -> None:
    other = key_of("other")
    text = json.dumps({"pod": "x", "instances": {KEY: entry, other: [5, False], "odd": [5, False]}})
    assert parse(text.encode()).instances == {other: Known(5.0, False)}


def test_the_number_of_instances_read_is_bounded() -> None:
    many = {key_of(str(number)): [1, True] for number in range(MOST_INSTANCES + 10)}
    assert len(parse(json.dumps({"pod": "x", "instances": many}).encode()).instances) == (
        MOST_INSTANCES
    )


def test_a_file_of_the_maximum_size_is_read_and_a_larger_one_is_not(
    tmp_path: Path, folder: Path
) -> None:
    now = float(int(time.time()))
    full = {key_of(str(number)): Known(now, True) for number in range(MOST_INSTANCES)}
    one, other = server(tmp_path), server(tmp_path, "pod-b")
    one.exchange(full)
    assert len(other.exchange({})) == MOST_INSTANCES
    (path,) = folder.iterdir()
    path.write_bytes(path.read_bytes() + b" " * 200_000)
    assert other.exchange({}) == {}
    one.close({})
    other.close({})


def test_links_pipes_and_directories_are_not_read(tmp_path: Path, folder: Path) -> None:
    now = time.time()
    outside = written(tmp_path / "outside", "file", {KEY: [now, True]})
    folder.mkdir(parents=True)
    (folder / GONE.format(0)).symlink_to(outside)
    (folder / GONE.format(1)).mkdir()
    os.mkfifo(folder / GONE.format(2))
    written(folder, "../escape.json", {KEY: [now, True]})
    written(folder, "no-holder.json", {KEY: [now, True]})
    one = server(tmp_path)
    assert one.exchange({}) == {}
    one.close({})


def test_a_linked_folder_is_not_entered(tmp_path: Path, folder: Path) -> None:
    written(tmp_path / "outside", GONE.format(0), {KEY: [time.time(), True]})
    folder.parent.mkdir()
    folder.symlink_to(tmp_path / "outside")
    one = server(tmp_path)
    assert one.exchange({}) == {}
    one.close({})


def test_files_of_dead_servers_are_removed_when_many_or_old(tmp_path: Path, folder: Path) -> None:
    now = time.time()
    for number in range(MOST_FILES + 3):
        path = written(folder, GONE.format(number), {key_of(str(number)): [now, False]})
        os.utime(path, (now - 1000 + number, now - 1000 + number))
    old = written(folder, GONE.format(999), {KEY: [now, False]})
    os.utime(old, (now - KEPT_S - 60,) * 2)
    written(folder, f".{GONE.format(0)}.0123abcd", {})
    (folder / "somebody-s").touch()
    one, living = server(tmp_path), server(tmp_path, "pod-b")
    living.exchange({KEY: Known(now - KEPT_S - 9, True)})
    found = one.exchange({})
    assert len(found) == MOST_FILES
    # A living instance counts, however long ago it was called.
    assert found[KEY].pod == "pod-b"
    assert {path.name for path in folder.iterdir()} == {
        *(GONE.format(number) for number in range(4, MOST_FILES + 3)),
        living._holders.me + ".json",
        "somebody-s",
    }
    one.close({})
    living.close({})


def test_an_instance_that_ended_long_ago_is_forgotten(tmp_path: Path, folder: Path) -> None:
    written(folder, GONE.format(0), {KEY: [time.time() - KEPT_S - 60, False]})
    one = server(tmp_path)
    assert one.exchange({}) == {}
    one.close({})


def test_a_file_is_read_again_only_when_it_has_changed(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[bytes] = []

    def counted(data: bytes) -> Any:
        reads.append(data)
        return parse(data)

    monkeypatch.setattr(instance_files, "parse", counted)
    path = written(folder, GONE.format(0), {KEY: [time.time(), False]})
    one = server(tmp_path)
    for _ in range(3):
        assert len(one.exchange({})) == 1
    assert len(reads) == 1
    other = written(folder, "new", {key_of("other"): [time.time(), False], KEY: [1, False]})
    other.replace(path)
    assert set(one.exchange({})) == {key_of("other")}
    one.close({})
