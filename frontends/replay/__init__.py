"""Keeps requests of failed calls on the volume, and runs them again."""

from __future__ import annotations

from pathlib import Path


def under_debugger_path() -> Path:
    """Return the path of the program for another interpreter; it is never imported."""
    return Path(__file__).with_name("under_debugger.py")
