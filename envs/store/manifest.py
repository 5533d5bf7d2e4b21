"""The files that make a directory an environment: facts, list of files, seal.

    flashpool.json    facts; written last before publication: without facts, no environment
    flashpool.files   every file with its size, as it was published
    flashpool.seal    every file with its SHA-256, and an HMAC over all of them

Sizes are compared when a process first uses an environment (one stat per file, which detects
truncation, deletion, and an emptied `pyvenv.cfg`). With a volume key, the seal is compared, too; a
file that the seal does not list is as bad as a file that differs. Bytecode is not in the list of
files, because it follows after publication; it is in the seal, because Python runs it. Files that
differ from their wheels are not sealed.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from flashpool.envs.errors import Tampered
from flashpool.envs.lease import Decision, Where

from .apart import carried_out
from .layout import MAX_OWN_FILE, read_file, read_json, write_json
from .wheel_records import unlike_wheels

__all__ = [
    "Facts",
    "check_seal",
    "check_sizes",
    "check_wheels",
    "hash_files",
    "list_files",
    "read_facts",
    "seal",
    "sign",
    "signed_by",
    "withdraw",
    "write_facts",
]

FACTS: Final = "flashpool.json"
FILES: Final = "flashpool.files"
SEAL: Final = "flashpool.seal"
#: flashpool's own files, which are therefore not listed in themselves.
_OWN: Final = frozenset({FACTS, FILES, SEAL})
#: Suffix of bytecode that is being written, or that a killed process left; Python ignores such
#: files.
_UNFINISHED: Final = ".flashpool-unfinished"
_VERSION: Final = re.compile(r"3\.\d{1,3}[\w.+]{0,40}", re.ASCII)
#: No disk is larger than this.
_MOST_BYTES: Final = 1 << 60
#: Factor for files that facts do not count: bytecode, and a reserve.
_BYTECODE: Final = 3
_SMALL: Final = 64 << 20
_ADVICE: Final = "it is built again; if this repeats, check which programs write to the volume"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """The facts that an environment records about itself."""

    digest: str
    mode: Where
    python_version: str
    base_python: str
    site_dirs: tuple[str, ...]
    lock: tuple[str, ...]
    decisions: tuple[Decision, ...]
    reason: str
    created: float
    bytes: int
    files: int


def encode_facts(facts: Facts) -> dict[str, Any]:
    """Return facts as plain data for JSON."""
    return asdict(facts)


def decode_facts(value: object) -> Facts | None:
    """Return facts from JSON that anybody may have written; None if anything is invalid.

    Fields that a later version adds are ignored.
    """
    try:
        facts = msgspec.convert(value, Facts)
    except msgspec.ValidationError:
        return None
    return facts if _plausible(facts) else None


def _plausible(facts: Facts) -> bool:
    return (
        0 <= facts.bytes <= _MOST_BYTES
        and 0 <= facts.files <= _MOST_BYTES
        # Becomes part of a path when links to the interpreter are made.
        and _VERSION.fullmatch(facts.python_version) is not None
        # These are paths as well; no path contains this character.
        and not any("\0" in text for text in (facts.base_python, *facts.site_dirs))
    )


def write_facts(environment: Path, facts: Facts) -> None:
    """Write the facts, as the last step before publication."""
    write_json(environment / FACTS, encode_facts(facts))


def read_facts(environment: Path) -> Facts | None:
    """Return the facts of a published environment; None if it is not complete."""
    value = read_json(environment / FACTS)
    return None if value is None else decode_facts(value)


@carried_out
def withdraw(environment: Path) -> None:
    """Delete the facts, so that no pod uses the environment; its files stay for current users."""
    (environment / FACTS).unlink(missing_ok=True)


def _walk(root: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    pending = [""]
    while pending:
        folder = pending.pop()
        with os.scandir(root / folder if folder else root) as entries:
            for entry in entries:
                path = f"{folder}/{entry.name}" if folder else entry.name
                if entry.is_dir(follow_symlinks=False):
                    pending.append(path)
                elif path not in _OWN and not path.endswith(_UNFINISHED):
                    yield path, entry


def _is_bytecode(path: str) -> bool:
    return path.endswith(".pyc") and "__pycache__/" in path


@carried_out
def list_files(environment: Path) -> tuple[int, int]:
    """Write the list of files with their sizes; return their number and bytes."""
    sizes = _sizes(str(environment))
    text = "".join([f"{sizes[path]}\t{path}\n" for path in sorted(sizes)])
    (environment / FILES).write_text(text, encoding="utf-8", errors="surrogateescape")
    return len(sizes), sum(sizes.values())


def _sizes(root: str) -> dict[str, int]:
    """Return sizes by path; without `_walk` and `Path`, as a call may wait for this."""
    sizes: dict[str, int] = {}
    pending = [""]
    while pending:
        prefix = pending.pop()
        caching = "__pycache__/" in prefix
        with os.scandir(f"{root}/{prefix}") as entries:
            for entry in entries:
                name = entry.name
                if "\n" in name:  # a row of the list is a line
                    continue
                if entry.is_dir(follow_symlinks=False):
                    pending.append(f"{prefix}{name}/")
                elif not (caching and name.endswith(".pyc")):
                    sizes[prefix + name] = entry.stat(follow_symlinks=False).st_size
    for own in _OWN:
        sizes.pop(own, None)
    return sizes


@carried_out
def check_sizes(environment: Path) -> None:
    """Raise Tampered unless every listed file exists with its size."""
    try:
        data = read_file(environment / FILES, MAX_OWN_FILE)
    except OSError as error:
        raise Tampered(f"{environment.name} has no list of its files", advice=_ADVICE) from error
    for row in data.decode("utf-8", "surrogateescape").split("\n")[:-1]:
        size, _, path = row.partition("\t")
        _check_size(environment, path, size)


def _check_size(environment: Path, path: str, size: str) -> None:
    try:
        found = os.lstat(environment / path).st_size
    except (OSError, ValueError):  # the list may be forged: some characters are invalid in paths
        found = -1
    if str(found) != size:
        what = "is gone" if found < 0 else f"has {found} bytes instead of {size}"
        raise Tampered(f"{path} of environment {environment.name} {what}", advice=_ADVICE)


def _hash_file(path: Path) -> str:
    total = hashlib.sha256()
    with open(path, "rb", opener=_without_a_wait) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return "no file"
        while block := file.read(1 << 20):
            total.update(block)
    return total.hexdigest()


def _without_a_wait(path: str, flags: int) -> int:
    """Open without blocking or following links: a pipe or a link may be there by now."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _bounded(environment: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Walk like `_walk`, up to as many bytes as an environment with these facts may have."""
    facts = read_facts(environment)
    left = _SMALL + (_BYTECODE * facts.bytes if facts else 0)
    for path, entry in _walk(environment):
        left -= entry.stat(follow_symlinks=False).st_size
        if left < 0:
            # A sparse file may be of any size, and take forever to read.
            raise Tampered(
                f"environment {environment.name} has more in it than was built", advice=_ADVICE
            )
        yield path, entry


@carried_out
def hash_files(environment: Path, *, bytecode: bool) -> dict[str, str]:
    """Return the SHA-256 of every file that is bytecode, or of every other file; blocking."""
    found = {}
    for path, entry in _bounded(environment):
        if _is_bytecode(path) == bytecode:
            found[path] = _hash_entry(environment / path, entry)
    return found


def _hash_entry(path: Path, entry: os.DirEntry[str]) -> str:
    if entry.is_symlink():
        return f"-> {os.readlink(path)}"
    # Only regular files are opened: a pipe would block.
    return _hash_or_none(path) if entry.is_file() else "no file"


def _hash_or_none(path: Path) -> str:
    try:
        return _hash_file(path)
    except (FileNotFoundError, PermissionError) as error:
        return f"unreadable: {error.strerror}"


def sign(value: Mapping[str, Any], key: bytes | None) -> str:
    """Return the HMAC over canonical JSON; empty without a key."""
    if not key:
        return ""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hmac.new(key, text.encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()


def signed_by(key: bytes, value: Mapping[str, Any], mac: str) -> bool:
    """Return whether a signature is the HMAC of a value; both may be forged."""
    try:
        expected = sign(value, key)
    except RecursionError:
        return False  # flashpool signs nothing that is nested so deeply
    return hmac.compare_digest(expected.encode(), mac.encode("utf-8", "replace"))


@carried_out
def seal(
    environment: Path,
    key: bytes | None,
    *,
    hashes: Mapping[str, str] | None = None,
    from_wheels: bool = False,
) -> list[str]:
    """Write and sign the hash of every file; `hashes` are those of all files but bytecode.

    Return the files that differ from their wheels. With `from_wheels`, all files were just unpacked
    for this environment: such wheels contradict themselves, and their files are accepted.

    Raises:
        Tampered: a file differs from what was published, or from its wheel.
    """
    check_sizes(environment)
    known = hash_files(environment, bytecode=False) if hashes is None else hashes
    unlike = unlike_wheels(environment, known)
    if unlike and not from_wheels:
        raise _unlike(environment, unlike)
    files = {**known, **hash_files(environment, bytecode=True)}
    content = {"facts": read_json(environment / FACTS), "files": files, "unlike": unlike}
    write_json(environment / SEAL, {**content, "mac": sign(content, key)})
    return unlike


@carried_out
def check_wheels(environment: Path) -> None:
    """Raise Tampered unless every file is what its wheel contains; reads them all; blocking."""
    unlike = unlike_wheels(environment, hash_files(environment, bytecode=False))
    if unlike:
        raise _unlike(environment, unlike)


def _unlike(environment: Path, paths: list[str]) -> Tampered:
    what = f"{paths[0]} of environment {environment.name} differs from its wheel"
    more = f", nor are {len(paths) - 1} other files" if len(paths) > 1 else ""
    return Tampered(f"{what}{more}", advice=_ADVICE)


@carried_out
def sealed(environment: Path) -> bool:
    """Return whether the environment has a seal."""
    return os.path.lexists(environment / SEAL)


@carried_out
def check_seal(environment: Path, key: bytes | None) -> None:
    """Raise Tampered unless the content is what was sealed and what its wheels contain."""
    stored = read_json(environment / SEAL) or {}
    # Earlier versions, whose environments may be on the same volume, did not record such files.
    files, unlike = stored.get("files"), stored.get("unlike", [])
    if (
        not isinstance(files, dict)
        or not all(isinstance(text, str) for text in files.values())
        or not isinstance(unlike, list)
    ):
        raise Tampered(f"environment {environment.name} has no seal", advice=_ADVICE)
    content = {**stored, "facts": read_json(environment / FACTS)}
    content.pop("mac", None)
    if key and not signed_by(key, content, str(stored.get("mac", ""))):
        raise Tampered(
            f"the signature of environment {environment.name} does not match", advice=_ADVICE
        )
    # Imports added bytecode to environments of earlier versions, which was harmless.
    found = _compare(environment, files, bytecode="unlike" in stored or key is not None)
    new = [path for path in unlike_wheels(environment, found) if path not in unlike]
    if new:
        raise _unlike(environment, new)


def _compare(environment: Path, expected: Mapping[str, str], *, bytecode: bool) -> dict[str, str]:
    found = {path: _hash_entry(environment / path, entry) for path, entry in _bounded(environment)}
    changed = sorted(path for path, value in expected.items() if found.get(path) != value)
    unknown = sorted(
        path for path in found if path not in expected and (bytecode or not _is_bytecode(path))
    )
    if changed or unknown:
        path = (changed or unknown)[0]
        what = "differs from what was sealed" if changed else "was added after sealing"
        raise Tampered(f"{path} of environment {environment.name} {what}", advice=_ADVICE)
    return found
