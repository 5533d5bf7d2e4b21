"""Settings of environments: where they are, how they are built, when they are deleted."""

from __future__ import annotations

from dataclasses import dataclass

from . import parsers as kind
from .field import setting


@dataclass(frozen=True, kw_only=True)
class EnvironmentSettings:
    """Settings that are passed to the library that builds environments, `flashpool.envs`."""

    __slots__ = ()

    volume: str | None = setting(
        kind.optional(kind.PATH),
        "none",
        "Volume on which all pods share environments; none: /runpod-volume if it is mounted.",
    )
    local_dir: str | None = setting(
        kind.optional(kind.PATH),
        "none",
        "Directory on local disk for environments; none: the user's cache directory.",
    )
    env_mode: str = setting(
        kind.choice("auto", "volume", "archive"),
        "auto",
        "Where environments are stored: in place on the volume, or there as archives that "
        "are unpacked on local disk; auto: by the volume's filesystem.",
    )
    env_quota_mb: int = setting(
        kind.integer(0, 1 << 30), "0", "MiB of disk space that environments may use; 0: no limit."
    )
    env_min_free_mb: int = setting(
        kind.integer(0, 1 << 30),
        "256",
        "MiB of disk space kept free where environments are stored.",
    )
    env_max_age_s: float = setting(
        kind.seconds(zero=True),
        "0",
        "Seconds without use after which an environment is deleted; 0: age deletes none.",
    )
    env_memo_s: float = setting(
        kind.seconds(zero=True),
        "3600",
        "Seconds for which resolved versions are reused before the index is asked again.",
    )
    env_failure_s: float = setting(
        kind.seconds(zero=True),
        "60",
        "Seconds for which a failed build is remembered: the same request fails at once with "
        "the same error.",
    )
    env_builds: int = setting(
        kind.integer(1, 256), "4", "Environments built at once; further builds wait."
    )
    env_hold_s: float = setting(
        kind.seconds(zero=True),
        "10",
        "Seconds for which an environment stays leased after its last call, on all pods.",
    )
    env_heartbeat_s: float = setting(
        kind.seconds(), "2", "Seconds between two heartbeats of this pod on the volume."
    )
    env_stale_s: float = setting(
        kind.seconds(),
        "60",
        "Seconds without a heartbeat after which a pod's leases expire.",
    )
    env_claim_stale_s: float = setting(
        kind.seconds(),
        "15",
        "Seconds without a heartbeat after which another pod takes over a build.",
    )
    env_references: tuple[str, ...] = setting(
        kind.some_of("url", "vcs", "local"),
        "url,vcs,local",
        "Kinds of direct references that requests may use.",
    )
    build_timeout_s: float = setting(
        kind.seconds(), "600", "Seconds that building an environment may take."
    )
    auto_build_tools: bool = setting(
        kind.BOOLEAN,
        "no",
        "Install build-essential when a package needs a compiler and none is installed.",
    )
    compile_bytecode: bool = setting(
        kind.BOOLEAN, "yes", "Compile the modules of new environments ahead of calls."
    )
    python_downloads: bool = setting(
        kind.BOOLEAN, "no", "Download a requested version of Python that is not installed."
    )
    uv: str | None = setting(
        kind.optional(kind.PATH),
        "none",
        "Path of the uv program; none: the one that is installed with flashpool.",
    )
    index_url: str = setting(
        kind.WORD,
        "none",
        "Package index in place of PyPI; never shown, because it may hold a password.",
        secret=True,
    )
    extra_index_urls: tuple[str, ...] = setting(
        kind.PATTERNS,
        "none",
        "Further package indexes; never shown, because they may hold passwords.",
        secret=True,
    )
    find_links: tuple[str, ...] = setting(
        kind.PATTERNS, "none", "Directories or pages with further packages."
    )
    offline: bool = setting(kind.BOOLEAN, "no", "Build environments without network access.")
    volume_key: str = setting(
        kind.WORD,
        "none",
        "Key that signs environments on a shared volume; without it only accidental damage "
        "is detected.",
        secret=True,
    )
