"""Carries out what the scheduler decides, and what follows from what calls import.

    Scheduler -- Dispatch, DismissWorker ------------> WorkerSet
              -- StartZygote, RetireZygote, Fork ----> ZygoteSet
              -- Grant, and the Dispatch of a load --> ResidentRunner
              -- Fail -------------------------------> CallTable.finish

    modules that calls import --> PreloadLearner --> another zygote is wanted --> Scheduler

Whoever tells the scheduler of an event gives what it returns to `do`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from flashpool.pool._child import wire
from flashpool.pool.calls import Call, Codec
from flashpool.pool.scheduling.commands import (
    Command,
    DismissWorker,
    Dispatch,
    Fail,
    ForkWorkers,
    Grant,
    RetireZygote,
    StartZygote,
    ZygoteKey,
)
from flashpool.pool.workers import outcomes
from flashpool.pool.workers.worker import Worker
from flashpool.pool.workers.zygote import ZygoteProcess

from .components import ChangeSignal, Components

_log = logging.getLogger(__name__)


class CommandRunner:
    """What the scheduler's commands do (and `residents.Host`)."""

    def __init__(self, components: Components, change: ChangeSignal) -> None:
        self._components = components
        self._change = change
        #: Of the latest call: most likely that of the next.
        self.codec = Codec.FLASH
        #: Told of a zygote that could not even be started, and why.
        self.on_not_started: Callable[[ZygoteKey, None, str], None]

    def do(self, commands: Iterable[Command]) -> None:
        """Carry them out."""
        components = self._components
        for command in commands:
            if isinstance(command, Dispatch):
                self._dispatch(command.call, components.worker_set[command.worker], command.gpus)
            elif isinstance(command, Grant):
                self._grant(command.worker)
            elif isinstance(command, ForkWorkers):
                self._fork(command)
            elif isinstance(command, DismissWorker):
                components.worker_set.dismiss(components.worker_set[command.worker])
            elif isinstance(command, StartZygote):
                self._start(command.key)
            elif isinstance(command, RetireZygote) and command.key in components.zygote_set:
                # It may just have died, before it had a worker.
                components.zygote_set.retire(components.zygote_set[command.key])
            elif isinstance(command, Fail):
                self._fail(command)
        if (crowded := components.scheduler.crowded) or components.gpus.table.line:
            components.residents.pressure.give_up(crowded=crowded)

    def _dispatch(self, call_id: int, worker: Worker, gpus: tuple[str, ...]) -> None:
        components = self._components
        if components.residents.loads(call_id):
            components.residents.dispatched(call_id, worker, gpus)
            return
        running = components.calls[call_id]
        running.gpus = gpus
        env = components.gpus.variables(gpus, running.call.env)
        components.worker_set.hand_over(worker, call_id, running, env)
        components.calls.handed_over(call_id)

    def _grant(self, worker: int) -> None:
        if worker in self._components.worker_set:  # else it went down with its zygote just now
            self._components.residents.granted(self._components.worker_set[worker])

    def _start(self, key: ZygoteKey) -> None:
        zygote_set = self._components.zygote_set
        if not zygote_set.start(key):
            # Told from the loop: the scheduler is in the middle of an event.
            self._components.loop.call_soon(
                self.on_not_started, key, None, zygote_set.failures[key]
            )

    def _fork(self, command: ForkWorkers) -> None:
        components = self._components
        if command.key not in components.zygote_set:
            return  # The pool stops: all were asked to leave, of which the scheduler knows nothing.
        # Spares that somebody waits for already have no time to limber up.
        practise = "" if components.scheduler.waiting else self.codec.value
        components.zygote_set.fork(command.key, command.number, practise)

    def _fail(self, failed: Fail) -> None:
        if self._components.residents.loads(failed.call):
            self._components.residents.not_started(failed.call, failed.key, failed.reason)
        else:
            outcome = outcomes.start_failed(failed.key.environment, failed.reason)
            self._components.calls.finish(failed.call, outcome)

    # Which zygote.

    def want(self, key: ZygoteKey | None) -> None:
        """Have it up, though no call needs it yet."""
        if key is not None and not self._components.closed:
            self.do(self._components.scheduler.wanted(key, self._components.now()))

    def retire(self, key: ZygoteKey) -> None:
        """Have the calls of its environment do without what it has preloaded."""
        lean = ZygoteKey(key.environment)
        self.do(self._components.scheduler.retire(key, lean, self._components.now()))

    def route(self, call: Call) -> ZygoteKey:
        """The zygote its worker is to come from."""
        route = self._components.learner.route
        return route(call.environment, call.function_key, call.touches, call.imports)

    def learn(self, call: Call, zygote: ZygoteProcess, meta: wire.ResultMeta) -> tuple[str, ...]:
        """What a call imported and changed; what its caller should know of that."""
        if not meta.more:
            return ()
        modules = meta.texts("modules")
        changes = [*meta.texts("changed"), *(f"native:{name}" for name in meta.texts("native"))]
        learner, function = self._components.learner, call.function_key
        conflicts = learner.changed(zygote.key, function, changes) if changes else []
        if modules and zygote.method == "fork":
            observed = learner.observed
            self.want(observed(zygote.key, function, modules, call.touches, call.imports))
        for conflict in conflicts:
            _log.warning("A call of %s: %s", call.label, conflict)
        return tuple(map(str, conflicts))

    def reroute(self, key: ZygoteKey) -> None:
        """Have calls that came before anybody knew what they import wait here, where it is.

        Else a thousand that came at once would all import it.
        """
        components = self._components
        calls = [
            call_id
            for call_id, running in components.calls.by_id.items()
            if running.worker is None and running.call.want is None and running.key != key
            if running.call.environment == key.environment and self.route(running.call) == key
        ]
        for call_id in calls:
            components.calls[call_id].key = key
        if calls:
            self.do(components.scheduler.rerouted(calls, key, components.now()))

    def changed(self) -> None:
        """Something happened that a waiting coroutine may be waiting for."""
        self._change.tell()
