"""The surroundings of a process that imports may read, and which of them a call changes.

    zygote: Surroundings() --fork--> worker: the call --> changed() --> names, for the answer

Names are those that a scout records as read: ``env:NAME``, ``cwd``, ``argv``, ``locale``,
``warnings``; and ``path``, which every import reads.
"""

from __future__ import annotations

import os
import sys
import warnings
from _locale import LC_ALL, setlocale

from .. import call_files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import BinaryIO

#: Kinds of surroundings to compare if nothing was preloaded. Locale and warnings filters are not
#: among them, because an import in the call may have changed these.
WATCHED = frozenset(("argv", "cwd"))
#: Most bytes of libraries to search; beyond that, each variable counts as known to a library.
_SEARCHED = 512 * 1024 * 1024
_PART = 16 * 1024 * 1024
#: A text in every library that contains Rust's standard library (library/std/src/panic.rs).
_RUST = b"RUST_BACKTRACE"


class Surroundings:
    """The surroundings of a process before its call.

    ``kinds``: the names above to compare, beside variables and the path.
    """

    __slots__ = (
        "argv",
        "cwd",
        "environ",
        "filters",
        "kinds",
        "libraries",
        "locale",
        "memory",
        "path",
        "variables",
    )

    def __init__(self, kinds: Collection[str], libraries: set[str] | None = None) -> None:
        self.kinds = kinds
        self.libraries = _libraries() if libraries is None else libraries
        self.variables = dict(os.environ._data)  # type: ignore[attr-defined]
        self.locale = setlocale(LC_ALL)
        self.environ = os.environ
        self.path = list(sys.path)
        self.argv = list(sys.argv) if "argv" in kinds else None
        self.cwd = _cwd() if "cwd" in kinds else None
        self.filters = list(warnings.filters) if "warnings" in kinds else None
        self.memory = _memory("locale" in kinds)

    def again(self) -> Surroundings:
        """Return a new object of the same kinds, with the current values and addresses."""
        return Surroundings(self.kinds, self.libraries)

    def are_as_they_were(self) -> bool:
        """Return whether certainly nothing changed; if false, `changed` finds out what did.

        The check reads as little as possible: a worker pays for each page of an object it accesses.
        """
        try:
            if os.environ is not self.environ or sys.path != self.path or not self.memory:
                return False
            for now, then in self.memory:
                if now != then:
                    return False
            return (
                (self.argv is None or sys.argv == self.argv)
                and (self.filters is None or warnings.filters == self.filters)
                and (self.cwd is None or _cwd() == self.cwd)
            )
        except BaseException:
            # User code replaced one by an object that cannot be compared.
            return False

    def changed(self) -> list[str]:
        """Return the names of everything that changed."""
        found = []
        variables = getattr(os.environ, "_data", None)
        if variables != self.variables:
            found += self._changed_variables(variables)
        if sys.path != self.path:
            path = [one for one in sys.path if not call_files.holds(one)]
            # Entries added at the end do not hide modules found before.
            if path[: len(self.path)] != self.path or call_files.has_packages():
                found.append("path")
        if self.argv is not None and sys.argv != self.argv:
            found.append("argv")
        if self.cwd is not None and _cwd() != self.cwd:
            found.append("cwd")
        if self.filters is not None and warnings.filters != self.filters and self._warns_more():
            found.append("warnings")
        if "locale" in self.kinds and setlocale(LC_ALL) != self.locale:
            found.append("locale")
        return found

    def _changed_variables(self, variables: dict[bytes, bytes] | None) -> list[str]:
        if variables is None:
            return ["env:*"]
        both = {**self.variables, **variables}
        names = [name for name in both if variables.get(name) != self.variables.get(name)]
        # Not variables that begin with the call's own directory, or that do not concern imports.
        return [
            f"env:{os.fsdecode(name)}"
            for name in names
            if not call_files.holds(os.fsdecode(variables.get(name, b"")))
            and not name.startswith(b"PIP_")
        ]

    def _warns_more(self) -> bool:
        """Return whether more warnings are shown: ignoring more does not affect a silent import."""
        new = [one for one in warnings.filters if one not in (self.filters or ())]
        return any(one[0] != "ignore" for one in new)

    def known_to_libraries(self, names: list[str]) -> list[str]:
        """Return those variables whose names appear in libraries that were loaded since.

        C code may read variables when it is loaded, which is not recorded. A library that does not
        contain a variable's name as text does not read it.
        """
        left = list(names)
        searched = 0
        for path in sorted(_libraries() - self.libraries):
            try:
                with open(path, "rb") as file:
                    left, size = _not_in(file, left)
            except OSError:
                continue  # deleted since, for example by a call that installed another version
            searched += size
            if not left or searched > _SEARCHED:
                return list(names) if left else [name for name in names if name not in left]
        return [name for name in names if name not in left]


def _not_in(file: BinaryIO, names: list[str]) -> tuple[list[str], int]:
    """Return the names that the file does not contain, and the file's size.

    In C, a text ends with a null byte. Rust places texts one behind the other.
    """
    wanted = {name: os.fsencode(name) + b"\0" for name in names}
    overlap = max(map(len, [*wanted.values(), _RUST]))
    joined: set[str] = set()
    size, before, is_rust = 0, b"", False
    while (part := file.read(_PART)) and wanted:
        size += len(part)
        text = before + part
        is_rust = is_rust or _RUST in text
        wanted = {name: one for name, one in wanted.items() if one not in text}
        joined.update(name for name, one in wanted.items() if one[:-1] in text)
        before = part[-overlap:]
    return [name for name in wanted if not (is_rust and name in joined)], size


def _libraries() -> set[str]:
    """Return the files of the shared libraries that are mapped."""
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        paths = {line.split(None, 5)[5].rstrip("\n") for line in maps if line.count("/") > 1}
    return {path for path in paths if ".so" in path}


def _cwd() -> str | None:
    try:
        return os.getcwd()
    except OSError:
        return None  # the directory was removed


def _memory(locale: bool) -> list[tuple[memoryview, bytes]]:
    """Return the memory of the C library's variables and counter of locale changes, with contents.

    Each new value of a variable is a new text at another address (``setenv`` of glibc frees none),
    and setting a locale increments a counter for translations (``_nl_msg_cat_cntr``; the GNU
    gettext manual, "Being a gettext grok"). Empty for other C libraries.
    """
    import ctypes

    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version") or not hasattr(libc, "_nl_msg_cat_cntr"):
        return []
    environ = ctypes.c_void_p.in_dll(libc, "environ")
    if not environ.value:
        return []  # ``clearenv`` was called
    table = ctypes.cast(environ, ctypes.POINTER(ctypes.c_void_p))
    count = 0
    while table[count]:
        count += 1
    # Including the null pointer behind the last variable, where a new variable would be placed.
    areas = [(ctypes.addressof(environ), 8), (environ.value, 8 * (count + 1))]
    if locale:
        counter = ctypes.c_int.in_dll(libc, "_nl_msg_cat_cntr")
        areas.append((ctypes.addressof(counter), 4))
    views = [memoryview((ctypes.c_ubyte * size).from_address(at)).cast("B") for at, size in areas]
    return [(view, bytes(view)) for view in views]
