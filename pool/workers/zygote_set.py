"""The zygotes: started, listened to, retired, killed when they do not answer.

    StartZygote -> start -> ZygoteProcess ... READY -> ZygoteListener.zygote_ready
                                              SPARES, EXITED, GONE -> ZygoteListener
    RetireZygote -> retire -> LEAVE ... guard's exit -> ZygoteListener.zygote_lost

A guard's exit is the one sure sign that a zygote and all below it are gone.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterator
from functools import partial
from typing import Final, Protocol

from flashpool.pool import pickling
from flashpool.pool._child import wire
from flashpool.pool.calls import BASE_ENVIRONMENT, Call
from flashpool.pool.config import PoolConfig
from flashpool.pool.gpus.access import VARYING
from flashpool.pool.scheduling.commands import ZygoteKey
from flashpool.pool.scheduling.preloading import BARE, PreloadLearner
from flashpool.pool.scheduling.zygote_table import RESTART_WINDOW_S

from . import outcomes
from .poller import Poller
from .states import ZygoteState
from .zygote import ZygoteProcess

_log = logging.getLogger(__name__)

#: A zygote that leaves a request unanswered this long is taken for stopped, and killed.
ANSWER_S: Final = 10.0
#: Workers in a row that end before user code began in them, past which what their zygote
#: has preloaded is to blame: where none ever began, where some did; and past which workers
#: of a lean one, where none ever began, are spawned.
STILLBORN: Final = 2
STILLBORN_PROVEN: Final = 5
STILLBORN_LEAN: Final = 8
#: From a zygote's death to its guard's exit, at most.
HUNG_UP_S: Final = 1.0


class ZygoteListener(Protocol):
    """Who hears of zygotes."""

    def zygote_ready(self, zygote: ZygoteProcess) -> None:
        """It can fork."""

    def zygote_lost(self, key: ZygoteKey, zygote: ZygoteProcess | None, reason: str) -> None:
        """It, and every process below it, is gone; None when it never was."""

    def spares(self, zygote: ZygoteProcess, pids: list[int], fds: list[int], ready: bool) -> None:
        """It forked; channel and output of each worker, in turn."""

    def not_forked(self, zygote: ZygoteProcess, number: int) -> None:
        """It could not fork that many."""

    def exited(self, zygote: ZygoteProcess, death: wire.Exited) -> None:
        """A worker is dead."""

    def gone(self, zygote: ZygoteProcess, pid: int) -> None:
        """All that a dead worker had left behind is gone too."""


class ZygoteSet:
    """All zygotes of a pool. Decisions are the scheduler's and the learner's."""

    def __init__(
        self,
        config: PoolConfig,
        learner: PreloadLearner,
        poller: Poller,
        now: Clock,
        listener: ZygoteListener,
    ) -> None:
        self._config = config
        self._learner = learner
        self._poller = poller
        self._now = now
        self._listener = listener
        self._up: dict[ZygoteKey, ZygoteProcess] = {}
        self._leaving: list[ZygoteProcess] = []
        #: The interpreter of each environment.
        self.pythons: dict[str, str] = {BASE_ENVIRONMENT: config.base_python}
        #: Environments whose workers are spawned, and why.
        self.spawned: dict[str, str] = {}
        #: How often each was started, why that failed last, and why it was lost when it was up.
        self.starts: dict[ZygoteKey, int] = {}
        self.failures: dict[ZygoteKey, str] = {}
        self.losses: dict[ZygoteKey, str] = {}
        self._lost_at: dict[ZygoteKey, deque[float]] = {}
        #: When this process went on after it, and perhaps all of them, had stood still.
        self._resumed_at = now()

    def __iter__(self) -> Iterator[ZygoteProcess]:
        yield from self._up.values()
        yield from self._leaving

    def __getitem__(self, key: ZygoteKey) -> ZygoteProcess:
        return self._up[key]

    def __contains__(self, one: ZygoteKey | ZygoteProcess) -> bool:
        if isinstance(one, ZygoteProcess):
            return self._up.get(one.key) is one
        return one in self._up

    @property
    def all_left(self) -> bool:
        """Whether no zygote is left of those that were asked to leave."""
        return not self._leaving

    def start(self, key: ZygoteKey) -> bool:
        """Start it; False when its interpreter cannot be executed (see ``failures``)."""
        method = "spawn" if key.environment in self.spawned else self._config.start_method
        preload: tuple[str, ...] = ()
        if method == "fork" and key.profile != BARE:
            # Workers that prepare themselves are fresh processes: what would they share?
            preload = (*self._config.preload, *self._learner.modules(key))
        self.starts[key] = self.starts.get(key, 0) + 1
        self.failures.pop(key, None)
        python = self.pythons.get(key.environment)
        if python is None:
            self.failures[key] = "it is not known any more; send the call again"
            return False
        try:
            zygote = ZygoteProcess(
                key, python, self._config, preload=preload, method=method, now=self._now()
            )
        except OSError as error:
            self.failures[key] = f"{python}: {error.strerror}"
            return False
        self._up[key] = zygote
        self._poller.watch(zygote.control.fileno(), partial(self._on_control, zygote))
        self._poller.watch(zygote.words_fd, partial(self._on_words, zygote))
        self._poller.watch(zygote.guard_fd, partial(self._on_guard_exit, zygote))
        for modules in _in_packets(preload):
            self._send(zygote, wire.PRELOAD, modules=modules)
        self._send(zygote, wire.START, **self._how_to_start(method))
        return True

    def _how_to_start(self, method: str) -> dict[str, object]:
        return {
            "path": list(self._config.extra_path),
            "runtime": outcomes.runtime_packages(),
            "method": method,
            "varying": list(VARYING),
            "workdir": self._config.workdir,
            "log_level": self._config.log_level,
            "memory_tricks": self._config.memory_tricks,
            "grace": self._config.grace_s,
            "example": pickling.example(),
        }

    def fork(self, key: ZygoteKey, number: int, practise: str) -> None:
        """Have it fork spares, which limber up for this codec unless it is empty."""
        zygote = self._up[key]
        if zygote.unanswered == 0:
            zygote.answered_at = self._now()
        zygote.unanswered += number
        zygote.fork(number, practise)
        self._send_rest(zygote)

    def stop(self, zygote: ZygoteProcess, pid: int, *, grace: float, dump: bool) -> None:
        """Have it end a worker and its tree."""
        self._send(zygote, wire.STOP, worker=pid, grace=grace, dump=dump)

    def drop(self, zygote: ZygoteProcess, pid: int) -> None:
        """Have it kill a worker, unless user code has begun there."""
        self._send(zygote, wire.DROP, worker=pid)

    def ran(self, zygote: ZygoteProcess, call: Call) -> None:
        """A call of this source had a result in one of its workers."""
        if zygote in self and zygote.sources.ran(call.function_key):
            self._send(zygote, wire.COMPILE, name=call.label, source=call.source.decode())

    def stillborn(self, zygote: ZygoteProcess, how: str) -> bool:
        """One of its workers ended before user code began, so: whether its preload is to blame."""
        zygote.stillborn += 1
        why = f"{zygote.stillborn} workers in a row ended before user code began in them: {how}"
        if zygote not in self:
            return False
        if not zygote.key.profile:
            self._spawn_instead(zygote, why)
            return False
        if zygote.stillborn < (STILLBORN_PROVEN if zygote.proven else STILLBORN):
            return False
        _log.warning("%r is not used any more: %s", zygote, why)
        self._learner.failed(zygote.key, None, why)
        return True

    def _spawn_instead(self, zygote: ZygoteProcess, why: str) -> None:
        """No fork of this interpreter lives, for reasons of its own."""
        if zygote.stillborn == STILLBORN_LEAN and zygote.method == "fork" and not zygote.proven:
            self.spawned[zygote.key.environment] = why
            zygote.kill(why)

    def retire(self, zygote: ZygoteProcess) -> None:
        """Ask it to kill its workers and leave."""
        if self._up.get(zygote.key) is zygote:
            del self._up[zygote.key]
            self._leaving.append(zygote)
            zygote.leaving_at = self._now()
            zygote.state.move(ZygoteState.LEAVING)
            self._send(zygote, wire.LEAVE)

    def forget(self, environment: str) -> None:
        """Nothing of it is left, and no call will ask for it under this name."""
        del self.pythons[environment]
        self.spawned.pop(environment, None)
        for key in [key for key in self.starts if key.environment == environment]:
            del self.starts[key]
            for told in (self.failures, self.losses, self._lost_at):
                told.pop(key, None)

    def retire_all(self) -> None:
        """Ask every one to leave."""
        for zygote in list(self._up.values()):
            self.retire(zygote)

    def kill_leaving(self) -> None:
        """Kill those that were asked to leave and have not."""
        for zygote in self._leaving:
            zygote.kill_with_guard()

    def check(self) -> None:
        """Kill those that do not come up, answer or leave. Call it every second or so."""
        start_s = self._config.start_timeout_s
        for zygote in self:
            if zygote.hung_up_at is not None and self._age(zygote.hung_up_at) > HUNG_UP_S:
                # It is dead, and its guard, which should have cleaned up and left, has not.
                zygote.kill_with_guard()
        for zygote in self._leaving:
            if self._age(zygote.leaving_at) > ANSWER_S:
                zygote.kill_with_guard()
        for zygote in self._up.values():
            if zygote.state.now is ZygoteState.STARTING and self._age(zygote.progress_at) > start_s:
                zygote.kill(f"it did not come up within {start_s:g} s and was killed")
            elif zygote.unanswered and self._age(zygote.answered_at) > ANSWER_S:
                zygote.kill(f"it did not answer for {ANSWER_S:g} s and was killed")

    def _age(self, at: float) -> float:
        """Seconds since then in which this process ran."""
        return self._now() - max(at, self._resumed_at)

    def resumed(self) -> None:
        """Judge nobody by the time up to now."""
        self._resumed_at = self._now()

    # What they say.

    def _send(self, zygote: ZygoteProcess, op: str, **fields: object) -> None:
        zygote.send(op, **fields)
        self._send_rest(zygote)

    def _send_rest(self, zygote: ZygoteProcess) -> None:
        """When its socket takes more, if that took not all."""
        if zygote.blocked:
            self._poller.want_to_write(zygote.control.fileno(), True)

    def _on_control(self, zygote: ZygoteProcess, writable: bool) -> None:
        if writable:
            zygote.flush()
            if not zygote.blocked:
                self._poller.want_to_write(zygote.control.fileno(), False)
        if not self._hear(zygote):
            self._poller.forget(zygote.control.fileno())
            zygote.hung_up_at = self._now()

    def _hear(self, zygote: ZygoteProcess) -> bool:
        """Act on what has arrived; False at the end."""
        try:
            for message, fds in zygote.receive():
                zygote.answered_at = self._now()
                self._on_message(zygote, message, fds)
        except wire.Closed:
            return False
        return True

    def _on_message(
        self, zygote: ZygoteProcess, message: wire.Meta | wire.Exited, fds: list[int]
    ) -> None:
        if isinstance(message, wire.Exited):
            self._listener.exited(zygote, message)
            return
        op = message["op"]
        if op == wire.SPARES:
            zygote.unanswered -= len(message["workers"])
            zygote.forked = True
            if len(fds) == 2 * len(message["workers"]):
                self._listener.spares(zygote, message["workers"], fds, message["ready"])
            else:
                self._lost_descriptors(zygote, len(message["workers"]), fds)
        elif op == wire.GONE:
            self._listener.gone(zygote, message["worker"])
        else:
            self._on_rare_message(zygote, op, message)

    def _lost_descriptors(self, zygote: ZygoteProcess, number: int, fds: list[int]) -> None:
        """This process may open no more: what came is closed, and so the workers leave."""
        for fd in fds:
            os.close(fd)
        _log.error("%r forked, but this process has too many open files to use it", zygote)
        self.failures[zygote.key] = "the supervisor has too many open files"
        self._listener.not_forked(zygote, number)

    def _on_rare_message(self, zygote: ZygoteProcess, op: str, message: wire.Meta) -> None:
        if op == wire.LOADING:
            zygote.loading = message["module"]
            zygote.progress_at = self._now()
        elif op == wire.SKIPPED:
            self._on_skipped(zygote, message["modules"], message["why"])
        elif op == wire.PRELOADED:
            self._learner.read(zygote.key, message["reads"])
        elif op == wire.UNSAFE:
            zygote.unsafe = (message["module"], message["why"])
        elif op == wire.NOT_FORKED:
            _log.error("%r cannot fork: %s", zygote, message["why"])
            self.failures[zygote.key] = f"it cannot fork: {message['why']}"
            zygote.unanswered -= message["n"]
            self._listener.not_forked(zygote, message["n"])
        elif op == wire.READY and zygote.state.now is ZygoteState.STARTING:
            # In any other state it was told to leave meanwhile.
            zygote.is_ready(message, self._now())
            _log.debug("%r is ready in %.3f s", zygote, self._now() - zygote.started_at)
            self._listener.zygote_ready(zygote)

    def _on_skipped(self, zygote: ZygoteProcess, modules: list[str], why: str) -> None:
        zygote.skipped.update(dict.fromkeys(modules, why))
        for name in self._config.preload:
            if name in modules:
                _log.warning("%s is not preloaded: %s", name, why)
        self._learner.skip(zygote.key, modules, why)

    def _on_words(self, zygote: ZygoteProcess, _writable: bool) -> None:
        if not zygote.read_words():
            self._poller.forget(zygote.words_fd)

    def _on_guard_exit(self, zygote: ZygoteProcess, _writable: bool) -> None:
        """All below the guard is gone, and what it told last is in the sockets."""
        if zygote.process.poll() is None:
            return  # The event was for an earlier holder of this descriptor's number.
        self._hear(zygote)
        zygote.read_words()
        for fd in (zygote.control.fileno(), zygote.words_fd, zygote.guard_fd):
            self._poller.forget(fd)
        zygote.close()
        left = zygote.state.now is ZygoteState.LEAVING
        zygote.state.move(ZygoteState.GONE)
        reason = zygote.reason()
        if left:
            self._leaving.remove(zygote)
        else:
            del self._up[zygote.key]
            reason = self._died(zygote, reason)
        self._listener.zygote_lost(zygote.key, zygote, reason)

    def _died(self, zygote: ZygoteProcess, reason: str) -> str:
        """Remember why; do not let happen again what can be avoided."""
        if zygote.forked:
            reason = self.losses[zygote.key] = f"{reason}{self._how_often(zygote.key)}"
        _log.warning("%r is lost: %s", zygote, reason)
        if zygote.curable:
            self.spawned[zygote.key.environment] = reason
        elif not zygote.forked:
            self.failures[zygote.key] = reason
        if zygote.key.profile and not zygote.forked:
            culprit = zygote.unsafe[0] if zygote.unsafe else zygote.loading
            self._learner.failed(zygote.key, culprit or None, reason)
        return reason

    def _how_often(self, key: ZygoteKey) -> str:
        """It was up, and is lost: how often that was so of late."""
        times = self._lost_at.setdefault(key, deque())
        times.append(self._now())
        while times[-1] - times[0] > RESTART_WINDOW_S:
            times.popleft()
        often = len(times)
        return f" ({often} times in {times[-1] - times[0]:.0f} s)" if often > 1 else ""


def _in_packets(names: tuple[str, ...]) -> Iterator[list[str]]:
    """As many at a time as one packet is sure to take, however JSON writes them."""
    part: list[str] = []
    size = 0
    for name in names:
        part.append(name)
        size += len(name)
        if size > wire.PACKET_LIMIT // 8:
            yield part
            part, size = [], 0
    if part:
        yield part


class Clock(Protocol):
    """Monotonic seconds."""

    def __call__(self) -> float:
        """The time."""
