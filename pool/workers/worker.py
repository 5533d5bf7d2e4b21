"""What the supervisor knows about one call and about one worker."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass, field
from typing import Final, Protocol

from flashpool.pool._child import wire
from flashpool.pool.calls import Call, CallLimits, Codec, Phase, Sink
from flashpool.pool.exit_causes import Cause, Stop
from flashpool.pool.scheduling.commands import ZygoteKey

from .channel import WorkerChannel
from .output_buffer import OutputBuffer, without_our_frames
from .states import WORKER_MOVES, StateMachine, WorkerState
from .zygote import ZygoteProcess

#: How many workers a call is given to, if each dies before it begins the call.
ATTEMPTS: Final = 3
#: A worker that is stopped sooner than this after it got its call had little time to begin it.
TO_BEGIN_S: Final = 1.0


class CallKeeper(Protocol):
    """Handles calls of instances, whose workers outlive each call: `residents.runner`."""

    def withdraw(self, call_id: int, running: ActiveCall) -> None:
        """Withdraw a call that may not have begun."""

    def cancel(self, call_id: int, running: ActiveCall, reason: str) -> None:
        """Cancel a call that its caller no longer wants."""

    def stop(self, call_id: int, running: ActiveCall, stop: Stop, *, grace: float) -> None:
        """Stop a call that exceeded a limit."""


class AppKeeper(Protocol):
    """Handles events of an app worker: `residents.apps.workers`."""

    def sent(self, worker: Worker, frame: wire.Frame) -> None:
        """The worker sent a frame."""

    def printed(self, worker: Worker, chunk: bytes) -> None:
        """The worker wrote output."""

    def died(self, worker: Worker, cause: Cause) -> None:
        """The worker is dead, or its channel cannot be read."""

    def gone(self, worker: Worker) -> None:
        """The worker's process tree is gone."""


class ActiveCall:
    """A call between its submission and its outcome."""

    __slots__ = (
        "attempts",
        "call",
        "dispatched_at",
        "done",
        "exiting",
        "gpus",
        "gpus_wanted",
        "id",
        "keeper",
        "key",
        "limits",
        "own_output",
        "room",
        "sink",
        "soft_timer",
        "stop",
        "streaming",
        "submitted_at",
        "timer",
        "worker",
    )

    def __init__(
        self, call_id: int, call: Call, sink: Sink, key: ZygoteKey, limits: CallLimits, now: float
    ) -> None:
        self.id = call_id
        self.call = call
        #: The call's own limits, and the pool's defaults for limits that the call leaves out.
        self.limits = limits
        self.sink = sink
        self.key = key
        self.submitted_at = now
        self.dispatched_at: float | None = None
        self.worker: Worker | None = None
        #: For a call of an instance: its keeper.
        self.keeper: CallKeeper | None = None
        #: In a resident: the output of this call. Another worker's output is that of its only call.
        self.own_output: OutputBuffer | None = None
        #: In a resident: why the call is being stopped, if its caller should get that reason.
        self.stop: Stop | None = None
        #: How many GPUs the call needs; and its GPUs, once it has a worker.
        self.gpus_wanted = 0
        self.gpus: tuple[str, ...] = ()
        self.timer: asyncio.TimerHandle | None = None
        self.soft_timer: asyncio.TimerHandle | None = None
        self.attempts = 1
        #: Items that the worker may still send: those requested that have not arrived.
        self.room = wire.WINDOW if call.stream else 0
        self.streaming = False
        #: Whether the call's function has returned, and its process is exiting.
        self.exiting = False
        self.done = False

    @property
    def phase(self) -> Phase:
        """Return the call's phase."""
        if self.worker is None:
            return Phase.QUEUE
        return Phase.EXIT if self.exiting else Phase.RUN

    @property
    def written(self) -> OutputBuffer | None:
        """Return the call's output so far, if any."""
        if self.own_output is not None or self.worker is None:
            return self.own_output
        return self.worker.link.output

    def fds_of(self, frame: wire.Frame) -> tuple[int, ...]:
        """Return the descriptors of an item or result, for the sink: only pickles have any."""
        if frame.fds and self.call.codec is Codec.PICKLE:
            return frame.take_fds()
        return ()

    def take_item(self, frame: wire.Frame) -> None:
        """Pass an item that the call yielded to its sink.

        Raises:
            BadFrame: the item exceeds the credit. The runtime waits for credit, so user code wrote
                this frame.
        """
        if not self.room:
            raise wire.BadFrame("more items than the credit allows")
        self.room -= 1
        self.streaming = True
        self.sink.item(frame.body, self.fds_of(frame))

    def may_run_again(self, *, began: bool) -> bool:
        """Return whether the call may be tried again after its worker's death: no user code had
        begun, or the call is idempotent.
        """
        if not began:
            return self.attempts < ATTEMPTS
        # Memory behind descriptors may have been written to.
        once_more = self.call.idempotent and self.attempts == 1
        return once_more and not self.streaming and not self.call.fds

    def try_again(self) -> None:
        """Reset the state of the last attempt: the call returns to the queue."""
        self.attempts += 1
        self.room = wire.WINDOW if self.call.stream else 0
        self.worker = self.own_output = self.stop = None
        self.gpus = ()
        self.cancel_timer()

    def cancel_timer(self) -> None:
        """Cancel the timers of all limits."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if self.soft_timer is not None:
            self.soft_timer.cancel()
            self.soft_timer = None

    def close_fds(self) -> None:
        """Close the call's descriptors, which no further attempt needs."""
        for fd in self.call.fds:
            os.close(fd)


@dataclass(slots=True, eq=False)
class LoadedInstance:
    """One instance in its worker; the table of instances has a row for it, too."""

    worker: Worker
    gpus: tuple[str, ...]
    #: Memory limit of the constructor.
    limit_mb: int | None
    created_at: float = field(default_factory=time.time)
    #: Whether a call has received the constructor's output.
    heard: bool = False
    #: Whether the instance was called since its memory was measured; the result, and its time.
    used: bool = True
    memory_bytes: int = 0
    measured_at: float = 0.0
    #: Whether the worker died before it began to create the instance.
    unmade: bool = False
    #: Why the instance ended.
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StuckWorker:
    """What is known about a worker that cannot be killed, after its call has finished."""

    since: float
    call: int | None
    label: str


class Worker:
    """A forked process, from its zygote's report of it to the end of its process tree."""

    __slots__ = (
        "app",
        "aside",
        "calls",
        "culprit",
        "dead_since",
        "doubted",
        "exiting_since",
        "fed_at",
        "hung_up_at",
        "id",
        "instance",
        "link",
        "loading",
        "looked_at",
        "pid",
        "prepared",
        "running",
        "scratch",
        "since",
        "small",
        "state",
        "status",
        "stop",
        "stopped",
        "stopping",
        "stuck",
        "zygote",
    )

    def __init__(
        self,
        worker_id: int,
        pid: int,
        zygote: ZygoteProcess,
        link: WorkerChannel,
        *,
        prepared: bool,
        now: float,
    ) -> None:
        self.id = worker_id
        self.pid = pid
        self.zygote = zygote
        self.link = link
        self.since = now
        first = WorkerState.SPARE if prepared else WorkerState.PREPARING
        self.state = StateMachine(f"worker {pid}", first, WORKER_MOVES)
        #: Whether the worker was ever ready for a call.
        self.prepared = prepared
        self.running: ActiveCall | None = None
        #: Of a resident: its instance and its calls; ``culprit``, below: the call because of which
        #: the resident is being stopped.
        self.instance: str | None = None
        self.calls: dict[int, ActiveCall] = {}
        #: Of an app worker: its keeper.
        self.app: AppKeeper | None = None
        self.culprit: int | None = None
        #: Whether the worker is creating its instance now.
        self.loading = False
        #: Of a resident: output while no call runs in it.
        self.aside: OutputBuffer | None = None
        #: Set when the supervisor stops the worker: why, if the call should get that reason.
        self.stop: Stop | None = None
        self.stopping = False
        #: Since when the process should be gone.
        self.exiting_since: float | None = None
        #: When the worker last accepted a part of its call, and whether its zygote was asked to
        #: kill it unless user code has begun.
        self.fed_at = now
        self.doubted = False
        #: Whether the worker was checked since, and was then stopped (SIGSTOP) from outside.
        self.looked_at = self.stopped = False
        #: When the channel ended.
        self.hung_up_at: float | None = None
        #: The scratch directory, if the call needs one.
        self.scratch: str | None = None
        #: Whether the call that finished in this worker used little memory.
        self.small = False
        #: The wait status once the worker is dead, and when that became known.
        self.status: int | None = None
        self.dead_since = now
        #: Set while the worker, or a process that it left, cannot be killed.
        self.stuck: StuckWorker | None = None

    def __repr__(self) -> str:
        call = None if self.running is None else self.running.id
        return f"<worker {self.pid} {self.state.now.value} call={call}>"

    def should_have_begun(self, now: float) -> bool:
        """Return whether it is suspicious that the worker exited before user code began."""
        if self.stopped:
            return False  # stopped from outside, which no preloaded module causes
        if self.doubted:
            return True
        if self.stop is not None:
            return now - self.fed_at > TO_BEGIN_S
        return not self.stopping and self.exiting_since is None

    @property
    def is_over(self) -> bool:
        """Return whether nobody needs the worker's frames and output: it has no call, or its call
        has finished.
        """
        running = self.running
        return self.instance is None and (running is None or (running.done and not running.exiting))

    def taker(self) -> OutputBuffer:
        """Return the buffer that gets a resident's output now: that of the oldest call in it, or
        `aside` if no call runs.
        """
        for running in self.calls.values():
            if running.own_output is not None:
                return running.own_output
        assert self.aside is not None
        return self.aside

    def read(self, fd: int) -> bytes | None:
        """Read output from one of the worker's pipes, and pass it on; return None at its end."""
        running = self.running
        if self.app is not None:
            if chunk := self.link.read_output(fd):
                self.app.printed(self, chunk)
            return chunk
        if self.instance is not None:
            running = next(iter(self.calls.values()), None)
            self.link.output = self.taker()
        chunk = self.link.read_output(fd)
        if not chunk or running is None or running.done:
            return chunk
        # After its limit, the worker prints its stacks, which belong to the outcome.
        if running.sink.wants_output and self.stop is None:
            running.sink.output(without_our_frames(chunk), stderr=fd == self.link.errors)
        return chunk

    def read_all(self) -> bool:
        """Read all pipes of the worker; return whether there was any output."""
        found = False
        for fd in self.link.outputs:
            found = bool(self.read(fd)) or found
        return found

    def take(self, running: ActiveCall, now: float) -> None:
        """Assign this call to the worker."""
        self.state.move(WorkerState.BUSY)
        self.running = running
        running.worker = self
        running.dispatched_at = self.fed_at = now
