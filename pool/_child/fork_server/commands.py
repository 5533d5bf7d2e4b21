"""The commands that a call finds on ``PATH``: those of its environment.

    PATH = `for_children/commands` : folder of the interpreter : the server's PATH

``python`` and ``python3`` are the call's own interpreter. If its folder has no commands of these
names, they are created in a folder that lives as long as the zygote.
"""

from __future__ import annotations

import os
import sys

from .. import call_files

#: Folders of the system, with commands of all kinds: they keep their places on the path.
_SHARED = ("/usr/bin", "/bin")
#: The folder with flashpool's commands, such as ``pip``.
_COMMANDS = f"{os.path.dirname(os.path.dirname(os.path.abspath(__file__)))}/for_children/commands"
_SCRIPT = """#!/bin/sh
exec '{python}' "$@"
"""


def arrange() -> None:
    """Set ``PATH`` once per prepared process, before any other code reads it."""
    folder = os.path.dirname(sys.executable)
    path = os.environ.get("PATH", os.defpath).split(os.pathsep)
    if folder not in _SHARED or folder not in path:
        path = [folder, *(one for one in path if one != folder)]
    missing = [name for name in ("python", "python3") if not _is_ours(name, path)]
    if missing:
        try:
            path.insert(0, _folder_of(missing))
        except OSError:
            pass  # no directory is writable: calls find only the environment's own commands
    os.environ["PATH"] = os.pathsep.join([_COMMANDS, *path])


def _is_ours(name: str, path: list[str]) -> bool:
    """Return whether the first command of this name is this interpreter, in its environment."""
    for folder in path:
        candidate = f"{folder}/{name}"
        if os.access(candidate, os.X_OK) and not os.path.isdir(candidate):
            same = os.path.realpath(candidate) == os.path.realpath(sys.executable)
            # A link to the same file in another folder belongs to another environment, or to none.
            return same and folder == os.path.dirname(sys.executable)
    return False


def _folder_of(names: list[str]) -> str:
    """Create a folder with these commands and return it; spawned workers share the folder."""
    folder = call_files.of_the_zygote("commands")
    quoted = sys.executable.replace("'", "'\\''")
    for name in names:
        file = f"{folder}/{name}"
        if not os.path.exists(file):
            made = f"{file}.{os.getpid()}"
            with open(made, "w", encoding="utf-8", errors="surrogateescape") as script:
                script.write(_SCRIPT.format(python=quoted))
                os.chmod(script.fileno(), 0o700)
            os.rename(made, file)
    return folder
