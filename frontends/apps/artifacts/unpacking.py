"""Unpacks an archive to a complete app on disk, once, even if several processes try.

    open --hash--> digest --mark--> lock --> exists? yes: done
                                                     no: scratch --rename--> <root>/<digest>

The rename creates the app. A process that is killed before the rename leaves a scratch directory,
which the next start removes; a process that is killed after the rename leaves a complete app. If
several processes unpack at once, because locks do not work or the wait for the lock took too long,
each fills a directory of its own: the first rename wins, and the others delete theirs.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from pathlib import Path
from typing import IO, Final

from flashpool.envs.archives.extraction import write_tree
from flashpool.frontends.apps.errors import (
    ArtifactIncomplete,
    ArtifactMissing,
    ArtifactRefused,
    UnpackingFailed,
    UnpackingStopped,
)
from flashpool.frontends.apps.regular_files import open_regular

from .app_store import AppLease, AppStore
from .tar_reader import ArchiveLimits, Unpacked, members

__all__ = ["extract_archive", "open_archive", "unpack"]

_log = logging.getLogger(__name__)
_BLOCK: Final = 1 << 20
_VARIABLES: Final = "FLASHPOOL_ARTIFACT or FLASH_BUILD_ARTIFACT_PATH"
_MOST_SHOWN: Final = 10


def unpack(
    archive: Path, store: AppStore, limits: ArchiveLimits, stop: threading.Event
) -> AppLease:
    """Return the app of an archive, complete and marked as used; blocking.

    Raises:
        AppError: the archive is missing, damaged or refused, or unpacking failed or was stopped.
    """
    with open_archive(archive) as file:
        digest = _digest(file, archive, stop)
        try:
            store.prepare()
            lease = store.lease(digest)
        except OSError as error:
            raise _failed(archive, store.root, error) from error
        try:
            with store.lock(stop):
                store.sweep(keep=digest)
                if not store.has(digest):
                    _make(file, archive, digest, store, limits, stop)
        except OSError as error:
            lease.release()
            raise _failed(archive, store.root, error) from error
        except BaseException:
            lease.release()
            raise
    return lease


def open_archive(archive: Path) -> IO[bytes]:
    """Open an archive; errors say where it was expected."""
    try:
        return open_regular(archive)
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactMissing(
            f"no artifact at {archive}: {_around(archive)}; {_VARIABLES} names another place"
        ) from None
    except OSError as error:
        raise ArtifactRefused(
            f"artifact {archive} cannot be opened: {error.strerror}; {_VARIABLES} names another place"
        ) from None


def extract_archive(
    file: IO[bytes], archive: Path, target: Path, limits: ArchiveLimits, stop: threading.Event
) -> str:
    """Extract into an empty directory; return the archive's digest."""
    source = Unpacked(file, str(archive), limits, stop.is_set)
    try:
        write_tree(members(source), source.take, target)
    except (FileExistsError, NotADirectoryError) as error:
        raise source.refused(f"it holds {error.filename!r} twice") from None
    source.drain()
    return source.packed.sha256.hexdigest()


def _make(
    file: IO[bytes],
    archive: Path,
    digest: str,
    store: AppStore,
    limits: ArchiveLimits,
    stop: threading.Event,
) -> None:
    began = time.monotonic()
    with store.scratch() as scratch:
        file.seek(0)
        if extract_archive(file, archive, scratch, limits, stop) != digest:
            raise ArtifactIncomplete(f"artifact {archive} changed while it was unpacked")
        first = store.publish(scratch, digest)
    if first:
        _log.info("unpacked %s in %.2f s", archive, time.monotonic() - began)


def _digest(file: IO[bytes], archive: Path, stop: threading.Event) -> str:
    found = hashlib.sha256()
    while block := file.read(_BLOCK):
        found.update(block)
        if stop.is_set():
            raise UnpackingStopped(f"artifact {archive} is not unpacked: this process is exiting")
    return found.hexdigest()


def _failed(archive: Path, root: Path, error: OSError) -> UnpackingFailed:
    return UnpackingFailed(
        f"artifact {archive} cannot be unpacked in {root}: {error.strerror or error}; "
        "FLASHPOOL_LOCAL_DIR names another place"
    )


def _around(archive: Path) -> str:
    """Return a description of the files in the archive's folder."""
    try:
        names = sorted(os.listdir(archive.parent))
    except OSError as error:
        return f"{archive.parent} cannot be listed ({error.strerror})"
    if not names:
        return f"{archive.parent} is empty"
    more = ", ..." if len(names) > _MOST_SHOWN else ""
    return f"{archive.parent} holds {', '.join(names[:_MOST_SHOWN])}{more}"
