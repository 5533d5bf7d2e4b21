"""Settings of the queue: the jobs that are taken, and what is reported of them."""

from __future__ import annotations

from dataclasses import dataclass

from . import parsers as kind
from .field import setting


@dataclass(frozen=True, kw_only=True)
class QueueSettings:
    """Of no effect where jobs come over HTTP."""

    __slots__ = ()

    qb_concurrency: int | None = setting(
        kind.optional(kind.integer(1, 4096)),
        "none",
        "Jobs taken from the queue at once; none: as many as there are slots.",
    )
    qb_progress: bool = setting(
        kind.BOOLEAN, "no", "Post build and start of a job as progress updates."
    )
    return_aggregate_stream: bool = setting(
        kind.BOOLEAN,
        "yes",
        "Answer jobs that streamed their items with all of them, too, unless the request says return_aggregate_stream.",
    )
    job_timeout_s: float | None = setting(
        kind.optional(kind.seconds()),
        "600",
        "Seconds the platform gives a job that names no executionTimeout; it is reported before.",
    )
    job_result_limit_mb: int = setting(
        kind.integer(1, 4096),
        "10",
        "Largest report of a job, millions of bytes; the platform takes 10 of a job of /run, 20 of /runsync.",
    )
    result_spill: bool = setting(
        kind.BOOLEAN,
        "no",
        "Write results that are too large for the platform to the volume, and answer where they are.",
    )
    spill_limit_mb: int = setting(
        kind.integer(1, 4096), "1024", "Largest encoded result that is written to the volume, MiB."
    )
    spill_keep_s: float = setting(
        kind.seconds(), "86400", "Seconds that results written to the volume are kept."
    )
    report_retry_s: float = setting(
        kind.seconds(zero=True),
        "3600",
        "Seconds for which a result that the platform does not take is offered again.",
    )
    state_dir: str | None = setting(
        kind.optional(kind.PATH),
        "none",
        "Directory of results that wait to be taken; none: on the volume, else FLASHPOOL_LOCAL_DIR.",
    )
    app_give_up_s: float = setting(
        kind.seconds(),
        "600",
        "Seconds without a deployed app, for a reason that may pass, after which the process exits with 1.",
    )
