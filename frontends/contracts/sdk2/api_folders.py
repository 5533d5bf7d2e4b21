"""The folders on local disk from which modules of live APIs are served.

    <local>/live-apis/<this process>/<number>/__runpod_live__.py

A process that is killed leaves its folders behind; the next process that needs a folder removes
them.
"""

from __future__ import annotations

import itertools
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

from flashpool.envs.store.layout import names_in, remove_tree
from flashpool.envs.store.locations import local_places
from flashpool.frontends.apps.artifacts.app_store import holder_lives, holder_name

if TYPE_CHECKING:
    from flashpool.frontends.settings.table import Settings

__all__ = ["FOLDER", "ApiFolders"]

#: Name of the folder below the local directory.
FOLDER: Final = "live-apis"
_RUNNING: Final = "running"


class ApiFolders:
    """The folders of this process; all methods block."""

    def __init__(self, settings: Settings) -> None:
        self._places = settings.to_env_settings()
        self._numbers = itertools.count(1)
        self._made = False

    @cached_property
    def _own(self) -> Path:
        return local_places(self._places, "").local / FOLDER / _RUNNING / holder_name()

    def make(self, module: str, source: str) -> Path:
        """Create a folder that holds this module and nothing else.

        Raises:
            OSError: the folder or the module cannot be written.
        """
        if not self._made:
            self._made = True
            self._remove_leavings()
        folder = self._own / str(next(self._numbers))
        folder.mkdir(mode=0o700, parents=True)
        (folder / f"{module}.py").write_text(source, "utf-8")
        return folder

    def remove(self, folder: Path) -> None:
        """Delete the folder: nothing is served from it any longer."""
        remove_tree(folder)

    def close(self) -> None:
        """Remove all folders of this process."""
        if self._made:
            remove_tree(self._own)

    def _remove_leavings(self) -> None:
        parent = self._own.parent
        for name in names_in(parent):
            if not holder_lives(name):
                remove_tree(parent / name)
