"""Settings of deployed apps: artifact, further packages, limits of routes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from . import parsers as kind
from .field import setting
from .route_patterns import RouteRules, parse_rules

#: Values that `FLASHPOOL_ROUTE_ISOLATION` may give a route.
ISOLATIONS: Final = ("call", "shared")
_SECONDS: Final = kind.seconds()


def _limit(text: str) -> float | None:
    if text.lower() == "none":
        return None
    try:
        return float(_SECONDS.parse(text))
    except ValueError:
        raise ValueError(f"{text!r} is not {_SECONDS.accepts}, or none") from None


def _isolation(text: str) -> str:
    if text.lower() not in ISOLATIONS:
        raise ValueError(f"{text!r} is not {' or '.join(ISOLATIONS)}")
    return text.lower()


def _timeouts(text: str) -> RouteRules[float | None]:
    return parse_rules(text, _limit)


def _isolations(text: str) -> RouteRules[str]:
    return parse_rules(text, _isolation)


_ROUTES: Final = "[METHOD] /path or *"
ROUTE_TIMEOUTS: Final = kind.Kind(
    parse=_timeouts, accepts=f"{_ROUTES} = seconds or none, separated by commas, or none"
)
ROUTE_ISOLATION: Final = kind.Kind(
    parse=_isolations, accepts=f"{_ROUTES} = call or shared, separated by commas, or none"
)


@dataclass(frozen=True, kw_only=True)
class AppSettings:
    """Settings that have an effect only if a resource is named."""

    __slots__ = ()

    artifact: str = setting(
        kind.PATH,
        "/root/.runpod/artifact.tar.gz",
        "Archive of a deployed app, as built by flash build.",
        also="FLASH_BUILD_ARTIFACT_PATH",
    )
    artifact_wait_s: float = setting(
        kind.seconds(zero=True),
        "90",
        "Seconds to wait for an archive that is missing or incomplete.",
        also="RUNPOD_ARTIFACT_WAIT",
    )
    artifact_max_mb: int = setting(
        kind.integer(1, 1 << 30), "10240", "Largest unpacked size of an archive, in MiB."
    )
    artifact_max_files: int = setting(
        kind.integer(1, 10_000_000),
        "500000",
        "Largest number of files and directories in an archive.",
    )
    artifact_max_ratio: int = setting(
        kind.integer(2, 100_000),
        "100",
        "Largest ratio of unpacked to packed size of an archive, beyond the first 64 MiB.",
    )
    app_dir: str = setting(
        kind.PATH,
        "/app",
        "Link to the unpacked app; an existing directory with files is left alone.",
        also="RUNPOD_APP_DIR",
    )
    disable_unpack: bool = setting(
        kind.BOOLEAN,
        "no",
        "Serve the contents of FLASHPOOL_APP_DIR, and unpack nothing.",
        also="FLASH_DISABLE_UNPACK",
    )
    health_port: int | None = setting(
        kind.automatic(kind.PORT),
        "auto",
        "Additional port that answers, for platforms that probe another one; auto: "
        "FLASHPOOL_PORT alone.",
        pod=lambda environ: environ.get("PORT_HEALTH"),
    )
    app_dependencies: tuple[str, ...] = setting(
        kind.REQUIREMENTS,
        "none",
        "Packages that an app needs and its artifact lacks, such as torch.",
    )
    route_timeouts: RouteRules[float | None] = setting(  # noqa: RUF009 - a field
        ROUTE_TIMEOUTS,
        "none",
        "Time limits of routes, in seconds; routes without an entry have FLASHPOOL_CALL_TIMEOUT_S.",
    )
    route_isolation: RouteRules[str] = setting(  # noqa: RUF009 - a field
        ROUTE_ISOLATION,
        "none",
        "Routes whose requests each run in a process of their own (call); other routes share "
        "one (shared).",
    )
