"""Finds ``.env`` files outside an app: the client's library reads the first one upwards from it.

An unpacked app is below an empty ``.env`` (`AppStore.prepare`), where the search ends.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

__all__ = ["DOTENV", "stray_dotenv"]

DOTENV: Final = ".env"


def stray_dotenv(folder: Path) -> str:
    """Return a sentence about a ``.env`` outside the app that the app reads, or ``""``."""
    for above in (folder, *folder.parents):
        found = above / DOTENV
        try:
            if found.is_file():
                foreign = above != folder and found.stat().st_size > 0
                return f"{found} is not the app's, and sets variables of it" if foreign else ""
        except OSError:
            continue
    return ""
