"""Variables of strangers: the client's library reads the first ``.env`` upwards from an app's folder.

An unpacked app is below an empty ``.env`` (`AppStore.prepare`), where the search ends.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

__all__ = ["DOTENV", "stray_dotenv"]

DOTENV: Final = ".env"


def stray_dotenv(folder: Path) -> str:
    """A sentence on a file with variables that the app reads and did not bring; empty without one."""
    for above in (folder, *folder.parents):
        found = above / DOTENV
        try:
            if found.is_file():
                foreign = above != folder and found.stat().st_size > 0
                return f"{found} is not the app's, and sets variables of it" if foreign else ""
        except OSError:
            continue
    return ""
