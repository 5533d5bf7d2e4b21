"""The queue worker on disks that accept writes but never finish an fsync."""

import os
import runpy
import sys
import threading
from pathlib import Path
from typing import Any

from flashpool.frontends.qb import outbox


def hang(*_: Any) -> Any:
    threading.Event().wait()


if __name__ == "__main__":
    os.fsync = hang  # type: ignore[assignment]
    outbox.Outbox.waiting = hang  # type: ignore[method-assign]
    handler = Path(__file__).parents[3] / "docker" / "handler.py"
    sys.argv[0] = str(handler)
    runpy.run_path(str(handler), run_name="__main__")
