"""Handles reports of zygotes and workers: events for the scheduler, and ends of calls.

    ZygoteSet -- zygote_ready, zygote_lost, not_forked ----------.
    WorkerSet -- worker_ready, item, result, died, worker_gone --+--> ProcessEvents
                                                                 |
              Scheduler event --> CommandRunner.do  <------------+
              CallTable.finish --> the call's sink  <------------'

This is the one place that decides between "the call failed" and "try it again": a call whose worker
died before it began is submitted once more.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Final

from flashpool.pool import exit_causes
from flashpool.pool._child import wire
from flashpool.pool.scheduling.commands import ZygoteKey
from flashpool.pool.workers.ends import outcomes, stuck
from flashpool.pool.workers.worker import ActiveCall, Worker
from flashpool.pool.workers.zygote import ZygoteProcess

from .command_runner import CommandRunner
from .components import BASE, Components
from .environment_registry import EnvironmentRegistry

_log = logging.getLogger(__name__)

#: Seconds after which forks are requested again that failed for lack of processes or descriptors.
_FORK_AGAIN_S: Final = 0.5
#: The same pause for the start of a zygote with preloads.
_START_AGAIN_S: Final = 1.0
#: Peak resident KiB up to which a worker that has answered counts as gone: its memory is freed
#: before the next call could need it.
SMALL_KB: Final = 256 * 1024


class ProcessEvents:
    """Receives the events of zygotes and workers (`workers.listeners`)."""

    def __init__(
        self, components: Components, actions: CommandRunner, environments: EnvironmentRegistry
    ) -> None:
        self._components = components
        self._actions = actions
        self._environments = environments
        self._scheduler = components.scheduler
        self._do = actions.do
        self._now = components.now

    # Zygotes.

    def zygote_ready(self, zygote: ZygoteProcess) -> None:
        """Note that a zygote can fork; a zygote that it replaces may exit."""
        key, learner = zygote.key, self._components.learner
        self._do(self._scheduler.zygote_ready(key, self._now()))
        unneeded = learner.started(key)
        if key.profile > 0 and key not in unneeded:
            self._environments.learned(key, learner.modules(key))
        for replaced in unneeded:
            heir = ZygoteKey(key.environment) if key in unneeded else key
            self._do(self._scheduler.retire(replaced, heir, self._now()))
        self._actions.reroute(key)
        self._actions.want(learner.behind(key.environment))
        self._environments.settle(key.environment)
        self._actions.changed()

    def zygote_lost(
        self, key: ZygoteKey, zygote: ZygoteProcess | None, reason: str, *, short: bool = False
    ) -> None:
        """Note that a zygote is gone: calls of its workers fail, or wait for the next start."""
        curable = zygote is not None and zygote.curable
        killed = zygote is not None and zygote.was_killed and not short
        if key.profile and short:
            self._components.loop.call_later(_START_AGAIN_S, self._start_again, key)
        elif key.profile and (zygote is None or not zygote.forked):
            # The zygote's preloads may be the cause: its calls use the lean zygote.
            self._actions.retire(key)
        commands = self._scheduler.zygote_lost(
            key, reason, self._now(), curable=curable, killed=killed, short=short
        )
        workers = self._components.worker_set.of(zygote)
        if zygote is not None:
            zygote.kill_left([worker.pid for worker in workers if worker.status is None])
        for worker in workers:
            ends = partial(self.worker_failed, worker)
            with self._components.recorder.counted(f"the loss of {worker!r}", ends):
                if not worker.is_over:
                    self._components.worker_set.read_last(worker)
                self._lose_with_zygote(worker, reason)
            self._components.worker_set.forget(worker)
        for path in zygote.left_behind() if zygote is not None else ():
            self._components.scratch.remove(path)
        self._do(commands)
        comes_back = curable or killed or (zygote is not None and zygote.ready_at is not None)
        if key == BASE and comes_back:
            self._actions.want(key)
        # At once, not with the next tick: a call may be waiting for the room that the environment
        # takes.
        self._environments.forget_unused(key.environment)
        self._actions.changed()

    def _start_again(self, key: ZygoteKey) -> None:
        """Start a zygote with preloads again: no call waits for it, so nothing else would."""
        if self._scheduler.knows(key):
            self._actions.want(key)

    def _lose_with_zygote(self, worker: Worker, reason: str) -> None:
        running = worker.running
        if worker.app is not None:
            worker.app.died(worker, exit_causes.of_lost_zygote(reason, ""))
        elif worker.instance is not None:
            cause = exit_causes.of_lost_zygote(reason, "")
            self._components.residents.events.lost(worker, cause, None)
        if running is not None and running.exiting:
            self._components.exits.died(worker)
        if running is None or running.done:
            return
        # Whether the call began is unknown, unless its worker never read it. (In a stream, the last
        # frame sent to the worker may have been a credit.)
        unread = worker.link.unread and not running.call.stream
        if unread and running.may_run_again(began=False):
            self._again(running)
        else:
            self._fail(running, exit_causes.of_lost_zygote(reason, _said(worker)))

    def not_forked(self, zygote: ZygoteProcess, number: int) -> None:
        """Request forks again later: the machine has no room for more processes now."""
        if self._scheduler.waiting:
            self._components.residents.pressure.evict_for_process()

        def again() -> None:
            with self._components.recorder.counted(f"the forks that {zygote!r} could not make"):
                if zygote in self._components.zygote_set:
                    for _ in range(number):
                        self._do(self._scheduler.worker_not_ready(zygote.key, self._now()))

        self._components.loop.call_later(_FORK_AGAIN_S, again)

    # Spares.

    def worker_ready(self, worker: Worker) -> None:
        """Note that a worker waits for a call."""
        commands = self._scheduler.worker_ready(worker.id, worker.zygote.key, self._now())
        if commands:
            self._do(commands)

    def worker_not_ready(self, worker: Worker) -> None:
        """Note that a worker will never take a call."""
        self._do(self._scheduler.worker_not_ready(worker.zygote.key, self._now()))

    def stillborn(self, worker: Worker, death: wire.Exited) -> None:
        """Note that a worker exited before user code began.

        Its zygote's preloads may be the cause: calls then use the lean zygote.
        """
        zygote = worker.zygote
        if self._components.zygote_set.stillborn(zygote, exit_causes.exit_words(death.status)):
            self._actions.retire(zygote.key)
            self._environments.learned(zygote.key, ())

    # Workers with a call.

    def item(self, worker: Worker, running: ActiveCall, frame: wire.Frame) -> None:
        """Pass on an item that a generator yielded."""
        running.take_item(frame)

    def result(
        self, worker: Worker, running: ActiveCall, frame: wire.Frame, meta: wire.ResultMeta
    ) -> None:
        """Finish a call that has answered."""
        exiting = bool(meta.more) and meta.more.get("exiting") is True
        worker.small = meta.rss_kb <= SMALL_KB
        if not exiting:
            # The next call first: it begins while the outcome of this one is reported.
            self.exit_over(worker)
        call, zygote = running.call, worker.zygote
        warnings = self._actions.learn(call, zygote, meta) if meta.more else ()
        if call.source and call.function_key not in zygote.sources.compiled:
            self._components.zygote_set.ran(zygote, call)
        outcome = outcomes.answered(running, frame, meta, self._now(), warnings=warnings)
        if exiting:
            self._components.exits.begin(worker, running, outcome)
        else:
            self._components.calls.finish(running.id, outcome)

    def exit_told(self, worker: Worker, frame: wire.Frame) -> None:
        """Handle a worker's report about its exit."""
        self._components.exits.told(worker, frame)

    def exit_died(self, worker: Worker) -> None:
        """Note that a worker's exit is over, regular or not."""
        self._components.exits.died(worker)

    def exit_over(self, worker: Worker) -> None:
        """Release a worker's slot early if only its exit is left."""
        if worker.small and (commands := self._scheduler.release_early(worker.id, self._now())):
            self._do(commands)

    def spoilt(self, worker: Worker, running: ActiveCall, problem: str) -> None:
        """Fail a call whose user code wrote to the channel."""
        self._fail(running, exit_causes.of_bad_frame(problem, _said(worker)))

    def died(self, worker: Worker, running: ActiveCall, death: wire.Exited) -> None:
        """Handle a worker's death without a result: try again if no user code had begun."""
        if _not_its_fault(worker, death) and running.may_run_again(began=death.began):
            self._again(running)
            return
        doubted = exit_causes.NEVER_BEGAN if worker.doubted and not death.began else None
        cause = exit_causes.of_death(
            death.status,
            stop=worker.stop or doubted,
            oom=self._components.oom.rose(),
            output_tail=_said(worker),
            peak_mb=round(death.rss_kb / 1024, 1),
        )
        self._fail(running, cause, death)

    def _again(self, running: ActiveCall) -> None:
        # Perhaps in another zygote: this one may be exiting.
        key = self._components.learner.route(running.call)
        if running.worker is not None:
            running.worker.running = None  # ignore what the worker, or its descendants, still send
        self._components.calls.again(running.id, key)
        now, gpus = self._now(), running.gpus_wanted
        self._do(self._scheduler.submitted(running.id, key, now, gpus=gpus, again=True))
        self._components.calls.waits(running.id)

    def _fail(
        self,
        running: ActiveCall,
        cause: exit_causes.Cause,
        death: wire.Exited | None = None,
    ) -> None:
        outcome = outcomes.failed(running, cause, self._now(), death)
        self._components.calls.finish(running.id, outcome)

    def worker_failed(self, worker: Worker, error: Exception) -> None:
        """Fail the calls of a worker because of a bug in flashpool."""
        cause, running = exit_causes.of_mistake(error), worker.running
        if worker.instance is not None:
            self._components.residents.events.lost(worker, cause, None)
        elif running is not None and running.exiting:
            self._components.exits.died(worker)
        elif running is not None and not running.done:
            self._fail(running, cause)

    def worker_stuck(self, worker: Worker) -> None:
        """Fail the calls of a worker that cannot be killed now, or serve them with another one."""
        if worker.stuck is not None:
            cause = exit_causes.of_stuck(worker.stop, worker.pid, _said(worker))
            _log.warning(
                "Worker %d (%s) was killed, but is blocked in the kernel%s; its slot stays in use.",
                worker.pid,
                worker.stuck.label or "no call",
                f" ({where})" if (where := stuck.waits_for(worker.pid)) else "",
            )
        else:  # the report of its death was lost
            said = _said(worker)
            cause = exit_causes.of_death(
                None, stop=worker.stop, oom=None, output_tail=said, peak_mb=None
            )
        running, residents = worker.running, self._components.residents
        if worker.instance is not None:
            residents.events.lost(worker, cause, None)
            # Another process may have an instance of this name, although this process is not gone.
            residents.events.gone(worker)
        elif running is None:
            if not worker.prepared:
                self.worker_not_ready(worker)
        elif running.exiting:
            self._components.exits.died(worker)
        elif not running.done:
            if worker.stop is None and running.may_run_again(began=False):
                self._again(running)
            else:
                self._fail(running, cause)

    def worker_dead(self, worker: Worker) -> None:
        """Note that a dead worker is no longer a spare; its slot is not free yet."""
        self._scheduler.spare_died(worker.id)

    def worker_gone(self, worker: Worker) -> None:
        """Free the slot of a worker whose process tree is gone, and check its GPUs."""
        self._do(self._scheduler.worker_gone(worker.id, self._now()))
        components = self._components
        if worker.scratch is not None:
            components.scratch.remove(worker.scratch)
        if components.gpus.watch.expected:
            components.gpus.given_back()
        if worker.app is not None:
            worker.app.gone(worker)
        elif worker.instance is not None:
            components.residents.events.gone(worker)
        if self._environments.unwanted:
            self._environments.settle(worker.zygote.key.environment)
        if components.closed:
            self._actions.changed()

    # Residents.

    def resident_sent(self, worker: Worker, frame: wire.Frame) -> None:
        """Handle a frame of one of a resident's calls."""
        self._components.residents.events.sent(worker, frame)

    def resident_spoilt(self, worker: Worker, problem: str) -> None:
        """Handle bytes on a resident's channel that are not a frame."""
        cause = exit_causes.of_bad_frame(problem, "")
        if worker.app is not None:
            worker.app.died(worker, cause)
            return
        self._components.residents.events.lost(worker, cause, None)

    def resident_died(self, worker: Worker, death: wire.Exited) -> None:
        """Handle the death of a resident, and of the calls in it."""
        if worker.app is not None:
            oom = self._components.oom.rose()
            worker.app.died(worker, exit_causes.of_app(death.status, worker.stop, oom))
            return
        self._components.residents.events.died(worker, death, self._components.oom.rose())


def _said(worker: Worker) -> str:
    """Return the last output of a worker."""
    output = worker.link.output
    return output.tail(exit_causes.TAIL) if output is not None else ""


def _not_its_fault(worker: Worker, death: wire.Exited) -> bool:
    """Return whether the call had no part in its worker's death.

    Killed for memory, it may have had: a large call needs memory before its user code begins.
    """
    stop = worker.stop
    return stop is None or (not death.began and stop.error_type != "OutOfMemory")
