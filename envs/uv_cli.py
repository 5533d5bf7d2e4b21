"""Every uv invocation there is, and what uv's answers mean.

Nothing else in the package starts uv. Requirements reach it through files, never
through argv; index URLs (which may hold credentials) through its environment.
That environment is an allow-list: a source distribution's build runs code of
strangers, which must not find the server's secrets. No interpreter is ever
downloaded unless the settings say so.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .errors import (
    BuildFailed,
    BuildTimeout,
    CertificateRefused,
    CompilerMissing,
    DiskFull,
    EnvironmentFailure,
    InterpreterMissing,
    RegistryUnreachable,
    ResolutionFailed,
    StoreUnavailable,
    UvKilled,
)
from .process import Finished, run
from .settings import EnvSettings

__all__ = ["Progress", "Uv", "classify", "find_uv", "trimmed"]

Progress = Callable[[str], None]

#: Variables of ours that uv and the builds it starts may see.
_PASSED: Final = frozenset(
    "PATH HOME LANG LC_ALL LC_CTYPE TMPDIR TZ USER LOGNAME NETRC "
    "HTTP_PROXY HTTPS_PROXY NO_PROXY ALL_PROXY http_proxy https_proxy no_proxy all_proxy "
    "SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE CURL_CA_BUNDLE GIT_SSL_CAINFO "
    "CC CXX CPP FC LD AR CFLAGS CXXFLAGS CPPFLAGS LDFLAGS MAKEFLAGS MAX_JOBS "
    "CUDA_HOME CUDA_PATH TORCH_CUDA_ARCH_LIST LD_LIBRARY_PATH LIBRARY_PATH CPATH "
    "PKG_CONFIG_PATH CMAKE_PREFIX_PATH CARGO_HOME RUSTUP_HOME".split()
)
#: uv's own settings pass, but for those that would change what we ask of it.
_WITHHELD_UV: Final = frozenset(
    "UV_PYTHON UV_PROJECT UV_PROJECT_ENVIRONMENT UV_CONSTRAINT UV_OVERRIDE UV_EXCLUDE "
    "UV_BUILD_CONSTRAINT UV_SYSTEM_PYTHON UV_CACHE_DIR UV_WORKING_DIR UV_PUBLISH_TOKEN "
    "UV_PUBLISH_PASSWORD UV_REQUIRE_HASHES UV_VENV_SEED UV_VENV_CLEAR UV_NO_CACHE "
    "UV_COMPILE_BYTECODE UV_CONFIG_FILE UV_NO_CONFIG UV_PYTHON_DOWNLOADS".split()
)
_MAX_WORDS: Final = 4000
#: What the shell that guards uv exits with when uv died of SIGKILL.
_KILLED: Final = 128 + 9
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
    "requested URL returned error: 5",
)  # fmt: skip
_UNTRUSTED: Final = re.compile(
    r"invalid peer certificate: ?[\w ]*|certificate verify failed[\w: ]*"
)
#: Where systems keep the authorities they trust; a slim image may have none of them.
_CERTIFICATES: Final = ("/etc/ssl/certs", "/etc/ssl/cert.pem", "/etc/pki/tls/certs")
#: Either of them set: how uv finds certificates is the user's decision.
_CERTIFICATES_CHOSEN: Final = frozenset({"UV_SYSTEM_CERTS", "UV_NATIVE_TLS"})
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


def find_uv(settings: EnvSettings) -> Path:
    """uv as configured, beside this Python, from its own package, or on PATH."""
    if settings.uv is not None:
        return settings.uv
    beside = Path(sys.prefix) / "bin" / "uv"
    if beside.is_file():
        return beside
    found = shutil.which("uv")
    if found is None:
        raise StoreUnavailable(
            "uv is not installed, so no environment can be built",
            advice="install uv, or set FLASHPOOL_UV",
        )
    return Path(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Uv:
    """uv with one cache and one set of index settings."""

    executable: Path
    cache: Path
    settings: EnvSettings
    limit_s: float

    async def resolve(
        self,
        requirements: Path,
        python: Path,
        *,
        constraints: Path | None = None,
        find_links: Path | None = None,
        dependencies: bool = True,
        refresh: bool = False,
        progress: Progress | None = None,
    ) -> str:
        """Answer the lock: one line a package, each with its `via` comment."""
        argv = ["pip", "compile", str(requirements), "--python", str(python)]
        argv += ["--no-header", "--annotation-style", "line", "--no-python-downloads"]
        if constraints is not None:
            argv += ["--constraints", str(constraints)]
        if not dependencies:
            argv += ["--no-deps"]
        if refresh:
            argv += ["--refresh"]
        links = () if find_links is None else (str(find_links),)
        finished = await self._run(argv, "resolve", requirements.parent, progress, links)
        return finished.stdout

    async def install(self, venv: Path, lock: Path, *, progress: Progress | None = None) -> None:
        """Install exactly the lock's lines, without looking at dependencies.

        First with what the cache has: the resolution has just asked the index, and asking
        it once more about every package takes longer than linking their files.
        """
        argv = ["pip", "install", "--no-deps", "--link-mode", self.settings.link_mode]
        argv += ["--python", str(venv / "bin" / "python"), "--requirements", str(lock)]
        try:
            await self._run([*argv, "--offline"], "build", lock.parent, _hopeful(progress))
        except (RegistryUnreachable, ResolutionFailed):
            await self._run(argv, "build", lock.parent, progress)

    async def install_cached(
        self, venv: Path, wanted: Path, left_out: Path, *, progress: Progress
    ) -> None:
        """Resolve and install what the cache alone answers, but for some names.

        Nobody is asked and nothing built: where the cache does not suffice it fails, soon
        and with the virtualenv as it was.
        """
        argv = ["pip", "install", "--offline", "--no-build", "--no-python-downloads"]
        argv += ["--link-mode", self.settings.link_mode, "--excludes", str(left_out)]
        argv += ["--python", str(venv / "bin" / "python"), "--requirements", str(wanted)]
        await self._run(argv, "build", wanted.parent, progress)

    async def look_at(self, venv: Path) -> None:
        """Have uv ask an interpreter what it is, and remember the answer."""
        argv = ["pip", "list", "--offline", "--python", str(venv / "bin" / "python")]
        await self._run(argv, "build", venv.parent, None)

    async def find_python(self, version: str, folder: Path) -> Path:
        """Where uv would find that version; what it names may be a shim that does not run."""
        argv = ["python", "find", "--system", "--no-project", version]
        if not self.settings.allow_python_downloads:
            argv.append("--no-python-downloads")
        else:
            await self._run(["python", "install", version], "resolve", folder, None)
        finished = await self._run(argv, "resolve", folder, None)
        return Path(finished.stdout.strip())

    async def clean_cache(self, folder: Path, packages: Sequence[str] = ()) -> None:
        """Drop some packages from the cache, or all; environments keep links of their own."""
        await self._run(["cache", "clean", *packages], "store", folder, None)

    async def _run(
        self,
        argv: Sequence[str],
        phase: str,
        folder: Path,
        progress: Progress | None,
        links: tuple[str, ...] = (),
    ) -> Finished:
        command = [str(self.executable), "--color", "never", *self._config(), *argv]
        try:
            finished = await run(
                command,
                environment=self._environment(links),
                folder=folder,
                limit_s=self.limit_s,
                on_line=_scrubbing(progress),
            )
        except TimeoutError as error:
            raise BuildTimeout(
                str(error),
                phase="build",
                advice="raise FLASHPOOL_BUILD_TIMEOUT_S, or build it beforehand",
            ) from None
        if finished.code == _KILLED:
            raise UvKilled(
                "uv was killed while it worked",
                phase=phase,
                words=trimmed(finished.stderr),
                advice="it may have been for want of memory: give the machine more, then ask again",
            )
        if finished.code != 0:
            raise classify(finished.stderr or finished.stdout, phase)
        return finished

    def _config(self) -> list[str]:
        """Name the one configuration file, or none.

        Discovery would also look upwards from the working directory, which lies
        on a volume that user code can write.
        """
        home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
        named = os.environ.get("UV_CONFIG_FILE")
        for path in ([Path(named)] if named else []) + [
            home / "uv/uv.toml",
            Path("/etc/uv/uv.toml"),
        ]:
            if path.is_file():
                return ["--config-file", str(path)]
        return ["--no-config"]

    def _environment(self, links: tuple[str, ...]) -> dict[str, str]:
        kept = {
            name: value
            for name, value in os.environ.items()
            if name in _PASSED or (name.startswith("UV_") and name not in _WITHHELD_UV)
        }
        if not _CERTIFICATES_CHOSEN & os.environ.keys() and _has_certificates():
            # As pip does: a network with an authority of its own has told the system of it.
            kept["UV_SYSTEM_CERTS"] = "1"
        settings = self.settings
        if settings.index_url:
            kept["UV_DEFAULT_INDEX"] = settings.index_url
        if settings.extra_index_urls:
            kept["UV_INDEX"] = " ".join(settings.extra_index_urls)
        # Not as an option: that would replace the places set here and outside.
        outside = (kept["UV_FIND_LINKS"],) if kept.get("UV_FIND_LINKS") else ()
        if places := (*outside, *settings.find_links, *links):
            kept["UV_FIND_LINKS"] = ",".join(places)
        if settings.offline:
            kept["UV_OFFLINE"] = "1"
        kept["UV_PYTHON_DOWNLOADS"] = "manual" if settings.allow_python_downloads else "never"
        return {
            **kept,
            "UV_CACHE_DIR": str(self.cache),
            "GIT_TERMINAL_PROMPT": "0",
            "NO_COLOR": "1",
        }


def _has_certificates() -> bool:
    """Whether the system trusts anybody: without that, uv's own list is better."""
    if any(os.environ.get(name) for name in ("SSL_CERT_FILE", "SSL_CERT_DIR")):
        return True
    paths = [Path(name) for name in _CERTIFICATES]
    return any(path.is_file() or (path.is_dir() and any(path.iterdir())) for path in paths)


def _scrubbing(progress: Progress | None) -> Progress | None:
    if progress is None:
        return None
    return lambda line: progress(_CREDENTIALS.sub(r"\1***@", line))


def _hopeful(progress: Progress | None) -> Progress | None:
    """Pass on what went well: the failure of a first try is nobody's concern."""
    if progress is None:
        return None
    return lambda line: None if line.startswith(("error", "  cause", "hint")) else progress(line)


def trimmed(words: str) -> str:
    """uv's own words: from the first error on, without progress lines or credentials."""
    lines = [line for line in words.splitlines() if line.strip() and not _NOISE.match(line)]
    starts = (n for n, line in enumerate(lines) if line.startswith(("error:", "  ×", "× ")))
    text = _CREDENTIALS.sub(r"\1***@", "\n".join(lines[next(starts, 0) :]))
    if len(text) <= _MAX_WORDS:
        return text
    half = _MAX_WORDS // 2
    return f"{text[:half]}\n  [...]\n{text[-half:]}"


def classify(words: str, phase: str) -> EnvironmentFailure:
    """The error that uv's words mean."""
    text = trimmed(words)
    if any(mark in words for mark in _NO_SPACE):
        return DiskFull("There is no space for the environment", phase=phase, words=text)
    if "No solution found" in words:
        return ResolutionFailed("No set of versions satisfies the requirements", words=text)
    if "No interpreter found" in words:
        return InterpreterMissing(
            "No such Python is installed here", words=text,
            advice="ask for an installed version, or set FLASHPOOL_PYTHON_DOWNLOADS=1",
        )  # fmt: skip
    compiler = _compiler(words, text, phase)
    if compiler is not None:
        return compiler
    untrusted = _UNTRUSTED.search(words)
    if untrusted is not None:
        return CertificateRefused(
            f"The package index's certificate is not trusted: {untrusted.group().strip()}",
            phase=phase, words=_host(words),
            advice="if the network has a certificate authority of its own, set SSL_CERT_FILE to its "
            "certificates, or install them in the system's store; UV_SYSTEM_CERTS=0 uses uv's own list",
        )  # fmt: skip
    if any(mark in words for mark in _NETWORK):
        return RegistryUnreachable(
            "The package index did not answer", phase=phase, words=text,
            advice="check the pod's network and the index settings, then ask again",
        )  # fmt: skip
    failed = re.search(
        r"Failed to (?:build|download(?: and build)?|install|prepare)[^`]*`([^`]+)`", words
    )
    kind = ResolutionFailed if phase == "resolve" and failed is None else BuildFailed
    return kind(
        "A package could not be built" if failed else "The environment could not be built",
        phase=phase,
        requirement=failed.group(1) if failed else "",
        words=text,
        advice="uv's words above say why; ask for a version that has a wheel for this Python, or "
        "repair the source" if failed else "uv's words above say why",
    )  # fmt: skip


def _host(words: str) -> str:
    """Who was asked. Which of the packages came first is chance, and may be none of the user's."""
    found = re.search(r"https://(?:[^/\s@]+@)?([^/\s)`]+)", words)
    return f"host: {found.group(1)}" if found else ""


def _compiler(words: str, text: str, phase: str) -> CompilerMissing | None:
    failed = re.search(r"Failed to (?:build|download and build) `([^`]+)`", words)
    requirement = failed.group(1) if failed else ""
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
