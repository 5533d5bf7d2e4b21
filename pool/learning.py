"""What to preload: learned from what calls imported. Decisions only.

An environment has a lean zygote (profile 0) and, once calls imported something beyond
the runtime, a loaded one with the union of it. A function is sent to the loaded zygote
if what it imported before is there; all others stay on the lean one, whose forks do not
pay for pages that they do not need.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Final

from .commands import ZygoteKey

#: Functions remembered per environment; the least recently called is forgotten.
FUNCTIONS: Final = 4096
#: As many standard modules as a call may import without being sent to a loaded zygote.
CHEAP: Final = 8
#: Modules preloaded in one zygote, and characters of the name of one.
MODULES: Final = 4000
NAME: Final = 500


@dataclass(slots=True)
class _Environment:
    #: What each function imported, by function key; empty: nothing new.
    functions: OrderedDict[Hashable, frozenset[str]] = field(default_factory=OrderedDict)
    #: Modules of the loaded zygote in use, of the one being started, of those refused.
    loaded: tuple[str, ...] = ()
    loaded_profile: int = 0
    pending: tuple[str, ...] = ()
    pending_profile: int = 0
    denied: dict[str, str] = field(default_factory=dict)
    last_profile: int = 0
    #: What is loaded was learned before, from functions that are not known by name here.
    seeded: bool = False


def _cheap(names: list[str]) -> bool:
    """A few modules of the standard library load faster than a larger zygote forks."""
    return len(names) < CHEAP and all(
        name.partition(".")[0] in sys.stdlib_module_names for name in names
    )


class Learner:
    """Routes calls to profiles, and says when a new profile is worth starting."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self._patterns = tuple(patterns)
        self._environments: dict[str, _Environment] = {}

    def route(self, environment: str, function: Hashable) -> ZygoteKey:
        """The zygote for a call of this function."""
        known = self._environments.get(environment)
        if known is None or function is None:
            return ZygoteKey(environment)
        needs = known.functions.get(function)
        if needs is None and known.seeded and known.loaded_profile:
            return ZygoteKey(environment, known.loaded_profile)
        if needs and known.loaded_profile and not needs.isdisjoint(known.loaded):
            return ZygoteKey(environment, known.loaded_profile)
        return ZygoteKey(environment)

    def seed(self, environment: str, modules: Iterable[str]) -> None:
        """What calls of a new environment imported at another time: its first zygote has it."""
        known = _Environment(seeded=True)
        names = tuple(name for name in modules if self._allowed(name, known))[:MODULES]
        if names and environment not in self._environments:
            known.loaded, known.loaded_profile, known.last_profile = names, 1, 1
            self._environments[environment] = known

    def forget(self, environment: str) -> None:
        """It is used no more."""
        self._environments.pop(environment, None)

    def observed(
        self, environment: str, function: Hashable, imported: Iterable[str]
    ) -> ZygoteKey | None:
        """A call of this function imported modules; the profile to start now, if any."""
        if function is None or not self._patterns:
            return None
        known = self._environments.setdefault(environment, _Environment())
        names = [name for name in imported if self._allowed(name, known)]
        if not names or _cheap(names):
            return None
        before = known.functions.pop(function, frozenset())
        known.functions[function] = before | frozenset(names)
        while len(known.functions) > FUNCTIONS:
            known.functions.popitem(last=False)
        return self._grow(environment, known, names)

    def _grow(self, environment: str, known: _Environment, names: list[str]) -> ZygoteKey | None:
        """Ask for a profile with these modules too, unless one is on its way."""
        base = known.pending or known.loaded
        new = [name for name in names if name not in base]
        if not new or known.pending or len(base) + len(new) > MODULES:
            return None
        known.pending = (*known.loaded, *new)
        known.last_profile += 1
        known.pending_profile = known.last_profile
        return ZygoteKey(environment, known.pending_profile)

    def modules(self, key: ZygoteKey) -> tuple[str, ...]:
        """What the zygote of this key preloads because calls imported it."""
        known = self._environments.get(key.environment)
        if known is None or key.profile == 0:
            return ()
        return known.pending if key.profile == known.pending_profile else known.loaded

    def started(self, key: ZygoteKey) -> ZygoteKey | None:
        """The profile is up; the one it replaces, if any."""
        known = self._environments.get(key.environment)
        if known is None or key.profile != known.pending_profile:
            return None
        old = known.loaded_profile
        known.loaded, known.loaded_profile = known.pending, key.profile
        known.pending, known.pending_profile = (), 0
        return ZygoteKey(key.environment, old) if old else None

    def behind(self, environment: str) -> ZygoteKey | None:
        """The next profile to start, when functions learned of meanwhile need more."""
        known = self._environments.get(environment)
        if known is None:
            return None
        needs = dict.fromkeys(name for names in known.functions.values() for name in sorted(names))
        return self._grow(
            environment, known, [name for name in needs if self._allowed(name, known)]
        )

    def failed(self, key: ZygoteKey, module: str | None, why: str) -> None:
        """The profile did not come up, because of this module if one is known."""
        known = self._environments.get(key.environment)
        if known is None:
            return
        in_use = key.profile in (known.pending_profile, known.loaded_profile)
        whole = self.modules(key) if in_use else ()
        for name in (module,) if module is not None else whole:
            # The whole package: the next of its modules would fail for the same reason.
            known.denied[name.partition(".")[0]] = why
        if key.profile == known.pending_profile:
            known.pending, known.pending_profile = (), 0
        elif key.profile == known.loaded_profile:
            known.loaded, known.loaded_profile = (), 0

    def skip(self, key: ZygoteKey, module: str, why: str) -> None:
        """The module could not be imported there; do not try again."""
        known = self._environments.get(key.environment)
        if known is not None:
            known.denied[module] = why

    def denied(self, environment: str) -> dict[str, str]:
        """Modules that are not preloaded, and why."""
        known = self._environments.get(environment)
        return dict(known.denied) if known else {}

    def _allowed(self, name: str, known: _Environment) -> bool:
        if name in known.denied or name.startswith(("_flashpool", "__main__", "__mp_main__")):
            return False
        if len(name) > NAME:
            return False
        top = name.partition(".")[0]
        return top not in known.denied and any(
            fnmatchcase(name, p) or fnmatchcase(top, p) for p in self._patterns
        )
