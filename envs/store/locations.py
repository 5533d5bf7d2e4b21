"""Chooses the directories of environments once, from settings and the current mounts.

    mode       environments (local)        shared between pods
    volume     <volume>/flashpool          the same directory
    archive    <local>/flashpool           <volume>/flashpool, as archives
    local      <local>/flashpool           nothing: no volume, or a volume that is not writable

A network or FUSE file system takes minutes to write a virtualenv's ten thousand small files, and
seconds for one archive: `auto` chooses by the file system's type.
"""

from __future__ import annotations

import logging
import os
import secrets
import stat
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from flashpool.envs.concurrency.disk_hangs import DiskHangs
from flashpool.envs.concurrency.volume_watch import VolumeWatch
from flashpool.envs.errors import StoreUnavailable, is_full
from flashpool.envs.settings import DEFAULT_VOLUME, EnvSettings

from .apart import carried_out, keep_apart
from .layout import is_directory

__all__ = [
    "Places",
    "check_volume",
    "choose_places",
    "file_system_of",
    "local_places",
    "missing_store",
    "volume_of",
    "without_making",
]

_log = logging.getLogger(__name__)

_MOUNTS: Final = Path("/proc/self/mountinfo")
_NETWORK: Final = frozenset(
    "nfs nfs4 cifs smb3 smbfs 9p ceph glusterfs lustre beegfs virtiofs gpfs afs mfs moosefs".split()
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """The two roots (one and the same in volume mode) and how they are used."""

    mode: Literal["volume", "archive", "local"]
    local: Path
    shared: Path
    #: uv's cache: beside the environments, so that files can be cloned.
    cache: Path
    #: Whether archives can be read but not written.
    read_only: bool = False
    note: str = ""


def file_system_of(path: Path, mounts: str | None = None) -> str:
    """Return the type of the file system that holds a path: the mount with the longest prefix."""
    return _kind_at(os.path.realpath(path), _MOUNTS.read_text() if mounts is None else mounts)


def _kind_at(target: str, mounts: str) -> str:
    best, kind = "", "unknown"
    for point, name in _mounts(mounts):
        inside = target == point or target.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, name
    return kind


def _mounts(text: str) -> Iterable[tuple[str, str]]:
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields, kinds = before.split(), after.split()
        if len(fields) > 4 and kinds:
            yield fields[4].encode().decode("unicode_escape"), kinds[0]


def is_remote(kind: str) -> bool:
    """Return whether environments are kept as archives on a file system of this type."""
    return kind in _NETWORK or kind == "fuse" or kind.startswith("fuse.")


def choose_places(settings: EnvSettings) -> Places:
    """Choose mode and roots; fall back to local disk with a log message; blocking."""
    local = _local_root(settings)
    volume = _volume(settings)
    if volume is None:
        return _local(local, "no volume is mounted")
    shared = volume / "flashpool"
    remote = is_remote(file_system_of(volume))
    if remote:
        keep_apart(shared)
    problem = _write_problem(shared)
    if problem:
        return _without_writing(shared, local, problem)
    if settings.mode == "archive" or (settings.mode == "auto" and remote):
        cache = local / "cache"
        return Places(mode="archive", local=local, shared=shared, cache=cache)
    # With a key the volume is not trusted, and a cache cannot be verified: keep it on local disk.
    cache = (local if settings.volume_key else shared) / "cache"
    return Places(mode="volume", local=shared, shared=shared, cache=cache)


def local_places(settings: EnvSettings, note: str) -> Places:
    """Return local disk, whatever volume the settings name; blocking."""
    return _local(_local_root(settings), note)


def check_volume(settings: EnvSettings) -> tuple[str, ...]:
    """Return warnings about the volume before it is used; create it if possible; blocking.

    A volume that hangs is reported, and not accessed further: it may answer later.

    Raises:
        StoreUnavailable: the volume is named, does not exist, and cannot be created.
    """
    named = volume_of(settings)
    if named is not None and is_remote(_kind_at(os.path.abspath(named), _MOUNTS.read_text())):
        keep_apart(named / "flashpool")
    if silence := _silence(settings):
        return (silence,)
    found = []
    volume = settings.volume
    if volume is not None and not volume.is_dir():
        if not volume.parent.is_dir():
            found.append(
                f"FLASHPOOL_VOLUME={volume} is created now, and {volume.parent} too: is the path misspelt?"
            )
        try:
            volume.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreUnavailable(
                f"FLASHPOOL_VOLUME={volume} is not a directory, and cannot be created: {error.strerror}",
                advice="set it to a writable directory, or unset it",
            ) from None
    used = _volume(settings)
    if used and DEFAULT_VOLUME in (used, *used.parents) and not DEFAULT_VOLUME.is_mount():
        found.append(
            f"{DEFAULT_VOLUME} is not a mount point: environments in it are lost with the container"
        )
    return tuple(found)


def _silence(settings: EnvSettings) -> str:
    volume = volume_of(settings)
    if volume is None:
        return ""
    watch = VolumeWatch(volume)
    try:
        watch.check()
    except DiskHangs as error:
        return f"{error}: environments go to local disk until it does"
    finally:
        watch.stop()
    return ""


def missing_store(settings: EnvSettings) -> Path | None:
    """Return where environments would be stored, if none ever was stored there; else None."""
    volume = _volume(settings)
    if volume is not None:
        return None if (volume / "flashpool").is_dir() else volume / "flashpool"
    local = [candidate / "flashpool" for candidate in _local_candidates(settings)]
    return None if any(map(Path.is_dir, local)) else local[0]


def without_making(settings: EnvSettings, spare: Path) -> EnvSettings:
    """Return the same places for reading only: missing directories are created below `spare`."""
    volume = _volume(settings)
    if volume is not None and not (volume / "flashpool").is_dir():
        volume = spare / "volume"
    known = [path for path in _local_candidates(settings) if (path / "flashpool").is_dir()]
    local = known[0] if known else spare / "local"
    return replace(settings, volume=volume, local=local)


def volume_of(settings: EnvSettings) -> Path | None:
    """Return the volume, if one is used; found without accessing it, because it may hang."""
    if settings.volume is not None:
        return settings.volume
    mounted = any(point == str(DEFAULT_VOLUME) for point, _ in _mounts(_MOUNTS.read_text()))
    return DEFAULT_VOLUME if mounted else None


def _volume(settings: EnvSettings) -> Path | None:
    return settings.volume or (DEFAULT_VOLUME if DEFAULT_VOLUME.is_dir() else None)


def _local_candidates(settings: EnvSettings) -> list[Path]:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    return [settings.local] if settings.local else [cache, Path(tempfile.gettempdir())]


def _local(local: Path, note: str) -> Places:
    return Places(mode="local", local=local, shared=local, cache=local / "cache", note=note)


def _without_writing(shared: Path, local: Path, problem: str) -> Places:
    _log.warning("volume %s cannot be written (%s): environments go to %s", shared, problem, local)
    if is_directory(shared / "archives"):
        return Places(
            mode="archive",
            local=local,
            shared=shared,
            cache=local / "cache",
            read_only=True,
            note=problem,
        )
    return _local(local, problem)


def _local_root(settings: EnvSettings) -> Path:
    problems = []
    for candidate in _local_candidates(settings):
        root = candidate / "flashpool"
        problem = _write_problem(root) if settings.local else _private_problem(root)
        if not problem:
            return root
        problems.append(f"{root}: {problem}")
    raise StoreUnavailable(
        "No directory for environments can be written: " + "; ".join(problems),
        advice="set FLASHPOOL_LOCAL_DIR to a writable directory",
    )


def _private_problem(root: Path) -> str:
    """Return why a default directory cannot be used: it must belong to this user alone.

    In a directory for temporary files, other users may have created a directory of that name, with
    code in it that calls would run.
    """
    problem = _write_problem(root, mode=0o700)
    return problem or _others_problem(root)


def _others_problem(root: Path) -> str:
    try:
        if root.is_symlink() and root.lstat().st_uid != os.geteuid():
            return "it is a link that another user made"
        handle = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        return error.strerror or str(error)
    try:
        # Of the opened directory: the name may lead elsewhere by now.
        found = os.fstat(handle)
        if found.st_uid != os.geteuid():
            return f"it belongs to another user ({found.st_uid}), whose code calls would run"
        if found.st_mode & 0o022:
            return f"other users may write to it (mode {stat.S_IMODE(found.st_mode):o})"
        if found.st_mode & 0o077:
            os.fchmod(handle, 0o700)
    except OSError as error:
        return error.strerror or str(error)
    finally:
        os.close(handle)
    return ""


@carried_out
def _write_problem(root: Path, mode: int = 0o755) -> str:
    """Return why a directory cannot be written; found by writing, because modes are unreliable."""
    try:
        root.mkdir(parents=True, exist_ok=True, mode=mode)
        probe = root / f".probe-{secrets.token_hex(8)}"
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        # A full volume is usable: eviction may make room.
        return "" if is_full(error) and root.is_dir() else error.strerror or str(error)
    return ""
