"""Messages about errors in a request: msgspec's findings in plain words, misspelt fields.

Messages repeat nothing of the request, apart from names that are close to those of fields.
"""

from __future__ import annotations

import difflib
import functools
import logging
import re
from collections.abc import Iterable
from typing import Final

import msgspec

_log = logging.getLogger(__name__)

_FINDING: Final = re.compile(r"Expected `([^`]+)`, got `([^`]+)`(?: - at `\$\.?(.*)`)?")
_WORDS: Final = {
    "str": "a string",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
}
#: Names that were logged. Their number is bounded, so that new names cannot fill memory or log.
_seen: Final[set[str]] = set()
_SEEN_LIMIT: Final = 1000
_NAME_LIMIT: Final = 40
#: Largest number of names reported for one request.
_MOST: Final = 10
_CLOSE: Final = 0.75


def misfit(error: msgspec.ValidationError) -> str:
    """Return a message with the field, the type it must have, and the type it has."""
    found = _FINDING.fullmatch(str(error))
    if not found:
        return f"The request is not valid: {error}"
    expected, got, field = found.groups()
    expected = " or ".join(_word(kind) for kind in expected.split(" | "))
    return f"{_place(field)}: expected {expected}, got {_word(got)}"


def _word(kind: str) -> str:
    return _WORDS.get(kind, kind)


def _place(path: str | None) -> str:
    if not path:
        return "The request body"
    return path.replace("[...]", ": one of its values")


def near_misses(names: Iterable[str], known: frozenset[str]) -> tuple[str, ...]:
    """Return a sentence for each ignored field that looks misspelt; log each name once."""
    found = []
    for name in names:
        if name in known or len(name) > _NAME_LIMIT:
            continue
        near = _nearest(name, known)
        if not near:
            continue
        found.append(f"The unknown field {name!r} is ignored; did you mean {near}?")
        if name not in _seen and len(_seen) < _SEEN_LIMIT:
            _seen.add(name)
            _log.warning(
                "A request has the unknown field %r, which is ignored; did it mean %s?", name, near
            )
        if len(found) == _MOST:
            break
    return tuple(found)


@functools.lru_cache(_SEEN_LIMIT)
def _nearest(name: str, known: frozenset[str]) -> str:
    return next(iter(difflib.get_close_matches(name, sorted(known), n=1, cutoff=_CLOSE)), "")
