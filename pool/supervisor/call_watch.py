"""Answers questions about a pool's calls: implements `watching.CallWatching`.

Answers come from state that exists already: a call that is not watched costs nothing. A feed for a
call's output is placed between the call and its sink.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from flashpool.pool import call_ids
from flashpool.pool.call_history import EndedCall
from flashpool.pool.calls import Outcome, Phase, Sink
from flashpool.pool.watching import BuildView, CallView, OutputFeed, Stacks
from flashpool.pool.workers import stacks
from flashpool.pool.workers.ends import outcomes
from flashpool.pool.workers.worker import ActiveCall

from .components import Components

if TYPE_CHECKING:
    from flashpool.envs import Spec

    from .provisioning import Provisioning

_STATES = {Phase.QUEUE: "queued", Phase.RUN: "running", Phase.EXIT: "exiting"}


class FollowedSink:
    """Passes events to a call's sink, and its output to readers as well."""

    __slots__ = ("_sink", "environment_ready", "feeds", "item", "notes", "started")

    wants_output = True

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.feeds: list[OutputFeed] = []
        self.item = sink.item
        self.environment_ready = sink.environment_ready
        self.started: Callable[[], None] | None = getattr(sink, "started", None)
        #: Progress lines of the call's environment.
        self.notes: bytes = getattr(sink, "notes", b"")

    def told(self, line: str) -> None:
        """Pass on progress of the environment."""
        for feed in self.feeds:
            feed.put(f"{line}\n".encode("utf-8", "replace"))
        self._sink.told(line)

    def output(self, chunk: bytes, *, stderr: bool = False) -> None:
        """Pass on output."""
        for feed in self.feeds:
            feed.put(chunk, stderr=stderr)
        if self._sink.wants_output:
            self._sink.output(chunk, stderr=stderr)

    def done(self, outcome: Outcome) -> None:
        """Pass on the outcome, and end the feeds."""
        for feed in self.feeds:
            feed.end(outcome)
        self._sink.done(outcome)


class CallWatch:
    """The calls of one pool."""

    def __init__(
        self,
        components: Components,
        provisioning: Callable[[], Provisioning | None],
        open_provisioning: Callable[[], Provisioning],
    ) -> None:
        self._components = components
        self._provisioning = provisioning
        self._open_provisioning = open_provisioning

    # Finding calls.

    def find(self, text: str) -> int | None:
        """Return the number of the call that has this id."""
        number = call_ids.number_of(text)
        if number is not None and self._is_known(number):
            return number
        if not text:
            return None
        for running in reversed(self._active()):
            if running.call.request_id == text:
                return running.id
        provisioning = self._provisioning()
        if provisioning is not None:
            for waiting in provisioning.waiting():
                if waiting.call.request_id == text:
                    return waiting.id
        ended = (one for one in self._components.calls.history if one.request_id == text)
        return next((one.number for one in ended), None)

    def _is_known(self, number: int) -> bool:
        components, provisioning = self._components, self._provisioning()
        return (
            components.calls.get(number) is not None
            or (provisioning is not None and provisioning.waiting_call(number) is not None)
            or components.calls.history.get(number) is not None
        )

    def _active(self) -> list[ActiveCall]:
        return list(self._components.calls.by_id.values())

    def calls(self) -> list[CallView]:
        """Return all calls that have not ended, oldest first, then the latest that have ended."""
        found = [*self._building(), *map(self._of_active, self._active())]
        found.sort(key=lambda one: one.number)
        return [*found, *map(_of_ended, self._components.calls.history)]

    def call(self, number: int) -> CallView | None:
        """Return one call."""
        running = self._components.calls.get(number)
        if running is not None:
            return self._of_active(running)
        building = next((one for one in self._building() if one.number == number), None)
        if building is not None:
            return building
        ended = self._components.calls.history.get(number)
        return None if ended is None else _of_ended(ended)

    def _building(self) -> Iterator[CallView]:
        provisioning = self._provisioning()
        for one in provisioning.waiting() if provisioning is not None else ():
            want = one.call.want
            yield CallView(
                id=call_ids.name_of(one.id),
                number=one.id,
                request_id=one.call.request_id,
                label=one.call.label,
                state="building",
                age_s=round(time.monotonic() - one.since, 3),
                instance=None if want is None else want.instance,
            )

    def _of_active(self, running: ActiveCall) -> CallView:
        now, call = self._components.now(), running.call
        cost = outcomes.receipt(running, now)
        return CallView(
            id=call_ids.name_of(running.id),
            number=running.id,
            request_id=call.request_id,
            label=call.label,
            state=_STATES[running.phase],
            age_s=round(cost.total_s, 3),
            environment=call.provision.digest,
            instance=None if call.want is None else call.want.instance,
            pid=cost.pid,
            gpus=running.gpus,
            receipt=cost.as_dict(),
        )

    # Output.

    def follow(self, number: int) -> OutputFeed | None:
        """Return a feed of a call's kept and further output."""
        running = self._components.calls.get(number)
        if running is not None:
            sink = running.sink = _followed(running.sink)
            written = running.written
            kept = sink.notes + (written.value() if written is not None else b"")
            return _added(sink, kept)
        provisioning = self._provisioning()
        waiting = None if provisioning is None else provisioning.waiting_call(number)
        if provisioning is not None and waiting is not None:
            sink = _followed(waiting.sink)
            return _added(sink, provisioning.follow(number, sink))
        history = self._components.calls.history
        ended = history.get(number)
        if ended is None:
            return None
        left = history.output_of(number)
        if left is None and ended.wrote:
            left = b"[... its output is not kept any more ...]\n"
        feed = OutputFeed(left or b"")
        feed.end(None)
        return feed

    def unfollow(self, number: int, feed: OutputFeed) -> None:
        """Remove a feed that nobody reads any more."""
        running = self._components.calls.get(number)
        provisioning = self._provisioning()
        waiting = None if provisioning is None else provisioning.waiting_call(number)
        for one in (running, waiting):
            if one is not None and isinstance(one.sink, FollowedSink) and feed in one.sink.feeds:
                one.sink.feeds.remove(feed)

    # Stacks.

    async def stacks(self, number: int) -> Stacks | None:
        """Return the stacks of the threads of a call's process."""
        running = self._components.calls.get(number)
        worker = None if running is None else running.worker
        if running is None:
            return None
        if worker is None:
            return Stacks(pid=None, problem="it waits, and has no process yet")
        text, problem = await stacks.of_worker(worker)
        beside = sum(one is not running for one in worker.calls.values())
        return Stacks(pid=worker.pid, text=text, problem=problem, beside=beside)

    # Instances and environments.

    def instances(self) -> set[str]:
        """Return the names of instances that exist or are being created."""
        return {one.name for one in self._components.residents.table}

    def close_instance(self, name: str, reason: str) -> bool:
        """Close an instance when its calls have finished."""
        residents = self._components.residents
        if residents.table.get(name) is None:
            return False
        residents.release(name, reason)
        return True

    def builds(self) -> list[BuildView]:
        """Return the environments that calls wait for."""
        provisioning = self._provisioning()
        return [] if provisioning is None else provisioning.builds()

    def cancel_build(self, key: str, reason: str) -> int | None:
        """Cancel all calls that wait for a build."""
        provisioning = self._provisioning()
        return None if provisioning is None else provisioning.cancel_build(key, reason)

    async def build(self, spec: Spec, wait_s: float) -> Mapping[str, Any]:
        """Build an environment ahead of its first call."""
        return await self._open_provisioning().build_ahead(spec, wait_s)

    async def explain(self, spec: Spec) -> Mapping[str, Any]:
        """Explain what building an environment would install."""
        return await self._open_provisioning().explain(spec)

    async def lock_of(self, digest: str) -> tuple[str, ...]:
        """Return the exact versions in an environment."""
        return await self._open_provisioning().lock_of(digest)

    async def environments(self) -> Mapping[str, Any]:
        """List the store's environments."""
        return await self._open_provisioning().listing()


def _followed(sink: Sink) -> FollowedSink:
    return sink if isinstance(sink, FollowedSink) else FollowedSink(sink)


def _added(sink: FollowedSink, kept: bytes) -> OutputFeed:
    feed = OutputFeed(kept)
    sink.feeds.append(feed)
    return feed


def _of_ended(one: EndedCall) -> CallView:
    cost = one.receipt
    return CallView(
        id=call_ids.name_of(one.number),
        number=one.number,
        request_id=one.request_id,
        label=one.label,
        state="ended",
        outcome=one.error_type or "ok",
        from_user=one.from_user,
        error=one.error,
        age_s=round(cost.total_s, 3),
        ended_at=one.ended_at,
        environment=cost.environment,
        instance=one.instance,
        pid=cost.pid,
        gpus=cost.gpus,
        receipt=cost.as_dict(),
    )
