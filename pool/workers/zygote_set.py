"""The zygotes: starts and retires them, handles their messages, kills those that do not answer.

    StartZygote -> start -> ZygoteProcess ... READY -> ZygoteListener.zygote_ready
                                              SPARES, EXITED, GONE -> WorkerSet
    RetireZygote -> retire -> LEAVE ... guard's exit -> ZygoteListener.zygote_lost

A guard's exit is the only sure sign that a zygote and all processes below it are gone.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator
from functools import partial
from typing import Final

from flashpool.pool._child import framing, shortage, wire
from flashpool.pool.apps import App
from flashpool.pool.calls import BASE_ENVIRONMENT, Call
from flashpool.pool.config import PoolConfig
from flashpool.pool.recorder import Recorder
from flashpool.pool.scheduling.commands import ZygoteKey
from flashpool.pool.scheduling.preloading import BARE, PreloadLearner

from . import zygote_start
from .listeners import ZygoteListener
from .poller import Clock, Poller
from .shortages import Shortages
from .states import ZygoteState
from .worker_set import WorkerSet
from .zygote import ZygoteProcess
from .zygote_history import ZygoteHistory

_log = logging.getLogger(__name__)

#: How many workers in a row may exit before user code begins in them. At the first number (if user
#: code never began in any), or the second (if it did), the preloaded modules are to blame. At the
#: third, in a lean zygote where user code never began, workers are spawned.
STILLBORN: Final = 2
STILLBORN_PROVEN: Final = 5
STILLBORN_LEAN: Final = 8
#: Seconds after SIGKILL in which a process that can exit does so.
STUCK_S: Final = 1.0


class ZygoteSet:
    """All zygotes of a pool. The scheduler and the learner decide about them."""

    def __init__(
        self,
        config: PoolConfig,
        learner: PreloadLearner,
        *,
        worker_set: WorkerSet,
        poller: Poller,
        now: Clock,
        listener: ZygoteListener,
        recorder: Recorder,
        shortages: Shortages,
    ) -> None:
        self._recorder = recorder
        self._config = config
        self._learner = learner
        self._worker_set = worker_set
        self._poller = poller
        self._now = now
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._up: dict[ZygoteKey, ZygoteProcess] = {}
        self._exiting: list[ZygoteProcess] = []
        #: Killed zygotes that cannot exit, and are no longer waited for.
        self._given_up: list[ZygoteProcess] = []
        #: The interpreter of each environment; and the app of each app's own environment.
        self.pythons: dict[str, str] = {BASE_ENVIRONMENT: config.base_python}
        self.apps: dict[str, App] = {}
        self.history = ZygoteHistory()
        self._shortages = shortages

    def __iter__(self) -> Iterator[ZygoteProcess]:
        yield from self._up.values()
        yield from self._exiting

    def __getitem__(self, key: ZygoteKey) -> ZygoteProcess:
        return self._up[key]

    def __contains__(self, one: ZygoteKey | ZygoteProcess) -> bool:
        if isinstance(one, ZygoteProcess):
            return self._up.get(one.key) is one
        return one in self._up

    @property
    def all_exited(self) -> bool:
        """Return whether every zygote that was asked to exit has exited."""
        return not self._exiting

    def start(self, key: ZygoteKey) -> None:
        """Start a zygote; the listener is notified whether it came up."""
        self.history.started(key)
        python = self.pythons.get(key.environment)
        if python is None:
            self.not_started(key, "it is not known any more; send the call again")
            return
        method = "spawn" if key.environment in self.history.spawned else self._config.start_method
        preload: tuple[str, ...] = ()
        app = self.apps.get(key.environment)
        config = zygote_start.config_of(self._config, app)
        if method == "fork" and key.profile != BARE:
            # Only for forks: spawned workers are fresh processes, and share no modules.
            preload = (*config.preload, *self._learner.modules(key))
        try:
            zygote = ZygoteProcess(
                key,
                python,
                config,
                preload=preload,
                method=method,
                poller=self._poller,
                now=self._now(),
            )
        except OSError as error:
            if what := shortage.of(error):
                self._short(key, what)
                lost = partial(self._listener.zygote_lost, key, None, what, short=True)
                self._loop.call_soon(lost)
            else:
                self.not_started(key, f"{python}: {error.strerror}")
            return
        self._up[key] = zygote
        self._poller.watch(zygote.control_fd, zygote, self._on_control, self.failed)
        self._poller.watch(zygote.words_fd, zygote, self._on_words, self.failed)
        self._poller.watch(zygote.guard_fd, zygote, self._on_guard_exit, self._forget_failed)
        zygote.ask_to_preload(preload)
        zygote.send(wire.START, **zygote_start.fields_of(config, app, method))

    def _short(self, key: ZygoteKey, what: str) -> None:
        self._shortages.met(_named(key), what)

    def not_started(self, key: ZygoteKey, reason: str) -> None:
        """Report that a zygote's interpreter cannot be executed, or that flashpool failed."""
        self.history.failures[key] = reason
        # Later, from the loop, because the scheduler is handling an event now.
        self._loop.call_soon(self._tell_not_started, key, reason)

    def _tell_not_started(self, key: ZygoteKey, reason: str) -> None:
        with self._recorder.counted(f"the start of {key}"):
            self._listener.zygote_lost(key, None, reason)

    def fork(self, key: ZygoteKey, number: int, practise: str) -> None:
        """Have a zygote fork spares, which warm up for the codec ``practise`` unless empty."""
        zygote = self._up.get(key)
        if zygote is not None:  # else the pool stops, and all zygotes were asked to exit
            zygote.fork(number, practise, self._now())

    def ran(self, zygote: ZygoteProcess, call: Call) -> None:
        """Count a call that returned a result in one of the zygote's workers, by its source."""
        if zygote in self and zygote.sources.ran(call.function_key):
            zygote.send(wire.COMPILE, name=call.label, source=call.source.decode())

    def stillborn(self, zygote: ZygoteProcess, how: str) -> bool:
        """Count a worker that exited before user code began; return whether preloaded modules are
        blamed.
        """
        zygote.stillborn += 1
        why = f"{zygote.stillborn} workers in a row ended before user code began in them: {how}"
        if zygote not in self:
            return False
        if not zygote.key.profile:
            self._spawn_instead(zygote, why)
            return False
        if zygote.stillborn < (STILLBORN_PROVEN if zygote.proven else STILLBORN):
            return False
        _log.warning("%r is retired: %s", zygote, why)
        self._learner.failed(zygote.key, None, why)
        return True

    def _spawn_instead(self, zygote: ZygoteProcess, why: str) -> None:
        """Spawn workers from now on, because forks of this interpreter do not survive."""
        if zygote.stillborn == STILLBORN_LEAN and zygote.method == "fork" and not zygote.proven:
            self.history.spawned[zygote.key.environment] = why
            zygote.kill(why, self._now())

    def retire(self, zygote: ZygoteProcess) -> None:
        """Ask a zygote to kill its workers and exit."""
        if self._up.get(zygote.key) is zygote:
            del self._up[zygote.key]
            self._exiting.append(zygote)
            zygote.exiting_at = self._now()
            zygote.state.move(ZygoteState.EXITING)
            zygote.send(wire.LEAVE)

    def forget(self, environment: str) -> None:
        """Forget an environment that has no process, and whose name no call will use again."""
        del self.pythons[environment]
        self.apps.pop(environment, None)
        self.history.forget(environment)

    def retire_all(self) -> None:
        """Ask every zygote to exit; kill those still starting, which cannot read the request."""
        for zygote in list(self._up.values()):
            self.retire(zygote)
            if zygote.ready_at is None:
                zygote.kill_with_guard()
                zygote.killed_at = zygote.killed_at or self._now()

    def kill_exiting(self) -> None:
        """Kill zygotes that were asked to exit and have not."""
        for zygote in self._exiting:
            zygote.kill_with_guard()
            zygote.killed_at = zygote.killed_at or self._now()

    def give_up_stuck(self) -> None:
        """Stop waiting for zygotes that were asked to exit, were killed, and cannot exit."""
        for zygote in list(self._exiting):
            late = zygote.killed_at is not None and self._now() - zygote.killed_at > STUCK_S
            if late and zygote.cannot_exit:
                self.give_up(zygote)

    def give_up(self, zygote: ZygoteProcess) -> None:
        """Stop waiting for a zygote that waits for a hanging volume; it exits when that answers."""
        reason = "it waits for a volume that hangs, and was killed in vain"
        _log.error("%r is left to the kernel: %s", zygote, reason)
        self._given_up.append(zygote)
        if zygote in self._exiting:
            self._exiting.remove(zygote)
        else:
            del self._up[zygote.key]
            self.history.failures[zygote.key] = reason
        self._listener.zygote_lost(zygote.key, zygote, reason)

    def close(self) -> None:
        """Close the descriptors of zygotes that cannot exit."""
        for zygote in self._given_up:
            self._poller.forget(zygote.control_fd, zygote.words_fd, zygote.guard_fd)
            zygote.leave()
        self._given_up.clear()

    # Messages and output.

    def _on_control(self, zygote: ZygoteProcess, _fd: int, writable: bool) -> None:
        """Handle the messages that have arrived."""
        if writable:
            zygote.flush(writable=True)
        messages, more = framing.receive_packets(zygote.control)
        if messages:
            zygote.answered_at = self._now()
        for message, fds in messages:
            try:
                self._on_message(zygote, message, fds)
            except Exception as error:  # noqa: BLE001 - counted, and ends its owner
                # Later messages concern other calls.
                self._recorder.callback_failed(f"a message of {zygote!r}", error)
                self.failed(zygote, error)
                for fd in fds:
                    os.close(fd)
        if not more:
            self._poller.forget(zygote.control_fd)
            zygote.hung_up_at = self._now()

    def _on_message(
        self, zygote: ZygoteProcess, message: wire.Meta | wire.Exited, fds: list[int]
    ) -> None:
        if isinstance(message, wire.Exited):
            self._worker_set.exited(zygote, message)
        elif message["op"] == wire.SPARES:
            self._on_spares(zygote, message, fds)
        elif message["op"] == wire.GONE:
            self._worker_set.gone(zygote, message["worker"])
        else:
            self._on_rare_message(zygote, message["op"], message)

    def failed(self, zygote: ZygoteProcess, error: Exception) -> None:
        """Kill a zygote, and all below it, because flashpool's own code raised this error."""
        zygote.kill(f"it was killed because of a bug in flashpool: {error!r}", self._now())

    def _on_spares(self, zygote: ZygoteProcess, message: wire.Meta, fds: list[int]) -> None:
        pids = message["workers"]
        zygote.forked = True
        if len(fds) == (3 if self._config.split_output else 2) * len(pids):
            new = self._worker_set.welcome(zygote, pids, fds, ready=message["ready"])
            zygote.answered_forks(new)
            if self._shortages.known:
                self._shortages.over(_named(zygote.key))
                self.history.failures.pop(zygote.key, None)
        else:
            self._lost_descriptors(zygote, zygote.answered_forks(len(pids)), fds)

    def _lost_descriptors(self, zygote: ZygoteProcess, number: int, fds: list[int]) -> None:
        """Handle workers whose descriptors did not all arrive, as this process has too many open.

        The descriptors that arrived are closed, on which the workers exit.
        """
        while fds:
            os.close(fds.pop())
        self._short(zygote.key, "open files (the limit of the server)")
        self.history.failures[zygote.key] = "the supervisor has too many open files"
        self._listener.not_forked(zygote, number)

    def _on_rare_message(self, zygote: ZygoteProcess, op: str, message: wire.Meta) -> None:
        if op == wire.LOADING:
            zygote.loading = message["module"]
            zygote.progress_at = self._now()
        elif op == wire.SKIPPED:
            self._on_skipped(zygote, message["modules"], message["why"])
        elif op == wire.PRELOADED:
            self._learner.read(zygote.key, message["reads"])
        elif op == wire.PONG:
            zygote.answered_ping(self._now())
        elif op == wire.DROPPING:
            self._worker_set.dropping(zygote, message["worker"])
        elif op == wire.UNSAFE:
            zygote.unsafe = (message["module"], message["why"])
        elif op == wire.SHORT:
            zygote.short_of = message["what"]
        elif op == wire.NOT_FORKED:
            self._short(zygote.key, message["why"])
            self.history.failures[zygote.key] = f"it cannot fork: {message['why']}"
            self._listener.not_forked(zygote, zygote.answered_forks(message["n"]))
        elif op == wire.READY and zygote.state.now is ZygoteState.STARTING:
            # In any other state, the zygote was asked to exit meanwhile.
            zygote.is_ready(message, self._now())
            _log.debug("%r is ready in %.3f s", zygote, self._now() - zygote.started_at)
            self._listener.zygote_ready(zygote)

    def _on_skipped(self, zygote: ZygoteProcess, modules: list[str], why: str) -> None:
        zygote.skipped.update(dict.fromkeys(modules, why))
        for name in self._config.preload:
            if name in modules:
                _log.warning("%s is not preloaded: %s", name, why)
        if not shortage.in_words(why):  # else the modules may be imported another time
            self._learner.skip(zygote.key, modules, why)

    def _on_words(self, zygote: ZygoteProcess, _fd: int, _writable: bool) -> None:
        if not zygote.read_words():
            self._poller.forget(zygote.words_fd)

    def _on_guard_exit(self, zygote: ZygoteProcess, _fd: int, _writable: bool) -> None:
        """Handle a guard's exit: all below are gone, and the last messages are in the sockets."""
        if zygote.process.poll() is None:
            return  # The event was for an earlier descriptor with the same number.
        self._on_control(zygote, zygote.control_fd, False)
        zygote.read_words()
        self._forget(zygote)

    def _forget_failed(self, zygote: ZygoteProcess, _error: Exception) -> None:
        if zygote.state.now is not ZygoteState.GONE and zygote.process.poll() is not None:
            self._forget(zygote)

    def _forget(self, zygote: ZygoteProcess) -> None:
        self._poller.forget(zygote.control_fd, zygote.words_fd, zygote.guard_fd)
        zygote.close()
        if zygote in self._given_up:
            self._given_up.remove(zygote)
            return
        left = zygote.state.now is ZygoteState.EXITING
        zygote.state.move(ZygoteState.GONE)
        reason = zygote.reason()
        if left:
            self._exiting.remove(zygote)
        else:
            del self._up[zygote.key]
            with self._recorder.counted(f"the end of {zygote!r}"):
                reason = self._died(zygote, reason)
        short = zygote.met_shortage and not left
        if not short:
            self._shortages.over(_named(zygote.key))
        self._listener.zygote_lost(zygote.key, zygote, reason, short=short)

    def _died(self, zygote: ZygoteProcess, reason: str) -> str:
        """Record why a zygote was lost, so that its next start avoids the cause if possible."""
        if zygote.met_shortage:
            self._short(zygote.key, zygote.short_of or "processes")
            return reason
        works = zygote.forked or (zygote.was_killed and not zygote.key.profile)
        if works:
            reason = self.history.lost(zygote.key, reason, self._now())
        _log.warning("%r is lost: %s", zygote, reason)
        if zygote.curable:
            self.history.spawned[zygote.key.environment] = reason
        elif not works:
            self.history.failures[zygote.key] = reason
        if zygote.key.profile and not zygote.forked:
            culprit = zygote.unsafe[0] if zygote.unsafe else zygote.loading
            self._learner.failed(zygote.key, culprit or None, reason)
        return reason


def _named(key: ZygoteKey) -> str:
    return f"zygote {key.environment}#{key.profile}"
