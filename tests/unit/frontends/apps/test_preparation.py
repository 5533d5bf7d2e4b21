"""From a folder or an archive to the app that the pool serves."""

import asyncio
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from flashpool.envs import Spec
from flashpool.frontends.apps.by_hand import chosen_resource, contract_by_hand
from flashpool.frontends.apps.errors import AppError, ArtifactMissing, ResourceRefused
from flashpool.frontends.apps.preparation import AppSource, PreparedApp
from flashpool.frontends.settings.table import Settings

MANIFEST = {
    "python_version": "3.11",
    "resources": {
        "web": {"resource_type": "CpuLiveLoadBalancer", "is_load_balanced": True},
        "job": {"resource_type": "CpuLiveServerless", "handler_file": "handler_job.py"},
    },
    "routes": {"web": {"GET /a": "f"}},
}
FILES = {
    "flash_manifest.json": json.dumps(MANIFEST),
    "handler_web.py": "app = None",
    "handler_job.py": "handler = None",
    "runpod_flash/__init__.py": '__version__ = "1.21.0"',
    "pydantic-2.5.3.dist-info/METADATA": "",
}


def unpacked(folder: Path, **files: str) -> Path:
    for name, text in {**FILES, **files}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def packed(path: Path) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, text in FILES.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    return path


def source(
    tmp_path: Path, resource: str = "web", *, by_hand: Path | None = None, **more: str
) -> Any:
    environ = {
        "FLASHPOOL_ARTIFACT": str(tmp_path / "a.tar.gz"),
        "FLASHPOOL_ARTIFACT_WAIT_S": "0",
        "FLASHPOOL_APP_DIR": str(tmp_path / "link"),
        "FLASHPOOL_LOCAL_DIR": str(tmp_path / "local"),
        **more,
    }
    return AppSource(Settings.from_environ(environ), environ, resource, by_hand=by_hand)


def prepared(*arguments: Any, **more: Any) -> PreparedApp:
    found = asyncio.run(source(*arguments, **more).prepare())
    assert isinstance(found, PreparedApp)
    return found


def test_an_artifact_becomes_an_app(tmp_path: Path) -> None:
    packed(tmp_path / "a.tar.gz")
    found = prepared(tmp_path)
    assert (tmp_path / "link").resolve() == found.folder.path
    assert found.spec == Spec(
        requirements=("runpod-flash==1.21.0", "runpod<2", "python-multipart"),
        python_version="3.11",
        brought=("pydantic==2.5.3",),
    )
    app = found.to_app(Settings.from_environ({}), 2)
    assert (app.directory, app.file) == (str(found.folder.path), "handler_web.py")
    assert (app.attribute, app.generated, app.workers) == ("app", True, 2)
    assert app.spec == found.spec
    assert "runpod_flash" in app.preload
    found.release()


def test_a_queue_resource_becomes_an_app_with_a_handler(tmp_path: Path) -> None:
    packed(tmp_path / "a.tar.gz")
    found = prepared(tmp_path, "job")
    app = found.to_app(Settings.from_environ({}), 1)
    assert (app.file, app.attribute, app.generated) == ("handler_job.py", "handler", False)
    found.release()


def test_a_missing_archive_may_be_retried(tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissing) as caught:
        prepared(tmp_path)
    assert caught.value.passes


def test_a_retry_is_worth_it_once_the_artifact_has_changed(tmp_path: Path) -> None:
    found = source(tmp_path, "none")

    async def look() -> tuple[bool, bool]:
        before = await found.may_differ()
        with pytest.raises(AppError):
            await found.prepare(wait=False)
        return before, await found.may_differ()

    assert asyncio.run(look()) == (True, True), "an archive that is absent may come"
    packed(tmp_path / "a.tar.gz")
    assert asyncio.run(look()) == (True, False), "no resource has that name"
    (tmp_path / "b.tar.gz").write_bytes(b"")
    (tmp_path / "b.tar.gz").replace(tmp_path / "a.tar.gz")
    assert asyncio.run(look()) == (True, True), "an archive that is cut off may become longer"


def test_a_refused_app_is_not_marked_as_used(tmp_path: Path) -> None:
    packed(tmp_path / "a.tar.gz")
    with pytest.raises(ResourceRefused, match="job, web") as caught:
        prepared(tmp_path, "none")
    assert not caught.value.passes
    assert list((tmp_path / "local" / "flashpool" / "apps" / ".users").iterdir()) == []


def test_served_by_hand_an_app_gets_no_link_and_its_only_resource(tmp_path: Path) -> None:
    archive = packed(tmp_path / "by-hand.tar.gz")
    found = prepared(tmp_path, "", by_hand=archive)
    assert found.deployed.resource == "web"
    assert not (tmp_path / "link").exists()
    found.release()
    folder = unpacked(tmp_path / "folder")
    assert prepared(tmp_path, "", by_hand=folder).folder.path == folder


def test_handlers_without_a_manifest_are_served_by_hand_only(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "handler_one.py").write_text("app = None")
    found = prepared(tmp_path, "", by_hand=folder)
    assert (found.deployed.resource, found.spec) == ("one", None)
    (folder / "handler_two.py").write_text("app = None")
    with pytest.raises(ResourceRefused, match="one, two"):
        chosen_resource(contract_by_hand(folder, {}), folder, "")
    with pytest.raises(ResourceRefused, match="one, two"):
        prepared(tmp_path, "three", by_hand=folder)
    with pytest.raises(AppError, match=r"flash_manifest\.json"):
        prepared(tmp_path, "one", FLASHPOOL_APP_DIR=str(folder), FLASH_DISABLE_UNPACK="1")


def test_modules_compiled_for_another_python_produce_a_hint(tmp_path: Path) -> None:
    folder = unpacked(tmp_path / "folder", **{"lib/x.cpython-39-x86_64-linux-gnu.so": ""})
    assert prepared(tmp_path, by_hand=folder).hint.startswith("lib/x.cpython-39")


def test_a_dotenv_file_outside_the_app_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / ".env").write_text("A=1")
    prepared(tmp_path, by_hand=unpacked(tmp_path / "folder"))
    assert f"{tmp_path / '.env'} is not the app's" in caplog.text
    caplog.clear()
    prepared(tmp_path, by_hand=unpacked(tmp_path / "other", **{".env": ""}))
    assert "is not the app's" not in caplog.text
    packed(tmp_path / "a.tar.gz")
    prepared(tmp_path).release()
    assert "is not the app's" not in caplog.text


def test_the_app_gets_the_path_of_the_manifest_with_addresses(tmp_path: Path) -> None:
    folder = unpacked(tmp_path / "folder")
    found = prepared(tmp_path, by_hand=folder, FLASH_ENVIRONMENT_ID="e")
    path = Path(found.variables["FLASH_MANIFEST_PATH"])
    assert json.loads(path.read_text())["resources_endpoints"] == {}
    assert found.neighbours is not None
    assert prepared(tmp_path, by_hand=folder).neighbours is None
