"""SDK 2.0's command `rp`: dev sessions against the stand-in, and builds of artifacts."""

import os
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from e2e.endpoints import repack

from support.client import sdk_python


def run_rp(
    *arguments: str | Path, folder: Path, variables: Mapping[str, str], program: str = "rp"
) -> list[str]:
    """Run the command, or its virtualenv's Python; return all lines it prints."""
    home = folder / "home"
    home.mkdir(exist_ok=True)
    done = subprocess.run(
        [sdk_python().with_name(program), *arguments],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        env={
            "HOME": str(home),
            "PATH": os.environ["PATH"],
            "TMPDIR": str(home),
            "RUNPOD_API_KEY": "client-key",
            "COLUMNS": "200",
            **variables,
        },
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return [line.rstrip() for line in done.stdout.splitlines()]


def build_artifact(source: Path, folder: Path) -> Path:
    """Build an artifact with `rp flash deploy --build-only`, without an index."""
    wheels = folder / "wheels"
    if not wheels.exists():
        wheels.mkdir()
        (packages,) = sdk_python().parents[1].glob("lib/python*/site-packages")
        for found in metadata.distributions(path=[str(packages)]):
            repack(found, wheels)
    run_rp(
        *("flash", "deploy", source, "--build-only"),
        folder=folder,
        variables={
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(wheels),
            "PIP_NO_COMPILE": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        },
    )
    (artifact,) = folder.glob("*-artifact.tar.gz")
    return artifact
