"""Class instances that live on in workers: decisions only. No clock, no process in here.

    called, withdrawn                            Load, Abandon, WantSlot, Rest
    loading, loaded, not_loaded        --->      Invoke, Close, Refuse
    granted, answered, leaving, gone
    measured, needed, tick

An instance and its moves::

    PENDING --Load--> WANTED --loading--> LOADING --loaded--> READY --Close--> LEAVING
       ^                 |                   |                  |                 |
       |              Abandon            not_loaded          leaving            gone
       +-----------------+-------------------+------------------+-----------------+

The rules:

* The first call for an instance has it loaded, once, however many follow; they wait for it.
* Its calls begin in the order of their arrival. Those to methods that may overlap (async
  ones) run together, up to its concurrency; every other one runs alone.
* It holds a CPU slot while a call runs in it, and none while it is idle; what GPUs it was
  given it keeps for as long as its worker lives.
* At most ``limit`` have a worker. For one more, the one that is idle for longest is closed
  first; while none is idle, the new one waits. Loading or called ones are never closed.
* One that died, was closed or replaced is loaded again by the next call that allows it,
  with a ``generation`` one higher. One whose loading killed its worker `CRASHES` times within
  `CRASH_WINDOW_S` is not loaded again until that time is over.
"""

from __future__ import annotations

import enum
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

#: Deaths while loading within `CRASH_WINDOW_S`, past which nobody tries again.
CRASHES: Final = 3
CRASH_WINDOW_S: Final = 60.0
#: Instances that are no more, but whose generation and end are remembered.
REMEMBERED: Final = 4096


class Load(NamedTuple):
    """Have a worker load it; `loading`, then `loaded`, `not_loaded` or `gone` follow."""

    instance: str


class Abandon(NamedTuple):
    """Nobody waits for it any more: take `Load` back, which no worker has begun with."""

    instance: str


class WantSlot(NamedTuple):
    """Calls wait for it since that time; answer with `granted`."""

    instance: str
    since: float


class Rest(NamedTuple):
    """Nothing runs in it: its slot is free."""

    instance: str


class Invoke(NamedTuple):
    """Hand it the call."""

    call: int
    instance: str


class Close(NamedTuple):
    """Let it close itself, then end its worker; `gone` follows."""

    instance: str
    reason: str


class Refuse(NamedTuple):
    """End a waiting call: its instance cannot be loaded, because of ``reason``."""

    call: int
    instance: str
    reason: str


Command = Load | Abandon | WantSlot | Rest | Invoke | Close | Refuse


class State(enum.Enum):
    """Of one instance."""

    #: Called for; there is no room for it, or its former worker is not gone yet.
    PENDING = "pending"
    #: It waits for a worker.
    WANTED = "wanted"
    LOADING = "loading"
    READY = "ready"
    #: Told to close, or being killed; its worker is not gone yet.
    LEAVING = "leaving"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The table's settings."""

    #: Instances that may have a worker at once.
    limit: int = 16
    #: Seconds without a call after which one is closed; None: never.
    idle_s: float | None = 900.0
    #: Bytes that all together may use before idle ones are closed; None: no limit.
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Want:
    """What a call says of the instance it is for."""

    instance: str
    #: Equal for calls that mean the same class, environment and resources.
    code: object
    class_name: str = ""
    #: Equal for calls with the same constructor arguments.
    arguments: object = None
    method: str = "__call__"
    #: Calls to async methods that may run in it together.
    concurrency: int = 1
    #: Replace the one that is there.
    anew: bool = False
    #: What a worker makes it of; None: the body of the call. Nobody here looks into it.
    load: bytes | None = None
    #: Do not load it again: it must be there, of this generation (0: any), or else be the
    #: first of its name and asked for as such.
    must_exist: bool = False
    generation: int = 0


class Conflict(Exception):
    """There is an instance of that name with other code."""


class NotThere(Exception):
    """The call asked for an instance that must be there, and is not; says what became of it."""


@dataclass(slots=True)
class Instance:
    """What is known of one instance."""

    name: str
    class_name: str
    code: object
    arguments: object
    concurrency: int
    generation: int
    state: State = State.PENDING
    since: float = 0.0
    last_used: float = 0.0
    #: Calls that began in it, in this generation.
    calls: int = 0
    waiting: dict[int, tuple[float, str]] = field(default_factory=dict)
    running: dict[int, bool] = field(default_factory=dict)
    #: Methods whose calls may overlap; known once it is loaded.
    overlapping: frozenset[str] = frozenset()
    has_slot: bool = False
    asked_slot: bool = False
    #: No more calls; it closes when those that run have ended.
    replaced: bool = False
    #: Why nobody has a use for it once its calls are over; or nothing.
    released: str = ""
    why_leaving: str = ""
    crashes: deque[float] = field(default_factory=deque)
    memory_bytes: int = 0

    @property
    def idle(self) -> bool:
        """Loaded, and nobody needs it now."""
        return self.state is State.READY and not self.running and not self.waiting


class _Past(NamedTuple):
    generation: int
    reason: str
    crashes: deque[float]


class Residents:
    """The table of instances."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        #: Calls that wait for an instance, or in one.
        self.waiting = 0
        self._instances: dict[str, Instance] = {}
        self._of_call: dict[int, Instance] = {}
        self._past: OrderedDict[str, _Past] = OrderedDict()

    def __iter__(self) -> Iterator[Instance]:
        return iter(self._instances.values())

    def __len__(self) -> int:
        return len(self._instances)

    def get(self, name: str) -> Instance | None:
        """One by its name."""
        return self._instances.get(name)

    # Calls.

    def called(self, call: int, want: Want, now: float) -> list[Command]:
        """A call for an instance arrived.

        Raises:
            Conflict: the instance has other code; nothing was changed.
            NotThere: it had to be there, and is not; nothing was changed.
        """
        instance = self._wanted(want, now)
        refusal = self._crash_loop(instance, now)
        instance.waiting[call] = (now, want.method)
        self._of_call[call] = instance
        self.waiting += 1
        if refusal:
            return self._refuse(instance, refusal)
        if want.anew and instance.state in (State.LOADING, State.READY):
            instance.replaced = True
        return self._settle(instance, now)

    def withdrawn(self, call: int, now: float) -> list[Command] | None:
        """A call is cancelled or timed out; None when it runs already, or is not of here."""
        instance = self._of_call.get(call)
        if instance is None or call not in instance.waiting:
            return None
        self._forget(instance, call)
        if not instance.waiting and instance.state is State.WANTED:
            self._end(instance, "nobody waited for it any more")
            return [Abandon(instance.name), *self._fill_room(now)]
        if not instance.waiting and instance.state is State.PENDING:
            self._end(instance, "nobody waited for it any more")
        return []

    def answered(self, call: int, now: float) -> list[Command]:
        """A call that ran is over; the instance lives."""
        instance = self._of_call.pop(call, None)
        if instance is None:
            return []
        instance.running.pop(call, None)
        instance.last_used = now
        return self._rest(instance) + self._settle(instance, now) + self._fill_room(now)

    # Instances.

    def loading(self, name: str) -> None:
        """A worker begins to load it; it has a slot."""
        instance = self._instances[name]
        instance.state, instance.has_slot = State.LOADING, True

    def loaded(self, name: str, overlapping: Iterable[str], now: float) -> list[Command]:
        """It can be called; these methods may overlap."""
        instance = self._instances[name]
        instance.state = State.READY
        instance.overlapping = frozenset(overlapping)
        instance.last_used = now
        instance.crashes.clear()
        return self._settle(instance, now) + self._fill_room(now)

    def not_loaded(self, name: str, reason: str, crashed_at: float | None = None) -> list[int]:
        """It could not be loaded; those that waited, to be told. `gone` follows.

        ``crashed_at``: when its worker died of it.
        """
        instance = self._instances[name]
        if crashed_at is not None:
            instance.crashes.append(crashed_at)
        calls = list(instance.waiting)
        for call in calls:
            self._forget(instance, call)
        self.leaving(name, reason)
        return calls

    def leaving(self, name: str, reason: str) -> None:
        """Its worker is being ended: no more calls for it. `gone` follows."""
        instance = self._instances[name]
        instance.state = State.LEAVING
        instance.why_leaving = instance.why_leaving or reason

    def gone(self, name: str, reason: str, now: float, *, crashed: bool = False) -> list[Command]:
        """Its worker's process tree is no more, and the calls that ran in it have ended.

        ``crashed``: it died by itself.
        """
        instance = self._instances[name]
        for call in list(instance.running):
            self._of_call.pop(call, None)
        if crashed and instance.state is State.LOADING:
            instance.crashes.append(now)
        self._end(instance, instance.why_leaving or reason)
        commands: list[Command] = []
        if instance.waiting:
            commands = self._again(instance, now)
        return commands + self._fill_room(now)

    def granted(self, name: str, now: float) -> list[Command]:
        """It has a slot."""
        instance = self._instances[name]
        instance.has_slot, instance.asked_slot = True, False
        return self._settle(instance, now)

    # Eviction.

    def tick(self, now: float) -> list[Command]:
        """Close what nobody called for long, and what is too much. Every second or so."""
        commands: list[Command] = []
        idle_s = self.policy.idle_s
        for instance in list(self._instances.values()):
            if idle_s is not None and instance.idle and now - instance.last_used > idle_s:
                commands += self._close(instance, f"nobody called it for {idle_s:g} s")
        return commands + self._trim_memory()

    def measured(self, name: str, memory_bytes: int) -> None:
        """What its process tree uses."""
        instance = self._instances.get(name)
        if instance is not None:
            instance.memory_bytes = memory_bytes

    def needed(self, holders: Iterable[str], reason: str) -> list[Command]:
        """One of these holds what a call waits for: close the one idle for longest, if any."""
        idle = [one for name in holders if (one := self._instances.get(name)) and one.idle]
        return self._close(_oldest(idle), reason) if idle else []

    def close_idle(self, reason: str) -> list[Command]:
        """Close all that nobody needs now."""
        return [
            command
            for instance in list(self._instances.values())
            if instance.idle
            for command in self._close(instance, reason)
        ]

    def release(self, name: str, reason: str, now: float) -> list[Command]:
        """Its owner has no more use for it: close it when its calls are over."""
        instance = self._instances.get(name)
        if instance is None:
            return []
        instance.released = reason
        return self._settle(instance, now)

    # Decisions.

    def _wanted(self, want: Want, now: float) -> Instance:
        instance = self._instances.get(want.instance)
        past = self._past.get(want.instance)
        if want.must_exist:
            self._check_there(want, instance, past)
        if instance is None:
            generation = past.generation + 1 if past else 1
            instance = self._instances[want.instance] = Instance(
                want.instance,
                want.class_name,
                want.code,
                want.arguments,
                want.concurrency,
                generation,
                since=now,
            )
            if past is not None:
                instance.crashes = past.crashes
        elif instance.code != want.code:
            if not want.anew:
                raise Conflict
            instance.class_name, instance.code = want.class_name, want.code
            instance.concurrency, instance.arguments = want.concurrency, want.arguments
        elif want.anew:
            instance.arguments = want.arguments
        return instance

    def _check_there(self, want: Want, instance: Instance | None, past: _Past | None) -> None:
        if instance is not None and want.generation in (0, instance.generation):
            if instance.state is not State.LEAVING:
                return
            raise NotThere(instance.why_leaving)
        if past is not None:
            raise NotThere(past.reason)
        if instance is None and want.generation != 1:
            raise NotThere("there was none of this name")

    def _crash_loop(self, instance: Instance, now: float) -> str:
        crashes = instance.crashes
        while crashes and now - crashes[0] > CRASH_WINDOW_S:
            crashes.popleft()
        if len(crashes) < CRASHES or instance.state is not State.PENDING:
            return ""
        past = self._past.get(instance.name)
        wait_s = CRASH_WINDOW_S - (now - crashes[0])
        return (
            f"its worker died {len(crashes)} times while it was loaded, within "
            f"{CRASH_WINDOW_S:.0f} s, the last time because: {past.reason if past else 'unknown'}. "
            f"It is not tried again for {wait_s:.0f} s"
        )

    def _refuse(self, instance: Instance, reason: str) -> list[Command]:
        refused: list[Command] = [Refuse(call, instance.name, reason) for call in instance.waiting]
        for call in list(instance.waiting):
            self._forget(instance, call)
        self._instances.pop(instance.name, None)
        return refused

    def _settle(self, instance: Instance, now: float) -> list[Command]:
        """What can be done for one instance now."""
        if instance.state is State.PENDING:
            return self._fill_room(now)
        if instance.state is not State.READY:
            return []
        if instance.replaced:
            return [] if instance.running else self._close(instance, "it was replaced")
        if instance.has_slot:
            commands = self._invoke(instance, now) + self._rest(instance)
            return commands + self._close_released(instance)
        if instance.waiting and not instance.asked_slot:
            instance.asked_slot = True
            return [WantSlot(instance.name, _since(instance))]
        return self._close_released(instance)

    def _close_released(self, instance: Instance) -> list[Command]:
        if not (instance.released and instance.idle):
            return []
        return self._close(instance, instance.released)

    def _rest(self, instance: Instance) -> list[Command]:
        """Give the slot back when nothing runs.

        Also when more calls wait: those of others may have waited for longer. One whose
        worker is being ended keeps it until that is gone.
        """
        if instance.running or not instance.has_slot or instance.state is not State.READY:
            return []
        instance.has_slot = False
        return [Rest(instance.name)]

    def _invoke(self, instance: Instance, now: float) -> list[Command]:
        """Begin with the calls that may run now, in the order of their arrival."""
        commands: list[Command] = []
        for call, (_, method) in list(instance.waiting.items()):
            overlaps = method in instance.overlapping and instance.concurrency > 1
            if instance.running and not (overlaps and all(instance.running.values())):
                break
            if len(instance.running) >= instance.concurrency:
                break
            del instance.waiting[call]
            self.waiting -= 1
            instance.running[call] = overlaps
            instance.calls += 1
            instance.last_used = now
            commands.append(Invoke(call, instance.name))
        return commands

    def _fill_room(self, now: float) -> list[Command]:
        """Load those that wait for room, the longest first, and make room for the rest."""
        pending = [one for one in self._instances.values() if one.state is State.PENDING]
        commands: list[Command] = []
        for instance in sorted(pending, key=_since):
            if self._with_worker() >= self.policy.limit:
                break
            instance.state = State.WANTED
            commands.append(Load(instance.name))
        missing = sum(one.state is State.PENDING for one in pending)
        leaving = sum(one.state is State.LEAVING for one in self._instances.values())
        idle = sorted((one for one in self._instances.values() if one.idle), key=_last_used)
        for instance in idle[: max(0, missing - leaving)]:
            commands += self._close(instance, "others needed its room (FLASHPOOL_INSTANCES)")
        return commands

    def _with_worker(self) -> int:
        return sum(one.state is not State.PENDING for one in self._instances.values())

    def _close(self, instance: Instance, reason: str) -> list[Command]:
        reason = instance.why_leaving or reason
        commands = self._rest(instance)
        self.leaving(instance.name, reason)
        return [*commands, Close(instance.name, reason)]

    def _trim_memory(self) -> list[Command]:
        limit = self.policy.memory_bytes
        used = sum(one.memory_bytes for one in self._instances.values())
        commands: list[Command] = []
        for instance in sorted((one for one in self if one.idle), key=_last_used):
            if limit is None or used <= limit:
                break
            used -= instance.memory_bytes
            commands += self._close(
                instance, f"the instances use more than {limit >> 20} MB (FLASHPOOL_INSTANCES_MB)"
            )
        return commands

    def _again(self, instance: Instance, now: float) -> list[Command]:
        """It is gone, and calls wait for it: have it loaded anew, unless that is hopeless."""
        fresh = Instance(
            instance.name,
            instance.class_name,
            instance.code,
            instance.arguments,
            instance.concurrency,
            instance.generation + 1,
            since=now,
            waiting=instance.waiting,
            released=instance.released,
            crashes=instance.crashes,
        )
        self._instances[fresh.name] = fresh
        self._of_call.update(dict.fromkeys(fresh.waiting, fresh))
        refusal = self._crash_loop(fresh, now)
        return self._refuse(fresh, refusal) if refusal else []

    def _end(self, instance: Instance, reason: str) -> None:
        del self._instances[instance.name]
        self._past[instance.name] = _Past(instance.generation, reason, instance.crashes)
        self._past.move_to_end(instance.name)
        if len(self._past) > REMEMBERED:
            self._past.popitem(last=False)

    def _forget(self, instance: Instance, call: int) -> None:
        del instance.waiting[call]
        del self._of_call[call]
        self.waiting -= 1


def _since(instance: Instance) -> float:
    return next((since for since, _ in instance.waiting.values()), instance.since)


def _last_used(instance: Instance) -> float:
    return instance.last_used


def _oldest(instances: list[Instance]) -> Instance:
    return min(instances, key=_last_used)
