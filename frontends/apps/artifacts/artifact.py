"""Provides the app's folder: waits for the archive, unpacks and links it, or serves a directory.

    archive missing or incomplete --wait--> archive --> unpacked --> link --> AppFolder
    FLASHPOOL_DISABLE_UNPACK      --------------------------------------> AppFolder

The wait doubles each time. It ends at once for an archive with forbidden contents. An archive that
could not be read may still be being written: it is read again when it has changed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final

from flashpool.envs import StoreUnavailable
from flashpool.envs.concurrency.cancellation import run_in_thread_or_undo
from flashpool.envs.store.locations import local_places
from flashpool.frontends.apps.errors import (
    AppDirectoryRefused,
    AppError,
    ArtifactIncomplete,
    ArtifactMissing,
    UnpackingFailed,
)

from .app_link import switch_link
from .app_store import AppLease, AppStore
from .tar_reader import ArchiveLimits
from .unpacking import unpack

if TYPE_CHECKING:
    from flashpool.frontends.settings.table import Settings

__all__ = ["AppFolder", "ArtifactSource", "back_off", "mark_of", "obtain"]

_log = logging.getLogger(__name__)
_FIRST_WAIT_S: Final = 0.1
_LONGEST_WAIT_S: Final = 5.0
#: Most files of a folder that are checked for a change.
_MOST_MARKED: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactSource:
    """Where an artifact is, and what its archive may contain."""

    archive: Path
    wait_s: float
    limits: ArchiveLimits
    #: The link to the app that is created, or None.
    link: Path | None
    #: Whether the app is already unpacked, at the link's path.
    is_unpacked: bool

    @classmethod
    def of(cls, settings: Settings) -> ArtifactSource:
        return cls(
            archive=Path(settings.artifact),
            wait_s=settings.artifact_wait_s,
            limits=limits_of(settings),
            link=Path(settings.app_dir),
            is_unpacked=settings.disable_unpack,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AppFolder:
    """An app on disk: its working directory, which no process removes before `release`."""

    path: Path
    #: Digest of the archive; empty if the app was not unpacked here.
    digest: str = ""
    lease: AppLease | None = None

    def release(self) -> None:
        if self.lease is not None:
            self.lease.release()


def limits_of(settings: Settings) -> ArchiveLimits:
    """Return the limits of an archive's contents."""
    return ArchiveLimits(
        max_mb=settings.artifact_max_mb,
        max_files=settings.artifact_max_files,
        max_ratio=settings.artifact_max_ratio,
    )


def store_of(settings: Settings) -> AppStore:
    """Return the store of unpacked apps, on local disk and never on the volume; blocking.

    Raises:
        UnpackingFailed: no local directory can be written.
    """
    try:
        root = local_places(settings.to_env_settings(), "").local
    except StoreUnavailable as error:
        raise UnpackingFailed(str(error)) from None
    return AppStore(root / "apps")


async def obtain(
    source: ArtifactSource, make_store: Callable[[], AppStore], *, wait: bool = True
) -> AppFolder:
    """Return the app's folder, as soon as its archive exists.

    Raises:
        AppError: the archive is refused, or did not appear in time; `passes` says which.
    """
    if source.is_unpacked and source.link is not None:
        return await asyncio.to_thread(_as_it_lies, source.link)
    folder = await _unpacked(source, make_store, source.wait_s if wait else 0.0)
    if source.link is None:
        return folder
    problem = await asyncio.to_thread(switch_link, source.link, folder.path)
    if problem:
        _log.warning("%s", problem)
    _log.info("the app's working directory is %s%s", folder.path, _linked(source.link, problem))
    return folder


def _linked(link: Path, problem: str) -> str:
    return "" if problem else f", and {link} leads there"


def _as_it_lies(folder: Path) -> AppFolder:
    if not folder.is_dir():
        raise AppDirectoryRefused(
            f"no app in {folder}: FLASHPOOL_DISABLE_UNPACK (or FLASH_DISABLE_UNPACK) is "
            "set, so the unpacked app must be there; FLASHPOOL_APP_DIR or RUNPOD_APP_DIR "
            "names another directory"
        )
    path = folder.resolve()
    _log.info("nothing is unpacked: the app's working directory is %s", path)
    return AppFolder(path=path)


def back_off() -> Iterator[float]:
    """Yield the seconds between two attempts: each twice the one before, up to a limit."""
    seconds = _FIRST_WAIT_S
    while True:
        yield seconds
        seconds = min(2 * seconds, _LONGEST_WAIT_S)


async def _unpacked(
    source: ArtifactSource, make_store: Callable[[], AppStore], wait_s: float
) -> AppFolder:
    began = time.monotonic()
    failure: AppError | None = None
    seen: object = None
    for seconds in back_off():
        state = await asyncio.to_thread(_state, source.archive)
        if failure is None or state != seen:
            seen = state
            try:
                return await _unpack_once(source, make_store)
            except (ArtifactMissing, ArtifactIncomplete) as error:
                if failure is None and wait_s:
                    _log.info("%s: waiting for up to %g s", error, wait_s)
                failure = error
        left = began + wait_s - time.monotonic()
        if left <= 0:
            waited = f" (waited {wait_s:g} s; FLASHPOOL_ARTIFACT_WAIT_S says how long)"
            raise type(failure)(f"{failure}{waited if wait_s else ''}")
        await asyncio.sleep(min(seconds, left))
    raise AssertionError("the back-off has no end")


async def _unpack_once(source: ArtifactSource, make_store: Callable[[], AppStore]) -> AppFolder:
    stop = threading.Event()

    def work() -> AppLease:
        return unpack(source.archive, make_store(), source.limits, stop)

    try:
        lease = await run_in_thread_or_undo(work, AppLease.release)
    except asyncio.CancelledError:
        stop.set()
        raise
    return AppFolder(path=lease.path, digest=lease.digest, lease=lease)


def mark_of(place: Path) -> object:
    """Return a value that changes when an archive, or a folder's files, are written; blocking."""
    try:
        with os.scandir(place) as found:
            there = sorted(islice(found, _MOST_MARKED), key=lambda one: one.name)
    except OSError:  # an archive, or nothing
        return _state(place)
    return [(one.name, _state(Path(one.path))) for one in there]


def _state(archive: Path) -> tuple[int, int, int] | None:
    """Return the properties of a file that change when it is written."""
    try:
        found = os.stat(archive)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
