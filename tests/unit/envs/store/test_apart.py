"""Files on a volume that may hang: what other processes read and write of them."""

import errno
import os
from pathlib import Path

import pytest

from flashpool.envs.store import apart
from flashpool.envs.store.layout import read_file, read_json, write_json


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
    with apart.reading(volume / "file") as file:
        assert file.read() == content


def test_no_descriptor_of_such_a_file_is_here(volume: Path) -> None:
    (volume / "file").write_bytes(b"content")
    with apart.reading(volume / "file"):
        opened = [
            os.readlink(f"/proc/self/fd/{fd}")
            for fd in os.listdir("/proc/self/fd")
            if os.path.lexists(f"/proc/self/fd/{fd}")
        ]
        assert not [path for path in opened if path.startswith(str(volume))]


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
            apart.write(path, b"content")


def test_a_full_volume_is_told_as_full(volume: Path) -> None:
    with pytest.raises(OSError, match="space") as raised:
        apart.write(Path("/dev/full"), b"content")
    assert raised.value.errno == errno.ENOSPC
