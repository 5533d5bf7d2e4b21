"""Trims folders on a volume that only grow: resolutions, and lists of imported modules.

    requests/<key>.json, preloads/<digest>.json --count, age--> delete those written longest ago

No entry is needed for long: a request is resolved again, and imports are learned again. Ages are
measured with the file system's clock. Preloads of an existing environment are kept.
"""

from __future__ import annotations

import re
from collections.abc import Set as AbstractSet
from typing import Final

from .layout import ID_LENGTH, Store
from .liveness import Liveness
from .volume_files import Folder

__all__ = ["trim"]

_ENTRY: Final = re.compile(rf"([0-9a-f]{{{ID_LENGTH}}})\.json")
#: Most entries of a kind. Checking so many takes about a second on a network volume.
MOST_ENTRIES: Final = 4096
#: An old entry of a request is useful only while the index is out of reach.
LONGEST_S: Final = 30 * 24 * 3600.0


def trim(store: Store, holders: Liveness) -> int:
    """Delete files that are too old or too many; return their number. Blocking."""
    there = {*store.digests(), *store.archived()}
    requests, preloads = Folder(store.root, "requests"), Folder(store.root, "preloads")
    return _trimmed(requests, holders, frozenset()) + _trimmed(preloads, holders, there)


def _trimmed(folder: Folder, holders: Liveness, kept: AbstractSet[str]) -> int:
    found = folder.files(_ENTRY.fullmatch)
    too_many = len(found) - MOST_ENTRIES
    limit = holders.now() - int(LONGEST_S * 1e9)
    gone = 0
    for number, (name, status) in enumerate(found):
        if number < too_many:
            gone += folder.remove(name)
        elif status.st_mtime_ns >= limit:
            break  # all that follow are younger
        elif name.removesuffix(".json") not in kept:
            gone += folder.remove(name)
    return gone
