"""Archive mode: one verified `.tar.zst` per digest on the volume.

    pack:   env/ --tar--> zstd --hash--> scratch file --rename--> archives/<digest>.tar.zst
                                            then the manifest --> archives/<digest>.json
    unpack: manifest (HMAC) -> extraction.py -> links to the interpreter

No unpacked file is used before the hash of the whole archive has matched. Links to the interpreter
are created for this machine's base, not taken from the archive.
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any, Final, cast

import msgspec
import zstandard

from flashpool.envs.building.virtualenv import link_interpreter
from flashpool.envs.errors import Tampered
from flashpool.envs.store.apart import is_apart, sending
from flashpool.envs.store.layout import Store, is_there, read_json, write_json
from flashpool.envs.store.manifest import (
    Facts,
    decode_facts,
    encode_facts,
    read_facts,
    sign,
    signed_by,
)
from flashpool.envs.store.volume_files import in_folder, move, walk

from .extraction import Hashing, Promise, extract

__all__ = ["ArchiveInfo", "pack", "read_manifest", "unpack"]

_LEVEL: Final = 3
#: Most content bytes per packed byte, content that is always allowed, and most members. An archive
#: that states more may be a decompression bomb.
_MOST_PACKED: Final = 200
_SMALL: Final = 64 << 20
_MOST_MEMBERS: Final = 2_000_000
#: A file takes up to this much more than its size on disk, and so does a directory.
_BLOCK: Final = 4096


_Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 60)]


class _Manifest(msgspec.Struct, frozen=True):
    digest: str
    sha256: str
    size: _Count
    members: _Count
    content_bytes: _Count


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveInfo:
    """The contents of an archive's manifest."""

    promise: Promise
    facts: Facts

    @property
    def digest(self) -> str:
        return self.facts.digest

    @property
    def room(self) -> int:
        """The most bytes on disk that the archive takes when it is unpacked."""
        return self.promise.content_bytes + self.promise.members * _BLOCK


def _members(root: Path) -> Iterator[tuple[str, Path]]:
    """Yield directories, each followed by its files; without the links to the interpreter."""
    for folder, _, files in walk(root):
        here = Path(folder)
        if here != root:
            yield here.relative_to(root).as_posix(), here
        for name in files:
            path = here / name
            relative = path.relative_to(root).as_posix()
            if not (relative.startswith("bin/python") and path.is_symlink()):
                yield relative, path


def pack(environment: Path, store: Store, holder: str, key: bytes | None) -> ArchiveInfo:
    """Write and publish the archive of a complete environment; streaming, blocking."""
    facts = read_facts(environment)
    if facts is None:
        raise Tampered(f"{environment} is not a complete environment")
    with store.scratch(holder) as folder:
        unfinished = folder / "archive"
        promise = _write(environment, unfinished, facts.digest)
        move(unfinished, store.archive(facts.digest))
    info = ArchiveInfo(promise=promise, facts=facts)
    # Written last, because the manifest makes the archive exist.
    body = _body(info)
    write_json(store.archive_manifest(facts.digest), {**body, "mac": sign(body, key)})
    return info


def _write(environment: Path, unfinished: Path, name: str) -> Promise:
    with _writing(unfinished) as file:
        hashing = Hashing(file)
        members, size = _write_tar(environment, cast("IO[bytes]", hashing))
    return Promise(
        name=name,
        sha256=hashing.sha256.hexdigest(),
        size=hashing.count,
        members=members,
        content_bytes=size,
    )


@contextmanager
def _writing(path: Path) -> Iterator[IO[bytes]]:
    """Provide a stream into a new file, which is synced to disk at the end of the block."""
    if is_apart(path):
        with sending(_write_blocks, path) as stream:
            yield stream
        return
    with path.open("wb") as file:
        yield file
        _sync(file)


def _write_blocks(path: Path, blocks: Iterable[bytes]) -> None:
    with path.open("wb") as file:
        file.writelines(blocks)
        _sync(file)


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


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
    status = path.stat()  # follows links: a link in a package becomes the file that it leads to
    info = tarfile.TarInfo(name)
    info.mtime = int(status.st_mtime)  # bytecode is valid for a time in whole seconds
    info.mode = status.st_mode & 0o755
    if path.is_dir():
        info.type = tarfile.DIRTYPE
        tar.addfile(info)
        return 0
    if not stat.S_ISREG(status.st_mode):
        raise Tampered(f"{name!r} is neither a file nor a directory")
    # Another process may have put a pipe there by now, which would block.
    with open(path, "rb", opener=_without_a_wait) as file:
        info.size = status.st_size
        tar.addfile(info, file)
    return status.st_size


def _without_a_wait(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


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
    """Return an archive's manifest; None if missing; raise Tampered if it cannot be trusted."""
    path = store.archive_manifest(digest)
    stored = read_json(path)
    if stored is None:
        if is_there(path):
            raise Tampered(f"the manifest of archive {digest} is damaged")
        return None
    mac = str(stored.pop("mac", ""))
    if key and not signed_by(key, stored, mac):
        raise Tampered(f"the signature of archive {digest} does not match")
    facts = decode_facts(stored.get("facts"))
    try:
        told = msgspec.convert(stored, _Manifest)
    except msgspec.ValidationError as error:
        raise Tampered(f"the manifest of archive {digest} is damaged") from error
    if facts is None or facts.digest != digest or told.digest != digest:
        raise Tampered(f"the manifest of archive {digest} is damaged")
    promise = Promise(
        name=digest,
        sha256=told.sha256,
        size=told.size,
        members=told.members,
        content_bytes=told.content_bytes,
    )
    folder, name = in_folder(store.archive(digest))
    status = folder.status(name)
    if status is None:
        raise promise.broken("is not there")
    _check_promise(promise, status)
    return ArchiveInfo(promise=promise, facts=facts)


def _check_promise(promise: Promise, status: os.stat_result) -> None:
    """Check a manifest's sizes against the archive: an unsigned one may claim anything."""
    size = status.st_size
    if size != promise.size or not stat.S_ISREG(status.st_mode):
        raise promise.broken(f"has {size} bytes instead of {promise.size}")
    most = max(_SMALL, size * _MOST_PACKED)
    if promise.content_bytes > most or promise.members > _MOST_MEMBERS:
        raise promise.broken("declares more data than it can hold")


def unpack(info: ArchiveInfo, archive: Path, target: Path, python: Path) -> None:
    """Extract into `target` (which must not exist), and verify; streaming, blocking.

    The list of files is part of the archive: files that match the archive's checksum match the
    list.
    """
    target.mkdir(parents=True)
    extract(archive, info.promise, target)
    link_interpreter(target, python, info.facts.python_version)
