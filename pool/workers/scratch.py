"""Scratch directories of single calls: working directory and ``TMPDIR``, deleted with the worker.

    make -> <temporary>/flashpool-scratch-PID-*/WORKER --the worker's tree is gone--> remove

The supervisor creates and deletes the directories, so a call that crashed or was killed leaves
nothing. The next supervisor on the machine deletes those of a supervisor that was killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from flashpool.pool._child import trees, wire

_PREFIX: Final = "flashpool-scratch-"
_NAME: Final = re.compile(rf"{_PREFIX}(\d+)-\w+")


class ScratchDirectories:
    """The directories of one pool."""

    def __init__(self, worker_env: Mapping[str, str]) -> None:
        """``worker_env``: the calls' variables, whose ``TMPDIR`` holds the directories."""
        self._parent = Path(worker_env.get("TMPDIR") or tempfile.gettempdir())
        self._root: Path | None = None
        self._removing: set[asyncio.Future[bool]] = set()

    def make(self, worker: int) -> str:
        """Create the directory of this worker, and return its path.

        Raises:
            OSError: the directory cannot be created.
        """
        # Programs that clean temporary directories delete directories that were unused for days.
        if self._root is None or not self._root.is_dir():
            self._sweep()
            made = tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=self._parent)
            self._root = Path(made)
        path = self._root / str(worker)
        path.mkdir(mode=0o700)
        return str(path)

    def variables(self, path: str, env: Mapping[str, str]) -> dict[str, str]:
        """Return a call's variables, with its scratch directory added."""
        return {**env, "TMPDIR": path, wire.WORKDIR: path}

    def remove(self, path: str) -> None:
        """Delete the directory of a worker whose tree is gone.

        A thread does it, because the directory may hold many files.
        """
        loop = asyncio.get_running_loop()
        removing = loop.run_in_executor(None, trees.remove, path)
        self._removing.add(removing)
        removing.add_done_callback(self._removing.discard)

    async def close(self) -> None:
        """Delete all directories of this pool."""
        if self._removing:
            await asyncio.wait(self._removing)
        if self._root is not None:
            trees.remove(str(self._root))

    def _sweep(self) -> None:
        """Delete the directories of supervisors that no longer exist."""
        for one in self._parent.glob(f"{_PREFIX}*"):
            found = _NAME.fullmatch(one.name)
            if found is None or os.path.exists(f"/proc/{found[1]}"):
                continue
            with contextlib.suppress(FileNotFoundError):  # another server deletes the directory
                # Only this user's: anyone may create such a name in a shared directory.
                if one.lstat().st_uid == os.getuid():
                    trees.remove(str(one))
