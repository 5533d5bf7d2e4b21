"""Whatever a process does with a hanging volume, the process can still exit."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flashpool.envs import process
from flashpool.envs.archives.archive import _writing
from flashpool.envs.building.virtualenv import make_virtualenv
from flashpool.envs.concurrency.disk_threads import DiskThreads
from flashpool.envs.concurrency.volume_watch import VolumeWatch
from flashpool.envs.store import apart, manifest
from flashpool.envs.store.claims import Claims
from flashpool.envs.store.copies import Copies
from flashpool.envs.store.eviction import sweep
from flashpool.envs.store.layout import Store, read_json, write_json
from flashpool.envs.store.liveness import Liveness
from flashpool.envs.store.volume_files import Folder
from support.hanging_file import HangingFile
from support.hanging_volume import HangingVolume, hanging_volume
from support.waiting import until

DIGEST = "a" * 40


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[HangingVolume]:
    with hanging_volume(tmp_path / "fuse") as made:
        yield made
    apart.end_idle_stand_ins()


def write(path: Path) -> None:
    with _writing(path) as file:
        file.write(b"content")


def read(folder: Folder) -> None:
    with folder.reading("large", 100) as file:
        file.read()


def waits_for_a_volume(task: Path) -> bool:
    """Return whether a thread is blocked in the file system."""
    place = (task / "wchan").read_text()
    return "fuse" in place or place == "request_wait_answer"


def test_no_thread_of_the_process_blocks_in_the_file_system(volume: HangingVolume) -> None:
    root = volume.path / "flashpool"
    apart.keep_apart(root)
    store = Store(root)
    store.prepare()
    holders = Liveness(store.holders, heartbeat_s=1, stale_s=30, claim_stale_s=30)
    holders.beat()
    Folder(root).write("large", [b"content"])
    environment = store.environment(DIGEST)
    asked: dict[str, Callable[[], object]] = {
        "beat": holders.beat,
        "sweep": lambda: sweep(store, holders),
        "claim": lambda: Claims(store, holders).take(DIGEST),
        "copy": lambda: Copies(store).is_the_same(DIGEST),
        "seal": lambda: manifest.sealed(environment),
        "note": lambda: write_json(store.request(DIGEST), {}),
        "memo": lambda: read_json(store.request("b" * 40)),
        "archive": lambda: write(root / "archive"),
        "stream": lambda: read(Folder(root)),
        "virtualenv": lambda: make_virtualenv(root / "env", Path("/usr/bin/python3"), "3.11"),
    }
    volume.hang()
    threads = [threading.Thread(target=act, name=name, daemon=True) for name, act in asked.items()]
    for thread in threads:
        thread.start()
    time.sleep(0.5)  # while the volume hangs there is no event to wait for
    waiting = {thread.name for thread in threads if thread.is_alive()}
    held = [task for task in Path("/proc/self/task").iterdir() if waits_for_a_volume(task)]
    volume.go_on()
    for thread in threads:
        thread.join(60)
    assert waiting == set(asked), "each of them asks the volume"
    assert held == []
    assert not [thread for thread in threads if thread.is_alive()]
    assert os.path.exists(volume.behind / "flashpool" / "archive")


def test_a_killed_command_that_hangs_on_its_volume_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_EXIT_S", 600.0)
    volume = HangingFile(tmp_path / "volume")
    watch = VolumeWatch(tmp_path, limit_s=600.0)
    watch.check()
    assert watch._asker is not None
    asker = watch._asker.pid
    os.kill(asker, signal.SIGSTOP)  # as if the volume did not answer
    disk = DiskThreads("volume", watch=watch)

    async def main() -> None:
        with disk.chosen():
            command = ["test", "-e", volume.file]
            running = asyncio.ensure_future(process.run(command, environment={}))
        await until(lambda: volume.waiting)
        running.cancel()
        await asyncio.wait({running}, timeout=0.2)
        assert not watch.hangs
        # Python 3.10 waits for the guard alone, later versions for its pipes too.
        waits_for_the_volume = not running.done()
        watch.limit_s = 0.1
        with pytest.raises(asyncio.CancelledError):
            await running
        assert watch.hangs == waits_for_the_volume

    try:
        asyncio.run(main())
    finally:
        os.kill(asker, signal.SIGCONT)
        volume.release()
        watch.stop()
        volume.close()
