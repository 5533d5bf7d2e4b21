"""Shows a base's packages to uv's resolver without their files.

uv does not see the packages of another environment, and does not accept a version that no index has
(`2.4.0a0+git1234`, a vendor's own build). So each base package gets a stub: a wheel that contains
only metadata, in a directory given as `--find-links`.

    torch 2.4.0+cu128 in base -> torch-2.4.0+cu128-py3-none-any.whl   (metadata only)
    numpy 1.26.4 in base      -> numpy-1.26.4+flashpool.base-...      (same, marked)

The local label distinguishes a stub from the index's file of that version. A public pin
(`numpy==1.26.4`) still accepts the stub, as PEP 440 says. A stub has only the dependencies of its
extras: the base's packages work as installed, and an image with inconsistent metadata must not make
every request a conflict. Stubs are written once per base, and kept in scratch while the process
lives.
"""

from __future__ import annotations

import asyncio
import zipfile
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement

from flashpool.envs.concurrency.cancellation import run_in_thread_or_undo
from flashpool.envs.concurrency.disk_threads import run_in_thread
from flashpool.envs.store.apart import carried_out
from flashpool.envs.store.layout import Store, is_there, remove_tree

from .base_interpreter import BaseFacts, BasePackage

__all__ = ["StubBase", "Stubs", "stub_version", "unmarked", "write_stubs"]

_LABEL: Final = "flashpool.base"


@dataclass(frozen=True, slots=True, kw_only=True)
class StubBase:
    """The files that a constrained resolution needs."""

    wheels: Path
    constraints: Path


class Stubs:
    """The stubs of each base that was requested; on one event loop."""

    def __init__(self, store: Store, holder: str) -> None:
        self._store = store
        self._holder = holder
        self._known: dict[tuple[str, frozenset[str]], StubBase] = {}
        self._writing = asyncio.Lock()

    async def of(self, base: BaseFacts, *, without: Iterable[str]) -> StubBase:
        """Return stubs of a base's packages, except those in ``without``."""
        # A base of which only a part is used has fewer packages, and other stubs.
        key = (base.fingerprint, frozenset(base.packages).difference(without))
        async with self._writing:
            found = self._known.get(key)
            # Another process may have deleted them, if it considered this process dead.
            if found is None or not await run_in_thread(is_there, found.constraints):
                found = await run_in_thread_or_undo(partial(self._write, base, key[1]), _remove)
                self._known[key] = found
            return found

    def _write(self, base: BaseFacts, names: frozenset[str]) -> StubBase:
        folder = self._store.make_scratch(self._holder)
        try:
            return write_stubs(base, folder, names)
        except OSError:
            remove_tree(folder)
            raise

    async def close(self) -> None:
        """Delete all stubs, so that scratch is empty."""
        async with self._writing:
            for stubs in self._known.values():
                await run_in_thread(_remove, stubs)
            self._known.clear()


def _remove(stubs: StubBase) -> None:
    remove_tree(stubs.constraints.parent)


def stub_version(package: BasePackage) -> str:
    """Return the version of a stub: the base's own, with a local label if it has none."""
    version = str(package.version)
    return version if package.version.local else f"{version}+{_LABEL}"


def unmarked(text: str) -> str:
    """Return a text with the base's own versions: a stub's label means nothing to users."""
    return text.replace(f"+{_LABEL}", "")


@carried_out
def write_stubs(base: BaseFacts, folder: Path, names: Collection[str]) -> StubBase:
    """Write a stub for each base package with one of these names, and constraints; blocking."""
    wheels = folder / "stubs"
    wheels.mkdir(parents=True, exist_ok=True)
    packages = [package for name, package in base.packages.items() if name in names]
    for package in packages:
        _write_wheel(package, wheels)
    constraints = folder / "base-constraints.txt"
    lines = [f"{package.name}=={stub_version(package)}\n" for package in packages]
    constraints.write_text("".join(sorted(lines)))
    return StubBase(wheels=wheels, constraints=constraints)


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
