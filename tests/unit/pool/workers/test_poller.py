"""One epoll for many handlers: an error in one does not affect the others."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import pytest

from flashpool.pool.recorder import Recorder
from flashpool.pool.workers.poller import Poller


@pytest.fixture
def pipes() -> Iterator[list[tuple[int, int]]]:
    made = [os.pipe() for _ in range(2)]
    yield made
    for one in made:
        for fd in one:
            os.close(fd)


def run_turns(loop: asyncio.AbstractEventLoop, number: int) -> None:
    for _ in range(number):
        loop.run_until_complete(asyncio.sleep(0))


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def test_a_handler_that_raises_is_removed_and_its_owner_notified(loop, pipes) -> None:
    recorder = Recorder()
    poller = Poller(loop, recorder)
    (bad, bad_w), (good, good_w) = pipes
    calls: list[object] = []

    def raises(owner: str, fd: int, writable: bool) -> None:
        calls.append((owner, fd, writable))
        raise KeyError("what nobody knows")

    def reads(owner: str, fd: int, writable: bool) -> None:
        calls.append(os.read(fd, 1))

    def failed(owner: str, error: Exception) -> None:
        calls.append((owner, type(error)))

    poller.watch(bad, "bad", raises, failed)
    poller.watch(good, "good", reads, failed)
    os.write(bad_w, b"x")
    os.write(good_w, b"yz")
    run_turns(loop, 20)
    poller.close()
    assert calls == [("bad", bad, False), ("bad", KeyError), b"y", b"z"]
    assert len(poller) == 1, "the one that raised is forgotten"
    stats = recorder.supervisor()
    assert stats.callback_errors == 1
    assert "KeyError: 'what nobody knows'" in stats.last_callback_error


def test_an_exception_while_an_owner_is_notified_is_counted_too(loop, pipes) -> None:
    recorder = Recorder()
    poller = Poller(loop, recorder)
    ((bad, bad_w), _) = pipes

    def raises(*_: object) -> None:
        raise ValueError

    poller.watch(bad, "bad", raises, raises)
    os.write(bad_w, b"x")
    run_turns(loop, 20)
    poller.close()
    assert recorder.supervisor().callback_errors == 2


def test_a_handler_may_unregister_itself_and_raise(loop, pipes) -> None:
    recorder = Recorder()
    poller = Poller(loop, recorder)
    ((bad, bad_w), _) = pipes

    def raises(_owner: str, fd: int, _writable: bool) -> None:
        poller.forget(fd)
        raise ValueError

    poller.watch(bad, "bad", raises, lambda *_: None)
    os.write(bad_w, b"x")
    run_turns(loop, 20)
    poller.close()
    assert recorder.supervisor().callback_errors == 1
