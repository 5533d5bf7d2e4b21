"""What a request asks for, and its one normal form.

    Spec (raw strings of a request) --normalise--> NormalSpec --> request key (digest.py)

Case, extras, order, spaces and duplicates do not matter. Whatever could be read
by uv as an option or a file of requirements is refused here, with the reason:
a requirement line is data, never a command line.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from .errors import SpecRefused

__all__ = ["NormalRequirement", "NormalSpec", "Spec", "normalise"]

MAX_REQUIREMENTS: Final = 500
MAX_REQUIREMENT_CHARS: Final = 2000
#: A directory larger than this is not hashed as a local requirement.
MAX_LOCAL_FILES: Final = 20_000

_PYTHON: Final = re.compile(r"3\.\d{1,2}(\.\d{1,3})?")
_SYSTEM_PACKAGE: Final = re.compile(r"[a-z0-9][a-z0-9+.-]+(:[a-z0-9]+)?(=[A-Za-z0-9.+:~-]+)?")
_URL_SCHEMES: Final = frozenset({"https", "http"})
_VCS: Final = re.compile(r"(git|hg|bzr|svn)\+(\w+)://")
_OPTIONS_ADVICE: Final = "give package requirements only; index settings belong to the server"
_SKIPPED_DIRS: Final = frozenset({".git", ".hg", "__pycache__", ".venv", "build", ".tox"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """The environment part of a request, as it was sent."""

    requirements: tuple[str, ...] = ()
    python_version: str | None = None
    system_packages: tuple[str, ...] = ()
    #: Skip the memo and resolve again.
    refresh: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NormalRequirement:
    """One requirement: `line` is what uv reads, `identity` what the key hashes."""

    name: str
    line: str
    identity: str
    direct: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NormalSpec:
    """The normal form: sorted, merged, checked."""

    requirements: tuple[NormalRequirement, ...]
    python_version: str | None
    system_packages: tuple[str, ...]

    @property
    def lines(self) -> tuple[str, ...]:
        return tuple(requirement.line for requirement in self.requirements)

    @property
    def names(self) -> frozenset[str]:
        return frozenset(requirement.name for requirement in self.requirements)


def normalise(spec: Spec, *, references: frozenset[str]) -> NormalSpec:
    """Check and normalise a spec; reads local requirements to hash their content."""
    if len(spec.requirements) > MAX_REQUIREMENTS:
        raise SpecRefused(
            f"{len(spec.requirements)} requirements; at most {MAX_REQUIREMENTS} are taken"
        )
    parsed = [_requirement(raw, references) for raw in spec.requirements]
    return NormalSpec(
        requirements=tuple(sorted(_merge(parsed), key=lambda item: (item.name, item.identity))),
        python_version=_python(spec.python_version),
        system_packages=_system_packages(spec.system_packages),
    )


def _python(version: str | None) -> str | None:
    if version is None or not version.strip():
        return None
    version = version.strip()
    if not _PYTHON.fullmatch(version):
        raise SpecRefused(
            f"python_version {version!r} is not understood", advice="write it as 3.12 or 3.12.1"
        )
    return version


def _system_packages(names: Iterable[str]) -> tuple[str, ...]:
    found = set()
    for raw in names:
        name = raw.strip()
        if not name:
            continue
        if not _SYSTEM_PACKAGE.fullmatch(name):
            raise SpecRefused(
                f"{raw!r} is not the name of a system package",
                requirement=raw,
                advice="name Debian packages, such as libgl1 or ffmpeg, one an item",
            )
        found.add(name)
    return tuple(sorted(found))


def _requirement(raw: str, references: frozenset[str]) -> NormalRequirement:
    text = _plain(raw)
    if _looks_local(text):
        return _local(text, text, frozenset(), references)
    try:
        requirement = Requirement(text)
    except InvalidRequirement as error:
        raise SpecRefused(
            f"{raw!r} is not a requirement: {str(error).splitlines()[0]}",
            requirement=raw,
            advice="write it as in `numpy`, `numpy>=1.26` or `name @ https://...`",
        ) from None
    if requirement.url:
        return _direct(requirement, raw, references)
    return _indexed(requirement)


def _plain(raw: str) -> str:
    text = raw.strip()
    if not text or len(text) > MAX_REQUIREMENT_CHARS:
        raise SpecRefused(
            f"a requirement must have 1 to {MAX_REQUIREMENT_CHARS} characters",
            requirement=text[:80],
        )
    if text.startswith("-"):
        raise SpecRefused(
            f"{raw!r} is an option, not a requirement", requirement=raw, advice=_OPTIONS_ADVICE
        )
    if any(ord(char) < 32 or ord(char) == 127 for char in text) or " -" in text:
        raise SpecRefused(
            f"{raw!r} holds an option or a control character",
            requirement=raw,
            advice=_OPTIONS_ADVICE,
        )
    if "${" in text:
        raise SpecRefused(
            f"{raw!r} refers to a variable of the server",
            requirement=raw,
            advice="write the value itself",
        )
    return text


def _indexed(requirement: Requirement) -> NormalRequirement:
    name = canonicalize_name(requirement.name)
    requirement.name = name
    requirement.extras = {canonicalize_name(extra) for extra in requirement.extras}
    line = str(requirement)
    return NormalRequirement(name=name, line=line, identity=line)


def _direct(requirement: Requirement, raw: str, references: frozenset[str]) -> NormalRequirement:
    url = requirement.url or ""
    if url.startswith("file:"):
        path = unquote(urlsplit(url).path)
        return _local(path, raw, frozenset(requirement.extras), references, requirement)
    _check_policy("vcs" if _VCS.match(url) else "url", raw, references)
    if not _VCS.match(url) and urlsplit(url).scheme not in _URL_SCHEMES:
        raise SpecRefused(
            f"{raw!r}: only https, git+https and file URLs are taken", requirement=raw
        )
    name = canonicalize_name(requirement.name)
    requirement.name = name
    line = str(requirement)
    return NormalRequirement(name=name, line=line, identity=line, direct=True)


def _check_policy(kind: str, raw: str, references: frozenset[str]) -> None:
    if kind not in references:
        allowed = ", ".join(sorted(references)) or "none"
        raise SpecRefused(
            f"{raw!r} is a direct reference of kind {kind!r}, which this server does not take "
            f"(allowed: {allowed})",
            requirement=raw,
            advice="use a released version, or have the operator change FLASHPOOL_ENV_REFERENCES",
        )


def _looks_local(text: str) -> bool:
    return text.startswith(("/", "./", "../", "~", "file:")) or (
        text.endswith(".whl") and "@" not in text
    )


def _local(
    text: str,
    raw: str,
    extras: frozenset[str],
    references: frozenset[str],
    requirement: Requirement | None = None,
) -> NormalRequirement:
    _check_policy("local", raw, references)
    path = Path(unquote(urlsplit(text).path) if text.startswith("file:") else text).expanduser()
    if not path.is_absolute():
        raise SpecRefused(
            f"{raw!r} is relative to nothing the server knows",
            requirement=raw,
            advice="give a whole path",
        )
    name = canonicalize_name(requirement.name) if requirement else _local_name(path, raw)
    content = _content_hash(path, raw)
    suffix = f"[{','.join(sorted(extras))}]" if extras else ""
    marker = f" ; {requirement.marker}" if requirement and requirement.marker else ""
    line = f"{name}{suffix} @ {path.resolve().as_uri()}{marker}"
    return NormalRequirement(
        name=name, line=line, identity=f"{name}{suffix} @ sha256:{content}{marker}", direct=True
    )


def _local_name(path: Path, raw: str) -> str:
    if path.suffix == ".whl":
        try:
            return parse_wheel_filename(path.name)[0]
        except InvalidWheelFilename as error:
            raise SpecRefused(f"{raw!r}: {error}", requirement=raw) from None
    raise SpecRefused(
        f"{raw!r} does not tell the package's name",
        requirement=raw,
        advice=f"write it as `name @ {path.as_uri()}`",
    )


def _content_hash(path: Path, raw: str) -> str:
    total = hashlib.sha256()
    try:
        for number, file in enumerate(_files(path)):
            if number >= MAX_LOCAL_FILES:
                raise SpecRefused(
                    f"{raw!r} holds more than {MAX_LOCAL_FILES} files", requirement=raw
                )
            inner = hashlib.sha256(file.read_bytes()).hexdigest()
            relative = file.relative_to(path)  # "." for a file: its name does not count
            total.update(f"{relative.as_posix()}\0{inner}\n".encode("utf-8", "surrogateescape"))
    except OSError as error:
        raise SpecRefused(f"{raw!r} cannot be read: {error.strerror}", requirement=raw) from None
    return total.hexdigest()


def _files(path: Path) -> Iterable[Path]:
    if not path.is_dir():
        return [path]
    return sorted(
        file
        for file in path.rglob("*")
        if file.is_file() and _SKIPPED_DIRS.isdisjoint(file.relative_to(path).parts)
    )


def _merge(parsed: list[NormalRequirement]) -> Iterable[NormalRequirement]:
    """Join plain requirements on one name; keep marked and direct ones as they are."""
    joined: dict[tuple[str, str], Requirement] = {}
    kept: dict[str, NormalRequirement] = {}
    for item in parsed:
        if item.direct:
            kept[item.identity] = item
            continue
        requirement = Requirement(item.line)
        first = joined.setdefault((item.name, str(requirement.marker)), requirement)
        if first is not requirement:
            first.extras |= requirement.extras
            first.specifier &= requirement.specifier
    return [*kept.values(), *(_indexed(requirement) for requirement in joined.values())]
