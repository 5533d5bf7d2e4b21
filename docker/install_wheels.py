"""Makes the injected server's environment of the tarball's wheels: ``install_wheels.py WHEELS ENVIRONMENT``.

    WHEELS/*.whl --> ENVIRONMENT/lib/pythonX.Y/site-packages, ENVIRONMENT/bin

A wheel is a zip archive of the files as they are to lie, so each file is written once. An installer would
write a cache first, and link, check and remove that: twice the time of a cold start, for wheels whose bytes
the tarball's SHA-256 vouches for. `ENVIRONMENT` is moved afterwards, so nothing in it may hold its path.
Run by the image's own Python, of the version that the wheels are for, with the standard library alone.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
import venv
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

#: More threads wait for each other in the file system.
_THREADS: Final = 2
_PROGRAM: Final = """\
#!/bin/sh
'''exec' "$(dirname -- "$(realpath -- "$0")")/python" -I "$0" "$@"
' '''
from flashpool.frontends.cli import main

main(prog_name="flashpool")
"""


def install(wheels: Path, environment: Path) -> None:
    """Make the environment."""
    venv.EnvBuilder(symlinks=True).create(environment)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(environment)}))
    # The largest first, so that no thread is left with it at the end.
    paths = sorted(wheels.glob("*.whl"), key=lambda path: path.stat().st_size, reverse=True)
    with ThreadPoolExecutor(_THREADS) as threads:
        for _ in threads.map(lambda path: unpack(path, site, environment), paths):
            pass
    program = environment / "bin" / "flashpool"
    program.write_text(_PROGRAM, "ascii")
    _make_executable(str(program))


def unpack(wheel: Path, site: Path, environment: Path) -> None:
    """Write one wheel's files, each to its place."""
    made: set[str] = set()
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            if member.is_dir():
                continue
            target, is_program = place_of(member.filename, site, environment)
            folder = os.path.dirname(target)
            if folder not in made:
                os.makedirs(folder, exist_ok=True)
                made.add(folder)
            with archive.open(member) as source, open(target, "wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
            if is_program:
                _make_executable(target)


def place_of(name: str, site: Path, environment: Path) -> tuple[str, bool]:
    """Where a member of a wheel goes, and whether it is a program (PEP 427)."""
    top, _, rest = name.partition("/")
    if not top.endswith(".data"):
        return os.path.join(site, name), False
    kind, _, rest = rest.partition("/")
    places = {"purelib": site, "platlib": site, "scripts": environment / "bin", "data": environment}
    if kind not in places:
        raise zipfile.BadZipFile(f"{name} has no place in the environment")
    return os.path.join(places[kind], rest), kind == "scripts"


def _make_executable(path: str) -> None:
    mode = os.stat(path).st_mode
    # For whom it may be read: the umask has decided that.
    os.chmod(path, mode | (mode & 0o444) >> 2)


def main() -> int:
    """The command; 1 where the environment cannot be made."""
    try:
        install(Path(sys.argv[1]), Path(sys.argv[2]))
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        print(f"flashpool: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
