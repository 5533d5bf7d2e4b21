#!/usr/bin/env python3
"""Build the tarball that is injected into other images: ``build_tarball.py --python 3.12``.

    uv.lock --> packages of the server on that Python --> their wheels --> wheels/ -.
    sources --> uv build ------------------------------------------------> wheels/ -+-> .tar.gz
    docker/bootstrap.sh, docker/install_wheels.py, `release` (format, versions) ----'   .sha256

Each minor version of Python needs a tarball of its own, for x86_64 and glibc 2.28 or later. Extras
that other packages ask for are left out (``fastapi[all]``, ``aiohttp[speedups]``), because the
server does not import them. The same sources give the same bytes. The lock has the hashes of the
wheels, so the tarball contains the versions that were tested.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import msgspec
from packaging.markers import Marker
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename

ROOT: Final = Path(__file__).resolve().parents[1]
SOURCES: Final = ("pyproject.toml", "README.md", "LICENSE", "pool", "envs", "frontends")
#: The programs that install the wheels into the server's environment, and start the server.
PROGRAMS: Final = ("bootstrap.sh", "install_wheels.py")
#: Incremented when the layout of the tarball changes.
FORMAT: Final = 2
#: The platforms whose wheels are accepted, the best first: glibc 2.28 and older.
PLATFORMS: Final = [
    *(f"manylinux_2_{minor}_x86_64" for minor in range(28, 4, -1)),
    *("manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"),
]
LIMIT_MB: Final = 70
_MB: Final = 1_000_000
_FETCH_LIMIT_S: Final = 120
#: The two largest packages: the report also has the size without them.
_LARGE: Final = ("uv", "botocore")
#: The time of every member, so that the same sources give the same bytes.
_TIME: Final = 315_532_800


class BuildError(Exception):
    """The tarball cannot be built; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """One wheel of a package."""

    url: str
    sha256: str

    @property
    def name(self) -> str:
        """Return the name of the file."""
        return unquote(self.url.rpartition("/")[2])


@dataclass(frozen=True, slots=True, kw_only=True)
class Locked:
    """One package of the lock."""

    name: str
    version: str
    wheels: tuple[Wheel, ...]

    @property
    def pin(self) -> str:
        """Return the package as a requirement."""
        return f"{self.name}=={self.version}"


def closure(lock: dict[str, Any], python: str) -> list[Locked]:
    """Return the packages that flashpool needs on that Python, without extras of packages."""
    environ = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "platform_machine": "x86_64",
        "platform_system": "Linux",
        "sys_platform": "linux",
        "os_name": "posix",
    }
    by_name: dict[str, list[dict[str, Any]]] = {}
    for package in lock["package"]:
        by_name.setdefault(package["name"], []).append(package)
    found: dict[str, Locked] = {}
    waiting = [_one(by_name, {"name": "flashpool"})]
    while waiting:
        for needed in waiting.pop().get("dependencies", []):
            marker = needed.get("marker")
            if needed["name"] in found or (marker and not Marker(marker).evaluate(environ)):
                continue
            package = _one(by_name, needed)
            found[package["name"]] = Locked(
                name=package["name"],
                version=package["version"],
                wheels=tuple(
                    Wheel(url=wheel["url"], sha256=wheel["hash"].removeprefix("sha256:"))
                    for wheel in package.get("wheels", [])
                ),
            )
            waiting.append(package)
    return sorted(found.values(), key=lambda each: each.name)


def _one(by_name: dict[str, list[dict[str, Any]]], needed: dict[str, Any]) -> dict[str, Any]:
    candidates = by_name[needed["name"]]
    if "version" in needed:
        candidates = [each for each in candidates if each["version"] == needed["version"]]
    if len(candidates) != 1:
        raise BuildError(f"uv.lock has {len(candidates)} packages for {needed}")
    return candidates[0]


def fetch(packages: list[Locked], python: str, cache: Path, folder: Path) -> None:
    """Put the best wheel of each package into ``folder``; the cache keeps wheels between runs."""
    tags = _tags(python)
    cache.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(8) as threads:
        for path in threads.map(lambda each: _fetched(_best(each, tags), cache), packages):
            shutil.copy(path, folder)


def _tags(python: str) -> list[Tag]:
    """Return the tags of wheels that this Python can install, the best first."""
    version = tuple(map(int, python.split(".")))
    own = cpython_tags(version, platforms=PLATFORMS)
    return [*own, *compatible_tags(version, f"cp{python.replace('.', '')}", PLATFORMS)]


def _best(package: Locked, tags: list[Tag]) -> Wheel:
    ranks = {tag: rank for rank, tag in enumerate(tags)}
    fitting = [
        (min(ranks[tag] for tag in common), wheel)
        for wheel in package.wheels
        if (common := parse_wheel_filename(wheel.name)[3] & ranks.keys())
    ]
    if not fitting:
        raise BuildError(f"{package.pin} has no wheel for this Python and x86_64")
    return min(fitting, key=lambda each: each[0])[1]


def _fetched(wheel: Wheel, cache: Path) -> Path:
    path = cache / wheel.name
    if not path.exists() or _sha256(path) != wheel.sha256:
        with urllib.request.urlopen(wheel.url, timeout=_FETCH_LIMIT_S) as response:
            data = response.read()
        if hashlib.sha256(data).hexdigest() != wheel.sha256:
            raise BuildError(f"{wheel.url} has not the hash that is in uv.lock")
        path.write_bytes(data)
    return path


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def build_wheel(uv: str, folder: Path) -> None:
    """Build flashpool's wheel from a copy: a development installation also uses `build/`."""
    with tempfile.TemporaryDirectory() as copy:
        for name in SOURCES:
            source, target = ROOT / name, Path(copy, name)
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, target)
        environ = {**os.environ, "SOURCE_DATE_EPOCH": str(_TIME)}
        _run([uv, "build", "--quiet", "--wheel", "--out-dir", str(folder), copy], environ)
    (folder / ".gitignore").unlink(missing_ok=True)


def _run(command: list[str], environ: dict[str, str] | None = None) -> None:
    if subprocess.run(command, env=environ, check=False).returncode:
        raise BuildError(f"{' '.join(command[:4])} ... failed; what it printed says why")


def release_of(python: str) -> dict[str, str]:
    """Return the values that bootstrap.sh reads from `release`."""
    project = msgspec.toml.decode((ROOT / "pyproject.toml").read_bytes())["project"]
    return {"format": str(FORMAT), "version": project["version"], "python": python}


def pack(folder: Path, target: Path) -> None:
    """Write the archive under another name, and rename it when it is complete."""
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with (
            unfinished.open("wb") as raw,
            # Wheels are compressed already: compressing again saves 2 %, and slows each start.
            gzip.GzipFile("", "wb", compresslevel=0, fileobj=raw, mtime=_TIME) as packed,
            tarfile.open(mode="w", fileobj=packed, format=tarfile.GNU_FORMAT) as archive,
        ):
            for path in sorted(folder.rglob("*")):
                archive.add(path, str(path.relative_to(folder)), recursive=False, filter=_plain)
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime = _TIME
    member.mode = 0o755 if member.isdir() or member.name.endswith(".sh") else 0o644
    return member


def report(target: Path, folder: Path) -> Iterator[str]:
    """Yield lines with the sizes of the tarball and of its largest members."""
    files = sorted(
        ((path.stat().st_size, str(path.relative_to(folder))) for path in _files(folder)),
        reverse=True,
    )
    size = target.stat().st_size
    large = sum(n for n, name in files if name.startswith(tuple(f"wheels/{p}-" for p in _LARGE)))
    yield f"{target.name}: {size / _MB:.1f} MB, {len(files)} members"
    yield f"without {' and '.join(_LARGE)}: {(size - large) / _MB:.1f} MB"
    yield from (f"{n / _MB:8.2f} MB  {name}" for n, name in files[:20])


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def build(python: str, out: Path, *, uv: str, cache: Path) -> Path:
    """Build the tarball and its checksum file; return the path of the tarball."""
    lock = msgspec.toml.decode((ROOT / "uv.lock").read_bytes())
    packages = closure(lock, python)
    release = release_of(python)
    out.mkdir(parents=True, exist_ok=True)
    target = out / f"flashpool-worker-{release['version']}-py{python}-x86_64.tar.gz"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "tarball")
        wheels = folder / "wheels"
        wheels.mkdir(parents=True)
        fetch(packages, python, cache, wheels)
        build_wheel(uv, wheels)
        for name in PROGRAMS:
            shutil.copy(ROOT / "docker" / name, folder)
        lines = [f"{name}={value}\n" for name, value in release.items()]
        (folder / "release").write_text("".join(lines), "utf-8")
        pack(folder, target)
        print("\n".join(report(target, folder)), flush=True)
    if target.stat().st_size > LIMIT_MB * _MB:
        target.unlink()
        raise BuildError(f"The tarball is larger than {LIMIT_MB} MB: see its largest members above")
    digest = _sha256(target)
    target.with_name(f"{target.name}.sha256").write_text(f"{digest}  {target.name}\n", "ascii")
    print(f"sha256 {digest}", flush=True)
    return target


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--python", required=True, help="minor version, such as 3.12")
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument("--uv", default="uv", help="the program that builds the wheel")
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "wheels", help="for wheels")
    given = parser.parse_args()
    try:
        build(given.python, given.out, uv=given.uv, cache=given.cache)
    except (BuildError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
