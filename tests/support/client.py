"""The virtualenv with the real client, `runpod-flash`, as its users have it: without flashpool.

It is made from the lock's group `client`, for the Python that runs this, in
`.venv-client-3.x` beside pyproject.toml; `python tests/support/client.py` makes it ahead of
the tests and costs nothing when it is there.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
_VENV: Final = ROOT / ".venv-client-{}.{}".format(*sys.version_info)


def client_python() -> Path:
    """The client's interpreter; the environment is built when it is absent or out of date."""
    lock, stamp = ROOT / "uv.lock", _VENV / ".installed"
    if not stamp.exists() or stamp.stat().st_mtime < lock.stat().st_mtime:
        _build()
        stamp.touch()
    return _VENV / "bin" / "python"


def _build() -> None:
    from uv import find_uv_bin

    subprocess.run(
        [
            find_uv_bin(),
            "sync",
            "--quiet",
            "--frozen",
            "--only-group=client",
            "--no-install-project",
            f"--python={sys.executable}",
        ],
        cwd=ROOT,
        env={
            **{name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"},
            "UV_PROJECT_ENVIRONMENT": str(_VENV),
            "UV_PYTHON_DOWNLOADS": "never",
            "UV_SYSTEM_CERTS": "1",
        },
        check=True,
    )


if __name__ == "__main__":
    client_python()
