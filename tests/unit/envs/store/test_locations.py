"""Where environments lie: what is chosen by itself, what a volume that is no use leaves."""

import os
from pathlib import Path
from typing import Any

import pytest

from flashpool.envs import EnvSettings, StoreUnavailable
from flashpool.envs.store import locations
from flashpool.envs.store.locations import choose_places


@pytest.fixture
def on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Settings with a volume on a file system of some type."""
    volume = tmp_path / "volume"
    volume.mkdir()
    monkeypatch.setattr(locations, "DEFAULT_VOLUME", tmp_path / "runpod-volume")

    def settings(kind: str = "ext4", **changes: Any) -> EnvSettings:
        monkeypatch.setattr(locations, "file_system_of", lambda _path: kind)
        return EnvSettings(**{"volume": volume, "local": tmp_path / "local", **changes})

    return settings


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
def test_the_file_system_decides(
    kind: str, mode: str, expected: str, on: Any, tmp_path: Path
) -> None:
    found = choose_places(on(kind, mode=mode))
    assert found.mode == expected
    assert found.shared == tmp_path / "volume" / "flashpool"
    local = tmp_path / ("volume" if expected == "volume" else "local") / "flashpool"
    assert found.local == local
    assert found.cache.parent == local, "uv links out of its cache"


def test_without_a_volume_there_is_local_disk(on: Any, tmp_path: Path) -> None:
    found = choose_places(on(volume=None))
    assert (found.mode, found.local) == ("local", tmp_path / "local" / "flashpool")
    assert found.note == "no volume is mounted"
    (tmp_path / "runpod-volume").mkdir()
    assert choose_places(on(volume=None)).shared == tmp_path / "runpod-volume" / "flashpool"


def test_a_volume_that_is_no_directory_is_told(
    on: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    found = choose_places(on(volume=tmp_path / "file"))
    assert (found.mode, found.local) == ("local", tmp_path / "local" / "flashpool")
    assert "cannot be written" in caplog.text


def test_a_cache_is_not_trusted_with_a_key(on: Any, tmp_path: Path) -> None:
    found = choose_places(on(volume_key=b"key"))
    assert found.local == tmp_path / "volume" / "flashpool"
    assert found.cache == tmp_path / "local" / "flashpool" / "cache"


def test_nowhere_at_all_says_what_to_do(on: Any, tmp_path: Path) -> None:
    (tmp_path / "local").touch()
    with pytest.raises(StoreUnavailable) as caught:
        choose_places(on(volume=tmp_path / "local"))
    assert "FLASHPOOL_LOCAL_DIR" in caught.value.advice
    assert os.fspath(tmp_path / "local") in caught.value.what
