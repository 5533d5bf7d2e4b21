"""SHA-256 hashes that wheels state for their files, in the RECORD of each installed package.

uv does not compare them. A file that was overwritten in place, in an environment or in uv's cache,
differs from its wheel's hash; its size may be the same.
"""

from __future__ import annotations

import base64
import binascii
import csv
import posixpath
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from .layout import MAX_OWN_FILE, read_file

__all__ = ["unlike_wheels"]

_ALGORITHM: Final = "sha256="


def unlike_wheels(environment: Path, hashes: Mapping[str, str]) -> list[str]:
    """Return files whose hash (by path, in hexadecimal) differs from their wheel's; blocking.

    Several wheels may contain the same file, and any of their hashes is accepted. Bytecode is
    ignored, because it is compiled here, and so are files without a hash.
    """
    promised: dict[str, set[str]] = {}
    for path, value in _promises(environment):
        promised.setdefault(path, set()).add(value)
    return sorted(
        path
        for path, values in promised.items()
        if path in hashes and hashes[path] not in values and not path.endswith(".pyc")
    )


def _promises(environment: Path) -> Iterator[tuple[str, str]]:
    for record in sorted(environment.glob("lib/python3.*/site-packages/*.dist-info/RECORD")):
        site_packages = record.parent.parent.relative_to(environment).as_posix()
        for row in _rows(record):
            value = _hexadecimal(row[1]) if len(row) > 1 else ""
            path = posixpath.normpath(posixpath.join(site_packages, row[0])) if row else ""
            if value and not path.startswith(("/", "../")):
                yield path, value


def _rows(record: Path) -> list[list[str]]:
    try:
        text = read_file(record, MAX_OWN_FILE).decode("utf-8", "surrogateescape")
        return list(csv.reader(text.splitlines()))
    except (OSError, csv.Error):
        return []  # a package without a list states no hashes


def _hexadecimal(value: str) -> str:
    """Return a hash of RECORD (URL-safe base64 without padding) in hexadecimal, like a seal's."""
    if not value.startswith(_ALGORITHM):
        return ""
    text = value.removeprefix(_ALGORITHM)
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).hex()
    except (binascii.Error, ValueError):
        return ""
