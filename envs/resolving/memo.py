"""From request key to digest: in this process, and on the volume for all pods.

    Memo         raw Spec -> digest, for the hot path: two dictionary look-ups
    StoredMemo   requests/<key>.json -> digest, with the age of the resolution

An entry has a lifetime, because `numpy` means another version next month. An old entry on the
volume is still useful: if the index cannot be reached, the versions of last time are better than an
error. With a volume key, an entry that is unsigned, or signed for another request, is ignored.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec

from flashpool.envs.store.layout import Store, is_hex_id, read_json, write_json
from flashpool.envs.store.liveness import Liveness
from flashpool.envs.store.manifest import sign, signed_by

from .spec import Spec

__all__ = ["Memo", "Remembered", "StoredMemo"]

_MOST: Final = 4096
#: Bytes of an entry: some hundreds of requirements.
_LARGEST: Final = 1 << 20


class Memo:
    """Digest per raw spec, on the monotonic clock; used on one loop only."""

    def __init__(self, lifetime_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._lifetime_s = lifetime_s
        self._clock = clock
        self._known: OrderedDict[Spec, tuple[float, str]] = OrderedDict()

    def get(self, spec: Spec) -> str | None:
        """The digest this spec meant a moment ago."""
        found = self._known.get(spec)
        if found is None or spec.refresh:
            return None
        if self._clock() - found[0] > self._lifetime_s:
            del self._known[spec]
            return None
        return found[1]

    def put(self, spec: Spec, digest: str, *, age_s: float = 0.0) -> None:
        """Remember; `age_s` is how old the resolution already was."""
        self._known[spec] = (self._clock() - age_s, digest)
        self._known.move_to_end(spec)
        while len(self._known) > _MOST:
            self._known.popitem(last=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Remembered:
    """The volume's memory of a request."""

    digest: str
    age_s: float
    fresh: bool


class _StoredEntry(msgspec.Struct, frozen=True):
    """The fields that are read from a file; the file may have more."""

    digest: str
    resolved: float | None = None
    mac: str = ""


class StoredMemo:
    """The pods' common memory; every method blocks."""

    def __init__(
        self,
        store: Store,
        lifetime_s: float,
        key: bytes | None = None,
        holders: Liveness | None = None,
    ) -> None:
        """``holders``: who knows the volume's clock, where one can write there."""
        self._store = store
        self._lifetime_s = lifetime_s
        self._key = key
        self._holders = holders

    def get(self, key: str) -> Remembered | None:
        """Return what a request meant; an entry from the future counts as old where clocks are
        compared.
        """
        value = read_json(self._store.request(key), _LARGEST)
        if value is None:
            return None
        try:
            entry = msgspec.convert(value, _StoredEntry)
        except msgspec.ValidationError:
            return None
        value.pop("mac", None)
        if self._key and not signed_by(self._key, {**value, "request": key}, entry.mac):
            return None
        if not is_hex_id(entry.digest):
            return None
        age = self._age(key, entry.resolved)
        fresh = 0 <= age <= self._lifetime_s
        return Remembered(digest=entry.digest, age_s=max(age, 0.0), fresh=fresh)

    def _age(self, key: str, resolved: float | None) -> float:
        """Seconds; less than 0 for an entry from the future, or of no known age."""
        told = -1.0 if resolved is None else time.time() - resolved
        if self._holders is None:
            return told
        # Clocks of pods differ, but the volume has one clock. Any process may set its time stamps,
        # though.
        stamped = self._holders.age_of(self._store.request(key))
        return max(told, stamped) if self._key else stamped

    def put(self, key: str, digest: str, requirements: tuple[str, ...]) -> None:
        """Remember for all pods; the requirements are there for people to read."""
        value = {"digest": digest, "resolved": time.time(), "requirements": list(requirements)}
        mac = sign({**value, "request": key}, self._key)
        write_json(self._store.request(key), {**value, "mac": mac})
