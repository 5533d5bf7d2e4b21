"""Finds what exists: an environment on this disk, or an archive on the volume.

    look      mark -> facts -> verify (once a process) -> lease table entry
    fetch     manifest -> unpack in scratch -> publish locally -> look
    pack      the reverse: from a local environment to an archive

A damaged environment is reported as absent, and recorded as damaged, so that the next build
replaces it instead of keeping it.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path

from flashpool.envs.archives import archive
from flashpool.envs.building.metadata import site_packages_of
from flashpool.envs.errors import Tampered
from flashpool.envs.lease import Environment, Origin, Seconds
from flashpool.envs.resolving.base_interpreter import BaseFacts
from flashpool.envs.settings import EnvSettings
from flashpool.envs.store import manifest
from flashpool.envs.store.apart import carried_out
from flashpool.envs.store.eviction import evict_archives
from flashpool.envs.store.layout import is_directory

from .open_store import OpenStore

__all__ = ["Lookup"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup:
    """Environments and archives that exist; every method blocks."""

    open_store: OpenStore
    settings: EnvSettings
    damaged: set[str] = field(default_factory=set)
    bad_archives: set[str] = field(default_factory=set)
    _verified: dict[str, float] = field(default_factory=dict)

    def look(
        self, digest: str, origin: Origin, seconds: Seconds | None = None
    ) -> Environment | None:
        """Hold the environment with this digest; return None if there is no usable one.

        The environment stays in the lease table, idle: the caller takes its lease there.
        """
        table = self.open_store.table
        with table.pinning(digest):
            self.open_store.marks.put(digest)
            environment = self._checked(digest)
            if environment is not None:
                table.enter(digest, environment)
                table.give_back(digest)
                return environment.seen_as(origin, seconds)
        if digest not in table.held():
            table.retire(digest)
        return None

    def trust(self, digest: str, created: float) -> None:
        """Trust the files of an environment that were just listed, without comparing them again."""
        self._verified[digest] = created

    def _checked(self, digest: str) -> Environment | None:
        path = self.open_store.store.environment(digest)
        if not is_directory(path):
            return None
        try:
            environment = environment_of(path, self._verify(path))
        except (Tampered, FileNotFoundError) as error:
            # The error is about the environment's site-packages; others' lists of files do not
            # cover it.
            _log.warning("%s", error)
            self.damaged.add(digest)
            return None
        self.damaged.discard(digest)
        return environment

    def _verify(self, path: Path) -> manifest.Facts:
        facts = manifest.read_facts(path)
        if facts is None or facts.digest != path.name:
            raise Tampered(f"environment {path.name} has no facts")
        if not _leads_somewhere(path / "bin" / "python"):
            raise Tampered(f"environment {path.name} has no interpreter")
        if self._verified.get(facts.digest) == facts.created:
            return facts
        if self.settings.volume_key and self.open_store.places.mode == "volume":
            manifest.check_seal(path, self.settings.volume_key)
        else:
            manifest.check_sizes(path)
        self._verified[facts.digest] = facts.created
        return facts

    def promised(self, digest: str) -> archive.ArchiveInfo | None:
        """Return the facts of an archive on the volume; None if there is no usable one."""
        try:
            return archive.read_manifest(self.open_store.shared, digest, self.settings.volume_key)
        except (Tampered, FileNotFoundError) as error:
            self._set_aside(digest, error)
            return None

    def fetch(self, info: archive.ArchiveInfo, base: BaseFacts) -> bool:
        """Unpack an archive into the local store; return False if it breaks its promise."""
        try:
            self._unpack(info, base)
        except (Tampered, FileNotFoundError, FileExistsError) as error:
            # FileExistsError: flashpool never packs a file where the links to the interpreter
            # belong.
            self._set_aside(info.digest, error)
            return False
        self._touch_archive(info.digest)
        return True

    def _set_aside(self, digest: str, error: Exception) -> None:
        _log.warning("archive %s cannot be used: %s", digest, error)
        self.bad_archives.add(digest)

    def _unpack(self, info: archive.ArchiveInfo, base: BaseFacts) -> None:
        store = self.open_store.store
        with store.scratch(self.open_store.holders.me) as folder:
            target = folder / "env"
            archive.unpack(
                info, self.open_store.shared.archive(info.digest), target, base.real_python
            )
            manifest.write_facts(target, info.facts)
            replace = info.digest in self.damaged
            store.publish(target, store.environment(info.digest), replace=replace)
        self.trust(info.digest, info.facts.created)

    def _touch_archive(self, digest: str) -> None:
        try:
            _note_use(self.open_store.shared.archive_manifest(digest))
        except OSError:
            pass  # a read-only volume keeps no order of use

    def archived(self, digest: str) -> bool:
        """Return whether an archive is on the volume and not known to be damaged."""
        if not self.open_store.archives or digest in self.bad_archives:
            return False
        return _leads_somewhere(self.open_store.shared.archive_manifest(digest))

    def unfinished(self, digest: str) -> bool:
        """Return whether bytecode, seal or archive of the environment are still missing."""
        if not manifest.sealed(self.open_store.store.environment(digest)):
            return True
        return self.open_store.archives_writable and not self.archived(digest)

    def pack(self, digest: str) -> None:
        """Write an archive of a finished local environment to the volume."""
        archive.pack(
            self.open_store.store.environment(digest),
            self.open_store.shared,
            self.open_store.shared_holders.me,
            self.settings.volume_key,
        )
        self.bad_archives.discard(digest)
        evict_archives(self.open_store.shared, self.open_store.evictor.limits.quota)


@carried_out
def _leads_somewhere(file: Path) -> bool:
    return file.is_file()


@carried_out
def _note_use(file: Path) -> None:
    os.utime(file, follow_symlinks=False)


def environment_of(path: Path, facts: manifest.Facts) -> Environment:
    """Return the environment in a published directory."""
    layer = site_packages_of(path)
    return Environment(
        digest=facts.digest,
        python=path / "bin" / "python",
        root=path,
        site_dirs=(layer, *(Path(folder) for folder in facts.site_dirs)),
        mode=facts.mode,
        origin="memo",
    )
