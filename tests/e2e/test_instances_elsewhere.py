"""Servers that share a volume: an answer says when its instance lives, or lived, on another pod."""

import signal
from pathlib import Path
from typing import Any

import pytest
from e2e.server import Server, report, until
from e2e.world import World

COUNTER = """
class Counter:
    def __init__(self):
        self.n = 0
    def inc(self):
        self.n += 1
        return self.n
"""


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    made.variables["FLASHPOOL_ENV_HEARTBEAT_S"] = "0.1"
    return made


def inc(server: Server, instance: str) -> dict[str, Any]:
    fields = {
        "execution_type": "class",
        "class_name": "Counter",
        "class_code": COUNTER,
        "method_name": "inc",
        "instance_id": instance,
        "create_new_instance": False,
        "serialization_format": "json",
    }
    answer: dict[str, Any] = server.http.post("/execute", json=fields).json()
    assert answer["success"], report(answer)
    return answer


def elsewhere(server: Server, instance: str) -> Any:
    return inc(server, instance)["instance_info"]["elsewhere"]


def test_an_answer_says_that_its_instance_lives_on_two_pods(world: World) -> None:
    with (
        world.server("one", RUNPOD_POD_ID="pod-one") as one,
        world.server("two", RUNPOD_POD_ID="pod-two") as two,
    ):
        alone = inc(one, "shared")
        assert alone["instance_info"]["elsewhere"] is None
        assert "warnings" not in alone
        # Another pod creates its own instance with a new state, and its answers say so.
        until(lambda: elsewhere(two, "shared"))
        told = inc(two, "shared")
        assert told["json_result"] > 1
        assert (told["instance_info"]["elsewhere"]["pod"]) == "pod-one"
        assert told["instance_info"]["elsewhere"]["lives"] is True
        assert "'shared' also lives on pod pod-one" in told["warnings"][0]
        until(lambda: elsewhere(one, "shared"))
        assert inc(one, "shared")["instance_info"]["elsewhere"]["pod"] == "pod-two"
        assert elsewhere(one, "another") is None


@pytest.mark.parametrize("way", [signal.SIGTERM, signal.SIGKILL])
def test_an_answer_says_that_the_pod_of_its_instance_is_gone(
    world: World, way: signal.Signals
) -> None:
    with world.server("one", RUNPOD_POD_ID="pod-one") as one:
        inc(one, "lost")
        until(lambda: [name for name in world.stored("instances") if name[0] != "."])
        one.process.send_signal(way)
        one.process.wait(60)
    with world.server("two", RUNPOD_POD_ID="pod-two") as two:
        # The news is read when the server starts, and no call waits for that.
        until(lambda: elsewhere(two, "probe-lost") is None)
        until(lambda: elsewhere(two, "lost"))
        there = elsewhere(two, "lost")
        assert (there["pod"], there["lives"]) == ("pod-one", False)


def test_the_first_answer_of_a_new_instance_warns_of_the_one_before(world: World) -> None:
    with world.server("one", RUNPOD_POD_ID="pod-one") as one:
        for number in range(6):
            inc(one, f"lost-{number}")
    with world.server("two", RUNPOD_POD_ID="pod-one") as two:
        # The server reads the news while it starts; once one instance has it, all have.
        until(lambda: elsewhere(two, "lost-0"))
        first = inc(two, "lost-1")
        assert first["instance_info"]["method_calls"] == 1
        assert "lived on pod pod-one" in first["warnings"][0]
        again = inc(two, first["instance_id"])
        assert "warnings" not in again
        assert again["instance_info"]["elsewhere"]["lives"] is False


def test_a_closed_instance_is_not_reported_elsewhere(world: World) -> None:
    with (
        world.server("one", RUNPOD_POD_ID="pod-one", FLASHPOOL_INSTANCE_IDLE_S="0.2") as one,
        world.server("two", RUNPOD_POD_ID="pod-two") as two,
    ):
        inc(one, "brief")
        until(lambda: not one.stats()["instances"], 30)
        until(lambda: (there := elsewhere(two, "brief")) and not there["lives"])
