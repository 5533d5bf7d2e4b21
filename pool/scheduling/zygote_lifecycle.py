"""Decides which zygotes run: when one starts, what makes room for it, when one may exit.

    a call waits --> start --> StartZygote       unless it is broken, pauses, or has no room
    no room      --> TimeSlicing --> retire_environment, or an environment yields
    retire_environment --> DismissWorker of its spares, RetireZygote when its last worker is gone

A zygote that does not start, or never forks a worker, is started a limited number of times in
`RESTART_WINDOW_S`; then its calls fail with the reason. A zygote that was killed although it works,
or while it started, is always started again, after a pause if that happens often.
"""

from __future__ import annotations

from .commands import Command, DismissWorker, Fail, RetireZygote, SchedulerPolicy, StartZygote
from .slots import Slots
from .time_slicing import TimeSlicing
from .wait_queue import WaitQueue
from .zygote_table import RESTART_WINDOW_S, EnvironmentRows, ZygoteRow, ZygoteTable


class ZygoteLifecycle:
    """Starts and retires zygotes."""

    def __init__(
        self,
        policy: SchedulerPolicy,
        *,
        zygote_table: ZygoteTable,
        wait_queue: WaitQueue,
        slots: Slots,
        time_slicing: TimeSlicing,
    ) -> None:
        self._policy = policy
        self._zygote_table = zygote_table
        self._wait_queue = wait_queue
        self._slots = slots
        self._time_slicing = time_slicing
        #: Whether calls may be waiting for an environment's room.
        self.crowded = False

    # Starts.

    def settle(self, zygote: ZygoteRow, now: float) -> list[Command]:
        """Start, dispatch and fork for one zygote, in that order."""
        if not zygote.up:
            return self.start(zygote, now) if zygote.needed else []
        return self._slots.dispatch(now, zygote)

    def start(self, zygote: ZygoteRow, now: float) -> list[Command]:
        """Start a zygote, if it may start and there is room; or fail its calls."""
        if zygote.up or zygote.starting:
            return []
        zygote.forget_old_starts(now)
        if zygote.pauses(now):
            return []
        if zygote.broken:
            return self.fail_waiting(zygote)
        if not self._zygote_table.is_next(zygote, now):
            return []
        commands = self._make_room_for(zygote, now)
        if zygote.retiring or not self._zygote_table.has_room(zygote.key.environment):
            self.crowded = self.crowded or not commands
            return commands
        zygote.starts.append(now)
        zygote.starting = True
        return [*commands, StartZygote(zygote.key)]

    def fail_waiting(self, zygote: ZygoteRow) -> list[Command]:
        """Fail the waiting calls of a zygote that cannot be started."""
        calls = self._wait_queue.remove_all(zygote)
        return [Fail(call, zygote.key, zygote.last_failure) for call in calls]

    def _make_room_for(self, zygote: ZygoteRow, now: float) -> list[Command]:
        """Stop an environment if there is no room, or make an environment yield."""
        if self._zygote_table.has_room(zygote.key.environment):
            return []
        turn = self._time_slicing.who_goes(zygote, now)
        if turn.goes is not None:
            return self.retire_environment(turn.goes)
        return self._slots.dispatch(now) if turn.changed else []

    def start_held_up(self, now: float) -> list[Command]:
        """Start zygotes whose calls waited for room, the longest wait first."""
        held_up = self._zygote_table.held_up() if self._wait_queue.calls else []
        if not held_up and not self._time_slicing.yielding:
            return []
        commands: list[Command] = []
        for zygote in sorted(held_up, key=lambda zygote: zygote.since):
            commands += self.start(zygote, now)
        if self._time_slicing.end_if_over(held_up):
            commands += self._slots.dispatch(now)
        return commands

    # Ends.

    def retire_environment(self, group: EnvironmentRows) -> list[Command]:
        """Stop an environment's zygotes from taking calls; they exit with their last workers."""
        commands: list[Command] = []
        for zygote in group.zygotes:
            if zygote.retiring:
                continue
            zygote.retiring = True
            self._wait_queue.claim_gpus(zygote)
            commands += self.dismiss_spares(zygote) + self.retire_if_done(zygote)
        return commands

    def dismiss_spares(self, zygote: ZygoteRow) -> list[Command]:
        """Dismiss a zygote's spares."""
        commands: list[Command] = [DismissWorker(worker) for worker in zygote.spares]
        zygote.spares.clear()
        return commands

    def retire_if_done(self, zygote: ZygoteRow) -> list[Command]:
        """Let a retiring zygote exit if it has no worker left."""
        if zygote.exiting or not zygote.empty:
            return []
        if zygote.up or zygote.starting:
            # A start that is under way is no longer needed.
            zygote.exiting = True
            return [RetireZygote(zygote.key)]
        if zygote.needed:
            zygote.retiring = False  # it is started when there is room
            return []
        self._zygote_table.entries.pop(zygote.key, None)
        return []

    def retire_unused(self, now: float) -> list[Command]:
        """Stop environments that had no call for a long time."""
        commands: list[Command] = []
        for group in self._zygote_table.beside_base():
            # A zygote that does not start is remembered for as long as its starts count.
            limit = 0.0 if group.live else RESTART_WINDOW_S
            age = now - group.last_used
            if age > max(limit, self._policy.environment_idle_s) and group.idle:
                commands += self.retire_environment(group)
        return commands
