"""System packages through apt (nala where present), once per set on a machine.

    already installed (dpkg-query) -> nothing
    otherwise, under one machine-wide lock: check again, copy in kept .debs that match the lists
    (kept_debs.py), install, copy new .debs out to the volume. After a failure try once more, with
    new lists, and after repairing what a killed install has left half-way

The lock is a file lock on local disk: apt's state belongs to the machine, not to the volume. The
lock only saves work: apt has a lock of its own, but fails instead of waiting for it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from flashpool.envs.concurrency.disk_threads import run_in_thread
from flashpool.envs.errors import SystemPackagesFailed
from flashpool.envs.process import Finished, run
from flashpool.envs.uv_cli import Progress

from . import kept_debs

__all__ = ["SystemPackages"]

_log = logging.getLogger(__name__)
_LOCK: Final = Path("/tmp/flashpool-apt.lock")  # noqa: S108  (filelock follows no link there)
_ARCHIVES: Final = Path("/var/cache/flashpool-debs")
#: Configuration for apt and nala. An image's own rules may empty apt's usual directory, but not
#: this one, which belongs to root and holds only packages that are being installed.
_CONFIG: Final = """\
Dir::Cache::archives "{archives}";
APT::Keep-Downloaded-Packages "true";
DPkg::Lock::Timeout "120";
"""
_KEPT_WORDS: Final = 3000
#: Polling interval: only a thread could wait for the release of a file lock, and a thread cannot be
#: cancelled.
_ASK_AGAIN_S: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemPackages:
    """Installs sets of packages; safe for many callers and processes at once."""

    debs: Path
    limit_s: float
    lock: Path = _LOCK
    _done: set[tuple[str, ...]] = field(default_factory=set)
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def ensure(self, names: tuple[str, ...], progress: Progress) -> None:
        """Return once every package is installed, or raise."""
        if not names or names in self._done:
            return
        async with self._turn:
            if names in self._done:
                return
            missing = await self._missing(names)
            if missing:
                _check_allowed(missing)
                async with _machine_lock(self.lock, progress):
                    # Another process may have held the lock to install the same packages.
                    if missing := await self._missing(names):
                        await self._install(missing, progress)
            self._done.add(names)

    async def _missing(self, names: tuple[str, ...]) -> tuple[str, ...]:
        plain = [name.partition("=")[0] for name in names]
        argv = [
            "dpkg-query",
            "--show",
            "--showformat",
            "${Package}\t${db:Status-Status}\t${Version}\n",
        ]
        try:
            finished = await run([*argv, *plain], environment=_environment(), limit_s=60)
        except (OSError, TimeoutError) as error:
            raise SystemPackagesFailed(
                "This machine has no dpkg, so system packages cannot be installed",
                words=str(error),
                advice="put them into the image",
            ) from None
        have = {tuple(row.split("\t")) for row in finished.stdout.splitlines()}
        return tuple(name for name in names if not _is_there(name, have))

    async def _install(self, names: tuple[str, ...], progress: Progress) -> None:
        progress(f"Installing system packages: {' '.join(names)}")
        folder = self.debs / await run_in_thread(_release)
        archives = _ARCHIVES
        await run_in_thread(_prepare, archives)
        tool = shutil.which("nala") or shutil.which("apt-get")
        if tool is None:
            raise SystemPackagesFailed(
                "This machine has neither apt-get nor nala",
                advice="put the packages into the image",
            )
        finished = await self._apt(tool, names, folder, progress)
        if finished.code:
            if "dpkg --configure -a" in finished.stdout + finished.stderr:
                await self._run(["dpkg", "--configure", "-a"], progress)
            # Lists are missing or old: a file "not found" often only has a newer version number.
            await self._update(progress)
            finished = await self._apt(tool, names, folder, progress)
        if finished.code:
            raise _failure(finished, names)
        await run_in_thread(kept_debs.keep, archives, folder)
        await run_in_thread(_empty, archives)

    async def _apt(
        self, tool: str, names: Sequence[str], kept: Path, progress: Progress
    ) -> Finished:
        listed = await self._listed(names)
        await run_in_thread(kept_debs.take, listed, kept, _ARCHIVES)
        argv = [tool, "install", "--assume-yes", "--no-install-recommends"]
        if not tool.endswith("nala"):
            argv.append("-q")
        return await self._run([*argv, "--", *names], progress)

    async def _listed(self, names: Sequence[str]) -> list[kept_debs.ListedDeb]:
        """Return what apt would download; empty without package lists."""
        argv = ["apt-get", "install", "--print-uris", "-qq", "--assume-yes"]
        argv += ["--no-install-recommends", "-o", "Acquire::ForceHash=SHA256", "--", *names]
        finished = await self._run(argv, lambda _: None)
        return [] if finished.code else kept_debs.listed_debs(finished.stdout)

    async def _update(self, progress: Progress) -> None:
        progress("Updating the system's package lists")
        finished = await self._run(["apt-get", "update", "-q"], progress)
        if finished.code:
            _log.warning("apt-get update failed: %s", _words(finished))

    async def _run(self, argv: Sequence[str], progress: Progress) -> Finished:
        try:
            return await run(
                argv,
                environment={**_environment(), "APT_CONFIG": str(_config_of(_ARCHIVES))},
                limit_s=self.limit_s,
                on_line=progress,
            )
        except (OSError, TimeoutError) as error:
            raise SystemPackagesFailed(
                f"{Path(argv[0]).name} did not finish",
                words=str(error),
                advice="check the pod's network",
            ) from None


def _is_there(name: str, have: set[tuple[str, ...]]) -> bool:
    plain, _, version = name.partition("=")
    plain = plain.partition(":")[0]
    return any(
        row[:2] == (plain, "installed") and (not version or row[2] == version)
        for row in have
        if len(row) == 3
    )


def _check_allowed(names: tuple[str, ...]) -> None:
    if os.geteuid() != 0:
        raise SystemPackagesFailed(
            "System packages need root, and this server does not run as root",
            requirement=", ".join(names),
            advice="put them into the image, or run the server as root",
        )


def _environment() -> dict[str, str]:
    passed = ("PATH", "HOME", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "no_proxy")
    kept = {name: os.environ[name] for name in passed if name in os.environ}
    return {**kept, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}


def _release() -> str:
    """Return an id of the system's release: packages are valid for one release only."""
    try:
        text = Path("/etc/os-release").read_text()
    except OSError:
        text = ""
    return hashlib.sha256(f"{text}{os.uname().machine}".encode()).hexdigest()[:16]


def _prepare(archives: Path) -> None:
    """Delete archives that a killed install left, because apt would not check their contents."""
    (archives / "partial").mkdir(parents=True, exist_ok=True)
    archives.chmod(0o755)
    _empty(archives)
    _config_of(archives).write_text(_CONFIG.format(archives=archives))


def _empty(archives: Path) -> None:
    for pattern in ("*.deb", ".*.deb"):
        for deb in archives.glob(pattern):
            deb.unlink()


def _config_of(archives: Path) -> Path:
    return archives.with_name(f"{archives.name}.conf")


@asynccontextmanager
async def _machine_lock(path: Path, progress: Progress) -> AsyncIterator[None]:
    # Imported late, by the few processes that need it: filelock then adds work to every fork.
    from filelock import FileLock, Timeout

    # No fall-back to a lock file, which would outlive a killed process.
    lock = FileLock(path, mode=0o600, thread_local=False, fallback_to_soft=False)
    told = False
    while True:
        try:
            lock.acquire(blocking=False)
            break
        except Timeout:
            if not told:
                progress("Another process installs system packages: waiting for it")
                told = True
            await asyncio.sleep(_ASK_AGAIN_S)
    try:
        yield
    finally:
        lock.release()


def _words(finished: Finished) -> str:
    lines = [*finished.stdout.splitlines(), *finished.stderr.splitlines()]
    telling = [line for line in lines if line.startswith(("E:", "W:", "Err:", "Error:"))]
    return "\n".join(telling or lines)[-_KEPT_WORDS:]


def _failure(finished: Finished, names: tuple[str, ...]) -> SystemPackagesFailed:
    words = _words(finished)
    if "No space left on device" in words or "enough free space" in words:
        # Not DiskFull: evicting environments frees no space on the system's disk.
        return SystemPackagesFailed(
            "There is no space for system packages",
            requirement=", ".join(names),
            words=words,
            advice="free space on the machine's own disk, or put them into the image",
        )
    named = [name for name in names if name.partition("=")[0] in words]
    return SystemPackagesFailed(
        "System packages could not be installed",
        requirement=", ".join(named or names),
        words=words,
        advice="check the names for this image's release with `apt-cache policy NAME`",
    )
