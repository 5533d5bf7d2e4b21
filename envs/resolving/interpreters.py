"""Finds the Python that a request names, and trusts an interpreter only once it has run.

    uv's answer -> PATH -> the Pythons behind shims on PATH --probe--> the first of that version

pyenv, asdf and similar tools put shims on PATH: scripts for every version that any of their Pythons
has, which fail for all but the selected Python. uv stops at the first shim that fails, although the
next directory may contain the requested Python.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from flashpool.envs.errors import EnvironmentFailure, InterpreterMissing
from flashpool.envs.uv_cli import Uv

from .base_interpreter import BaseFacts, Bases

__all__ = ["find_interpreter", "is_version"]

_log = logging.getLogger(__name__)
#: Most candidates that are tried: each costs the start of a process.
_MOST_TRIED: Final = 24
#: Where Pythons are, relative to the parent of a directory of shims: pyenv's, asdf's and mise's.
_BEHIND_SHIMS: Final = ("versions/*/bin", "installs/python/*/bin")


async def find_interpreter(version: str, bases: Bases, uv: Uv, folder: Path) -> BaseFacts:
    """Return facts about an installed Python of that version, or raise InterpreterMissing."""
    refusal: EnvironmentFailure | None = None
    found = None
    try:
        found = await _tried(await uv.find_python(version, folder), version, bases)
    except EnvironmentFailure as failure:
        refusal = failure
    if found is not None:
        return found
    for candidate in list(_candidates(version))[:_MOST_TRIED]:
        found = await _tried(candidate, version, bases)
        if found is not None:
            return found
    if refusal is not None and refusal.retryable:
        raise refusal  # for example a failed download: the next one may succeed
    raise InterpreterMissing(
        f"Python {version} is not installed here",
        words=refusal.words if refusal else "",
        advice="ask for an installed version, or set FLASHPOOL_PYTHON_DOWNLOADS=1",
    )


async def _tried(python: Path, version: str, bases: Bases) -> BaseFacts | None:
    try:
        facts = await bases.facts(python)
    except InterpreterMissing as failure:
        _log.info("%s is skipped: %s", python, failure.what)
        return None
    return facts if is_version(facts, version) else None


def is_version(facts: BaseFacts, version: str) -> bool:
    """Return whether an interpreter is of that version: 3.12 is any 3.12.x."""
    return f"{facts.version}.".startswith(f"{version}.")


def _candidates(version: str) -> Iterator[Path]:
    """Yield files that may be the interpreter, each once."""
    seen: set[Path] = set()
    minor = ".".join(version.split(".")[:2])
    for folder in _folders():
        for name in (f"python{minor}", "python3"):
            path = folder / name
            if path not in seen and os.access(path, os.X_OK) and _may_be(path, minor):
                seen.add(path)
                yield path


def _may_be(path: Path, minor: str) -> bool:
    """Judge by a link's target, which usually names the version and saves starting a process."""
    real = path.resolve().name
    return not real.startswith("python3.") or real == f"python{minor}"


def _folders() -> Iterator[Path]:
    named = [Path(entry) for entry in os.environ.get("PATH", os.defpath).split(os.pathsep) if entry]
    yield from (folder for folder in named if folder.name != "shims")
    for shims in (folder for folder in named if folder.name == "shims"):
        for pattern in _BEHIND_SHIMS:
            yield from sorted(shims.parent.glob(pattern), reverse=True)
        yield shims
