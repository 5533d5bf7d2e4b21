"""A volume that hangs, as a network volume may: what still works, and the server's stop."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest
from e2e.server import Server, report, until
from e2e.world import World

from support.hanging_volume import HangingVolume, hanging_volume

pytestmark = pytest.mark.slow
DRAIN_S, GRACE_S = 2, 2
ADD: Final = "def add(a, b):\n    return a + b"
ALPHA: Final = "def f():\n    import alpha\n    return alpha.version"
BETA: Final = "def f():\n    import beta\n    return beta.version"
GREEDY: Final = "def f():\n    held = bytearray(1 << 30)\n    return len(held)"
COUNTER: Final = {
    "execution_type": "class",
    "class_name": "Counter",
    "class_code": "class Counter:\n    def __init__(self):\n        self.n = 0\n"
    "    def inc(self):\n        self.n += 1\n        return self.n",
    "method_name": "inc",
    "instance_id": "mine",
    "serialization_format": "json",
}


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[HangingVolume]:
    with hanging_volume(tmp_path / "fuse") as made:
        yield made


@pytest.fixture
def world(tmp_path: Path, volume: HangingVolume) -> World:
    made = World(tmp_path)
    made.variables |= {
        "FLASHPOOL_VOLUME": str(volume.path),
        "FLASHPOOL_DRAIN_S": str(DRAIN_S),
        "FLASHPOOL_GRACE_S": str(GRACE_S),
    }
    return made


def value(answer: dict[str, Any]) -> Any:
    assert answer["success"] is True, report(answer)
    return answer["json_result"]


def inc(server: Server) -> Any:
    return value(server.http.post("/execute", json=COUNTER).json())


def exits_in_time(server: Server) -> None:
    began = time.monotonic()
    assert server.stop(60) == 0
    assert time.monotonic() - began < DRAIN_S + GRACE_S + 5


def is_warm(server: Server) -> bool:
    """Return whether a fork finds the module preloaded; call it as often as needed."""
    value(server.execute(ALPHA, dependencies=["alpha==1.0"]))
    zygotes = server.stats()["zygotes"]
    return any(zygote["profile"] and zygote["state"] == "ready" for zygote in zygotes)


def is_settled(volume: HangingVolume, mode: str) -> bool:
    """Return whether an environment is packed or sealed, and no claim on it is left."""
    store = volume.behind / "flashpool"
    done = "archives/*.json" if mode == "archive" else "envs/*/flashpool.seal"
    return any(store.glob(done)) and not any((store / "claims").iterdir())


class Pings(threading.Thread):
    """Sends ``/ping`` continuously and records the longest answer time."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self._server = server
        self._over = threading.Event()
        self.worst = 0.0
        self.statuses: set[int] = set()

    def run(self) -> None:
        while not self._over.wait(0.05):
            began = time.monotonic()
            self.statuses.add(self._server.http.get("/ping").status_code)
            self.worst = max(self.worst, time.monotonic() - began)

    def stop(self) -> None:
        self._over.set()
        self.join()


def waits_for_the_volume(server: Server) -> list[str]:
    """Return threads of the server that are blocked in the file system, and prevent its exit."""
    tasks = Path(f"/proc/{server.process.pid}/task")
    places = [(task / "wchan").read_text() for task in tasks.iterdir()]
    return [place for place in places if "fuse" in place or place == "request_wait_answer"]


@pytest.mark.timeout(240)
@pytest.mark.parametrize("mode", ["archive", "volume"])
def test_everything_that_needs_no_volume_continues(
    world: World, volume: HangingVolume, mode: str
) -> None:
    with world.server(FLASHPOOL_ENV_MODE=mode) as server:
        assert value(server.execute(ALPHA, dependencies=["alpha==1.0"])) == "1.0"
        assert inc(server) == 1
        until(lambda: is_warm(server))
        # Wait for the background work after the build.
        until(lambda: is_settled(volume, mode))
        volume.hang()
        pings = Pings(server)
        pings.start()
        try:
            with ThreadPoolExecutor(40) as threads:
                asked = [["beta==1.0", f"alpha=={number}.0"] for number in (1, 2)]
                cold = [
                    threads.submit(server.execute, BETA, dependencies=one) for one in asked * 10
                ]
                for _ in range(20):
                    assert value(server.execute(ADD, 2, 3)) == 5
                    assert value(server.execute(ALPHA, dependencies=["alpha==1.0"])) == "1.0"
                greedy = server.execute(GREEDY, memory_mb=200)
                assert greedy["error_type"] == "OutOfMemory", report(greedy)
                assert inc(server) == 2
                for one in cold:
                    assert value(one.result()) == "1.0"
        finally:
            pings.stop()
        assert pings.statuses == {200}
        assert pings.worst < 5
        assert waits_for_the_volume(server) == []
        exits_in_time(server)
    assert "Traceback" not in server.log()


def test_a_server_starts_while_its_volume_hangs(world: World, volume: HangingVolume) -> None:
    volume.hang()
    with world.server() as server:
        assert value(server.execute(ADD, 2, 3)) == 5
        assert value(server.execute(ALPHA, dependencies=["alpha==1.0"])) == "1.0"
        exits_in_time(server)
    assert "environments go to local disk" in server.log()


@pytest.mark.timeout(240)
@pytest.mark.parametrize("mode", ["archive", "volume"])
@pytest.mark.parametrize("step", ["compile", "install"])
def test_a_server_that_builds_stops_although_its_volume_begins_to_hang(
    world: World, volume: HangingVolume, mode: str, step: str
) -> None:
    world.watch_uv()
    with world.server(FLASHPOOL_ENV_MODE=mode) as server, ThreadPoolExecutor(2) as threads:
        value(server.execute(ALPHA, dependencies=["alpha==1.0"]))
        before = len(world.uv_runs(step))
        with world.holding(step):
            asked = [["beta==1.0"], ["alpha==2.0"]]
            calls = [threads.submit(server.execute, ADD, 2, 3, dependencies=one) for one in asked]
            until(lambda: len(world.uv_runs(step)) > before)
            volume.hang()
        # Before the server has noticed: requests to the volume still wait for an answer.
        until(lambda: server.http.get("/ping").status_code == 200)
        exits_in_time(server)
        for call in calls:  # either an answer or a closed connection
            call.exception()


def test_a_volume_that_answers_again_is_used_again(
    world: World, volume: HangingVolume, tmp_path: Path
) -> None:
    with world.server() as server:
        volume.hang()
        assert value(server.execute(ALPHA, dependencies=["alpha==1.0"])) == "1.0"
        volume.go_on()
        # The server uses local disk for half a minute, then checks the volume again.
        until(lambda: alpha_is_published(server, volume), 90)
        exits_in_time(server)


def alpha_is_published(server: Server, volume: HangingVolume) -> bool:
    value(server.execute(ALPHA, dependencies=["alpha==1.0"], refresh=True))
    return any((volume.behind / "flashpool").glob("archives/*.json"))
