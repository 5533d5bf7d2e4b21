"""Facts about functions, loaded zygotes, and what their imports read. No decisions.

Environment
  |-- Function   what its calls import, and what they touch
  |-- Profile    what one loaded zygote has preloaded
  '-- reads      what imports read; `conflict` tells whether a call touches any of it
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

#: Most standard modules that a call may import without a loaded zygote being worth its forks.
CHEAP: Final = 8
#: Touched by code that may replace any module by another.
ANY_PACKAGE: Final = "package:*"
_ALL: Final = "*"


@dataclass(slots=True)
class LearnedFunction:
    #: Modules that the function's calls imported, in that order.
    needs: dict[str, None] = field(default_factory=dict)
    #: Packages that the function's source names.
    imports: frozenset[str] = frozenset()
    #: What the function's calls touch, as their requests and sources say.
    touches: set[str] = field(default_factory=set)
    seen: set[str] = field(default_factory=set)
    #: Whether a profile was started for the function.
    tried: bool = False
    #: How often a profile would have helped for which there was no room.
    missed: int = 0
    #: The profiles of the function's calls, by what they touch; for one version of the environment.
    routes: dict[frozenset[str], tuple[int, Profile | None]] = field(default_factory=dict)
    version: int = -1


@dataclass(slots=True)
class Profile:
    """The modules that one loaded zygote has preloaded or will preload."""

    names: tuple[str, ...]
    modules: frozenset[str]
    #: Those that do not belong to the standard library.
    outside: frozenset[str]
    up: bool = False
    used: int = 0
    #: Packages that the source of the profile's first function names.
    entries: frozenset[str] = frozenset()
    #: Whether an earlier process learned it: its functions are recognised by ``entries``.
    seeded: bool = False


@dataclass(slots=True)
class LearnedEnvironment:
    functions: OrderedDict[Hashable, LearnedFunction] = field(default_factory=OrderedDict)
    profiles: dict[int, Profile] = field(default_factory=dict)
    #: Modules that are not preloaded, and why.
    denied: dict[str, str] = field(default_factory=dict)
    #: What imports read of their surroundings, with the packages that do and one module of each.
    #: ``set:NAME``: a variable that an import sets.
    reads: dict[str, dict[str, str]] = field(default_factory=dict)
    last_profile: int = 0
    uses: int = 0
    #: Counts changes that may send a call to another zygote.
    version: int = 0

    @property
    def pending(self) -> bool:
        """Return whether a profile is starting."""
        return any(not profile.up for profile in self.profiles.values())


@dataclass(frozen=True, slots=True)
class PreloadConflict:
    """A call changed what a preloaded module had read before."""

    what: str
    module: str

    def __str__(self) -> str:
        return (
            f"{self.module} was imported before this call began, and had read {_in_words(self.what)} "
            "as it was then: it does not see what the call changed there. From now on, this "
            "function's calls import it themselves"
        )


def package_of(name: str) -> str:
    return name.partition(".")[0]


def is_standard(name: str) -> bool:
    return package_of(name) in sys.stdlib_module_names


def is_cheap(names: Sequence[str]) -> bool:
    """Return whether importing these modules is faster than forking a larger zygote."""
    return len(names) < CHEAP and all(map(is_standard, names))


def _in_words(what: str) -> str:
    kind, _, name = what.partition(":")
    if kind in ("env", "look"):
        return "the environment variables" if name == _ALL else f"the variable {name}"
    words = {
        "path": "sys.path",
        "argv": "sys.argv",
        "cwd": "the working directory",
        "locale": "the locale",
        "warnings": "the filters of warnings",
        "random": "the global random numbers",
    }
    return words.get(kind, "modules of other names" if name == _ALL else f"the package {name}")


def profile_of(names: Sequence[str]) -> Profile:
    outside = frozenset(name for name in names if not is_standard(name))
    return Profile(names=tuple(names), modules=frozenset(names), outside=outside)


def touched_by(known: LearnedEnvironment, one: LearnedFunction | None) -> set[str]:
    """Return what a function's calls touch, apart from effects of their imports."""
    if one is None:
        return set()
    by_imports = {what for what in one.seen if f"set:{what.partition(':')[2]}" in known.reads}
    return one.touches | (one.seen - by_imports)


def _meet(touched: str, read: str) -> bool:
    """Return whether something touched equals something read; a name may end with a star."""
    if touched == read:
        return True
    if touched.endswith(_ALL) and read.startswith(touched[:-1]):
        return True
    return read.endswith(_ALL) and touched.startswith(read[:-1])


def why_not(hit: PreloadConflict) -> str:
    return (
        f"it reads {_in_words(hit.what)} when it is imported, and functions change that before: "
        "their calls import it themselves"
    )


def conflict(
    known: LearnedEnvironment, touches: Iterable[str], modules: Iterable[str]
) -> PreloadConflict | None:
    """Return what a call touches that imports of preloaded modules have read."""
    packages = {package_of(name) for name in modules}
    for what in sorted(touches):
        kind, _, name = what.partition(":")
        if kind == "native":
            return PreloadConflict(f"env:{name}", f"a library of {min(packages)}")
        if what in {"path", ANY_PACKAGE} or (kind == "package" and name in packages):
            return PreloadConflict(what, name if name in packages else min(packages))
        for read, readers in known.reads.items():
            # If an import sets a variable, a call that sets it as well would see its own value at
            # the end, and a call that reads it would see the import's value too early.
            kind, _, name = read.partition(":")
            found = kind == "set" and what == f"look:{name}"
            found = found or _meet(what, f"env:{name}" if kind == "set" else read)
            if found and packages & readers.keys():
                return PreloadConflict(what, min(readers[one] for one in packages & readers.keys()))
    return None
