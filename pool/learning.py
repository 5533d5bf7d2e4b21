"""What to preload, and for whom: learned from what calls imported. Decisions only.

An environment has a lean zygote (profile 0) and a few loaded ones. A loaded zygote serves the
functions that import all of what it has preloaded, as far as packages go: in a worker of it they
find what their own imports would have left, no less and no more. All others stay on the lean one,
whose forks do not pay for pages that they do not need.

    a call ran --observed--> its function's needs --> a profile to start
    a zygote came up --skipped, read--> what cannot be preloaded, and what imports looked at
    a call comes --route--> the zygote; a lean one where the call touches what imports read

A call *touches* what its request or its source changes, or what it was seen to change: names as
`_child.surroundings` has them, and ``package:NAME`` for a module it brings in place of another.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Final

from .commands import ZygoteKey

#: Functions remembered per environment; the least recently called is forgotten.
FUNCTIONS: Final = 4096
#: Loaded zygotes of one environment; the least recently used makes room for another.
PROFILES: Final = 4
#: Calls of a function that would take another's place, before it does.
MISSES: Final = 3
#: As many standard modules as a call may import without being sent to a loaded zygote.
CHEAP: Final = 8
#: Modules preloaded in one zygote, and characters of the name of one.
MODULES: Final = 4000
NAME: Final = 500
#: What one call may be seen to change, at most.
CHANGES: Final = 100
#: A zygote that has preloaded nothing, where the lean one preloads what the settings say.
BARE: Final = -1
#: Touched by what may put any module in place of another.
ANY_PACKAGE: Final = "package:*"
_ALL: Final = "*"


@dataclass(slots=True)
class _Function:
    #: Modules that its calls imported, in that order.
    needs: dict[str, None] = field(default_factory=dict)
    #: Packages that its source names.
    imports: frozenset[str] = frozenset()
    #: What its calls said that they touch, and what they were seen to touch.
    touches: set[str] = field(default_factory=set)
    seen: set[str] = field(default_factory=set)
    #: Whether a profile was started for it.
    tried: bool = False
    #: How often it would have been better off with a profile that there is no room for.
    missed: int = 0
    #: Where its calls go, by what they touch; as of a version of its environment.
    routes: dict[frozenset[str], tuple[int, _Profile | None]] = field(default_factory=dict)
    version: int = -1


@dataclass(slots=True)
class _Profile:
    """What one loaded zygote has preloaded, or will have."""

    names: tuple[str, ...]
    modules: frozenset[str]
    #: Those that are not the standard library's.
    outside: frozenset[str]
    up: bool = False
    used: int = 0
    #: Packages that the source of the function names which it was made for.
    entries: frozenset[str] = frozenset()
    #: Whether it was learned at another time: its functions are known by their entries.
    seeded: bool = False


@dataclass(slots=True)
class _Environment:
    functions: OrderedDict[Hashable, _Function] = field(default_factory=OrderedDict)
    profiles: dict[int, _Profile] = field(default_factory=dict)
    #: Modules that are not preloaded, and why.
    denied: dict[str, str] = field(default_factory=dict)
    #: What imports read of their surroundings, and a module of each package that does.
    #: ``set:NAME``: a variable that one sets.
    reads: dict[str, dict[str, str]] = field(default_factory=dict)
    last_profile: int = 0
    uses: int = 0
    #: Counts changes that may send a call elsewhere.
    version: int = 0

    @property
    def pending(self) -> bool:
        """Whether a profile is on its way."""
        return any(not profile.up for profile in self.profiles.values())


@dataclass(frozen=True, slots=True)
class Conflict:
    """A call changed what a preloaded module had read before."""

    what: str
    module: str

    def __str__(self) -> str:
        return (
            f"{self.module} was imported before this call began, and had read {_in_words(self.what)} "
            "as it was then: it does not see what the call changed there. From now on, this "
            "function's calls import it themselves"
        )


def _package(name: str) -> str:
    return name.partition(".")[0]


def _is_standard(name: str) -> bool:
    return _package(name) in sys.stdlib_module_names


def _cheap(names: Sequence[str]) -> bool:
    """A few modules of the standard library load faster than a larger zygote forks."""
    return len(names) < CHEAP and all(map(_is_standard, names))


def _in_words(what: str) -> str:
    kind, _, name = what.partition(":")
    if kind == "env":
        return "the environment variables" if name == _ALL else f"the variable {name}"
    words = {
        "path": "sys.path",
        "argv": "sys.argv",
        "cwd": "the working directory",
        "locale": "the locale",
        "warnings": "the filters of warnings",
    }
    return words.get(kind, "modules of other names" if name == _ALL else f"the package {name}")


class Learner:
    """Routes calls to profiles, and says when a new profile is worth starting."""

    def __init__(self, patterns: Iterable[str], preload: Iterable[str] = ()) -> None:
        self._patterns = tuple(patterns)
        #: What every zygote preloads but a bare one.
        self._preload = tuple(preload)
        self._environments: dict[str, _Environment] = {}

    # Calls.

    def route(
        self,
        environment: str,
        function: Hashable,
        touches: frozenset[str] = frozenset(),
        imports: frozenset[str] = frozenset(),
    ) -> ZygoteKey:
        """The zygote for a call of this function; ``imports``: packages that its source names."""
        known = self._environments.get(environment)
        if known is None:
            return ZygoteKey(environment)
        one = known.functions.get(function) if function is not None else None
        if one is None:
            imports = imports if function is not None else frozenset()
            number, profile = self._choose(known, None, touches, imports)
        else:
            if one.version != known.version:
                one.routes.clear()
                one.version = known.version
            if (found := one.routes.get(touches)) is None:
                found = one.routes[touches] = self._choose(known, one, touches, frozenset())
            number, profile = found
        if profile is not None:
            known.uses += 1
            profile.used = known.uses
        return ZygoteKey(environment, number)

    def _choose(
        self,
        known: _Environment,
        one: _Function | None,
        touches: frozenset[str],
        imports: frozenset[str],
    ) -> tuple[int, _Profile | None]:
        number, profile = self._best(known, one, imports)
        touched = touches | _touched(known, one)
        if profile is not None and not self._conflict(known, touched, profile.names):
            return number, profile
        if self._preload and self._conflict(known, touched, self._preload):
            return BARE, None
        return 0, None

    def _best(
        self, known: _Environment, one: _Function | None, imports: frozenset[str]
    ) -> tuple[int, _Profile | None]:
        """The profile that spares a function the most imports."""
        best, number, most = None, 0, 0
        standard = one is None or all(map(_is_standard, one.needs))
        for candidate, profile in known.profiles.items():
            if not profile.up:
                continue
            if one is not None:
                if not profile.outside <= one.needs.keys():
                    continue
                if not (profile.outside or standard):
                    continue  # What it spends its time on could not be preloaded.
                spared = len(profile.modules & one.needs.keys())
            else:
                spared = profile.seeded and profile.entries <= imports
            if spared > most:
                best, number, most = profile, candidate, spared
        return number, best

    def _conflict(
        self, known: _Environment, touches: Iterable[str], modules: Iterable[str]
    ) -> Conflict | None:
        """What a call touches that the import of preloaded modules had read."""
        packages = {_package(name) for name in modules}
        for what in sorted(touches):
            kind, _, name = what.partition(":")
            if kind == "native":
                return Conflict(f"env:{name}", f"a library of {min(packages)}")
            if what in {"path", ANY_PACKAGE} or (kind == "package" and name in packages):
                return Conflict(what, name if name in packages else min(packages))
            for read, readers in known.reads.items():
                # What a call sets and an import sets, too, would end with another of both values.
                if _meet(what, read.replace("set:", "env:", 1)) and packages & readers.keys():
                    return Conflict(what, min(readers[one] for one in packages & readers.keys()))
        return None

    # What calls did.

    def observed(
        self,
        key: ZygoteKey,
        function: Hashable,
        imported: Iterable[str],
        touches: Iterable[str] = (),
        imports: frozenset[str] = frozenset(),
    ) -> ZygoteKey | None:
        """A call in a worker of this zygote imported modules; the profile to start now, if any."""
        if function is None or not self._patterns:
            return None
        names = [name for name in imported if self._may_be_named(name)]
        known = self._environments.get(key.environment)
        if _cheap(names) and (known is None or function not in known.functions):
            return None
        known = self._environments.setdefault(key.environment, _Environment())
        one = known.functions.pop(function, None) or _Function()
        known.functions[function] = one
        before = len(one.needs), len(one.touches)
        # What was there already it may have needed, too.
        one.needs.update(dict.fromkeys((*self.modules(key), *names)))
        one.imports = imports
        one.touches.update(list(touches)[:CHANGES])
        if before != (len(one.needs), len(one.touches)):
            one.routes.clear()
        while len(known.functions) > FUNCTIONS:
            known.functions.popitem(last=False)
        return self._grow(key.environment, known, one)

    def changed(self, key: ZygoteKey, function: Hashable, changes: Iterable[str]) -> list[Conflict]:
        """A call in a worker of this zygote was seen to change something that imports read."""
        known = self._environments.get(key.environment)
        if function is None or not (changes := list(changes)[:CHANGES]):
            return []
        if known is None:
            known = self._environments[key.environment] = _Environment()
        one = known.functions.setdefault(function, _Function())
        profile = known.profiles.get(key.profile)
        had = profile.names if profile is not None else () if key.profile == BARE else self._preload
        new = [what for what in changes if what not in one.seen] if had else []
        hits = [self._conflict(known, [what], had) for what in new]
        one.seen.update(changes)
        one.routes.clear()
        return [hit for hit in hits if hit is not None]

    # Profiles.

    def _grow(self, environment: str, known: _Environment, one: _Function) -> ZygoteKey | None:
        """Ask for a profile of what this function needs, unless one is there or on its way."""
        wanted = [name for name in one.needs if self._allowed(name, known)][:MODULES]
        whole = any(not _is_standard(name) for name in one.needs)
        if known.pending or _cheap(wanted) or (whole and all(map(_is_standard, wanted))):
            return None
        touched = _touched(known, one)
        if not one.tried:
            # Which variables imports set themselves, nobody knows before a zygote tried.
            touched = {what for what in touched if not what.startswith("native:")}
        if touched & {"path", ANY_PACKAGE} or self._conflict(known, touched, wanted):
            return None
        _, best = self._best(known, one, frozenset())
        there = best.modules if best is not None else frozenset()
        if _cheap([name for name in wanted if name not in there]):
            return None
        if len(known.profiles) >= PROFILES:
            one.missed += 1
            if one.missed < MISSES:
                return None
            one.missed = 0
        one.tried = True
        known.last_profile += 1
        known.profiles[known.last_profile] = profile = _profile(wanted)
        profile.entries = frozenset(map(_package, wanted)) & one.imports
        return ZygoteKey(environment, known.last_profile)

    def modules(self, key: ZygoteKey) -> tuple[str, ...]:
        """What the zygote of this key preloads because calls imported it."""
        known = self._environments.get(key.environment)
        profile = known.profiles.get(key.profile) if known is not None else None
        return profile.names if profile is not None else ()

    def entries(self, key: ZygoteKey) -> tuple[str, ...]:
        """The packages by which other servers know for whom these modules are."""
        known = self._environments.get(key.environment)
        profile = known.profiles.get(key.profile) if known is not None else None
        return tuple(sorted(profile.entries)) if profile is not None else ()

    def started(self, key: ZygoteKey) -> list[ZygoteKey]:
        """The profile is up; those that nobody needs any more, itself perhaps."""
        known = self._environments.get(key.environment)
        if known is None or key.profile not in known.profiles:
            return []
        known.uses += 1
        profile = known.profiles[key.profile]
        profile.up, profile.used = True, known.uses
        wanted = set()
        for one in known.functions.values():
            number, best = self._best(known, one, frozenset())
            if best is not None and not self._conflict(known, _touched(known, one), best.names):
                wanted.add(number)
        kept = [
            number
            for number, profile in known.profiles.items()
            if profile.seeded or number in wanted
        ]
        kept.sort(key=lambda number: known.profiles[number].used, reverse=True)
        over = [number for number in known.profiles if number not in kept[:PROFILES]]
        over = [number for number in over if known.profiles[number].up]
        for number in over:
            del known.profiles[number]
        known.version += 1
        return [ZygoteKey(key.environment, number) for number in over]

    def behind(self, environment: str) -> ZygoteKey | None:
        """The next profile to start, when functions seen meanwhile need more."""
        known = self._environments.get(environment)
        for one in reversed(known.functions.values()) if known is not None else ():
            if (key := self._grow(environment, known, one)) is not None:  # type: ignore[arg-type]
                return key
        return None

    def failed(self, key: ZygoteKey, module: str | None, why: str) -> None:
        """The profile did not come up, because of this module if one is known."""
        known = self._environments.get(key.environment)
        if known is None:
            return
        profile = known.profiles.pop(key.profile, None)
        known.version += 1
        for name in (module,) if module else profile.names if profile is not None else ():
            # The whole package: the next of its modules would fail for the same reason.
            known.denied[_package(name)] = why

    def skip(self, key: ZygoteKey, modules: Iterable[str], why: str) -> None:
        """These are not preloaded there, nor anywhere else."""
        known = self._environments.setdefault(key.environment, _Environment())
        skipped = set(modules)
        known.denied.update(dict.fromkeys(skipped, why))
        known.version += 1
        profile = known.profiles.get(key.profile)
        if profile is not None:
            left = _profile([name for name in profile.names if name not in skipped])
            left.up, left.used = profile.up, profile.used
            left.entries = profile.entries
            left.seeded = profile.seeded and (bool(left.outside) or not profile.outside)
            known.profiles[key.profile] = left

    def read(self, key: ZygoteKey, reads: dict[str, list[str]]) -> None:
        """What imports of modules that are preloaded there looked at, and which modules."""
        known = self._environments.setdefault(key.environment, _Environment())
        for what, modules in reads.items():
            known.reads.setdefault(what, {}).update((_package(one), one) for one in modules)
        known.version += 1

    # What was learned at other times.

    def seed(self, environment: str, modules: Iterable[str], entries: Iterable[str] = ()) -> None:
        """What calls of a new environment imported elsewhere: a zygote has it from the start.

        ``entries``: the packages that the sources of those calls name.
        """
        if environment in self._environments:
            return
        known = _Environment()
        names = [name for name in modules if self._allowed(name, known)][:MODULES]
        if names and (named := frozenset(entries)):
            profile = _profile(names)
            profile.up, profile.seeded, profile.entries = True, True, named
            known.profiles[1], known.last_profile = profile, 1
            self._environments[environment] = known

    def forget(self, environment: str) -> None:
        """It is used no more."""
        self._environments.pop(environment, None)

    # For stats.

    def denied(self, environment: str) -> dict[str, str]:
        """Modules that are not preloaded, or not for all functions, and why."""
        known = self._environments.get(environment)
        if known is None:
            return {}
        found = dict(known.denied)
        for one in known.functions.values():
            names = [name for name in one.needs if self._allowed(name, known)]
            hit = self._conflict(known, _touched(known, one), names) if names else None
            if hit is not None and hit.module in one.needs:
                found.setdefault(hit.module, _why_not(hit))
        return found

    def _may_be_named(self, name: str) -> bool:
        # Whoever needs an inner module imports it, at the right moment: `_asyncio` imported before
        # `asyncio` leaves it broken.
        if name.startswith("_") or len(name) > NAME:
            return False
        top = _package(name)
        return any(fnmatchcase(name, p) or fnmatchcase(top, p) for p in self._patterns)

    def _allowed(self, name: str, known: _Environment) -> bool:
        return (
            name not in known.denied
            and _package(name) not in known.denied
            and self._may_be_named(name)
        )


def _profile(names: Sequence[str]) -> _Profile:
    outside = frozenset(name for name in names if not _is_standard(name))
    return _Profile(names=tuple(names), modules=frozenset(names), outside=outside)


def _touched(known: _Environment, one: _Function | None) -> set[str]:
    """All that a function's calls touch, but for what the imports in them did."""
    if one is None:
        return set()
    by_imports = {what for what in one.seen if f"set:{what.partition(':')[2]}" in known.reads}
    return one.touches | (one.seen - by_imports)


def _meet(touched: str, read: str) -> bool:
    """Whether what is touched is what is read; a name may end with a star on either side."""
    if touched == read:
        return True
    if touched.endswith(_ALL) and read.startswith(touched[:-1]):
        return True
    return read.endswith(_ALL) and touched.startswith(read[:-1])


def _why_not(hit: Conflict) -> str:
    return (
        f"it reads {_in_words(hit.what)} when it is imported, and functions change that before: "
        "their calls import it themselves"
    )
