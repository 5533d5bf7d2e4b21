"""The error for operations on a disk that does not answer."""

from __future__ import annotations

__all__ = ["DiskHangs"]


class DiskHangs(OSError):
    """The disk does not answer; the operation may still happen later."""
