"""Deployed queue functions: the artifact of SDK 2.0, the image's entry point, and the stand-in."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from sdk2.sdk_client import APPS

from support.client import sdk_python
from support.cloud import JobRecord, Platform, Status

pytestmark = [pytest.mark.shared_pool, pytest.mark.timeout(300)]

WORKER: Final = [sys.executable, str(Path(__file__).parents[2] / "docker" / "handler.py")]
SYSTEM_PACKAGE: Final = "libexample1"
#: A dpkg that has every package, and notes what it is asked for.
_DPKG: Final = """#!/bin/sh
for name in "$@"; do :; done
echo "$name" >>{log}
printf '%s\\tinstalled\\t1.0\\n' "$name"
"""
RESOURCES: Final = ("scale", "prepared_async", "items", "leaves")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As an artifact is unpacked; its packages are those of the client's virtualenv."""
    folder = tmp_path_factory.mktemp("app")
    shutil.copy(APPS / "live_queue.py", folder / "jobs.py")
    manifest = {
        "version": 1,
        "app": "shop",
        "pythonVersion": "{}.{}".format(*sys.version_info),
        "resources": [
            {"kind": "queue", "name": one, "module": "jobs", "systemDependencies": [SYSTEM_PACKAGE]}
            for one in RESOURCES
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
    """With a worker and an endpoint for each resource."""
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
                    "PATH": f"{programs}:{os.environ['PATH']}",
                    "RUNPOD_APP_DIR": str(folder),
                    "FLASH_DISABLE_UNPACK": "true",
                    "FLASHPOOL_LOCAL_DIR": str(local),
                    "FLASHPOOL_STATE_DIR": str(local / resource),
                    "FLASHPOOL_ADMIN_PORT": "0",
                    "FLASHPOOL_GRACE_S": "0.3",
                    "FLASHPOOL_DRAIN_S": "10",
                    "FLASHPOOL_APP_WORKERS": "1",
                },
            )
        yield platform


def run(platform: Platform, resource: str, **given: Any) -> JobRecord:
    sent = given or {"__empty": True}
    return platform.wait(platform.submit(sent, endpoint=resource), 200)


def test_a_function_s_result(platform: Platform) -> None:
    record = run(platform, "scale", values=[1, 2], by=3)
    assert (record.status, record.output) == (Status.COMPLETED, [30, 60])


def test_its_system_packages_are_there_before_it_runs(platform: Platform, local: Path) -> None:
    assert run(platform, "scale", values=[], by=1).output == []
    assert SYSTEM_PACKAGE in (local / "dpkg.log").read_text()


def test_the_start_hook_runs_first(platform: Platform) -> None:
    assert run(platform, "prepared_async").output == "loaded, later"


def test_items_are_streamed_and_the_result(platform: Platform) -> None:
    record = run(platform, "items", count=2)
    expected = [{"success": False, "at": 0}, {"success": False, "at": 1}]
    assert record.output == expected
    assert [chunk.output for chunk in record.stream] == expected


@pytest.mark.parametrize(
    ("how", "words"), [("exit", "SystemExit: 3"), ("_exit", "exit code 7"), ("segfault", "SIGSEGV")]
)
def test_every_end_is_reported(platform: Platform, how: str, words: str) -> None:
    record = run(platform, "leaves", how=how)
    assert record.status is Status.FAILED
    assert words in (record.error or "")
