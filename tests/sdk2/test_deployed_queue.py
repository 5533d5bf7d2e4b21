"""Deployed queue functions: SDK 2.0's own client, the stand-in, and the image's entry point.

The artifact is as `rp flash deploy` makes it, its packages are those of the client's virtualenv.
"""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from sdk2.sdk_client import APPS, Case, Told, call_queue

from support.client import sdk_python
from support.cloud import Platform, Status

pytestmark = [pytest.mark.shared_pool, pytest.mark.timeout(300)]

WORKER: Final = [sys.executable, str(Path(__file__).parents[2] / "docker" / "handler.py")]
SYSTEM_PACKAGE: Final = "libexample1"
#: A dpkg that has every package, and records queries.
_DPKG: Final = """#!/bin/sh
for name in "$@"; do :; done
echo "$name" >>{log}
printf '%s\\tinstalled\\t1.0\\n' "$name"
"""
#: The module of each resource.
RESOURCES: Final = {
    "acts": "jobs",
    "items": "jobs",
    "breaking_items": "jobs",
    "prepared_async": "jobs",
    "broken_start": "jobs",
    "meets": "jobs",
    "unreachable": "broken",
}
CASES: Final[list[Case]] = [
    # These wait for each other, so they are in the first batch of the script.
    ("met one", "meets", "remote", ["{home}/one", "{home}/two"]),
    ("met two", "meets", "remote", ["{home}/two", "{home}/one"]),
    # Jobs of one function run one at a time, so these come in this order.
    ("counts", "acts", "remote", ["counts"]),
    ("echo", "acts", "remote", {"what": "echo", "value": [1, "\u00fc"]}),
    ("none", "acts", "remote", ["echo", None]),
    ("empty", "acts", "remote", ["echo", {}]),
    ("an error as a result", "acts", "remote", ["echo", {"error": "fine"}]),
    ("recursion", "acts", "remote", ["recursion", 5]),
    ("spawned", "acts", "remote", ["spawned", [1, 2]]),
    ("module", "acts", "remote", ["module"]),
    ("sdk", "acts", "remote", ["sdk"]),
    ("facts", "acts", "remote", ["facts"]),
    ("raises", "acts", "remote", ["raise", "no such luck"]),
    ("too few arguments", "acts", "remote", {}),
    ("no such keyword", "acts", "remote", {"what": "echo", "other": 1}),
    ("a set", "acts", "remote", ["unserialisable", "set"]),
    ("nan", "acts", "remote", ["unserialisable", "nan"]),
    ("a large result", "acts", "remote", ["large", 9_000_000]),
    ("exit", "acts", "remote", ["exit"]),
    ("_exit", "acts", "remote", ["_exit"]),
    ("segfault", "acts", "remote", ["segfault"]),
    ("too long", "acts", "cut", ["never"]),
    ("endless", "acts", "cut", ["loop"]),
    ("cancelled", "acts", "cancel", ["never"]),
    ("after all that", "acts", "spawn", ["echo", "fine"]),
    ("items", "items", "remote", [2]),
    ("streamed", "items", "stream", [2]),
    ("breaking items", "breaking_items", "remote", []),
    ("prepared", "prepared_async", "remote", []),
    ("broken start", "broken_start", "remote", []),
    ("unreachable", "unreachable", "remote", []),
]
ITEMS: Final = [{"success": False, "at": 0}, {"success": False, "at": 1}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unpacked artifact."""
    folder = tmp_path_factory.mktemp("app")
    shutil.copy(APPS / "live_queue.py", folder / "jobs.py")
    shutil.copy(APPS / "broken.py", folder / "broken.py")
    system = {"systemDependencies": [SYSTEM_PACKAGE]}
    manifest = {
        "version": 1,
        "app": "shop",
        "pythonVersion": "{}.{}".format(*sys.version_info),
        "resources": [
            {"kind": "queue", "name": name, "module": module, **(system if name == "acts" else {})}
            for name, module in RESOURCES.items()
        ],
    }
    (folder / "runpod_manifest.json").write_text(json.dumps(manifest))
    (packages,) = sdk_python().parents[1].glob("lib/python*/site-packages")
    (folder / "env").symlink_to(packages)
    return folder


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("local")


@pytest.fixture(scope="module")
def platform(folder: Path, local: Path) -> Iterator[Platform]:
    """The stand-in for the platform, with a worker and an endpoint for each resource."""
    programs = local / "bin"
    programs.mkdir()
    (programs / "dpkg-query").write_text(_DPKG.format(log=local / "dpkg.log"))
    (programs / "dpkg-query").chmod(0o755)
    with Platform() as platform:
        for resource in RESOURCES:
            platform.add_endpoint(resource)
            platform.start_worker(
                WORKER,
                endpoint=resource,
                variables={
                    "FLASH_RESOURCE_NAME": resource,
                    "FLASH_ENVIRONMENT": "default",
                    "RUNPOD_API_KEY": "account-key",
                    "TAG": "t1",
                    "PATH": f"{programs}:{os.environ['PATH']}",
                    "RUNPOD_APP_DIR": str(folder),
                    "FLASH_DISABLE_UNPACK": "true",
                    "FLASHPOOL_LOCAL_DIR": str(local),
                    "FLASHPOOL_STATE_DIR": str(local / resource),
                    "FLASHPOOL_ADMIN_PORT": "0",
                    "FLASHPOOL_GRACE_S": "0.3",
                    "FLASHPOOL_DRAIN_S": "10",
                    "FLASHPOOL_APP_WORKERS": "1",
                    **({"RUNPOD_MAX_CONCURRENCY": "2"} if resource == "meets" else {}),
                },
            )
        yield platform


@pytest.fixture(scope="module")
def told(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Told:
    home = tmp_path_factory.mktemp("home")
    cases: list[Case] = json.loads(json.dumps(CASES).replace("{home}", str(home)))
    return call_queue(
        sdk_python(),
        "live_queue.py",
        cases,
        home=home,
        variables=platform.client_env(),
        deployed=True,
    )


@pytest.mark.parametrize(
    ("call", "value"),
    [
        ("counts", [1, None, False]),
        ("echo", [1, "\u00fc"]),
        ("none", None),
        ("empty", {}),
        ("recursion", 120),
        ("spawned", [10, 20]),
        ("module", ["@dataclass", "int", 2, True]),
        ("a large result", "x" * 9_000_000),
        ("cancelled", "CANCELLED"),
        ("after all that", "fine"),
        ("items", ITEMS),
        ("streamed", ITEMS),
        ("prepared", "loaded, later"),
        ("met one", "met"),
        ("met two", "met"),
    ],
)
def test_values(told: Told, call: str, value: object) -> None:
    assert told.value(call) == value


def test_a_function_sees_the_artifacts_sdk_and_the_endpoints_variables(
    told: Told, folder: Path
) -> None:
    """The SDK is the artifact's, and the variables are those the platform sets."""
    assert told.value("sdk").startswith(str(folder / "env"))
    facts = told.value("facts")
    assert (facts["runs"], facts["TAG"]) == ("1", "t1")
    assert (facts["RUNPOD_API_KEY"], facts["RUNPOD_ENDPOINT_ID"]) == ("account-key", "acts")


@pytest.mark.parametrize(
    ("call", "texts"),
    [
        ("raises", ["ValueError: no such luck", "in acts"]),
        ("too few arguments", ["TypeError", "what"]),
        ("no such keyword", ["TypeError", "other"]),
        ("an error as a result", ["fine"]),
        ("a set", ["result['deep'][0] is of the type set"]),
        ("nan", ["result['deep'][0] is nan"]),
        ("exit", ["SystemExit: 3"]),
        ("_exit", ["exit code 7"]),
        ("segfault", ["SIGSEGV"]),
        ("too long", ["The platform ends it after 1.5 s"]),
        ("endless", ["The platform ends it after 1.5 s"]),
        ("breaking items", ["ValueError: no more"]),
        ("broken start", ["RuntimeError: no model here"]),
        ("unreachable", ["RuntimeError: no such model"]),
    ],
)
def test_errors(told: Told, call: str, texts: list[str]) -> None:
    text = told.text(call)
    assert text.startswith("remote execution failed: ")
    for one in texts:
        assert one in text


def test_globals_last_between_calls(told: Told, platform: Platform) -> None:
    assert told.calls
    counted = [
        platform.wait(platform.submit({"what": "counts"}, endpoint="acts"), 60).output
        for _ in range(2)
    ]
    assert counted[1][0] == counted[0][0] + 1


def test_system_packages_are_installed_before_a_function_runs(told: Told, local: Path) -> None:
    assert told.calls
    assert SYSTEM_PACKAGE in (local / "dpkg.log").read_text()


def test_every_job_is_reported_once(told: Told, platform: Platform) -> None:
    assert told.calls
    records = [job for job in platform.jobs() if job.status is not Status.CANCELLED]
    assert {job.done_count for job in records} == {1}
    assert {job.status for job in records} == {Status.COMPLETED, Status.FAILED}
