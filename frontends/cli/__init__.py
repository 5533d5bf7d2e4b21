"""The command line: commands, and what they print."""

from .main import main

__all__ = ["main"]
