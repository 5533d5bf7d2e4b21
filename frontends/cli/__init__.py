"""The command line: what a person types, and what is said to them."""

from .main import main

__all__ = ["main"]
