"""Direct references: requirements that say where a package lies, rather than its version.

    name @ https://...   url      as it stands
    name @ git+...       vcs      as it stands; uv's lock keeps the commit
    name @ file://...    local    by its content: a file that changed is another package
    /path/to/a.whl       local    likewise

Each kind has to be allowed. Local ones are read, and what a stranger may name on this
machine is anything: only regular files count, in bounded numbers.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from packaging.requirements import Requirement
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from flashpool.envs.errors import SpecRefused

__all__ = ["NormalRequirement", "direct", "looks_local"]

#: A directory larger than this is not hashed as a local requirement.
MAX_LOCAL_FILES: Final = 20_000
MAX_LOCAL_BYTES: Final = 4 << 30
_BLOCK: Final = 1 << 20
_URL_SCHEMES: Final = frozenset({"https", "http"})
_VCS: Final = re.compile(r"(git|hg|bzr|svn)\+(\w+)://")
_GIT_SCHEMES: Final = frozenset({"https", "http", "ssh", "file"})
_URL_ADVICE: Final = (
    "write it as `name @ https://...`, `name @ git+https://...` or `name @ file:///...`"
)
_SKIPPED_DIRS: Final = frozenset({".git", ".hg", "__pycache__", ".venv", "build", ".tox"})


@dataclass(frozen=True, slots=True, kw_only=True)
class NormalRequirement:
    """One requirement: `line` is what uv reads, `identity` what the key hashes."""

    name: str
    line: str
    identity: str
    direct: bool = False


def looks_local(text: str) -> bool:
    """Whether a requirement is a path or a file URL, without a name before it."""
    return text.startswith(("/", "./", "../", "~", "file:")) or (
        text.endswith(".whl") and "@" not in text
    )


def direct(
    where: str, requirement: Requirement | None, raw: str, references: frozenset[str]
) -> NormalRequirement:
    """The normal form of a direct reference; `requirement` is None where only `where` was given."""
    try:
        if requirement is None or where.startswith("file:"):
            return _local(where, requirement, raw, references)
        _check_policy(_kind(where, raw), raw, references)
    except ValueError as error:  # urlsplit's
        raise SpecRefused(
            f"{raw!r} holds no URL: {error}", requirement=raw, advice=_URL_ADVICE
        ) from None
    requirement.name = canonicalize_name(requirement.name)
    line = str(requirement)
    return NormalRequirement(name=requirement.name, line=line, identity=line, direct=True)


def _kind(url: str, raw: str) -> str:
    """Which permission a URL needs; a repository on this machine is as local as a file."""
    vcs = _VCS.match(url)
    if vcs is None and urlsplit(url).scheme in _URL_SCHEMES:
        return "url"
    if vcs is None or vcs[1] != "git" or vcs[2] not in _GIT_SCHEMES:
        raise SpecRefused(
            f"{raw!r}: only http, https, git and file URLs are taken",
            requirement=raw,
            advice=_URL_ADVICE,
        )
    return "local" if vcs[2] == "file" else "vcs"


def _check_policy(kind: str, raw: str, references: frozenset[str]) -> None:
    if kind not in references:
        allowed = ", ".join(sorted(references)) or "none"
        raise SpecRefused(
            f"{raw!r} is a direct reference of kind {kind!r}, which this server does not take "
            f"(allowed: {allowed})",
            requirement=raw,
            advice="use a released version, or have the operator change FLASHPOOL_ENV_REFERENCES",
        )


def _local(
    where: str, requirement: Requirement | None, raw: str, references: frozenset[str]
) -> NormalRequirement:
    _check_policy("local", raw, references)
    path = _path(where)
    if path is None:
        raise SpecRefused(
            f"{raw!r} is relative to nothing the server knows",
            requirement=raw,
            advice="give a whole path",
        )
    name = canonicalize_name(requirement.name) if requirement else _local_name(path, raw)
    extras = sorted(requirement.extras) if requirement else []
    suffix = f"[{','.join(extras)}]" if extras else ""
    marker = f" ; {requirement.marker}" if requirement and requirement.marker else ""
    content = _content_hash(path, raw)
    return NormalRequirement(
        name=name,
        line=f"{name}{suffix} @ {path.resolve().as_uri()}{marker}",
        identity=f"{name}{suffix} @ sha256:{content}{marker}",
        direct=True,
    )


def _path(text: str) -> Path | None:
    """The whole path that a text means, if it means one."""
    plain = unquote(urlsplit(text).path) if text.startswith("file:") else text
    try:
        path = Path(plain).expanduser()
    except RuntimeError:  # `~` of nobody
        return None
    return path if path.is_absolute() and "\0" not in plain else None


def _local_name(path: Path, raw: str) -> str:
    if path.suffix == ".whl":
        try:
            return parse_wheel_filename(path.name)[0]
        except InvalidWheelFilename as error:
            raise SpecRefused(
                f"{raw!r}: {error}",
                requirement=raw,
                advice="give the file the name it was built with: name-1.0-py3-none-any.whl",
            ) from None
    raise SpecRefused(
        f"{raw!r} does not tell the package's name",
        requirement=raw,
        advice=f"write it as `name @ {path.as_uri()}`",
    )


def _content_hash(path: Path, raw: str) -> str:
    try:
        # Listed to the end before any is read: some directories (/proc) are best left alone.
        files = list(_files(path, raw))
        rows = [(file.relative_to(path).as_posix(), _hash_file(file, raw)) for file in files]
    except OSError as error:
        raise SpecRefused(
            f"{raw!r} cannot be read: {error.strerror}",
            requirement=raw,
            advice="the path is one on the server: is the file there, and may the server read it?",
        ) from None
    # The one row of a file has the name ".": what it is called does not count.
    text = "".join(f"{name}\0{inner}\n" for name, inner in sorted(rows))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _hash_file(path: Path, raw: str) -> str:
    total = hashlib.sha256()
    count = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            total.update(block)
            count += len(block)
            if count > MAX_LOCAL_BYTES:
                raise _too_much(raw, f"a file of more than {MAX_LOCAL_BYTES >> 30} GiB")
    return total.hexdigest()


def _too_much(raw: str, what: str) -> SpecRefused:
    return SpecRefused(
        f"{raw!r} holds {what}",
        requirement=raw,
        advice="build a wheel and name that, or move data out of the directory",
    )


def _files(path: Path, raw: str) -> Iterator[Path]:
    """Regular files only: a device has no end, and a pipe no beginning."""
    if not path.is_dir():
        if not stat.S_ISREG(path.stat().st_mode):
            raise SpecRefused(
                f"{raw!r} is neither a file nor a directory",
                requirement=raw,
                advice="name a wheel, or a directory that holds a package's source",
            )
        yield path
        return
    count = 0
    for folder, folders, names in os.walk(path):
        folders[:] = [name for name in folders if name not in _SKIPPED_DIRS]
        count += len(names)
        if count > MAX_LOCAL_FILES:
            raise _too_much(raw, f"more than {MAX_LOCAL_FILES} files")
        yield from (file for name in names if (file := Path(folder, name)).is_file())
