"""Queue functions of a dev session: SDK 2.0's own client, the stand-in, and our worker."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from e2e.world import World
from sdk2.sdk_client import Case, Told, call_queue

from support.client import sdk_python
from support.cloud import ENDPOINT, Platform, Status

pytestmark = [pytest.mark.shared_pool, pytest.mark.timeout(300)]

#: The image's command, from its own folder.
WORKER: Final = [sys.executable, str(Path(__file__).parents[2] / "docker" / "handler.py")]
#: What the platform sets for a resource of a dev session.
DEV: Final = {
    "RUNPOD_DEV_APP": "shop",
    "RUNPOD_DEV_RESOURCE": "factorial",
    "RUNPOD_DEV_GENERATION": "1",
    "RUNPOD_MOUNTS": '[{"kind":"network","reference":"data","id":"vol1","path":"/runpod-volume"}]',
}
CASES: Final[list[Case]] = [
    ("scale", "scale", "remote", [[1, 2], 3]),
    ("spawn", "scale", "spawn", [[5]]),
    ("later", "later", "remote", [40, 2]),
    ("none", "echo", "remote", [None]),
    ("empty", "echo", "remote", [{}]),
    ("an error as a result", "echo", "remote", [{"error": "fine"}]),
    ("where", "where", "remote", []),
    ("module", "module_facts", "remote", []),
    ("spawned", "spawned", "remote", [[1, 2]]),
    ("items", "items", "remote", [2]),
    ("one item", "items", "remote", [1]),
    ("streamed items", "items", "stream", [2]),
    ("streamed later", "later_items", "stream", [3]),
    ("later items", "later_items", "remote", [3]),
    ("breaking items", "breaking_items", "remote", []),
    ("factorial", "factorial", "remote", [5]),
    ("counts", "counts", "remote", []),
    ("counts again", "counts", "remote", []),
    ("prepared", "prepared", "remote", []),
    ("prepared later", "prepared_async", "remote", []),
    ("broken start", "broken_start", "remote", []),
    ("fails", "fails", "remote", ["no such luck"]),
    ("a set", "unserialisable", "remote", ["set"]),
    ("nan", "unserialisable", "remote", ["nan"]),
    ("exit", "leaves", "remote", ["exit"]),
    ("_exit", "leaves", "remote", ["_exit"]),
    ("segfault", "leaves", "remote", ["segfault"]),
    ("too long", "leaves", "cut", ["never"]),
    ("not shipped", "not_shipped", "remote", []),
    ("mounted", "mounted", "remote", []),
    ("no JSON", "echo", "remote", [1]),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def platform(world: World) -> Iterator[Platform]:
    with Platform() as platform:
        platform.start_worker(
            WORKER,
            variables={
                **world.variables,
                **DEV,
                "FLASHPOOL_ADMIN_PORT": "0",
                "FLASHPOOL_BASE_PYTHON": str(sdk_python()),
                "FLASHPOOL_PRELOAD": "runpod.apps",
            },
        )
        yield platform


@pytest.fixture(scope="module")
def told(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Told:
    home = tmp_path_factory.mktemp("home")
    variables = platform.client_env()
    return call_queue(sdk_python(), "live_queue.py", CASES, home=home, variables=variables)


@pytest.mark.parametrize(
    ("call", "value"),
    [
        ("scale", [30, 60]),
        ("spawn", [50]),
        ("later", 42),
        ("none", None),
        ("empty", {}),
        ("an error as a result", {"error": "fine"}),
        ("where", {"local": False, "name": "__runpod_live__", "file": True}),
        ("module", ["@dataclass", "int", 2, True]),
        ("spawned", [10, 20]),
        ("items", [{"success": False, "at": 0}, {"success": False, "at": 1}]),
        ("one item", [{"success": False, "at": 0}]),
        ("streamed items", [{"success": False, "at": 0}, {"success": False, "at": 1}]),
        ("streamed later", [0, 1, 2]),
        ("later items", [0, 1, 2]),
        ("factorial", 120),
        ("counts", [1, None, False]),
        ("counts again", [1, None, False]),
        ("prepared", [1, "loaded"]),
        ("prepared later", "loaded, later"),
        ("mounted", "/runpod-volume"),
    ],
)
def test_values(told: Told, call: str, value: object) -> None:
    assert told.value(call) == value


@pytest.mark.parametrize(
    ("call", "texts"),
    [
        ("fails", ["ValueError: no such luck", "in fails", "raise ValueError(text)"]),
        ("breaking items", ["ValueError: no more"]),
        ("broken start", ["RuntimeError: no model here", "in fail"]),
        ("a set", ["at result['deep'][0], which is of type set"]),
        ("nan", ["at result['deep'][0], which is nan"]),
        ("exit", ["SystemExit", "3"]),
        ("_exit", ["exit code 7"]),
        ("segfault", ["SIGSEGV"]),
        ("too long", ["The platform ends it after 1.5 s"]),
        ("not shipped", ["No module named 'shared'", "sends the one file"]),
    ],
)
def test_errors(told: Told, call: str, texts: list[str]) -> None:
    text = told.text(call)
    assert text.startswith("remote execution failed: ")
    for one in texts:
        assert one in text


def test_every_job_is_reported_once(told: Told, platform: Platform) -> None:
    assert told.calls
    records = platform.jobs(ENDPOINT)
    assert {job.done_count for job in records} == {1}
    assert {job.status for job in records} == {Status.COMPLETED, Status.FAILED}


def test_a_function_with_a_start_hook_stays(told: Told, platform: Platform, tmp_path: Path) -> None:
    assert told.calls
    again: list[Case] = [("again", "prepared", "remote", [5])]
    variables = platform.client_env()
    client = sdk_python()
    second = call_queue(client, "live_queue.py", again, home=tmp_path, variables=variables)
    assert second.value("again") == [6, "loaded"]
