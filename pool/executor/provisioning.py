"""Calls of a `Pool` on their way through the store of environments.

    add(task, call, spec) -> waiting[spec] --resolve, once a spec--> submit(task, call in it)
                                                             `-----> fail(task, error)

Any number of calls may wait for one environment, but only one of them asks for it. The
last that is withdrawn ends the asking, and with it a build that nobody else wants. The
store is opened by the first call that names anything. Everything here belongs to the
loop's thread.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from flashpool.pool.calls import Call, Provision
from flashpool.pool.environment_leases import EnvironmentPool, StoredEnvironments
from flashpool.pool.errors import FlashpoolError, PoolClosed
from flashpool.pool.progress_notes import ProgressNotes

if TYPE_CHECKING:
    from flashpool.envs import EnvSettings, Spec


class ProvisioningCall(Protocol):
    """A call that waits for its environment."""

    wants_output: bool
    #: What was said while its environment was built; stands before the call's output.
    notes: bytes

    def told(self, line: str) -> None:
        """Hear of the progress."""


class _Asking:
    """One question to the store, and the calls that wait for its answer."""

    __slots__ = ("calls", "notes", "work")

    def __init__(self) -> None:
        self.calls: dict[ProvisioningCall, Call] = {}
        self.notes = ProgressNotes()
        self.work: asyncio.Task[None] | None = None

    def report(self, line: str) -> None:
        """The store tells how it gets on."""
        kept = self.notes.add(line)
        # Once, however many calls wait: they share one terminal.
        for task in self.calls:
            if task.wants_output:
                task.told(kept)
                return


class Provisioning:
    """Finds each call its environment."""

    def __init__(
        self,
        settings: EnvSettings,
        pool: EnvironmentPool,
        submit: Callable[[Any, Call], None],
        fail: Callable[[Any, Call, BaseException], None],
    ) -> None:
        self._environments = StoredEnvironments(settings, pool)
        self._submit = submit
        self._fail = fail
        self._asking: dict[Spec, _Asking] = {}
        self._specs: dict[ProvisioningCall, Spec] = {}
        #: Every question that has not ended, those that nobody waits for included.
        self._work: set[asyncio.Task[None]] = set()

    def add(self, task: ProvisioningCall, call: Call, spec: Spec) -> None:
        """Have the call submitted, or failed, when its environment is known."""
        asking = self._asking.get(spec)
        if asking is None:
            asking = self._asking[spec] = _Asking()
            asking.work = asyncio.ensure_future(self._ask(spec, asking))
            self._work.add(asking.work)
            asking.work.add_done_callback(self._work.discard)
        asking.calls[task] = call
        self._specs[task] = spec

    def withdraw(self, task: ProvisioningCall) -> Call | None:
        """The call that need not wait any more; None when it does not wait here."""
        spec = self._specs.pop(task, None)
        if spec is None:
            return None
        asking = self._asking[spec]
        call = asking.calls.pop(task)
        if not asking.calls and asking.work is not None:
            # The next call with this spec asks anew: this answer will be "cancelled".
            del self._asking[spec]
            asking.work.cancel()
        return call

    async def close(self) -> None:
        """End what is under way, release every lease; the supervisor has stopped."""
        work = list(self._work)
        for one in work:
            one.cancel()
        await asyncio.gather(*work, return_exceptions=True)
        await self._environments.close()

    async def _ask(self, spec: Spec, asking: _Asking) -> None:
        failure: BaseException | None = None
        provision = Provision()
        try:
            provision = await self._environments.resolve(spec, asking.report)
        except asyncio.CancelledError:
            failure = PoolClosed("the pool was shut down before the environment was there")
        except Exception as error:  # noqa: BLE001 - it is the end of every call that waits
            failure = error
        # No await from here on: the environment is known as long as nobody lets it go.
        if asking.calls:
            del self._asking[spec]
        for task, call in asking.calls.items():
            del self._specs[task]
            if failure is not None:
                self._fail(task, call, _anew(failure))
                continue
            if provision.origin == "built":
                task.notes = asking.notes.text()
            self._submit(task, replace(call, provision=provision))


def _anew(failure: BaseException) -> BaseException:
    """One for each call that is told, without our frames: each future raises its own."""
    return copy.copy(failure) if isinstance(failure, FlashpoolError) else failure
