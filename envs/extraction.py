"""Take an archive apart: everything in it is the word of a stranger.

    file --hash--> zstd --cap--> tar --> directories and regular files, nothing else

Walks by directory descriptors that follow no link, creates files exclusively, and
stops as soon as there is more than was promised. The standard library's "data"
filter has let files escape; this one cannot, for it never opens a path of more
than one component.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, cast

import zstandard

from .errors import Tampered

__all__ = ["Hashing", "Promise", "extract"]

_BLOCK: Final = 1 << 20
_MAX_DEPTH: Final = 40
_MAX_WINDOW: Final = 1 << 27
#: Room for tar's headers: 512 bytes a member, padding, long names.
_TAR_OVERHEAD: Final = 4096
_ADVICE: Final = "the archive is set aside and the environment built anew"


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """What an archive must be: checked, not believed."""

    name: str
    sha256: str
    size: int
    members: int
    content_bytes: int

    def broken(self, how: str) -> Tampered:
        return Tampered(f"archive {self.name} {how}", advice=_ADVICE)


class Hashing(io.RawIOBase):
    """A file that hashes and counts what passes through it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.count = 0

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        self.count += len(data)
        return self._file.write(data)

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        self.sha256.update(data)
        self.count += len(data)
        buffer[: len(data)] = data
        return len(data)


class _Capped(io.RawIOBase):
    """At most so many bytes out of a decompressor."""

    def __init__(self, source: Any, promise: Promise) -> None:
        self._source = source
        self._left = promise.content_bytes + (promise.members + 8) * _TAR_OVERHEAD
        self._promise = promise

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data: bytes = self._source.read(_BLOCK if size < 0 else size)
        self._left -= len(data)
        if self._left < 0:
            raise self._promise.broken("holds more than its manifest says")
        return data


class _Folder:
    """The directory being filled: an open descriptor, kept while its files follow each other."""

    def __init__(self, root: Path) -> None:
        self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        self._here = os.dup(self._root)
        self._parts: list[str] = []

    def enter(self, parts: list[str]) -> int:
        """Walk there by descriptors, through real directories only; they are made on the way."""
        if parts == self._parts:
            return self._here
        below = parts[: len(self._parts)] == self._parts
        here = os.dup(self._here if below else self._root)
        for part in parts[len(self._parts) :] if below else parts:
            here = _step(here, part)
        os.close(self._here)
        self._here, self._parts = here, parts
        return here

    def close(self) -> None:
        os.close(self._here)
        os.close(self._root)


def _step(here: int, part: str) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        try:
            return os.open(part, flags, dir_fd=here)
        except FileNotFoundError:
            os.mkdir(part, 0o755, dir_fd=here)
            return os.open(part, flags, dir_fd=here)
    finally:
        os.close(here)


def extract(archive: Path, promise: Promise, target: Path) -> None:
    """Extract into an empty directory; raise Tampered unless all of it is as promised."""
    with archive.open("rb") as file:
        hashing = Hashing(file)
        try:
            _extract_all(hashing, promise, target)
        except (zstandard.ZstdError, tarfile.TarError, EOFError, UnicodeError) as error:
            raise promise.broken(f"is damaged ({type(error).__name__})") from error
        while hashing.read(_BLOCK):
            pass
    if hashing.count != promise.size or hashing.sha256.hexdigest() != promise.sha256:
        raise promise.broken("does not match its checksum")


def _extract_all(hashing: Hashing, promise: Promise, target: Path) -> None:
    unpacker = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
    reader = unpacker.stream_reader(cast("IO[bytes]", hashing), closefd=False)
    stream = cast("IO[bytes]", _Capped(reader, promise))
    folder = _Folder(target)
    try:
        with tarfile.open(fileobj=stream, mode="r|", bufsize=_BLOCK, errorlevel=2) as tar:
            for number, member in enumerate(tar):
                if number >= promise.members:
                    raise promise.broken("holds more than its manifest says")
                _extract_member(tar, member, folder, promise)
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
    finally:
        folder.close()


def _extract_member(
    tar: tarfile.TarFile, member: tarfile.TarInfo, folder: _Folder, promise: Promise
) -> None:
    if not (member.isdir() or member.isreg()) or member.issparse():
        raise promise.broken(f"holds {member.name!r}, which is neither a file nor a directory")
    *folders, name = _parts(member, promise)
    try:
        if member.isdir():
            folder.enter([*folders, name])
        else:
            _write_file(tar, member, folder.enter(folders), name)
    except (FileExistsError, NotADirectoryError) as error:
        raise promise.broken(f"holds {member.name!r} twice") from error


def _parts(member: tarfile.TarInfo, promise: Promise) -> list[str]:
    parts = member.name.rstrip("/").split("/")
    odd = any(part in {"", ".", ".."} or "\0" in part for part in parts)
    if odd or len(parts) > _MAX_DEPTH:
        raise promise.broken(f"holds the path {member.name!r}")
    return parts


def _write_file(tar: tarfile.TarFile, member: tarfile.TarInfo, parent: int, name: str) -> None:
    """By bare descriptors: thousands of small files, and each call counts."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    source = tar.extractfile(member)
    assert source is not None
    target = os.open(name, flags, member.mode & 0o755 | 0o600, dir_fd=parent)
    try:
        while block := source.read(_BLOCK):
            _write_all(target, block)
        os.utime(target, (member.mtime, member.mtime))
    finally:
        os.close(target)


def _write_all(target: int, block: bytes) -> None:
    rest = memoryview(block)
    while rest:
        rest = rest[os.write(target, rest) :]
