"""Periodic work of the supervisor: beats of the pool's clock, and checks each second."""

from __future__ import annotations

import asyncio

from flashpool.pool.running_time import BEAT_S
from flashpool.pool.scheduling.scheduler import TICK_S

from .command_runner import CommandRunner
from .components import BASE, Components
from .environment_registry import EnvironmentRegistry


class Ticking:
    """Timers on the pool's loop, from `start` to `stop`."""

    def __init__(
        self, components: Components, actions: CommandRunner, environments: EnvironmentRegistry
    ) -> None:
        self._components = components
        self._actions = actions
        self._environments = environments
        self._timers: dict[float, asyncio.TimerHandle] = {}

    def start(self) -> None:
        """Start the timers; the loop runs."""
        self._beat()
        self._timers[TICK_S] = self._components.loop.call_later(TICK_S, self._tick)

    def stop(self) -> None:
        """Stop the timers."""
        for timer in self._timers.values():
            timer.cancel()

    def _beat(self) -> None:
        components = self._components
        self._timers[BEAT_S] = components.loop.call_later(BEAT_S, self._beat)
        components.running_time.beat()

    def _tick(self) -> None:
        """Handle what is late, idle or forgotten."""
        components = self._components
        self._timers[TICK_S] = components.loop.call_later(TICK_S, self._tick)
        # A failure of one part must not stop the others.
        for part in (
            self._tick_scheduler,
            self._environments.forget_unused,
            components.residents.tick,
            components.watchdog.check,
            self._tick_base,
        ):
            with components.recorder.counted("what is done every second"):
                part()

    def _tick_scheduler(self) -> None:
        components = self._components
        self._actions.do(components.scheduler.tick(components.running_time.beat()))

    def _tick_base(self) -> None:
        components = self._components
        if BASE not in components.zygote_set:
            # Without the base zygote no probe reports "ready", and so no call comes that would
            # start the zygote.
            self._actions.want(BASE)
        if not components.calls:
            # No call is running, so the OOM kill that the kernel counted was not one of our
            # workers.
            components.oom.rose()
