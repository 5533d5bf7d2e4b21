"""Which instances live on which server: one file per server, on the volume that they share.

    <volume>/flashpool/instances/<holder>.json
        {"pod": "x7k2", "instances": {"<hash of the instance's id>": [last used, lives]}}

A server writes its own file and reads those of the others. Ids are hashed, so that they are not
readable on the volume. Heartbeats in ``holders/`` show whether a server is alive, as for
environments. A file stays after its server is gone, because others need to know that an instance
lived there.

The files are not trusted. A file counts only if each part has the expected form, and the number of
files, their entries and their sizes are bounded.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from flashpool.envs.settings import EnvSettings
from flashpool.envs.store.apart import keep_apart
from flashpool.envs.store.foreign_json import parse_object
from flashpool.envs.store.liveness import Liveness, parse_holder
from flashpool.envs.store.locations import file_system_of, is_remote
from flashpool.envs.store.volume_files import Folder
from flashpool.pool.instance_records import Elsewhere

#: Instances in a file: those used last.
MOST_INSTANCES: Final = 1000
#: Files of other servers that are read: those written last.
MOST_FILES: Final = 64
#: Largest size of a file in bytes; a full file has some 60,000.
_LARGEST: Final = 1 << 17
#: Seconds after its last use for which an instance that no longer lives is remembered.
KEPT_S: Final = 7 * 86_400.0
#: Seconds by which the clock of another server may be ahead.
_AHEAD_S: Final = 86_400.0
_SUFFIX: Final = ".json"
#: The name of a file, or of a file that is still being written.
_FILE: Final = re.compile(r"([^.]+)\.json|\.([^.]+)\.json\.[0-9a-f]{8}")
_POD: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_KEY: Final = re.compile(r"[0-9a-f]{32}")


def key_of(instance: str) -> str:
    """Return the hash that stands for an instance's id in a file."""
    return hashlib.sha256(instance.encode("utf-8", "surrogatepass")).hexdigest()[:32]


class Known(NamedTuple):
    """What a server's file says about one of its instances."""

    last_used_at: float
    lives: bool


class InstanceFiles:
    """The files of one volume, for one server; every method blocks."""

    def __init__(self, volume: Path, settings: EnvSettings, pod: str) -> None:
        root = volume / "flashpool"
        self._volume = volume
        self._root = root
        self._pod = pod if _POD.fullmatch(pod) else "unknown"
        self._folder = Folder(root, "instances")
        self._holders = Liveness(
            root / "holders",
            heartbeat_s=settings.beat_s,
            stale_s=settings.stale_s,
            claim_stale_s=settings.claim_stale_s,
        )
        self._written: dict[str, Known] = {}
        self._beaten = False
        #: By file: its time and size when it was read, and its content.
        self._read: dict[str, tuple[tuple[int, int], _Content]] = {}

    def open(self) -> None:
        """Choose how the volume is accessed. Call this before all other methods."""
        if is_remote(file_system_of(self._volume)):
            keep_apart(self._root)

    def exchange(self, mine: Mapping[str, Known]) -> dict[str, Elsewhere]:
        """Write this server's instances, by key; return those of all other servers, by key."""
        own = self._holders.me + _SUFFIX
        found = self._folder.files(_holder_of)
        others = [(name, status) for name, status in found if name != own and name[0] != "."]
        if mine or others:
            self._holders.beat()
            self._beaten = True
        if mine and mine != self._written:
            self._write(mine)
        self._clean(others, [name for name, _status in found if name[0] == "."])
        newest = others[-MOST_FILES:]
        read = {
            name: (stamp, self._content(name, stamp))
            for name, status in newest
            for stamp in [(status.st_mtime_ns, status.st_size)]
        }
        self._read = read
        return _merged(
            (content, not self._holders.dead(_holder_of(name)))
            for name, (_stamp, content) in read.items()
        )

    def close(self, mine: Mapping[str, Known]) -> None:
        """Record that this server's instances have ended, and stop the heartbeat."""
        if mine:
            self._write({key: one._replace(lives=False) for key, one in mine.items()})
        if self._beaten:
            self._holders.close()

    def _write(self, mine: Mapping[str, Known]) -> None:
        instances = {key: [one.last_used_at, one.lives] for key, one in mine.items()}
        text = json.dumps({"pod": self._pod, "instances": instances}, separators=(",", ":"))
        self._folder.write(self._holders.me + _SUFFIX, [text.encode("ascii")])
        self._written = dict(mine)

    def _content(self, name: str, stamp: tuple[int, int]) -> _Content:
        before = self._read.get(name)
        if before is not None and before[0] == stamp:
            return before[1]
        try:
            return parse(self._folder.read(name, _LARGEST))
        except OSError:
            # The file is gone, or larger than any file that a server writes.
            return _Content("", {})

    def _clean(self, others: list[tuple[str, Any]], unfinished: list[str]) -> None:
        """Delete files of servers that are gone: old files, and those beyond the bound."""
        if not self._beaten:
            return
        oldest = self._holders.now() - KEPT_S * 1e9
        beyond = len(others) - MOST_FILES
        unwanted = [
            name
            for number, (name, status) in enumerate(others)
            if number < beyond or status.st_mtime_ns < oldest
        ]
        for name in (*unwanted, *unfinished):
            if self._holders.dead(_holder_of(name)):
                self._folder.remove(name)


class _Content(NamedTuple):
    """The content of one file."""

    pod: str
    instances: Mapping[str, Known]


def parse(data: bytes) -> _Content:
    """Parse the entries that have the expected form; return no entries if the file has not."""
    value = parse_object(data) or {}
    pod, instances = value.get("pod"), value.get("instances")
    if not (isinstance(pod, str) and _POD.fullmatch(pod) and isinstance(instances, dict)):
        return _Content("", {})
    latest = time.time() + _AHEAD_S
    entries = itertools.islice(instances.items(), MOST_INSTANCES)
    return _Content(pod, dict(_sound(entries, latest)))


def _sound(entries: Iterable[tuple[Any, Any]], latest: float) -> Iterator[tuple[str, Known]]:
    for key, entry in entries:
        if not (_KEY.fullmatch(key) and isinstance(entry, list) and len(entry) == 2):
            continue
        at, lives = entry
        number = isinstance(at, int | float) and not isinstance(at, bool)
        if number and 0 <= at <= latest and isinstance(lives, bool):
            yield key, Known(float(at), lives)


def _merged(contents: Iterable[tuple[_Content, bool]]) -> dict[str, Elsewhere]:
    """Return, by key, the place where an instance lives, or else where it was used last."""
    oldest = time.time() - KEPT_S
    found: dict[str, Elsewhere] = {}
    for content, alive in contents:
        for key, one in content.instances.items():
            there = Elsewhere(content.pod, one.lives and alive, one.last_used_at)
            before = found.get(key)
            if not there.lives and there.last_used_at < oldest:
                continue
            if before is None or _rank(there) > _rank(before):
                found[key] = there
    return found


def _rank(one: Elsewhere) -> tuple[bool, float]:
    return one.lives, one.last_used_at


def _holder_of(name: str) -> str:
    """Return the server whose file this is, even if still being written; empty for other files."""
    found = _FILE.fullmatch(name)
    holder = "" if found is None else found[1] or found[2]
    return holder if parse_holder(holder) is not None else ""
