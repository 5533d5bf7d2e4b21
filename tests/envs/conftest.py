"""A private package index of tiny wheels, a stand-in base, and settings on top of them.

Nothing here touches the network: the index is a directory, and its registry is
empty. Tests of the real index are in test_real_index.py.
"""

import asyncio
import base64
import hashlib
import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from flashpool.envs import EnvSettings
from flashpool.envs.uv_cli import find_uv

CHILD = Path(__file__).with_name("child_acquire.py")


@dataclass
class Index:
    """A directory of wheels."""

    folder: Path

    def add(
        self,
        name: str,
        version: str,
        *requires: str,
        files: dict[str, str | bytes] | None = None,
        extras: dict[str, list[str]] | None = None,
    ) -> Path:
        """Write a wheel whose module has its version."""
        stem = f"{name.replace('-', '_')}-{version}"
        module = name.replace("-", "_")
        content: dict[str, str | bytes] = {f"{module}/__init__.py": f"version = {version!r}\n"}
        content |= {f"{module}/{path}": data for path, data in (files or {}).items()}
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        lines += [f"Requires-Dist: {text}" for text in requires]
        for extra, needs in (extras or {}).items():
            lines.append(f"Provides-Extra: {extra}")
            lines += [f"Requires-Dist: {text} ; extra == '{extra}'" for text in needs]
        content[f"{stem}.dist-info/METADATA"] = "\n".join(lines) + "\n"
        content[f"{stem}.dist-info/WHEEL"] = (
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        return _write_wheel(self.folder / f"{stem}-py3-none-any.whl", stem, content)


def _write_wheel(path: Path, stem: str, content: dict[str, str | bytes]) -> Path:
    record = []
    with zipfile.ZipFile(path, "w") as wheel:
        for name, data in content.items():
            raw = data.encode() if isinstance(data, str) else data
            digest = base64.urlsafe_b64encode(hashlib.sha256(raw).digest()).rstrip(b"=").decode()
            record.append(f"{name},sha256={digest},{len(raw)}\n")
            wheel.writestr(name, raw)
        wheel.writestr(f"{stem}.dist-info/RECORD", "".join(record) + f"{stem}.dist-info/RECORD,,\n")
    return path


@dataclass
class Base:
    """A virtualenv that stands in for an image's Python."""

    root: Path
    index: Index

    @property
    def python(self) -> Path:
        return self.root / "bin" / "python"

    def install(self, *requirements: str) -> None:
        uv = find_uv(EnvSettings())
        argv = [
            str(uv),
            "pip",
            "install",
            "-q",
            "--no-index",
            "--find-links",
            str(self.index.folder),
        ]
        argv += [
            "--python",
            str(self.python),
            "--cache-dir",
            str(self.root / ".cache"),
            *requirements,
        ]
        subprocess.run(argv, check=True)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    folder = tmp_path / "index"
    folder.mkdir()
    empty = tmp_path / "empty-registry"
    empty.mkdir()
    monkeypatch.setenv("UV_DEFAULT_INDEX", empty.as_uri())
    made = Index(folder)
    made.add("alpha", "1.0")
    made.add("alpha", "2.0")
    made.add("beta", "1.0", "alpha>=1.0")
    return made


@pytest.fixture
def base(tmp_path: Path, index: Index) -> Base:
    root = tmp_path / "base"
    uv = find_uv(EnvSettings())
    argv = [str(uv), "venv", "-q", "--no-project", "--python", sys.executable, str(root)]
    subprocess.run(argv, check=True)
    return Base(root, index)


@dataclass
class Setup:
    """The settings of a test; `settings(...)` overrides any of them."""

    volume: Path
    local: Path
    base: Base
    children: list["subprocess.Popen[str]"] = field(default_factory=list)

    def settings(self, **changes: Any) -> EnvSettings:
        values: dict[str, Any] = {
            "base_python": self.base.python,
            "volume": self.volume,
            "local": self.local,
            "mode": "volume",
            "find_links": (str(self.base.index.folder),),
            "runtime_pins": (),
            "min_free_mb": 0,
            "heartbeat_s": 0.2,
            **changes,
        }
        return EnvSettings(**values)

    def child(self, *requirements: str, **changes: Any) -> "subprocess.Popen[str]":
        """Start another process that acquires; to the store it is another pod."""
        values = {
            "base_python": str(self.base.python),
            "volume": str(self.volume),
            "local": str(self.local),
            "find_links": [str(self.base.index.folder)],
            "requirements": list(requirements),
            **changes,
        }
        process = subprocess.Popen(
            [sys.executable, str(CHILD), json.dumps(values)],
            stdin=subprocess.PIPE if changes.get("hold") else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.children.append(process)
        return process

    def store(self, *parts: str) -> Path:
        return self.volume.joinpath("flashpool", *parts)


@pytest.fixture
def setup(tmp_path: Path, base: Base) -> Iterator[Setup]:
    volume = tmp_path / "volume"
    volume.mkdir()
    made = Setup(volume, tmp_path / "local", base)
    yield made
    for child in made.children:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
        child.communicate()


@pytest.fixture
def run() -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Run a coroutine in a new event loop."""
    return asyncio.run


def imported_version(python: Path, module: str) -> str:
    code = f"import {module}; print({module}.version)"
    done = subprocess.run([str(python), "-I", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def version_in() -> Callable[[Path, str], str]:
    """Return the version of a module that an environment's Python imports."""
    return imported_version
