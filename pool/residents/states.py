"""Types of `InstanceTable`: commands, states, requests, instances."""

from __future__ import annotations

import enum
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from flashpool.pool.calls import InstanceRequest

#: After so many deaths while loading within `CRASH_WINDOW_S`, loading is not tried for a while.
CRASHES: Final = 3
CRASH_WINDOW_S: Final = 60.0
#: Seconds after which an idle instance closes that has no name and was called at most once.
UNNAMED_IDLE_S: Final = 60.0
#: Most instances whose generation and end are remembered after they are gone.
REMEMBERED: Final = 4096


class Load(NamedTuple):
    """Have a worker load an instance; `loading`, then `loaded`, `not_loaded` or `gone` follow."""

    instance: str


class Abandon(NamedTuple):
    """Withdraw a `Load` that no worker has begun, because it is no longer needed."""

    instance: str


class WantSlot(NamedTuple):
    """Ask for a slot, for which calls have waited since ``since``; `granted` follows."""

    instance: str
    since: float


class KeepSlot(NamedTuple):
    """Keep the slot for the instance's next call, unless a call elsewhere has waited longer.

    ``since``: when the next call arrived. `granted` follows.
    """

    instance: str
    since: float


class ReleaseSlot(NamedTuple):
    """Release the instance's slot: no call runs in it."""

    instance: str


class Invoke(NamedTuple):
    """Send the call to the instance."""

    call: int
    instance: str


class Close(NamedTuple):
    """Let the instance close itself, after which its worker exits; `gone` follows."""

    instance: str
    reason: str


class Refuse(NamedTuple):
    """Fail a waiting call: its instance cannot be loaded, because of ``reason``."""

    call: int
    instance: str
    reason: str


class Lose(NamedTuple):
    """Fail a waiting call: the instance it requires no longer exists, because of ``reason``."""

    call: int
    instance: str
    reason: str


Command = Load | Abandon | WantSlot | KeepSlot | ReleaseSlot | Invoke | Close | Refuse | Lose


class InstanceState(enum.Enum):
    """States of an instance."""

    #: Called; no room is free yet.
    PENDING = "pending"
    #: Waits for a worker.
    WANTED = "wanted"
    LOADING = "loading"
    READY = "ready"
    #: Asked to close, or its worker is being stopped; the process tree still exists. The stats
    #: document calls this state ``leaving``.
    CLOSING = "leaving"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidentPolicy:
    """The table's settings."""

    #: Instances that may have a worker at once.
    limit: int = 16
    #: Seconds without a call after which an instance is closed; None: never.
    idle_s: float | None = 900.0
    #: Bytes that all instances together may use before idle ones are closed; None: no limit.
    memory_bytes: int | None = None
    #: The same for GPU memory.
    gpu_bytes: int | None = None


class Conflict(Exception):
    """An instance of that name exists, with other code."""


class NotThere(Exception):
    """The instance that a call requires does not exist; the message says why."""


@dataclass(slots=True)
class WaitingCall:
    """A call in the wait queue of its instance."""

    want: InstanceRequest
    since: float
    #: Whether the call needs a new instance: an existing instance must be closed first.
    anew: bool


@dataclass(slots=True)
class Instance:
    """One instance name, and the instance that exists under it now."""

    name: str
    #: The request from which the instance is, or was last, created.
    want: InstanceRequest
    generation: int
    #: Why the previous generation ended; None: this is the first.
    rebuilt_because: str | None = None
    state: InstanceState = InstanceState.PENDING
    last_used: float = 0.0
    #: Calls that began in this generation.
    calls: int = 0
    #: Waiting calls, in the order of their arrival.
    waiting: dict[int, WaitingCall] = field(default_factory=dict)
    #: Running calls, and whether each may overlap others.
    running: dict[int, bool] = field(default_factory=dict)
    #: Methods whose calls may overlap; known once the instance is loaded.
    overlapping: frozenset[str] = frozenset()
    has_slot: bool = False
    asked_slot: bool = False
    #: Why the instance is closed once its calls are over; empty: it is not.
    released: str = ""
    why_closed: str = ""
    crashes: deque[float] = field(default_factory=deque)
    memory_bytes: int = 0
    gpu_bytes: int = 0

    @property
    def passing(self) -> bool:
        """Return whether another call is unlikely: unnamed, and called at most once."""
        return self.want.unnamed and self.calls <= 1

    @property
    def idle(self) -> bool:
        """Return whether the instance is loaded, and no call runs or waits."""
        return self.state is InstanceState.READY and not self.running and not self.waiting

    @property
    def since(self) -> float:
        """Return when the first waiting call arrived."""
        return next((one.since for one in self.waiting.values()), self.last_used)

    @property
    def next_is_anew(self) -> bool:
        """Return whether the instance must be replaced before the first waiting call can begin."""
        return next((one.anew for one in self.waiting.values()), False)

    @property
    def code_at_the_end(self) -> object:
        """Return the code of the instance that a call gets if it joins the wait queue now."""
        for one in reversed(self.waiting.values()):
            if one.anew:
                return one.want.code
        if self.state not in (InstanceState.LOADING, InstanceState.READY):
            for one in self.waiting.values():
                return one.want.code  # the next instance is created for the first waiting call
        return self.want.code

    def heir(self, call: int) -> WaitingCall | None:
        """Return the call for which a new instance is created in place of a withdrawn call: the
        next call behind it.
        """
        if not self.waiting[call].anew:
            return None
        calls = list(self.waiting)
        behind = calls.index(call) + 1
        return self.waiting[calls[behind]] if behind < len(calls) else None

    def insisting(self) -> list[int]:
        """Return calls that require this instance, now that it is gone.

        Calls behind a replacement that accept any generation may use the new one.
        """
        found = []
        replaced = False
        for call, one in self.waiting.items():
            replaced = replaced or one.anew
            if one.want.must_exist and (one.want.generation or not replaced):
                found.append(call)
        return found


class Past(NamedTuple):
    """What is remembered about an instance that no longer exists."""

    #: The generation of the last instance whose creation had begun; 0: none.
    generation: int
    reason: str
    crashes: deque[float]


class History:
    """The past of instances, by name: the latest ones, up to a limit."""

    def __init__(self) -> None:
        self._past: OrderedDict[str, Past] = OrderedDict()

    def of(self, name: str) -> Past | None:
        """Return the past of a name, if any."""
        return self._past.get(name)

    def next_of(self, want: InstanceRequest) -> Instance:
        """Return the next instance under a name, to be created now."""
        past = self._past.get(want.instance)
        if past is None:
            return Instance(want.instance, want, 1)
        because = past.reason if past.generation else None
        crashes = past.crashes
        return Instance(want.instance, want, past.generation + 1, because, crashes=crashes)

    def remember(self, instance: Instance, reason: str, *, made: bool) -> None:
        """Remember an instance that has ended; ``made``: its creation had begun."""
        generation = instance.generation if made else instance.generation - 1
        if not generation and not instance.crashes:
            return
        self._past[instance.name] = Past(generation, reason, instance.crashes)
        self._past.move_to_end(instance.name)
        if len(self._past) > REMEMBERED:
            self._past.popitem(last=False)

    def crash_loop(self, instance: Instance, now: float) -> str:
        """Return why an instance that died repeatedly while loading is not loaded now; or empty."""
        crashes = instance.crashes
        while crashes and now - crashes[0] > CRASH_WINDOW_S:
            crashes.popleft()
        if len(crashes) < CRASHES:
            return ""
        past = self._past.get(instance.name)
        wait_s = CRASH_WINDOW_S - (now - crashes[0])
        return (
            f"its worker died {len(crashes)} times while it was loaded, within "
            f"{CRASH_WINDOW_S:.0f} s, the last time because: {past.reason if past else 'unknown'}. "
            f"It is not tried again for {wait_s:.0f} s"
        )


def check_there(want: InstanceRequest, instance: Instance | None, past: Past | None) -> None:
    """Check whether a call that requires an existing instance may wait for it.

    Raises:
        NotThere: the instance does not exist.
    """
    if instance is not None and want.generation in (0, instance.generation):
        if instance.state is not InstanceState.CLOSING:
            return
        raise NotThere(instance.why_closed)
    if past is not None and past.generation:
        raise NotThere(past.reason)
    if instance is None and want.generation != 1:
        raise NotThere("no instance of this name has existed")
