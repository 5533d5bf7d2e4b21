"""The start command in Debian as debootstrap makes it: each container has a disk of its own over one base.

    base (debootstrap, read only) + disk (what the container wrote) --overlay, chroot--> the container
    volume ---------------------------------------------------------bind---------------> /runpod-volume

A container's mounts are those of its own namespace: they are gone with its processes. DEBIAN_BASE names a
folder with an unpacked Debian 12 that has Python, to save the time of debootstrap.
"""

import contextlib
import hashlib
import http.server
import io
import os
import re
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
from e2e.server import until
from images.injected import answer, build, command_of, stop

from support import wants

#: Debian 12's Python. Running these tests on one Python version is enough.
MINOR: Final = "3.11"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(
        sys.version_info[:2] != (3, 11), reason="is run where Python 3.11 runs the tests"
    ),
]
BASE_PYTHON: Final = ["/usr", MINOR]
_ENTER: Final = """
set -eu
mkdir -p "$DISK/upper" "$DISK/work" "$DISK/root"
mount -t overlay overlay -o "lowerdir=$BASE,upperdir=$DISK/upper,workdir=$DISK/work" "$DISK/root"
mount -t proc proc "$DISK/root/proc"
mkdir -p "$DISK/root/runpod-volume"
[ -z "$VOLUME" ] || mount --bind "$VOLUME" "$DISK/root/runpod-volume"
[ -n "$VOLUME" ] || rmdir "$DISK/root/runpod-volume"
for name in $HIDDEN; do rm -f "$DISK/root/usr/bin/$name"; done
exec chroot "$DISK/root" /usr/bin/env -i PATH=/usr/bin:/bin HOME=/root \\
    FLASHPOOL_PORT=0 FLASHPOOL_ADMIN_PORT=0 /bin/sh -c "exec $COMMAND"
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if os.geteuid():
        raise wants.missing("root", "a chroot is entered")
    if given := os.environ.get("DEBIAN_BASE"):
        return Path(given)
    folder = tmp_path_factory.mktemp("debian") / "base"
    packages = "python3,curl,ca-certificates"
    command = [
        wants.program("debootstrap"),
        "--variant=minbase",
        f"--include={packages}",
        "bookworm",
        folder,
    ]
    subprocess.run(command, check=True, timeout=1200, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[str, str]]]:
    """Serve two versions of the tarball; return address and SHA-256 by name."""
    folder = tmp_path_factory.mktemp("web")
    path, _ = build(MINOR, folder)
    path = path.rename(folder / "one.tar.gz")
    _other_version(path, folder / "two.tar.gz")

    class Silent(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=folder))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield {
        name: (
            f"http://127.0.0.1:{server.server_port}/{name}.tar.gz",
            hashlib.sha256((folder / f"{name}.tar.gz").read_bytes()).hexdigest(),
        )
        for name in ("one", "two")
    }
    server.shutdown()
    thread.join()
    server.server_close()


def _other_version(path: Path, target: Path) -> None:
    with tarfile.open(path) as source, tarfile.open(target, "w:gz", compresslevel=1) as archive:
        for member in source:
            data = source.extractfile(member)
            text = data.read() if data else b""
            if member.name == "release":
                text = re.sub(rb"version=.*", b"version=99.0", text)
                member.size = len(text)
            archive.addfile(member, io.BytesIO(text) if data else None)


class Machine:
    """One container: its disk and its command."""

    def __init__(self, base: Path, folder: Path, volume: Path | None = None) -> None:
        self._base = base
        self.disk = folder
        self._volume = volume
        self._log = folder / "log"
        folder.mkdir()

    def popen(self, tarball: tuple[str, str], *, hidden: str = "", network: bool = True) -> Any:
        url, sha256 = tarball
        command = command_of("--url", url, "--sha256", sha256, FLASH_WORKER_ALLOW_HTTP="1")
        environ = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "BASE": str(self._base),
            "DISK": str(self.disk),
            "VOLUME": str(self._volume or ""),
            "HIDDEN": hidden,
            "COMMAND": command,
        }
        namespaces = ["--mount"] if network else ["--mount", "--net"]
        with self._log.open("wb") as log:
            return subprocess.Popen(
                ["unshare", *namespaces, "sh", "-c", _ENTER],
                env=environ,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def answers(self, tarball: tuple[str, str], **options: Any) -> str:
        """Start the container, run a call, stop the container; return its output."""
        process = self.popen(tarball, **options)
        with contextlib.ExitStack() as stack:
            stack.callback(process.wait)
            stack.callback(process.kill)
            assert answer(process, self.log) == BASE_PYTHON
            stop(process)
        return self.log()

    def fails(self, tarball: tuple[str, str], **options: Any) -> tuple[int, str]:
        process = self.popen(tarball, **options)
        return process.wait(240), self.log()

    @property
    def home(self) -> Path:
        return self.disk / "upper" / "opt" / "flashpool-worker"


def test_an_image_with_only_python_starts_upgrades_and_downgrades(base, web, tmp_path):
    machine = Machine(base, tmp_path / "disk")
    assert "making the environment of version" in machine.answers(web["one"], hidden="curl wget")
    assert "is unpacked in" in machine.answers(web["one"], hidden="curl wget")
    log = machine.answers(web["two"], hidden="curl wget")
    assert "making the environment of version 99.0" in log
    assert "making the environment" not in machine.answers(web["one"], hidden="curl wget")
    assert [path.name for path in machine.home.iterdir() if path.name.startswith(".")] == []


def test_an_image_with_only_curl_reports_the_missing_python(base, web, tmp_path):
    """curl downloads the tarball once, and the error says that a Python is missing."""
    machine = Machine(base, tmp_path / "disk")
    for said in ("fetching version", "is unpacked in"):
        status, log = machine.fails(web["one"], hidden="python3 python3.11 wget")
        assert status == 6
        assert said in log
        assert "wheels are for Python 3.11" in log
        assert "no Python in the usual places" in log


def test_without_network_and_cache_the_start_fails(base, web, tmp_path):
    status, log = Machine(base, tmp_path / "disk").fails(web["one"], network=False)
    assert status == 3
    assert "could not be fetched" in log


def test_pods_share_the_tarball_and_a_third_needs_no_network(base, web, tmp_path):
    volume = tmp_path / "volume"
    volume.mkdir()
    machines = [Machine(base, tmp_path / f"disk{n}", volume) for n in range(2)]
    processes = [machine.popen(web["one"]) for machine in machines]
    with contextlib.ExitStack() as stack:
        for process in processes:
            stack.callback(process.wait)
            stack.callback(process.kill)
        for machine, process in zip(machines, processes, strict=True):
            assert answer(process, machine.log) == BASE_PYTHON
        for process in processes:
            stop(process)
    cached = volume / "flashpool-worker"
    assert [path.name for path in cached.iterdir()] == [f"{web['one'][1]}.tar.gz"]
    # Without a network the server cannot be reached, so its output shows that it started.
    third = Machine(base, tmp_path / "third", volume)
    process = third.popen(web["one"], network=False)
    until(lambda: "Ready" in third.log() or process.poll() is not None, 240)
    stop(process)
    assert "from the volume" in third.log()


def test_a_start_killed_half_way_is_repeated(base, web, tmp_path):
    machine = Machine(base, tmp_path / "disk")
    # During unpacking, and during the installation of the environment.
    for pattern in (".scratch.*/tree/wheels", "*/.env.*/env"):
        process = machine.popen(web["one"])
        until(lambda pattern=pattern: list(machine.home.glob(pattern)), 240)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    machine.answers(web["one"])
    left = [*machine.home.glob(".*"), *machine.home.glob("*/.env*")]
    assert [path.name for path in left] == []
