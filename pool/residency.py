"""Carries out what the table of instances decides, and tells it what becomes of them.

    Supervisor.submit --want--> Residents.called --Load--> Scheduler --Dispatch--> LOAD
                                    ^    |                                          |
            LOADED, RESULT, death --'    '--Invoke--> CALL --> worker <-------------'

The scheduler knows a load as a call of its own number, and a loaded instance as a worker
that gives its slot back and asks for it again.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Protocol

from . import causes, ends, memory, residents
from ._child import wire
from .accepted import Accepted
from .calls import Call, Codec, InstanceRecord, Outcome
from .causes import Cause, Stop
from .config import PoolConfig
from .crew import EXCEPTION_LIMIT, Crew
from .errors import FlashpoolError, InstanceConflict, InstanceLost
from .fleet import Clock
from .gpu_access import GpuAccess
from .gpus import GpuTable
from .output import OutputBuffer
from .residents import Conflict, Instance, NotThere, Residents, State
from .scheduler import Command, Scheduler, ZygoteKey
from .states import WorkerState
from .workers import Running, Worker

#: Residents whose memory is looked at in one turn: it takes milliseconds for a large one.
_LOOKS: Final = 4


class Host(Protocol):
    """What the supervisor does for its residents."""

    def route(self, call: Call) -> ZygoteKey:
        """The zygote its worker is to come from."""

    def learn(self, call: Call, modules: list[str]) -> None:
        """A call imported these."""

    def do(self, commands: Iterable[Command]) -> None:
        """Carry out what the scheduler says."""

    def changed(self) -> None:
        """Something happened that somebody may wait for."""


@dataclass(slots=True)
class _Life:
    """One loaded instance, beside what the table knows of it."""

    worker: Worker
    gpus: tuple[str, ...]
    created_at: float
    rebuilt_because: str | None
    #: Whether it was called since its memory was measured.
    used: bool = True
    died_loading: bool = False
    reason: str = ""


class Residency:
    """All residents of a pool."""

    def __init__(
        self,
        config: PoolConfig,
        *,
        scheduler: Scheduler,
        crew: Crew,
        calls: Accepted,
        gpus: GpuAccess,
        now: Clock,
        host: Host,
    ) -> None:
        self._config = config
        self._scheduler = scheduler
        self._crew = crew
        self._calls = calls
        self._gpus = gpus
        self._now = now
        self._host = host
        self._loop = asyncio.get_running_loop()
        limit_mb = config.instances_mb
        self.table = Residents(
            residents.Policy(
                limit=config.instances,
                idle_s=config.instance_idle_s,
                memory_bytes=None if limit_mb is None else limit_mb << 20,
            )
        )
        self._lives: dict[str, _Life] = {}
        #: Numbers by which the scheduler knows loads that no worker has begun with.
        self._loads: dict[int, str] = {}
        self._ends: dict[str, str] = {}

    # Calls.

    def submit(self, call_id: int) -> None:
        """Take a call for an instance.

        Raises:
            InstanceConflict: there is another one of that name.
            InstanceLost: it had to be there, and is not.
        """
        running = self._calls[call_id]
        want = running.call.want
        assert want is not None
        try:
            commands = self.table.called(call_id, want, self._now())
        except Conflict:
            raise InstanceConflict(
                f"there is an instance {want.instance!r} already, of other code, packages or "
                "resources. Use another instance_id, or replace it: create_new_instance: true",
                instance=want.instance,
            ) from None
        except NotThere as missing:
            raise InstanceLost(
                f"the instance {want.instance!r} is not there: {missing}. Call it without "
                "insisting that it exists, and it is made anew",
                instance=want.instance,
                reason=str(missing),
            ) from None
        instance = self.table.get(want.instance)
        self._limit_waiting(call_id, running, instance)
        self._do(commands)

    def withdraw(self, call_id: int, running: Running) -> None:
        """A call that has not begun has ended."""
        want = running.call.want
        commands = self.table.withdrawn(call_id, self._now())
        if commands is None or want is None:
            return
        self._do(commands)
        instance = self.table.get(want.instance)
        if instance is not None and instance.state is State.LOADING and not instance.waiting:
            self._end(instance.name, None, None, "nobody waited for it any more")

    def cancel(self, call_id: int, running: Running, reason: str) -> None:
        """End a call that has begun; the supervisor tells its caller."""
        worker = running.worker
        if worker is not None and worker.instance is not None and not worker.stopping:
            self._interrupt(call_id, worker, None, f"a call in it was cancelled: {reason}")

    def stop(self, call_id: int, running: Running, stop: Stop, *, grace: float) -> None:
        """End a call that went too far; its end tells why."""
        worker = running.worker
        if worker is None or worker.instance is None or running.stop is not None:
            return
        running.stop = stop
        if grace:
            self._interrupt(call_id, worker, stop, stop.message)
        else:
            self._end(worker.instance, call_id, stop, stop.message, grace=grace)

    def _interrupt(self, call_id: int, worker: Worker, stop: Stop | None, reason: str) -> None:
        """Cancel one call of several; where that does not help, and else, end them all."""
        name = worker.instance
        assert name is not None
        instance = self.table.get(name)
        if instance is None or not instance.running.get(call_id):
            self._end(name, call_id, stop, reason)
            return
        self._crew.send(worker, wire.CANCEL, wire.numbered(call_id))

        def still_there() -> None:
            if call_id in worker.calls and not worker.stopping:
                self._end(name, call_id, stop, reason, grace=0.0)

        self._loop.call_later(self._config.grace_s, still_there)

    def credit(self, call_id: int, worker: Worker, items: int) -> None:
        """Let a generator of its yield that many more."""
        meta = wire.numbered(call_id, wire.CREDIT_META.pack(items))
        self._crew.send(worker, wire.CREDIT, meta)

    # What the scheduler decided.

    def loads(self, call_id: int) -> bool:
        """Whether this number stands for a load."""
        return call_id in self._loads

    def dispatched(self, load_id: int, worker: Worker, gpus: tuple[str, ...]) -> None:
        """A worker is there for a load."""
        name = self._loads.pop(load_id)
        instance = self.table.get(name)
        assert instance is not None
        self.table.loading(name)
        first = self._calls[next(iter(instance.waiting))]
        call, want = first.call, first.call.want
        assert want is not None
        past = self._ends.pop(name, None)
        self._lives[name] = _Life(worker, gpus, time.time(), past)
        worker.state.move(WorkerState.BUSY)
        worker.instance = name
        meta = _meta(call, env=self._gpus.variables(gpus, call.env))
        self._crew.send(worker, wire.LOAD, meta, call.body if want.load is None else want.load)
        for call_id in instance.waiting:
            self._limit_waiting(call_id, self._calls[call_id], instance)

    def not_started(self, load_id: int, key: ZygoteKey, reason: str) -> None:
        """No worker can be had for a load."""
        name = self._loads.pop(load_id)
        self._not_loaded(name, ends.start_failed(key.environment, reason))

    def _not_loaded(self, name: str, outcome: Outcome) -> None:
        """No worker has begun with it, nor will."""
        reason = outcome.error or ""
        for call_id in self.table.not_loaded(name, reason):
            self._calls.finish(call_id, outcome)
        self._do(self.table.gone(name, reason, self._now()))

    def granted(self, worker: Worker) -> None:
        """A resident has the slot it asked for."""
        assert worker.instance is not None
        self._do(self.table.granted(worker.instance, self._now()))

    # What the table decided.

    def _do(self, commands: Iterable[residents.Command]) -> None:
        for command in commands:
            if isinstance(command, residents.Invoke):
                self._invoke(command.call, self._lives[command.instance])
            elif isinstance(command, residents.WantSlot):
                worker = self._lives[command.instance].worker
                self._host.do(self._scheduler.wants_slot(worker.id, command.since, self._now()))
            elif isinstance(command, residents.Rest):
                worker = self._lives[command.instance].worker
                self._host.do(self._scheduler.rested(worker.id, self._now()))
            elif isinstance(command, residents.Load):
                self._load(command.instance)
            elif isinstance(command, residents.Abandon):
                self._abandon(command.instance)
            elif isinstance(command, residents.Close):
                self._close(self._lives[command.instance].worker)
            elif isinstance(command, residents.Refuse):
                outcome = ends.instance_refused(command.instance, command.reason)
                self._calls.finish(command.call, outcome)

    def _load(self, name: str) -> None:
        instance = self.table.get(name)
        assert instance is not None
        first = self._calls[next(iter(instance.waiting))]
        try:
            gpus = self._gpus.number(first.call.gpus)
        except FlashpoolError as error:
            # They were there when its calls were accepted.
            self._not_loaded(name, ends.refused(error))
            return
        load_id = self._calls.new_id()
        self._loads[load_id] = name
        key = self._host.route(first.call)
        self._host.do(self._scheduler.submitted(load_id, key, self._now(), gpus=gpus, beside=None))

    def _abandon(self, name: str) -> None:
        for load_id, loaded in list(self._loads.items()):
            if loaded == name:
                del self._loads[load_id]
                self._scheduler.withdrawn(load_id, self._now())

    def _invoke(self, call_id: int, life: _Life) -> None:
        running = self._calls[call_id]
        worker, call = life.worker, running.call
        instance = self.table.get(worker.instance or "")
        assert instance is not None
        life.used = True
        worker.calls[call_id] = running
        running.worker, running.dispatched_at = worker, self._now()
        running.gpus = life.gpus
        running.own_output = OutputBuffer(self._config.output_limit)
        limit = running.limits.result_bytes
        if limit is not None:
            worker.link.limit(limit + EXCEPTION_LIMIT)
        meta = wire.numbered(call_id, _meta(call, limit), overlaps=instance.running[call_id])
        self._crew.send(worker, wire.CALL, meta, call.body, call.fds)
        self._calls.handed_over(call_id)

    def _close(self, worker: Worker) -> None:
        """Ask it; `Crew.check` sees to it that it goes."""
        worker.state.move(WorkerState.ENDING)
        worker.ending_since = self._now()
        self._crew.send(worker, wire.CLOSE, b"")

    def _end(
        self,
        name: str,
        culprit: int | None,
        stop: Stop | None,
        reason: str,
        *,
        grace: float | None = None,
    ) -> None:
        """End its worker, because of one of its calls or because nobody wants it."""
        life = self._lives[name]
        worker = life.worker
        self.table.leaving(name, reason)
        worker.culprit = culprit
        grace_s = self._config.grace_s if grace is None else grace
        self._crew.stop(worker, stop, grace=grace_s, dump=stop is not None)

    # What its worker reports.

    def sent(self, worker: Worker, frame: wire.Frame) -> None:
        """A frame of a resident."""
        if frame.kind == wire.LOADED:
            self._on_loaded(worker, frame)
            return
        number, meta = wire.split_number(frame.meta)
        running = worker.calls.get(number)
        if running is None or frame.kind not in (wire.RESULT, wire.ITEM, wire.OUTPUT):
            _close_fds(frame)
        elif frame.kind == wire.RESULT:
            self._on_result(worker, number, running, frame, wire.ResultMeta.unpack(meta))
        elif running.done or running.stop is not None:
            _close_fds(frame)
        elif frame.kind == wire.ITEM:
            running.streaming = True
            running.sink.item(frame.body, tuple(frame.fds))
        else:
            assert running.own_output is not None
            running.own_output.append(frame.body)
            if running.sink.wants_output:
                running.sink.output(frame.body)

    def _on_loaded(self, worker: Worker, frame: wire.Frame) -> None:
        name = worker.instance
        instance = self.table.get(name or "")
        if instance is None or name is None or instance.state is not State.LOADING:
            return
        meta = wire.ResultMeta.unpack(frame.meta)
        for call_id in instance.waiting:
            waiting = self._calls[call_id]
            self._host.learn(waiting.call, meta.more.get("modules", []))
            break
        if meta.ok:
            overlapping = meta.more.get("overlapping", [])
            commands = self.table.loaded(name, overlapping, self._now())
            for call_id in instance.waiting:
                self._limit_waiting(call_id, self._calls[call_id], instance)
            self._do(commands)
            return
        life = self._lives[name]
        life.reason = f"its constructor raised {meta.more.get('error_type')}"
        for call_id in self.table.not_loaded(name, life.reason):
            running = self._calls[call_id]
            running.worker, running.dispatched_at = worker, running.submitted_at
            running.own_output = worker.aside
            self._calls.finish(call_id, ends.answered(running, frame, meta, self._now()))
        worker.state.move(WorkerState.ENDING)
        worker.ending_since = self._now()

    def _on_result(
        self,
        worker: Worker,
        call_id: int,
        running: Running,
        frame: wire.Frame,
        meta: wire.ResultMeta,
    ) -> None:
        name = worker.instance
        assert name is not None
        del worker.calls[call_id]
        if running.done:
            _close_fds(frame)
        elif running.stop is not None:
            _close_fds(frame)
            stop = running.stop
            cause = Cause(error_type=stop.error_type, message=stop.message, details=stop.details)
            self._calls.finish(call_id, ends.failed(running, cause, self._now(), None))
        else:
            self._host.learn(running.call, meta.more.get("modules", []))
            outcome = ends.answered(running, frame, meta, self._now())
            self._calls.finish(call_id, replace(outcome, instance=self._record(name, running)))
        commands = self.table.answered(call_id, self._now())
        poisoned = meta.more.get("poisoned")
        if poisoned and not worker.stopping:
            self._end(name, None, ends.sibling_lost(poisoned), poisoned)
        self._do(commands)

    def _record(self, name: str, running: Running) -> InstanceRecord | None:
        life, instance, want = self._lives[name], self.table.get(name), running.call.want
        if instance is None or want is None:
            return None
        return InstanceRecord(
            instance=name,
            class_name=instance.class_name,
            created_at=life.created_at,
            last_used_at=time.time(),
            method_calls=instance.calls,
            generation=instance.generation,
            rebuilt_because=life.rebuilt_because,
            same_arguments=want.arguments == instance.arguments,
        )

    def died(self, worker: Worker, death: wire.Exited, oom: causes.OomKill | None) -> None:
        """It is dead."""
        name = worker.instance
        assert name is not None
        peak_mb = round(death.rss_kb / 1024, 1)
        cause = causes.of_death(
            death.status,
            stop=worker.stop,
            oom=oom,
            output_tail=_tail(worker),
            peak_mb=peak_mb,
        )
        self.lost(worker, cause, death)

    def lost(self, worker: Worker, cause: Cause, death: wire.Exited | None) -> None:
        """The calls in it end; `gone` follows when its tree is gone."""
        name = worker.instance
        instance = self.table.get(name or "")
        if name is None or instance is None:
            return
        life = self._lives[name]
        life.reason = instance.why_leaving or cause.message.partition("\n")[0]
        if instance.state is State.LOADING:
            self._lost_loading(worker, life, cause, death)
        else:
            self.table.leaving(name, life.reason)
        for call_id, running in list(worker.calls.items()):
            del worker.calls[call_id]
            if not running.done:
                self._lose(call_id, running, worker, cause, death)

    def _lost_loading(
        self, worker: Worker, life: _Life, cause: Cause, death: wire.Exited | None
    ) -> None:
        name = worker.instance
        assert name is not None
        if death is not None and not death.began and worker.stop is None:
            # Nothing of the user's ran: whoever waits goes on waiting, for the next one.
            life.died_loading = True
            return
        crashed_at = None if worker.stopping or death is None else self._now()
        for call_id in self.table.not_loaded(name, life.reason, crashed_at):
            running = self._calls[call_id]
            running.own_output = worker.aside
            self._calls.finish(call_id, ends.failed(running, cause, self._now(), death))

    def _lose(
        self,
        call_id: int,
        running: Running,
        worker: Worker,
        cause: Cause,
        death: wire.Exited | None,
    ) -> None:
        if worker.culprit is not None and worker.culprit != call_id and running.stop is None:
            words = ends.sibling_lost(cause.message.partition("\n")[0])
            cause = Cause(error_type=words.error_type, message=words.message, details=words.details)
        want = running.call.want
        may_again = running.stop is None and running.may_run_again(began=True)
        self._do(self.table.answered(call_id, self._now()))
        if may_again and want is not None and not want.must_exist:
            running.try_again()
            self.submit(call_id)
            return
        self._calls.finish(call_id, ends.failed(running, cause, self._now(), death))

    def gone(self, worker: Worker) -> None:
        """Its process tree is gone."""
        name = worker.instance
        if name is None or name not in self._lives or self._lives[name].worker is not worker:
            return
        life = self._lives.pop(name)
        instance = self.table.get(name)
        if instance is None:
            return
        reason = instance.why_leaving or life.reason or "its worker is gone"
        self._ends[name] = reason
        while len(self._ends) > residents.REMEMBERED:
            del self._ends[next(iter(self._ends))]
        self._do(self.table.gone(name, reason, self._now(), crashed=life.died_loading))
        self._host.changed()

    # Time.

    def tick(self) -> None:
        """Close what is idle for too long, or too much."""
        looks = 0
        for instance in self.table:
            life = self._lives.get(instance.name)
            if life is not None and life.used and instance.idle and looks < _LOOKS:
                looks += 1
                life.used = False
                self.table.measured(instance.name, memory.exact(life.worker.pid))
        self._do(self.table.tick(self._now()))

    def close_idle(self, reason: str) -> None:
        """Close all that nobody needs now."""
        self._do(self.table.close_idle(reason))

    def release(self, name: str, reason: str) -> None:
        """Close one when its calls are over: whoever made it has no more use for it."""
        self._do(self.table.release(name, reason, self._now()))

    @property
    def idle_gpus(self) -> int:
        """Devices that calls could have for the asking, because who holds them is idle."""
        idle = (life for name, life in self._lives.items() if self._is_idle(name))
        return sum(len(life.gpus) for life in idle)

    def _is_idle(self, name: str) -> bool:
        instance = self.table.get(name)
        return instance is not None and instance.idle

    def give_up_gpus(self) -> None:
        """Close what is idle, as far as the first call in line for GPUs needs what it holds."""
        table = self._gpus.table
        missing = table.wanted() - len(self._held(table, leaving=True))
        while missing > 0:
            held = self._held(table, leaving=False)
            commands = self.table.needed(held.values(), "a call needed its GPU")
            if not commands:
                return
            closed = {one.instance for one in commands if isinstance(one, residents.Close)}
            missing -= sum(name in closed for name in held.values())
            self._do(commands)

    def _held(self, table: GpuTable, *, leaving: bool) -> dict[str, str]:
        """Devices with no share left -> an instance that holds one, of those that leave or stay."""
        held: dict[str, str] = {}
        for name, life in self._lives.items():
            instance = self.table.get(name)
            if instance is not None and (instance.state is State.LEAVING) is leaving:
                held.update((uuid, name) for uuid in life.gpus if not table.has_share(uuid))
        return held

    @property
    def any_left(self) -> bool:
        """Whether a resident lives."""
        return bool(self._lives)

    def worker_of(self, instance: Instance) -> Worker | None:
        """The worker that has it, if one does."""
        life = self._lives.get(instance.name)
        return life.worker if life is not None else None

    # Parts.

    def _limit_waiting(self, call_id: int, running: Running, instance: Instance | None) -> None:
        """How long it may wait: for its instance to be made as long as it may run, else as
        for a slot.
        """
        if instance is not None and instance.state is State.LOADING:
            self._calls.limit(running, running.limits.run_s, self._load_too_long, call_id)
        else:
            self._calls.waits(call_id)

    def _load_too_long(self, call_id: int) -> None:
        running = self._calls[call_id]
        self._calls.finish(call_id, ends.loaded_too_long(running, self._now()))


def _meta(
    call: Call, result_limit: int | None = None, env: Mapping[str, str] | None = None
) -> bytes:
    return wire.pack_call_meta(
        pickled=call.codec is Codec.PICKLE,
        stream=call.stream,
        result_limit=result_limit,
        env=dict(env or {}),
    )


def _tail(worker: Worker) -> str:
    return worker.taker().tail(causes.TAIL)


def _close_fds(frame: wire.Frame) -> None:
    for fd in frame.fds:
        os.close(fd)
