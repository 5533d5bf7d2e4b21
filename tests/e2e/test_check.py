"""`flashpool check` of artifacts that the real client built; nothing of them runs, nothing is kept."""

import json
import os
import subprocess
import threading
from pathlib import Path

import pytest
from e2e.world import World

from flashpool.frontends.apps.artifacts.app_store import AppStore
from flashpool.frontends.apps.artifacts.tar_reader import ArchiveLimits
from flashpool.frontends.apps.artifacts.unpacking import unpack
from flashpool.frontends.apps.generations import contract_of
from support.artifacts import PYTHON, file_of, with_files

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def world(tmp_path: Path) -> World:
    (tmp_path / "world").mkdir()
    world = World(tmp_path / "world")
    add = world.index.add
    add("runpod-flash", "1.21.0", "runpod", "pydantic>=2")
    add("runpod", "1.12.0", "fastapi")
    add("runpod", "2.0.0")
    add("fastapi", "1.0", "pydantic>=2,<2.6")
    add("fastapi", "2.0", "pydantic>=2.10")
    for version in ("1.10", "2.5.3", "2.14.4"):
        add("pydantic", version)
    add("python-multipart", "0.0.34")
    add("torch", "2.5.1")
    return world


def check(
    world: World, target: Path, *arguments: str, **variables: str
) -> "subprocess.CompletedProcess[str]":
    world.variables |= variables
    return world.command(str(target), *arguments, group="check")


def rows(text: str) -> dict[str, str]:
    """The last row of each name, unfolded."""
    found: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        name = line[:13].strip() or name
        found[name] = f"{'' if line[:13].strip() else found.get(name, '') + ' '}{line[13:]}"
    return found


def test_a_real_artifact_is_described(world: World, shop_artifact: Path) -> None:
    done = check(
        world,
        shop_artifact,
        FLASHPOOL_ROUTE_TIMEOUTS="GET /items/{id}=2, /itmes=1, *=60",
        FLASHPOOL_ROUTE_ISOLATION="POST /train=call",
        FLASHPOOL_APP_DEPENDENCIES="torch==2.5.1",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for words in (
        "flash_manifest.json",
        "shop: load-balanced",
        "qb-conc: queue, double",
        "counter",
    ):
        assert words in done.stdout
    assert "handler in handler_qb-conc.py, for jobs; 3 at a time" in done.stdout
    found = rows(done.stdout)
    assert found["routes"] == "GET /items/{item_id}, GET /slow/{rest:path}, POST /train"
    assert found["limits"] == "GET /items/{item_id}: 2 s; everything else: 60 s"
    assert found["isolation"] == "POST /train: call; everything else: shared"
    assert "no route of the app is /itmes" in found["warning"]
    assert found["python"].startswith(f"{PYTHON}: /")
    assert found["brings"] == "no packages"
    assert found["compiled"] == "nothing for another Python or platform"
    assert found["lacks"] == "runpod-flash==1.21.0, runpod<2, python-multipart, torch==2.5.1"
    for package in ("fastapi==2.0", "pydantic==2.14.4", "runpod==1.12.0", "torch==2.5.1"):
        assert package in found["resolution"]
    assert "6 packages" in found["resolution"]
    assert not (world.folder / "local").exists()
    assert os.listdir(world.volume) == []


def test_the_artifacts_own_packages_constrain_those_beside_them(
    world: World, shop_artifact: Path, tmp_path: Path
) -> None:
    mixed = with_files(
        shop_artifact, tmp_path / "mixed.tar.gz", {"pydantic-2.5.3.dist-info/METADATA": b""}
    )
    done = check(world, mixed, "--resource", "shop")
    assert done.returncode == 0, done.stdout + done.stderr
    found = rows(done.stdout)
    assert found["brings"] == "pydantic==2.5.3"
    assert "fastapi==1.0" in found["resolution"]
    assert "pydantic" not in found["resolution"]
    assert "resource counter" not in done.stdout


def test_packages_that_nothing_agrees_with_are_named(
    world: World, shop_artifact: Path, tmp_path: Path
) -> None:
    mixed = with_files(
        shop_artifact, tmp_path / "mixed.tar.gz", {"pydantic-1.10.dist-info/METADATA": b""}
    )
    done = check(world, mixed)
    assert done.returncode == 1
    found = rows(done.stdout)
    assert "No set of versions" in found["problem"]
    assert "the artifact brings: pydantic==1.10" in found["problem"]


def test_modules_for_another_python_are_reported_in_one_sentence(
    world: World, shop_artifact: Path, tmp_path: Path
) -> None:
    name = "numpy/_core.cpython-39-x86_64-linux-gnu.so"
    done = check(world, with_files(shop_artifact, tmp_path / "a.tar.gz", {name: b""}))
    assert done.returncode == 0, done.stdout + done.stderr
    assert rows(done.stdout)["compiled"].startswith(
        f"{name} is compiled for cpython-39-x86_64-linux-gnu, and the app's Python is {PYTHON}"
    )


def test_a_missing_python_is_named(world: World, shop_artifact: Path, tmp_path: Path) -> None:
    manifest = json.loads(file_of(shop_artifact, "flash_manifest.json"))
    for resource in manifest["resources"].values():
        resource["target_python_version"] = "3.99"
    content = {"flash_manifest.json": json.dumps(manifest).encode()}
    done = check(world, with_files(shop_artifact, tmp_path / "a.tar.gz", content))
    assert done.returncode == 1
    assert "Python 3.99 is not installed here" in rows(done.stdout)["problem"]


def test_an_unreadable_artifact_is_an_error(
    world: World, shop_artifact: Path, tmp_path: Path
) -> None:
    for target, arguments, words in [
        (shop_artifact, ["--resource", "shpo"], "there are: counter, qb-conc, shop"),
        (tmp_path / "none.tar.gz", [], "no artifact at"),
        (Path(__file__), [], "not a gzip file"),
        (tmp_path, [], "contains no flash_manifest.json"),
    ]:
        done = check(world, target, *arguments)
        assert done.returncode == 1
        assert words in done.stderr
        assert "Traceback" not in done.stderr
    refused = check(world, shop_artifact, FLASHPOOL_ROUTE_TIMEOUTS="GET /x=soon")
    assert refused.returncode == 2
    assert "in 'GET /x=soon': 'soon' is not seconds" in refused.stderr


def test_a_real_artifact_is_unpacked_as_its_contract_wants_it(
    world: World, shop_artifact: Path, tmp_path: Path
) -> None:
    limits = ArchiveLimits(max_mb=100, max_files=1000, max_ratio=100)
    lease = unpack(shop_artifact, AppStore(tmp_path / "apps"), limits, threading.Event())
    contract = contract_of(lease.path, {})
    apps = {
        each.name: contract.deployed_app(lease.path, each.name, ())
        for each in contract.summary(lease.path).resources
    }
    assert {name: app.entry.file.name for name, app in apps.items()} == {
        "counter": "handler_counter.py",
        "qb-conc": "handler_qb-conc.py",
        "shop": "handler_shop.py",
    }
    assert apps["counter"].functions[0].methods == ("increase",)
    assert apps["shop"].oddities == ()
    assert {app.environment for app in apps.values()} == {apps["shop"].environment}
    done = check(world, lease.path)
    assert done.returncode == 0, done.stdout + done.stderr
    lease.release()
