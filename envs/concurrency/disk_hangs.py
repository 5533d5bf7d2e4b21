"""The error of whoever waits for a disk that does not answer."""

from __future__ import annotations

__all__ = ["DiskHangs"]


class DiskHangs(OSError):
    """The disk gives no answer; what was asked of it may still be done."""
