"""Virtualenvs made ahead of need: empty, but known to uv.

uv queries every interpreter path that it has not seen, by starting that Python, which takes a third
of the time of a small build. So an empty virtualenv that uv has already queried is kept ready in
scratch. A build takes it, and the next one is created in the background. Without a spare, a build
creates its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from flashpool.envs.concurrency.cancellation import run_in_thread_or_undo, run_in_thread_shielded
from flashpool.envs.errors import EnvironmentFailure
from flashpool.envs.resolving.base_interpreter import BaseFacts
from flashpool.envs.store.layout import Store, is_there, remove_tree
from flashpool.envs.uv_cli import Uv

from .virtualenv import make_virtualenv

__all__ = ["SpareVirtualenvs"]

_log = logging.getLogger(__name__)


class SpareVirtualenvs:
    """At most one spare, for the interpreter that was used last; on one event loop."""

    def __init__(self, uv: Uv, store: Store, holder: str) -> None:
        self._uv = uv
        self._store = store
        self._holder = holder
        self._spare: tuple[Path, Path] | None = None
        self._making: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def workshop(self, base: BaseFacts) -> AsyncIterator[Path]:
        """Provide a scratch directory with an empty virtualenv in `env`, deleted afterwards."""
        spare = self._take(base.real_python)
        try:
            folder = await run_in_thread_or_undo(partial(self._usable, spare, base), remove_tree)
        except asyncio.CancelledError:
            if spare is not None:  # the thread may not have got as far as looking at it
                await run_in_thread_shielded(remove_tree, spare)
            raise
        try:
            yield folder
        finally:
            await run_in_thread_shielded(remove_tree, folder)

    def _take(self, python: Path) -> Path | None:
        if self._spare is None or self._spare[0] != python:
            return None
        _, folder = self._spare
        self._spare = None
        return folder

    def _usable(self, folder: Path | None, base: BaseFacts) -> Path:
        # Another process may have deleted it, if it considered this process dead.
        there = folder is not None and is_there(folder / "env" / "pyvenv.cfg")
        return folder if folder is not None and there else self._new(base)

    def _new(self, base: BaseFacts) -> Path:
        folder = self._store.make_scratch(self._holder)
        try:
            make_virtualenv(folder / "env", base.real_python, base.version)
        except OSError:
            remove_tree(folder)
            raise
        return folder

    def prepare(self, base: BaseFacts) -> None:
        """Create a spare in the background, if none is ready."""
        if self._making is None or self._making.done():
            self._making = asyncio.get_running_loop().create_task(self._prepare(base))

    async def settled(self) -> None:
        """Wait until no spare is being made."""
        if self._making is not None:
            await asyncio.wait({self._making})

    async def _prepare(self, base: BaseFacts) -> None:
        if self._spare is not None and self._spare[0] == base.real_python:
            return
        await self._drop()
        folder = None
        try:
            folder = await run_in_thread_or_undo(partial(self._new, base), remove_tree)
            await self._uv.look_at(folder / "env")
            self._spare = (base.real_python, folder)
        except (OSError, EnvironmentFailure) as error:
            _log.info("no spare virtualenv: %s", error)
        finally:
            if folder is not None and self._spare is None:
                await run_in_thread_shielded(remove_tree, folder)

    async def _drop(self) -> None:
        if self._spare is not None:
            _, folder = self._spare
            self._spare = None
            await run_in_thread_shielded(remove_tree, folder)

    async def close(self) -> None:
        """Delete the spare, so that scratch is empty."""
        if self._making is not None:
            self._making.cancel()
            await asyncio.wait({self._making})
        await self._drop()
