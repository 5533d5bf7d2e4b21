"""Quotas, full disks, empty disks: servers that build environments where there is little room."""

import contextlib
import os
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pytest
from e2e.server import report, request, until
from e2e.world import VERSION, World

from flashpool.envs.store.eviction import DiskUse
from support import wants

MB: Final = 1024 * 1024
#: Reads its environment's files while it runs, and returns whether all were intact.
READER: Final = """def f(go_on):
    import os, importlib, big
    data = os.path.join(os.path.dirname(big.__file__), "data.bin")
    size, rounds = os.path.getsize(data), 0
    while os.path.exists(go_on):
        assert len(open(data, "rb").read()) == size
        importlib.reload(big)
        rounds += 1
    return [big.version, rounds > 0]
"""
SIZE: Final = """def f():
    import os, big
    return [big.version, os.path.getsize(os.path.join(os.path.dirname(big.__file__), "data.bin"))]
"""


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    made.watch_uv()
    return made


def add_big(world: World, version: str, size: int) -> None:
    world.index.add("big", version, files={"data.bin": os.urandom(size)})


def test_a_server_with_an_empty_disk_starts_from_the_archive(world: World) -> None:
    add_big(world, "1.0", MB)
    archives = {"FLASHPOOL_ENV_MODE": "archive"}
    with world.server("one", FLASHPOOL_LOCAL_DIR=f"{world.folder}/disk1", **archives) as server:
        answer = server.execute(SIZE, dependencies=["big"])
        assert answer["receipt"]["environment_origin"] == "built", report(answer)
        digest = answer["receipt"]["environment"]
        until(lambda: f"{digest}.json" in world.stored("archives"), 30)
    assert world.stored("envs") == []
    # The index and uv's downloads are gone.
    (world.folder / "index").rename(world.folder / "gone")
    before = len(world.uv_runs())
    with world.server("two", FLASHPOOL_LOCAL_DIR=f"{world.folder}/disk2", **archives) as server:
        answer = server.execute(SIZE, dependencies=["Big "])
        assert answer["json_result"] == ["1.0", MB], report(answer)
        receipt = answer["receipt"]
        assert (receipt["environment"], receipt["environment_origin"]) == (digest, "archive")
        assert receipt["environment_hit"]
    assert {run.step for run in world.uv_runs()[before:]} <= {"other"}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_quota_holds_while_ten_environments_are_used_in_turn(world: World) -> None:
    """What all of them take is twice the quota; a call that runs keeps what it uses."""
    quota, size = 200, 40 * MB
    for number in range(10):
        add_big(world, f"1.{number}", size)
    go_on = world.folder / "go-on"
    go_on.touch()
    largest = 0
    done = threading.Event()

    def measure() -> None:
        nonlocal largest
        while not done.wait(0.05):
            largest = max(largest, DiskUse().add(world.volume / "flashpool")[0])

    limits = {"FLASHPOOL_ENV_QUOTA_MB": str(quota), "FLASHPOOL_SLOTS": "6"}
    with world.server(**limits) as server, ThreadPoolExecutor(8) as threads:
        measuring = threading.Thread(target=measure)
        measuring.start()
        try:
            reading = threads.submit(
                server.execute, READER, str(go_on), dependencies=["big==1.0"], timeout_s=250
            )
            until(lambda: server.stats()["slots"]["busy"] == 1, 30)
            for _ in range(2):
                for number in range(10):
                    answer = server.execute(SIZE, dependencies=[f"big==1.{number}"])
                    assert answer["json_result"] == [f"1.{number}", size], report(answer)
            go_on.unlink()
            answer = reading.result()
            assert answer["json_result"] == ["1.0", True], report(answer)
        finally:
            go_on.unlink(missing_ok=True)
            done.set()
            measuring.join()
    assert largest <= quota * MB
    # The quota still allows some environments to be kept.
    assert len(world.stored("envs")) >= 2


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
    wants.program("mount")
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"mounting is not allowed here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_fails_its_call_and_no_other(world: World) -> None:
    add_big(world, "1.0", 4 * MB)
    add_big(world, "2.0", 60 * MB)
    go_on = world.folder / "go-on"
    go_on.touch()
    with (
        ThreadPoolExecutor(1) as threads,
        small_disk(world.folder / "small", 24) as disk,
        world.server(FLASHPOOL_VOLUME=str(disk), FLASHPOOL_LOCAL_DIR=str(disk)) as server,
    ):
        reading = threads.submit(server.execute, READER, str(go_on), dependencies=["big==1.0"])
        until(lambda: server.stats()["slots"]["busy"] == 1, 30)
        for _ in range(2):
            reply = server.http.post("/execute", json=request(SIZE, dependencies=["big==2.0"]))
            answer = reply.json()
            assert (reply.status_code, answer["success"]) == (200, False)
            assert answer["error_type"] == "EnvironmentError", report(answer)
            assert answer["details"]["kind"] == "DiskFull"
            assert "no space" in answer["error"]
            assert "enlarge the volume" in answer["error"]
            assert answer["details"]["advice"]
            assert answer["details"]["retryable"]
        assert server.execute("def f(): return 3")["json_result"] == 3
        assert server.execute(VERSION, dependencies=["alpha"])["json_result"] == "2.0"
        assert server.http.get("/ping").status_code == 200
        go_on.unlink()
        answer = reading.result()
        assert answer["json_result"] == ["1.0", True], report(answer)
