"""Finds what the call of a request changes that imports read, such as environment variables.

The scheduler uses the result to choose the zygote of a call. The result is cached by source: most
requests repeat an earlier source.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, NamedTuple

import msgspec
from msgspec import Raw

from flashpool.pool.scheduling import touching

from .schema import FunctionRequest

#: Most sources in the cache.
SOURCES: Final = 4096
_NAMES: Final = msgspec.json.Decoder(dict[str, str])
_TEXT: Final = msgspec.json.Decoder(str)


class Changes(NamedTuple):
    """What one source touches, and the packages that it imports."""

    touches: frozenset[str] = frozenset()
    imports: frozenset[str] = frozenset()


class Sources:
    """A cache of `Changes`, by the keys of functions."""

    def __init__(self) -> None:
        self.known: OrderedDict[int, Changes] = OrderedDict()

    def read(self, request: FunctionRequest, key: int) -> Changes:
        """Analyse a request whose source is not cached, including its variables."""
        found = self.known[key] = _read(request)
        if len(self.known) > SOURCES:
            self.known.popitem(last=False)
        return found


def _read(request: FunctionRequest) -> Changes:
    texts = [_text(request.function_code), _text(request.class_code)]
    touched = {f"env:{name}" for name in request.env or ()}
    for path, text in _modules(request.modules).items():
        touched.add(f"package:{path.partition('/')[0].removesuffix('.py')}")
        texts.append(text)
    imported: set[str] = set()
    for text in texts:
        touched |= touching.touches(text)
        imported |= touching.imports(text)
    return Changes(frozenset(touched), frozenset(imported))


def _text(raw: Raw) -> str:
    try:
        return _TEXT.decode(raw)
    except msgspec.DecodeError:
        return ""  # no source, or an invalid one, which the worker reports


def _modules(raw: Raw) -> dict[str, str]:
    try:
        return _NAMES.decode(raw)
    except msgspec.DecodeError:
        return {}
