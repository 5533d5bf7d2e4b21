"""The source of a live API, as its client sent it, and the store of the last accepted source.

    POST /_runpod/sync {"source", "resource", "dependencies", "system_dependencies"}
                                                                  `--> SyncedSource
                                                                            |
    <local>/live-apis/<key>.json    always, for the next server          <--+
    <volume>/flashpool/live-apis/   signed, if FLASHPOOL_VOLUME_KEY is set <'

The client sends a source once for each change, and never again: not to a server that was restarted,
nor to a second server of the endpoint. The key is a hash of endpoint, app, resource and generation,
so a source never outlives its session.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from flashpool.envs.store.locations import local_places, volume_of
from flashpool.frontends.apps.regular_files import read_regular
from flashpool.pool.errors import InvalidRequest

from .api_folders import FOLDER

if TYPE_CHECKING:
    from flashpool.frontends.settings.table import Settings

__all__ = ["SourceStore", "SyncedSource"]

_KEYED_BY: Final = (
    *("RUNPOD_ENDPOINT_ID", "RUNPOD_DEV_APP", "RUNPOD_DEV_RESOURCE", "RUNPOD_DEV_GENERATION"),
)
_MOST_BYTES: Final = 32 * 1024 * 1024
_MOST_ENTRIES: Final = 1000
_NAME_LIMIT: Final = 256


class SyncedSource(msgspec.Struct, frozen=True, kw_only=True):
    """A module, and the name of its API."""

    source: str
    resource: str
    dependencies: list[str] | None = None
    system_dependencies: list[str] | None = None
    #: When the source was accepted, in seconds since 1970.
    taken_at: float = 0.0

    @property
    def digest(self) -> str:
        """Return the digest that the client computes."""
        return hashlib.sha256(self.source.encode()).hexdigest()


def read_sync(body: bytes) -> SyncedSource:
    """Decode the body that a client sent.

    Raises:
        InvalidRequest: the body is not a valid sync.
    """
    try:
        found = msgspec.json.decode(body, type=SyncedSource)
        found.source.encode()
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise InvalidRequest(f"The body of a sync cannot be read: {error}") from None
    if not found.source or "\0" in found.source:
        raise InvalidRequest("source must be the text of a module")
    if not 0 < len(found.resource) <= _NAME_LIMIT:
        raise InvalidRequest(f"resource must be a name of at most {_NAME_LIMIT} characters")
    if any(
        len(one or ()) > _MOST_ENTRIES for one in (found.dependencies, found.system_dependencies)
    ):
        raise InvalidRequest("dependencies or system_dependencies are too large")
    return msgspec.structs.replace(found, taken_at=time.time())


class SourceStore:
    """Keeps the last accepted source; all methods block."""

    def __init__(self, settings: Settings, environ: Mapping[str, str]) -> None:
        told = "\0".join(environ.get(name, "") for name in _KEYED_BY)
        self._name = f"{hashlib.sha256(told.encode()).hexdigest()}.json"
        self._places = settings.to_env_settings()
        self._key = settings.volume_key.encode()
        #: Whether other servers of the endpoint may read the sources kept here.
        self.is_shared = bool(self._key)

    @cached_property
    def _local(self) -> Path:
        return local_places(self._places, "").local / FOLDER / self._name

    @cached_property
    def _shared(self) -> Path | None:
        volume = volume_of(self._places) if self._key else None
        return None if volume is None else volume / "flashpool" / FOLDER / self._name

    def keep(self, source: SyncedSource) -> None:
        """Replace the source that is kept.

        Raises:
            OSError: the source cannot be written to local disk or to the volume.
        """
        body = msgspec.json.encode(source)
        _write(self._local, body)
        if self._shared is not None:
            _write(self._shared, self._signature(body) + b"\n" + body)

    def find(self) -> SyncedSource | None:
        """Return the newest kept source with a valid signature, or None."""
        found = [one for one in (self._of_local(), self._of_volume()) if one is not None]
        return max(found, key=lambda one: one.taken_at, default=None)

    def _of_local(self) -> SyncedSource | None:
        with contextlib.suppress(OSError, msgspec.DecodeError, UnicodeError):
            return msgspec.json.decode(read_regular(self._local, _MOST_BYTES), type=SyncedSource)
        return None

    def _of_volume(self) -> SyncedSource | None:
        if self._shared is None:
            return None
        with contextlib.suppress(OSError, msgspec.DecodeError, UnicodeError):
            signature, _, body = read_regular(self._shared, _MOST_BYTES).partition(b"\n")
            if hmac.compare_digest(signature, self._signature(body)):
                return msgspec.json.decode(body, type=SyncedSource)
        return None

    def _signature(self, body: bytes) -> bytes:
        # The name is signed, too: a source of one endpoint is invalid for another.
        told = self._name.encode() + b"\n" + body
        return hmac.new(self._key, told, "sha256").hexdigest().encode()


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    handle = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(handle, "wb") as file:
            file.write(data)
        unfinished.replace(path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise
