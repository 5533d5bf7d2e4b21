"""Unpacked apps on this machine's disk: which exist, who uses them, and which may be removed.

    <root>/<digest>/            a complete app; the digest is that of its archive
    <root>/.scratch/<holder>.*  being unpacked; becomes an app only by a rename
    <root>/.users/<digest>.<holder>   the mark of a process that uses that app
    <root>/.trash/              apps that are being removed
    <root>/.env                 empty, see `stray_dotenv`
    <root>/.lock                held while an app is unpacked or removed; saves only double work

An app writes to its directory (bytecode, logs, other files of its code), so the root belongs to one
machine, and is separate from the store of environments, whose files are verified. A process that
uses an app creates a mark, named after its pid and start time, *before* it checks whether the app
exists. A process that removes an app renames it first and then checks for marks again:

    user                            remover
    mark; does it exist? yes        marks? none; rename to trash; a mark? rename back
    mark; does it exist? no: unpack a mark? the new app exists, so delete the one in the trash

Where locks do not work, the app is absent for a moment between the rename and the way back. A lock
that works excludes that.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from flashpool.envs.store.layout import names_in, remove_tree
from flashpool.envs.store.liveness import parse_holder, start_time, this_host

from .stray_dotenv import DOTENV

__all__ = ["AppLease", "AppStore", "is_app_directory"]

_log = logging.getLogger(__name__)

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_NEW: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_LOCK: Final = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
#: Seconds to wait for a process that unpacks, which may be suspended forever; and between checks.
_PATIENCE_S: Final = 300.0
_ASK_S: Final = 0.05


def is_app_directory(path: str) -> bool:
    """Return whether a link's target is an unpacked app of flashpool, in any local directory."""
    found = Path(path)
    return _DIGEST.fullmatch(found.name) is not None and found.parent.name == "apps"


def holder_name() -> str:
    """Return a name of this process by which others can check whether it is alive."""
    pid = os.getpid()
    return f"{this_host()}-{pid}-{start_time(pid)}-{secrets.token_hex(4)}"


def holder_lives(name: str) -> bool:
    """Return whether the process of that name runs; False for names of other machines."""
    holder = parse_holder(name)
    if holder is None or holder.host != this_host():
        return False
    return start_time(holder.pid) == holder.start


class AppLease:
    """The right to use one unpacked app. While the lease lasts, no process removes the app."""

    def __init__(self, path: Path, mark: Path, handle: int) -> None:
        self.path = path
        self.digest = path.name
        self._mark = mark
        self._handle = handle

    def __repr__(self) -> str:
        return f"<AppLease {self.path}{'' if self._handle >= 0 else ' released'}>"

    def release(self) -> None:
        """Let others remove the app; a second time does nothing."""
        handle, self._handle = self._handle, -1
        if handle >= 0:
            self._mark.unlink(missing_ok=True)
            os.close(handle)


class AppStore:
    """All apps below one root. Every method blocks."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.scratch_root = root / ".scratch"
        self.users_root = root / ".users"
        self.trash = root / ".trash"

    def __repr__(self) -> str:
        return f"<AppStore {self.root}>"

    def prepare(self) -> None:
        """Create the directories, and the empty file that ends the search for ``.env`` files."""
        for folder in (self.root, self.scratch_root, self.users_root, self.trash):
            folder.mkdir(parents=True, exist_ok=True)
        # Replace existing files: a link may lead to another user's variables.
        empty = self.scratch_root / f"{holder_name()}.app"
        os.close(os.open(empty, _NEW, 0o444))
        empty.replace(self.root / DOTENV)

    def app(self, digest: str) -> Path:
        """Return the folder that a complete app has, whether or not it exists."""
        if not _DIGEST.fullmatch(digest):
            raise ValueError(f"not a digest: {digest!r}")
        return self.root / digest

    def has(self, digest: str) -> bool:
        """Return whether an app exists; existing apps are complete."""
        return self.app(digest).is_dir()

    def digests(self) -> list[str]:
        """Return the digests of all apps that exist."""
        return sorted(name for name in names_in(self.root) if _DIGEST.fullmatch(name))

    def lease(self, digest: str) -> AppLease:
        """Mark an app as used by this process, whether or not it is there yet."""
        mark = self.users_root / f"{digest}.{holder_name()}"
        handle = os.open(mark, _NEW, 0o600)
        # The lock is for processes in other containers on the same disk, where a pid means nothing.
        _try_lock(handle)
        return AppLease(self.app(digest), mark, handle)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Provide a directory of this process; remove it afterwards unless it was published."""
        path = self.scratch_root / f"{holder_name()}.app"
        path.mkdir(mode=0o755)
        try:
            yield path
        finally:
            remove_tree(path)

    def publish(self, complete: Path, digest: str) -> bool:
        """Rename into place; return False if another process was first: its copy stays."""
        try:
            complete.rename(self.app(digest))
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST) and self.has(digest):
                return False
            raise
        return True

    @contextmanager
    def lock(self, stop: threading.Event) -> Iterator[bool]:
        """Wait for the lock, and yield whether it is held; if not, the caller works without."""
        handle = os.open(self.root / ".lock", _LOCK, 0o600)
        try:
            end = time.monotonic() + _PATIENCE_S
            while not (held := _try_lock(handle)) and time.monotonic() < end:
                if stop.wait(_ASK_S):
                    break
            if not held and not stop.is_set():
                _log.warning(
                    "%s is still locked after %.0f s: continuing without the lock",
                    self,
                    _PATIENCE_S,
                )
            yield held
        finally:
            os.close(handle)

    def users(self, digest: str = "") -> list[str]:
        """Return the processes that use an app, or any app; remove marks of dead processes."""
        found = []
        for name in names_in(self.users_root):
            marked, _, holder = name.partition(".")
            if digest and marked != digest:
                continue
            if holder_lives(holder) or _locked(self.users_root / name):
                found.append(holder)
            else:
                (self.users_root / name).unlink(missing_ok=True)
        return found

    def sweep(self, keep: str) -> list[str]:
        """Remove what dead processes left, and unused apps but for ``keep``; return the latter."""
        for name in names_in(self.scratch_root):
            if not holder_lives(name.rpartition(".")[0]):
                remove_tree(self.scratch_root / name)
        self.users()
        removed = [digest for digest in self.digests() if digest != keep and self._discard(digest)]
        for name in names_in(self.trash):
            remove_tree(self.trash / name)
        return removed

    def _discard(self, digest: str) -> bool:
        if self.users(digest):
            return False
        grave = self.trash / f"{digest}.{secrets.token_hex(4)}"
        try:
            self.app(digest).rename(grave)
        except FileNotFoundError:
            return False  # another process removes the same app
        if self.users(digest):
            # A process marked the app meanwhile: it may have seen the app here, and not in the
            # trash.
            try:
                grave.rename(self.app(digest))
            except OSError:
                _log.info("%s was unpacked again while it was removed", digest)
            return False
        return True


def _try_lock(handle: int) -> bool:
    """Try to take a lock. On a file system without locks, no process holds it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        _log.debug("file locks do not work here: %s", error)
    return True


def _locked(mark: Path) -> bool:
    try:
        handle = os.open(mark, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _try_lock(handle)
    finally:
        os.close(handle)
