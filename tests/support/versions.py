"""Earlier versions of flashpool, from this checkout's history, run with this checkout's packages.

older(commit, folder) --git archive--> folder/flashpool/{pool,envs,frontends} --PYTHONPATH--> a process
"""

import os
import subprocess
from pathlib import Path

from .wants import missing, program

ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = ("pool", "envs", "frontends")


def older(commit: str, folder: Path) -> Path:
    """Return the PYTHONPATH for the version of a commit; skip the test without that commit."""
    git = program("git")
    asked = [git, "-C", str(ROOT), "archive", "--format=tar", commit, "--", *_PACKAGES]
    packed = subprocess.run(asked, capture_output=True, check=False)
    if packed.returncode:
        why = packed.stderr.decode().strip().partition("\n")[0]
        raise missing(f"the history of git to {commit}", f"a shallow clone does not do ({why})")
    (folder / "flashpool").mkdir(parents=True)
    subprocess.run(
        [program("tar"), "-x", "-C", str(folder / "flashpool")], input=packed.stdout, check=True
    )
    return folder


def variables(sources: Path | None) -> dict[str, str]:
    """Return the environment of a process of that version; None means this version."""
    return os.environ | ({"PYTHONPATH": str(sources)} if sources else {})
