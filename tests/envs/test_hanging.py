"""Whatever is asked of a volume that hangs, the process that asks could still exit."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flashpool.envs.archives.archive import _writing
from flashpool.envs.building.virtualenv import make_virtualenv
from flashpool.envs.store import apart, manifest
from flashpool.envs.store.claims import Claims
from flashpool.envs.store.copies import Copies
from flashpool.envs.store.eviction import sweep
from flashpool.envs.store.layout import Store, read_json, write_json
from flashpool.envs.store.liveness import Liveness
from flashpool.envs.store.volume_files import Folder
from support.hanging_volume import HangingVolume, hanging_volume

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


def test_no_thread_of_ours_waits_in_the_file_system(volume: HangingVolume) -> None:
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
    time.sleep(0.5)  # for as long as it hangs nothing comes about that could be waited for
    waiting = {thread.name for thread in threads if thread.is_alive()}
    held = [
        place
        for task in Path("/proc/self/task").iterdir()
        if "fuse" in (place := (task / "wchan").read_text()) or place == "request_wait_answer"
    ]
    volume.go_on()
    for thread in threads:
        thread.join(60)
    assert waiting == set(asked), "each of them asks the volume"
    assert held == []
    assert not [thread for thread in threads if thread.is_alive()]
    assert os.path.exists(volume.behind / "flashpool" / "archive")
