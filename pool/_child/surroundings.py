"""What imports may read of a process, and what a call changes of that.

    zygote: Surroundings() --fork--> worker: the call --> changed() --> names, for its answer

Names are those that a scout records as read: ``env:NAME``, ``cwd``, ``argv``, ``locale``,
``warnings``; and ``path``, of which every import reads.
"""

from __future__ import annotations

import os
import sys
import warnings
from _locale import LC_ALL, setlocale

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import BinaryIO

#: Bytes of libraries that are searched; beyond, each variable is taken for one they know.
_SEARCHED = 512 * 1024 * 1024
_PART = 16 * 1024 * 1024


class Surroundings:
    """A process as its calls find it."""

    __slots__ = ("argv", "cwd", "filters", "libraries", "locale", "path", "variables")

    def __init__(self) -> None:
        self.variables = dict(os.environ._data)  # type: ignore[attr-defined]
        self.path = list(sys.path)
        self.argv = list(sys.argv)
        self.cwd = _cwd()
        self.filters = list(warnings.filters)
        self.locale = setlocale(LC_ALL)
        self.libraries = _libraries()

    def changed(self, kinds: Collection[str]) -> list[str]:
        """What is not as it was, by its names; beside variables and the path only these kinds."""
        found = []
        variables = getattr(os.environ, "_data", None)
        if variables != self.variables:
            found += self._changed_variables(variables)
        if sys.path != self.path and sys.path[: len(self.path)] != self.path:
            # What comes behind hides nothing that was found before.
            found.append("path")
        if "argv" in kinds and sys.argv != self.argv:
            found.append("argv")
        if "cwd" in kinds and _cwd() != self.cwd:
            found.append("cwd")
        if "warnings" in kinds and warnings.filters != self.filters and self._warns_more():
            found.append("warnings")
        if "locale" in kinds and setlocale(LC_ALL) != self.locale:
            found.append("locale")
        return found

    def _changed_variables(self, variables: dict[bytes, bytes] | None) -> list[str]:
        if variables is None:
            return ["env:*"]
        both = {**self.variables, **variables}
        names = [name for name in both if variables.get(name) != self.variables.get(name)]
        return [f"env:{os.fsdecode(name)}" for name in names]

    def _warns_more(self) -> bool:
        """What is ignored in addition changes no import that was quiet before."""
        new = [one for one in warnings.filters if one not in self.filters]
        return any(one[0] != "ignore" for one in new)

    def known_to_libraries(self, names: list[str]) -> list[str]:
        """Those of the variables that stand in libraries which were loaded since.

        C code reads its variables when it is loaded, and nobody sees that. What is nowhere in it
        as text it does not read.
        """
        left = list(names)
        searched = 0
        for path in sorted(_libraries() - self.libraries):
            try:
                with open(path, "rb") as file:
                    left, size = _not_in(file, left)
            except OSError:
                continue  # deleted since, as by a call that installed another version
            searched += size
            if not left or searched > _SEARCHED:
                return list(names) if left else [name for name in names if name not in left]
        return [name for name in names if name not in left]


def _not_in(file: BinaryIO, names: list[str]) -> tuple[list[str], int]:
    """The names that do not stand in the file, and its size."""
    wanted = {name: os.fsencode(name) + b"\0" for name in names}
    overlap = max(map(len, wanted.values()), default=0)
    size, before = 0, b""
    while (part := file.read(_PART)) and wanted:
        size += len(part)
        text = before + part
        wanted = {name: one for name, one in wanted.items() if one not in text}
        before = part[-overlap:]
    return list(wanted), size


def _libraries() -> set[str]:
    """Files of the shared libraries that are mapped."""
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        paths = {line.split(None, 5)[5].rstrip("\n") for line in maps if line.count("/") > 1}
    return {path for path in paths if ".so" in path}


def _cwd() -> str | None:
    try:
        return os.getcwd()
    except OSError:
        return None  # it was removed
