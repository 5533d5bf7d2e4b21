"""Files on a volume where strangers may write: no link is followed, and sizes are limited.

    Folder(root, "leases", digest)   opens each directory below the root without following links
      names, files                   a limited number of names; regular files with their status
      read                           a regular file of limited size; not a pipe or a device
      write                          to a temporary name, then rename
      touch, remove, move            act on a link itself, never on its target
      now                            the file system's clock

Anyone who may write to a volume may replace a file by a link, a pipe, a sparse file or a deep tree
at any moment. So a directory is held open while names in it are used, and every name is checked.
The operator chooses the root, which may be a link.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Final

from flashpool.pool._child import trees

from .apart import carried_out, is_apart, receiving

__all__ = ["MOST_NAMES", "Folder", "in_folder", "left_by_clock", "move", "walk"]

_log = logging.getLogger(__name__)

#: Most names that are listed of a directory. A store has some hundreds.
MOST_NAMES: Final = 100_000
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_TOUCH: Final = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
#: Errors of opening something that is not a directory, or not a file.
_OTHER_KIND: Final = frozenset({errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENXIO})
_BLOCK: Final = 1 << 20
_CLOCK: Final = ".clock-"
_CLOCK_FILE: Final = re.compile(r"\.clock-[0-9a-f]{16}")


class Folder:
    """One directory below a root. Every method blocks."""

    __slots__ = ("_mode", "_parts", "_root")

    def __init__(self, root: Path, *parts: str, mode: int = 0o777) -> None:
        self._root = root
        self._parts = parts
        #: Mode of directories that this class creates.
        self._mode = mode

    def __repr__(self) -> str:
        return f"<Folder {self.path}>"

    @property
    def path(self) -> Path:
        """The path of the directory; opening it by this path follows links."""
        return self._root.joinpath(*self._parts)

    @contextmanager
    def opened(self, *, make: bool = False) -> Iterator[int]:
        """Provide an open descriptor of the directory.

        ``make``: create missing parts, replacing links and files.
        """
        if make:
            self._root.mkdir(parents=True, exist_ok=True)
        handle = os.open(self._root, _DIRECTORY)
        try:
            for part in self._parts:
                below = self._made(part, handle) if make else _entered(part, handle)
                os.close(handle)
                handle = below
            yield handle
        finally:
            os.close(handle)

    @carried_out
    def make(self) -> None:
        """Create the directory if it does not exist."""
        with self.opened(make=True):
            pass

    def _made(self, part: str, parent: int) -> int:
        try:
            return _entered(part, parent)
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno not in _OTHER_KIND:
                raise
            _log.warning("%r in %s is not a directory and is removed", part, self._root)
            os.unlink(part, dir_fd=parent)
        try:
            os.mkdir(part, self._mode, dir_fd=parent)
        except FileExistsError:
            pass  # another process was faster
        return _entered(part, parent)

    @carried_out
    def names(self, most: int = MOST_NAMES) -> list[str]:
        """Return the names in the directory, unordered; empty if it is not a directory."""
        try:
            with self.opened() as handle, os.scandir(handle) as entries:
                return [entry.name for entry in islice(entries, most)]
        except FileNotFoundError:
            return []
        except OSError as error:
            if error.errno not in _OTHER_KIND or not self._root.is_dir():
                raise  # without a root the volume itself is gone, which the caller reports
            _log.warning("%s is not a directory; the target of a link is left alone", self.path)
            return []

    def files(self, ours: Callable[[str], object]) -> list[tuple[str, os.stat_result]]:
        """Return regular files whose names match ``ours``, oldest first."""
        found = self._regular([name for name in self.names() if ours(name)])
        return sorted(found, key=lambda one: (one[1].st_mtime_ns, one[0]))

    @carried_out
    def _regular(self, names: Sequence[str]) -> list[tuple[str, os.stat_result]]:
        found = []
        with self._if_there() as handle:
            for name in names:
                status = None if handle is None else _status(name, handle)
                if status is not None and stat.S_ISREG(status.st_mode):
                    found.append((name, status))
        return found

    @carried_out
    def status(self, name: str) -> os.stat_result | None:
        """Return the status of a name (of a link itself); None if it does not exist."""
        with self._if_there() as handle:
            return None if handle is None else _status(name, handle)

    @contextmanager
    def _if_there(self) -> Iterator[int | None]:
        with ExitStack() as stack:
            handle = None
            try:
                handle = stack.enter_context(self.opened())
            except OSError as error:
                if error.errno not in {*_OTHER_KIND, errno.ENOENT}:
                    raise
            yield handle

    @carried_out
    def read(self, name: str, most: int) -> bytes:
        """Return the content of a regular file of at most ``most`` bytes, or raise OSError."""
        with self.reading(name, most) as file:
            return file.read(most)

    @contextmanager
    def reading(self, name: str, most: int) -> Iterator[IO[bytes]]:
        """Provide a stream of a regular file of at most ``most`` bytes, or raise OSError."""
        if is_apart(self.path):
            with receiving(_blocks, self, name, most) as stream:
                yield stream
            return
        with self.opened() as handle:
            file = _file_of(os.open(name, _READ, dir_fd=handle), most, self.path / name)
        with file:
            yield file

    def write(
        self,
        name: str,
        pieces: Iterable[bytes | memoryview],
        *,
        beside: str = "",
        sync: bool = False,
    ) -> None:
        """Replace a file atomically. ``beside``: its temporary name."""
        beside = beside or f".{name}.{secrets.token_hex(4)}"
        self._write(name, [b"".join(pieces)] if is_apart(self.path) else pieces, beside, sync)

    @carried_out
    def _write(
        self, name: str, pieces: Iterable[bytes | memoryview], beside: str, sync: bool
    ) -> None:
        with self.opened(make=True) as handle:
            try:
                _write(beside, handle, pieces, self._mode & 0o666, sync=sync)
                _replace(beside, name, handle)
            except BaseException:
                # On a full disk, half a file may take the room that another file needs.
                _unlink(beside, handle)
                raise

    @carried_out
    def touch(self, name: str) -> None:
        """Give an empty file the file system's present time; create the file if necessary."""
        with self.opened(make=True) as handle:
            try:
                _touch(name, handle)
            except OSError as error:
                if error.errno not in _OTHER_KIND:
                    raise
                _remove(name, handle)
                _touch(name, handle)

    @carried_out
    def now(self) -> float:
        """Return seconds since 1970 by the clock that stamps files here; the machine's own may
        jump.

        Creates and deletes a file.
        """
        name = f"{_CLOCK}{secrets.token_hex(8)}"
        with self.opened(make=True) as handle:
            os.close(os.open(name, _NEW, 0o666, dir_fd=handle))
            try:
                return os.stat(name, dir_fd=handle, follow_symlinks=False).st_mtime
            finally:
                _unlink(name, handle)

    @carried_out
    def remove(self, name: str) -> bool:
        """Delete a file or a tree as far as possible; return False if something is left."""
        with self._if_there() as handle:
            return handle is None or _remove(name, handle)

    def remove_other(self, name: str) -> bool:
        """Delete anything that is not a regular file.

        Return False if a regular file is there, or something is left.
        """
        status = self.status(name)
        return status is None or (not stat.S_ISREG(status.st_mode) and self.remove(name))

    @carried_out
    def make_folder(self, name: str) -> None:
        """Create a directory in this folder; raise OSError if the name is taken."""
        with self.opened(make=True) as handle:
            os.mkdir(name, dir_fd=handle)

    @carried_out
    def link(self, name: str, meaning: str) -> None:
        """Create a symbolic link atomically."""
        with self.opened(make=True) as handle:
            os.symlink(meaning, name, dir_fd=handle)

    @carried_out
    def link_of(self, name: str) -> str | None:
        """Return the target of a symbolic link; None for anything else."""
        with self._if_there() as handle:
            try:
                return None if handle is None else os.readlink(name, dir_fd=handle)
            except OSError:
                return None

    @carried_out
    def drop(self) -> None:
        """Delete the directory itself; raise OSError if it is not empty."""
        *above, own = self._parts
        with Folder(self._root, *above).opened() as handle:
            os.rmdir(own, dir_fd=handle)


def in_folder(path: Path) -> tuple[Folder, str]:
    """Return the parent directory of a path, and the last part of the path."""
    return Folder(path.parent.parent, path.parent.name), path.name


@carried_out
def move(source: Path, target: Path) -> None:
    """Rename between two directories, neither of which may be a link."""
    (origin, name), (goal, new) = in_folder(source), in_folder(target)
    with origin.opened() as from_, goal.opened(make=True) as to:
        try:
            os.rename(name, new, src_dir_fd=from_, dst_dir_fd=to)
        except IsADirectoryError:
            _remove(new, to)
            os.rename(name, new, src_dir_fd=from_, dst_dir_fd=to)


def walk(root: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """Walk directories like `os.walk`: yield the names of subdirectories and of other entries.

    `os.walk` recurses before Python 3.12. Links to directories are listed as directories and not
    entered; neither are names that the caller removes from the first list.
    """
    pending = [str(root)]
    while pending:
        folder = pending.pop()
        try:
            with os.scandir(folder) as entries:
                found = [
                    (entry.name, _is_directory(entry), entry.is_symlink()) for entry in entries
                ]
        except OSError:
            continue  # the directory is gone, or may not be read
        folders = sorted(name for name, is_folder, _ in found if is_folder)
        links = {name for name, _, is_link in found if is_link}
        yield folder, folders, sorted(name for name, is_folder, _ in found if not is_folder)
        pending += [f"{folder}/{name}" for name in reversed(folders) if name not in links]


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def left_by_clock(name: str) -> bool:
    """Return whether a file is left over from a killed `Folder.now`."""
    return _CLOCK_FILE.fullmatch(name) is not None


def _entered(part: str, parent: int) -> int:
    return os.open(part, _DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)


def _blocks(folder: Folder, name: str, most: int) -> Iterator[bytes]:
    """Yield the blocks of an open file, as `Folder.reading` does."""
    with folder.reading(name, most) as file:
        yield b""
        while block := file.read(_BLOCK):
            yield block


def _status(name: str, folder: int) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _file_of(handle: int, most: int, path: Path) -> IO[bytes]:
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode) or status.st_size > most:
            raise OSError(errno.EINVAL, "not a file of flashpool", str(path))
        return open(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def _write(
    name: str, folder: int, pieces: Iterable[bytes | memoryview], mode: int, *, sync: bool
) -> None:
    with open(os.open(name, _NEW, mode, dir_fd=folder), "wb") as file:
        file.writelines(pieces)
        file.flush()
        if sync:
            os.fsync(file.fileno())


def _replace(beside: str, name: str, folder: int) -> None:
    try:
        os.replace(beside, name, src_dir_fd=folder, dst_dir_fd=folder)
    except IsADirectoryError:
        _remove(name, folder)
        os.replace(beside, name, src_dir_fd=folder, dst_dir_fd=folder)


def _touch(name: str, folder: int) -> None:
    file = os.open(name, _TOUCH, 0o666, dir_fd=folder)
    try:
        os.utime(file)
        # Truncating makes the file system itself set the time: `utime` without a time may use this
        # machine's clock (set by the C library or the client), which may be days off.
        os.ftruncate(file, 0)
    finally:
        os.close(file)


def _unlink(name: str, folder: int) -> None:
    try:
        os.unlink(name, dir_fd=folder)
    except OSError as error:
        _log.debug("%r is not deleted: %s", name, error)


def _remove(name: str, folder: int) -> bool:
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        return True
    except OSError as error:
        # Linux reports EISDIR for a directory; POSIX specifies EPERM.
        if error.errno in {errno.EISDIR, errno.EPERM} and trees.remove(name, folder):
            return True
        _log.info("%r is not deleted, or not all of it: %s", name, error)
        return False
    return True
