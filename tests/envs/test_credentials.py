"""An index with a password: uv sends the password, and no process shows it."""

import asyncio
import base64
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from flashpool.envs import Environments, RegistryUnreachable, Spec
from flashpool.envs import handed_over as handing
from flashpool.envs.handed_over import SECRET, HandedOver
from flashpool.envs.process import run as run_command

Run = Callable[[Any], Any]
VersionIn = Callable[[Path, str], str]
#: A unique text, so that searches of processes cannot match anything else.
PASSWORD = "pass-word-of-the-index"

_BACKEND = """
import glob, json, os, shutil

def read(path):
    try:
        return open(path, "rb").read()
    except OSError:
        return b""

def build_wheel(folder, *rest):
    shown = [path for path in glob.glob("/proc/[0-9]*/environ") + glob.glob("/proc/[0-9]*/cmdline")
             if b"pass-word" in read(path)]
    for link in glob.glob("/proc/self/fd/*") + glob.glob(f"/proc/{os.getppid()}/fd/*"):
        try:
            if os.readlink(link).startswith("pipe:"):
                handle = os.open(link, os.O_RDONLY | os.O_NONBLOCK)
                if b"pass-word" in os.read(handle, 100000):
                    shown.append(link)
        except OSError:
            pass
    with open(TOLD, "a") as file:
        file.write(json.dumps(shown) + "\\n")
    return os.path.basename(shutil.copy(WHEEL, folder))
"""


class PrivateIndex(ThreadingHTTPServer):
    """Serves wheels and sources of a directory to clients with the password."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.asked: list[tuple[str, bool]] = []

    def url(self, credentials: str = "") -> str:
        return f"http://{credentials}127.0.0.1:{self.server_port}/simple/"


class _Handler(BaseHTTPRequestHandler):
    server: PrivateIndex

    def do_GET(self) -> None:
        told = base64.b64encode(f"me:{PASSWORD}".encode()).decode()
        known = self.headers.get("Authorization") == f"Basic {told}"
        self.server.asked.append((self.path, known))
        if not known:
            self._answer(401, b"", ("WWW-Authenticate", 'Basic realm="x"'))
            return
        _, _, name, *file = self.path.split("/")
        if file and file[0]:
            self._answer(200, (self.server.folder / file[0]).read_bytes())
            return
        found = sorted(self.server.folder.glob(f"{name.replace('-', '_')}-*"))
        links = "".join(f'<a href="{path.name}">{path.name}</a>' for path in found)
        self._answer(200 if found else 404, links.encode(), ("Content-Type", "text/html"))

    do_HEAD = do_GET

    def _answer(self, status: int, body: bytes, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for header in (*headers, ("Content-Length", str(len(body)))):
            self.send_header(*header)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def private(index: Any) -> Iterator[PrivateIndex]:
    server = PrivateIndex(index.folder)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def source(private: PrivateIndex, index: Any, tmp_path: Path) -> Path:
    """Add a source distribution whose build searches for the password; return what it found."""
    told = tmp_path / "told"
    wheel = index.add("probe", "1.0")
    moved = tmp_path / wheel.name
    wheel.rename(moved)
    files = {
        "pyproject.toml": '[build-system]\nrequires = ["alpha"]\nbuild-backend = "own"\n'
        'backend-path = ["."]\n[project]\nname = "probe"\ndynamic = ["version"]\n',
        "own.py": _BACKEND.replace("TOLD", repr(str(told))).replace("WHEEL", repr(str(moved))),
        "PKG-INFO": "Metadata-Version: 2.1\nName: probe\nVersion: 1.0\n",
    }
    with tarfile.open(index.folder / "probe-1.0.tar.gz", "w:gz") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(f"probe-1.0/{name}")
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    return told


def acquired(setup: Any, run: Run, *requirements: str, **changes: Any) -> tuple[Path, str]:
    async def main() -> tuple[Path, str]:
        settings = setup.settings(**{"find_links": (), **changes})
        async with Environments(settings) as environments:
            with await environments.acquire(Spec(requirements=requirements)) as found:
                return found.python, found.origin

    return run(main())


@pytest.mark.parametrize("place", ["setting", "extra", "variable", "named", "find-links"])
def test_a_build_uses_the_password_and_no_process_shows_it(
    place: str,
    setup: Any,
    private: PrivateIndex,
    source: Path,
    run: Run,
    version_in: VersionIn,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = private.url(f"me:{PASSWORD}@")
    changes: dict[str, Any] = {}
    if place == "setting":
        changes["index_url"] = url
    elif place == "extra":
        changes["extra_index_urls"] = (url,)
    elif place == "find-links":
        changes["find_links"] = (f"{url}probe/", f"{url}alpha/")
    # This process's variables hold the password only if `os.environ` was set from outside.
    elif place == "variable":
        monkeypatch.setitem(os.environ._data, b"UV_INDEX", url.encode())  # type: ignore[attr-defined]
    else:
        for name, value in (("", f"mine={private.url()}"), ("_MINE_PASSWORD", PASSWORD)):
            monkeypatch.setitem(os.environ._data, f"UV_INDEX{name}".encode(), value.encode())  # type: ignore[attr-defined]
        monkeypatch.setenv("UV_INDEX_MINE_USERNAME", "me")
    python, origin = acquired(setup, run, "probe", **changes)
    assert origin == "built"
    assert version_in(python, "probe") == "1.0"
    assert any(known for _, known in private.asked)
    found = [json.loads(line) for line in source.read_text().splitlines()]
    assert found
    assert found == [[] for _ in found]


def test_the_users_configuration_applies_beside_the_password(
    setup: Any, private: PrivateIndex, run: Run, version_in: VersionIn, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    own = tmp_path / "uv.toml"
    own.write_text('[[index]]\nurl = "file:///nowhere"\nexplicit = true\nname = "x"\n'
                   "[pip]\nresolution = 'lowest'\n")  # fmt: skip
    monkeypatch.setenv("UV_CONFIG_FILE", str(own))
    python, _ = acquired(setup, run, "alpha", index_url=private.url(f"me:{PASSWORD}@"))
    assert version_in(python, "alpha") == "1.0"


def test_the_error_for_a_wrong_password_does_not_contain_it(
    setup: Any, private: PrivateIndex, run: Run
) -> None:
    with pytest.raises(Exception) as caught:
        acquired(setup, run, "alpha", index_url=private.url("me:pass-word-that-is-wrong@"))
    assert "pass-word" not in f"{caught.value} {getattr(caught.value, 'words', '')}"
    assert not isinstance(caught.value, RegistryUnreachable) or "401" in str(caught.value)


def test_the_configuration_for_uv_is_readable_only_once(tmp_path: Path) -> None:
    code = (
        "import os, sys; print(open(sys.argv[1]).read(), end=''); print(open(sys.argv[1]).read())"
    )
    argv = [sys.executable, "-I", "-c", code, SECRET]
    for size in (10, 200_000):
        command = run_command(argv, environment={}, folder=tmp_path, limit_s=60, secret=b"x" * size)
        finished = asyncio.run(command)
        assert (finished.code, finished.stdout) == (0, "x" * size + "\n"), finished.stderr


_LOOK = "cat /proc/{0}/environ || true; ls /proc/{0}/fd || true; head -c 1 /proc/{0}/mem || true"


def test_other_processes_of_the_user_cannot_inspect_uv(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nor the shell that guards uv: both run from copies that are not readable."""
    user = os.geteuid() or 65534
    monkeypatch.setattr(handing.os, "geteuid", lambda: 65534)
    handed_over = HandedOver.make(["/bin/sleep", "60", SECRET], b"secret")
    names = [name for name in os.listdir(handing.tempfile.gettempdir()) if "flashpool" in name]
    environment = {"SHOWN": "no-secret"}
    shell = subprocess.Popen(
        [handed_over.shell, "-c", '"$@" & wait', "guard", handed_over.argv[0], "60"],
        pass_fds=handed_over.descriptors,
        env=environment,
        user=user,
        start_new_session=True,
    )
    try:
        handed_over.close()
        children = Path(f"/proc/{shell.pid}/task/{shell.pid}/children")
        while not (command := children.read_text().split()):
            assert shell.poll() is None
        while (
            b"sleep" not in Path(f"/proc/{command[0]}/comm").read_bytes() and shell.poll() is None
        ):
            if os.readlink(f"/proc/{command[0]}/exe") != os.readlink(f"/proc/{shell.pid}/exe"):
                break
        for pid in (shell.pid, *command):
            argv = ["/bin/sh", "-c", _LOOK.format(pid)]
            looked = subprocess.run(argv, capture_output=True, text=True, user=user, env={})
            assert looked.stdout == "", pid
            assert looked.stderr.count("Permission denied") >= 2, looked.stderr
    finally:
        os.killpg(shell.pid, 9)
        shell.wait()
    assert names == [name for name in os.listdir(handing.tempfile.gettempdir()) if name in names]
