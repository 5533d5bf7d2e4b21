"""System packages that are kept on the volume: only what the signed lists confirm is used.

    apt-get --print-uris -> names, sizes, SHA-256: from lists whose signature apt has checked
    kept file --copy--> a directory that only root can write to --same hash?--> apt's archives
                                                                  '--other----> deleted

apt compares only sizes with files in its archives, and runs their contents as root. Others may
write to a volume. So a private copy is compared, which no other process can replace, and no link is
followed. Files that are not in the lists, or have no SHA-256 there, are downloaded.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flashpool.envs.store.apart import carried_out

__all__ = ["ListedDeb", "keep", "listed_debs", "take"]

_log = logging.getLogger(__name__)

_LINE: Final = re.compile(r"'[^']*' ([^/\s]+\.deb) (\d{1,12}) SHA256:([0-9a-f]{64})", re.ASCII)
_BLOCK: Final = 1 << 20
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: O_NONBLOCK: opening a pipe in place of the file would block.
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedDeb:
    """A file that apt is about to download, as its lists describe it."""

    name: str
    size: int
    sha256: str


def listed_debs(words: str) -> list[ListedDeb]:
    """Parse the output of `apt-get --print-uris` with `Acquire::ForceHash` set to SHA256."""
    found = (_LINE.fullmatch(line.strip()) for line in words.splitlines())
    return [
        ListedDeb(name=match[1], size=int(match[2]), sha256=match[3])
        for match in found
        if match is not None and not match[1].startswith(".")
    ]


@carried_out
def take(listed: Sequence[ListedDeb], kept: Path, archives: Path) -> None:
    """Copy kept files that match these lists into apt's archives; blocking.

    Only root can write to the directory `archives`.
    """
    if not listed:
        return
    try:
        with _opened(kept, make=False) as folder:
            for deb in listed:
                _take(deb, folder, kept, archives)
    except FileNotFoundError:
        return
    except OSError as error:
        _log.warning("kept system packages cannot be read: %s", error)


def _take(deb: ListedDeb, folder: int, kept: Path, archives: Path) -> None:
    try:
        if _copied(deb, folder, archives):
            return
    except FileNotFoundError:
        return
    except OSError as error:
        # For example a link, which flashpool never places there.
        _log.warning("%s cannot be used: %s", kept / deb.name, error)
    _log.warning(
        "%s is deleted: it differs from the file that the system's package lists name",
        kept / deb.name,
    )
    try:
        os.unlink(deb.name, dir_fd=folder)
    except OSError as error:
        _log.warning("%s cannot be deleted: %s", kept / deb.name, error)


def _copied(deb: ListedDeb, folder: int, archives: Path) -> bool:
    """Copy a file; return whether it matches the lists. A copy that does not is deleted."""
    unfinished = archives / f".{deb.name}"
    unfinished.unlink(missing_ok=True)
    with open(os.open(deb.name, _READ, dir_fd=folder), "rb") as source:
        status = os.fstat(source.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size != deb.size:
            return False
        total, left = hashlib.sha256(), deb.size
        with open(os.open(unfinished, _NEW, 0o644), "wb") as target:
            # Read at most the stated size, even if the file grows meanwhile.
            while left and (block := source.read(min(left, _BLOCK))):
                total.update(block)
                target.write(block)
                left -= len(block)
    if left or total.hexdigest() != deb.sha256:
        unfinished.unlink()
        return False
    unfinished.rename(archives / deb.name)
    return True


@carried_out
def keep(archives: Path, kept: Path) -> None:
    """Keep files that apt has downloaded and checked; blocking.

    If the volume cannot take them, they are downloaded again another time.
    """
    try:
        with _opened(kept, make=True) as folder:
            there = set(os.listdir(folder))
            for deb in archives.glob("*.deb"):
                if deb.name not in there:
                    _put(deb, folder)
    except OSError as error:
        _log.info("system packages are not kept: %s", error)


def _put(deb: Path, folder: int) -> None:
    unfinished = f".{deb.name}.{secrets.token_hex(4)}"
    try:
        with (
            deb.open("rb") as source,
            open(os.open(unfinished, _NEW, 0o644, dir_fd=folder), "wb") as target,
        ):
            while block := source.read(_BLOCK):
                target.write(block)
        os.rename(unfinished, deb.name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        try:
            os.unlink(unfinished, dir_fd=folder)
        except FileNotFoundError:
            pass
        raise


@contextmanager
def _opened(kept: Path, *, make: bool) -> Iterator[int]:
    """Open the directory; it and its parent must be directories, not links.

    A link in their place would make root write or delete elsewhere on this machine.
    """
    if make:
        kept.parent.parent.mkdir(parents=True, exist_ok=True)
    here = os.open(kept.parent.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in (kept.parent.name, kept.name):
            below = _below(here, name, make=make)
            os.close(here)
            here = below
        yield here
    finally:
        os.close(here)


def _below(folder: int, name: str, *, make: bool) -> int:
    if make:
        try:
            os.mkdir(name, dir_fd=folder)
        except FileExistsError:
            pass
    return os.open(name, _FOLDER, dir_fd=folder)
