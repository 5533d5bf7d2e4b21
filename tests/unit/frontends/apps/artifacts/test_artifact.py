import asyncio
import errno
import os
import shutil
from itertools import islice
from pathlib import Path

import pytest

from flashpool.envs.store.layout import Store
from flashpool.frontends.apps.artifacts.app_store import AppStore
from flashpool.frontends.apps.artifacts.artifact import (
    AppFolder,
    ArtifactSource,
    back_off,
    mark_of,
    obtain,
    store_of,
)
from flashpool.frontends.apps.errors import (
    AppDirectoryRefused,
    ArtifactIncomplete,
    ArtifactMissing,
    ArtifactRefused,
    UnpackingFailed,
)
from flashpool.frontends.settings.table import Settings
from support.archives import file, special, write_archive


class Place:
    """Paths of an archive, and a server that looks for an archive there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.archive = folder / "root" / "artifact.tar.gz"
        self.archive.parent.mkdir()
        self.variables = {
            "FLASH_BUILD_ARTIFACT_PATH": str(self.archive),
            "RUNPOD_APP_DIR": str(folder / "app"),
            "FLASHPOOL_LOCAL_DIR": str(folder / "local"),
            "FLASHPOOL_ARTIFACT_WAIT_S": "60",
        }

    def obtain(self, **variables: str) -> AppFolder:
        return asyncio.run(self.obtaining(**variables))

    async def obtaining(self, **variables: str) -> AppFolder:
        settings = Settings.from_environ({**self.variables, **variables})
        found = await obtain(ArtifactSource.of(settings), lambda: store_of(settings))
        found.release()
        return found


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_an_app_is_unpacked_and_linked(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    write_archive(place.archive, [file("./a.py", b"1")])
    found = place.obtain()
    assert found.path == place.folder / "local" / "flashpool" / "apps" / found.digest
    assert (place.folder / "app" / "a.py").read_text() == "1"
    assert (
        f"the app's working directory is {found.path}, and {place.folder}/app leads" in caplog.text
    )


def test_flashpools_variables_override_the_platforms(place: Place) -> None:
    write_archive(place.folder / "ours.tar.gz", [file("ours.py")])
    write_archive(place.archive, [file("theirs.py")])
    found = place.obtain(
        FLASHPOOL_ARTIFACT=str(place.folder / "ours.tar.gz"),
        FLASHPOOL_APP_DIR=str(place.folder / "elsewhere"),
    )
    assert os.listdir(found.path) == ["ours.py"]
    assert not (place.folder / "app").exists()
    assert (place.folder / "elsewhere").resolve() == found.path


def test_a_platforms_variable_that_is_wrong_is_named(place: Place) -> None:
    with pytest.raises(ValueError, match=r"FLASHPOOL_APP_DIR='x' \(from RUNPOD_APP_DIR\)"):
        place.obtain(RUNPOD_APP_DIR="x")


def test_a_directory_with_files_stays_and_the_log_says_so(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    write_archive(place.archive, [file("a.py")])
    (place.folder / "app").mkdir()
    (place.folder / "app" / "b.py").touch()
    found = place.obtain()
    assert os.listdir(place.folder / "app") == ["b.py"]
    assert f"{place.folder}/app is a directory with files: it stays as it is" in caplog.text
    assert f"the app's working directory is {found.path}\n" in caplog.text + "\n"


@pytest.mark.parametrize("yes", ["1", "true", "yes"])
def test_an_unpacked_app_is_served_when_unpacking_is_disabled(place: Place, yes: str) -> None:
    write_archive(place.archive, [file("a.py")])
    with pytest.raises(AppDirectoryRefused, match="FLASH_DISABLE_UNPACK") as caught:
        place.obtain(FLASH_DISABLE_UNPACK=yes)
    assert str(place.folder / "app") in str(caught.value)
    (place.folder / "app").mkdir()
    found = place.obtain(FLASH_DISABLE_UNPACK=yes)
    assert (found.path, found.digest) == (place.folder / "app", "")
    assert not (place.folder / "local").exists()


def test_an_archive_that_arrives_late_is_waited_for(place: Place) -> None:
    async def main() -> AppFolder:
        waiting = asyncio.ensure_future(place.obtaining())
        await asyncio.sleep(0.3)
        assert not waiting.done()
        whole = write_archive(place.folder / "whole.tar.gz", [file("a.py", os.urandom(10_000))])
        place.archive.write_bytes(whole.read_bytes()[:5000])
        await asyncio.sleep(0.5)
        assert not waiting.done()
        shutil.copyfile(whole, place.archive)
        return await waiting

    assert os.listdir(asyncio.run(main()).path) == ["a.py"]


def test_the_error_after_waiting_names_the_setting(place: Place) -> None:
    with pytest.raises(ArtifactMissing) as caught:
        place.obtain(FLASHPOOL_ARTIFACT_WAIT_S="0.2")
    for words in (str(place.archive), "is empty", "FLASHPOOL_ARTIFACT", "waited 0.2 s"):
        assert words in str(caught.value)
    place.archive.write_bytes(b"no archive")
    with pytest.raises(ArtifactIncomplete, match=r"not a gzip file.*waited 0\.2 s"):
        place.obtain(FLASHPOOL_ARTIFACT_WAIT_S="0.2")
    with pytest.raises(ArtifactIncomplete, match="not a gzip file") as at_once:
        place.obtain(FLASHPOOL_ARTIFACT_WAIT_S="0")
    assert "waited" not in str(at_once.value)


def test_a_refused_archive_is_not_waited_for(place: Place) -> None:
    write_archive(place.archive, [special("link", b"2", "/etc")])
    with pytest.raises(ArtifactRefused, match="symbolic link"):
        place.obtain(FLASHPOOL_ARTIFACT_WAIT_S="100000")


def test_a_cancelled_wait_leaves_nothing(place: Place) -> None:
    async def main() -> None:
        waiting = asyncio.ensure_future(place.obtaining())
        await asyncio.sleep(0.2)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(main())
    assert sorted(os.listdir(place.folder)) == ["local", "root"]
    assert os.listdir(place.folder / "local" / "flashpool") == []


def test_an_unwritable_local_directory_is_reported(place: Place) -> None:
    write_archive(place.archive, [file("a.py")])
    (place.folder / "local").write_text("in the way")
    with pytest.raises(UnpackingFailed, match="FLASHPOOL_LOCAL_DIR") as caught:
        place.obtain()
    assert caught.value.passes
    assert os.strerror(errno.ENOTDIR) in str(caught.value)


def test_the_back_off_grows_to_a_bound() -> None:
    waits = list(islice(back_off(), 10))
    assert waits[0] == 0.1
    assert waits[1] == 0.2
    assert waits[-1] == 5.0


def test_the_store_of_apps_is_outside_the_quota(tmp_path: Path) -> None:
    settings = Settings.from_environ({"FLASHPOOL_LOCAL_DIR": str(tmp_path)})
    apps = store_of(settings)
    assert isinstance(apps, AppStore)
    apps.prepare()
    environments = Store(tmp_path / "flashpool")
    environments.prepare()
    assert apps.root.parent == environments.root
    assert apps.root not in environments.parts()
    assert environments.scratch_root in environments.parts()


def test_the_mark_of_an_artifact_changes_with_each_write(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar.gz"
    absent = mark_of(archive)
    archive.write_bytes(b"one")
    first = mark_of(archive)
    assert first != absent
    assert mark_of(archive) == first
    (tmp_path / "b").write_bytes(b"other")
    (tmp_path / "b").replace(archive)
    assert mark_of(archive) != first
    folder = tmp_path / "app"
    folder.mkdir()
    empty = mark_of(folder)
    (folder / "flash_manifest.json").write_text("{")
    broken = mark_of(folder)
    assert broken != empty
    (folder / "flash_manifest.json").write_text("{}")
    assert mark_of(folder) != broken
