"""The store on disk: names, atomic publication, trash.

    <root>/envs/<digest>/         a relocatable virtualenv, with flashpool.json in it
    <root>/archives/<digest>.*    archive mode: .tar.zst and its .json (written last)
    <root>/requests/<key>.json    the digest a request was resolved to, and when
    <root>/preloads/<digest>.json what calls imported
    <root>/leases/<digest>/       one mark for each holder; `used`, whose time orders eviction
    <root>/claims/<digest>        who is building; or <key>: who has begun
    <root>/holders/               heartbeats
    <root>/scratch/<holder>.<n>/  unfinished work; only its holder looks inside
    <root>/trash/                 about to be deleted
    <root>/cache/                 uv's, on the same file system so that files can be cloned
    <root>/debs/                  system packages

Every write that another process may read is a rename of something complete.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from .apart import carried_out
from .foreign_json import parse_object
from .volume_files import Folder, in_folder, move

__all__ = [
    "ID_LENGTH",
    "MAX_OWN_FILE",
    "Store",
    "is_directory",
    "is_hex_id",
    "is_there",
    "names_in",
    "read_file",
    "read_json",
    "remove_link",
    "remove_tree",
    "write_json",
    "write_lines",
]

_log = logging.getLogger(__name__)

_FOLDERS: Final = (
    "envs", "requests", "preloads", "leases", "claims", "holders", "scratch", "trash"
)  # fmt: skip
_ARCHIVE: Final = ".tar.zst"
#: Unpacked apps are under the same root on local disk; no quota of environments counts them.
_APPS: Final = "apps"
#: Characters of a digest or request key.
ID_LENGTH: Final = 40
_ID: Final = re.compile(rf"[0-9a-f]{{{ID_LENGTH}}}")
#: Names of files that `write_json` has not finished.
_UNFINISHED: Final = re.compile(rf"\.[0-9a-f]{{{ID_LENGTH}}}\.json\.[0-9a-f]{{8}}")
#: flashpool writes no larger files than this.
MAX_OWN_FILE: Final = 64 * 1024 * 1024


def is_hex_id(text: str) -> bool:
    """Return whether a text may be used as a digest or request key in a path."""
    return _ID.fullmatch(text) is not None


class Store:
    """Paths under one root, and the few atomic moves."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.cache = root / "cache"
        self.holders = root / "holders"
        self.scratch_root = root / "scratch"
        self.trash = root / "trash"
        self.debs = root / "debs"

    def __repr__(self) -> str:
        return f"<Store {self.root}>"

    @carried_out
    def prepare(self) -> None:
        """Make the directories, replacing links; blocking, like all methods of this class."""
        remove_link(self.root / "archives")
        remove_link(self.cache)
        for name in _FOLDERS:
            Folder(self.root, name).make()

    def parts(self) -> list[Path]:
        """Return all folders below the root, in the order in which files move through them."""
        moves = {self.scratch_root.name: 0, "envs": 1, self.trash.name: 3}
        found = (name for name in names_in(self.root) if name != _APPS)
        names = sorted(found, key=lambda name: (moves.get(name, 2), name))
        return [self.root / name for name in names]

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

    @carried_out
    def claims(self) -> list[tuple[Path, str]]:
        """Return every claim, with its owner."""
        claims = Folder(self.root, "claims")
        owners = ((name, claims.link_of(name)) for name in claims.names())
        return [(claims.path / name, owner) for name, owner in owners if owner is not None]

    def digests(self) -> list[str]:
        """Return every published environment."""
        return sorted(name for name in names_in(self.root / "envs") if is_hex_id(name))

    def marked(self) -> list[str]:
        """Return every digest with marks, published or not."""
        return sorted(name for name in names_in(self.root / "leases") if is_hex_id(name))

    def archived(self) -> list[str]:
        """Return every complete archive."""
        names = names_in(self.root / "archives")
        stems = (name.removesuffix(".json") for name in names if name.endswith(".json"))
        return sorted(stem for stem in stems if is_hex_id(stem))

    def leavings(self) -> list[Path]:
        """Return unfinished files of a writer that died, or that is still writing."""
        archives = self.root / "archives"
        unfinished = [
            folder / name
            for folder in (self.root / "requests", self.root / "preloads", archives)
            for name in names_in(folder)
            if _UNFINISHED.fullmatch(name)
        ]
        known = set(self.archived())
        packed = [name for name in names_in(archives) if name.endswith(_ARCHIVE)]
        digests = {name.removesuffix(_ARCHIVE) for name in packed}
        return unfinished + [
            self.archive(digest) for digest in digests - known if is_hex_id(digest)
        ]

    def scratch_names(self) -> list[str]:
        """Return the names of all scratch directories, of any holder."""
        return names_in(self.scratch_root)

    def new_scratch(self, holder: str) -> Path:
        """Return a new path that no other process uses; it is deleted when its holder dies."""
        return self.scratch_root / f"{holder}.{secrets.token_hex(4)}"

    def make_scratch(self, holder: str) -> Path:
        """Make a new directory that no other process looks into."""
        path = self.new_scratch(holder)
        Folder(self.root, self.scratch_root.name).make_folder(path.name)
        return path

    @contextmanager
    def scratch(self, holder: str) -> Iterator[Path]:
        """Provide a directory that only this holder uses, and delete it afterwards."""
        path = self.make_scratch(holder)
        try:
            yield path
        finally:
            remove_tree(path)

    @carried_out
    def publish(self, complete: Path, target: Path, *, replace: bool = False) -> bool:
        """Rename into place; return False if another process was first, whose files stay.

        With `replace` (the existing environment is damaged) the old one is first moved to the
        trash. Processes that use it keep their open files, and find the same content under the same
        name a moment later, because the digest is equal.
        """
        if replace or (os.path.lexists(target) and not is_directory(target)):
            self.discard(target)
        try:
            move(complete, target)
        except OSError:
            if is_directory(target):
                return False
            raise
        return True

    def discard(self, path: Path) -> Path | None:
        """Rename to the trash, so that no process finds it any more; return None if it is gone."""
        grave = self.trash / f"{path.name}.{secrets.token_hex(4)}"
        try:
            move(path, grave)
        except FileNotFoundError:
            return None
        return grave

    @carried_out
    def empty_trash(self) -> int:
        """Delete what was discarded; return how many entries."""
        trash = Folder(self.root, self.trash.name)
        return len([name for name in trash.names() if trash.remove(name)])


@carried_out
def remove_link(path: Path) -> None:
    """Delete a link in a directory's place: its target would be filled or emptied otherwise."""
    if path.is_symlink():
        _log.warning("%s is a link: it is removed", path)
        path.unlink(missing_ok=True)


@carried_out
def is_there(path: Path) -> bool:
    """Return whether a name exists, even if it is a broken link."""
    return os.path.lexists(path)


@carried_out
def is_directory(path: Path) -> bool:
    """Return whether a path is a directory itself, and not a link to one."""
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except OSError:
        return False


def _checked(text: str) -> str:
    if not is_hex_id(text):
        raise ValueError(f"not an id: {text!r}")
    return text


def names_in(folder: Path) -> list[str]:
    """Return the names in a directory; empty if it is missing or a link.

    Others may write to a volume, and most names that are listed here are deleted: through a link,
    files of this machine would be deleted.
    """
    return Folder(folder.parent, folder.name).names()


def remove_tree(path: Path) -> None:
    """Delete a file or a tree as far as possible; others may delete it at the same time.

    What is left, for example because the volume is unavailable, another process deletes later.
    """
    folder, name = in_folder(path)
    try:
        folder.remove(name)
    except OSError as error:
        _log.info("%s is not deleted: %s", path, error)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write atomically: readers see the old file or the new file."""
    folder, name = in_folder(path)
    folder.write(name, [json.dumps(value, sort_keys=True).encode()])


def read_json(path: Path, most: int = MAX_OWN_FILE) -> dict[str, Any] | None:
    """Return the object in a file; None if the file is missing or was not written by us."""
    try:
        return parse_object(read_file(path, most))
    except OSError:
        return None


@carried_out
def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a file in scratch; the file is complete when this returns."""
    path.write_text("".join(f"{line}\n" for line in lines))


def read_file(path: Path, most: int) -> bytes:
    """Return the content of a regular file of at most ``most`` bytes, or raise OSError.

    A pipe in place of the file would block, and a device could be endless.
    """
    folder, name = in_folder(path)
    return folder.read(name, most)
