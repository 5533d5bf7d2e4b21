"""Commands of the base's packages, for an environment that sees these packages.

    tqdm = tqdm.cli:main   ->   bin/tqdm, run by the interpreter beside it

The base's own script would run in the base, which does not see the environment's packages.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

__all__ = ["add_base_commands"]

#: The form that uv writes: a shell finds the interpreter, wherever the environment is moved.
_SCRIPT: Final = """#!/bin/sh
'''exec' "$(dirname -- "$(realpath -- "$0")")"/'python' "$0" "$@"
' '''
import sys

from {module} import {first}

if __name__ == "__main__":
    sys.exit({function}())
"""
_NAME: Final = re.compile(r"[\w.+-]+", re.ASCII)
_MEANING: Final = re.compile(r"([\w.]+)\s*:\s*([\w.]+)")
#: A call has its own versions of these commands: they install for that call alone.
_OTHERS: Final = re.compile(r"pip[\d.]*|python[\d.]*")


def add_base_commands(folder: Path, commands: Mapping[str, str]) -> None:
    """Write the commands that the environment's own packages lack; blocking."""
    for name, meaning in commands.items():
        found = _MEANING.fullmatch(meaning)
        if found is None or not _NAME.fullmatch(name) or _OTHERS.fullmatch(name):
            continue
        file = folder / name
        if file.exists() or name.startswith("."):
            continue
        module, function = found.groups()
        first = function.partition(".")[0]
        file.write_text(_SCRIPT.format(module=module, first=first, function=function))
        file.chmod(0o755)
