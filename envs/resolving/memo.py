"""From request key to digest: in this process, and on the volume for all pods.

    Memo         raw Spec -> digest, for the hot path: two dictionary look-ups
    StoredMemo   requests/<key>.json -> digest, with the age of the resolution

An entry has a lifetime, because `numpy` will mean another version next month. An old entry on the
volume is still useful: if the index cannot be reached, the previous versions are better than an
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
#: Most bytes of an entry: some hundreds of requirements.
_LARGEST: Final = 1 << 20


class Memo:
    """Digest per raw spec, on the monotonic clock; used on one loop only."""

    def __init__(self, lifetime_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._lifetime_s = lifetime_s
        self._clock = clock
        self._known: OrderedDict[Spec, tuple[float, str]] = OrderedDict()

    def get(self, spec: Spec) -> str | None:
        """Return the digest to which this spec was resolved recently; None if there is none."""
        found = self._known.get(spec)
        if found is None or spec.refresh:
            return None
        if self._clock() - found[0] > self._lifetime_s:
            del self._known[spec]
            return None
        return found[1]

    def put(self, spec: Spec, digest: str, *, age_s: float = 0.0) -> None:
        """Remember a resolution, which is `age_s` old."""
        self._known[spec] = (self._clock() - age_s, digest)
        self._known.move_to_end(spec)
        while len(self._known) > _MOST:
            self._known.popitem(last=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Remembered:
    """What a request was resolved to, according to the volume."""

    digest: str
    age_s: float
    fresh: bool


class _StoredEntry(msgspec.Struct, frozen=True):
    """The fields that are read from an entry's file, which may have more."""

    digest: str
    resolved: float | None = None
    mac: str = ""


class StoredMemo:
    """The memo that pods share; every method blocks."""

    def __init__(
        self,
        store: Store,
        lifetime_s: float,
        key: bytes | None = None,
        holders: Liveness | None = None,
    ) -> None:
        """``holders``: for the volume's clock; None if the volume is read-only."""
        self._store = store
        self._lifetime_s = lifetime_s
        self._key = key
        self._holders = holders

    def get(self, key: str) -> Remembered | None:
        """Return what a request was resolved to.

        If the volume's clock is unknown, an entry from the future counts as old.
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
        """Return an entry's age in seconds; negative if it is from the future or unknown."""
        told = -1.0 if resolved is None else time.time() - resolved
        if self._holders is None:
            return told
        # The clocks of pods differ, but the volume has one clock. However, any process may change
        # the time stamps there.
        stamped = self._holders.age_of(self._store.request(key))
        return max(told, stamped) if self._key else stamped

    def put(self, key: str, digest: str, requirements: tuple[str, ...]) -> None:
        """Remember for all pods; the requirements are only for people who read the file."""
        value = {"digest": digest, "resolved": time.time(), "requirements": list(requirements)}
        mac = sign({**value, "request": key}, self._key)
        write_json(self._store.request(key), {**value, "mac": mac})
