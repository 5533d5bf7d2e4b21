"""Memory limits: a rough check first, an exact measurement if that exceeds the limit."""

import asyncio
import threading

import pytest

from flashpool.pool.recorder import Recorder
from flashpool.pool.workers.ends import memory
from flashpool.pool.workers.ends.memory import MemoryLimit, MemoryWatch

PID = 17


class Trees:
    """Scripted memory use of process trees, as a rough and an exact figure."""

    def __init__(self, monkeypatch):
        self.rough = self.exact = 0
        self.looks = 0
        monkeypatch.setattr(memory, "_LOOK_S", 0.001)
        monkeypatch.setattr(memory, "used", self._used)
        monkeypatch.setattr(memory, "exact", self._exact)
        self.answers = threading.Event()
        self.answers.set()

    def _used(self, _pid):
        self.looks += 1
        return self.rough << 20

    def _exact(self, _pid):
        assert self.answers.wait(10)
        return self.exact

    def uses(self, rough, exact):
        self.rough, self.exact = rough, exact << 20


@pytest.fixture
def trees(monkeypatch):
    return Trees(monkeypatch)


class Watched:
    """A call with a limit of 100 MiB."""

    def __init__(self, pid=PID):
        self.on = True
        self.told = []
        self.limit = MemoryLimit(
            pid=pid, limit_mb=100, applies=lambda: self.on, exceeded=self.exceeded
        )

    def exceeded(self, used_bytes):
        self.told.append(used_bytes >> 20)
        self.on = False


async def until(condition):
    for _ in range(5000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it did not come about")


def test_exceeding_the_limit_is_reported_once(trees):
    async def story():
        watch, watched = MemoryWatch(Recorder()), Watched()
        trees.uses(rough=150, exact=120)
        watch.add(watched.limit)
        await until(lambda: watched.told)
        looks = trees.looks
        await asyncio.sleep(0.02)
        assert (watched.told, trees.looks) == ([120], looks), "it is looked at no more"
        await watch.close()

    asyncio.run(story())


def test_only_the_exact_figure_counts_against_the_limit(trees):
    async def story():
        watch, watched = MemoryWatch(Recorder()), Watched()
        trees.uses(rough=150, exact=100)
        watch.add(watched.limit)
        await until(lambda: trees.looks > 3)
        assert not watched.told
        trees.uses(rough=150, exact=101)
        await until(lambda: watched.told)
        await watch.close()

    asyncio.run(story())


def test_a_call_that_ended_during_its_measurement_is_not_reported(trees):
    async def story():
        watch, watched = MemoryWatch(Recorder()), Watched()
        trees.uses(rough=150, exact=120)
        trees.answers.clear()
        watch.add(watched.limit)
        await until(lambda: watch.measures)
        watched.on = False
        trees.answers.set()
        await until(lambda: not watch.measures)
        assert not watched.told

    asyncio.run(story())


def test_checks_resume_with_the_next_call(trees):
    async def story():
        watch, first, second = MemoryWatch(Recorder()), Watched(), Watched()
        watch.add(first.limit)
        await until(lambda: trees.looks)
        first.on = False
        await asyncio.sleep(0.02)
        trees.uses(rough=150, exact=120)
        watch.add(second.limit)
        await until(lambda: second.told)
        assert not first.told

    asyncio.run(story())


def test_an_error_in_one_check_does_not_stop_others(trees, monkeypatch):
    real, tries = memory.used, []

    def used(pid):
        if pid == broken.limit.pid:
            tries.append(pid)
            raise RecursionError("as deep as that")
        return real(pid)

    async def story():
        recorder = Recorder()
        watch = MemoryWatch(recorder)
        trees.uses(rough=150, exact=120)
        watch.add(broken.limit)
        watch.add(watched.limit)
        await until(lambda: watched.told)
        await until(lambda: len(tries) > 3)
        assert recorder.supervisor().callback_errors == 1, "it is told once, not at each look"
        monkeypatch.setattr(memory, "used", real)
        await until(lambda: broken.told)
        await watch.close()

    broken, watched = Watched(pid=2), Watched()
    monkeypatch.setattr(memory, "used", used)
    asyncio.run(story())


def test_after_close_nothing_is_checked(trees):
    async def story():
        watch, watched = MemoryWatch(Recorder()), Watched()
        watch.add(watched.limit)
        await watch.close()
        trees.uses(rough=150, exact=120)
        await asyncio.sleep(0.02)
        assert not watched.told

    asyncio.run(story())
