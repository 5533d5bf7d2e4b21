"""Exchanges with other pods on the same volume which instances live where.

    submit --called--> own --each beat--> InstanceFiles.exchange --> others
    outcome --annotated--> the same outcome, with the pod where its instance lives or lived as well

Two pods that share a volume may both create an instance for one id, each with its own state, and a
pod that is removed takes the states of its instances along. Neither can be prevented here, but
callers get a warning. Files are exchanged once per heartbeat, in a thread; a call only looks into a
table.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Final

from flashpool.envs.concurrency.disk_threads import DiskThreads
from flashpool.envs.concurrency.volume_watch import VolumeWatch
from flashpool.envs.settings import EnvSettings
from flashpool.envs.store.apart import end_idle_stand_ins
from flashpool.envs.store.locations import volume_of
from flashpool.pool.backend import Backend
from flashpool.pool.calls import InstanceRequest, Outcome
from flashpool.pool.instance_records import Elsewhere

from .instance_files import MOST_INSTANCES, InstanceFiles, Known, key_of
from .logs.line_format import pod

_log = logging.getLogger(__name__)

#: Resolution of times in seconds, so that not every call causes the file to be written.
_STEP_S: Final = 10.0
#: Seconds that a server which stops waits for the volume.
_CLOSE_S: Final = 2.0


@dataclass(slots=True)
class _Own:
    """An instance that was called here."""

    called_at: float = 0.0
    #: Whether the instance ever existed: its first call may have been refused or may have failed.
    was_there: bool = False
    lives: bool = False


class InstanceNews:
    """The exchange of one server. All methods run on the loop."""

    def __init__(
        self, files: InstanceFiles, disk: DiskThreads, backend: Backend, period_s: float
    ) -> None:
        self._files = files
        self._disk = disk
        self._backend = backend
        self._period_s = period_s
        #: By id, the one called longest ago first.
        self._own: OrderedDict[str, _Own] = OrderedDict()
        #: Ids that the server generated for requests without one. Each call may bring a new one, so
        #: these are forgotten first.
        self._unnamed: OrderedDict[str, None] = OrderedDict()
        self._others: dict[str, Elsewhere] = {}
        self._task: asyncio.Task[None] | None = None
        self._opened = self._closed = False
        self._problem = ""

    @classmethod
    def of(cls, settings: EnvSettings, backend: Backend) -> InstanceNews | None:
        """Create the exchange; return None without a volume."""
        volume = volume_of(settings)
        if volume is None:
            return None
        disk = DiskThreads("instances", watch=VolumeWatch(volume))
        return cls(InstanceFiles(volume, settings, pod()), disk, backend, settings.beat_s)

    def start(self) -> None:
        """Exchange news from now on."""
        self._task = asyncio.ensure_future(self._run())

    async def close(self) -> None:
        """Report to other pods that the instances here have ended."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        watch = self._disk.watch
        assert watch is not None
        watch.limit_s = min(watch.limit_s, _CLOSE_S)
        try:
            if self._opened:
                await asyncio.wait_for(self._disk.run(self._files.close, self._told()), _CLOSE_S)
        except (OSError, asyncio.TimeoutError) as error:
            _log.info("other pods do not learn that the instances here have ended: %s", error)
        watch.stop()
        end_idle_stand_ins()

    def called(self, want: InstanceRequest) -> None:
        """Record that a call for an instance was accepted."""
        name = want.instance
        one = self._own.setdefault(name, _Own())
        one.called_at = time.time()
        self._own.move_to_end(name)
        if want.unnamed:
            self._unnamed[name] = None
        else:
            self._unnamed.pop(name, None)
        if len(self._own) > MOST_INSTANCES:
            oldest = next(iter(self._unnamed or self._own))
            self._unnamed.pop(oldest, None)
            del self._own[oldest]

    def annotated(self, outcome: Outcome) -> Outcome:
        """Return the outcome of a call with warnings about its instance on other pods."""
        record = outcome.instance
        if record is None:
            return outcome
        own = self._own.get(record.instance)
        if own is not None:
            own.was_there, own.lives = True, record.ended_because is None
        there = self._others.get(key_of(record.instance))
        if there is None:
            return outcome
        outcome = replace(outcome, instance=record._replace(elsewhere=there))
        if there.lives or record.method_calls == 1:
            warning = there.warning(record.instance)
            return replace(outcome, warnings=(*outcome.warnings, warning))
        return outcome

    async def _run(self) -> None:
        while not self._closed:
            try:
                await self._exchange()
                self._problem = ""
            except Exception as error:  # noqa: BLE001 - the next beat tries again
                self._tell(f"{type(error).__name__}: {error}")
            await asyncio.sleep(self._period_s)

    async def _exchange(self) -> None:
        if not self._opened:
            await self._disk.run(self._files.open)
            self._opened = True
        watching = self._backend.watching
        living = watching.instances() if watching is not None else set()
        for name, one in self._own.items():
            one.lives = name in living
            one.was_there |= one.lives
        self._others = await self._disk.run(self._files.exchange, self._told())

    def _told(self) -> dict[str, Known]:
        return {
            key_of(name): Known(one.called_at // _STEP_S * _STEP_S, one.lives)
            for name, one in self._own.items()
            if one.was_there
        }

    def _tell(self, problem: str) -> None:
        if problem != self._problem:
            _log.warning("instances on other pods are not known: %s", problem)
        self._problem = problem
