"""Handles events of residents: frames, deaths, and the ends of calls in them.

    LOADED, RESULT, ITEM, OUTPUT                     --> outcomes, and calls that may begin now
    its death, its zygote's death, a spoilt channel  --> the calls that ran in it fail
    its process tree is gone                         --> the instance may be created again

The call because of which a resident ends gets the cause as its error. The error of each other call
in that resident says that it may be sent again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final, Protocol

from flashpool.pool import exit_causes
from flashpool.pool._child import wire
from flashpool.pool.calls import Call
from flashpool.pool.errors import FlashpoolError
from flashpool.pool.exit_causes import Cause, Stop
from flashpool.pool.instance_records import InstanceRecord
from flashpool.pool.scheduling.commands import Command, ZygoteKey
from flashpool.pool.workers.call_table import CallTable
from flashpool.pool.workers.ends import outcomes
from flashpool.pool.workers.poller import Clock
from flashpool.pool.workers.states import WorkerState
from flashpool.pool.workers.worker import ActiveCall, LoadedInstance, Worker
from flashpool.pool.workers.zygote import ZygoteProcess

from . import states
from .states import Instance, InstanceState
from .table import InstanceTable

_log = logging.getLogger(__name__)

#: Most characters kept of an error's name, and of why a resident can run no more calls.
_NAME: Final = 300
_WHY: Final = 2000


class Carrier(Protocol):
    """Acts on events: `runner.ResidentRunner`."""

    def do(self, commands: Iterable[states.Command]) -> None:
        """Carry out commands of the table."""

    def submit(self, call_id: int) -> None:
        """Submit a call again."""

    def stop_worker(self, name: str, culprit: int | None, stop: Stop | None, reason: str) -> None:
        """Stop a resident, with all calls in it."""

    def variables(self, worker: Worker, call: Call, gpus: tuple[str, ...]) -> Mapping[str, str]:
        """Return the environment variables of an instance that this worker creates for the call.

        Raises:
            OSError: the scratch directory cannot be created.
        """

    def limit_waiting(self, call_id: int, running: ActiveCall, instance: Instance | None) -> None:
        """Limit how long a call may wait from now on."""


class Host(Protocol):
    """The supervisor, as residents use it."""

    def do(self, commands: Iterable[Command]) -> None:
        """Carry out commands of the scheduler."""

    def want(self, key: ZygoteKey | None) -> None:
        """Keep a zygote running, even if no call needs that zygote yet."""

    def changed(self) -> None:
        """Notify waiters that something may have changed."""

    def learn(self, call: Call, zygote: ZygoteProcess, meta: wire.ResultMeta) -> tuple[str, ...]:
        """Learn what a call imported and changed; return warnings for the caller."""


class ResidentEvents:
    """Handles events of all residents of a pool."""

    def __init__(
        self,
        table: InstanceTable,
        loaded: dict[str, LoadedInstance],
        calls: CallTable,
        now: Clock,
        *,
        host: Host,
        to: Carrier,
    ) -> None:
        self._table = table
        self._loaded = loaded
        self._calls = calls
        self._now = now
        self._host = host
        self._to = to

    # Frames.

    def sent(self, worker: Worker, frame: wire.Frame) -> None:
        """Handle a frame of a resident.

        Raises:
            BadFrame: the frame is malformed.
        """
        if frame.kind == wire.LOADED:
            self._on_loaded(worker, frame)
            return
        number, meta = wire.split_number(frame.meta)
        running = worker.calls.get(number)
        if running is None:
            return
        if frame.kind == wire.RESULT:
            self._on_result(worker, number, running, frame, wire.ResultMeta.unpack(meta))
        elif running.done or running.stop is not None:
            return
        elif frame.kind == wire.ITEM:
            running.take_item(frame)
        elif frame.kind in (wire.OUTPUT, wire.ERRORS):
            assert running.own_output is not None
            running.own_output.append(frame.body)
            if running.sink.wants_output:
                split = worker.link.errors is not None
                running.sink.output(frame.body, stderr=split and frame.kind == wire.ERRORS)

    def _on_loaded(self, worker: Worker, frame: wire.Frame) -> None:
        name = worker.instance
        instance = self._instance_in(worker)
        if instance is None or name is None or instance.state is not InstanceState.LOADING:
            return
        meta = wire.ResultMeta.unpack(frame.meta)
        overlapping = meta.texts("overlapping")
        worker.loading = False
        for call_id in instance.waiting:
            self._host.learn(self._calls[call_id].call, worker.zygote, meta)
            break
        if meta.ok:
            commands = self._table.loaded(name, overlapping, self._now())
            for call_id in instance.waiting:
                self._to.limit_waiting(call_id, self._calls[call_id], instance)
            self._to.do(commands)
            return
        loaded = self._loaded[name]
        loaded.reason = f"its constructor raised {meta.more['error_type'][:_NAME]}"
        for call_id in self._table.not_loaded(name, loaded.reason):
            running = self._calls[call_id]
            running.worker, running.dispatched_at = worker, running.submitted_at
            running.own_output = worker.aside
            self._calls.finish(call_id, outcomes.answered(running, frame, meta, self._now()))
        if worker.state.now is WorkerState.BUSY:
            worker.state.move(WorkerState.EXITING)
        worker.exiting_since = self._now()

    def _on_result(
        self,
        worker: Worker,
        call_id: int,
        running: ActiveCall,
        frame: wire.Frame,
        meta: wire.ResultMeta,
    ) -> None:
        name = worker.instance
        assert name is not None
        # First, while the call is still registered: this may raise.
        warnings = self._host.learn(running.call, worker.zygote, meta) if meta.more else ()
        del worker.calls[call_id]
        poisoned = meta.more.get("poisoned")
        if poisoned and not worker.stopping:
            # Now, before the next call can begin in this resident.
            why = str(poisoned)[:_WHY]
            self._to.stop_worker(name, None, outcomes.sibling_lost(why), why)
        if running.done:
            pass
        elif running.stop is not None:
            late = outcomes.failed(running, _cause(running.stop), self._now(), None)
            self._calls.finish(call_id, replace(late, instance=self._record(name, running)))
        else:
            record = self._record(name, running)
            now = self._now()
            self._calls.finish(
                call_id, outcomes.answered(running, frame, meta, now, record, warnings)
            )
        self._to.do(self._table.answered(call_id, self._now()))

    def _instance_in(self, worker: Worker) -> Instance | None:
        """Return the worker's instance; None if another worker has an instance of that name.

        Events may come late, from a worker that could not be killed and was given up.
        """
        name = worker.instance
        if name is None or name not in self._loaded or self._loaded[name].worker is not worker:
            return None
        return self._table.get(name)

    def _record(self, name: str, running: ActiveCall) -> InstanceRecord | None:
        loaded, instance, want = self._loaded[name], self._table.get(name), running.call.want
        if instance is None or want is None:
            return None
        return InstanceRecord(
            instance=name,
            class_name=instance.want.class_name,
            created_at=loaded.created_at,
            last_used_at=time.time(),
            method_calls=instance.calls,
            generation=instance.generation,
            rebuilt_because=instance.rebuilt_because,
            same_arguments=want.arguments == instance.want.arguments,
        )

    # Ends.

    def died(self, worker: Worker, death: wire.Exited, oom: exit_causes.OomKill | None) -> None:
        """Handle the death of a resident."""
        cause = exit_causes.of_death(
            death.status,
            stop=worker.stop,
            oom=oom,
            output_tail=worker.taker().tail(exit_causes.TAIL),
            peak_mb=round(death.rss_kb / 1024, 1),
        )
        self.lost(worker, cause, death)

    def lost(self, worker: Worker, cause: Cause, death: wire.Exited | None) -> None:
        """Fail the calls in a resident; `gone` follows when the process tree is gone."""
        name = worker.instance
        instance = self._instance_in(worker)
        if name is None or instance is None:
            return
        loaded = self._loaded[name]
        loaded.reason = instance.why_closed or cause.message.partition("\n")[0]
        if instance.state is InstanceState.LOADING:
            self._lost_loading(worker, name, loaded, cause, death)
        else:
            self._table.closing(name, loaded.reason)
        for call_id, running in list(worker.calls.items()):
            del worker.calls[call_id]
            if not running.done:
                self._lose(call_id, running, worker, cause, death)

    def _lost_loading(
        self,
        worker: Worker,
        name: str,
        loaded: LoadedInstance,
        cause: Cause,
        death: wire.Exited | None,
    ) -> None:
        # Without a report (the zygote died, too), assume that user code began, unless the worker
        # never read its LOAD.
        began = not worker.link.unread if death is None else death.began
        if not began and (worker.stop is None or worker.stop.error_type != "OutOfMemory"):
            # No user code ran: waiting calls wait for the next instance.
            loaded.unmade = True
            return
        crashed_at = None if worker.stopping or death is None else self._now()
        for call_id in self._table.not_loaded(name, loaded.reason, crashed_at):
            running = self._calls[call_id]
            running.own_output = worker.aside
            self._calls.finish(call_id, outcomes.failed(running, cause, self._now(), death))

    def _lose(
        self,
        call_id: int,
        running: ActiveCall,
        worker: Worker,
        cause: Cause,
        death: wire.Exited | None,
    ) -> None:
        if worker.culprit is not None and worker.culprit != call_id:
            # This call has a reason of its own for being stopped, or did not cause the stop.
            cause = _cause(running.stop or outcomes.sibling_lost(cause.message.partition("\n")[0]))
        self._to.do(self._table.answered(call_id, self._now()))
        want = running.call.want
        may_again = running.stop is None and running.may_run_again(began=True)
        if may_again and want is not None and not want.must_exist:
            self._calls.again(call_id, running.key)
            try:
                self._to.submit(call_id)
            except FlashpoolError as error:
                # A different instance of that name exists by now.
                self._calls.finish(call_id, outcomes.refused(error))
            return
        outcome = outcomes.failed(running, cause, self._now(), death)
        record = self._record(worker.instance or "", running)
        if record is not None:
            because = cause.message.partition("\n")[0]
            outcome = replace(outcome, instance=record._replace(ended_because=because))
        self._calls.finish(call_id, outcome)

    def gone(self, worker: Worker) -> None:
        """Handle a resident whose process tree is gone."""
        name = worker.instance
        instance = self._instance_in(worker)
        if name is None or instance is None:
            return
        loaded = self._loaded.pop(name)
        reason = instance.why_closed or loaded.reason or "its worker is gone"
        if worker.aside:
            # Output of close() or of the instance's threads is shown nowhere else.
            _log.info(
                "Instance %r wrote output outside of calls: %s",
                name,
                worker.aside.tail(exit_causes.TAIL),
            )
        self._to.do(self._table.gone(name, reason, self._now(), unmade=loaded.unmade))
        self._host.changed()


def _cause(stop: Stop) -> Cause:
    return Cause(error_type=stop.error_type, message=stop.message, details=stop.details)
