"""Decides what to preload, and for which calls: learned from what calls imported.

An environment has a lean zygote (profile 0) and a few loaded ones. A loaded zygote serves functions
that import all packages which it has preloaded: its workers contain exactly the modules that the
function's own imports would have loaded. All other functions use the lean zygote, whose forks do
not pay for pages that they do not need.

    a call ran --observed--> its function's needs --> a profile to start
    a zygote came up --skipped, read--> what cannot be preloaded, and what imports read
    a call comes --route--> its zygote; a lean one if the call touches what imports read

A call *touches* what its request or its source changes, or what an earlier call of its function
changed: names as in `_child.surroundings`, and ``package:NAME`` for a module that it replaces.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from fnmatch import fnmatchcase
from typing import Final

from flashpool.pool.calls import Call

from .commands import ZygoteKey
from .preload_profiles import (
    ANY_PACKAGE,
    LearnedEnvironment,
    LearnedFunction,
    PreloadConflict,
    Profile,
    conflict,
    is_cheap,
    is_standard,
    package_of,
    profile_of,
    touched_by,
    why_not,
)

#: Most functions remembered per environment; the least recently called one is forgotten.
FUNCTIONS: Final = 4096
#: Calls that find their modules preloaded, after which a zygote that none of them used is replaced.
UNUSED: Final = 100
#: Calls of a function that miss a profile, before the function's profile replaces another.
MISSES: Final = 3
#: Most modules preloaded in one zygote, and most characters of a module's name.
MODULES: Final = 4000
NAME: Final = 500
#: Most changes that are recorded per call.
CHANGES: Final = 100
#: The profile of a zygote that has preloaded nothing, not even what the settings name.
BARE: Final = -1


class PreloadLearner:
    """Routes calls to profiles, and says when a new profile is worth starting."""

    def __init__(
        self, patterns: Iterable[str], preload: Iterable[str] = (), profiles: int = 4
    ) -> None:
        self._patterns = tuple(patterns)
        #: Most loaded zygotes of one environment.
        self._profiles = profiles
        #: Modules that every zygote preloads, apart from a bare one.
        self._preload = tuple(preload)
        #: Environments with calls from which something was learned.
        self.known: dict[str, LearnedEnvironment] = {}

    # Calls.

    def route(self, call: Call) -> ZygoteKey:
        """Return the zygote from which a call's worker must come."""
        environment = call.provision.environment
        known = self.known.get(environment)
        if known is None:
            return ZygoteKey(environment)
        function, touches = call.function_key, call.touches
        one = known.functions.get(function) if function is not None else None
        if one is None:
            imports = call.imports if function is not None else frozenset()
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
        known: LearnedEnvironment,
        one: LearnedFunction | None,
        touches: frozenset[str],
        imports: frozenset[str],
    ) -> tuple[int, Profile | None]:
        number, profile = self._best(known, one, imports)
        touched = touches | touched_by(known, one)
        if profile is not None and not conflict(known, touched, profile.names):
            return number, profile
        if self._preload and conflict(known, touched, self._preload):
            return BARE, None
        return 0, None

    def _best(
        self, known: LearnedEnvironment, one: LearnedFunction | None, imports: frozenset[str]
    ) -> tuple[int, Profile | None]:
        """Return the profile that saves a function the most imports."""
        best, number, most = None, 0, 0
        standard = one is None or all(map(is_standard, one.needs))
        for candidate, profile in known.profiles.items():
            if not profile.up:
                continue
            if one is not None:
                if not profile.outside <= one.needs.keys():
                    continue
                if not (profile.outside or standard):
                    continue  # its slow imports could not be preloaded
                spared = len(profile.modules & one.needs.keys())
            else:
                spared = profile.seeded and profile.entries <= imports
            if spared > most:
                best, number, most = profile, candidate, spared
        return number, best

    # What calls did.

    def observed(
        self,
        key: ZygoteKey,
        function: Hashable,
        imported: Iterable[str],
        touches: Iterable[str] = (),
        imports: frozenset[str] = frozenset(),
    ) -> ZygoteKey | None:
        """Record what a call imported in a worker; return the profile to start now, if any."""
        if function is None or not self._patterns:
            return None
        names = [name for name in imported if self._may_be_named(name)]
        known = self.known.get(key.environment)
        if is_cheap(names) and (known is None or function not in known.functions):
            return None
        known = self.known.setdefault(key.environment, LearnedEnvironment())
        one = known.functions.pop(function, None) or LearnedFunction()
        known.functions[function] = one
        before = len(one.needs), len(one.touches)
        # Modules that were preloaded may be among those that the call needed.
        one.needs.update(dict.fromkeys((*self.modules(key), *names)))
        one.imports = imports
        one.touches.update(list(touches)[:CHANGES])
        if before != (len(one.needs), len(one.touches)):
            one.routes.clear()
        while len(known.functions) > FUNCTIONS:
            known.functions.popitem(last=False)
        one.missed += 1
        return self._grow(key.environment, known, one)

    def changed(
        self, key: ZygoteKey, function: Hashable, changes: Iterable[str]
    ) -> list[PreloadConflict]:
        """Record what a call in a worker changed; return conflicts with what imports had read."""
        known = self.known.get(key.environment)
        if function is None or not (changes := list(changes)[:CHANGES]):
            return []
        if known is None:
            known = self.known[key.environment] = LearnedEnvironment()
        one = known.functions.setdefault(function, LearnedFunction())
        profile = known.profiles.get(key.profile)
        had = profile.names if profile is not None else () if key.profile == BARE else self._preload
        new = [what for what in changes if what not in one.seen] if had else []
        hits = [conflict(known, [what], had) for what in new]
        one.seen.update(changes)
        one.routes.clear()
        return [hit for hit in hits if hit is not None]

    # Profiles.

    def _grow(
        self, environment: str, known: LearnedEnvironment, one: LearnedFunction
    ) -> ZygoteKey | None:
        """Return a new profile of what this function needs, unless one exists or is starting."""
        wanted = [name for name in one.needs if self._allowed(name, known)][:MODULES]
        whole = any(not is_standard(name) for name in one.needs)
        if known.pending or is_cheap(wanted) or (whole and all(map(is_standard, wanted))):
            return None
        touched = touched_by(known, one)
        if not one.tried:
            # Before a zygote has tried, the variables that imports set themselves are unknown.
            touched = {what for what in touched if not what.startswith("native:")}
        if touched & {"path", ANY_PACKAGE} or conflict(known, touched, wanted):
            return None
        _, best = self._best(known, one, frozenset())
        there = best.modules if best is not None else frozenset()
        if is_cheap([name for name in wanted if name not in there]):
            return None
        if len(wanted) <= len(there & one.needs.keys()):
            # The new zygote would be retired at once: the present one saves as much, with modules
            # that could not be preloaded again.
            return None
        if len(known.profiles) >= self._profiles:
            # The new profile replaces another one, if that is less useful.
            if one.missed < MISSES or not self._one_is_unused(known):
                return None
            one.missed = 0
        one.tried = True
        known.last_profile += 1
        known.profiles[known.last_profile] = profile = profile_of(wanted)
        profile.entries = frozenset(map(package_of, wanted)) & one.imports
        return ZygoteKey(environment, known.last_profile)

    def _one_is_unused(self, known: LearnedEnvironment) -> bool:
        oldest = min(profile.used for profile in known.profiles.values())
        return known.uses - oldest >= UNUSED

    def modules(self, key: ZygoteKey) -> tuple[str, ...]:
        """Return what the zygote of this key preloads because calls imported it."""
        known = self.known.get(key.environment)
        profile = known.profiles.get(key.profile) if known is not None else None
        return profile.names if profile is not None else ()

    def entries(self, key: ZygoteKey) -> tuple[str, ...]:
        """Return the packages by which other servers recognise calls that need these modules."""
        known = self.known.get(key.environment)
        profile = known.profiles.get(key.profile) if known is not None else None
        return tuple(sorted(profile.entries)) if profile is not None else ()

    def started(self, key: ZygoteKey) -> list[ZygoteKey]:
        """Note that a profile is ready; return profiles that are no longer needed, perhaps it."""
        known = self.known.get(key.environment)
        if known is None or key.profile not in known.profiles:
            return []
        known.uses += 1
        profile = known.profiles[key.profile]
        profile.up, profile.used = True, known.uses
        wanted = set()
        for one in known.functions.values():
            number, best = self._best(known, one, frozenset())
            if best is not None and not conflict(known, touched_by(known, one), best.names):
                wanted.add(number)
        kept = [
            number
            for number, profile in known.profiles.items()
            if profile.seeded or number in wanted
        ]
        kept.sort(key=lambda number: known.profiles[number].used, reverse=True)
        over = [number for number in known.profiles if number not in kept[: self._profiles]]
        over = [number for number in over if known.profiles[number].up]
        for number in over:
            del known.profiles[number]
        known.version += 1
        return [ZygoteKey(key.environment, number) for number in over]

    def behind(self, environment: str) -> ZygoteKey | None:
        """Return the next profile to start, if functions called meanwhile need more."""
        known = self.known.get(environment)
        for one in reversed(known.functions.values()) if known is not None else ():
            if (key := self._grow(environment, known, one)) is not None:  # type: ignore[arg-type]
                return key
        return None

    def failed(self, key: ZygoteKey, module: str | None, why: str) -> None:
        """Record that a profile did not start, because of ``module`` if known."""
        known = self.known.get(key.environment)
        if known is None:
            return
        profile = known.profiles.pop(key.profile, None)
        known.version += 1
        for name in (module,) if module else profile.names if profile is not None else ():
            # Deny the whole package: its next module would fail for the same reason.
            known.denied[package_of(name)] = why

    def skip(self, key: ZygoteKey, modules: Iterable[str], why: str) -> None:
        """Record modules that this zygote could not preload; no zygote will."""
        known = self.known.setdefault(key.environment, LearnedEnvironment())
        skipped = set(modules)
        known.denied.update(dict.fromkeys(skipped, why))
        known.version += 1
        profile = known.profiles.get(key.profile)
        if profile is not None:
            left = profile_of([name for name in profile.names if name not in skipped])
            left.up, left.used = profile.up, profile.used
            left.entries = profile.entries
            left.seeded = profile.seeded and (bool(left.outside) or not profile.outside)
            known.profiles[key.profile] = left

    def read(self, key: ZygoteKey, reads: dict[str, list[str]]) -> None:
        """Record what imports of preloaded modules read, and by which modules."""
        known = self.known.setdefault(key.environment, LearnedEnvironment())
        for what, modules in reads.items():
            known.reads.setdefault(what, {}).update((package_of(one), one) for one in modules)
        known.version += 1

    # What was learned at other times.

    def seed(self, environment: str, modules: Iterable[str], entries: Iterable[str] = ()) -> None:
        """Record what calls of a new environment imported elsewhere, to preload it from the start.

        ``entries``: the packages that the sources of those calls name.
        """
        if environment in self.known:
            return
        known = LearnedEnvironment()
        names = [name for name in modules if self._allowed(name, known)][:MODULES]
        if names and (named := frozenset(entries)):
            profile = profile_of(names)
            profile.up, profile.seeded, profile.entries = True, True, named
            known.profiles[1], known.last_profile = profile, 1
            self.known[environment] = known

    def forget(self, environment: str) -> None:
        """Forget an environment that is no longer used."""
        self.known.pop(environment, None)

    # For stats.

    def denied(self, environment: str) -> dict[str, str]:
        """Return modules that are not preloaded, or not for all functions, with the reason."""
        known = self.known.get(environment)
        if known is None:
            return {}
        found = dict(known.denied)
        for one in known.functions.values():
            names = [name for name in one.needs if self._allowed(name, known)]
            hit = conflict(known, touched_by(known, one), names) if names else None
            if hit is not None and hit.module in one.needs:
                found.setdefault(hit.module, why_not(hit))
        return found

    def _may_be_named(self, name: str) -> bool:
        # Inner modules must be imported by the modules that need them, at the right moment:
        # `_asyncio` imported before `asyncio` leaves it broken.
        if name.startswith("_") or len(name) > NAME:
            return False
        top = package_of(name)
        return any(fnmatchcase(name, p) or fnmatchcase(top, p) for p in self._patterns)

    def _allowed(self, name: str, known: LearnedEnvironment) -> bool:
        return (
            name not in known.denied
            and package_of(name) not in known.denied
            and self._may_be_named(name)
        )
