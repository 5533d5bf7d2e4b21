"""The requests of calls that failed, as files that another machine can run again.

    <volume>/flashpool/failed/<call>.request     without a volume, in the state directory

    flashpool kept request 1
    <HMAC-SHA256 of the lines below, in hexadecimal>
    {"id": .., "error_type": .., "receipt": .., "lock": [..], "env": [names], ..}
    the request's body, without the values of its variables

Arguments may contain secrets, so requests are kept only if `FLASHPOOL_KEEP_FAILED_MB` is set.
Running a request runs its code: a request without a valid signature is refused. All functions
block.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from flashpool.envs.store.volume_files import Folder, left_by_clock
from flashpool.frontends import state_places
from flashpool.frontends.settings.table import Settings

_log = logging.getLogger(__name__)

_MAGIC: Final = b"flashpool kept request 1\n"
_PURPOSE: Final = b"flashpool: requests of calls that failed"
_SUFFIX: Final = ".request"
_OURS: Final = re.compile(r"[0-9a-f]{8}-[0-9]{1,18}\.request")
_MB: Final = 1024 * 1024
#: Most bytes of a file that are read.
_MOST: Final = 4096 * _MB


class NotKept(Exception):
    """The request does not exist or cannot be trusted; the message says why, and what to do."""


class KeptRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Facts about a kept request."""

    id: str
    request_id: str
    label: str
    #: Seconds since 1970.
    at: float
    pod: str
    error_type: str
    error: str
    receipt: dict[str, Any]
    #: The digest of the request's environment, and the exact versions in it.
    environment: str
    lock: tuple[str, ...]
    #: Names of the environment variables that the call had.
    env: tuple[str, ...]
    #: Limits under which the call ran: ``run_s``, ``memory_mb``, ``result_bytes``.
    limits: dict[str, float]


class KeptRequests:
    """The folder of kept requests."""

    def __init__(self, folder: Path, key: bytes, *, most_mb: int, keep_s: float) -> None:
        self._files = Folder(folder.parent, folder.name, mode=0o700)
        self._key = key
        self._most = most_mb * _MB
        self._keep_s = keep_s

    @classmethod
    def of(cls, settings: Settings) -> KeptRequests:
        """Return the store that these settings name."""
        return cls(
            _folder(settings) / "failed",
            state_places.signing_key(settings, _PURPOSE),
            most_mb=settings.keep_failed_mb,
            keep_s=settings.keep_failed_s,
        )

    def keep(self, kept: KeptRequest, body: bytes) -> bool:
        """Write a request, deleting the oldest to make room; return False if it is too large.

        Raises:
            OSError: the request cannot be written.
        """
        signed = msgspec.json.encode(kept) + b"\n" + body
        data = _MAGIC + self._signature(signed) + b"\n" + signed
        if len(data) > self._most:
            return False
        self._make_room(len(data))
        self._files.write(f"{kept.id}{_SUFFIX}", [data])
        return True

    def _make_room(self, size: int) -> None:
        found = self._files.files(lambda name: _OURS.fullmatch(name) or left_by_clock(name))
        before = self._files.now() - self._keep_s if found else 0.0
        total = size + sum(status.st_size for _, status in found)
        for name, status in found:  # oldest first
            if total <= self._most and status.st_mtime >= before:
                break
            self._files.remove(name)
            total -= status.st_size

    def _signature(self, signed: bytes) -> bytes:
        return hmac.new(self._key, signed, hashlib.sha256).hexdigest().encode()

    def listed(self) -> Iterator[KeptRequest]:
        """Yield all requests with valid signatures, newest first."""
        names = [name for name, _ in self._files.files(_OURS.fullmatch)]
        for name in reversed(names):
            try:
                yield self._read(name)[0]
            except (NotKept, OSError) as error:
                _log.warning("%s: %s", name, error)

    def find(self, text: str) -> tuple[KeptRequest, bytes]:
        """Return the request, and its body, of a call's name or of its client's id.

        Raises:
            NotKept: no such request is kept, or its signature is invalid.
            OSError: the request cannot be read.
        """
        name = f"{text}{_SUFFIX}"
        if _OURS.fullmatch(name) and self._files.status(name) is not None:
            return self._read(name)
        for one in self.listed():
            if one.request_id == text:
                return self._read(f"{one.id}{_SUFFIX}")
        raise NotKept(
            f"No request of call {text!r} is kept in {self._files.path}. Servers keep "
            "requests of failed calls if FLASHPOOL_KEEP_FAILED_MB is set; `flashpool "
            "replay` lists them"
        )

    def _read(self, name: str) -> tuple[KeptRequest, bytes]:
        data = self._files.read(name, _MOST)
        magic, _, rest = data.partition(b"\n")
        signature, _, signed = rest.partition(b"\n")
        if magic + b"\n" != _MAGIC:
            raise NotKept(f"{name} is not a kept request of this version of flashpool")
        if not hmac.compare_digest(signature, self._signature(signed)):
            raise NotKept(
                f"{name} is not signed with this machine's key, and replaying a request runs its code. "
                "Set the same FLASHPOOL_VOLUME_KEY here and on the server that kept it"
            )
        head, _, body = signed.partition(b"\n")
        return msgspec.json.decode(head, type=KeptRequest), body


def _folder(settings: Settings) -> Path:
    volume = state_places.volume_of(settings)
    return volume / state_places.OURS if volume else state_places.state_folder(settings)


def without_values(body: bytes) -> tuple[bytes, tuple[str, ...]]:
    """Return a request's body without the values of its variables, and their names."""
    fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    env = fields.pop("env", None)
    names = msgspec.json.decode(env, type=dict[str, Any] | None) if env is not None else None
    return msgspec.json.encode(fields), tuple(sorted(names or ()))


def to_run(kept: KeptRequest, body: bytes, env: dict[str, str]) -> bytes:
    """Return the body to run again: with the same packages and limits, and these variables."""
    fields = msgspec.json.decode(body, type=dict[str, Any])
    if kept.lock:
        fields["dependencies"] = list(kept.lock)
    limits = (("run_s", "timeout_s"), ("memory_mb", "memory_mb"))
    for name, field in limits:
        if name in kept.limits and fields.get(field) is None:
            fields[field] = kept.limits[name]
    if env:
        fields["env"] = env
    return msgspec.json.encode(fields)
