"""Untrusted files: no link is followed, nothing blocks, and everything is bounded."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flashpool.envs.store import volume_files
from flashpool.envs.store.foreign_json import parse_object
from flashpool.envs.store.volume_files import Folder, move, walk
from flashpool.pool._child import trees


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A directory that planted links point to."""
    made = tmp_path / "victim"
    made.mkdir()
    (made / "precious").write_text("precious")
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    made = Folder(tmp_path / "root", "folder")
    made.make()
    return made


def nested(top: Path, depth: int) -> None:
    """Create a chain of directories that is longer than a path may be."""
    top.mkdir()
    here = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("deep", dir_fd=here)
        below = os.open("deep", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)


def links(path: Path, victim: Path) -> None:
    path.symlink_to(victim)


def links_to_nothing(path: Path, _victim: Path) -> None:
    path.symlink_to("nothing")


def directory(path: Path, _victim: Path) -> None:
    path.mkdir()
    (path / "inner").touch()


def pipe(path: Path, _victim: Path) -> None:
    os.mkfifo(path)


def device(path: Path, _victim: Path) -> None:
    path.symlink_to("/dev/zero")


def sparse(path: Path, _victim: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


Plant = Callable[[Path, Path], None]
IN_ITS_PLACE = [links, links_to_nothing, directory, pipe, device, sparse]


@pytest.mark.parametrize("plant", IN_ITS_PLACE)
def test_only_small_regular_files_are_read(plant: Plant, folder: Folder, victim: Path) -> None:
    plant(folder.path / "file", victim)
    with pytest.raises(OSError):
        folder.read("file", 1000)


@pytest.mark.parametrize("plant", IN_ITS_PLACE)
def test_a_file_is_written_whatever_is_in_its_place(
    plant: Plant, folder: Folder, victim: Path
) -> None:
    plant(folder.path / "file", victim)
    folder.write("file", [b"con", b"tent"])
    assert folder.read("file", 1000) == b"content"
    assert os.listdir(folder.path) == ["file"]
    assert os.listdir(victim) == ["precious"]


@pytest.mark.parametrize("plant", IN_ITS_PLACE)
def test_a_file_is_touched_whatever_is_in_its_place(
    plant: Plant, folder: Folder, victim: Path
) -> None:
    plant(folder.path / "file", victim)
    os.utime(victim, (1, 1))
    folder.touch("file")
    status = folder.status("file")
    assert status is not None
    assert status.st_mtime > 1
    assert victim.stat().st_mtime == 1
    assert os.listdir(victim) == ["precious"]
    assert not (folder.path / "nothing").exists()


@pytest.mark.parametrize("plant", IN_ITS_PLACE)
def test_anything_is_removed_without_following_links(
    plant: Plant, folder: Folder, victim: Path
) -> None:
    plant(folder.path / "file", victim)
    assert folder.remove("file")
    assert os.listdir(folder.path) == []
    assert os.listdir(victim) == ["precious"]


def test_a_tree_deeper_than_recursion_is_removed(folder: Folder) -> None:
    nested(folder.path / "tree", 1200)
    assert folder.remove("tree")
    assert os.listdir(folder.path) == []


def test_a_link_in_place_of_a_directory_is_replaced_by_a_directory(
    tmp_path: Path, victim: Path
) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "a").symlink_to(victim)
    folder = Folder(tmp_path / "root", "a", "b")
    assert folder.names() == []
    assert folder.files(str) == []
    assert folder.status("precious") is None
    assert folder.remove("precious")
    with pytest.raises(OSError):
        folder.read("precious", 100)
    folder.touch("file")
    assert not (tmp_path / "root" / "a").is_symlink()
    assert folder.names() == ["file"]
    assert os.listdir(victim) == ["precious"]


def test_nothing_moves_through_links(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "file").touch()
    (tmp_path / "to").symlink_to(victim)
    move(tmp_path / "from" / "file", tmp_path / "to" / "file")
    assert os.listdir(victim) == ["precious"]
    assert (tmp_path / "to" / "file").exists()
    (tmp_path / "link").symlink_to(victim)
    with pytest.raises(OSError):
        move(tmp_path / "link" / "precious", tmp_path / "from" / "precious")


def test_the_number_of_names_is_bounded(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        (folder.path / str(number)).touch()
    assert len(folder.names(5)) == 5
    assert len(folder.names()) == 20


def test_regular_files_are_listed_oldest_first(folder: Folder, victim: Path) -> None:
    for name, age in (("a", 30), ("b", 10), ("c", 20), ("other", 0)):
        (folder.path / name).touch()
        os.utime(folder.path / name, (1000 - age, 1000 - age))
    (folder.path / "d").mkdir()
    (folder.path / "e").symlink_to(victim / "precious")
    os.mkfifo(folder.path / "f")
    assert [name for name, _ in folder.files(lambda name: len(name) == 1)] == ["a", "c", "b"]


def test_the_file_system_s_clock_is_not_the_machine_s(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = time.time()
    monkeypatch.setattr(time, "time", lambda: before + 7200)
    assert abs(folder.now() - before) < 60
    assert os.listdir(folder.path) == []


def test_errors_of_the_volume_are_raised(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a file such as a heartbeat would seem to be missing."""

    def stale(*_args: object, **_options: object) -> int:
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(volume_files.os, "open", stale)
    for ask in (folder.names, lambda: folder.status("x"), lambda: folder.files(str)):
        with pytest.raises(OSError, match="Stale"):
            ask()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "1",
        "{",
        '{"a": NaN}',
        '{"a": Infinity}',
        '{"a": -Infinity}',
        '{"a": 1e400}',
        '{"a": ' + "1" * 400 + "}",
        '{"a": -' + "1" * 50 + "}",
        '{"a":' * 100_000 + "1" + "}" * 100_000,
        "[" * 100_000,
        "\ufeff{}x",
        "\0",
    ],
)
def test_malformed_json_objects_are_refused(text: str) -> None:
    assert parse_object(text.encode()) is None


def test_invalid_utf8_is_refused() -> None:
    assert parse_object(b'{"a": "\xff"}') is None
    assert parse_object(b"\xff\xfe\0") is None


def test_json_objects_round_trip() -> None:
    value = {"a": [1, 2.5, None, True, "\udcff"], "b": {"c": -(10**20)}}
    assert parse_object(json.dumps(value).encode()) == value


def test_walk_returns_what_os_walk_returns(tmp_path: Path) -> None:
    for path in ("a/b/c", "a/d", "e"):
        (tmp_path / path).mkdir(parents=True)
        (tmp_path / path / "file").touch()
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "dangling").symlink_to("nothing")
    expected = {
        folder: (sorted(names), sorted(files)) for folder, names, files in os.walk(tmp_path)
    }
    assert {folder: (names, files) for folder, names, files in walk(tmp_path)} == expected
    nested(tmp_path / "deep", 1500)
    try:
        assert sum(1 for _ in walk(tmp_path)) > 700
    finally:
        assert trees.remove(str(tmp_path / "deep"))
