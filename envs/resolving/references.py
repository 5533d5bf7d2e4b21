"""Direct references: requirements that name the location of a package instead of a version.

    name @ https://...   url      by the URL
    name @ git+...       vcs      by the URL; uv's lock keeps the commit
    name @ file://...    local    by content: a file that has changed is another package
    name @ /path         local    likewise

Each may come without a name: `git+https://...#egg=x`, `/path/to/a.whl`, `https://.../a.tar.gz`. A
wheel's name is in its file name. uv must look at the others to find their names (`naming.py`).

Each kind must be allowed. Local references are read, and a client may name any path of this
machine: only regular files are read, in limited numbers.
"""

from __future__ import annotations

import hashlib
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from packaging.markers import InvalidMarker, Marker
from packaging.requirements import Requirement
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from flashpool.envs.errors import SpecRefused
from flashpool.envs.store.volume_files import walk

from .spelling import spelling_advice

__all__ = [
    "NormalRequirement",
    "Reference",
    "bare_reference",
    "content_hash",
    "direct",
    "reference_of",
]

#: A directory with more files or bytes is not accepted as a local requirement.
MAX_LOCAL_FILES: Final = 20_000
MAX_LOCAL_BYTES: Final = 4 << 30
_BLOCK: Final = 1 << 20
_URL_SCHEMES: Final = frozenset({"https", "http"})
_VCS: Final = re.compile(r"(git|hg|bzr|svn)\+(\w+)://")
_GIT_SCHEMES: Final = frozenset({"https", "http", "ssh", "file"})
_DOT_GIT: Final = re.compile(r"\.git(@[^@]+)?$")
#: Beginnings of a reference without a name: a path, or a URL of any kind.
_BARE: Final = re.compile(r"/|~|\.{1,2}/|file:|[a-z][a-z+]*://|git\+")
_LOCAL: Final = re.compile(r"/|~|\.{1,2}/|file:")
_SCHEME: Final = re.compile(r"[a-z][a-z+]*:")
_SEMICOLON: Final = re.compile(r"\s+;\s*|;\s+")
_EXTRAS: Final = re.compile(r"\[([\w.,\s-]*)\]$")
_URL_ADVICE: Final = (
    "write it as `name @ https://...`, `name @ git+https://...` or `name @ file:///...`"
)
_SKIPPED_DIRS: Final = frozenset({".git", ".hg", "__pycache__", ".venv", ".tox"})
#: Build products in a package's directory, which are not part of its source.
_BUILT: Final = ".egg-info"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """The parts of a direct reference; the name is empty if only uv can find it."""

    where: str
    name: str = ""
    extras: tuple[str, ...] = ()
    marker: str = ""
    #: The hash of the contents, for files on this machine.
    content: str = ""

    def normal(self) -> NormalRequirement:
        """Return the reference as a requirement.

        Without a name, `line` is what uv is asked for the name of.
        """
        return NormalRequirement(
            name=self.name,
            line=self._at(self.where) if self.name else self.where,
            identity=self._at(f"sha256:{self.content}" if self.content else self.where),
            direct=True,
            nameless=None if self.name else self,
        )

    def _at(self, place: str) -> str:
        extras = f"[{','.join(self.extras)}]" if self.extras else ""
        return f"{self.name}{extras} @ {place}" + (f" ; {self.marker}" if self.marker else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class NormalRequirement:
    """A requirement: `line` is what uv reads, `identity` is what the request key hashes."""

    name: str
    line: str
    identity: str
    direct: bool = False
    #: The parts of a reference that has no name yet.
    nameless: Reference | None = None


def bare_reference(text: str) -> Reference | None:
    """Return the parts of a URL or path without a name before it; None for other text."""
    if _BARE.match(text) is None and not (text.endswith(".whl") and "@" not in text):
        return None
    where, _, marker = _split_marker(text)
    found = _EXTRAS.search(where)
    extras = _extras(found[1]) if found else ()
    return Reference(where=where[: found.start()] if found else where, extras=extras, marker=marker)


def _split_marker(text: str) -> tuple[str, str, str]:
    """Split at the first semicolon next to a space: a URL may contain other semicolons."""
    found = _SEMICOLON.search(text)
    if found is None:
        return text, "", ""
    marker = text[found.end() :].strip()
    try:
        return text[: found.start()], ";", str(Marker(marker))
    except InvalidMarker as error:
        raise SpecRefused(
            f"{text!r} has an invalid marker: {str(error).splitlines()[0]}",
            requirement=text,
            advice="write it as in `git+https://... ; python_version < '3.12'`",
        ) from None


def _extras(text: str) -> tuple[str, ...]:
    return tuple(sorted({canonicalize_name(part.strip()) for part in text.split(",")} - {""}))


def reference_of(requirement: Requirement) -> Reference:
    """Return the parts of `name[extras] @ where ; marker`."""
    return Reference(
        where=requirement.url or "",
        name=canonicalize_name(requirement.name),
        extras=tuple(sorted(canonicalize_name(extra) for extra in requirement.extras)),
        marker=str(requirement.marker or ""),
    )


def direct(reference: Reference, raw: str, references: frozenset[str]) -> NormalRequirement:
    """Return the normal form of a direct reference."""
    try:
        if _LOCAL.match(reference.where) or not _SCHEME.match(reference.where):
            return _local(reference, raw, references)
        reference = _without_egg(replace(reference, where=_as_git(reference.where)))
        _check_policy(_kind(reference.where, raw), raw, references)
        if not reference.name and _VCS.match(reference.where) is None:
            reference = replace(reference, name=_name_in_url(reference.where))
    except ValueError as error:  # urlsplit's
        raise SpecRefused(
            f"{raw!r} contains no URL: {error}", requirement=raw, advice=_URL_ADVICE
        ) from None
    return reference.normal()


def _as_git(where: str) -> str:
    """Return `git+https://host/x.git` for `https://host/x.git`, which pip does not accept."""
    parts = urlsplit(where)
    plain = parts.scheme in _URL_SCHEMES and _DOT_GIT.search(parts.path)
    return f"git+{where}" if plain else where


def _without_egg(reference: Reference) -> Reference:
    """Remove `#egg=name`, which uv does not need: both spellings are one environment."""
    where, _, fragment = reference.where.partition("#")
    parts = fragment.split("&") if fragment else []
    kept = "&".join(part for part in parts if not part.startswith("egg="))
    found = (_EXTRAS.search(part) for part in parts if part.startswith("egg="))
    extras = {extra for match in found if match for extra in _extras(match[1])}
    return replace(
        reference,
        where=f"{where}#{kept}" if kept else where,
        extras=tuple(sorted({*reference.extras, *extras})),
    )


def _name_in_url(url: str) -> str:
    name = unquote(urlsplit(url).path).rpartition("/")[2]
    try:
        return parse_wheel_filename(name)[0] if name.endswith(".whl") else ""
    except InvalidWheelFilename:
        return ""  # uv reports what is wrong with the name


def _kind(url: str, raw: str) -> str:
    """Return the permission that a URL needs; a repository on this machine counts as local."""
    vcs = _VCS.match(url)
    if vcs is None and urlsplit(url).scheme in _URL_SCHEMES:
        return "url"
    if vcs is None or vcs[1] != "git" or vcs[2] not in _GIT_SCHEMES:
        raise SpecRefused(
            f"{raw!r}: only http, https, git and file URLs are accepted",
            requirement=raw,
            advice=spelling_advice(url) or _URL_ADVICE,
        )
    return "local" if vcs[2] == "file" else "vcs"


def _check_policy(kind: str, raw: str, references: frozenset[str]) -> None:
    if kind not in references:
        allowed = ", ".join(sorted(references)) or "none"
        raise SpecRefused(
            f"{raw!r} is a direct reference of kind {kind!r}, which this server does not accept "
            f"(allowed: {allowed})",
            requirement=raw,
            advice="use a released version, or have the operator change FLASHPOOL_ENV_REFERENCES",
        )


def _local(reference: Reference, raw: str, references: frozenset[str]) -> NormalRequirement:
    _check_policy("local", raw, references)
    path = _path(reference.where)
    if path is None:
        raise SpecRefused(
            f"{raw!r} is neither a URL nor an absolute path",
            requirement=raw,
            advice=spelling_advice(reference.where)
            or spelling_advice(raw)
            or "give an absolute path: a relative path has no meaning on the server",
        )
    content = content_hash(path, raw)
    name = reference.name or _local_name(path, raw)
    where = path.resolve().as_uri()
    return replace(reference, name=name, where=where, content=content).normal()


def _path(text: str) -> Path | None:
    """Return the absolute path that a text means; None if it means none."""
    plain = unquote(urlsplit(text).path) if text.startswith("file:") else text
    try:
        path = Path(plain).expanduser()
    except RuntimeError:  # `~` of an unknown user
        return None
    return path if path.is_absolute() and "\0" not in plain else None


def _local_name(path: Path, raw: str) -> str:
    """Return the name of a wheel from its file name; uv finds the names of other files."""
    if path.suffix != ".whl":
        return ""
    try:
        return parse_wheel_filename(path.name)[0]
    except InvalidWheelFilename as error:
        raise SpecRefused(
            f"{raw!r}: {error}",
            requirement=raw,
            advice="give the file the name it was built with: name-1.0-py3-none-any.whl",
        ) from None


def content_hash(path: Path, raw: str) -> str:
    """Return the hash of the content of a file or directory; blocking."""
    try:
        # List all files before any is read: some directories (/proc) must not be read.
        files = list(_files(path, raw))
        rows = [(file.relative_to(path).as_posix(), _hash_file(file, raw)) for file in files]
    except OSError as error:
        raise SpecRefused(
            f"{raw!r} cannot be read: {error.strerror}",
            requirement=raw,
            advice="the path is one on the server: is the file there, and may the server read it?",
        ) from None
    # For a single file, the name in its row is ".": its own name does not count.
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
    """Yield regular files only: reading a device never ends, and a pipe blocks."""
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
    for folder, folders, names in walk(path):
        folders[:] = [name for name in folders if not _skipped(name, top=Path(folder) == path)]
        count += len(names)
        if count > MAX_LOCAL_FILES:
            raise _too_much(raw, f"more than {MAX_LOCAL_FILES} files")
        yield from (file for name in names if (file := Path(folder, name)).is_file())


def _skipped(name: str, *, top: bool) -> bool:
    """Return whether a directory is not source.

    A package may have a `build` directory of its own further down.
    """
    return name in _SKIPPED_DIRS or name.endswith(_BUILT) or (top and name == "build")
