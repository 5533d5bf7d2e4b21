"""Class instances that live on in workers: decisions only, without clocks or processes.

    called, withdrawn                            Load, Abandon, WantSlot, KeepSlot, ReleaseSlot
    loading, loaded, not_loaded        --->      Invoke, Close, Refuse, Lose
    granted, answered, closing, gone
    measured, needed, tick

An instance and its moves::

    PENDING --Load--> WANTED --loading--> LOADING --loaded--> READY --Close--> CLOSING
       ^                 |                   |                  |                 |
       |              Abandon            not_loaded          closing            gone
       +-----------------+-------------------+------------------+-----------------+

The rules:

* The first call for an instance has it loaded; calls that follow wait for the same instance.
* The calls of an instance begin in the order of their arrival. Calls to methods that may overlap
  (async methods) run together, up to the concurrency; every other call runs alone.
* A call that wants a new instance waits its turn like any other. At its turn, the existing instance
  closes, and a new one is created for this call; calls behind it get the new instance.
* An instance holds a slot while a call runs in it, and none while it is idle. It keeps its GPUs as
  long as its worker lives.
* At most ``limit`` instances have a worker. If one more is called, the instance that is idle for
  longest is closed first; if no instance is idle, the new one waits. Instances that load or run
  calls are never closed. Unnamed instances that were called at most once are closed before others.
* An instance that died, was closed or was replaced is loaded again by the next call that allows
  that, with a ``generation`` higher by one; waiting calls that require the old instance fail.
  An instance whose worker died `CRASHES` times while loading, within `CRASH_WINDOW_S`, is not
  loaded again until that time is over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from flashpool.pool.calls import InstanceRequest

from .eviction import dispensable, due
from .states import (
    Abandon,
    Close,
    Command,
    Conflict,
    History,
    Instance,
    InstanceState,
    Invoke,
    KeepSlot,
    Load,
    Lose,
    Refuse,
    ReleaseSlot,
    ResidentPolicy,
    WaitingCall,
    WantSlot,
    check_there,
)


class InstanceTable:
    """The table of instances."""

    def __init__(self, policy: ResidentPolicy) -> None:
        self.policy = policy
        #: Number of calls that wait: for their instance, or for their turn in it.
        self.waiting = 0
        self._instances: dict[str, Instance] = {}
        #: Instances that wait for room.
        self._pending: dict[str, Instance] = {}
        self._of_call: dict[int, Instance] = {}
        self._history = History()

    def __iter__(self) -> Iterator[Instance]:
        return iter(self._instances.values())

    def __len__(self) -> int:
        return len(self._instances)

    def get(self, name: str) -> Instance | None:
        """Return the instance of that name, if any."""
        return self._instances.get(name)

    # Calls.

    def called(self, call: int, want: InstanceRequest, now: float) -> list[Command]:
        """Handle a new call for an instance.

        Raises:
            Conflict: the instance has other code; nothing was changed.
            NotThere: the call requires an existing instance, which is gone; nothing was changed.
        """
        instance, anew = self._wanted(want)
        instance.waiting[call] = WaitingCall(want, now, anew)
        self._of_call[call] = instance
        self.waiting += 1
        if instance.state is InstanceState.READY:
            return self._settle(instance, now)
        if instance.state is not InstanceState.PENDING:
            return []
        refusal = self._history.crash_loop(instance, now)
        return self._refuse(instance, refusal) if refusal else self._fill_room()

    def withdrawn(self, call: int, now: float) -> list[Command] | None:
        """Withdraw a call that waits; return None if the call runs already, or is unknown."""
        instance = self._of_call.get(call)
        if instance is None or call not in instance.waiting:
            return None
        heir = instance.heir(call)
        self._forget(instance, call)
        if instance.waiting:
            if heir is not None:
                heir.anew = True
            return self._settle(instance, now) if instance.state is InstanceState.READY else []
        if instance.state is InstanceState.WANTED:
            self._end(instance, instance.rebuilt_because or "", made=False)
            return [Abandon(instance.name), *self._fill_room()]
        if instance.state is InstanceState.PENDING:
            self._end(instance, instance.rebuilt_because or "", made=False)
        return self._close_released(instance)

    def answered(self, call: int, now: float) -> list[Command]:
        """Handle the end of a call that ran; the instance lives on."""
        instance = self._of_call.pop(call, None)
        if instance is None:
            return []
        instance.running.pop(call, None)
        instance.last_used = now
        if _goes_on(instance):
            instance.has_slot, instance.asked_slot = False, True
            return [KeepSlot(instance.name, instance.since), *self._fill_room()]
        return self._release_slot(instance) + self._settle(instance, now) + self._fill_room()

    # Instances.

    def loading(self, name: str) -> int:
        """Handle a worker that begins to load an instance, and holds a slot.

        Returns the call for whose class and arguments the instance is created.
        """
        instance = self._instances[name]
        instance.state, instance.has_slot = InstanceState.LOADING, True
        first = next(iter(instance.waiting))
        one = instance.waiting[first]
        instance.want, one.anew = one.want, False
        return first

    def loaded(self, name: str, overlapping: Iterable[str], now: float) -> list[Command]:
        """Handle an instance that is loaded; ``overlapping``: methods whose calls may overlap."""
        instance = self._instances[name]
        instance.state = InstanceState.READY
        instance.overlapping = frozenset(overlapping)
        instance.last_used = now
        instance.crashes.clear()
        return self._settle(instance, now) + self._fill_room()

    def not_loaded(self, name: str, reason: str, crashed_at: float | None = None) -> list[int]:
        """Handle an instance that could not be loaded; return its waiting calls. `gone` follows.

        ``crashed_at``: when the worker died while loading, if it did.
        """
        instance = self._instances[name]
        if crashed_at is not None:
            instance.crashes.append(crashed_at)
        calls = list(instance.waiting)
        for call in calls:
            self._forget(instance, call)
        self.closing(name, reason)
        return calls

    def closing(self, name: str, reason: str) -> None:
        """Handle an instance that closes or is stopped: it gets no more calls. `gone` follows."""
        instance = self._instances[name]
        self._pending.pop(name, None)
        instance.state = InstanceState.CLOSING
        instance.why_closed = instance.why_closed or reason

    def gone(self, name: str, reason: str, now: float, *, unmade: bool = False) -> list[Command]:
        """Handle an instance whose process tree is gone; the calls that ran in it have finished.

        ``unmade``: the worker died by itself before it began to create the instance.
        """
        instance = self._instances[name]
        for call in list(instance.running):
            self._of_call.pop(call, None)
        if unmade:
            instance.crashes.append(now)
        reason = instance.why_closed or reason
        self._end(instance, reason, made=not unmade)
        commands: list[Command] = []
        if instance.waiting:
            commands = self._again(instance, reason, now, made=not unmade)
        return commands + self._fill_room()

    def granted(self, name: str, now: float) -> list[Command]:
        """Handle an instance that has got a slot."""
        instance = self._instances[name]
        instance.asked_slot = False
        if instance.state is not InstanceState.READY:
            # The instance was closed meanwhile, because its calls were cancelled.
            return [ReleaseSlot(name)]
        instance.has_slot = True
        return self._settle(instance, now)

    # Eviction.

    def tick(self, now: float) -> list[Command]:
        """Close instances that are idle for too long, or use too much; called every second."""
        commands: list[Command] = []
        for name, reason in due(self, self.policy, now).items():
            commands += self._close(self._instances[name], reason)
        return commands

    def measured(self, name: str, memory_bytes: int) -> None:
        """Record the memory of an instance's process tree."""
        instance = self._instances.get(name)
        if instance is not None:
            instance.memory_bytes = memory_bytes

    def measured_on_gpus(self, name: str, gpu_bytes: int) -> None:
        """Record the GPU memory of an instance's process tree."""
        instance = self._instances.get(name)
        if instance is not None:
            instance.gpu_bytes = gpu_bytes

    def needed(self, holders: Iterable[str], reason: str) -> list[Command]:
        """Close one idle instance among these, if any: `dispensable` chooses which."""
        idle = [one for name in holders if (one := self._instances.get(name)) and one.idle]
        return self._close(min(idle, key=dispensable), reason) if idle else []

    def close_idle(
        self, reason: str, which: Callable[[Instance], bool] | None = None
    ) -> list[Command]:
        """Close all idle instances, or those for which ``which`` returns true."""
        return [
            command
            for instance in list(self._instances.values())
            if instance.idle and (which is None or which(instance))
            for command in self._close(instance, reason)
        ]

    def release(self, name: str, reason: str, now: float) -> list[Command]:
        """Close an instance when its calls are over: its owner no longer needs it."""
        instance = self._instances.get(name)
        if instance is None:
            return []
        instance.released = reason
        return self._settle(instance, now)

    # Decisions.

    def _wanted(self, want: InstanceRequest) -> tuple[Instance, bool]:
        """Return the instance of a call, and whether the call needs a new one under that name."""
        instance = self._instances.get(want.instance)
        if want.must_exist:
            check_there(want, instance, self._history.of(want.instance))
        if instance is None:
            instance = self._history.next_of(want)
            self._instances[want.instance] = self._pending[want.instance] = instance
            return instance, False
        unmade = instance.state is InstanceState.CLOSING and not instance.waiting
        if not (want.anew or unmade) and want.code != instance.code_at_the_end:
            raise Conflict
        # The next instance is created for the first waiting call, whether it asks for a new one or
        # not.
        return instance, want.anew and not unmade

    def _refuse(self, instance: Instance, reason: str) -> list[Command]:
        refused: list[Command] = [Refuse(call, instance.name, reason) for call in instance.waiting]
        for call in list(instance.waiting):
            self._forget(instance, call)
        self._drop(instance)
        return refused

    def _settle(self, instance: Instance, now: float) -> list[Command]:
        """Return the commands that are possible for one loaded instance."""
        if instance.state is not InstanceState.READY:
            return []
        if not instance.running and instance.next_is_anew:
            return self._close(instance, "it was replaced")
        if instance.has_slot:
            commands = self._invoke(instance, now) + self._release_slot(instance)
            return commands + self._close_released(instance)
        if instance.waiting and not instance.asked_slot:
            instance.asked_slot = True
            return [WantSlot(instance.name, instance.since)]
        return self._close_released(instance)

    def _close_released(self, instance: Instance) -> list[Command]:
        if not (instance.released and instance.idle):
            return []
        return self._close(instance, instance.released)

    def _release_slot(self, instance: Instance) -> list[Command]:
        """Release the slot if no call runs, even if calls wait: other calls may have waited longer.

        An instance whose worker is being stopped keeps its slot until the worker is gone.
        """
        if instance.running or not instance.has_slot or instance.state is not InstanceState.READY:
            return []
        instance.has_slot = False
        return [ReleaseSlot(instance.name)]

    def _invoke(self, instance: Instance, now: float) -> list[Command]:
        """Begin waiting calls that may run now, in the order of their arrival."""
        commands: list[Command] = []
        concurrency = instance.want.concurrency
        while (call := next(iter(instance.waiting), None)) is not None:
            one = instance.waiting[call]
            overlaps = one.want.method in instance.overlapping and concurrency > 1
            if instance.running and not (overlaps and all(instance.running.values())):
                break
            if one.anew or len(instance.running) >= concurrency:
                break
            del instance.waiting[call]
            self.waiting -= 1
            instance.running[call] = overlaps
            instance.calls += 1
            instance.last_used = now
            commands.append(Invoke(call, instance.name))
        return commands

    def _fill_room(self) -> list[Command]:
        """Load instances that wait for room, oldest first, and close idle ones for the others."""
        if not self._pending:
            return []
        commands: list[Command] = []
        for instance in sorted(self._pending.values(), key=_since):
            if len(self._instances) - len(self._pending) >= self.policy.limit:
                break
            del self._pending[instance.name]
            instance.state = InstanceState.WANTED
            commands.append(Load(instance.name))
        closing = sum(one.state is InstanceState.CLOSING for one in self)
        missing = len(self._pending) - closing
        if missing > 0:
            for instance in sorted((one for one in self if one.idle), key=dispensable)[:missing]:
                commands += self._close(instance, "others needed its room (FLASHPOOL_INSTANCES)")
        return commands

    def _close(self, instance: Instance, reason: str) -> list[Command]:
        reason = instance.why_closed or reason
        commands = self._release_slot(instance)
        self.closing(instance.name, reason)
        return [*commands, Close(instance.name, reason)]

    def _again(self, instance: Instance, reason: str, now: float, *, made: bool) -> list[Command]:
        """Create an instance for calls that wait for one that is gone, unless in a crash loop."""
        lost: list[Command] = []
        for call in instance.insisting() if made else ():
            self._forget(instance, call)
            lost.append(Lose(call, instance.name, reason))
        if not instance.waiting:
            return lost
        first = next(iter(instance.waiting.values()))
        first.anew = False
        fresh = Instance(
            instance.name,
            first.want,
            instance.generation + made,
            reason if made else instance.rebuilt_because,
            waiting=instance.waiting,
            released=instance.released,
            crashes=instance.crashes,
        )
        self._instances[fresh.name] = self._pending[fresh.name] = fresh
        self._of_call.update(dict.fromkeys(fresh.waiting, fresh))
        refusal = self._history.crash_loop(fresh, now)
        return lost + (self._refuse(fresh, refusal) if refusal else [])

    def _end(self, instance: Instance, reason: str, *, made: bool = True) -> None:
        """End an instance; ``made``: its creation had begun."""
        self._drop(instance)
        self._history.remember(instance, reason, made=made)

    def _drop(self, instance: Instance) -> None:
        del self._instances[instance.name]
        self._pending.pop(instance.name, None)

    def _forget(self, instance: Instance, call: int) -> None:
        del instance.waiting[call]
        del self._of_call[call]
        self.waiting -= 1


def _goes_on(instance: Instance) -> bool:
    """Return whether the instance's next call could begin at once."""
    ready = instance.state is InstanceState.READY and instance.has_slot and not instance.running
    return ready and bool(instance.waiting) and not instance.next_is_anew


def _since(instance: Instance) -> float:
    return instance.since
