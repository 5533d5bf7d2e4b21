"""Stand-ins access a volume that may hang; the results are the same as in this process."""

import contextlib
import errno
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from flashpool.envs.archives.archive import _writing
from flashpool.envs.errors import Tampered
from flashpool.envs.store import apart, manifest
from flashpool.envs.store.layout import Store, read_file, read_json, write_json
from flashpool.envs.store.volume_files import Folder, move
from support.apart_functions import refuse, where, who


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # The list of kept-apart roots is global: without this, other tests would use stand-ins too.
    monkeypatch.setattr(apart, "_roots", apart._roots)
    yield
    apart.end_idle_stand_ins()
    assert stand_ins_of_this() == []


def stand_ins_of_this() -> list[psutil.Process]:
    """Stand-ins among this process's children; other tests may have children here as well."""
    return [one for one in psutil.Process().children() if "apart_program" in str(_command(one))]


def _command(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        return process.cmdline()
    return []


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    apart.keep_apart(tmp_path)
    return tmp_path


def test_stand_ins_access_the_volume_and_this_process_other_paths(volume: Path) -> None:
    assert where(volume / "file") != os.getpid()
    assert where(volume) != os.getpid()
    assert where(volume.parent / "file") == os.getpid()
    assert where(volume.with_name(f"{volume.name}-too")) == os.getpid()


def test_stand_ins_are_reused_and_several_run_at_once(volume: Path) -> None:
    assert where(volume) == where(volume)
    together = threading.Barrier(3)
    seen: set[int] = set()

    def ask() -> None:
        with apart.receiving(who, volume) as stream:
            together.wait(20)
            seen.add(int(stream.read()))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 3
    assert len(stand_ins_of_this()) <= 2


def test_errors_of_a_stand_in_are_raised_here(volume: Path) -> None:
    for problem in (Tampered("it differs", advice="look"), OSError(errno.ESTALE, "stale", "x")):
        with pytest.raises(type(problem)) as raised:
            where(volume, fails=problem)
        assert str(raised.value) == str(problem)
    assert isinstance(where(volume), int)


def test_log_records_of_a_stand_in_arrive_here(
    volume: Path, caplog: pytest.LogCaptureFixture
) -> None:
    where(volume / "there")
    assert [(one.name, one.getMessage()) for one in caplog.records] == [("volume", "it is there")]


def test_a_killed_stand_in_fails_its_current_operation_only(volume: Path) -> None:
    (volume / "large").write_bytes(bytes(8 << 20))
    killed = where(volume)
    kill(killed)
    assert where(volume) != killed, "nobody waited for it"
    with Folder(volume).reading("large", 16 << 20) as file:
        [process] = stand_ins_of_this()
        kill(process.pid)
        with pytest.raises(OSError, match="exited"):
            file.read()
    assert isinstance(where(volume), int)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def test_other_processes_of_the_user_cannot_inspect_a_stand_in(volume: Path) -> None:
    if os.geteuid() == 0:
        assert Path(f"/proc/{where(volume)}/environ").stat().st_uid == 0
    with pytest.raises(OSError, match="exited"):
        where(volume, fails=OSError("exited"))


def test_leaving_a_stream_early_ends_its_stand_in(volume: Path) -> None:
    (volume / "large").write_bytes(bytes(5 << 20))
    with Folder(volume).reading("large", 10 << 20) as file:
        assert len(file.read(10)) == 10
    assert stand_ins_of_this() == []


def test_json_is_written_and_read_through_a_stand_in(volume: Path) -> None:
    path = volume / "requests" / "one.json"
    write_json(path, {"digest": "ü"})
    assert read_json(path) == {"digest": "ü"}
    assert os.listdir(path.parent) == ["one.json"]
    assert read_json(volume / "none.json") is None


def test_streams_are_written_and_read_through_a_stand_in(volume: Path) -> None:
    content = os.urandom(3 << 20)
    with _writing(volume / "file") as file:
        file.write(content)
    assert (volume / "file").read_bytes() == content
    with Folder(volume).reading("file", 4 << 20) as file:
        assert file.read() == content


def test_no_descriptor_of_the_volume_is_open_here(volume: Path) -> None:
    (volume / "file").write_bytes(b"content")
    with Folder(volume).reading("file", 100):
        opened = [
            os.readlink(f"/proc/self/fd/{fd}")
            for fd in os.listdir("/proc/self/fd")
            if os.path.lexists(f"/proc/self/fd/{fd}")
        ]
        assert not [path for path in opened if path.startswith(str(volume))]


def test_pipes_directories_and_large_files_are_not_read(volume: Path) -> None:
    os.mkfifo(volume / "pipe")
    (volume / "large").write_bytes(b"x" * 100)
    (volume / "folder").mkdir()
    for name in ("pipe", "large", "folder"):
        with pytest.raises(OSError, match="not a file of flashpool"):
            read_file(volume / name, 10)
        with (
            pytest.raises(OSError, match="not a file of flashpool"),
            Folder(volume).reading(name, 10),
        ):
            pass


def test_errors_keep_their_errno(volume: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_file(volume / "none", 10)
    with pytest.raises(FileNotFoundError), _writing(volume / "no-folder" / "file") as file:
        file.write(b"x" * (1 << 20))


def test_a_full_volume_raises_enospc() -> None:
    apart.keep_apart(Path("/dev/full"))
    with pytest.raises(OSError, match="space") as raised, _writing(Path("/dev/full")) as file:
        file.write(b"content")
    assert raised.value.errno == errno.ENOSPC


def test_a_stand_in_follows_no_links(volume: Path) -> None:
    (volume / "theirs").write_bytes(b"theirs")
    (volume / "link").symlink_to(volume / "theirs")
    folder = Folder(volume)
    with pytest.raises(OSError, match="levels of symbolic links"):
        folder.read("link", 100)
    folder.write("link", [b"ours"])
    assert not (volume / "link").is_symlink()
    assert (volume / "theirs").read_bytes() == b"theirs"


def test_a_store_works_through_a_stand_in(volume: Path) -> None:
    store = Store(volume / "store")
    store.prepare()
    claims = Folder(store.root, "claims")
    claims.link("a" * 40, "somebody")
    assert claims.link_of("a" * 40) == "somebody"
    assert claims.link_of("b" * 40) is None
    assert [owner for _, owner in store.claims()] == ["somebody"]
    with store.scratch("me") as scratch:
        write_json(scratch / manifest.FACTS, {})
        assert store.publish(scratch, store.environment("c" * 40))
    assert store.digests() == ["c" * 40]
    move(store.environment("c" * 40), store.trash / "c")
    assert store.empty_trash() == 1
    assert Folder(store.root, "claims").files(str) == []


def test_times_come_from_the_file_systems_clock(volume: Path) -> None:
    folder = Folder(volume)
    folder.touch("mark")
    (volume / "link").symlink_to("mark")
    os.utime(volume / "mark", (1, 1))
    folder.touch("link")
    assert not (volume / "link").is_symlink()
    assert (volume / "mark").stat().st_mtime == 1
    folder.touch("mark")
    assert abs((volume / "mark").stat().st_mtime - folder.now()) < 60
    assert sorted(os.listdir(volume)) == ["link", "mark"]


def test_a_receiver_that_fails_still_reads_all_that_is_sent(volume: Path) -> None:
    with pytest.raises(OSError, match="no more"), apart.sending(refuse, volume) as stream:
        for _ in range(20):
            stream.write(bytes(1 << 20))
    assert isinstance(where(volume), int)
