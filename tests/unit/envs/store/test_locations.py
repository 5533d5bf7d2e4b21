"""Where environments are kept: the automatic choice, and fallbacks without a usable volume."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flashpool.envs import EnvSettings, StoreUnavailable
from flashpool.envs.store import locations
from flashpool.envs.store.apart import end_idle_stand_ins
from flashpool.envs.store.locations import choose_places


@pytest.fixture
def on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Make settings with a volume on a file system of the given type."""
    volume = tmp_path / "volume"
    volume.mkdir()
    monkeypatch.setattr(locations, "DEFAULT_VOLUME", tmp_path / "runpod-volume")

    def settings(kind: str = "ext4", **changes: Any) -> EnvSettings:
        monkeypatch.setattr(locations, "file_system_of", lambda _path: kind)
        return EnvSettings(**{"volume": volume, "local": tmp_path / "local", **changes})

    yield settings
    end_idle_stand_ins()


@pytest.mark.parametrize(
    ("kind", "mode", "expected"),
    [
        ("ext4", "auto", "volume"),
        ("xfs", "auto", "volume"),
        ("nfs4", "auto", "archive"),
        ("fuse.juicefs", "auto", "archive"),
        ("fuse", "auto", "archive"),
        ("nfs4", "volume", "volume"),
        ("ext4", "archive", "archive"),
    ],
)
def test_the_file_system_decides_the_mode(
    kind: str, mode: str, expected: str, on: Any, tmp_path: Path
) -> None:
    found = choose_places(on(kind, mode=mode))
    assert found.mode == expected
    assert found.shared == tmp_path / "volume" / "flashpool"
    local = tmp_path / ("volume" if expected == "volume" else "local") / "flashpool"
    assert found.local == local
    assert found.cache.parent == local, "uv links out of its cache"


def test_without_a_volume_local_disk_is_used(on: Any, tmp_path: Path) -> None:
    found = choose_places(on(volume=None))
    assert (found.mode, found.local) == ("local", tmp_path / "local" / "flashpool")
    assert found.note == "no volume is mounted"
    (tmp_path / "runpod-volume").mkdir()
    assert choose_places(on(volume=None)).shared == tmp_path / "runpod-volume" / "flashpool"


def test_a_volume_that_is_not_a_directory_is_logged(
    on: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    found = choose_places(on(volume=tmp_path / "file"))
    assert (found.mode, found.local) == ("local", tmp_path / "local" / "flashpool")
    assert "cannot be written" in caplog.text


def test_with_a_key_the_cache_is_on_local_disk(on: Any, tmp_path: Path) -> None:
    found = choose_places(on(volume_key=b"key"))
    assert found.local == tmp_path / "volume" / "flashpool"
    assert found.cache == tmp_path / "local" / "flashpool" / "cache"


def test_an_error_says_what_to_do_when_no_place_can_be_written(on: Any, tmp_path: Path) -> None:
    (tmp_path / "local").touch()
    with pytest.raises(StoreUnavailable) as caught:
        choose_places(on(volume=tmp_path / "local"))
    assert "FLASHPOOL_LOCAL_DIR" in caught.value.advice
    assert os.fspath(tmp_path / "local") in caught.value.what


@pytest.fixture
def fallbacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on: Any) -> Any:
    """Choose places where the user's cache cannot be created and only /tmp remains."""
    (tmp_path / "home").touch()
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(locations.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    return lambda: choose_places(on(volume=None, local=None))


def test_a_default_directory_is_private_to_the_user(fallbacks: Any, tmp_path: Path) -> None:
    local = fallbacks().local
    assert local == tmp_path / "tmp" / "flashpool"
    assert local.stat().st_mode & 0o777 == 0o700
    local.chmod(0o755)  # the mode that earlier versions used
    assert fallbacks().local == local
    assert local.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda root: root.chmod(0o777), "other users may write to it (mode 777)"),
        (lambda root: root.chmod(0o775), "other users may write to it (mode 775)"),
        pytest.param(
            lambda root: os.chown(root, 12345, -1),
            "it belongs to another user (12345)",
            marks=pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
        ),
        pytest.param(
            lambda root: (
                root.rename(root.with_name("elsewhere")),
                root.symlink_to("elsewhere"),
                os.lchown(root, 12345, -1),
            ),
            "it is a link that another user made",
            marks=pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
        ),
    ],
    ids=["anybody", "a group", "another user", "a link of another user"],
)
def test_a_default_directory_that_others_control_is_refused(
    fallbacks: Any, tmp_path: Path, spoil: Any, words: str
) -> None:
    root = tmp_path / "tmp" / "flashpool"
    root.mkdir()
    spoil(root)
    with pytest.raises(StoreUnavailable) as caught:
        fallbacks()
    assert words in caught.value.what
    assert "FLASHPOOL_LOCAL_DIR" in caught.value.advice


def test_a_link_of_the_same_user_is_followed(fallbacks: Any, tmp_path: Path) -> None:
    (tmp_path / "large-disk").mkdir()
    (tmp_path / "tmp" / "flashpool").symlink_to(tmp_path / "large-disk")
    assert fallbacks().local == tmp_path / "tmp" / "flashpool"


def test_a_configured_directory_may_be_shared(on: Any, tmp_path: Path) -> None:
    root = tmp_path / "local" / "flashpool"
    root.mkdir(parents=True)
    root.chmod(0o775)
    assert choose_places(on(volume=None)).local == root
