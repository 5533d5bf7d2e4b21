"""Reads a gzipped tar as a stream. It accepts directories and regular files within limits.

    file -> sha256 -> gzip -> Unpacked -> members() -> Member, and its bytes through `take`

The standard library's `TarInfo` reads the headers and checks their checksums. The rest of `tarfile`
is not used: it copies every byte several times, and follows links when it extracts. An archive is
not trusted: names, kinds, sizes and numbers are checked before they are used.
"""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Final

from flashpool.envs.archives.extraction import Hashing
from flashpool.envs.archives.tar_stream import BLOCK, Member, padding
from flashpool.frontends.apps.errors import ArtifactIncomplete, ArtifactRefused, UnpackingStopped

__all__ = ["ArchiveLimits", "Unpacked", "members"]

_MB: Final = 1 << 20
#: Up to this size, the ratio is not checked.
_FREE_OF_RATIO: Final = 64 * _MB
_GZIP: Final = 31
_MAGIC: Final = b"\x1f\x8b"
_HEADER: Final = 512
_LONGEST_RECORDS: Final = 1 << 20
_DEEPEST: Final = 40
_LONGEST_NAME: Final = 255
_DAMAGED: Final = "it may still be on its way, or was cut off; build and upload it again"
_NOT_PACKED: Final = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a FIFO",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}
#: Headers that describe the member after them. A global header contains at most a comment.
_AHEAD: Final = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)
_MOST_AHEAD: Final = 4
_LATEST: Final = 1 << 33
_FILES: Final = (tarfile.REGTYPE, tarfile.AREGTYPE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveLimits:
    """The limits of the settings on what an archive unpacks to."""

    max_mb: int
    max_files: int
    max_ratio: int


class Unpacked:
    """The tar inside the gzip, in portions of any size; raises beyond the limits."""

    def __init__(
        self, file: IO[bytes], where: str, limits: ArchiveLimits, stop: Callable[[], bool]
    ) -> None:
        self.where = where
        self.limits = limits
        self.packed = Hashing(file)
        self._stop = stop
        self._gzip = zlib.decompressobj(_GZIP)
        self._rest = b""
        self._total = 0
        self._chunk = memoryview(b"")

    def take(self, size: int) -> bytes:
        """Return exactly ``size`` bytes."""
        if size <= len(self._chunk):
            data, self._chunk = self._chunk[:size], self._chunk[size:]
            return bytes(data)
        parts, missing = [self._chunk], size - len(self._chunk)
        while missing:
            if not self._fill():
                raise self.incomplete("ends too early")
            parts.append(self._chunk[:missing])
            self._chunk = self._chunk[len(parts[-1]) :]
            missing -= len(parts[-1])
        return b"".join(parts)

    def drain(self) -> None:
        """Read to the end of the file: data after the tar counts towards the limits, too."""
        while self._fill():
            pass
        while self.packed.read(BLOCK):
            pass

    def refused(self, why: str) -> ArtifactRefused:
        return ArtifactRefused(f"artifact {self.where} is refused: {why}")

    def incomplete(self, why: str) -> ArtifactIncomplete:
        return ArtifactIncomplete(f"artifact {self.where} cannot be read: it {why}; {_DAMAGED}")

    def _fill(self) -> bool:
        """Unpack the next chunk; return False at the end of the stream."""
        if self._stop():
            raise UnpackingStopped(
                f"artifact {self.where} is not unpacked: this process is exiting"
            )
        while not self._gzip.eof or self._begin_next():
            # At the end of the file, zlib may still hold the end of a block.
            packed = self._rest or self.packed.read(BLOCK // 4)
            self._chunk = memoryview(self._decompress(packed))
            if self._chunk:
                return True
            if not packed and not self._gzip.eof:
                raise self.incomplete("ends too early")
        return False

    def _begin_next(self) -> bool:
        """Begin the next gzip member, if there is one: parallel packers write several in a row."""
        self._rest = self._gzip.unused_data or self.packed.read(BLOCK // 4)
        if not self._rest.startswith(_MAGIC):
            return False
        self._gzip = zlib.decompressobj(_GZIP)
        return True

    def _decompress(self, packed: bytes) -> bytes:
        try:
            # At most a block at a time: a few bytes may unpack to gigabytes.
            plain = self._gzip.decompress(packed, BLOCK)
        except zlib.error as error:
            damaged = "is not a gzip file" if not self._total else "is damaged"
            raise self.incomplete(f"{damaged} ({error})") from None
        self._rest = self._gzip.unconsumed_tail
        self._total += len(plain)
        self._check_size()
        return plain

    def _check_size(self) -> None:
        limits = self.limits
        if self._total > limits.max_mb * _MB:
            raise self.refused(
                f"it unpacks to more than {limits.max_mb} MiB (FLASHPOOL_ARTIFACT_MAX_MB)"
            )
        if self._total > max(_FREE_OF_RATIO, self.packed.count * limits.max_ratio):
            raise self.refused(
                f"it unpacks to more than {limits.max_ratio} times its size "
                "(FLASHPOOL_ARTIFACT_MAX_RATIO)"
            )


def members(source: Unpacked) -> Iterator[Member]:
    """Yield each member; take its bytes and their padding before asking for the next."""
    names = _Names(source)
    attributes: dict[str, str] = {}
    ahead = 0
    while (block := source.take(_HEADER)).strip(b"\0"):
        header = _header(block, source)
        if header.type in _AHEAD:
            ahead += 1
            if ahead > _MOST_AHEAD:
                raise source.refused("it holds a name without an end")
            attributes |= _attributes(header, source)
            continue
        member = _member(header, attributes, names)
        attributes, ahead = {}, 0
        if member is not None:
            yield member


class _Names:
    """The names so far; refuses a name that appears twice, or is below a file."""

    def __init__(self, source: Unpacked) -> None:
        self._source = source
        #: Path -> whether it is a file.
        self._seen: dict[tuple[str, ...], bool] = {}
        #: All directories, including those that only members imply.
        self._folders: set[tuple[str, ...]] = set()
        self._count = 0

    def refused(self, why: str) -> ArtifactRefused:
        return self._source.refused(why)

    def check(self, name: str, is_file: bool) -> tuple[str, ...]:
        """Return the parts of a name, checked; empty for the root itself."""
        self._count += 1
        if self._count > self._source.limits.max_files:
            raise self.refused(
                f"it holds more than {self._source.limits.max_files} files and directories "
                "(FLASHPOOL_ARTIFACT_MAX_FILES)"
            )
        parts = self._parts(name)
        if parts in self._seen or (is_file and (parts in self._folders or not parts)):
            raise self.refused(f"it holds {name!r} twice")
        self._seen[parts] = is_file
        self._enter(parts[:-1], name)
        if not is_file:
            self._enter(parts, name)
        return parts

    def _enter(self, folder: tuple[str, ...], name: str) -> None:
        while folder and folder not in self._folders:
            if self._seen.get(folder):
                raise self.refused(f"it holds {name!r}, below a file of that name")
            self._folders.add(folder)
            folder = folder[:-1]

    def _parts(self, name: str) -> tuple[str, ...]:
        parts = name.removeprefix("./").rstrip("/").split("/")
        if name.startswith("/"):
            raise self.refused(f"it holds {name!r}, an absolute path")
        if ".." in parts:
            raise self.refused(f"it holds {name!r}, which leads outside the app")
        if parts in ([""], ["."]):
            return ()
        if not set(parts).isdisjoint({"", "."}) or "\0" in name:
            raise self.refused(f"it holds {name!r}, which is not a plain path")
        longest = max(len(part.encode("utf-8", "surrogateescape")) for part in parts)
        if len(parts) > _DEEPEST or longest > _LONGEST_NAME:
            raise self.refused(f"it holds {name[:200]!r}, whose path is too long")
        return tuple(parts)


def _header(block: bytes, source: Unpacked) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError, OverflowError) as error:
        raise source.incomplete(f"is not a tar, or is damaged ({error})") from None


def _attributes(header: tarfile.TarInfo, source: Unpacked) -> dict[str, str]:
    """Return the extended headers before a member, for values that do not fit its own header."""
    if not 0 <= header.size <= _LONGEST_RECORDS:
        raise source.refused("it holds a name without an end")
    data = source.take(header.size)
    source.take(padding(header.size))
    if header.type == tarfile.GNUTYPE_LONGNAME:
        return {"path": data.rstrip(b"\0").decode("utf-8", "surrogateescape")}
    return _records(data, source) if header.type == tarfile.XHDTYPE else {}


def _records(data: bytes, source: Unpacked) -> dict[str, str]:
    """Parse PAX records: ``<length> <key>=<value>``, each ended by a line feed."""
    found = {}
    while data.strip(b"\0"):
        length, _, rest = data.partition(b" ")
        if not length.isdigit() or len(length) > 7:
            raise source.incomplete("is damaged (a record has no length)")
        size = int(length) - len(length) - 1
        key, equals, value = rest[: max(size, 0)].partition(b"=")
        if not equals or not value.endswith(b"\n") or size > len(rest):
            raise source.incomplete("is damaged (a record is cut off)")
        found[key.decode("utf-8", "replace")] = value[:-1].decode("utf-8", "surrogateescape")
        data = rest[size:]
    return found


def _member(header: tarfile.TarInfo, attributes: dict[str, str], names: _Names) -> Member | None:
    """Return the member to extract, or None for the root, which exists already."""
    name = attributes.get("path", header.name)
    is_file = header.type in _FILES and not header.name.endswith("/")
    if not is_file and header.type not in (*_FILES, tarfile.DIRTYPE):
        kind = _NOT_PACKED.get(header.type, f"of the unknown kind {header.type!r}")
        raise names.refused(
            f"it holds {name!r}, which is {kind}: only files and directories are accepted"
        )
    if any(key.startswith("GNU.sparse") for key in attributes):
        raise names.refused(f"it holds {name!r}, which is a sparse file")
    size = _size(attributes.get("size", ""), header.size, name, names) if is_file else 0
    parts = names.check(name, is_file)
    if not parts:
        return None
    return Member(parts, is_file, size, _time(header), header.mode & 0o755)


def _time(header: tarfile.TarInfo) -> int:
    return min(max(0, int(header.mtime)), _LATEST)


def _size(said: str, in_header: int, name: str, names: _Names) -> int:
    size = int(said) if said.isascii() and said.isdigit() and len(said) < 16 else in_header
    if size < 0 or (said and size == in_header and said != str(size)):
        raise names.refused(f"it holds {name!r}, whose size is not a number")
    return size
