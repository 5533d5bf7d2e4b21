"""Detects that an environment was replaced by another copy with the same digest.

If a volume disappeared and came back, or other pods write to it, an environment may have been
rebuilt under the same name. Processes that run in the old copy remember its directories, and cannot
find modules that they have not imported yet.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from .apart import carried_out
from .layout import Store
from .manifest import FACTS

__all__ = ["Copies"]


class Copies:
    """The copies that a process has seen, identified by when their facts were written."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._written: dict[str, int] = {}

    def is_the_same(self, digest: str) -> bool:
        """Return whether an environment exists and is the copy seen last; blocking."""
        written = _written(self._store.environment(digest) / FACTS)
        if written is None:
            self._written.pop(digest, None)
            return False
        if self._written.setdefault(digest, written) == written:
            return True
        self._written.pop(digest, None)
        return False

    def forget_all_but(self, digests: Collection[str]) -> None:
        """Forget all other environments."""
        for digest in self._written.keys() - set(digests):
            self._written.pop(digest, None)


@carried_out
def _written(facts: Path) -> int | None:
    try:
        return os.stat(facts).st_mtime_ns
    except OSError:
        return None
