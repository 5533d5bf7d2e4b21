"""Settings of the environments library, and how they are read.

`EnvSettings` is plain data; `from_environ` reads the `FLASHPOOL_*` variables. No code here touches
a disk: `store/locations.py` decides what the paths mean.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, cast

Mode = Literal["auto", "volume", "archive"]

#: Where RunPod mounts a network volume.
DEFAULT_VOLUME: Final = Path("/runpod-volume")
#: Packages that a worker needs besides the standard library.
RUNTIME_PACKAGES: Final = ("cloudpickle", "tblib")
#: Kinds of direct reference that a request may use.
REFERENCE_KINDS: Final = frozenset({"url", "vcs", "local"})

_TRUE: Final = frozenset({"1", "true", "yes", "on"})


def runtime_pins() -> tuple[str, ...]:
    """Return pins for the runtime's packages at the server's versions: both ends must agree."""
    pins = []
    for name in RUNTIME_PACKAGES:
        try:
            pins.append(f"{name}=={importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            pins.append(name)
    return tuple(pins)


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvSettings:
    """All settings; the defaults suit a pod. Times are in seconds, sizes in MiB."""

    #: Interpreter for calls that name no packages; environments are built on top of its packages.
    base_python: Path = field(default_factory=lambda: Path(sys.executable))
    #: Volume on which servers share environments. None: `/runpod-volume` if it is mounted,
    #: otherwise only the local directory.
    volume: Path | None = None
    #: Local disk: the fallback store, and where archives are unpacked. None: the user's cache.
    local: Path | None = None
    #: Whether environments are stored in place on the volume or as archives; `auto`: depends on the
    #: volume's file system.
    mode: Mode = "auto"
    #: Path of the uv program. None: the one that is installed with flashpool.
    uv: Path | None = None

    #: Package index to use instead of PyPI.
    index_url: str | None = None
    #: Further package indexes.
    extra_index_urls: tuple[str, ...] = ()
    #: Directories or pages with further packages.
    find_links: tuple[str, ...] = ()
    #: Build without network access.
    offline: bool = False
    #: Kinds of direct reference that a spec may use: `url`, `vcs`, `local`.
    references: frozenset[str] = REFERENCE_KINDS
    #: Download a requested version of Python that is not installed.
    allow_python_downloads: bool = False
    #: Install build-essential when a package needs a compiler and none is installed.
    auto_build_tools: bool = False
    #: Requirements that every environment gets, because caller and worker must agree on them.
    runtime_pins: tuple[str, ...] = field(default_factory=runtime_pins)
    #: How files are copied from uv's cache. `auto`: so that no call can write to files of the
    #: cache.
    link_mode: Literal["auto", "hardlink", "copy", "clone"] = "auto"
    #: Compile the modules of a new environment ahead of calls.
    compile_bytecode: bool = True

    #: Disk space for all environments; 0: no limit.
    quota_mb: int = 0
    #: How long a new environment waits for leases to be released if the quota is full.
    room_wait_s: float = 10.0
    #: Disk space to keep free where environments are stored.
    min_free_mb: int = 256
    #: Time without use after which an environment is deleted; 0: never because of its age.
    max_age_s: float = 0.0
    #: Builds that run at once on this pod; others wait in a queue.
    builds: int = 4
    #: How long a build may take.
    build_timeout_s: float = 600.0
    #: Whether a running build continues when no call waits for it any more.
    builds_go_on: bool = False
    #: How long resolved versions are reused for equal requests before the index is asked again.
    memo_s: float = 3600.0
    #: How long a failure is repeated to equal requests.
    failure_s: float = 60.0
    #: How long an environment stays held after its last lease is released.
    hold_s: float = 10.0
    #: Time between two heartbeats of this process on the volume.
    heartbeat_s: float = 2.0
    #: A holder on another machine is dead after this long without a heartbeat.
    stale_s: float = 60.0
    #: A claim is taken over after this long without a heartbeat, also from a stopped process.
    claim_stale_s: float = 15.0
    #: Key that signs environments on a shared volume; without it only accidental damage is
    #: detected.
    volume_key: bytes | None = field(default=None, repr=False)

    @property
    def beat_s(self) -> float:
        """Seconds between two heartbeats: several within each limit, whatever the settings are."""
        return max(min(self.heartbeat_s, self.stale_s / 4, self.claim_stale_s / 4), 0.05)

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> EnvSettings:
        """Read `FLASHPOOL_*`; settings whose variables are not set keep their defaults."""
        read = _Reader(environ)
        key = environ.get("FLASHPOOL_VOLUME_KEY", "")
        default = cls()
        return cls(
            base_python=read.path("BASE_PYTHON") or default.base_python,
            volume=read.path("VOLUME"),
            local=read.path("LOCAL_DIR"),
            mode=read.mode("ENV_MODE"),
            uv=read.path("UV"),
            index_url=read.text("INDEX_URL") or None,
            extra_index_urls=read.words("EXTRA_INDEX_URLS"),
            find_links=read.words("FIND_LINKS"),
            offline=read.flag("OFFLINE", default=False),
            references=frozenset(read.words("ENV_REFERENCES")) or REFERENCE_KINDS,
            allow_python_downloads=read.flag("PYTHON_DOWNLOADS", default=False),
            auto_build_tools=read.flag("AUTO_BUILD_TOOLS", default=False),
            compile_bytecode=read.flag("COMPILE_BYTECODE", default=True),
            quota_mb=int(read.number("ENV_QUOTA_MB", default.quota_mb)),
            min_free_mb=int(read.number("ENV_MIN_FREE_MB", default.min_free_mb)),
            max_age_s=read.number("ENV_MAX_AGE_S", default.max_age_s),
            builds=max(1, int(read.number("ENV_BUILDS", default.builds))),
            build_timeout_s=read.number("BUILD_TIMEOUT_S", default.build_timeout_s),
            memo_s=read.number("ENV_MEMO_S", default.memo_s),
            failure_s=read.number("ENV_FAILURE_S", default.failure_s),
            hold_s=read.number("ENV_HOLD_S", default.hold_s),
            heartbeat_s=read.number("ENV_HEARTBEAT_S", default.heartbeat_s),
            stale_s=read.number("ENV_STALE_S", default.stale_s),
            claim_stale_s=read.number("ENV_CLAIM_STALE_S", default.claim_stale_s),
            volume_key=key.encode() if key else None,
        )


@dataclass(frozen=True, slots=True)
class _Reader:
    environ: Mapping[str, str]

    def text(self, name: str) -> str:
        return self.environ.get(f"FLASHPOOL_{name}", "").strip()

    def path(self, name: str) -> Path | None:
        text = self.text(name)
        return Path(text).expanduser() if text else None

    def words(self, name: str) -> tuple[str, ...]:
        return tuple(self.text(name).split())

    def flag(self, name: str, *, default: bool) -> bool:
        text = self.text(name).lower()
        return text in _TRUE if text else default

    def number(self, name: str, default: float) -> float:
        text = self.text(name)
        if not text:
            return default
        try:
            number = float(text)
        except ValueError:
            raise ValueError(f"FLASHPOOL_{name} must be a number, not {text!r}") from None
        if not 0 <= number < float("inf"):
            raise ValueError(f"FLASHPOOL_{name} must not be negative or infinite: {text!r}")
        return number

    def mode(self, name: str) -> Mode:
        text = self.text(name).lower() or "auto"
        if text not in ("auto", "volume", "archive"):
            raise ValueError(f"FLASHPOOL_{name} must be auto, volume or archive, not {text!r}")
        return cast(Mode, text)
