"""Passwords of package indexes: never in a process's variables, and passed to uv once.

    UV_INDEX=https://me:secret@host/simple/ --> UV_INDEX=https://host/simple/
                                            '-> [[index]] url = "https://me:secret@host/simple/"
                                                explicit = true

uv finds the credentials of a request by the beginning of its URL, so a second index entry only
makes them known: nothing is looked up there ("explicit", and no package names it). The entry is
part of the configuration that uv reads at its start. Builds of packages inherit uv's variables, but
not its configuration. Everything here is pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

__all__ = ["Withheld", "configuration", "withhold"]

#: Variables that hold URLs, and what separates the URLs.
_PLACES: Final = {
    "UV_DEFAULT_INDEX": r"(\s+)",
    "UV_INDEX_URL": r"(\s+)",
    "UV_INDEX": r"(\s+)",
    "UV_EXTRA_INDEX_URL": r"(\s+)",
    "UV_FIND_LINKS": r"(,)",
}
_URL: Final = re.compile(
    r"(?:([\w.-]+)=)?(https?://)(?:([^/?#]*)@)?(.*)", re.DOTALL | re.IGNORECASE
)
_OF_NAME: Final = re.compile(r"UV_INDEX_.+_(USERNAME|PASSWORD)")
#: If this table is written as a list, it must not be written in another way as well.
_LIST: Final = re.compile(r"(?m)^([ \t]*index[ \t]*=[ \t]*\[)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Withheld:
    """Variables without credentials, and the URLs with credentials."""

    environment: dict[str, str]
    urls: tuple[str, ...]


def withhold(environment: Mapping[str, str], *, named: bool) -> Withheld:
    """Take credentials out of uv's variables.

    Passwords that uv reads for an index by the index's name (``UV_INDEX_<NAME>_PASSWORD``) become
    part of that index's URL. Passwords of indexes that only uv's own configuration file names stay
    in variables if ``named`` is set.
    """
    kept = dict(environment)
    urls: list[str] = []
    for variable, between in _PLACES.items():
        if variable in kept:
            parts = re.split(between, kept[variable])
            kept[variable] = "".join(_bare(part, kept, urls) for part in parts)
    if not named:
        kept = {name: value for name, value in kept.items() if not _OF_NAME.fullmatch(name)}
    return Withheld(environment=kept, urls=tuple(dict.fromkeys(urls)))


def _bare(part: str, variables: dict[str, str], urls: list[str]) -> str:
    found = _URL.fullmatch(part)
    if found is None:
        return part
    name, scheme, user, rest = found.groups()
    told = _told(name, variables) if name else ""
    if user or told:
        urls.append(f"{scheme}{told or user}@{rest}")
    return f"{name}={scheme}{rest}" if name else f"{scheme}{rest}"


def _told(name: str, variables: dict[str, str]) -> str:
    """Return the credentials of an index, from the variables of its name."""
    stem = f"UV_INDEX_{re.sub(r'[^A-Z0-9]', '_', name.upper())}"
    user = variables.pop(f"{stem}_USERNAME", "")
    password = variables.pop(f"{stem}_PASSWORD", "")
    if not user and not password:
        return ""
    return f"{quote(user, safe='')}:{quote(password, safe='')}"


def configuration(own: str, urls: Sequence[str]) -> str:
    """Return a user's configuration of uv (TOML) with these URLs added."""
    tables = [
        {"name": f"flashpool-credentials-{number}", "url": url}
        for number, url in enumerate(urls, start=1)
    ]
    if _LIST.search(own):
        inline = "".join(f"{{ {', '.join(_pairs(table))} }}, " for table in tables)
        return _LIST.sub(lambda found: found[1] + inline, own, count=1)
    return "\n".join([own, *("\n".join(["[[index]]", *_pairs(table)]) for table in tables), ""])


def _pairs(table: Mapping[str, str]) -> list[str]:
    told = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in table.items()]
    return [*told, "explicit = true"]
