"""Carries out the scheduler's commands, and what follows from what calls import.

    Scheduler -- Dispatch, DismissWorker ------------> WorkerSet
              -- StartZygote, RetireZygote, Fork ----> ZygoteSet
              -- Grant, and the Dispatch of a load --> ResidentRunner
              -- Fail -------------------------------> CallTable.finish

    modules that calls import --> PreloadLearner --> another zygote is wanted --> Scheduler

Code that reports an event to the scheduler passes the returned commands to `do`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

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
from flashpool.pool.workers.ends import outcomes
from flashpool.pool.workers.zygote import ZygoteProcess

from .components import ChangeSignal, Components

_log = logging.getLogger(__name__)


class CommandRunner:
    """Carries out the scheduler's commands (and implements `residents.Host`)."""

    def __init__(self, components: Components, change: ChangeSignal) -> None:
        self._components = components
        self._change = change
        #: Codec of the latest call, which the next call probably shares.
        self.codec = Codec.FLASH

    def do(self, commands: Iterable[Command]) -> None:
        """Carry out commands, in order."""
        components = self._components
        for command in commands:
            try:
                self._do_one(command)
            except Exception as error:  # noqa: BLE001 - counted; the call or worker concerned fails
                # Later commands concern other calls.
                components.recorder.callback_failed(f"{command!r}", error)
                with components.recorder.counted(f"the end of {command!r}"):
                    self._end(command, error)
        if (crowded := components.scheduler.crowded) or components.gpus.table.queue:
            components.residents.pressure.evict(crowded=crowded)

    def _do_one(self, command: Command) -> None:
        components = self._components
        if isinstance(command, Dispatch):
            self._dispatch(command)
        elif isinstance(command, Grant):
            self._grant(command.worker)
        elif isinstance(command, ForkWorkers):
            self._fork(command)
        elif isinstance(command, DismissWorker):
            if (worker := components.worker_set.by_id.get(command.worker)) is not None:
                components.worker_set.dismiss(worker)
        elif isinstance(command, StartZygote):
            components.zygote_set.start(command.key)
        elif isinstance(command, RetireZygote) and command.key in components.zygote_set:
            # The zygote may just have died, before it had a worker.
            components.zygote_set.retire(components.zygote_set[command.key])
        elif isinstance(command, Fail):
            self._fail(command)

    def _end(self, command: Command, error: Exception) -> None:
        """Fail the call, worker or zygote of a command that hit a bug in flashpool."""
        components = self._components
        if isinstance(command, Dispatch):
            if (worker := components.worker_set.by_id.get(command.worker)) is not None:
                components.worker_set.failed(worker, error)
            components.calls.failed(command.call, error)
        elif isinstance(command, Grant | DismissWorker):
            if (worker := components.worker_set.by_id.get(command.worker)) is not None:
                components.worker_set.failed(worker, error)
        elif isinstance(command, ForkWorkers | RetireZygote):
            if command.key in components.zygote_set:
                components.zygote_set.failed(components.zygote_set[command.key], error)
        elif isinstance(command, StartZygote):
            components.zygote_set.not_started(command.key, repr(error))
        else:
            components.calls.failed(command.call, error)

    def _dispatch(self, command: Dispatch) -> None:
        components, gpus = self._components, command.gpus
        worker = components.worker_set.by_id[command.worker]
        running = components.calls.by_id.get(command.call)
        if running is None:
            # The number belongs to no call, but to the loading of an app or instance.
            if components.apps.takes(command.call):
                components.apps.dispatched(command.call, worker, gpus)
                return
            components.residents.loading.dispatched(command.call, worker, gpus)
            return
        running.gpus = gpus
        env = running.call.env
        if components.gpus.watch.expected:
            env = components.gpus.variables(gpus, env)
        if running.call.scratch:
            try:
                worker.scratch = components.scratch.make(worker.id)
            except OSError as error:
                components.worker_set.dismiss(worker)
                components.calls.finish(running.id, outcomes.no_scratch(error))
                return
            env = components.scratch.variables(worker.scratch, env)
        if running.call.trace is not None:
            env = {**running.call.trace.variables(), **env}
        components.worker_set.hand_over(worker, running, env)
        components.calls.handed_over(running)

    def _grant(self, worker_id: int) -> None:
        worker = self._components.worker_set.by_id.get(worker_id)
        if worker is not None:  # otherwise it was lost with its zygote just now
            self._components.residents.granted(worker)

    def _fork(self, command: ForkWorkers) -> None:
        components = self._components
        # Spares for which calls wait have no time to warm up.
        practise = "" if components.scheduler.waiting else self.codec.value
        components.zygote_set.fork(command.key, command.number, practise)

    def _fail(self, failed: Fail) -> None:
        if self._components.apps.takes(failed.call):
            self._components.apps.not_started(failed.call, failed.reason)
        elif failed.call not in self._components.calls.by_id:
            loading = self._components.residents.loading
            loading.not_started(failed.call, failed.key, failed.reason)
        else:
            outcome = outcomes.start_failed(failed.key.environment, failed.reason)
            self._components.calls.finish(failed.call, outcome)

    # Zygotes.

    def want(self, key: ZygoteKey | None) -> None:
        """Keep a zygote running, even if no call needs it yet."""
        if key is not None and not self._components.closed:
            self.do(self._components.scheduler.wanted(key, self._components.now()))

    def retire(self, key: ZygoteKey) -> None:
        """Retire a zygote: calls of its environment use the lean zygote, without its preloads."""
        lean = ZygoteKey(key.environment)
        self.do(self._components.scheduler.retire(key, lean, self._components.now()))

    def learn(self, call: Call, zygote: ZygoteProcess, meta: wire.ResultMeta) -> tuple[str, ...]:
        """Learn from what a call imported and changed; return warnings for its caller."""
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
        """Move calls that came before their imports were known to this zygote.

        Otherwise a thousand calls that came at once would all import for themselves.
        """
        components = self._components
        route = components.learner.route
        calls = [
            call_id
            for call_id, running in components.calls.by_id.items()
            if running.worker is None and running.call.want is None and running.key != key
            if running.call.environment == key.environment and route(running.call) == key
        ]
        for call_id in calls:
            components.calls[call_id].key = key
        if calls:
            self.do(components.scheduler.rerouted(calls, key, components.now()))

    def changed(self) -> None:
        """Wake coroutines that wait for a change."""
        self._change.tell()
