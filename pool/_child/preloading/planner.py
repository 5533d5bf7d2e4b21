"""Plans what a zygote preloads. The planning runs in forks that are discarded.

    zygote --fork--> planner --fork--> scout: imports, facts --> planner: Findings --> Plan

Forks of the zygote would pay for all memory that planning uses, so another process plans, and the
zygote receives only the plan.
"""

from __future__ import annotations

import json
import os
import sys
from collections import namedtuple

from .. import forking, processes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

#: Number of crashes of scouts after which nothing is preloaded.
_CRASHES = 3

#: ``order``: the modules to import. ``skipped``: the others, with reasons. ``reads``: what each
#: module reads from its surroundings; ``users``: the modules that import such a module. ``places``:
#: see `drawn_values`.
Plan = namedtuple("Plan", "order skipped reads users places")


def plan(names: list[str], varying: list[str], tell: Callable[[str], None]) -> Plan:
    """Have scouts import the modules; ``tell`` is called with each module's name before its import.

    ``varying``: environment variables that differ between calls.
    """
    fd = os.memfd_create("flashpool-plan")
    pid = forking.fork()
    if pid == 0:
        try:
            # Make processes that scouts leave behind children of this process.
            processes.become_subreaper()
            found = json.dumps(_plan(names, varying, tell))
            # An import may have written to every open descriptor.
            os.ftruncate(fd, 0)
            os.pwrite(fd, found.encode(), 0)
        except BaseException as error:
            why = f"the process that planned what to preload failed: {error!r}"
            if isinstance(error, OSError):
                why = f"{why}: {error}"  # adds "[Errno ...]"
            os.ftruncate(fd, 0)
            os.pwrite(fd, json.dumps(_nothing(names, why)).encode(), 0)
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    processes.kill_descendants()
    with open(fd, "rb") as file:
        file.seek(0)
        text = file.read()
    try:
        return Plan(*json.loads(text))
    except ValueError:
        return _nothing(
            names, "the process that planned what to preload ended before it had a plan"
        )


def _nothing(names: list[str], why: str) -> Plan:
    return Plan([], dict.fromkeys(names, why), {}, {}, [])


def _plan(names: list[str], varying: list[str], tell: Callable[[str], None]) -> Plan:
    findings = _explore(names, varying, tell)
    skipped = findings.rejected(names)
    kept = [name for name in names if name not in skipped]
    users = {name: findings.users(name) for name in findings.reads}
    reads = {name: list(facts) for name, facts in findings.reads.items()}
    order = natural_order(kept, findings.edges)
    return Plan(order, skipped, reads, users, findings.places)


class Findings:
    """The results of a scout."""

    def __init__(self) -> None:
        #: Modules that must not be preloaded, and why.
        self.unfit: dict[str, str] = {}
        self.edges: dict[str, list[str]] = {}
        #: What each module read from its surroundings; ``set:NAME`` is a variable that it set.
        self.reads: dict[str, dict[str, str | None]] = {}
        #: Why the scout itself failed; or empty.
        self.failure = ""
        #: Where modules keep values that must differ between processes: see `drawn_values`.
        self.places: list[list[Any]] = []

    def users(self, name: str) -> list[str]:
        """Return the modules that import this module."""
        return [user for user, needed in self.edges.items() if name in needed]

    def rejected(self, names: Iterable[str]) -> dict[str, str]:
        """Return modules that must not be preloaded: unfit, or in need of an unfit module."""
        users: dict[str, list[str]] = {}
        for user, needed in self.edges.items():
            for name in needed:
                users.setdefault(name, []).append(user)
        why = dict(self.unfit)
        left = list(why)
        while left:
            name = left.pop()
            for user in users.get(name, ()):
                if user not in why:
                    why[user] = _because(name, why[name])
                    left.append(user)
        for name in names:
            parts = name.split(".")
            above = [".".join(parts[:count]) for count in range(1, len(parts))]
            culprit = next((one for one in above if one in why), None)
            if culprit is not None and name not in why:
                why[name] = _because(culprit, why[culprit])
        return {name: why[name] for name in names if name in why}


def _because(name: str, why: str) -> str:
    return why if why.startswith("it needs ") else f"it needs {name}: {why}"


def _explore(names: list[str], varying: list[str], tell: Callable[[str], None]) -> Findings:
    """Collect the findings of scouts; after a crash, the next scout skips the module to blame."""
    from . import scout

    findings = Findings()
    left: list[str] = list(names)
    for _ in range(_CRASHES):
        found, crashed = _read(scout.send(left, tell))
        found.unfit.update(findings.unfit)
        findings = found
        _reject_varying(findings, varying)
        if found.failure:
            why = f"the process that tried its import failed: {found.failure}"
            findings.unfit.update(dict.fromkeys(left, why))
        if found.failure or crashed is None:
            return findings
        for name in crashed or left:
            findings.unfit.setdefault(name, "its import ended the process")
        rejected = findings.rejected(left)
        left = [name for name in left if name not in rejected]
    for name in left:
        findings.unfit[name] = f"imports beside it ended the process {_CRASHES} times"
    return findings


def _read(lines: Iterable[bytes]) -> tuple[Findings, list[str] | None]:
    """Read one scout's findings; if the scout died, also the module that it was importing."""
    findings = Findings()
    crashed: list[str] | None = []
    for line in lines:
        try:
            kind, *fields = json.loads(line)
        except ValueError:
            continue  # an import wrote to every open descriptor
        if kind == "importing":
            crashed = [fields[0], *fields[1]]
        elif kind == "imported":
            crashed = [name for name in crashed or () if name != fields[0]]
        elif kind == "home":
            crashed = None
        elif kind == "failure":
            findings.failure = fields[0]
        elif kind == "unfit":
            findings.unfit.setdefault(*fields)
        elif kind == "place":
            findings.places.append(fields)
        elif kind in ("edges", "reads"):
            getattr(findings, kind)[fields[0]] = fields[1]
    return findings, crashed


def _reject_varying(findings: Findings, varying: list[str]) -> None:
    for name, facts in findings.reads.items():
        for variable in varying:
            if f"env:{variable}" in facts:
                why = f"it reads {variable} when it is imported, and each call has its own"
                findings.unfit.setdefault(name, why)


def natural_order(names: list[str], edges: dict[str, list[str]]) -> list[str]:
    """Sort modules as calls imported them: first those imported for their own sake, then the rest.

    Names come in the order in which imports ended. The imports of a module's requirements end
    before its own. So the last name was imported for its own sake, then the last name that it does
    not need, and so on.
    """
    covered: set[str] = set()
    entries: list[str] = []
    for name in reversed(names):
        if name in covered:
            continue
        entries.append(name)
        left = [name]
        while left:
            one = left.pop()
            if one not in covered:
                covered.add(one)
                left += edges.get(one, ())
                if parent := one.rpartition(".")[0]:
                    left.append(parent)
    entries.reverse()
    return list(dict.fromkeys(entries + names))
