"""Settings of the queue: taking jobs, and reporting them."""

from __future__ import annotations

from dataclasses import dataclass

from . import parsers as kind
from .field import setting


@dataclass(frozen=True, kw_only=True)
class QueueSettings:
    """Settings that have no effect if calls come over HTTP."""

    __slots__ = ()

    qb_concurrency: int | None = setting(
        kind.optional(kind.integer(1, 4096)),
        "none",
        "Jobs taken from the queue at once; none: as many as there are slots.",
    )
    qb_progress: bool = setting(
        kind.BOOLEAN, "no", "Post the build and the start of a job as progress updates."
    )
    return_aggregate_stream: bool = setting(
        kind.BOOLEAN,
        "yes",
        "Include all streamed items in the final answer of a job, unless its request sets "
        "return_aggregate_stream.",
    )
    job_timeout_s: float | None = setting(
        kind.optional(kind.seconds()),
        "600",
        "Seconds the platform gives a job that has no executionTimeout; the job is reported "
        "before they end.",
    )
    job_result_limit_mb: int = setting(
        kind.integer(1, 4096),
        "10",
        "Largest report of a job, in millions of bytes; the platform accepts 10 for a job of "
        "/run, 20 for one of /runsync.",
    )
    result_spill: bool = setting(
        kind.BOOLEAN,
        "no",
        "Write results that are too large for the platform to the volume, and answer with "
        "their location.",
    )
    spill_limit_mb: int = setting(
        kind.integer(1, 4096),
        "1024",
        "Largest encoded result that is written to the volume, in MiB.",
    )
    spill_keep_s: float = setting(
        kind.seconds(), "86400", "Seconds for which results on the volume are kept."
    )
    report_retry_s: float = setting(
        kind.seconds(zero=True),
        "3600",
        "Seconds for which a result that the platform did not accept is posted again.",
    )
    state_dir: str | None = setting(
        kind.optional(kind.PATH),
        "none",
        "Directory for results that the platform has not accepted yet; none: on the volume, "
        "else FLASHPOOL_LOCAL_DIR.",
    )
    app_give_up_s: float = setting(
        kind.seconds(),
        "600",
        "Seconds for which loading a deployed app may keep failing for temporary reasons "
        "before the process exits with 1.",
    )
