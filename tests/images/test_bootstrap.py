"""bootstrap.sh: which Python it takes, what it makes, and what it says where it cannot.

The slow tests build the real tarball for the Python that runs them, and start the real server from it.
"""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest
from e2e.server import until
from images.injected import answer, build, command_of, stop

ROOT: Final = Path(__file__).parents[2]
MINOR: Final = "{}.{}".format(*sys.version_info)
#: Programs that inject.sh and bootstrap.sh call, besides a Python.
TOOLS: Final = (
    *("sh", "sed", "dirname", "mktemp", "mv", "rm", "chmod", "id"),
    *("tar", "gzip", "dd", "cut", "cp", "mkdir", "uname", "find", "sha256sum", "env", "cat", "ldd"),
)


def path_of(folder: Path, **more: str) -> str:
    folder.mkdir()
    for name in TOOLS:
        (folder / name).symlink_to(str(shutil.which(name)))
    for name, target in more.items():
        (folder / name).symlink_to(target)
    return str(folder)


def unpacked(folder: Path, python: str = MINOR) -> Path:
    """A tarball without wheels."""
    folder.mkdir()
    for name in ("bootstrap.sh", "install_wheels.py"):
        shutil.copy(ROOT / "docker" / name, folder)
    (folder / "release").write_text(f"format=2\nversion=0.0.1\npython={python}\n")
    (folder / "wheels").mkdir()
    return folder


def start(folder: Path, path: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["/bin/sh", folder / "bootstrap.sh"],
        env={"PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_missing_suitable_python_is_an_error(tmp_path: Path) -> None:
    folder = unpacked(tmp_path / "tarball", "3.99")
    ended = start(folder, path_of(tmp_path / "bin", python3=sys.executable))
    assert ended.returncode == 6
    assert "wheels are for Python 3.99 on x86_64 with glibc" in ended.stderr
    assert f"{MINOR} cpython {platform.machine()} glibc" in ended.stderr


def test_an_interpreter_that_does_not_start_is_reported(tmp_path: Path) -> None:
    folder = unpacked(tmp_path / "tarball", "3.99")
    path = path_of(tmp_path / "bin")
    broken = tmp_path / "bin" / "python"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    ended = start(folder, path)
    assert ended.returncode == 6
    assert f"{broken}: it does not start" in ended.stderr


def test_an_environment_that_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    folder = unpacked(tmp_path / "tarball")
    (folder / "wheels" / "torn-1-py3-none-any.whl").write_bytes(b"PK half of a wheel")
    ended = start(folder, path_of(tmp_path / "bin", python3=sys.executable))
    assert ended.returncode == 7
    assert "File is not a zip file" in ended.stderr
    assert "The server's environment cannot be made" in ended.stderr
    assert list(folder.glob(".env*")) == []


def test_an_empty_release_file_is_an_error(tmp_path: Path) -> None:
    folder = unpacked(tmp_path / "tarball")
    (folder / "release").write_text("")
    ended = start(folder, path_of(tmp_path / "bin"))
    assert (ended.returncode, "unpack the tarball again" in ended.stderr) == (7, True)


@pytest.fixture(scope="module")
def tarball(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    path, lines = build(MINOR, out)
    assert lines[1].startswith("without uv and botocore: ")
    assert len([line for line in lines if "wheels/" in line]) == 20
    assert path.stat().st_size < 70_000_000
    (checksum,) = out.glob("*.sha256")
    subprocess.run(["sha256sum", "--check", "--quiet", checksum], cwd=out, check=True, timeout=60)
    return path


class Injected:
    """A container started with the command, with a PATH of its own."""

    def __init__(self, tarball: Path, folder: Path) -> None:
        bare = {"python3": str(Path(sys.base_prefix) / "bin" / f"python{MINOR}")}
        self.path = path_of(folder / "bin", **bare)
        self.folder = folder
        self.command = command_of("--tarball", tarball)

    def start(self) -> Any:
        log = (self.folder / "log").open("wb")
        with log:
            return subprocess.Popen(
                ["/bin/sh", "-c", f"exec {self.command}"],
                env={
                    "PATH": self.path,
                    "FLASH_WORKER_DIR": str(self.folder / "home"),
                    "FLASHPOOL_VOLUME": str(self.folder / "volume"),
                    "FLASHPOOL_LOCAL_DIR": str(self.folder / "local"),
                    "FLASHPOOL_PORT": "0",
                    "FLASHPOOL_ADMIN_PORT": "0",
                },
                stdout=log,
                stderr=log,
            )

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")


@pytest.fixture
def injected(tarball: Path, tmp_path: Path) -> Injected:
    (tmp_path / "volume").mkdir()
    return Injected(tarball, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_real_server_starts_without_and_with_a_cache(injected: Injected) -> None:
    for said in ("making the environment", "is unpacked in"):
        process = injected.start()
        try:
            # User code runs on the image's own Python, not in the server's environment.
            assert answer(process, injected.log) == [sys.base_prefix, MINOR]
            assert said in injected.log()
        finally:
            stop(process)
    (program,) = (injected.folder / "home").glob("*/env/bin/flashpool")
    told = subprocess.run(
        [program, "--version"], capture_output=True, text=True, timeout=60, check=True
    )
    assert told.stdout.startswith("flashpool ")
    assert [path.name for path in (injected.folder / "home").glob("*/.env*")] == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_server_killed_during_its_installation_starts_again(injected: Injected) -> None:
    process = injected.start()
    until(lambda: list((injected.folder / "home").glob("*/.env.*/env")), 120)
    os.kill(process.pid, 9)
    process.wait()
    # The Python started by the killed shell may still write there.
    process = injected.start()
    try:
        assert answer(process, injected.log) == [sys.base_prefix, MINOR]
    finally:
        stop(process)
