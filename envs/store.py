"""The store on disk: names, atomic publication, trash.

    <root>/envs/<digest>/         a relocatable virtualenv, with flashpool.json in it
    <root>/archives/<digest>.*    archive mode: .tar.zst and its .json (written last)
    <root>/requests/<key>.json    which digest a request meant, and when that was found
    <root>/preloads/<digest>.json what calls imported
    <root>/leases/<digest>/       one mark a holder; `used`, whose time orders eviction
    <root>/claims/<digest>        who is building
    <root>/holders/               heartbeats
    <root>/scratch/<holder>.<n>/  unfinished work; nobody but its holder looks inside
    <root>/trash/                 on its way out
    <root>/cache/                 uv's, on the same file system so that it can hardlink
    <root>/debs/                  system packages

Every write that another process may read is a rename of something complete.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from .digest import is_hex_id

__all__ = ["Store", "read_json", "remove_tree", "write_json"]

_log = logging.getLogger(__name__)

_ARCHIVE: Final = ".tar.zst"
#: Files larger than this are not ours.
_MAX_JSON: Final = 64 * 1024 * 1024


class Store:
    """Paths under one root, and the few moves that are atomic."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.cache = root / "cache"
        self.holders = root / "holders"
        self.scratch_root = root / "scratch"
        self.trash = root / "trash"
        self.debs = root / "debs"

    def __repr__(self) -> str:
        return f"<Store {self.root}>"

    def prepare(self) -> None:
        """Make the directories; blocking, as all of this class."""
        for name in (
            "envs",
            "requests",
            "preloads",
            "leases",
            "claims",
            "holders",
            "scratch",
            "trash",
        ):
            (self.root / name).mkdir(parents=True, exist_ok=True)

    def environment(self, digest: str) -> Path:
        return self.root / "envs" / _checked(digest)

    def archive(self, digest: str) -> Path:
        return self.root / "archives" / f"{_checked(digest)}{_ARCHIVE}"

    def archive_manifest(self, digest: str) -> Path:
        return self.root / "archives" / f"{_checked(digest)}.json"

    def request(self, key: str) -> Path:
        return self.root / "requests" / f"{_checked(key)}.json"

    def preloads(self, digest: str) -> Path:
        return self.root / "preloads" / f"{_checked(digest)}.json"

    def leases(self, digest: str) -> Path:
        return self.root / "leases" / _checked(digest)

    def claim(self, digest: str) -> Path:
        return self.root / "claims" / _checked(digest)

    def claims(self) -> list[tuple[Path, str]]:
        """Every claim, with its owner."""
        folder = self.root / "claims"
        found = []
        for name in _listed(folder):
            try:
                found.append((folder / name, os.readlink(folder / name)))
            except OSError:
                continue
        return found

    def digests(self) -> list[str]:
        """Every published environment."""
        return sorted(name for name in _listed(self.root / "envs") if is_hex_id(name))

    def archived(self) -> list[str]:
        """Every complete archive."""
        names = (Path(name) for name in _listed(self.root / "archives"))
        return sorted(
            name.stem for name in names if name.suffix == ".json" and is_hex_id(name.stem)
        )

    def leavings(self) -> list[Path]:
        """What a writer that dies between two steps leaves, or one at work has not finished."""
        archives = self.root / "archives"
        unfinished = [
            folder / name
            for folder in (self.root / "requests", self.root / "preloads", archives)
            for name in _listed(folder)
            if name.startswith(".")
        ]
        known = set(self.archived())
        return unfinished + [
            archives / name
            for name in _listed(archives)
            if name.endswith(_ARCHIVE) and name.removesuffix(_ARCHIVE) not in known
        ]

    def scratch_names(self) -> list[str]:
        """Unfinished work of anybody's."""
        return _listed(self.scratch_root)

    def new_scratch(self, holder: str) -> Path:
        """A path that no other process looks at; swept up when its holder dies."""
        return self.scratch_root / f"{holder}.{secrets.token_hex(4)}"

    def make_scratch(self, holder: str) -> Path:
        """A new directory that no other process looks into."""
        path = self.new_scratch(holder)
        path.mkdir(parents=True)
        return path

    @contextmanager
    def scratch(self, holder: str) -> Iterator[Path]:
        """A directory of this holder's own; gone afterwards, whatever happened."""
        path = self.make_scratch(holder)
        try:
            yield path
        finally:
            remove_tree(path)

    def publish(self, complete: Path, target: Path, *, replace: bool = False) -> bool:
        """Rename into place; False when somebody else was first, and theirs stays.

        With `replace` (what lies there is damaged) the old one goes to the trash
        first. Processes that use it keep their open files, and find the same
        content under the same name a moment later: the digest says so.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        if replace:
            self.discard(target)
        try:
            complete.rename(target)
        except OSError:
            if target.is_dir():
                return False
            raise
        return True

    def discard(self, path: Path) -> Path | None:
        """Rename to the trash: from here on nobody finds it. None if it was gone."""
        self.trash.mkdir(parents=True, exist_ok=True)
        grave = self.trash / f"{path.name}.{secrets.token_hex(4)}"
        try:
            path.rename(grave)
        except FileNotFoundError:
            return None
        return grave

    def empty_trash(self) -> int:
        """Delete what was discarded; answers how many things."""
        names = _listed(self.trash)
        for name in names:
            remove_tree(self.trash / name)
        return len(names)


def _checked(text: str) -> str:
    if not is_hex_id(text):
        raise ValueError(f"not an id: {text!r}")
    return text


def _listed(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def remove_tree(path: Path) -> None:
    """Delete a file or a tree, as far as it goes; others may be deleting it at the same time.

    What stays (a volume that is gone, say) is swept up by whoever comes next.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        _log.info("%s is not deleted: %s", path, error)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write atomically: readers see the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        unfinished.write_text(json.dumps(value, sort_keys=True))
        unfinished.replace(path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file; None when it is absent or not what we write."""
    try:
        if path.stat().st_size > _MAX_JSON:
            return None
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
