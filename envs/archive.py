"""Archive mode: one verified `.tar.zst` per digest on the volume.

    pack:   env/ --tar--> zstd --> hash --> scratch file --rename--> archives/<digest>.tar.zst
                                              then the manifest    --> archives/<digest>.json
    unpack: manifest (HMAC) ; file --> hash --> zstd --> tar --> scratch/env, seal of sizes, hash compared

Nothing unpacked is used before the whole file's hash matched. The extraction is
our own: the standard library's "data" filter has let files escape, and we need
only directories and regular files. Links are made by us, from the base
interpreter, not taken from the archive. Sizes and counts are capped by what the
manifest promises, so that a bomb stops early.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import os
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import zstandard

from .errors import Tampered
from .manifest import Facts, decode_facts, encode_facts, list_files, read_facts, sign
from .store import Store, read_json, write_json

__all__ = ["ArchiveInfo", "pack", "read_manifest", "unpack"]

_LEVEL: Final = 3
_BLOCK: Final = 1 << 20
_MAX_DEPTH: Final = 40
#: Room for tar's headers: 512 bytes a member, padding, long names.
_TAR_OVERHEAD: Final = 4096
_ADVICE: Final = "the archive is set aside and the environment built anew"


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveInfo:
    """What a manifest promises."""

    digest: str
    sha256: str
    size: int
    members: int
    content_bytes: int
    facts: Facts


class _Hashing(io.RawIOBase):
    """A file that hashes and counts what passes through it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.count = 0

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        self.count += len(data)
        return self._file.write(data)

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        self.sha256.update(data)
        self.count += len(data)
        buffer[: len(data)] = data
        return len(data)


def _members(root: Path) -> Iterator[tuple[str, Path]]:
    """Directories and files, but neither links that unpacking makes itself nor odd files."""
    for folder, names, files in os.walk(root):
        here = Path(folder)
        names[:] = sorted(name for name in names if not (here / name).is_symlink())
        for name in (*names, *sorted(files)):
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
        with unfinished.open("wb") as file:
            hashing = _Hashing(file)
            members, size = _write_tar(environment, hashing)
            file.flush()
            os.fsync(file.fileno())
        info = ArchiveInfo(
            digest=facts.digest,
            sha256=hashing.sha256.hexdigest(),
            size=hashing.count,
            members=members,
            content_bytes=size,
            facts=facts,
        )
        target = store.archive(facts.digest)
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished.replace(target)
    _write_manifest(info, store, key)
    return info


def _write_tar(environment: Path, hashing: _Hashing) -> tuple[int, int]:
    members = size = 0
    with (
        zstandard.ZstdCompressor(level=_LEVEL).stream_writer(hashing, closefd=False) as packed,  # type: ignore[arg-type]
        tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as tar,  # type: ignore[call-overload]
    ):
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
    return {
        "digest": info.digest,
        "sha256": info.sha256,
        "size": info.size,
        "members": info.members,
        "content_bytes": info.content_bytes,
        "facts": encode_facts(info.facts),
    }


def _write_manifest(info: ArchiveInfo, store: Store, key: bytes | None) -> None:
    body = _body(info)
    write_json(store.archive_manifest(info.digest), {**body, "mac": sign(body, key)})


def read_manifest(store: Store, digest: str, key: bytes | None) -> ArchiveInfo | None:
    """What an archive promises; None when there is none; Tampered when the signature is wrong."""
    stored = read_json(store.archive_manifest(digest))
    if stored is None:
        return None
    mac = str(stored.pop("mac", ""))
    if key and not hmac.compare_digest(mac, sign(stored, key)):
        raise Tampered(f"the signature of archive {digest} does not match", advice=_ADVICE)
    facts = decode_facts(stored.get("facts") or {})
    if facts is None or facts.digest != digest or stored.get("digest") != digest:
        raise Tampered(f"the manifest of archive {digest} is damaged", advice=_ADVICE)
    try:
        return ArchiveInfo(
            digest=digest,
            sha256=str(stored["sha256"]),
            size=int(stored["size"]),
            members=int(stored["members"]),
            content_bytes=int(stored["content_bytes"]),
            facts=facts,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise Tampered(f"the manifest of archive {digest} is damaged", advice=_ADVICE) from error


def unpack(info: ArchiveInfo, archive: Path, target: Path, python: Path) -> None:
    """Extract into `target` (which must not exist) and verify; blocking, in a stream."""
    target.mkdir(parents=True)
    with archive.open("rb") as file:
        hashing = _Hashing(file)
        try:
            _extract(hashing, info, target)
        except (zstandard.ZstdError, tarfile.TarError, EOFError, UnicodeError) as error:
            raise _refuse(info, f"is damaged ({type(error).__name__})") from error
        while hashing.read(_BLOCK):
            pass
    if hashing.count != info.size or hashing.sha256.hexdigest() != info.sha256:
        raise _refuse(info, "does not match its checksum")
    link_interpreter(target, python, info.facts)
    list_files(target)


def _refuse(info: ArchiveInfo, what: str) -> Tampered:
    return Tampered(f"archive {info.digest} {what}", advice=_ADVICE)


class _Capped(io.RawIOBase):
    """At most so many bytes out of a decompressor."""

    def __init__(self, source: Any, limit: int, refusal: Tampered) -> None:
        self._source = source
        self._left = limit
        self._refusal = refusal

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data: bytes = self._source.read(_BLOCK if size < 0 else size)
        self._left -= len(data)
        if self._left < 0:
            raise self._refusal
        return data


def _extract(hashing: _Hashing, info: ArchiveInfo, target: Path) -> None:
    limit = info.content_bytes + (info.members + 8) * _TAR_OVERHEAD
    refusal = _refuse(info, "holds more than its manifest says")
    reader = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(
        hashing, closefd=False
    )  # type: ignore[arg-type]
    capped = _Capped(reader, limit, refusal)
    root = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        with tarfile.open(fileobj=capped, mode="r|", errorlevel=2) as tar:  # type: ignore[call-overload]
            for number, member in enumerate(tar):
                if number >= info.members:
                    raise refusal
                _extract_member(tar, member, root, info)
    finally:
        os.close(root)


def _parts(member: tarfile.TarInfo, info: ArchiveInfo) -> list[str]:
    parts = member.name.rstrip("/").split("/")
    bad = member.name.startswith("/") or any(
        part in {"", ".", ".."} or "\0" in part for part in parts
    )
    if bad or len(parts) > _MAX_DEPTH:
        raise _refuse(info, f"holds the path {member.name!r}")
    return parts


def _extract_member(
    tar: tarfile.TarFile, member: tarfile.TarInfo, root: int, info: ArchiveInfo
) -> None:
    if not (member.isdir() or member.isreg()) or member.issparse():
        raise _refuse(info, f"holds {member.name!r}, which is neither a file nor a directory")
    *folders, name = _parts(member, info)
    if member.isdir():
        os.close(_descend(root, [*folders, name]))
        return
    parent = _descend(root, folders)
    try:
        _write_file(tar, member, parent, name)
    finally:
        os.close(parent)


def _descend(root: int, folders: list[str]) -> int:
    """Walk down by descriptors, through real directories only; answers an open one."""
    here = os.dup(root)
    for folder in folders:
        try:
            os.mkdir(folder, 0o755, dir_fd=here)
        except FileExistsError:
            pass
        try:
            below = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=here)
        finally:
            os.close(here)
        here = below
    return here


def _write_file(tar: tarfile.TarFile, member: tarfile.TarInfo, parent: int, name: str) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    source = tar.extractfile(member)
    assert source is not None
    with os.fdopen(os.open(name, flags, member.mode & 0o755 | 0o600, dir_fd=parent), "wb") as file:
        shutil.copyfileobj(source, file, _BLOCK)
        file.flush()
        os.utime(file.fileno(), (member.mtime, member.mtime))


def link_interpreter(target: Path, python: Path, facts: Facts) -> None:
    """The links of a virtualenv, made new: an archive holds none."""
    minor = ".".join(facts.python_version.split(".")[:2])
    folder = target / "bin"
    folder.mkdir(exist_ok=True)
    for name, meaning in (
        ("python", str(python)),
        ("python3", "python"),
        (f"python{minor}", "python"),
    ):
        (folder / name).symlink_to(meaning)
    if not (target / "lib64").exists():
        (target / "lib64").symlink_to("lib")
