"""Settings of the server: its addresses, limits of its clients, and its log."""

from __future__ import annotations

from dataclasses import dataclass

from . import parsers as kind
from .field import setting


@dataclass(frozen=True, kw_only=True)
class Listening:
    """Addresses, ports and tokens."""

    __slots__ = ()

    host: str = setting(
        kind.TEXT,
        "127.0.0.1",
        "Address on which /execute is served.",
        pod="0.0.0.0",  # noqa: S104 - the platform connects from outside
    )
    port: int = setting(
        kind.PORT,
        "8000",
        "Port on which /execute is served; 0: any free port.",
        pod=lambda environ: environ.get("PORT"),
    )
    token: str = setting(
        kind.TOKEN, "none", "Bearer token that every request to /execute must carry.", secret=True
    )
    allow_open: bool = setting(
        kind.BOOLEAN,
        "no",
        "Serve on a non-loopback address without a token: every client that reaches the address can run code here.",
    )
    admin_host: str = setting(
        kind.TEXT,
        "127.0.0.1",
        "Address of the admin listener (statistics, probes, a page). An address that other "
        "machines reach needs FLASHPOOL_ADMIN_TOKEN.",
    )
    admin_port: int | None = setting(
        kind.optional(kind.PORT),
        "8001",
        "Port of the admin listener; 0: any free port; none: no admin listener.",
    )
    admin_token: str = setting(
        kind.TOKEN,
        "none",
        "Bearer token of the admin listener, for every request that changes something or "
        "shows output of calls, and for statistics on an address that other machines reach. "
        "none: the server generates a token at its start and keeps it in the state directory.",
        secret=True,
    )
    admin_url: str | None = setting(
        kind.optional(kind.URL),
        "none",
        "Admin listener that commands query, such as http://10.0.0.7:8001; none: that of the "
        "server on this machine.",
    )


@dataclass(frozen=True, kw_only=True)
class Intake:
    """Limits of requests and connections."""

    __slots__ = ()

    max_body_mb: int = setting(
        kind.integer(1, 4096),
        "32",
        "Largest request body, in MiB; a larger one is refused with 413.",
    )
    result_limit_mb: int = setting(
        kind.integer(1, 4096),
        "10",
        "Largest encoded result over /execute, in MiB; the flash client accepts at most 10.",
    )
    receive_timeout_s: float = setting(
        kind.seconds(), "60", "Seconds in which a client must send a whole request."
    )
    header_timeout_s: float = setting(
        kind.seconds(), "10", "Seconds in which a client must send the headers of a request."
    )
    send_timeout_s: float = setting(
        kind.seconds(), "60", "Seconds a client may take to read the next byte of its response."
    )
    keepalive_s: int = setting(
        kind.integer(1, 86400), "600", "Seconds an idle connection is kept open."
    )


@dataclass(frozen=True, kw_only=True)
class Log:
    """The log."""

    __slots__ = ()

    log_level: str = setting(
        kind.choice("DEBUG", "INFO", "WARNING", "ERROR"),
        "INFO",
        "Level of the server's log, and of the root logger in calls.",
    )
    log_format: str = setting(
        kind.choice("auto", "text", "json", "runpod"),
        "auto",
        "Format of the server's log: text for people, json for machines, runpod as the "
        "platform's SDK writes it; auto: runpod for jobs of the platform's queue, else text.",
    )
    log_output_kb_s: int = setting(
        kind.integer(0, 1_000_000),
        "0",
        "KiB per second of each call's output that the log of serve lb repeats, tagged with "
        "the call; 0: none.",
    )
    keep_failed_mb: int = setting(
        kind.integer(0, 1_000_000),
        "0",
        "MiB of requests of failed calls that are kept for flashpool replay, on the volume "
        "or in the state directory; the oldest are deleted first. 0: none, because arguments "
        "may hold secrets.",
    )
    keep_failed_s: float = setting(
        kind.seconds(), "604800", "Seconds for which the request of a failed call is kept."
    )
    telemetry: bool = setting(
        kind.TELEMETRY,
        "no",
        "Trace calls with OpenTelemetry, which the extra flashpool[telemetry] installs. "
        "OpenTelemetry's own variables, OTEL_*, say where traces go and which calls are traced.",
    )
    access_log: bool = setting(
        kind.BOOLEAN, "no", "Log every HTTP request: method, path, status, bytes, seconds."
    )
