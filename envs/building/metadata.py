"""Checks that an environment is consistent: the layer's metadata merged with the base's.

uv installed the lock with `--no-deps`, and does not see the base, so only this check covers the
whole. It reads every `*.dist-info/METADATA` of the layer. It checks each line of the request, and
each dependency of a layer package, against brought packages, then the layer, then the base, as
Python imports them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from email.parser import HeaderParser
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from flashpool.envs.resolving.base_interpreter import BaseFacts, BasePackage
from flashpool.envs.store.apart import carried_out
from flashpool.envs.store.layout import MAX_OWN_FILE, read_file

__all__ = ["problems", "read_packages", "site_packages_of"]


@carried_out
def site_packages_of(venv: Path) -> Path:
    """Return the one site-packages directory of a virtualenv."""
    found = sorted((venv / "lib").glob("python3.*/site-packages"))
    if len(found) != 1:
        raise FileNotFoundError(f"{venv} has {len(found)} site-packages directories")
    return found[0]


@carried_out
def read_packages(site_packages: Path) -> dict[str, BasePackage]:
    """Return every distribution in a directory; unreadable ones are left out."""
    packages = (_read(path) for path in sorted(site_packages.glob("*.dist-info/METADATA")))
    return {package.name: package for package in packages if package is not None}


def _read(path: Path) -> BasePackage | None:
    try:
        data = read_file(path, MAX_OWN_FILE)
    except OSError:
        return None  # not readable, or not a regular file
    # The headers end at the first empty line; the description after it can be long.
    text = data.replace(b"\r\n", b"\n").partition(b"\n\n")[0]
    headers = HeaderParser().parsestr(text.decode("utf-8", "replace"))
    try:
        version = Version(headers["Version"])
    except (InvalidVersion, TypeError):
        return None
    return BasePackage(
        name=canonicalize_name(headers["Name"]),
        version=version,
        requires=tuple(headers.get_all("Requires-Dist") or ()),
        extras=frozenset(canonicalize_name(e) for e in headers.get_all("Provides-Extra") or ()),
    )


def problems(roots: Iterable[str], layer: Mapping[str, BasePackage], base: BaseFacts) -> list[str]:
    """Return unsatisfied requirements; empty if there are none."""
    merged = {**base.packages, **layer, **base.brought}
    found: list[str] = []
    pending = [(Requirement(root), "the request") for root in roots]
    pending += [
        (needed, name) for name, package in layer.items() for needed in _plain(package, base)
    ]
    seen: set[tuple[str, str]] = set()
    while pending:
        requirement, origin = pending.pop()
        mark = (str(requirement), origin)
        if mark in seen or (origin == "the request" and not base.applies(requirement)):
            continue
        seen.add(mark)
        package = merged.get(canonicalize_name(requirement.name))
        problem = _problem(requirement, package, origin)
        if problem:
            found.append(problem)
        elif package is not None:
            pending += [(needed, package.name) for needed in _extra(package, requirement, base)]
    return sorted(found)


def _problem(requirement: Requirement, package: BasePackage | None, origin: str) -> str:
    if package is None:
        return f"{origin} needs {requirement}, which is not there"
    if not requirement.specifier.contains(package.version, prereleases=True):
        return f"{origin} needs {requirement}, but {package.name} {package.version} is there"
    return ""


def _requirements(package: BasePackage) -> Iterable[Requirement]:
    for text in package.requires:
        try:
            yield Requirement(text)
        except InvalidRequirement:
            continue


def _plain(package: BasePackage, base: BaseFacts) -> Iterable[Requirement]:
    return [needed for needed in _requirements(package) if base.applies(needed)]


def _extra(
    package: BasePackage, requirement: Requirement, base: BaseFacts
) -> Iterable[Requirement]:
    extras = requirement.extras & {*package.extras, *requirement.extras}
    if not extras:
        return []
    return [
        needed
        for needed in _requirements(package)
        if not base.applies(needed) and base.applies(needed, extras)
    ]
