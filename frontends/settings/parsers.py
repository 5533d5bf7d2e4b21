"""Kinds of settings: each parses a variable's text, and describes the accepted values in words."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Final
from urllib.parse import urlsplit

_YES: Final = {"1", "true", "yes", "on"}
_NO: Final = {"0", "false", "no", "off"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """``parse`` raises ValueError, with a reason if ``accepts`` does not explain the error."""

    parse: Callable[[str], Any]
    accepts: str


#: A week, in seconds.
LONGEST_S: Final = 7 * 24 * 3600.0


def integer(low: int, high: int) -> Kind:
    """Accept a whole number from low to high."""

    def parse(text: str) -> int:
        value = _plain_int(text)
        if not low <= value <= high:
            raise ValueError("out of range")
        return value

    return Kind(parse=parse, accepts=f"a whole number from {low} to {high}")


def _plain_int(text: str) -> int:
    # int() would also accept 1_000 and digits of other scripts.
    if not (text.isascii() and text.isdigit()):
        raise ValueError
    return int(text)


def seconds(*, zero: bool = False) -> Kind:
    """Accept seconds, at most a week, which timers of the kernel support."""

    def parse(text: str) -> float:
        value = _plain_float(text)
        if not 0 <= value <= LONGEST_S or (value == 0 and not zero):
            raise ValueError("out of range")
        return value

    return Kind(
        parse=parse, accepts=f"seconds, {'0 or more' if zero else 'more than 0'}, at most a week"
    )


def _plain_float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError from None


def optional(kind: Kind) -> Kind:
    """Accept ``none``, or a value of that kind."""
    return Kind(
        parse=lambda text: None if text.lower() == "none" else kind.parse(text),
        accepts=f"{kind.accepts}, or none",
    )


def automatic(kind: Kind) -> Kind:
    """Accept ``auto``, or a value of that kind."""
    return Kind(
        parse=lambda text: None if text.lower() == "auto" else kind.parse(text),
        accepts=f"{kind.accepts}, or auto",
    )


def choice(*options: str) -> Kind:
    """Accept one of a few words, in upper or lower case."""
    by_folded = {option.lower(): option for option in options}

    def parse(text: str) -> str:
        if text.lower() not in by_folded:
            raise ValueError
        return by_folded[text.lower()]

    return Kind(parse=parse, accepts=", ".join(options))


def some_of(*options: str) -> Kind:
    """Accept some of a few words, or none."""

    def parse(text: str) -> tuple[str, ...]:
        words = _words(text.lower())
        if not set(words) <= set(options):
            raise ValueError
        return words

    return Kind(parse=parse, accepts=f"{', '.join(options)}, separated by commas, or none")


def _boolean(text: str) -> bool:
    if text.lower() not in _YES | _NO:
        raise ValueError
    return text.lower() in _YES


def _telemetry(text: str) -> bool:
    if not _boolean(text):
        return False
    # Find the packages without importing them here.
    if any(find_spec(name) is None for name in ("opentelemetry", "opentelemetry.sdk")):
        raise ValueError("the packages of flashpool[telemetry] are not installed")
    return True


def _words(text: str) -> tuple[str, ...]:
    if text.lower() == "none":
        return ()
    return tuple(dict.fromkeys(text.replace(",", " ").split()))


def _modules(text: str) -> tuple[str, ...]:
    names = _words(text)
    for name in names:
        if not all(part.isidentifier() for part in name.split(".")):
            raise ValueError(f"{name!r} is not a module's name")
    return names


def _requirements(text: str) -> tuple[str, ...]:
    if text.lower() == "none":
        return ()
    # Versions contain commas, and markers contain blanks: with markers, each needs a line.
    parts = text.splitlines() if "\n" in text else text.split()
    for part in parts:
        if part.strip().startswith("-"):
            raise ValueError(f"{part.strip()!r} is an option")
    return tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))


def _interpreter(text: str) -> str:
    found = shutil.which(os.path.expanduser(text))
    if found is None:
        raise ValueError("no such program")
    return os.path.abspath(found)


def _path(text: str) -> str:
    path = os.path.expanduser(text)
    if not os.path.isabs(path):
        raise ValueError("not an absolute path")
    return path


def _url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("no such URL")
    return text.rstrip("/")


def _word(text: str) -> str:
    return "" if text.lower() == "none" else text


def _token(text: str) -> str:
    if text.lower() == "none":
        return ""
    # Other characters cannot be sent in a header, so no client could authenticate.
    if not (text.isascii() and text.isprintable() and " " not in text):
        raise ValueError("it cannot be sent in a header")
    return text


URL: Final = Kind(parse=_url, accepts="the URL of a server: http:// or https://")
TEXT: Final = Kind(parse=str, accepts="a host name or address")
TOKEN: Final = Kind(parse=_token, accepts="printable ASCII without blanks, or none")
WORD: Final = Kind(parse=_word, accepts="text, or none")
PATH: Final = Kind(parse=_path, accepts="an absolute path")
PORT: Final = integer(0, 65535)
BOOLEAN: Final = Kind(parse=_boolean, accepts="yes or no (1, 0, true, false, on, off)")
TELEMETRY: Final = Kind(
    parse=_telemetry, accepts="yes or no; yes needs the packages of flashpool[telemetry]"
)
PATTERNS: Final = Kind(
    parse=_words, accepts="names or patterns with *, separated by commas, or none"
)
MODULES: Final = Kind(parse=_modules, accepts="module names, separated by commas, or none")
INTERPRETER: Final = Kind(parse=_interpreter, accepts="the path or name of a Python interpreter")
REQUIREMENTS: Final = Kind(
    parse=_requirements, accepts="requirements, separated by blanks or newlines, or none"
)
