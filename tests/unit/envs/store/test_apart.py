"""Files on a volume that may hang: what other processes read and write of them."""

import errno
import os
from pathlib import Path

import pytest

from flashpool.envs.store import apart
from flashpool.envs.store.layout import read_file, read_json, write_json
from flashpool.envs.store.volume_files import Folder


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    apart.keep_apart(tmp_path)
    return tmp_path


def test_files_are_written_and_read_there_as_anywhere(volume: Path) -> None:
    path = volume / "requests" / "one.json"
    write_json(path, {"digest": "ü"})
    assert read_json(path) == {"digest": "ü"}
    assert os.listdir(path.parent) == ["one.json"]
    assert read_json(volume / "none.json") is None


def test_streams_go_both_ways(volume: Path) -> None:
    content = os.urandom(1 << 20)
    with apart.writing(volume / "file") as file:
        file.write(content)
    assert (volume / "file").read_bytes() == content
    with Folder(volume).reading("file", 1 << 20) as file:
        assert file.read() == content


def test_no_descriptor_of_such_a_file_is_here(volume: Path) -> None:
    (volume / "file").write_bytes(b"content")
    with Folder(volume).reading("file", 100):
        opened = [
            os.readlink(f"/proc/self/fd/{fd}")
            for fd in os.listdir("/proc/self/fd")
            if os.path.lexists(f"/proc/self/fd/{fd}")
        ]
        assert not [path for path in opened if path.startswith(f"{volume}/")]


def test_what_is_no_file_of_ours_is_not_read(volume: Path) -> None:
    os.mkfifo(volume / "pipe")
    (volume / "large").write_bytes(b"x" * 100)
    (volume / "folder").mkdir()
    for name in ("pipe", "large", "folder"):
        with pytest.raises(OSError, match="not a file of ours"):
            read_file(volume / name, 10)


@pytest.mark.parametrize("streamed", [False, True])
def test_an_error_is_told_by_its_number(volume: Path, streamed: bool) -> None:
    with pytest.raises(FileNotFoundError):
        read_file(volume / "none", 10)
    path = volume / "no-folder" / "file"
    with pytest.raises(FileNotFoundError):
        if streamed:
            with apart.writing(path) as file:
                file.write(b"x" * (1 << 20))
        else:
            with Folder(volume).opened() as folder:
                apart.write("no-folder/file", folder, [b"content"], 0o666, sync=False)


def test_a_full_volume_is_told_as_full() -> None:
    apart.keep_apart(Path("/dev"))
    with (
        pytest.raises(OSError, match="space") as raised,
        apart.writing(Path("/dev/full")) as file,
    ):
        file.write(b"content")
    assert raised.value.errno == errno.ENOSPC


def test_links_are_not_followed_there(volume: Path) -> None:
    (volume / "theirs").write_bytes(b"theirs")
    (volume / "link").symlink_to(volume / "theirs")
    folder = Folder(volume)
    with pytest.raises(OSError, match="not a file of ours"):
        folder.read("link", 100)
    folder.write("link", [b"ours"])
    assert not (volume / "link").is_symlink()
    assert (volume / "theirs").read_bytes() == b"theirs"


def test_a_file_is_touched_and_the_clock_read_without_opening_either(volume: Path) -> None:
    folder = Folder(volume)
    os.utime(volume, (0, 0))
    folder.touch("mark")
    (volume / "link").symlink_to("mark")
    os.utime(volume / "mark", (1, 1))
    folder.touch("link")
    assert not (volume / "link").is_symlink()
    assert (volume / "mark").stat().st_mtime == 1
    folder.touch("mark")
    assert abs((volume / "mark").stat().st_mtime - folder.now()) < 60
    assert sorted(os.listdir(volume)) == ["link", "mark"]
