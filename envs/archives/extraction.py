"""Extracts an archive that strangers may have written; nothing in it is trusted.

    file --hash--> zstd --cap--> tar --> this thread: directories, and the order of operations
                                     `-> writing threads: files, a run of one directory at a time

Extraction walks by directory descriptors that follow no link, creates files exclusively, and stops
as soon as the data exceed what the manifest states. The standard library's "data" filter has let
files escape; this code never opens a path of more than one component. Decompression and creation of
files take about equally long, and both release the interpreter's lock, so they run in parallel.
"""

from __future__ import annotations

import hashlib
import io
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, Final, cast

import zstandard

from flashpool.envs.store.volume_files import in_folder

from .tar_stream import BLOCK, Member, Plain, Promise, members, padding

__all__ = ["Hashing", "Promise", "extract", "write_tree"]

_MAX_WINDOW: Final = 1 << 27
#: No limit here: the reader stops one byte beyond the stated size.
_LARGEST: Final = 1 << 62
_THREADS: Final = min(4, max(2, os.cpu_count() or 1))
#: Pieces of work that may wait to be written; each holds little more than a block.
_BACKLOG: Final = 32
_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


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

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.sha256.update(data)
        self.count += len(data)
        return data


class _Folder:
    """The current directory: an open descriptor, kept for consecutive files in it."""

    def __init__(self, root: Path) -> None:
        self._root = os.open(root, _FOLDER)
        self._here = os.dup(self._root)
        self.parts: tuple[str, ...] = ()

    def enter(self, parts: tuple[str, ...]) -> int:
        """Walk there by descriptors, through real directories only; create missing ones."""
        if parts == self.parts:
            return self._here
        below = parts[: len(self.parts)] == self.parts
        here = os.dup(self._here if below else self._root)
        for part in parts[len(self.parts) :] if below else parts:
            here = _step(here, part)
        os.close(self._here)
        self._here, self.parts = here, parts
        return here

    def close(self) -> None:
        os.close(self._here)
        os.close(self._root)


def _step(here: int, part: str) -> int:
    try:
        try:
            return os.open(part, _FOLDER, dir_fd=here)
        except FileNotFoundError:
            os.mkdir(part, 0o755, dir_fd=here)
            return os.open(part, _FOLDER, dir_fd=here)
    finally:
        os.close(here)


class _Run:
    """Consecutive files of one directory, which are created together."""

    def __init__(self, parent: int) -> None:
        self._parent = os.dup(parent)
        self._files: list[tuple[Member, bytes]] = []
        self.size = 0

    def add(self, member: Member, data: bytes) -> None:
        self._files.append((member, data))
        self.size += len(data)

    def write(self) -> None:
        try:
            for member, data in self._files:
                _write_file(member, data, self._parent)
        finally:
            self.drop()

    def drop(self) -> None:
        """Release the directory; files that are not written yet are dropped."""
        os.close(self._parent)


def _write_file(member: Member, data: bytes, parent: int) -> None:
    target = os.open(member.parts[-1], _NEW_FILE, _mode(member), dir_fd=parent)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(target, rest) :]
        os.utime(target, (member.mtime, member.mtime))
    finally:
        os.close(target)


class _Large:
    """A file of many blocks, which may be written in any order."""

    def __init__(self, member: Member, parent: int) -> None:
        self._member = member
        self._target = os.open(member.parts[-1], _NEW_FILE, _mode(member), dir_fd=parent)
        self._missing = member.size
        self._lock = threading.Lock()

    def write(self, data: bytes, at: int) -> None:
        rest = memoryview(data)
        while rest:
            written = os.pwrite(self._target, rest, at)
            rest, at = rest[written:], at + written
        with self._lock:
            self._missing -= len(data)
            if self._missing:
                return
        os.utime(self._target, (self._member.mtime, self._member.mtime))
        self.close()

    def close(self) -> None:
        with self._lock:
            target, self._target = self._target, -1
        if target >= 0:
            os.close(target)


def _mode(member: Member) -> int:
    return member.mode | 0o600


class _Writers:
    """Threads that write, with a limit on what may wait for them."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="flashpool-unpack")
        self._pending: deque[Future[None]] = deque()

    def submit(self, work: Callable[..., None], *arguments: object) -> None:
        """Queue a write; raise the error of an earlier one."""
        self._pending.append(self._pool.submit(work, *arguments))
        while len(self._pending) > _BACKLOG:
            self._pending.popleft().result()

    def finish(self) -> None:
        while self._pending:
            self._pending.popleft().result()

    def close(self) -> None:
        """Wait until no write is running: a write that has begun is completed."""
        self._pool.shutdown(wait=True)


def extract(archive: Path, promise: Promise, target: Path) -> None:
    """Extract into an empty directory; raise Tampered unless everything matches the promise."""
    folder, name = in_folder(archive)
    with folder.reading(name, _LARGEST) as file:
        hashing = Hashing(file)
        unpacker = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
        reader = unpacker.stream_reader(
            cast("IO[bytes]", hashing), read_size=BLOCK // 4, closefd=False
        )
        try:
            plain = Plain(reader, promise)
            write_tree(members(plain, promise), plain.take, target)
            plain.drain()
        except zstandard.ZstdError as error:
            raise promise.broken("is damaged (no zstd)") from error
        except (FileExistsError, NotADirectoryError) as error:
            raise promise.broken(f"holds {error.filename!r} twice") from error
        # Read no further than stated: the file may grow as fast as it is read.
        while hashing.count <= promise.size and hashing.read(BLOCK):
            pass
    if hashing.count != promise.size or hashing.sha256.hexdigest() != promise.sha256:
        raise promise.broken("does not match its checksum")


def write_tree(found: Iterable[Member], take: Callable[[int], bytes], target: Path) -> None:
    """Write members into an empty directory, each with the next bytes that `take` returns.

    Raises:
        FileExistsError, NotADirectoryError: a name occurs twice.
    """
    _Extraction(found, take, target).run()


class _Extraction:
    """The extraction of one archive."""

    def __init__(self, found: Iterable[Member], take: Callable[[int], bytes], target: Path) -> None:
        self._found = found
        self._take = take
        self._folder = _Folder(target)
        self._writers = _Writers()
        self._run: _Run | None = None
        self._large: list[_Large] = []

    def run(self) -> None:
        """Extract everything, to the end of the stream."""
        try:
            for member in self._found:
                self._extract(member)
            self._flush()
            self._writers.finish()
        finally:
            self._writers.close()
            if self._run is not None:
                self._run.drop()
            for large in self._large:
                large.close()
            self._folder.close()

    def _extract(self, member: Member) -> None:
        folder = member.parts[:-1] if member.is_file else member.parts
        if folder != self._folder.parts:
            self._flush()
        parent = self._folder.enter(folder)
        if member.is_file and member.size > BLOCK:
            self._extract_large(member, parent)
        elif member.is_file:
            self._extract_small(member, parent)
        self._take(padding(member.size))

    def _extract_small(self, member: Member, parent: int) -> None:
        if self._run is None:
            self._run = _Run(parent)
        self._run.add(member, self._take(member.size))
        if self._run.size >= BLOCK:
            self._flush()

    def _extract_large(self, member: Member, parent: int) -> None:
        large = _Large(member, parent)
        self._large.append(large)
        for at in range(0, member.size, BLOCK):
            data = self._take(min(BLOCK, member.size - at))
            self._writers.submit(large.write, data, at)

    def _flush(self) -> None:
        run, self._run = self._run, None
        if run is not None:
            self._writers.submit(run.write)
