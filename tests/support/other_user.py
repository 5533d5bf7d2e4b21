"""Programs that run as a user without root's rights, to see what root would not."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from support.wants import missing, program

#: Nobody's, and no process' beside those of the test.
_USER: Final = 63331
_LIMIT_S: Final = 60


def run(source: str, folder: Path) -> str:
    """Run a Python program as that user; what it printed. ``folder`` becomes its home.

    It may read whatever there is, for the interpreter and the packages may lie in root's home.
    That is the one right it has beyond those of any user; to trace a process is another.
    """
    setpriv = program("setpriv")
    if os.getuid() != 0:
        raise missing("root", "only root may become another user")
    home = folder / "home"
    home.mkdir()
    os.chown(home, _USER, _USER)
    done = subprocess.run(
        [
            *(setpriv, f"--reuid={_USER}", f"--regid={_USER}", "--clear-groups"),
            *("--inh-caps=-all,+dac_read_search", "--ambient-caps=+dac_read_search"),
            *("--bounding-set=-all,+dac_read_search", sys.executable, "-c", source),
        ],
        capture_output=True,
        text=True,
        cwd=home,
        env={"PATH": os.environ["PATH"], "HOME": str(home), "TMPDIR": str(home)},
        timeout=_LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
