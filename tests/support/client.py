"""The virtualenvs with the real clients, as their users have them: without flashpool.

    client_python()  `runpod-flash`, from the lock's group `client`      .venv-client-3.x
    sdk_python()     SDK 2.0, from the lock in tests/sdk2/client2        .venv-client2-3.x

They are made for the Python that runs this, beside pyproject.toml. `python tests/support/client.py`
makes them ahead of the tests and costs nothing when they are there.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
_SDK_PROJECT: Final = ROOT / "tests" / "sdk2" / "client2"


def client_python() -> Path:
    """The interpreter of the first generation's client."""
    return _python("client", ROOT, "--only-group=client")


def sdk_python() -> Path:
    """The interpreter of SDK 2.0's client; its lock has the oldest version that is supported.

    SDK_PYTHON names another one (`make test-sdk`).
    """
    if given := os.environ.get("SDK_PYTHON"):
        return Path(given)
    return _python("client2", _SDK_PROJECT)


def _python(name: str, project: Path, *selection: str) -> Path:
    """An interpreter; its environment is built when it is absent or out of date."""
    venv = ROOT / ".venv-{}-{}.{}".format(name, *sys.version_info)
    lock, stamp = project / "uv.lock", venv / ".installed"
    if not stamp.exists() or stamp.stat().st_mtime < lock.stat().st_mtime:
        _build(venv, project, selection)
        stamp.touch()
    return venv / "bin" / "python"


def _build(venv: Path, project: Path, selection: tuple[str, ...]) -> None:
    from uv import find_uv_bin

    subprocess.run(
        [
            find_uv_bin(),
            "sync",
            "--quiet",
            "--frozen",
            *selection,
            "--no-install-project",
            f"--python={sys.executable}",
        ],
        cwd=project,
        env={
            **{name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"},
            "UV_PROJECT_ENVIRONMENT": str(venv),
            "UV_PYTHON_DOWNLOADS": "never",
            "UV_SYSTEM_CERTS": "1",
        },
        check=True,
    )


if __name__ == "__main__":
    client_python()
    sdk_python()
