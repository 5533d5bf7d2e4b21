"""Archive mode: one verified `.tar.zst` per digest on the volume.

    pack:   env/ --tar--> zstd --hash--> scratch file --rename--> archives/<digest>.tar.zst
                                            then the manifest --> archives/<digest>.json
    unpack: manifest (HMAC) -> extraction.py -> links to the interpreter

Nothing unpacked is used before the whole file's hash matched. Links are made by
us, from the base interpreter, not taken from the archive.
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, cast

import zstandard

from flashpool.envs.building.virtualenv import link_interpreter
from flashpool.envs.errors import Tampered
from flashpool.envs.store import apart
from flashpool.envs.store.layout import Store, read_json, write_json
from flashpool.envs.store.manifest import (
    Facts,
    decode_facts,
    encode_facts,
    read_facts,
    sign,
    signed_by,
)

from .extraction import Hashing, Promise, extract

__all__ = ["ArchiveInfo", "pack", "read_manifest", "unpack"]

_LEVEL: Final = 3
#: Bounds on what so many packed bytes can stand for, where it is not a bomb.
_MOST_PACKED: Final = 200
_SMALL: Final = 64 << 20
_MOST_MEMBERS: Final = 2_000_000
#: A file takes up to so much more than its size, a directory so much.
_BLOCK: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveInfo:
    """What a manifest says."""

    promise: Promise
    facts: Facts

    @property
    def digest(self) -> str:
        return self.facts.digest

    @property
    def room(self) -> int:
        """Bytes on disk once it is unpacked, at most."""
        return self.promise.content_bytes + self.promise.members * _BLOCK


def _members(root: Path) -> Iterator[tuple[str, Path]]:
    """Directories, each followed by its files; not the links to the interpreter."""
    for folder, names, files in os.walk(root):
        here = Path(folder)
        names[:] = sorted(name for name in names if not (here / name).is_symlink())
        if here != root:
            yield here.relative_to(root).as_posix(), here
        for name in sorted(files):
            path = here / name
            relative = path.relative_to(root).as_posix()
            if not (relative.startswith("bin/python") and path.is_symlink()):
                yield relative, path


def pack(environment: Path, store: Store, holder: str, key: bytes | None) -> ArchiveInfo:
    """Write and publish the archive of a complete environment; blocking, in a stream."""
    facts = read_facts(environment)
    if facts is None:
        raise Tampered(f"{environment} is not a complete environment")
    with store.scratch(holder) as folder:
        unfinished = folder / "archive"
        promise = _write(environment, unfinished, facts.digest)
        target = store.archive(facts.digest)
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished.replace(target)
    info = ArchiveInfo(promise=promise, facts=facts)
    # Last, for it is what says that there is an archive.
    body = _body(info)
    write_json(store.archive_manifest(facts.digest), {**body, "mac": sign(body, key)})
    return info


def _write(environment: Path, unfinished: Path, name: str) -> Promise:
    with apart.writing(unfinished) as file:
        hashing = Hashing(file)
        members, size = _write_tar(environment, cast("IO[bytes]", hashing))
    return Promise(
        name=name,
        sha256=hashing.sha256.hexdigest(),
        size=hashing.count,
        members=members,
        content_bytes=size,
    )


def _write_tar(environment: Path, target: IO[bytes]) -> tuple[int, int]:
    members = size = 0
    packer = zstandard.ZstdCompressor(level=_LEVEL)
    with packer.stream_writer(target, closefd=False) as packed:
        stream = cast("IO[bytes]", packed)
        with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as tar:
            for name, path in _members(environment):
                size += _add(tar, name, path)
                members += 1
    return members, size


def _add(tar: tarfile.TarFile, name: str, path: Path) -> int:
    status = path.stat()  # through links: a link in a package becomes the file it means
    info = tarfile.TarInfo(name)
    info.mtime = int(status.st_mtime)  # bytecode is valid for a time in whole seconds
    info.mode = status.st_mode & 0o755
    if path.is_dir():
        info.type = tarfile.DIRTYPE
        tar.addfile(info)
        return 0
    with path.open("rb") as file:
        info.size = status.st_size
        tar.addfile(info, file)
    return status.st_size


def _body(info: ArchiveInfo) -> dict[str, Any]:
    promise = info.promise
    return {
        "digest": promise.name,
        "sha256": promise.sha256,
        "size": promise.size,
        "members": promise.members,
        "content_bytes": promise.content_bytes,
        "facts": encode_facts(info.facts),
    }


def read_manifest(store: Store, digest: str, key: bytes | None) -> ArchiveInfo | None:
    """What an archive promises; None when there is none; Tampered when it cannot be trusted."""
    path = store.archive_manifest(digest)
    stored = read_json(path)
    if stored is None:
        if path.exists():
            raise Tampered(f"the manifest of archive {digest} is damaged")
        return None
    mac = str(stored.pop("mac", ""))
    if key and not signed_by(key, stored, mac):
        raise Tampered(f"the signature of archive {digest} does not match")
    facts = decode_facts(stored.get("facts") or {})
    if facts is None or facts.digest != digest or stored.get("digest") != digest:
        raise Tampered(f"the manifest of archive {digest} is damaged")
    try:
        promise = Promise(
            name=digest,
            sha256=str(stored["sha256"]),
            size=int(stored["size"]),
            members=int(stored["members"]),
            content_bytes=int(stored["content_bytes"]),
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise Tampered(f"the manifest of archive {digest} is damaged") from error
    _check_promise(promise, store.archive(digest).stat())
    return ArchiveInfo(promise=promise, facts=facts)


def _check_promise(promise: Promise, status: os.stat_result) -> None:
    """Without a key a manifest may promise anything: what nobody would pack is not unpacked."""
    size = status.st_size
    if size != promise.size or not stat.S_ISREG(status.st_mode):
        raise promise.broken(f"has {size} bytes instead of {promise.size}")
    most = max(_SMALL, size * _MOST_PACKED)
    if promise.content_bytes > most or promise.members > _MOST_MEMBERS:
        raise promise.broken("promises more than it can hold")


def unpack(info: ArchiveInfo, archive: Path, target: Path, python: Path) -> None:
    """Extract into `target` (which must not exist), verified; blocking, in a stream.

    The list of its files came along: what matches the archive's checksum matches it too.
    """
    target.mkdir(parents=True)
    extract(archive, info.promise, target)
    link_interpreter(target, python, info.facts.python_version)
