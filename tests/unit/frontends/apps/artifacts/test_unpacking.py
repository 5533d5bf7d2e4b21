import errno
import gzip
import os
import pickle
import tarfile
import threading
from pathlib import Path

import pytest

from flashpool.frontends.apps.artifacts import app_store, unpacking
from flashpool.frontends.apps.artifacts.app_store import AppStore
from flashpool.frontends.apps.artifacts.tar_reader import ArchiveLimits
from flashpool.frontends.apps.artifacts.unpacking import unpack
from flashpool.frontends.apps.errors import (
    AppError,
    ArtifactIncomplete,
    ArtifactMissing,
    ArtifactRefused,
    UnpackingFailed,
    UnpackingStopped,
)
from support.archives import FORMATS, file, folder, special, tar, write_archive

LIMITS = ArchiveLimits(max_mb=200, max_files=100, max_ratio=100)
LONG = "/".join(["d" * 60] * 4) + "/f.py"


@pytest.fixture
def store(tmp_path: Path) -> AppStore:
    return AppStore(tmp_path / "apps")


def tree(path: Path) -> dict[str, bytes]:
    return {
        str(each.relative_to(path)): each.read_bytes() for each in path.rglob("*") if each.is_file()
    }


def unpacked(store: AppStore, archive: Path, limits: ArchiveLimits = LIMITS) -> Path:
    lease = unpack(archive, store, limits, threading.Event())
    lease.release()
    return lease.path


def refused(store: AppStore, archive: Path, limits: ArchiveLimits = LIMITS) -> AppError:
    """Return the error, after checking that nothing was written inside or outside the store."""
    outside = set(store.root.parent.rglob("*"))
    with pytest.raises(AppError) as caught:
        unpack(archive, store, limits, threading.Event())
    written = {path for path in store.root.parent.rglob("*") if path not in outside}
    assert {path.name for path in written} <= {
        "apps",
        ".env",
        ".lock",
        ".scratch",
        ".trash",
        ".users",
    }
    assert str(archive) in str(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again)) == (type(caught.value), str(caught.value))
    return caught.value


@pytest.mark.parametrize("kind", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("prefix", ["./", ""])
def test_files_and_directories_are_unpacked(
    store: AppStore, tmp_path: Path, kind: int, prefix: str
) -> None:
    large = os.urandom(3 << 20)
    members = [
        folder("./"),
        file(f"{prefix}a.py", b"A = 1\n"),
        folder(f"{prefix}empty"),
        file(f"{prefix}deep/er/b.txt", b""),
        file(f"{prefix}run.sh", b"#!/bin/sh\n", mode=0o4777),
        file(f"{prefix}large", large),
        file(f"{prefix}lärge.txt", b"u"),
    ]
    if kind != tarfile.USTAR_FORMAT:
        members.append(file(prefix + LONG, b"long"))
    archive = write_archive(tmp_path / "a.tar.gz", members, kind)
    path = unpacked(store, archive)
    assert path.parent == store.root
    found = tree(path)
    assert found.pop("large") == large
    assert found.pop(LONG, b"long") == b"long"
    assert found == {
        "a.py": b"A = 1\n",
        "deep/er/b.txt": b"",
        "run.sh": b"#!/bin/sh\n",
        "lärge.txt": b"u",
    }
    assert (path / "empty").is_dir()
    assert (path / "run.sh").stat().st_mode & 0o7777 == 0o755
    assert (path / "a.py").stat().st_mtime == 1_700_000_000


def test_concatenated_gzip_files_are_read_as_one(store: AppStore, tmp_path: Path) -> None:
    plain = tar([file("a", b"x" * 100_000), file("b", b"y")])
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(gzip.compress(plain[:50_000]) + gzip.compress(plain[50_000:]))
    assert set(tree(unpacked(store, archive))) == {"a", "b"}


def test_highly_compressed_content_is_unpacked_completely(store: AppStore, tmp_path: Path) -> None:
    zeros = b"\0" * (8 << 20)
    archive = write_archive(tmp_path / "a.tar.gz", [file("zeros", zeros), file("b", b"y")])
    assert tree(unpacked(store, archive)) == {"zeros": zeros, "b": b"y"}


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([file("../up")], "'../up', which leads outside"),
        ([file("a/../../up")], "leads outside"),
        ([file("./../up")], "leads outside"),
        ([folder("..")], "leads outside"),
        ([file("/etc/passwd2")], "'/etc/passwd2', an absolute path"),
        ([file("a//b")], "not a plain path"),
        ([file("a/./b")], "not a plain path"),
        ([special("link", tarfile.SYMTYPE, "/etc")], "'link', which is a symbolic link"),
        ([special("./link", tarfile.LNKTYPE, "a.py")], "'./link', which is a hard link"),
        ([special("disk", tarfile.BLKTYPE)], "'disk', which is a device"),
        ([special("tty", tarfile.CHRTYPE)], "'tty', which is a device"),
        ([special("pipe", tarfile.FIFOTYPE)], "'pipe', which is a FIFO"),
        ([special("odd", b"Z")], "'odd', which is of the unknown kind"),
        ([file("a"), file("./a")], "'./a' twice"),
        ([folder("a"), folder("a/")], "'a' twice"),
        ([folder("a"), file("a")], "'a' twice"),
        ([file("a/b"), file("a")], "'a' twice"),
        ([file("a"), file("a/b")], "'a/b', below a file"),
        ([file("a"), file("a/b/c")], "'a/b/c', below a file"),
        ([file("x" * 256)], "too long"),
        ([file("/".join("a" * 41))], "too long"),
        ([file(f"f{n}") for n in range(101)], "more than 100 files"),
        ([folder(f"f{n}") for n in range(101)], "more than 100 files"),
    ],
)
def test_a_bad_member_refuses_the_whole_archive(
    store: AppStore, tmp_path: Path, members: list[tuple[tarfile.TarInfo, bytes]], words: str
) -> None:
    archive = write_archive(tmp_path / "a.tar.gz", [file("first.py", b"1"), *members])
    error = refused(store, archive)
    assert isinstance(error, ArtifactRefused)
    assert not error.passes
    assert words in str(error)


def test_a_link_with_a_long_target_is_named(store: AppStore, tmp_path: Path) -> None:
    members = [special("link", tarfile.SYMTYPE, "far/" * 60)]
    archive = write_archive(tmp_path / "a.tar.gz", members, tarfile.GNU_FORMAT)
    assert "'link', which is a symbolic link" in str(refused(store, archive))


def test_a_sparse_file_is_refused(store: AppStore, tmp_path: Path) -> None:
    info, content = file("s", b"x")
    info.pax_headers = {"GNU.sparse.major": "1"}
    assert "sparse" in str(refused(store, write_archive(tmp_path / "a.tar.gz", [(info, content)])))


def test_the_unpacked_size_is_bounded(store: AppStore, tmp_path: Path) -> None:
    archive = tmp_path / "a.tar.gz"
    info = tarfile.TarInfo("zeros")
    info.size = 10 << 30
    with gzip.open(archive, "wb", compresslevel=1) as target:
        target.write(info.tobuf())
        for _ in range(150):
            target.write(b"\0" * (1 << 20))
    few = ArchiveLimits(max_mb=100, max_files=9, max_ratio=100_000)
    assert "more than 100 MiB (FLASHPOOL_ARTIFACT_MAX_MB)" in str(refused(store, archive, few))
    assert "100 times its size (FLASHPOOL_ARTIFACT_MAX_RATIO)" in str(refused(store, archive))


def test_an_endless_member_name_is_refused(store: AppStore, tmp_path: Path) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2 << 20
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(gzip.compress(info.tobuf() + b"a" * (2 << 20)))
    assert "without an end" in str(refused(store, archive))
    info.size = 512
    archive.write_bytes(gzip.compress((info.tobuf() + b"a" * 512) * 9))
    assert "without an end" in str(refused(store, archive))


def test_a_damaged_pax_record_is_reported(store: AppStore, tmp_path: Path) -> None:
    for record in (b"x path=a\n", b"99 path=a\n", b"9 pathaa\n"):
        info = tarfile.TarInfo("pax")
        info.type, info.size = tarfile.XHDTYPE, len(record)
        archive = tmp_path / "a.tar.gz"
        archive.write_bytes(
            gzip.compress(info.tobuf() + record.ljust(512, b"\0") + tar([file("a")]))
        )
        assert isinstance(refused(store, archive), ArtifactIncomplete)


@pytest.mark.parametrize("size", ["", "x", "-1", "99999999999999999999"])
def test_a_size_that_is_not_a_number_is_reported(
    store: AppStore, tmp_path: Path, size: str
) -> None:
    info, content = file("a", b"12345")
    info.pax_headers = {"size": size}
    archive = write_archive(tmp_path / "a.tar.gz", [(info, content)])
    if size == "":
        assert tree(unpacked(store, archive)) == {"a": b"12345"}
    else:
        assert "not a number" in str(refused(store, archive))


def test_a_damaged_or_incomplete_archive_may_be_retried(store: AppStore, tmp_path: Path) -> None:
    whole = gzip.compress(tar([file("a", os.urandom(300_000))]))
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 0xFF
    for content, words in [
        (b"", "ends too early"),
        (b"hello", "not a gzip file"),
        (gzip.compress(b"hello"), "ends too early"),
        (gzip.compress(b"hello" * 1000), "not a tar"),
        (whole[:-9], "ends too early"),
        (whole[:5000], "ends too early"),
        (bytes(damaged), "damaged"),
    ]:
        archive = tmp_path / "a.tar.gz"
        archive.write_bytes(content)
        error = refused(store, archive)
        assert isinstance(error, ArtifactIncomplete)
        assert error.passes
        assert words in str(error)


def test_a_missing_archive_lists_the_directory(store: AppStore, tmp_path: Path) -> None:
    (tmp_path / "artefact.tar.gz").touch()
    error = refused(store, tmp_path / "artifact.tar.gz")
    assert isinstance(error, ArtifactMissing)
    assert "holds artefact.tar.gz" in str(error)
    assert "FLASH_BUILD_ARTIFACT_PATH" in str(error)
    assert "cannot be listed" in str(refused(store, tmp_path / "no" / "artifact.tar.gz"))


def test_a_pipe_in_place_of_the_archive_does_not_block(store: AppStore, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in str(refused(store, tmp_path / "pipe"))
    (tmp_path / "folder").mkdir()
    assert "not a regular file" in str(refused(store, tmp_path / "folder"))


def test_an_app_is_unpacked_once_and_keeps_its_own_files(store: AppStore, tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "a.tar.gz", [file("a.py", b"1")])
    path = unpacked(store, archive)
    (path / "state.txt").write_text("mine")
    assert unpacked(store, archive) == path
    assert tree(path) == {"a.py": b"1", "state.txt": b"mine"}


def test_a_new_artifact_replaces_all_of_the_old_one(store: AppStore, tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "a.tar.gz", [file("old.py"), file("both.py", b"1")])
    old = unpack(archive, store, LIMITS, threading.Event())
    write_archive(archive, [file("both.py", b"2")])
    new = unpack(archive, store, LIMITS, threading.Event())
    assert tree(new.path) == {"both.py": b"2"}
    assert tree(old.path) == {"old.py": b"", "both.py": b"1"}  # it is used
    old.release()
    old.release()
    assert store.sweep(keep=new.digest) == [old.digest]
    assert not old.path.exists()
    new.release()
    assert list(store.trash.iterdir()) == list(store.users_root.iterdir()) == []


def test_an_archive_that_changes_while_it_is_read_is_refused(
    store: AppStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = write_archive(tmp_path / "a.tar.gz", [file("a", b"1")])
    monkeypatch.setattr(unpacking, "_digest", lambda *_: "0" * 64)
    assert isinstance(refused(store, archive), ArtifactIncomplete)


def test_a_full_disk_leaves_nothing(
    store: AppStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = write_archive(tmp_path / "a.tar.gz", [file("a", b"1")])

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(unpacking, "write_tree", full)
    error = refused(store, archive)
    assert isinstance(error, UnpackingFailed)
    assert "No space left" in str(error)
    assert "FLASHPOOL_LOCAL_DIR" in str(error)


def test_a_store_that_cannot_be_created_is_reported(tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "a.tar.gz", [file("a", b"1")])
    (tmp_path / "apps").touch()
    with pytest.raises(UnpackingFailed, match="FLASHPOOL_LOCAL_DIR"):
        unpack(archive, AppStore(tmp_path / "apps"), LIMITS, threading.Event())


def test_the_stop_event_stops_unpacking(store: AppStore, tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "a.tar.gz", [file("a", b"1")])
    stop = threading.Event()
    stop.set()
    with pytest.raises(UnpackingStopped):
        unpack(archive, store, LIMITS, stop)
    assert store.digests() == []


def test_leftovers_of_dead_processes_are_swept_and_others_stay(store: AppStore) -> None:
    store.prepare()
    mine, host = app_store.holder_name(), app_store.this_host()
    for name in (f"{host}-1-1-abcd.app", "elsewhere-1-1-abcd.app", "nonsense", f"{mine}.app"):
        (store.scratch_root / name).mkdir()
    digest = "a" * 64
    store.app(digest).mkdir()
    (store.users_root / f"{digest}.{host}-1-1-abcd").touch()
    (store.trash / "old").mkdir()
    assert store.sweep(keep="b" * 64) == [digest]
    assert [path.name for path in store.scratch_root.iterdir()] == [f"{mine}.app"]
    assert list(store.trash.iterdir()) == list(store.users_root.iterdir()) == []


def test_an_app_marked_as_used_during_removal_is_restored(
    store: AppStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.prepare()
    digest = "a" * 64
    store.app(digest).mkdir()
    answers = iter([[], ["somebody"]])
    monkeypatch.setattr(AppStore, "users", lambda *_: next(answers))
    assert store.sweep(keep="") == []
    assert store.has(digest)


def test_a_lock_held_in_another_container_keeps_the_app(store: AppStore) -> None:
    store.prepare()
    digest = "a" * 64
    store.app(digest).mkdir()
    mark = store.users_root / f"{digest}.elsewhere-1-1-abcd"
    handle = os.open(mark, os.O_RDWR | os.O_CREAT)
    assert app_store._try_lock(handle)
    assert store.sweep(keep="") == []
    os.close(handle)
    assert store.sweep(keep="") == [digest]


def test_waiting_for_the_stores_lock_is_bounded(
    store: AppStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store.prepare()
    monkeypatch.setattr(app_store, "_PATIENCE_S", 0.2)
    with store.lock(threading.Event()) as held:
        assert held
        with store.lock(threading.Event()) as second:
            assert not second
    assert "continuing without the lock" in caplog.text
    stop = threading.Event()
    stop.set()
    with store.lock(threading.Event()), store.lock(stop) as third:
        assert not third
