"""Runs of inject.sh: all sources of the tarball, all download tools, and all failures.

The tools that an image has are those on a PATH made for the test. The tarball holds a bootstrap.sh that
says what it was started with, and a file whose name begins with a dot.
"""

import contextlib
import hashlib
import http.server
import io
import os
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from flashpool.frontends.injection import build_injection_cmd
from support import wants
from support.small_disk import filled, small_disk

#: Programs that every image with a shell has: Debian's essential packages.
ESSENTIAL: Final = (
    *(
        "sh",
        "tar",
        "gzip",
        "dd",
        "cut",
        "cp",
        "mv",
        "rm",
        "mkdir",
        "mktemp",
        "dirname",
        "uname",
        "find",
    ),
    *("sha256sum", "env", "cat", "sleep"),
)
BOOTSTRAP: Final = """#!/bin/sh
echo "started $(cat "$(dirname "$0")/.version") $*"
"""


def make_tarball(path: Path, version: str, bootstrap: str | None = BOOTSTRAP) -> str:
    """Make a tarball; return it and its SHA-256."""
    with tarfile.open(path, "w:gz") as archive:
        for name, text in (("bootstrap.sh", bootstrap), (".version", version)):
            if text is not None:
                member = tarfile.TarInfo(name)
                member.size, member.mode = len(text), 0o755
                archive.addfile(member, io.BytesIO(text.encode()))
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass
class Container:
    """An image's tools, a container's own disk, and a volume."""

    folder: Path
    tools: tuple[str, ...] = ()
    volume: Path | None = None
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def path(self) -> Path:
        folder = self.folder / "bin"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in (*ESSENTIAL, *self.tools):
            found = sys.executable if name.startswith("python") else wants.program(name)
            (folder / name).symlink_to(found)
        return folder

    def popen(self, url: str, sha256: str = "", version: str = "1.0", **options: Any) -> Any:
        environ = {
            "PATH": str(self.path()),
            "FLASH_WORKER_DIR": str(self.home),
            "FLASHPOOL_VOLUME": str(self.volume or self.folder / "no volume"),
            "no_proxy": "127.0.0.1",
            **self.variables,
        }
        command = build_injection_cmd(url=url, sha256=sha256, version=version, environ=environ)
        return subprocess.Popen(
            ["/bin/sh", "-c", f"exec {command} an argument"],
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **options,
        )

    def start(self, *arguments: str) -> "tuple[int, str, str]":
        process = self.popen(*arguments)
        out, err = process.communicate(timeout=60)
        return process.returncode, out.strip(), err

    def left(self) -> list[str]:
        """Return the names of scratch folders and unfinished files."""
        there = [*self.home.glob(".*"), *(self.volume or self.folder).rglob("*.part")]
        return [path.name for path in there]


@pytest.fixture
def box(tmp_path: Path) -> Container:
    return Container(tmp_path / "container")


@pytest.fixture
def tarball(tmp_path: Path) -> tuple[Path, str]:
    path = tmp_path / "worker.tar.gz"
    return path, make_tarball(path, "one")


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        super().do_GET()


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Any]:
    folder = tmp_path / "web"
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder))
    server.asked = []  # type: ignore[attr-defined]
    server.folder = folder  # type: ignore[attr-defined]
    server.url = f"http://127.0.0.1:{server.server_port}"  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def http_allowed(box: Container) -> Container:
    box.variables["FLASH_WORKER_ALLOW_HTTP"] = "1"
    return box


def test_a_local_file_is_unpacked_once_and_started(box, tarball):
    path, sha = tarball
    for said in ("", "is unpacked in"):
        status, out, err = box.start(f"file://{path}", sha)
        assert (status, out) == (0, "started one an argument"), err
        assert said in err
    assert box.left() == []
    assert (box.home / sha / ".version").read_text() == "one"


def test_a_local_file_needs_no_hash(box, tarball):
    path, sha = tarball
    assert box.start(f"file://{path}")[:2] == (0, "started one an argument")
    assert (box.home / sha).is_dir()


@pytest.mark.parametrize("tool", ["curl", "wget", "python3", "python"])
def test_each_download_tool_works(box, tarball, web, tool):
    path, sha = tarball
    shutil.copy(path, web.folder)
    box.tools = (tool,)
    status, out, err = http_allowed(box).start(f"{web.url}/worker.tar.gz", sha)
    assert (status, out) == (0, "started one an argument"), err
    assert web.asked == ["/worker.tar.gz"]


def test_after_a_failure_the_next_download_tool_is_tried(box, tarball, web):
    path, sha = tarball
    shutil.copy(path, web.folder)
    box.tools = ("curl", "python3")
    # For example a curl without this network's proxy.
    box.variables["CURL_HOME"] = str(box.folder)
    box.folder.mkdir()
    (box.folder / ".curlrc").write_text("proxy = http://127.0.0.1:1\nnoproxy = none\n")
    status, out, err = http_allowed(box).start(f"{web.url}/worker.tar.gz", sha)
    assert (status, out) == (0, "started one an argument"), err
    assert "curl could not fetch" in err


def test_a_volume_saves_the_next_pod_the_download(box, tarball, web, tmp_path):
    path, sha = tarball
    shutil.copy(path, web.folder)
    box.tools, box.volume = ("curl",), tmp_path / "volume"
    box.volume.mkdir()
    assert http_allowed(box).start(f"{web.url}/worker.tar.gz", sha)[0] == 0
    other = http_allowed(Container(tmp_path / "other", tools=(), volume=box.volume))
    status, out, err = other.start(f"{web.url}/worker.tar.gz", sha)
    assert (status, out) == (0, "started one an argument"), err
    assert "from the volume" in err
    assert len(web.asked) == 1
    assert box.left() == other.left() == []


@pytest.mark.parametrize("spoil", ["other bytes", "directory", "pipe", "link", "huge"])
def test_files_on_the_volume_changed_by_calls_are_not_used(box, tarball, tmp_path, spoil):
    path, sha = tarball
    box.volume = tmp_path / "volume"
    cached = box.volume / "flashpool-worker" / f"{sha}.tar.gz"
    cached.parent.mkdir(parents=True)
    if spoil == "other bytes":
        make_tarball(cached, "evil")
    elif spoil == "directory":
        cached.mkdir()
    elif spoil == "pipe":
        os.mkfifo(cached)
    elif spoil == "link":
        cached.symlink_to("/dev/zero")
    else:
        with cached.open("wb") as file:
            file.truncate(110 << 20)
    status, out, err = box.start(f"file://{path}", sha)
    assert (status, out) == (0, "started one an argument"), err
    assert box.left() == []
    if spoil != "directory":
        assert hashlib.sha256(cached.read_bytes()).hexdigest() == sha


def test_a_volume_that_cannot_be_written_is_not_needed(box, tarball, tmp_path):
    path, sha = tarball
    box.volume = tmp_path / "volume"
    box.volume.mkdir()
    (box.volume / "flashpool-worker").write_text("a file in the way")
    status, out, err = box.start(f"file://{path}", sha)
    assert (status, out) == (0, "started one an argument")
    assert "is not writable" in err


def test_the_containers_own_copy_is_preferred_to_the_network(box, tarball):
    path, sha = tarball
    box.home.mkdir(parents=True)
    shutil.copy(path, box.home / f"{sha}.tar.gz")
    status, out, err = box.start("https://127.0.0.1:1/worker.tar.gz", sha)
    assert (status, out) == (0, "started one an argument"), err
    assert "from this container" in err


def test_versions_are_unpacked_side_by_side(box, tarball, tmp_path):
    old, old_sha = tarball
    new = tmp_path / "new.tar.gz"
    new_sha = make_tarball(new, "two")
    box.volume = tmp_path / "volume"
    box.volume.mkdir()
    for path, sha, version in ((old, old_sha, "one"), (new, new_sha, "two"), (old, old_sha, "one")):
        status, out, err = box.start(f"file://{path}", sha)
        assert (status, out) == (0, f"started {version} an argument"), err
    there = {path.name for path in (box.volume / "flashpool-worker").iterdir()}
    assert there == {f"{old_sha}.tar.gz", f"{new_sha}.tar.gz"}


def test_many_concurrent_starts_share_one_disk_and_volume(box, tarball, tmp_path):
    path, sha = tarball
    box.volume = tmp_path / "volume"
    box.volume.mkdir()
    box.path()
    box.path = lambda: box.folder / "bin"  # type: ignore[method-assign]
    processes = [box.popen(f"file://{path}", sha) for _ in range(6)]
    ended = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0] * 6, ended
    assert {out for out, _ in ended} == {"started one an argument\n"}
    assert sorted(path.name for path in (box.home / sha).iterdir()) == [".version", "bootstrap.sh"]
    assert box.left() == []


def test_leftovers_of_a_killed_start_are_removed_by_the_next(box, tarball, tmp_path):
    path, sha = tarball
    box.volume = tmp_path / "volume"
    box.volume.mkdir()
    folder = box.path()
    # A slow unpacking, killed half-way.
    (folder / "tar").unlink()
    (folder / "tar").write_text('#!/bin/sh\ntouch "$4/.half"; exec sleep 60\n')
    (folder / "tar").chmod(0o755)
    (folder / "touch").symlink_to(str(shutil.which("touch")))
    box.path = lambda: folder  # type: ignore[method-assign]
    process = box.popen(f"file://{path}", sha)
    from e2e.server import until

    until(lambda: list(box.home.glob(".scratch.*/tree/.half")))
    os.killpg(process.pid, 9)
    process.communicate()
    assert not (box.home / sha).exists()
    del box.path  # type: ignore[method-assign]
    status, out, err = box.start(f"file://{path}", sha)
    assert (status, out) == (0, "started one an argument"), err
    assert box.left() == []


def test_an_incomplete_folder_is_replaced(box, tarball):
    path, sha = tarball
    (box.home / sha).mkdir(parents=True)
    (box.home / sha / "junk").touch()
    assert box.start(f"file://{path}", sha)[0] == 0
    assert not (box.home / sha / "junk").exists()


def test_a_tarball_with_a_wrong_hash_is_refused(box, tarball, web, tmp_path):
    path, _ = tarball
    shutil.copy(path, web.folder)
    box.tools = ("curl",)
    status, out, err = http_allowed(box).start(f"{web.url}/worker.tar.gz", "0" * 64)
    assert (status, out) == (4, "")
    assert "should have 0000" in err
    status, _, err = box.start(f"file://{path}", "0" * 64)
    assert status == 4
    assert "should be 0000" in err
    assert box.left() == []


def test_a_tarball_that_cannot_be_downloaded_is_an_error(box, tarball, web):
    _, sha = tarball
    status, _, err = box.start("https://127.0.0.1:1/worker.tar.gz", sha)
    assert status == 3
    assert "no curl, wget or Python" in err
    box.tools = ("curl", "wget", "python3")
    for url in ("https://127.0.0.1:1/worker.tar.gz", f"{web.url}/not-there"):
        status, _, err = http_allowed(box).start(url, sha)
        assert status == 3
        assert "could not be fetched with curl wget python" in err
    status, _, err = box.start("file:///not/there.tar.gz", sha)
    assert (status, "no file /not/there.tar.gz" in err) == (3, True)
    assert box.left() == []


def test_a_missing_tool_for_hashes_is_an_error(box, tarball, monkeypatch):
    path, sha = tarball
    folder = box.path()
    (folder / "sha256sum").unlink()
    box.path = lambda: folder  # type: ignore[method-assign]
    status, _, err = box.start(f"file://{path}", sha)
    assert (status, "nothing can be verified" in err) == (3, True)
    for tool in ("shasum", "openssl", "python3"):
        if found := sys.executable if tool == "python3" else shutil.which(tool):
            (folder / tool).symlink_to(found)
            if tool == "shasum":
                (folder / "perl").symlink_to(str(shutil.which("perl")))
            shutil.rmtree(box.home, ignore_errors=True)
            assert box.start(f"file://{path}", sha)[0] == 0
            (folder / tool).unlink()


def test_python_unpacks_where_tar_is_missing(box, tarball):
    path, sha = tarball
    box.tools = ("python3",)
    folder = box.path()
    (folder / "tar").unlink()
    box.path = lambda: folder  # type: ignore[method-assign]
    assert box.start(f"file://{path}", sha)[:2] == (0, "started one an argument")
    shutil.rmtree(box.home)
    (folder / "python3").unlink()
    status, _, err = box.start(f"file://{path}", sha)
    assert (status, "no tar with gzip" in err) == (3, True)


def test_a_file_that_is_not_a_tarball_is_refused(box, tmp_path):
    path = tmp_path / "no.tar.gz"
    path.write_text("no archive")
    status, _, err = box.start(f"file://{path}")
    assert (status, "cannot be unpacked" in err) == (5, True)
    make_tarball(path, "one", bootstrap=None)
    status, _, err = box.start(f"file://{path}")
    assert (status, "no bootstrap.sh" in err) == (4, True)
    assert box.left() == []


def test_a_place_that_cannot_be_written_is_an_error(box, tarball):
    path, sha = tarball
    box.home.parent.mkdir(parents=True)
    box.home.write_text("a file in the way")
    status, _, err = box.start(f"file://{path}", sha)
    assert (status, "is not writable" in err) == (5, True)


@pytest.fixture
def large(tmp_path: Path) -> tuple[Path, str]:
    """Make a tarball of 3 MB of incompressible data."""
    path = tmp_path / "large.tar.gz"
    return path, make_tarball(path, os.urandom(3 << 20).hex()[: 3 << 20])


def test_a_full_disk_is_an_error(box, large, tmp_path):
    path, sha = large
    with small_disk(tmp_path / "small", 4) as disk, filled(disk, leaving=1 << 20):
        box.home.parent.mkdir(parents=True)
        box.home.symlink_to(disk)
        status, out, err = box.start(f"file://{path}", sha)
        assert (status, out) == (5, ""), err
        assert "there is no room in" in err
        assert [name for name in box.left() if name.startswith(".scratch")] == []


def test_a_full_volume_is_not_needed(box, large, tmp_path):
    path, sha = large
    with small_disk(tmp_path / "small", 4) as disk, filled(disk, leaving=1 << 20):
        box.volume = disk
        status, _, err = box.start(f"file://{path}", sha)
        assert status == 0, err
        assert "is not writable" in err
        assert box.left() == []


def test_http_is_refused_without_the_setting(tarball, box):
    _, sha = tarball
    command = build_injection_cmd(url="https://x.example/w", sha256=sha, version="1", environ={})
    for url, status in (("http://x.example/w", 2), ("ftp://x.example/w", 2), ("relative", 2)):
        with contextlib.ExitStack():
            ended = subprocess.run(
                ["/bin/sh", "-c", command.replace("https://x.example/w", url)],
                env={"PATH": str(box.path()), "FLASH_WORKER_DIR": str(box.home)},
                capture_output=True,
                text=True,
                timeout=30,
                check=False,
            )
            assert ended.returncode == status, ended.stderr
    for wrong in ("abc", "G" * 64):
        ended = subprocess.run(
            ["/bin/sh", "-c", command.replace(sha, wrong)],
            env={"PATH": str(box.path()), "FLASH_WORKER_DIR": str(box.home)},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert (ended.returncode, "is no SHA-256" in ended.stderr) == (2, True)
