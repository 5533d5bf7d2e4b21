"""Interprets uv's output: returns the matching error, with advice.

    classify(words)
      no space                                        DiskFull
      a line that uv cannot parse                     SpecRefused
      a repository, URL or file that does not exist   SourceRefused   (`_of_source`, `_of_git`)
      no versions that are compatible                 ResolutionFailed
      no interpreter, compiler or header              InterpreterMissing, CompilerMissing
      a server that does not answer                   RegistryUnreachable
      everything else                                 BuildFailed

Pure: text in, an exception out. Advice that needs the request, such as the package that a misnamed
requirement probably means, is added in `resolving/advice.py`.
"""

from __future__ import annotations

import re
from typing import Final

from .errors import (
    BuildFailed,
    CertificateRefused,
    CompilerMissing,
    DiskFull,
    EnvironmentFailure,
    InterpreterMissing,
    RegistryUnreachable,
    ResolutionFailed,
    SourceRefused,
    SpecRefused,
)

__all__ = ["classify", "scrubbed", "trimmed"]

_MAX_WORDS: Final = 4000
_CREDENTIALS: Final = re.compile(r"(\w+://)[^/\s@]+@")
_NOISE: Final = re.compile(
    r"^\s*(Using |Resolved |Prepared |Installed |Audited |Creating |Activate |Downloading |"
    r"Downloaded |Building |Built |Updating |Updated |Removed |\+ |- )"
)
_NO_SPACE: Final = ("No space left on device", "os error 28", "os error 122")
_NETWORK: Final = (
    "error sending request", "dns error", "Failed to fetch", "Could not connect", "timed out",
    "Could not resolve host", "Request failed after", "Network connectivity is disabled",
    "status code: 5", "Failed to connect to", "Connection refused", "Connection reset",
    "requested URL returned error: 5", "requested URL returned error: 429",
    "Could not resolve hostname",
)  # fmt: skip
#: HTTP statuses after which the same request may succeed a moment later.
_PASSING: Final = frozenset({"408", "425", "429"})
_REFUSED: Final = re.compile(r"HTTP status client error \((\d+)[^)]*\) for url \(([^)\s]+)\)")
_ASKED: Final = re.compile(
    r"(?:Failed to fetch: |for url \(|Failed to download `[^`]* @ )([^\s`)]+)"
)
_UNREAD: Final = re.compile(
    r"Couldn't parse requirement in .*\n\s*cause: (.+)(?:\n\s*(.+)\n\s*\^)?"
)
_REPOSITORY: Final = re.compile(
    r"git (?:fetch|ls-remote)[^\n]*? '(\w+://[^']+)'|Updating (\w+://\S+) \("
)
_FATAL: Final = re.compile(r"^\s*(?:fatal|ssh): (.+)$", re.MULTILINE)
_NO_REVISION: Final = re.compile(
    r"failed to (?:fetch (?:branch or tag|commit|branch|tag)|find branch, tag, or commit) `([^`]+)`"
)
_NO_ACCESS: Final = re.compile(
    r"terminal prompts disabled|Authentication failed|Permission denied|error: 40[13]|"
    r"Host key verification failed"
)
_NO_SUBDIRECTORY: Final = re.compile(r"`([^`#]+)[^`]*` has no subdirectory `([^`]+)`")
_OTHER_NAME: Final = re.compile(
    r"metadata name `([^`]+)` does not match given name `([^`]+)`|"
    r"package name `([^`]+)` does not match `([^`]+)` in the"
)
_NO_PROJECT: Final = re.compile(r"`([^`]+)` does not appear to be a Python project")
#: The second form is what uv says if the requirement has extras or a marker.
_NO_PACKAGE: Final = re.compile(
    r"[Bb]ecause (?:(\S+) was not found in the package registry|there are no versions of ([\w.-]+))"
)
_UNTRUSTED: Final = re.compile(
    r"invalid peer certificate: ?[\w ]*|certificate verify failed[\w: ]*"
)
_NO_COMPILER: Final = re.compile(
    r"No such file or directory: '[^']*(cc|gcc|g\+\+|c\+\+|clang|cl)'|"
    r"command '[^']*(cc|gcc|g\+\+|clang)[^']*' failed: No such file|"
    r"unable to execute '[^']*'|(gcc|g\+\+|cc|clang): (command )?not found|"
    r"[Nn]o (acceptable )?C(\+\+)? compiler|Unknown compiler\(s\)|CMAKE_C(XX)?_COMPILER not set"
)
_NO_HEADER: Final = re.compile(r"fatal error: ([\w./+-]+\.h(?:pp)?): No such file")
_HEADER_PACKAGES: Final = {
    "Python.h": "python3-dev", "ffi.h": "libffi-dev", "openssl/ssl.h": "libssl-dev",
    "libpq-fe.h": "libpq-dev", "mysql.h": "default-libmysqlclient-dev", "zlib.h": "zlib1g-dev",
    "libxml/xpath.h": "libxml2-dev", "libxml/xmlversion.h": "libxml2-dev libxslt1-dev",
    "jpeglib.h": "libjpeg-dev", "sndfile.h": "libsndfile1-dev", "portaudio.h": "portaudio19-dev",
    "sasl/sasl.h": "libsasl2-dev", "lber.h": "libldap2-dev", "cairo.h": "libcairo2-dev",
}  # fmt: skip


def scrubbed(text: str) -> str:
    """Return a text with the credentials in its URLs replaced."""
    return _CREDENTIALS.sub(r"\1***@", text)


def trimmed(words: str) -> str:
    """Return uv's message from the first error on, without progress lines and credentials."""
    lines = [line for line in words.splitlines() if line.strip() and not _NOISE.match(line)]
    starts = (n for n, line in enumerate(lines) if line.startswith(("error:", "  ×", "× ")))
    text = scrubbed("\n".join(lines[next(starts, 0) :]))
    if len(text) <= _MAX_WORDS:
        return text
    half = _MAX_WORDS // 2
    return f"{text[:half]}\n  [...]\n{text[-half:]}"


def classify(words: str, phase: str, asked: str = "") -> EnvironmentFailure:
    """Return the error for uv's output; ``asked``: the requirements that uv was given."""
    text = trimmed(words)
    if any(mark in words for mark in _NO_SPACE):
        return DiskFull("There is no space for the environment", phase=phase, words=text)
    found = _unread(words) or _of_git(words, text, phase) or _of_source(words, text, phase, asked)
    if found is not None:
        return found
    if "No solution found" in words:
        return _unsolved(words, text)
    if "No interpreter found" in words:
        return InterpreterMissing(
            "No such Python is installed here", words=text,
            advice="ask for an installed version, or set FLASHPOOL_PYTHON_DOWNLOADS=1",
        )  # fmt: skip
    compiler = _compiler(words, text, phase)
    if compiler is not None:
        return compiler
    return _unreachable(words, text, phase, asked) or _unbuilt(words, text, phase)


def _unread(words: str) -> SpecRefused | None:
    """Recognise a line that uv cannot parse; uv repeats the line above a row of carets."""
    found = _UNREAD.search(words)
    if found is None:
        return None
    cause, requirement = scrubbed(found[1]), scrubbed((found[2] or "").strip())
    advice = "end the URL or path with the name of a wheel or a source archive"
    if "missing the `git+` prefix" in cause:
        advice = "a Git repository is written with `git+` before its URL, as in `git+https://...`"
    return SpecRefused(
        f"uv does not take a requirement: {cause}", requirement=requirement, advice=advice
    )


def _unsolved(words: str, text: str) -> ResolutionFailed:
    unknown = _NO_PACKAGE.search(words)
    if unknown is None:
        return ResolutionFailed("No set of versions satisfies the requirements", words=text)
    if "credentials" in words:
        advice = "the index refuses the server: the operator gives its URL with credentials"
    else:
        advice = (
            "check the spelling: a requirement is the name in the index, which may differ from "
            "the one in `import`"
        )
    name = unknown[1] or unknown[2]
    what = f"The package index has no {'package' if unknown[1] else 'version of'} {name!r}"
    return ResolutionFailed(what, requirement=name, words=text, advice=advice)


def _unreachable(words: str, text: str, phase: str, asked: str) -> RegistryUnreachable | None:
    untrusted = _UNTRUSTED.search(words)
    if untrusted is not None:
        return CertificateRefused(
            f"The package index's certificate is not trusted: {untrusted.group().strip()}",
            phase=phase, words=_host(words),
            advice="if the network has a certificate authority of its own, set SSL_CERT_FILE to its "
            "certificates, or install them in the system's store; UV_SYSTEM_CERTS=0 uses uv's own list",
        )  # fmt: skip
    if not any(mark in words for mark in _NETWORK):
        return None
    url = _ASKED.search(words)
    if url is not None and _is_direct(url[1], asked):
        return RegistryUnreachable(
            f"{scrubbed(url[1])} could not be fetched", phase=phase, requirement=_requirement(words), words=text,
            advice="check the URL's host and path, and that this machine can reach that host",
        )  # fmt: skip
    return RegistryUnreachable(
        "The package index did not answer", phase=phase, words=text,
        advice="check the pod's network and the index settings, then ask again",
    )  # fmt: skip


def _of_source(words: str, text: str, phase: str, asked: str) -> EnvironmentFailure | None:
    """Recognise a URL that a server refuses, or a directory or file that is not a package."""
    requirement = _requirement(words)
    if refused := _REFUSED.search(words):
        code, url = refused[1], scrubbed(refused[2])
        if code in _PASSING:
            return None
        direct = _is_direct(refused[2], asked)
        what = f"There is nothing at {url} (HTTP {code})"
        advice = (
            "correct the URL"
            if direct
            else "ask for another version: the index names a file that it does not have"
        )
        if code in {"401", "403"}:
            what = f"The server refuses to send {url} (HTTP {code})"
            advice = "the URL needs credentials, or names nothing that may be read: correct it"
        return SourceRefused(what, phase=phase, requirement=requirement, words=text, advice=advice)
    if other := _OTHER_NAME.search(words):
        real, given = (other[1], other[2]) if other[1] else (other[4], other[3])
        return SpecRefused(
            f"The package is {real!r}, not {given!r}", requirement=requirement,
            advice=f"write `{real} @ ...`, or the URL or path without a name", words=text,
        )  # fmt: skip
    if absent := _NO_SUBDIRECTORY.search(words):
        return SourceRefused(
            f"{scrubbed(absent[1])} has no directory {absent[2]!r}", phase=phase, words=text,
            requirement=requirement, advice="correct `#subdirectory=` at the end of the URL",
        )  # fmt: skip
    if empty := _NO_PROJECT.search(words):
        return SourceRefused(
            f"{empty[1]} contains no Python project", phase=phase, words=text, requirement=requirement,
            advice="name the directory that has pyproject.toml or setup.py; one inside a repository "
            "as `#subdirectory=...`",
        )  # fmt: skip
    return None


def _of_git(words: str, text: str, phase: str) -> EnvironmentFailure | None:
    if "Git executable not found" in words:
        return SourceRefused(
            "Git is not installed here, and a requirement is a Git repository",
            phase=phase, requirement=_requirement(words), words=text,
            advice="add system_dependencies=['git'], or name the URL of a wheel or a source archive",
        )  # fmt: skip
    if "Git operation failed" not in words:
        return None
    found = _REPOSITORY.search(words)
    repository = scrubbed(found[1] or found[2]) if found else "the Git repository"
    said = ": ".join(_FATAL.findall(text)[:1])
    kind: type[EnvironmentFailure] = SourceRefused
    if revision := _NO_REVISION.search(words):
        what = f"{repository} has no branch, tag or commit {revision[1]!r}"
        advice = "correct what follows the @ in the URL"
    elif any(mark in words for mark in _NETWORK):
        kind, what = RegistryUnreachable, f"{repository} could not be reached: {said}"
        advice = (
            "check the URL's host, and that this machine can reach it; where it cannot, name "
            "a released version, or a wheel that is on the server"
        )
    elif _NO_ACCESS.search(words):
        what = f"{repository} may not be read: {said}"
        advice = "correct the URL, or give the server credentials: such a repository is private, or does not exist"
    else:
        what = f"{repository} could not be cloned: {said}"
        advice = "correct the URL: it names the repository itself, and a directory of it follows as `#subdirectory=...`"
    if "dubious ownership" in words:
        advice = "it belongs to another user: the operator allows it with git's safe.directory"
    return kind(what, phase=phase, requirement=_requirement(words), words=text, advice=advice)


def _unbuilt(words: str, text: str, phase: str) -> EnvironmentFailure:
    requirement = _requirement(words)
    kind = BuildFailed if requirement or phase != "resolve" else ResolutionFailed
    return kind(
        "A package could not be built" if requirement else "The environment could not be built",
        phase=phase,
        requirement=requirement,
        words=text,
        advice="uv's words above say why; ask for a version that has a wheel for this Python, or "
        "repair the source" if requirement else "uv's words above say why",
    )  # fmt: skip


def _requirement(words: str) -> str:
    """Return the requirement that uv mentions, or an empty text."""
    found = re.search(
        r"Failed to (?:build|download(?: and build)?|install|prepare|read)[^`]*`([^`]+)`", words
    )
    return scrubbed(found[1]) if found else ""


def _is_direct(url: str, asked: str) -> bool:
    """Return whether a requirement names that URL; uv prints it without credentials."""
    return _CREDENTIALS.sub(r"\1", url) in _CREDENTIALS.sub(r"\1", asked)


def _host(words: str) -> str:
    """Return the host that failed.

    The package is not named: which one failed first is chance, and it may not be the user's.
    """
    found = re.search(r"https://(?:[^/\s@]+@)?([^/\s)`]+)", words)
    return f"host: {found.group(1)}" if found else ""


def _compiler(words: str, text: str, phase: str) -> CompilerMissing | None:
    requirement = _requirement(words)
    header = _NO_HEADER.search(words)
    if header is not None:
        package = _HEADER_PACKAGES.get(header.group(1), "")
        hint = (
            f"add system_dependencies=[{package!r}]"
            if package
            else "add the system package that has it"
        )
        return CompilerMissing(
            f"The header {header.group(1)} is missing", phase=phase, requirement=requirement, words=text, advice=hint,
        )  # fmt: skip
    if _NO_COMPILER.search(words) is None:
        return None
    return CompilerMissing(
        "A package has to be compiled, and there is no compiler", phase=phase, requirement=requirement, words=text,
        advice="add system_dependencies=['build-essential'], or set FLASHPOOL_AUTO_BUILD_TOOLS=1",
    )  # fmt: skip
