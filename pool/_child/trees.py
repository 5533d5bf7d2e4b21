"""Removes directories that user code filled, of any depth.

Neither recursion nor growing paths are used, because a call can nest directories too deep for both.
Each directory that is found is moved up to the top, so that only two levels are open at a time.
"""

from __future__ import annotations

import os

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: Most levels that are removed: a process that keeps writing must not block the removal.
_LEVELS = 100_000


def remove(path: str, parent: int | None = None) -> bool:
    """Remove a directory with its contents, without following links; return whether it is gone.

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
        pass  # the directory may still exist
    return True


def _opened(name: str, parent: int | None) -> int:
    try:
        return os.open(name, _DIRECTORY, dir_fd=parent)
    except PermissionError:
        os.chmod(name, 0o700, dir_fd=parent)
        return os.open(name, _DIRECTORY, dir_fd=parent)


def _unlink_files(directory: int) -> list[str]:
    """Unlink everything except directories; return the names of these."""
    with os.scandir(directory) as entries:
        listed = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_directory in listed:
        if not is_directory:
            try:
                os.unlink(name, dir_fd=directory)
            except OSError:
                pass  # gone already; or the file stays, and so does its directory
    return sorted(name for name, is_directory in listed if is_directory)


def _move_up(name: str, directory: int, top: int) -> None:
    place = f".{os.urandom(8).hex()}"
    try:
        os.rename(name, place, src_dir_fd=directory, dst_dir_fd=top)
    except PermissionError:
        # Moving a directory rewrites its ``..`` entry, which needs write permission on it.
        os.chmod(name, 0o700, dir_fd=directory)
        os.rename(name, place, src_dir_fd=directory, dst_dir_fd=top)


def _take_apart(top: int, name: str) -> None:
    """Empty a directory of the top: unlink its files, move its directories to the top."""
    try:
        directory = _opened(name, top)
        try:
            for inner in _unlink_files(directory):
                _move_up(inner, directory, top)
        finally:
            os.close(directory)
        os.rmdir(name, dir_fd=top)
    except OSError:
        pass  # the directory stays, and `remove` finds it again
