"""Every invocation of uv; `uv_words.py` interprets its output.

No other module of the package starts uv. Requirements reach uv through files, never through argv.
Index URLs reach it through its environment, without their credentials: uv reads those once, from a
pipe, and only when it queries an index (index_credentials.py). The environment is an allow-list:
building a source distribution runs other people's code, which must not see the server's secrets.
Interpreters are downloaded only if the settings allow it.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .concurrency.disk_threads import run_in_thread
from .errors import (
    BuildTimeout,
    RegistryUnreachable,
    ResolutionFailed,
    StoreUnavailable,
    UvKilled,
)
from .handed_over import SECRET
from .index_credentials import configuration, withhold
from .process import Finished, run
from .settings import EnvSettings
from .uv_words import classify, scrubbed, trimmed

__all__ = ["Progress", "Uv", "find_uv"]

Progress = Callable[[str], None]

#: Variables of the server that uv and builds may see.
_PASSED: Final = frozenset(
    "PATH HOME LANG LC_ALL LC_CTYPE TMPDIR TZ USER LOGNAME NETRC "
    "HTTP_PROXY HTTPS_PROXY NO_PROXY ALL_PROXY http_proxy https_proxy no_proxy all_proxy "
    "SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE CURL_CA_BUNDLE GIT_SSL_CAINFO "
    "CC CXX CPP FC LD AR CFLAGS CXXFLAGS CPPFLAGS LDFLAGS MAKEFLAGS MAX_JOBS "
    "CUDA_HOME CUDA_PATH TORCH_CUDA_ARCH_LIST LD_LIBRARY_PATH LIBRARY_PATH CPATH "
    "PKG_CONFIG_PATH CMAKE_PREFIX_PATH CARGO_HOME RUSTUP_HOME".split()
)
#: Variables that would change uv's invocations, and are not passed on.
_WITHHELD_UV: Final = frozenset(
    "UV_PYTHON UV_PROJECT UV_PROJECT_ENVIRONMENT UV_CONSTRAINT UV_OVERRIDE UV_EXCLUDE "
    "UV_BUILD_CONSTRAINT UV_SYSTEM_PYTHON UV_CACHE_DIR UV_WORKING_DIR UV_PUBLISH_TOKEN "
    "UV_PUBLISH_PASSWORD UV_REQUIRE_HASHES UV_VENV_SEED UV_VENV_CLEAR UV_NO_CACHE "
    "UV_COMPILE_BYTECODE UV_CONFIG_FILE UV_NO_CONFIG UV_PYTHON_DOWNLOADS".split()
)
#: Exit status of the guarding shell if uv died of SIGKILL.
_KILLED: Final = 128 + 9
#: Where systems keep trusted certificate authorities; a slim image may have none.
_CERTIFICATES: Final = ("/etc/ssl/certs", "/etc/ssl/cert.pem", "/etc/pki/tls/certs")
#: If one of these is set, the user has decided how uv finds certificates.
_CERTIFICATES_CHOSEN: Final = frozenset({"UV_SYSTEM_CERTS", "UV_NATIVE_TLS"})


def find_uv(settings: EnvSettings) -> Path:
    """Find uv: as configured, beside this Python, or on PATH."""
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
        constraints: Sequence[Path] = (),
        find_links: Path | None = None,
        dependencies: bool = True,
        refresh: bool = False,
        fresh: Sequence[str] = (),
        python_version: str = "",
        no_source: str = "",
        progress: Progress | None = None,
    ) -> str:
        """Return the lock: a line for each package, with its `via` comment.

        ``fresh``: packages to query anew, not from the cache; ``python_version``: resolve for this
        version, which need not be installed; ``no_source``: a package of which only wheels count.
        """
        argv = ["pip", "compile", str(requirements), "--python", str(python)]
        argv += ["--no-header", "--annotation-style", "line", "--no-python-downloads"]
        argv += [part for path in constraints for part in ("--constraints", str(path))]
        if not dependencies:
            argv += ["--no-deps"]
        if not self._offline:  # uv refuses both options together, and offline nothing is newer
            argv += ["--refresh"] if refresh else []
            argv += [part for name in fresh for part in ("--refresh-package", name)]
        if python_version:
            argv += ["--python-version", python_version]
        if no_source:
            argv += ["--only-binary", no_source]
        links = () if find_links is None else (str(find_links),)
        finished = await self._run(
            argv, "resolve", requirements.parent, progress, links, requirements, online=True
        )
        return finished.stdout

    async def install(
        self,
        venv: Path,
        lock: Path,
        *,
        fresh: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> None:
        """Install exactly the lock's lines, without looking at dependencies.

        ``fresh``: packages to build from the current files. uv keeps the wheel of a directory until
        its pyproject.toml changes, even if its modules change.

        The first attempt uses only the cache: the resolution has just queried the index, and
        querying it again for every package takes longer than linking the packages' files.
        """
        argv = ["pip", "install", "--no-deps", "--link-mode", self.settings.link_mode]
        argv += ["--python", str(venv / "bin" / "python"), "--requirements", str(lock)]
        argv += [part for name in fresh for part in ("--reinstall-package", name)]
        try:
            await self._run([*argv, "--offline"], "build", lock.parent, _hopeful(progress))
        except (RegistryUnreachable, ResolutionFailed):
            await self._run(argv, "build", lock.parent, progress, requirements=lock, online=True)

    async def install_cached(
        self, venv: Path, wanted: Path, left_out: Path, *, progress: Progress
    ) -> None:
        """Resolve and install from the cache alone, without the packages in ``left_out``.

        The index is not queried and nothing is built. If the cache does not suffice, this fails
        quickly and leaves the virtualenv unchanged.
        """
        argv = ["pip", "install", "--offline", "--no-build", "--no-python-downloads"]
        argv += ["--link-mode", self.settings.link_mode, "--excludes", str(left_out)]
        argv += ["--python", str(venv / "bin" / "python"), "--requirements", str(wanted)]
        await self._run(argv, "build", wanted.parent, progress)

    async def look_at(self, venv: Path) -> None:
        """Make uv query an interpreter, and cache the answer."""
        argv = ["pip", "list", "--offline", "--python", str(venv / "bin" / "python")]
        await self._run(argv, "build", venv.parent, None)

    async def find_python(self, version: str, folder: Path) -> Path:
        """Return the interpreter that uv finds for a version; a shim may not run."""
        argv = ["python", "find", "--system", "--no-project", version]
        if not self.settings.allow_python_downloads:
            argv.append("--no-python-downloads")
        else:
            await self._run(["python", "install", version], "resolve", folder, None)
        finished = await self._run(argv, "resolve", folder, None)
        return Path(finished.stdout.strip())

    async def clean_cache(self, folder: Path, packages: Sequence[str] = ()) -> None:
        """Remove some packages, or all, from the cache; environments keep links of their own."""
        await self._run(["cache", "clean", *packages], "store", folder, None)

    async def _run(
        self,
        argv: Sequence[str],
        phase: str,
        folder: Path,
        progress: Progress | None,
        links: tuple[str, ...] = (),
        requirements: Path | None = None,
        *,
        online: bool = False,
    ) -> Finished:
        online = online and not self._offline
        withheld = withhold(self._environment(links), named=online)
        own = self._configuration()
        config = ["--no-config"] if own is None else ["--config-file", str(own)]
        secret = None
        if online and withheld.urls:
            text = "" if own is None else await run_in_thread(_read, own)
            config = ["--config-file", SECRET]
            secret = configuration(text, withheld.urls).encode()
        try:
            finished = await run(
                [str(self.executable), "--color", "never", *config, *argv],
                environment=withheld.environment,
                folder=folder,
                limit_s=self.limit_s,
                on_line=_scrubbing(progress),
                secret=secret,
            )
        except TimeoutError as error:
            raise BuildTimeout(
                str(error),
                phase="build",
                advice="raise FLASHPOOL_BUILD_TIMEOUT_S, or build it beforehand",
            ) from None
        if finished.code == _KILLED:
            raise UvKilled(
                "uv was killed while it was running",
                phase=phase,
                words=trimmed(finished.stderr),
                advice="possibly for lack of memory: give the machine more memory, and try again",
            )
        if finished.code != 0:
            asked = await run_in_thread(_read, requirements) if requirements else ""
            raise classify(finished.stderr or finished.stdout, phase, asked)
        return finished

    @property
    def _offline(self) -> bool:
        return self.settings.offline or bool(os.environ.get("UV_OFFLINE"))

    def _configuration(self) -> Path | None:
        """Return the path of the one configuration file, if there is one.

        uv would otherwise search upwards from the working directory, which is on a volume that user
        code can write.
        """
        home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
        named = os.environ.get("UV_CONFIG_FILE")
        files = [Path(named)] if named else []
        files += [home / "uv/uv.toml", Path("/etc/uv/uv.toml")]
        return next((path for path in files if path.is_file()), None)

    def _environment(self, links: tuple[str, ...]) -> dict[str, str]:
        kept = {
            name: value
            for name, value in os.environ.items()
            if name in _PASSED or (name.startswith("UV_") and name not in _WITHHELD_UV)
        }
        if not _CERTIFICATES_CHOSEN & os.environ.keys() and _has_certificates():
            # Like pip: if a network has an authority of its own, its machines trust that authority.
            kept["UV_SYSTEM_CERTS"] = "1"
        settings = self.settings
        if settings.index_url:
            kept["UV_DEFAULT_INDEX"] = settings.index_url
        if settings.extra_index_urls:
            kept["UV_INDEX"] = " ".join(settings.extra_index_urls)
        # Not as an option: it would replace the directories set by these settings and the operator.
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


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def _has_certificates() -> bool:
    """Return whether the system has trusted authorities; if not, uv uses its own list."""
    if any(os.environ.get(name) for name in ("SSL_CERT_FILE", "SSL_CERT_DIR")):
        return True
    paths = [Path(name) for name in _CERTIFICATES]
    return any(path.is_file() or (path.is_dir() and any(path.iterdir())) for path in paths)


def _scrubbing(progress: Progress | None) -> Progress | None:
    if progress is None:
        return None
    return lambda line: progress(scrubbed(line))


def _hopeful(progress: Progress | None) -> Progress | None:
    """Report only successes: a first attempt may fail without consequences."""
    if progress is None:
        return None
    return lambda line: None if line.startswith(("error", "  cause", "hint")) else progress(line)
