"""The store on disk: names, atomic publication, trash.

    <root>/envs/<digest>/         a relocatable virtualenv, with flashpool.json in it
    <root>/archives/<digest>.*    archive mode: .tar.zst and its .json (written last)
    <root>/requests/<key>.json    which digest a request meant, and when that was found
    <root>/preloads/<digest>.json what calls imported
    <root>/leases/<digest>/       one mark a holder; `used`, whose time orders eviction
    <root>/claims/<digest>        who is building; or <key>: who has begun
    <root>/holders/               heartbeats
    <root>/scratch/<holder>.<n>/  unfinished work; nobody but its holder looks inside
    <root>/trash/                 on its way out
    <root>/cache/                 uv's, on the same file system so that it can hardlink
    <root>/debs/                  system packages

Every write that another process may read is a rename of something complete.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

__all__ = [
    "ID_LENGTH",
    "MAX_OWN_FILE",
    "Store",
    "is_hex_id",
    "names_in",
    "read_file",
    "read_json",
    "remove_tree",
    "write_json",
]

_log = logging.getLogger(__name__)

_FOLDERS: Final = (
    "envs", "requests", "preloads", "leases", "claims", "holders", "scratch", "trash"
)  # fmt: skip
_ARCHIVE: Final = ".tar.zst"
#: Unpacked apps lie under the same root on local disk; no quota of environments counts them.
_APPS: Final = "apps"
#: Characters of a digest or request key.
ID_LENGTH: Final = 40
_ID: Final = re.compile(rf"[0-9a-f]{{{ID_LENGTH}}}")
#: Files larger than this are not ours.
MAX_OWN_FILE: Final = 64 * 1024 * 1024


def is_hex_id(text: str) -> bool:
    """Whether a text may be used as a digest or request key in a path."""
    return _ID.fullmatch(text) is not None


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
        """Make the directories, in place of links that lie there; blocking, as all of this class."""
        for name in (*_FOLDERS, "archives"):
            folder = self.root / name
            if folder.is_symlink():
                _log.warning("%s is a link: it is removed", folder)
                folder.unlink()
        for name in _FOLDERS:
            (self.root / name).mkdir(parents=True, exist_ok=True)

    def parts(self) -> list[Path]:
        """All of the store under the root, in the order in which things move through it."""
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

    def claims(self) -> list[tuple[Path, str]]:
        """Every claim, with its owner."""
        folder = self.root / "claims"
        found = []
        for name in names_in(folder):
            try:
                found.append((folder / name, os.readlink(folder / name)))
            except OSError:
                continue
        return found

    def digests(self) -> list[str]:
        """Every published environment."""
        return sorted(name for name in names_in(self.root / "envs") if is_hex_id(name))

    def marked(self) -> list[str]:
        """Every digest that anybody marked, published or not."""
        return sorted(name for name in names_in(self.root / "leases") if is_hex_id(name))

    def archived(self) -> list[str]:
        """Every complete archive."""
        names = (Path(name) for name in names_in(self.root / "archives"))
        return sorted(
            name.stem for name in names if name.suffix == ".json" and is_hex_id(name.stem)
        )

    def leavings(self) -> list[Path]:
        """What a writer that dies between two steps leaves, or one at work has not finished."""
        archives = self.root / "archives"
        unfinished = [
            folder / name
            for folder in (self.root / "requests", self.root / "preloads", archives)
            for name in names_in(folder)
            if name.startswith(".")
        ]
        known = set(self.archived())
        return unfinished + [
            archives / name
            for name in names_in(archives)
            if name.endswith(_ARCHIVE) and name.removesuffix(_ARCHIVE) not in known
        ]

    def scratch_names(self) -> list[str]:
        """Unfinished work of anybody's."""
        return names_in(self.scratch_root)

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
        names = names_in(self.trash)
        for name in names:
            remove_tree(self.trash / name)
        return len(names)


def _checked(text: str) -> str:
    if not is_hex_id(text):
        raise ValueError(f"not an id: {text!r}")
    return text


def names_in(folder: Path) -> list[str]:
    """What a directory holds; nothing where there is none, or a link to one.

    A volume is anybody's, and most of what is listed here is listed to be deleted: a link
    would have us delete our own machine's files.
    """
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return []
    except OSError:
        if not folder.is_symlink():
            raise
        _log.warning("%s is a link: what it leads to is left alone", folder)
        return []
    try:
        return os.listdir(handle)
    finally:
        os.close(handle)


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
        value = json.loads(read_file(path, MAX_OWN_FILE))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def read_file(path: Path, most: int) -> bytes:
    """Content of a regular file of limited size; OSError for all else, and without a wait.

    A pipe that somebody put in its place would be waited for, a device read without end.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size > most:
            raise OSError(errno.EINVAL, "not a file of ours", str(path))
        return file.read(most)
