"""Reads a tar from a stream of bytes. It accepts directories and regular files only.

    Plain   bytes from a decompressor, at most as many as were stated
    members headers -> Member; the caller takes the bytes of each before the next

The standard library's reader spends more time on the headers of an environment's ten thousand files
than the disk on their contents. This reader is strict, because it only reads what `archive.py`
writes: ustar headers, and PAX records for long paths. Checksums of headers are ignored: the
checksum of the whole archive is compared before any file is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from flashpool.envs.errors import Tampered

__all__ = ["BLOCK", "Member", "Plain", "Promise", "members", "padding"]

#: Bytes that are read at a time.
BLOCK: Final = 1 << 20
_RECORD: Final = 512
_MAX_DEPTH: Final = 40
_LONGEST_RECORDS: Final = 1 << 16
#: Room for tar's headers: 512 bytes a member, padding, long names.
_TAR_OVERHEAD: Final = 4096
_ADVICE: Final = "the archive is set aside, and the environment is built again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """The properties that an archive must have; each is checked."""

    name: str
    sha256: str
    size: int
    members: int
    content_bytes: int

    def broken(self, how: str) -> Tampered:
        return Tampered(f"archive {self.name} {how}", advice=_ADVICE)


@dataclass(frozen=True, slots=True)
class Member:
    """One file or directory."""

    parts: tuple[str, ...]
    is_file: bool
    size: int
    mtime: int
    mode: int


class Plain:
    """Bytes from a decompressor, in portions of any size."""

    def __init__(self, source: Any, promise: Promise) -> None:
        self._source = source
        self._promise = promise
        self._left = promise.content_bytes + (promise.members + 8) * _TAR_OVERHEAD
        self._chunk = b""
        self._at = 0

    def take(self, size: int) -> bytes:
        """Return exactly ``size`` bytes; a stream that ends early is damaged."""
        end = self._at + size
        if end <= len(self._chunk):
            data = self._chunk[self._at : end]
            self._at = end
            return data
        parts = [self._chunk[self._at :]]
        missing = size - len(parts[0])
        while missing:
            if not self._fill():
                raise self._promise.broken("ends too early")
            parts.append(self._chunk[:missing])
            self._at = len(parts[-1])
            missing -= self._at
        return b"".join(parts)

    def _fill(self) -> bool:
        self._chunk = self._source.read(BLOCK)
        self._at = 0
        self._left -= len(self._chunk)
        if self._left < 0:
            raise self._promise.broken("holds more than its manifest says")
        return bool(self._chunk)

    def drain(self) -> None:
        """Read the rest, which must not exceed the stated size either."""
        while self._fill():
            pass


def padding(size: int) -> int:
    """Return the number of bytes between content of this size and the next header."""
    return -size % _RECORD


def members(plain: Plain, promise: Promise) -> Iterator[Member]:
    """Yield each member; take its `size` bytes and the padding before the next one."""
    count = 0
    long: dict[bytes, bytes] = {}
    while (header := plain.take(_RECORD)).strip(b"\0"):
        kind, size = header[156:157], _number(header[124:136], promise)
        if kind == b"x":
            if size > _LONGEST_RECORDS:
                raise promise.broken("is damaged (a path has no end)")
            long = _records(plain.take(size), promise)
            plain.take(padding(size))
            continue
        count += 1
        if count > promise.members:
            raise promise.broken("holds more than its manifest says")
        yield _member(header, kind, size, long, promise)
        long = {}


def _member(
    header: bytes, kind: bytes, size: int, long: dict[bytes, bytes], promise: Promise
) -> Member:
    path = long.get(b"path") or _path(header)
    name = path.decode("utf-8", "surrogateescape")
    if kind not in {b"0", b"\0", b"5"} or any(key.startswith(b"GNU.") for key in long):
        raise promise.broken(f"holds {name!r}, which is neither a file nor a directory")
    is_file = kind != b"5"
    if b"size" in long:
        size = _decimal(long[b"size"], promise)
    return Member(
        _parts(name, promise),
        is_file,
        size if is_file else 0,
        _number(header[136:148], promise),
        _number(header[100:108], promise) & 0o755,
    )


def _path(header: bytes) -> bytes:
    name = header[:100].rstrip(b"\0")
    prefix = header[345:500].rstrip(b"\0")
    return prefix + b"/" + name if prefix else name


def _parts(name: str, promise: Promise) -> tuple[str, ...]:
    parts = tuple(name.rstrip("/").split("/"))
    if len(parts) > _MAX_DEPTH or "\0" in name or any(part in {"", ".", ".."} for part in parts):
        raise promise.broken(f"holds the path {name!r}")
    return parts


def _number(field: bytes, promise: Promise) -> int:
    text = field.strip(b"\0 ")
    if not text:
        return 0
    if not text.isdigit() or b"8" in text or b"9" in text:
        raise promise.broken("is damaged (an invalid header)")
    return int(text, 8)


def _decimal(text: bytes, promise: Promise) -> int:
    if not text.isdigit() or len(text) > 15:
        raise promise.broken("is damaged (an invalid size)")
    return int(text)


def _records(data: bytes, promise: Promise) -> dict[bytes, bytes]:
    """Parse PAX records: `<length> <key>=<value>`, each ended by a line feed."""
    found = {}
    while data.strip(b"\0"):
        length, _, rest = data.partition(b" ")
        size = _decimal(length, promise) - len(length) - 1
        key, equals, value = rest[: max(size, 0)].partition(b"=")
        if not equals or not value.endswith(b"\n"):
            raise promise.broken("is damaged (an invalid record)")
        found[key] = value[:-1]
        data = rest[size:]
    return found
