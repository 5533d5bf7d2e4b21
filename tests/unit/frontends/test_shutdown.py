"""How a server stops: a drain, cut short by its limit or by a second signal; then a stop."""

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace

from flashpool.frontends.shutdown import Shutdown


@dataclass
class StandInService:
    """A service that drains as scripted, and records why it was stopped."""

    idle: asyncio.Event = field(default_factory=asyncio.Event)
    reasons: list[str] = field(default_factory=list)

    @property
    def pool(self):
        return SimpleNamespace(stats=self._stats, unfinished=3)

    def _stats(self):
        return SimpleNamespace(outcomes={"Cancelled": len(self.reasons)}, apps=[])

    async def drain(self, limit_s: float) -> bool:
        try:
            await asyncio.wait_for(self.idle.wait(), limit_s)
        except asyncio.TimeoutError:
            return False
        return True

    async def stop(self, reason: str) -> None:
        self.reasons.append(reason)


async def until(stopped: asyncio.Event) -> None:
    await asyncio.wait_for(stopped.wait(), 10)


def test_the_drain_waits_for_calls_that_finish_in_time(caplog):
    async def story():
        service, stopped = StandInService(), asyncio.Event()
        Shutdown(service, 60, stopped.set).on_signal("SIGTERM")
        await asyncio.sleep(0.01)
        assert not service.reasons
        service.idle.set()
        await until(stopped)
        assert len(service.reasons) == 1

    with caplog.at_level("INFO"):
        asyncio.run(story())
    assert "SIGTERM: draining for at most 60 s: 3 calls to finish" in caplog.text
    assert "Stopped; 1 call cancelled" in caplog.text


def test_a_second_signal_cuts_the_drain_short():
    async def story():
        service, stopped = StandInService(), asyncio.Event()
        shutdown = Shutdown(service, 60, stopped.set)
        shutdown.on_signal("SIGINT")
        shutdown.on_signal("SIGTERM")
        await until(stopped)
        assert service.reasons == [
            "the server stopped before the call had finished (a second signal)"
        ]

    asyncio.run(story())


def test_the_drain_has_a_limit():
    async def story():
        service, stopped = StandInService(), asyncio.Event()
        Shutdown(service, 0.01, stopped.set).on_signal("SIGTERM")
        await until(stopped)
        assert service.reasons == [
            "the server stopped before the call had finished (FLASHPOOL_DRAIN_S)"
        ]

    asyncio.run(story())


def test_the_listener_closes_even_if_the_stop_fails():
    class Failing(StandInService):
        async def stop(self, reason: str) -> None:
            raise OSError(reason)

    async def story():
        # The exception is logged when the task is collected; this test ignores that.
        asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)
        service, stopped = Failing(), asyncio.Event()
        service.idle.set()
        shutdown = Shutdown(service, 60, stopped.set)
        shutdown.on_signal("SIGTERM")
        await until(stopped)

    asyncio.run(story())


def test_an_abandoned_shutdown_stops_nothing():
    async def story():
        service, ended = StandInService(), asyncio.Event()
        shutdown = Shutdown(service, 60, ended.set)
        shutdown.on_signal("SIGTERM")
        await asyncio.sleep(0)
        shutdown.abandon()
        await until(ended)
        assert not service.reasons

    asyncio.run(story())
