"""Chooses advice for a failure, from the request and the failure's own message. Pure.

cv2            the index has no such package: opencv-python-headless provides the module
json           part of Python: leave it out
numpy==2.5.5   needs another Python: `wants_other_python`; the caller finds out which
"""

from __future__ import annotations

import re
import sys
from typing import Final

from packaging.utils import canonicalize_name

from flashpool.envs.errors import BuildFailed, EnvironmentFailure, ResolutionFailed
from flashpool.envs.import_names import is_another_package, module_named, providers_of

from .spec import NormalSpec

__all__ = ["named_after_modules", "on_python", "wants_other_python", "with_advice"]

_OTHER_PYTHON: Final = re.compile(
    r"does not satisfy Python|matching Python|Python ABI tag|requires a different Python"
)
_UNKNOWN: Final = re.compile(r"index has no (?:package|version of) '([^']+)'")
_NAME: Final = re.compile(r"([\w.-]+)")
_PINNED: Final = re.compile(r"([A-Za-z0-9][\w.-]*)==[^\s,*]+")


def with_advice(failure: EnvironmentFailure, spec: NormalSpec) -> EnvironmentFailure:
    """Return the failure, with better advice if a requirement is the name of a module."""
    if not isinstance(failure, (ResolutionFailed, BuildFailed)):
        return failure
    for name in sorted(spec.names):
        packages = _other_packages(name)
        if packages and _speaks_of(failure, name):
            advice = (
                f"{module_named(name)} is the name of a module: {_provided(packages)}. "
                "Put that into `dependencies`"
            )
            return failure.but(advice=advice)
        found = _UNKNOWN.search(failure.what)
        if found and found[1] == name and name.replace("-", "_") in sys.stdlib_module_names:
            return failure.but(advice=f"{name} is part of Python: leave it out of `dependencies`")
    return failure


def _speaks_of(failure: EnvironmentFailure, name: str) -> bool:
    """Return whether the failure is about this package: missing, not matching or not built."""
    if isinstance(failure, BuildFailed):
        found = _NAME.match(failure.requirement)
        return found is not None and canonicalize_name(found[1]) == name
    return re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w.-])", failure.words) is not None


def _other_packages(name: str) -> tuple[str, ...]:
    return providers_of(name) if is_another_package(name) else ()


def _provided(packages: tuple[str, ...]) -> str:
    first, *rest = packages
    others = f" (or {', '.join(rest)})" if rest else ""
    return f"the package that provides it is {first}{others}"


def named_after_modules(spec: NormalSpec) -> tuple[str, ...]:
    """Return a warning for each requirement that is a module's name but another package."""
    return tuple(
        f"warning: `{name}` in `dependencies` is not what `import {module_named(name)}` needs: {_provided(packages)}"
        for name in sorted(spec.names)
        if (packages := _other_packages(name))
    )


def wants_other_python(failure: EnvironmentFailure) -> str | None:
    """Return the package that must have a wheel on another Python for that Python to help.

    Empty if only versions decide; None if another Python does not help.
    """
    if isinstance(failure, ResolutionFailed) and _OTHER_PYTHON.search(failure.words):
        return ""
    pinned = _PINNED.match(failure.requirement) if isinstance(failure, BuildFailed) else None
    return pinned[1] if pinned else None


def on_python(
    failure: EnvironmentFailure, version: str, *, now: str, installed: bool
) -> EnvironmentFailure:
    """Return the failure, with the advice to use a Python on which the request resolves."""
    advice = f'set python_version to "{version}": the request resolves there, not on Python {now}'
    if not installed:
        advice += (
            "; that Python is not installed here, so the operator has to install it or "
            "set FLASHPOOL_PYTHON_DOWNLOADS=1"
        )
    if isinstance(failure, BuildFailed):
        advice += f"; or {failure.advice}"
    return failure.but(advice=advice)
