import os
from pathlib import Path

import pytest

from flashpool.frontends.apps.artifacts import app_store
from flashpool.frontends.apps.artifacts.app_link import switch_link


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "local" / "apps" / ("a" * 64)
    path.mkdir(parents=True)
    return path


def names(link: Path) -> list[str]:
    return sorted(name for name in os.listdir(link.parent) if name != "local")


def test_a_link_is_created(tmp_path: Path, target: Path) -> None:
    link = tmp_path / "app"
    assert switch_link(link, target) == ""
    assert os.readlink(link) == str(target)
    assert switch_link(link, target) == ""
    assert names(link) == ["app"]
    assert switch_link(tmp_path / "deeper" / "app", target) == ""


def test_an_empty_directory_is_replaced_by_the_link(tmp_path: Path, target: Path) -> None:
    link = tmp_path / "app"
    link.mkdir()
    assert switch_link(link, target) == ""
    assert os.readlink(link) == str(target)


def test_a_link_of_flashpool_is_switched(tmp_path: Path, target: Path) -> None:
    link = tmp_path / "app"
    link.symlink_to(f"/elsewhere/apps/{'b' * 64}")  # leads to a store that no longer exists
    assert switch_link(link, target) == ""
    assert link.resolve() == target


def test_links_files_and_directories_of_others_are_left_alone(tmp_path: Path, target: Path) -> None:
    link = tmp_path / "app"
    link.symlink_to("/srv/app")
    assert "another's link" in switch_link(link, target)
    assert os.readlink(link) == "/srv/app"
    link.unlink()
    link.write_text("x")
    assert "is a file" in switch_link(link, target)
    link.unlink()
    link.mkdir()
    (link / "main.py").touch()
    assert "a directory with files" in switch_link(link, target)
    assert os.listdir(link) == ["main.py"]


def test_a_directory_that_appears_meanwhile_is_left_alone(
    tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = tmp_path / "app"
    replace = Path.replace

    def late(self: Path, other: Path) -> Path:
        link.mkdir()
        return replace(self, other)

    monkeypatch.setattr(Path, "replace", late)
    assert "cannot be made a link" in switch_link(link, target)
    assert names(link) == ["app"]
    assert not link.is_symlink()


def test_temporary_links_of_dead_processes_are_removed(tmp_path: Path, target: Path) -> None:
    link = tmp_path / "app"
    mine = f".app.flashpool-{app_store.holder_name()}"
    for name in (".app.flashpool-host-1-1-dead", mine):
        (tmp_path / name).symlink_to(target)
    (tmp_path / ".app.flashpool-host-2-2-file").touch()
    assert switch_link(link, target) == ""
    assert names(link) == sorted([".app.flashpool-host-2-2-file", mine, "app"])


def test_a_link_that_cannot_be_created_is_reported(tmp_path: Path, target: Path) -> None:
    (tmp_path / "file").touch()
    assert "cannot be made a link" in switch_link(tmp_path / "file" / "app", target)
