"""Settings of environments: where they lie, how they are built, when they are deleted."""

from __future__ import annotations

from dataclasses import dataclass

from . import parsers as kind
from .field import setting


@dataclass(frozen=True, kw_only=True)
class EnvironmentSettings:
    """Passed on to the library that builds them, see `flashpool.envs`."""

    __slots__ = ()

    volume: str | None = setting(
        kind.optional(kind.PATH),
        "none",
        "Volume that keeps environments for all pods; none: /runpod-volume where it is mounted.",
    )
    local_dir: str | None = setting(
        kind.optional(kind.PATH),
        "none",
        "Directory on local disk for environments; none: the user's cache directory.",
    )
    env_mode: str = setting(
        kind.choice("auto", "volume", "archive"),
        "auto",
        "Environments in place on the volume, or as archives that are unpacked on local disk; auto: by its filesystem.",
    )
    env_quota_mb: int = setting(
        kind.integer(0, 1 << 30), "0", "MiB that environments may take; 0: no limit."
    )
    env_min_free_mb: int = setting(
        kind.integer(0, 1 << 30), "256", "MiB that are kept free where environments lie."
    )
    env_max_age_s: float = setting(
        kind.seconds(zero=True),
        "0",
        "Seconds without use after which an environment is deleted; 0: never for its age.",
    )
    env_memo_s: float = setting(
        kind.seconds(zero=True), "3600", "Seconds for which a request means the same versions."
    )
    env_failure_s: float = setting(
        kind.seconds(zero=True),
        "60",
        "Seconds for which a request that could not be built gets the same answer again.",
    )
    env_builds: int = setting(
        kind.integer(1, 256), "4", "Environments that are built at once; more wait in a queue."
    )
    env_hold_s: float = setting(
        kind.seconds(zero=True),
        "10",
        "Seconds for which an environment stays reserved after its last call, on all pods.",
    )
    env_heartbeat_s: float = setting(
        kind.seconds(), "2", "Seconds between two signs of life that this pod leaves on the volume."
    )
    env_stale_s: float = setting(
        kind.seconds(),
        "60",
        "Seconds without a sign of life after which a pod's reservations no longer count.",
    )
    env_claim_stale_s: float = setting(
        kind.seconds(),
        "15",
        "Seconds without a sign of life after which another pod takes over its build.",
    )
    env_references: tuple[str, ...] = setting(
        kind.some_of("url", "vcs", "local"),
        "url,vcs,local",
        "Kinds of direct references that requests may name.",
    )
    build_timeout_s: float = setting(
        kind.seconds(), "600", "Seconds that making an environment may take."
    )
    auto_build_tools: bool = setting(
        kind.BOOLEAN,
        "no",
        "Install build-essential when a package needs a compiler and there is none.",
    )
    compile_bytecode: bool = setting(
        kind.BOOLEAN, "yes", "Compile the modules of new environments ahead of calls."
    )
    python_downloads: bool = setting(
        kind.BOOLEAN, "no", "Download a Python that a request names and that is not installed."
    )
    uv: str | None = setting(kind.optional(kind.PATH), "none", "The uv program; none: our own.")
    index_url: str = setting(
        kind.WORD,
        "none",
        "Package index in place of PyPI; may hold a password, so it is not shown.",
        secret=True,
    )
    extra_index_urls: tuple[str, ...] = setting(
        kind.PATTERNS, "none", "Further package indexes; not shown either.", secret=True
    )
    find_links: tuple[str, ...] = setting(
        kind.PATTERNS, "none", "Directories or pages with further packages."
    )
    offline: bool = setting(kind.BOOLEAN, "no", "Use no network for environments.")
    volume_key: str = setting(
        kind.WORD,
        "none",
        "Key that signs environments on a shared volume; without it only damage is noticed.",
        secret=True,
    )
