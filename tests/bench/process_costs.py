"""CPU time and page faults of a process and all below it, by the kernel's accounts.

Read from ``/proc/PID/stat``: a process's own figures, and those of the children it has waited
for (`cutime`, `cminflt`), theirs included. Together they never count anything twice, and they
only grow. CPU time comes in clock ticks, 10 ms on most machines: divide by thousands of calls.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from bench.lb_server import until

#: By depth below the root, which is a server or a program that uses `Pool`: guards and their
#: zygotes are the next two levels, what zygotes fork is deeper.
PARTS = ("supervisor", "zygotes", "workers")
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
SETTLE_S = 20.0
PAUSE_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Minor page faults, and CPU time of user and kernel."""

    faults: float = 0.0
    cpu_s: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(faults=self.faults + other.faults, cpu_s=self.cpu_s + other.cpu_s)

    def __sub__(self, other: "Cost") -> "Cost":
        return Cost(faults=self.faults - other.faults, cpu_s=self.cpu_s - other.cpu_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Process:
    pid: int
    parent: int
    own: Cost
    waited_for: Cost


Costs = dict[str, Cost]


def none() -> Costs:
    return dict.fromkeys(PARTS, Cost())


def total(costs: Costs) -> Cost:
    return sum(costs.values(), Cost())


def added(one: Costs, other: Costs) -> Costs:
    return {part: one[part] + other[part] for part in PARTS}


def since(before: Costs, now: Costs) -> Costs:
    return {part: now[part] - before[part] for part in PARTS}


def settled(root: int) -> Costs:
    """The costs so far of each of `PARTS`, once no process below comes or goes: workers that
    have answered are gone and accounted for, spares are forked.
    """
    tree = _tree(root)

    def same() -> bool:
        nonlocal tree
        before, tree = tree, _tree(root)
        return _alive(before) == _alive(tree)

    until(same, SETTLE_S, PAUSE_S)
    return _by_part(tree)


def _alive(tree: list[tuple[int, _Process]]) -> tuple[set[int], float]:
    """Living processes, and faults of earlier ones: a pid may be reused."""
    return {process.pid for _, process in tree}, sum(
        process.waited_for.faults for _, process in tree
    )


def _by_part(tree: list[tuple[int, _Process]]) -> Costs:
    costs = none()
    for depth, process in tree:
        costs[_part(depth)] += process.own
        costs[_part(depth + 1)] += process.waited_for
    return costs


def _part(depth: int) -> str:
    return PARTS[0] if depth == 0 else PARTS[1] if depth < 3 else PARTS[2]


def _tree(root: int) -> list[tuple[int, _Process]]:
    """The root and all below it, each with its depth.

    Raises:
        ProcessLookupError: the root is gone.
    """
    found = {process.pid: process for process in _processes()}
    if root not in found:
        raise ProcessLookupError(f"process {root} is gone")
    below: dict[int, list[_Process]] = {}
    for process in found.values():
        below.setdefault(process.parent, []).append(process)
    tree = [(0, found[root])]
    for depth, process in tree:
        tree += ((depth + 1, child) for child in below.get(process.pid, ()))
    return tree


def _processes() -> list[_Process]:
    """All of the machine: the lists of children that the kernel keeps may miss some."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                text = Path("/proc", name, "stat").read_text("utf-8", "replace")
            except (FileNotFoundError, ProcessLookupError):
                continue  # the process has exited since
            found.append(_parsed(int(name), text))
    return found


def _parsed(pid: int, text: str) -> _Process:
    """Fields are counted from behind the name, which may hold anything: see proc(5)."""
    fields = text[text.rindex(")") + 2 :].split()
    user, system, waited_user, waited_system = (int(ticks) * TICK_S for ticks in fields[11:15])
    return _Process(
        pid=pid,
        parent=int(fields[1]),
        own=Cost(faults=int(fields[7]), cpu_s=user + system),
        waited_for=Cost(faults=int(fields[8]), cpu_s=waited_user + waited_system),
    )
