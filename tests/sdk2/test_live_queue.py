"""Queue functions of a dev session: SDK 2.0's own client, the stand-in, and our worker."""

import json
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
#: Variables that the platform sets for a resource of a dev session.
DEV: Final = {
    "RUNPOD_DEV_APP": "shop",
    "RUNPOD_DEV_RESOURCE": "factorial",
    "RUNPOD_DEV_GENERATION": "1",
    "RUNPOD_MOUNTS": '[{"kind":"network","reference":"data","id":"vol1","path":"/runpod-volume"}]',
}
CASES: Final[list[Case]] = [
    # These wait for each other, so they are in the first batch of the script.
    ("met one", "meets", "remote", ["{home}/one", "{home}/two"]),
    ("met two", "meets", "remote", ["{home}/two", "{home}/one"]),
    ("met later one", "meets_later", "remote", ["{home}/three", "{home}/four"]),
    ("met later two", "meets_later", "remote", ["{home}/four", "{home}/three"]),
    ("scale", "scale", "remote", [[1, 2], 3]),
    ("by name", "scale", "remote", {"values": [1, 2], "by": 3}),
    ("without waiting", "scale", "remote.aio", [[1], 2]),
    ("spawn", "scale", "spawn", [[5]]),
    ("found again", "scale", "job", [[6]]),
    ("options", "scale", "options", [[7]]),
    ("here", "scale", "local", [[8]]),
    ("called as it is", "scale", "call", [[1]]),
    ("a set is sent", "echo", "a set", []),
    ("wrong types", "scale", "remote", ["text", None]),
    ("too many arguments", "later", "remote", [1, 2, 3]),
    ("no such keyword", "later", "remote", {"c": 3}),
    ("later", "later", "remote", [40, 2]),
    ("none", "echo", "remote", [None]),
    ("nothing", "echo", "remote", []),
    ("a tuple", "unserialisable", "remote", ["tuple"]),
    ("text", "echo", "remote", ["\u00fc\u2028\U0001f600"]),
    ("a large result", "large", "remote", [9_000_000]),
    ("too large a result", "large", "remote", [11_000_000]),
    ("process", "process_facts", "remote", []),
    ("writes", "writes", "remote", []),
    ("a package", "uses_a_package", "remote", []),
    ("the sdk", "sdk_facts", "remote", []),
    ("modelled", "modelled", "remote", []),
    ("an object", "unserialisable", "remote", ["object"]),
    ("endless", "leaves", "cut", ["loop"]),
    ("cancelled", "leaves", "cancel", ["never"]),
    ("streamed without waiting", "items", "stream.aio", [1]),
    ("a stream that breaks", "breaking_items", "stream", []),
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
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def runs_log(world: World) -> Path:
    return world.folder / "runs.log"


@pytest.fixture(scope="module")
def platform(world: World, runs_log: Path) -> Iterator[Platform]:
    with Platform() as platform:
        platform.start_worker(
            WORKER,
            variables={
                **world.variables,
                **DEV,
                "FLASHPOOL_ADMIN_PORT": "0",
                "FLASHPOOL_BASE_PYTHON": str(sdk_python()),
                "FLASHPOOL_PRELOAD": "runpod.apps",
                "FLASHPOOL_SLOTS": "8",
                "TAG": "t1",
                "RUNS_LOG": str(runs_log),
                "RUNPOD_API_KEY": "account-key",
                "MODEL_REVISION": "main",
            },
        )
        yield platform


@pytest.fixture(scope="module")
def told(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Told:
    home = tmp_path_factory.mktemp("home")
    variables = platform.client_env()
    cases: list[Case] = json.loads(json.dumps(CASES).replace("{home}", str(home)))
    return call_queue(sdk_python(), "live_queue.py", cases, home=home, variables=variables)


@pytest.mark.parametrize(
    ("call", "value"),
    [
        ("scale", [30, 60]),
        ("by name", [30, 60]),
        ("without waiting", [20]),
        ("found again", [60]),
        ("options", [70]),
        ("here", [80]),
        ("nothing", None),
        ("a tuple", {"deep": [[1, 2]]}),
        ("text", "\u00fc\u2028\U0001f600"),
        ("a large result", "x" * 9_000_000),
        (
            "process",
            {
                "runs": "1",
                "TAG": "t1",
                "RUNPOD_API_KEY": "account-key",
                "RUNPOD_ENDPOINT_ID": ENDPOINT,
                "RUNPOD_DEV_APP": "shop",
                "RUNPOD_WEBHOOK_PING": None,
            },
        ),
        ("writes", None),
        ("met one", "met"),
        ("met two", "met"),
        ("met later one", "met"),
        ("met later two", "met"),
        ("a package", "1.0"),
        ("modelled", "/runpod/model-store/huggingface/org/name/main"),
        ("cancelled", "CANCELLED"),
        ("streamed without waiting", [{"success": False, "at": 0}]),
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
        ("an object", ["at result['deep'][0], which is of type object"]),
        ("endless", ["The platform ends it after 1.5 s"]),
        ("a stream that breaks", []),
        ("wrong types", ["TypeError", "in scale"]),
        ("too many arguments", ["TypeError", "later()"]),
        ("no such keyword", ["TypeError", "later()", "'c'"]),
        ("too large a result", ["11000", "Return less"]),
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
    records = [job for job in platform.jobs(ENDPOINT) if job.status is not Status.CANCELLED]
    assert {job.done_count for job in records} == {1}
    assert {job.status for job in records} == {Status.COMPLETED, Status.FAILED}


_COUNTED: Final = """
import os
from runpod import App

with open(os.environ["RUNS_LOG"], "a") as log:
    log.write("x")
app = App("shop")
calls = 0

@app.queue(cpu="cpu3c-1-2")
def f():
    global calls
    calls += 1
    return calls
"""


@pytest.mark.parametrize(
    ("more", "results", "runs"),
    [
        ("\n@f.init\ndef load(): pass\n", [1, 2], 1),
        # A text that only resembles a hook: the first call is tried in a resident, wrongly.
        ('\nTEXT = """\n@f.init\n"""\n', [1, 1], 3),
    ],
)
def test_a_module_with_a_hook_runs_once_and_other_modules_per_call(
    platform: Platform, runs_log: Path, more: str, results: list[int], runs: int
) -> None:
    before = len(runs_log.read_text()) if runs_log.exists() else 0
    request = {
        "function_name": "f",
        "function_code": _COUNTED + more,
        "serialization_format": "json",
    }
    ended = [platform.wait(platform.submit(request), 60).output for _ in results]
    assert [one["json_result"] for one in ended] == results
    assert len(runs_log.read_text()) - before == runs


def test_a_function_with_a_start_hook_keeps_its_process(
    told: Told, platform: Platform, tmp_path: Path
) -> None:
    assert told.calls
    again: list[Case] = [("again", "prepared", "remote", [5])]
    variables = platform.client_env()
    client = sdk_python()
    second = call_queue(client, "live_queue.py", again, home=tmp_path, variables=variables)
    assert second.value("again") == [6, "loaded"]
