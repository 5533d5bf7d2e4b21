"""The workers: reads their channels and output, hands over their calls, handles their deaths.

    SPARES -> Worker -> WorkerListener.worker_ready
    hand_over(call) -> CALL --> worker --> ITEM*, RESULT -> WorkerListener.item, result
    stop -> zygote's STOP
    EXITED -> frames sent before -> WorkerListener.died -> GONE -> WorkerListener.worker_gone

The zygotes' reports about workers (SPARES, EXITED, GONE) come from `zygote_set`.

Bytes that users sent or printed pass through here uninterpreted.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from typing import Final

from flashpool.pool import exit_causes
from flashpool.pool._child import wire
from flashpool.pool.calls import Codec
from flashpool.pool.config import PoolConfig
from flashpool.pool.exit_causes import Stop
from flashpool.pool.recorder import Recorder

from .channel import EXCEPTION_LIMIT, GONE, RESULT_LIMIT, WorkerChannel
from .ends import stuck
from .listeners import WorkerListener
from .poller import Clock, Poller
from .states import WorkerState
from .worker import ActiveCall, Worker
from .zygote import ZygoteProcess

#: Rounds of reading a dead worker's output; together they read more than a pipe holds.
_LAST_TURNS: Final = 16


class WorkerSet:
    """All workers of a pool."""

    def __init__(
        self,
        config: PoolConfig,
        poller: Poller,
        now: Clock,
        listener: WorkerListener,
        recorder: Recorder,
    ) -> None:
        self._config = config
        self._recorder = recorder
        self._poller = poller
        self._now = now
        self._listener = listener
        self._ids = itertools.count(1)
        self.by_id: dict[int, Worker] = {}
        #: By guard's and worker's pid: a pid may be reused once its zygote has reaped the process.
        self._by_pid: dict[tuple[int, int], Worker] = {}

    def __iter__(self) -> Iterator[Worker]:
        return iter(self.by_id.values())

    # Births.

    def welcome(
        self, zygote: ZygoteProcess, pids: list[int], fds: list[int], *, ready: bool
    ) -> int:
        """Register workers that a zygote forked; return how many are new. Descriptors that were not
        taken stay in ``fds``.
        """
        now = self._now()
        each = len(fds) // len(pids)
        workers = []
        for pid in pids:
            channel_fd, *output_fds = fds[:each]
            del fds[:each]
            if not self._is_new(zygote, pid):
                for fd in (channel_fd, *output_fds):
                    os.close(fd)
                continue
            link = WorkerChannel(
                channel_fd,
                *output_fds,
                output_limit=self._config.output_limit,
                body_limit=RESULT_LIMIT,
            )
            worker = Worker(next(self._ids), pid, zygote, link, prepared=ready, now=now)
            self._by_pid[zygote.process.pid, pid] = self.by_id[worker.id] = worker
            workers.append(worker)
            self._poller.watch(channel_fd, worker, self._on_channel, self.failed)
            for fd in output_fds:
                self._poller.watch(fd, worker, self._on_output, self.failed)
        for worker in workers if ready else ():
            try:
                self._listener.worker_ready(worker)
            except Exception as error:  # noqa: BLE001 - counted, and ends its owner
                self._recorder.callback_failed(f"the birth of {worker!r}", error)
                self.failed(worker, error)
        return len(workers)

    def _is_new(self, zygote: ZygoteProcess, pid: int) -> bool:
        """Return whether no living worker has this pid; a zygote may report a worker twice."""
        before = self._by_pid.get((zygote.process.pid, pid))
        if before is not None and before.status is not None:
            self.forget(before)
            return True
        return before is None

    # Commands.

    def hand_over(self, worker: Worker, running: ActiveCall, env: Mapping[str, str]) -> None:
        """Give a spare its call, to run with these environment variables."""
        worker.take(running, self._now())
        call = running.call
        meta = wire.pack_call_meta(
            pickled=call.codec is Codec.PICKLE,
            stream=call.stream,
            result_limit=running.limits.result_bytes,
            env=dict(env),
            seed=call.seed,
            soft_s=running.limits.soft_s,
        )
        if running.limits.result_bytes is not None:
            worker.link.reader.body_limit = running.limits.result_bytes + EXCEPTION_LIMIT
        self.send(worker, wire.CALL, meta, call.body, call.fds)

    def catch_up(self, worker: Worker) -> None:
        """Read what a worker has sent by now, before a decision about it."""
        self._on_channel(worker, worker.link.channel_fd, False)

    def credit(self, worker: Worker, items: int) -> None:
        """Let the worker send that many more items."""
        self.send(worker, wire.CREDIT, wire.CREDIT_META.pack(items))

    def dismiss(self, worker: Worker) -> None:
        """End a spare by closing its channel, on which it exits."""
        worker.state.move(WorkerState.EXITING)
        worker.exiting_since = self._now()
        worker.link.hang_up()

    def stop(self, worker: Worker, stop: Stop | None, *, grace: float, dump: bool = False) -> None:
        """Stop a worker and its process tree; ``stop``: the reason, if the call should get it."""
        worker.stop = worker.stop or stop
        worker.stopping = True
        if worker.state.now is WorkerState.SPARE:
            self._listener.worker_dead(worker)
        if worker.state.now in (WorkerState.BUSY, WorkerState.PREPARING, WorkerState.SPARE):
            worker.state.move(WorkerState.EXITING)
        worker.exiting_since = self._now() + grace
        worker.zygote.stop_worker(worker.pid, grace=grace, dump=dump)

    def send(
        self,
        worker: Worker,
        kind: int,
        meta: bytes,
        body: bytes = b"",
        fds: tuple[int, ...] = (),
    ) -> None:
        """Send a frame; whatever the socket does not accept now follows when it can."""
        try:
            worker.link.send(kind, meta, body, fds)
        except GONE:
            return  # The worker died: EXITED follows, and a call that had not begun is retried.
        except OSError as error:
            # The worker lives, and would wait for this frame forever.
            self.stop(worker, exit_causes.not_handed_over(error), grace=0.0)
            return
        if worker.link.unsent:
            self._poller.want_to_write(worker.link.channel_fd, True)

    # Frames and output.

    def _on_channel(self, worker: Worker, _fd: int, writable: bool) -> None:
        if writable:
            self._flush(worker)
        try:
            frames = worker.link.read()
        except wire.BadFrame as error:
            self._on_bad_frame(worker, str(error))
            return
        if frames is None:
            # The worker has exited, or user code closed its channel: EXITED says which.
            self._poller.forget(worker.link.channel_fd)
            worker.hung_up_at = self._now()
            if worker.state.now is WorkerState.SPARE:
                self._listener.worker_dead(worker)
            return
        for frame in frames:
            try:
                self._on_frame(worker, frame)
            except wire.BadFrame as error:
                self._on_bad_frame(worker, str(error))

    def _flush(self, worker: Worker) -> None:
        try:
            worker.link.flush()
        except OSError:
            return
        worker.fed_at = self._now()
        if not worker.link.unsent:
            self._poller.want_to_write(worker.link.channel_fd, False)

    def _on_frame(self, worker: Worker, frame: wire.Frame) -> None:
        """Handle a frame, and close descriptors of the frame that nobody took."""
        running = worker.running
        try:
            if worker.app is not None:
                worker.app.sent(worker, frame)
            elif worker.instance is not None:
                # Read earlier output first, above all for the call that this frame ends.
                worker.read_all()
                self._listener.resident_sent(worker, frame)
            elif frame.kind == wire.WORKER_READY and worker.state.now is WorkerState.PREPARING:
                worker.state.move(WorkerState.SPARE)
                worker.prepared = True
                self._listener.worker_ready(worker)
            elif frame.kind == wire.EXIT and running is not None and running.exiting:
                worker.read_all()
                self._listener.exit_told(worker, frame)
            elif running is None or running.done or worker.stop is not None:
                pass  # Too late: the call was cancelled meanwhile, or exceeded a limit.
            elif frame.kind == wire.RESULT:
                meta = wire.ResultMeta.unpack(frame.meta)
                # Output written before the result is in the pipe by now.
                worker.read_all()
                self._listener.result(worker, running, frame, meta)
                if not running.exiting:
                    self.leaves(worker)
            elif frame.kind == wire.ITEM:
                self._listener.item(worker, running, frame)
        finally:
            for fd in frame.fds:
                os.close(fd)

    def leaves(self, worker: Worker) -> None:
        """Stop reading from a worker that only has to exit; its zygote will report its death."""
        if worker.state.now is WorkerState.BUSY:
            worker.state.move(WorkerState.EXITING)
            worker.exiting_since = self._now()
            self._poller.forget(worker.link.channel_fd, *worker.link.outputs)

    def _on_last_frame(self, worker: Worker, frame: wire.Frame) -> None:
        try:
            self._on_frame(worker, frame)
        except wire.BadFrame:
            pass  # the death says more; later frames may have descriptors, which must be closed

    def _on_bad_frame(self, worker: Worker, problem: str) -> None:
        self._poller.forget(worker.link.channel_fd)
        running = worker.running
        self.stop(worker, None, grace=0.0)
        if worker.instance is not None:
            self._listener.resident_spoilt(worker, problem)
        elif running is not None and not running.done:
            worker.read_all()
            self._listener.spoilt(worker, running, problem)

    def _on_output(self, worker: Worker, fd: int, _writable: bool) -> None:
        if worker.read(fd) is None:
            self._poller.forget(fd)

    def failed(self, worker: Worker, error: Exception) -> None:
        """Stop a worker for which flashpool's own code raised this error; its call fails."""
        if worker.id not in self.by_id:
            return
        self._poller.forget(worker.link.channel_fd, *worker.link.outputs)
        if worker.status is None and not worker.stopping:
            with self._recorder.counted(f"the end of {worker!r}"):
                self.stop(worker, None, grace=0.0)
        self._listener.worker_failed(worker, error)

    # Deaths.

    def exited(self, zygote: ZygoteProcess, death: wire.Exited) -> None:
        """Handle a zygote's report of a worker's death."""
        worker = self._by_pid.get((zygote.process.pid, death.worker))
        if worker is None or worker.status is not None:
            return
        try:
            self._exited(worker, death)
        except Exception as error:  # noqa: BLE001 - counted, and ends its owner
            self._recorder.callback_failed(f"the death of {worker!r}", error)
            with self._recorder.counted(f"the end of {worker!r}"):
                self.failed(worker, error)
        if not death.orphans:
            self._retire_environment(worker)
        else:
            with self._recorder.counted(f"what {worker!r} left"):
                self._listener.worker_dead(worker)
                self._go_on_reading(worker)

    def _exited(self, worker: Worker, death: wire.Exited) -> None:
        worker.status, worker.dead_since = death.status, self._now()
        zygote = worker.zygote
        if not worker.is_over:
            self.read_last(worker)
        running = worker.running
        if death.began:
            zygote.proven, zygote.stillborn = True, 0
        elif worker.prepared and worker.should_have_begun(self._now()):
            self._listener.stillborn(worker, death)
        if worker.instance is not None:
            self._listener.resident_died(worker, death)
        elif running is not None and running.exiting:
            self._listener.exit_died(worker)
        elif running is not None and not running.done:
            self._listener.died(worker, running, death)
        elif not worker.prepared and worker.stuck is None:
            self._listener.worker_not_ready(worker)

    def _go_on_reading(self, worker: Worker) -> None:
        """Keep reading a dead worker's output, so that its orphans do not block while they exit."""
        if worker.running is None or not worker.running.done:
            return
        for fd in worker.link.outputs:
            if not worker.link.output_ended(fd):
                self._poller.forget(fd)
                self._poller.watch(fd, worker, self._on_output, self.failed)

    def dropping(self, zygote: ZygoteProcess, pid: int) -> None:
        """Handle a zygote's report that it kills a worker in which user code has not begun."""
        worker = self._by_pid.get((zygote.process.pid, pid))
        if worker is not None and worker.status is None and not worker.stopping:
            worker.stopping = True
            worker.exiting_since = self._now()
            if worker.state.now in (WorkerState.BUSY, WorkerState.SPARE):
                worker.state.move(WorkerState.EXITING)

    def is_stuck(self, worker: Worker) -> None:
        """Mark a worker as stuck that was killed long ago, if it or its orphans still exist."""
        if not stuck.remains(worker, {one.pid for one in self}):
            self._lost(worker)
            return
        worker.stuck = stuck.of(worker, self._now())
        if worker.status is None:
            self._give_up(worker)

    def _give_up(self, worker: Worker) -> None:
        self._listener.worker_stuck(worker)
        worker.running = None  # if the worker ever goes on, its frames have no receiver

    def _lost(self, worker: Worker) -> None:
        """Handle a worker that is gone, perhaps without a report of its death."""
        if worker.status is None and worker.stuck is None:
            if not worker.is_over:
                self.read_last(worker)
            self._give_up(worker)
        self.forget(worker)

    def gone(self, zygote: ZygoteProcess, pid: int) -> None:
        """Handle a zygote's report that a dead worker's orphans are gone, too."""
        worker = self._by_pid.get((zygote.process.pid, pid))
        if worker is not None:
            self._lost(worker)

    def of(self, zygote: ZygoteProcess | None) -> list[Worker]:
        """Return the workers of a zygote."""
        return [worker for worker in self if worker.zygote is zygote]

    def forget(self, worker: Worker) -> None:
        """Forget a worker that is gone with all its orphans."""
        if worker.id not in self.by_id:
            return
        if not worker.is_over:
            with self._recorder.counted(f"the last of {worker!r}"):
                self.read_last(worker)
        self._retire_environment(worker)

    def _retire_environment(self, worker: Worker) -> None:
        """Close the descriptors of a worker from which no more data comes, and remove it."""
        worker.state.move(WorkerState.GONE)
        del self._by_pid[worker.zygote.process.pid, worker.pid]
        del self.by_id[worker.id]
        self._poller.forget(worker.link.channel_fd, *worker.link.outputs)
        worker.link.close()
        try:
            self._listener.worker_gone(worker)
        except Exception as error:  # noqa: BLE001 - counted, and ends its owner
            self._recorder.callback_failed(f"the end of {worker!r}", error)
        worker.running = None  # breaks a cycle that would hold the call's bytes until a collection

    def read_last(self, worker: Worker) -> None:
        """Read the frames and output that a worker sent before it died: its result still counts."""
        try:
            for frame in worker.link.read_last():
                self._on_last_frame(worker, frame)
        except wire.BadFrame as error:
            running = worker.running
            if worker.stop is None and worker.instance is None and running and not running.done:
                self._listener.spoilt(worker, running, str(error))
        for _ in range(_LAST_TURNS):
            if not worker.read_all():
                break
