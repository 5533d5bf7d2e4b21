"""Parses JSON objects that strangers may have written, and rejects unusable numbers."""

from __future__ import annotations

import json
import math
from typing import Any, Final

__all__ = ["parse_object"]

#: Most digits of a number; a time or a size has 20 at most.
_MOST_DIGITS: Final = 40


def parse_object(data: bytes) -> dict[str, Any] | None:
    """Parse a JSON object from bytes; return None for anything else."""
    try:
        value = json.loads(data, parse_int=_integer, parse_float=_number, parse_constant=_refused)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _integer(text: str) -> int:
    # Parsing is quadratic in the number of digits, and a float has at most 308 before the point.
    if len(text) > _MOST_DIGITS:
        raise ValueError("a number with too many digits")
    return int(text)


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("not a number")
    return number


def _refused(_text: str) -> float:
    raise ValueError("not a number")
