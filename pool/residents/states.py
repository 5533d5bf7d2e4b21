"""Types of `InstanceTable`: commands, states, requests, instances."""

from __future__ import annotations

import enum
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from flashpool.pool.calls import InstanceRequest

#: Deaths while loading within `CRASH_WINDOW_S` after which no further attempt is made.
CRASHES: Final = 3
CRASH_WINDOW_S: Final = 60.0
#: Seconds after which one closes that was called once, by a caller that gave it no name.
UNNAMED_IDLE_S: Final = 60.0
#: Instances that are no more, but whose generation and end are remembered.
REMEMBERED: Final = 4096


class Load(NamedTuple):
    """Have a worker load it; `loading`, then `loaded`, `not_loaded` or `gone` follow."""

    instance: str


class Abandon(NamedTuple):
    """Withdraw a `Load` that no worker has begun, because it is no longer needed."""

    instance: str


class WantSlot(NamedTuple):
    """Ask for a slot: calls wait for it since that time; answer with `granted`."""

    instance: str
    since: float


class KeepSlot(NamedTuple):
    """Pass its slot to its next call, which waits since then, unless another has waited longer;
    answer with `granted`.
    """

    instance: str
    since: float


class ReleaseSlot(NamedTuple):
    """Release its slot: nothing runs in it."""

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


class Lose(NamedTuple):
    """End a waiting call: the instance that it requires no longer exists, because of ``reason``."""

    call: int
    instance: str
    reason: str


Command = Load | Abandon | WantSlot | KeepSlot | ReleaseSlot | Invoke | Close | Refuse | Lose


class InstanceState(enum.Enum):
    """States of an instance."""

    #: It was called; there is no room for it, or its previous worker has not exited yet.
    PENDING = "pending"
    #: It waits for a worker.
    WANTED = "wanted"
    LOADING = "loading"
    READY = "ready"
    #: It was asked to close, or its worker is being stopped; its process tree still exists. The
    #: stats document calls this state ``leaving``.
    CLOSING = "leaving"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidentPolicy:
    """The table's settings."""

    #: Instances that may have a worker at once.
    limit: int = 16
    #: Seconds without a call after which one is closed; None: never.
    idle_s: float | None = 900.0
    #: Bytes that all together may use before idle ones are closed; None: no limit.
    memory_bytes: int | None = None
    #: The same for GPU memory.
    gpu_bytes: int | None = None


class Conflict(Exception):
    """An instance of that name with other code exists."""


class NotThere(Exception):
    """The instance that a call requires does not exist; the message says what happened to it."""


@dataclass(slots=True)
class WaitingCall:
    """A call in the wait queue of its instance."""

    want: InstanceRequest
    since: float
    #: Whether the call needs a new instance: an existing one must be closed first.
    anew: bool


@dataclass(slots=True)
class Instance:
    """One instance name, and the instance that exists under it now."""

    name: str
    #: The request from which it is, or was last, created.
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
    #: Running calls, and whether they may overlap.
    running: dict[int, bool] = field(default_factory=dict)
    #: Methods whose calls may overlap; known once it is loaded.
    overlapping: frozenset[str] = frozenset()
    has_slot: bool = False
    asked_slot: bool = False
    #: Why it is closed once its calls are over; or empty.
    released: str = ""
    why_closed: str = ""
    crashes: deque[float] = field(default_factory=deque)
    memory_bytes: int = 0
    gpu_bytes: int = 0

    @property
    def passing(self) -> bool:
        """Return whether it is unlikely to be called again: unnamed, or never used."""
        return self.want.unnamed and self.calls <= 1

    @property
    def idle(self) -> bool:
        """Return whether it is loaded and not needed now."""
        return self.state is InstanceState.READY and not self.running and not self.waiting

    @property
    def since(self) -> float:
        """Return when the first waiting call arrived."""
        return next((one.since for one in self.waiting.values()), self.last_used)

    @property
    def next_is_anew(self) -> bool:
        """Return whether it must be closed before any waiting call can begin."""
        return next((one.anew for one in self.waiting.values()), False)

    @property
    def code_at_the_end(self) -> object:
        """The code that a call gets which joins the wait queue now."""
        for one in reversed(self.waiting.values()):
            if one.anew:
                return one.want.code
        if self.state not in (InstanceState.LOADING, InstanceState.READY):
            for one in self.waiting.values():
                return one.want.code  # it will be made for the first that waits
        return self.want.code

    def heir(self, call: int) -> WaitingCall | None:
        """Return the call that gets what was to be created for a withdrawn call: the next one
        behind it.
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
    """What is remembered of an instance that no longer exists."""

    #: Of the last instance that was created, or begun; 0: none.
    generation: int
    reason: str
    crashes: deque[float]


class History:
    """The past of instances, by name: the latest ones, up to a limit."""

    def __init__(self) -> None:
        self._past: OrderedDict[str, Past] = OrderedDict()

    def of(self, name: str) -> Past | None:
        """The one before, if there was any."""
        return self._past.get(name)

    def next_of(self, want: InstanceRequest) -> Instance:
        """The one to be made now under a name."""
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
        """Return why an instance that died repeatedly while loading is not tried now; or empty."""
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
        NotThere: it is not there.
    """
    if instance is not None and want.generation in (0, instance.generation):
        if instance.state is not InstanceState.CLOSING:
            return
        raise NotThere(instance.why_closed)
    if past is not None and past.generation:
        raise NotThere(past.reason)
    if instance is None and want.generation != 1:
        raise NotThere("no instance of this name has existed")
