"""Finds compiled modules that the app's Python cannot load, by their names alone.

    numpy/core/_multiarray.cpython-312-x86_64-linux-gnu.so   says Python 3.12 on x86_64 Linux
    numpy-2.1.0.dist-info/WHEEL: Tag: cp312-cp312-...        says the same of a whole package

An app with such modules is loaded all the same, because some packages deliberately contain a
module for several Pythons. If loading fails, the error names these modules: the packages' own
errors seldom mention another Python.
"""

from __future__ import annotations

import os
import platform
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .regular_files import read_regular

__all__ = ["ForeignModule", "explain_foreign", "find_foreign", "foreign_modules"]

#: `name.<tag>.so`, or `.pyd` on Windows; a name without a tag says nothing.
_MODULE: Final = re.compile(r"(?P<stem>[^.]+)(?:\.(?P<tag>[^/]+))?\.(?P<end>so|pyd)")
_CPYTHON: Final = re.compile(
    r"(?:cpython-|cp)(?P<major>\d)(?P<minor>\d+)(?P<flags>[a-z]*)(?:-(?P<platform>.+))?"
)
_WHEEL_TAG: Final = re.compile(rb"^Tag:\s*([^\s-]+-[^\s-]+-\S+)\s*$", re.MULTILINE)
_MOST_FILES: Final = 500_000
_MOST_BYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignModule:
    """A file that says it is for another Python or another platform."""

    #: Path relative to the app's directory.
    file: str
    tag: str


def find_foreign(folder: Path, python: str) -> list[ForeignModule]:
    """Return the foreign modules of an unpacked app; blocking."""
    files = list(_files(folder))
    found = foreign_modules((name for name in files if name.endswith((".so", ".pyd"))), python)
    wheels = [name for name in files if name.endswith(".dist-info/WHEEL") and name.count("/") == 1]
    return found + [each for name in wheels for each in _of_wheel(folder, name, python)]


def foreign_modules(files: Iterable[str], python: str, machine: str = "") -> list[ForeignModule]:
    """Return modules without a variant for a Python such as ``3.12`` on this machine."""
    machine = machine or platform.machine()
    variants: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for file in files:
        folder, _, name = file.rpartition("/")
        matched = _MODULE.fullmatch(name)
        if matched is not None:
            tag = matched["tag"] or ("windows" if matched["end"] == "pyd" else "")
            variants[f"{folder}/{matched['stem']}"].append((file, tag))
    return [
        ForeignModule(file=file, tag=tag)
        for found in variants.values()
        if not any(_fits(tag, python, machine) for _, tag in found)
        for file, tag in found[:1]
    ]


def _fits(tag: str, python: str, machine: str) -> bool:
    matched = _CPYTHON.fullmatch(tag)
    if matched is None:
        # `abi3` fits every Python. Other tags count as fitting, except those of other interpreters.
        return not tag.startswith(("pypy", "graalpy", "windows"))
    if f"{matched['major']}.{matched['minor']}" != ".".join(python.split(".")[:2]):
        return False
    if "t" in matched["flags"]:  # free-threaded: another binary interface
        return False
    where = matched["platform"] or ""
    return not where or (where.startswith(f"{machine}-linux") and "musl" not in where)


def _of_wheel(folder: Path, name: str, python: str) -> Iterator[ForeignModule]:
    """Yield a package if all its tags are for another Python; its modules may lack tags."""
    try:
        text = read_regular(folder / name, _MOST_BYTES)
    except OSError:
        return
    tags = [found.decode("utf-8", "replace") for found in _WHEEL_TAG.findall(text)]
    if tags and not any(_tag_fits(tag, python) for tag in tags):
        yield ForeignModule(file=name, tag=tags[0])


def _tag_fits(tag: str, python: str) -> bool:
    interpreter, abi, _ = tag.split("-", 2)
    wanted = "cp" + "".join(python.split(".")[:2])
    if not interpreter.startswith("cp") or abi in {"abi3", "none"}:
        return not interpreter.startswith("pp")
    return interpreter == wanted and not abi.endswith("t")


def explain_foreign(found: Iterable[ForeignModule], python: str) -> str:
    """Return one sentence about such modules, or an empty string."""
    found = list(found)
    if not found:
        return ""
    first, more = found[0], len(found) - 1
    others = f" (and {more} more like it)" if more else ""
    return (
        f"{first.file} is compiled for {first.tag}{others}, and the app's Python is {python}: "
        "build the artifact with `flash build --python-version` of the Python that runs it"
    )


def _files(folder: Path) -> Iterator[str]:
    count = 0
    for here, folders, names in os.walk(folder):
        folders.sort()
        base = os.path.relpath(here, folder)
        for name in sorted(names):
            count += 1
            if count > _MOST_FILES:
                return
            yield name if base == "." else f"{base}/{name}"
