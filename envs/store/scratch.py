"""Directories for unfinished work, which exist as long as a block of code runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from flashpool.envs.concurrency.cancellation import run_in_thread_or_undo, run_in_thread_shielded

from .layout import Store, remove_tree


@asynccontextmanager
async def scratch(store: Store, holder: str) -> AsyncIterator[Path]:
    """Provide a scratch directory, and delete it without blocking the loop."""
    path = await run_in_thread_or_undo(partial(store.make_scratch, holder), remove_tree)
    try:
        yield path
    finally:
        await run_in_thread_shielded(remove_tree, path)
