"""Removes directories that user code filled, however deep they are.

Neither recursion nor a path that grows: a call can nest directories deeper than both bear. Each
directory that is found is moved up to the top, so that two levels are open at a time.
"""

from __future__ import annotations

import os

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: Most levels that are removed: a process that keeps writing must not block the removal.
_LEVELS = 100_000


def remove(path: str, parent: int | None = None) -> bool:
    """Remove a directory with its contents, without following links; return False if something is
    left.

    Files that a process still writes, or that may not be removed, stay without an error. A name in
    an open directory (``parent``) stays valid, whatever happens to its path.
    """
    try:
        top = _opened(path, parent)
    except OSError:
        return not _exists(path, parent)
    try:
        before: list[str] = []
        for _ in range(_LEVELS):
            names = _unlink_files(top)
            if not names:
                os.rmdir(path, dir_fd=parent)
                return True
            if names == before:
                return False
            before = names
            for name in names:
                _take_apart(top, name)
        return False
    except OSError:
        return False
    finally:
        os.close(top)


def _exists(path: str, parent: int | None) -> bool:
    try:
        os.stat(path, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return False
    except OSError:
        pass  # it is not known to be gone
    return True


def _opened(name: str, parent: int | None) -> int:
    try:
        return os.open(name, _DIRECTORY, dir_fd=parent)
    except PermissionError:
        os.chmod(name, 0o700, dir_fd=parent)
        return os.open(name, _DIRECTORY, dir_fd=parent)


def _unlink_files(directory: int) -> list[str]:
    """Unlink all but directories; the names of these."""
    with os.scandir(directory) as entries:
        listed = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_directory in listed:
        if not is_directory:
            try:
                os.unlink(name, dir_fd=directory)
            except OSError:
                pass  # gone already; or it stays, and so does its directory
    return sorted(name for name, is_directory in listed if is_directory)


def _move_up(name: str, directory: int, top: int) -> None:
    place = f".{os.urandom(8).hex()}"
    try:
        os.rename(name, place, src_dir_fd=directory, dst_dir_fd=top)
    except PermissionError:
        # The entry names its parent, which is written to, too.
        os.chmod(name, 0o700, dir_fd=directory)
        os.rename(name, place, src_dir_fd=directory, dst_dir_fd=top)


def _take_apart(top: int, name: str) -> None:
    """Empty a directory of the top: its files go, its directories become the top's."""
    try:
        directory = _opened(name, top)
        try:
            for inner in _unlink_files(directory):
                _move_up(inner, directory, top)
        finally:
            os.close(directory)
        os.rmdir(name, dir_fd=top)
    except OSError:
        pass  # it stays, and `remove` finds it again
