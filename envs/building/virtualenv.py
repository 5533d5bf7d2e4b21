"""Creates the skeleton of a virtualenv: three links, a directory, two configuration files.

The result equals that of `uv venv --relocatable`, without activation scripts, in a hundredth of the
time and with a hundredth of the files to archive.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from flashpool.envs.store.apart import carried_out

__all__ = ["link_interpreter", "make_virtualenv"]

#: Configuration that makes pip fail unless it is told where to install: the path cannot be created
#: or read. Variables of `call_packages` take precedence.
_PIP: Final = """[install]
target = /dev/null/calls share this environment: name packages in the request's dependencies
[uninstall]
requirement = /dev/null/others-use-this-environment--name-packages-in-dependencies
"""


@carried_out
def make_virtualenv(path: Path, python: Path, version: str) -> None:
    """Make a virtualenv; `path` does not exist, `python` is the interpreter and not a link."""
    minor = _minor(version)
    (path / "lib" / f"python{minor}" / "site-packages").mkdir(parents=True)
    lines = {
        "home": str(python.parent),
        "implementation": "CPython",
        "version_info": version,
        "include-system-site-packages": "false",
        # uv reads this one: entry points are written so that they may be moved.
        "relocatable": "true",
    }
    text = "".join(f"{key} = {value}\n" for key, value in lines.items())
    (path / "pyvenv.cfg").write_text(text, encoding="utf-8")
    (path / "pip.conf").write_text(_PIP, encoding="utf-8")
    link_interpreter(path, python, version)


@carried_out
def link_interpreter(path: Path, python: Path, version: str) -> None:
    """Create the links to the interpreter; an archive contains none."""
    folder = path / "bin"
    folder.mkdir(exist_ok=True)
    names = (("python", str(python)), ("python3", "python"), (f"python{_minor(version)}", "python"))
    for name, meaning in names:
        (folder / name).symlink_to(meaning)
    if not (path / "lib64").exists():
        (path / "lib64").symlink_to("lib")


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])
