"""Installs the tarball's wheels for the injected server: ``install_wheels.py WHEELS ENVIRONMENT``.

    WHEELS/*.whl --> ENVIRONMENT/lib/pythonX.Y/site-packages, ENVIRONMENT/bin

A wheel is a zip archive of files in their final layout, so each file is written once. An installer
would write a cache first, and link, check and remove it, which doubles the time of a cold start.
The tarball's SHA-256 has verified the wheels already. `ENVIRONMENT` is moved afterwards, so no file
in it may contain its path. The image's own Python, of the version of the wheels, runs this file
with only the standard library.
"""

from __future__ import annotations

import os
import shutil
import sys
import venv
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

#: With more, threads wait for each other in the file system.
_THREADS: Final = 2
_PROGRAM: Final = """\
#!/bin/sh
'''exec' "$(dirname -- "$(realpath -- "$0")")/python" -I "$0" "$@"
' '''
from flashpool.frontends.cli import main

main(prog_name="flashpool")
"""


def install(wheels: Path, environment: Path) -> None:
    """Create the environment."""
    venv.EnvBuilder(symlinks=True).create(environment)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = environment / "lib" / version / "site-packages"
    # Unpack the largest first, so that no thread begins with it when the others have finished.
    paths = sorted(wheels.glob("*.whl"), key=lambda path: path.stat().st_size, reverse=True)
    with ThreadPoolExecutor(_THREADS) as threads:
        for _ in threads.map(lambda path: unpack(path, site, environment), paths):
            pass
    program = environment / "bin" / "flashpool"
    program.write_text(_PROGRAM, "ascii")
    _make_executable(str(program))


def unpack(wheel: Path, site: Path, environment: Path) -> None:
    """Write the files of a wheel to their places."""
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
    """Return the path of a member of a wheel, and whether it is a program (PEP 427)."""
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
    # Executable for all who may read the file, which the umask has decided.
    os.chmod(path, mode | (mode & 0o444) >> 2)


def main() -> int:
    """Run the command; return the exit status, 1 if the environment cannot be created."""
    try:
        install(Path(sys.argv[1]), Path(sys.argv[2]))
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        print(f"flashpool: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
