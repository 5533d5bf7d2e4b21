"""What an app needs beyond its artifact: a version of Python, and further packages.

    runpod_flash/__init__.py   __version__ -> runpod-flash==<version>; the client has no metadata
    *.dist-info                a package of the artifact -> a constraint; not installed again
    the operator's settings    packages that `flash build` leaves out, such as torch

The artifact's versions constrain the further packages: an old pydantic and the newest fastapi, for
example, do not work together. The module only reads names and one file.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from .contract import AppEnvironment
from .errors import ManifestRefused
from .regular_files import read_regular

__all__ = ["brought_packages", "client_version", "requirements_beside", "wanted_environment"]

_CLIENT: Final = "runpod-flash"
_CLIENT_FILE: Final = "runpod_flash/__init__.py"
_DIST_INFO: Final = re.compile(r"(?P<name>[A-Za-z0-9._]+)-(?P<version>[^-]+)\.dist-info")
_MOST_BYTES: Final = 1 << 20


def wanted_environment(folder: Path, python: str, further: Iterable[str]) -> AppEnvironment:
    """Return the environment of one app; blocking.

    Raises:
        ManifestRefused: the folder does not say which client it was built with.
    """
    brought = brought_packages(os.listdir(folder))
    version = client_version(folder) or brought.get(_CLIENT, "")
    if not version:
        raise ManifestRefused(
            f"{folder / _CLIENT_FILE} states no __version__: the artifact was not made by `flash build`"
        )
    return AppEnvironment(
        python=python,
        requirements=requirements_beside(brought, version, further),
        constraints=tuple(f"{name}=={brought[name]}" for name in sorted(brought)),
    )


def requirements_beside(
    brought: dict[str, str], client: str, further: Iterable[str]
) -> tuple[str, ...]:
    """Return the requirements to install beside the artifact; uv adds their dependencies."""
    # The client is required even if the artifact contains it with metadata: the artifact may have
    # been built without some of the client's dependencies.
    wanted = [f"{_CLIENT}=={client}"]
    if "runpod" not in brought:
        # The client sets no bound, and was written for runpod 1.x.
        wanted.append("runpod<2")
    if "python-multipart" not in brought:
        wanted.append("python-multipart")
    wanted += [line for line in further if _name(line) not in brought]
    return tuple(dict.fromkeys(wanted))


def brought_packages(names: Iterable[str]) -> dict[str, str]:
    """Return name -> version of the packages whose metadata is at the root.

    Versions lack their local part, such as ``+cu128``, which an index does not know.
    """
    found = {}
    for name in names:
        matched = _DIST_INFO.fullmatch(name)
        if matched is None:
            continue
        try:
            version = Version(matched["version"])
        except InvalidVersion:
            continue
        found[str(canonicalize_name(matched["name"]))] = version.public
    return found


def client_version(folder: Path) -> str:
    """Return the literal ``__version__`` of the bundled client, or an empty string."""
    try:
        source = read_regular(folder / _CLIENT_FILE, _MOST_BYTES)
        tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return ""
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign):
            targets = [node.target]
        if any(isinstance(each, ast.Name) and each.id == "__version__" for each in targets):
            return _literal(node)
    return ""


def _literal(node: ast.stmt) -> str:
    value = getattr(node, "value", None)
    if not (isinstance(value, ast.Constant) and isinstance(value.value, str)):
        return ""
    try:
        return str(Version(value.value))
    except InvalidVersion:
        return ""


def _name(line: str) -> str:
    try:
        return str(canonicalize_name(Requirement(line).name))
    except InvalidRequirement:
        return ""
