"""The threads of each disk, and the watch that detects a volume that hangs."""

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from flashpool.envs.concurrency.cancellation import run_in_thread_or_undo
from flashpool.envs.concurrency.disk_hangs import DiskHangs
from flashpool.envs.concurrency.disk_threads import DiskThreads, run_in_thread
from flashpool.envs.concurrency.volume_watch import VolumeWatch
from support.waiting import until


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[VolumeWatch]:
    made = VolumeWatch(tmp_path, limit_s=1.0)
    yield made
    signal_asker(made, signal.SIGCONT)
    made.stop()


def signal_asker(watch: VolumeWatch, number: int) -> None:
    if watch._asker is not None:
        os.kill(watch._asker.pid, number)


def hang(watch: VolumeWatch) -> None:
    """Stop the process that probes the volume, as if the volume did not answer."""
    watch.check()
    signal_asker(watch, signal.SIGSTOP)
    with pytest.raises(DiskHangs):
        while True:
            watch.check()


def test_a_volume_that_answers_is_probed_at_each_check(watch: VolumeWatch) -> None:
    for _ in range(3):
        watch.check()
    assert not watch.hangs


def test_a_missing_volume_does_not_count_as_hanging(tmp_path: Path) -> None:
    watch = VolumeWatch(tmp_path / "none")
    watch.check()
    watch.stop()


def test_a_hanging_volume_recovers_once_it_answers(watch: VolumeWatch) -> None:
    hang(watch)
    assert watch.hangs
    with pytest.raises(DiskHangs):
        watch.check()
    signal_asker(watch, signal.SIGCONT)
    with watch._changed:
        assert watch._changed.wait_for(lambda: not watch.hangs, 30)
    watch.check()


def test_a_watch_restarts_its_probe_process_when_that_dies(watch: VolumeWatch) -> None:
    watch.check()
    signal_asker(watch, signal.SIGKILL)
    for _ in range(3):
        watch._answered_at = 0.0
        watch.check()
    assert not watch.hangs


def test_waiting_calls_raise_disk_hangs_when_the_volume_hangs(watch: VolumeWatch) -> None:
    disk, free = DiskThreads("volume", watch=watch), threading.Event()

    async def main() -> None:
        waiting = [asyncio.ensure_future(disk.run(free.wait)) for _ in range(40)]
        await until(lambda: disk._threads == 16)
        await asyncio.to_thread(hang, watch)
        for one in waiting:
            with pytest.raises(DiskHangs):
                await one
        # No new call starts while the volume hangs.
        with pytest.raises(DiskHangs):
            await disk.run(free.wait)

    asyncio.run(main())
    assert disk._threads <= 16
    signal_asker(watch, signal.SIGCONT)
    free.set()


def test_waiting_for_a_process_ends_when_its_volume_hangs(watch: VolumeWatch) -> None:
    disk = DiskThreads("volume", watch=watch)

    async def main() -> None:
        working = asyncio.ensure_future(disk.unless_it_hangs(asyncio.sleep(600)))
        await asyncio.to_thread(hang, watch)
        with pytest.raises(DiskHangs):
            await working

    asyncio.run(main())


def test_each_disk_has_threads_of_its_own() -> None:
    hanging, other, free = DiskThreads("one", threads=2), DiskThreads("other"), threading.Event()

    async def main() -> None:
        held = [asyncio.ensure_future(hanging.run(free.wait)) for _ in range(4)]
        with other.chosen():
            assert await run_in_thread(pow, 2, 10) == 1024
        assert await asyncio.to_thread(pow, 2, 10) == 1024
        hanging.abandon()
        for one in held:
            with pytest.raises(DiskHangs):
                await one
        with pytest.raises(DiskHangs):
            await hanging.run(pow, 2, 10)
        free.set()

    asyncio.run(main())


def test_a_late_result_is_undone_when_nobody_waits_for_it() -> None:
    disk, free, undone = DiskThreads("one"), threading.Event(), threading.Event()

    def make() -> str:
        free.wait()
        return "made"

    async def main() -> None:
        with disk.chosen():
            making = asyncio.ensure_future(run_in_thread_or_undo(make, lambda _: undone.set()))
        await until(lambda: disk._threads)
        disk.abandon()
        with pytest.raises(DiskHangs):
            await making

    asyncio.run(main())
    free.set()
    assert undone.wait(30)
