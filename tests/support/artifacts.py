"""Artifacts that the real `flash build` makes of projects in tests/e2e/projects."""

import io
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Final

from support.client import ROOT, client_python

PROJECTS: Final = ROOT / "tests" / "e2e" / "projects"
#: The Python for which artifacts are built: the one that runs the tests.
PYTHON: Final = "{}.{}".format(*sys.version_info)
_LIMIT_S: Final = 110


def build_artifact(name: str, folder: Path) -> Path:
    """Build one project in a directory of its own, without dependencies, so that no
    index is asked.
    """
    project = folder / name
    shutil.copytree(PROJECTS / name, project, ignore=shutil.ignore_patterns("__pycache__"))
    home = folder / "home"
    home.mkdir(exist_ok=True)
    done = subprocess.run(
        [client_python().with_name("flash"), "build", "--no-deps", "--python-version", PYTHON],
        cwd=project,
        env={"HOME": str(home), "PATH": os.environ["PATH"], "TMPDIR": str(home)},
        capture_output=True,
        text=True,
        timeout=_LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return project / ".flash" / "artifact.tar.gz"


def with_files(archive: Path, target: Path, files: dict[str, bytes]) -> Path:
    """Return the same artifact with further or replaced files."""
    with tarfile.open(archive) as old, tarfile.open(target, "w:gz", compresslevel=1) as new:
        for member in old:
            if member.name.removeprefix("./") not in files:
                new.addfile(member, old.extractfile(member) if member.isreg() else None)
        for name, content in files.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(content)
            new.addfile(info, io.BytesIO(content))
    return target


def file_of(archive: Path, name: str) -> bytes:
    """The content of one file of an artifact."""
    with tarfile.open(archive) as tar:
        file = tar.extractfile(f"./{name}")
        assert file is not None
        return file.read()


def unpacked(archive: Path, target: Path) -> Path:
    """Unpack the artifact; return its folder."""
    with tarfile.open(archive) as tar:
        tar.extractall(target, filter="data")
    return target
