"""Show a base's packages to uv's resolver without their files.

uv neither sees the packages of another environment nor takes a version that no
index has (`2.4.0a0+git1234`, a vendor's own build). So each base package gets a
stub: a wheel that holds only metadata, in a directory given as `--find-links`.

    torch 2.4.0+cu128 in base -> torch-2.4.0+cu128-py3-none-any.whl   (metadata only)
    numpy 1.26.4 in base      -> numpy-1.26.4+flashpool.base-...      (same, marked)

The local label makes a stub distinct from the index's file of that version. A
public pin (`numpy==1.26.4`) still accepts it, as PEP 440 says. A stub keeps only
the dependencies of its extras: what is in the base works as it is, and an image
whose own metadata disagree must not turn every request into a conflict.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement

from .base import BaseFacts, BasePackage

__all__ = ["StubBase", "stub_version", "write_stubs"]

_LABEL: Final = "flashpool.base"


@dataclass(frozen=True, slots=True, kw_only=True)
class StubBase:
    """The files that a constrained resolution needs."""

    wheels: Path
    constraints: Path
    names: frozenset[str]


def stub_version(package: BasePackage) -> str:
    """The version a stub carries: the base's own, with a local label if it had none."""
    version = str(package.version)
    return version if package.version.local else f"{version}+{_LABEL}"


def write_stubs(base: BaseFacts, folder: Path, *, without: Iterable[str]) -> StubBase:
    """Write one stub a package and the constraints file; blocking."""
    wheels = folder / "stubs"
    wheels.mkdir(parents=True, exist_ok=True)
    left_out = frozenset(without)
    packages = [package for name, package in base.packages.items() if name not in left_out]
    for package in packages:
        _write_wheel(package, wheels)
    constraints = folder / "base-constraints.txt"
    lines = [f"{package.name}=={stub_version(package)}\n" for package in packages]
    constraints.write_text("".join(sorted(lines)))
    return StubBase(
        wheels=wheels,
        constraints=constraints,
        names=frozenset(package.name for package in packages),
    )


def _write_wheel(package: BasePackage, folder: Path) -> None:
    version = stub_version(package)
    stem = f"{package.name.replace('-', '_')}-{version}"
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{stem}.dist-info/METADATA", _metadata(package, version))
        wheel.writestr(
            f"{stem}.dist-info/WHEEL",
            "Wheel-Version: 1.0\nGenerator: flashpool\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr(f"{stem}.dist-info/RECORD", "")


def _metadata(package: BasePackage, version: str) -> str:
    lines = ["Metadata-Version: 2.1", f"Name: {package.name}", f"Version: {version}"]
    lines += [f"Provides-Extra: {extra}" for extra in sorted(package.extras)]
    lines += [f"Requires-Dist: {text}" for text in package.requires if _of_an_extra(text)]
    return "\n".join(lines) + "\n"


def _of_an_extra(text: str) -> bool:
    marker = Requirement(text).marker
    return marker is not None and "extra" in str(marker)
