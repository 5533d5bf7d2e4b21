"""Claims between processes and pods: one build, however many request it.

    claims/<digest>        names the holder that builds
    claims/<request key>   names the holder that has begun a build before it knew the digest

A claim only saves work. A process that finds the claim of a stalled holder moves the claim away and
builds. If the old builder continues later, both finish, the first rename wins, and the other
directory is deleted. Nothing depends on file locks, which are unreliable on network file systems.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final

from .apart import carried_out
from .layout import Store, remove_tree
from .liveness import Liveness
from .volume_files import in_folder

__all__ = ["Claims"]

_log = logging.getLogger(__name__)

_MAX_NAME: Final = 200


class Claims:
    """The claims of one store; every method blocks."""

    def __init__(self, store: Store, holders: Liveness) -> None:
        self._store = store
        self._holders = holders

    def take(self, digest: str) -> bool:
        """Claim the build; return False while a living process has the claim."""
        path = self._store.claim(digest)
        if self._create(path):
            return True
        owner = self.owner(digest)
        if owner is None and not _is_other(path):
            return self._create(path)  # released in between; if not, ask again later
        if owner == self._holders.me:
            return True
        if owner is not None and not self._holders.stalled(owner):
            return False
        self._move_away(path)
        return self._create(path)

    def owner(self, digest: str) -> str | None:
        """Return the holder that has the claim, or None."""
        folder, name = in_folder(self._store.claim(digest))
        try:
            owner = folder.link_of(name)
        except OSError:
            return None
        return None if owner is None else owner[:_MAX_NAME]

    def elsewhere(self, key: str) -> bool:
        """Return whether another living process has the claim; remove the claim of a dead one."""
        owner = self.owner(key)
        if owner is None or owner == self._holders.me:
            return False
        if self._holders.stalled(owner):
            self._move_away(self._store.claim(key))
            return False
        return True

    def release(self, digest: str) -> None:
        """Release the claim, unless another process has taken it over."""
        if self.owner(digest) == self._holders.me:
            remove_tree(self._store.claim(digest))

    def _create(self, path: Path) -> bool:
        """Create a claim as a symbolic link, which has its content from the start: none is read
        empty.

        File systems without links have no claims; at worst an environment is built twice.
        """
        folder, name = in_folder(path)
        try:
            folder.link(name, self._holders.me)
        except FileExistsError:
            return False
        except OSError as error:
            _log.info("no claim on %s: %s", path, error)
        return True

    def _move_away(self, path: Path) -> None:
        """Rename a stale claim, so that of several processes that find it only one removes it."""
        grave = self._store.discard(path)
        if grave is not None:
            remove_tree(grave)


@carried_out
def _is_other(path: Path) -> bool:
    """Return whether the file is something else than a claim that flashpool writes."""
    return os.path.lexists(path) and not path.is_symlink()
