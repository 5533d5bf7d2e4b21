"""The queue worker as its image starts it, and jobs for it."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from e2e.server import request, until

from support.cloud import JobRecord, Platform, Status, Worker

HANDLER: Final = [sys.executable, str(Path(__file__).parents[2] / "docker" / "handler.py")]
NOTHING: Final = "def f(x=None): return x"
#: Writes its pid, so that a test knows that it runs, and does not return.
STAYS: Final = """def f(path, seconds):
    import os, time
    with open(path + ".part", "w") as file:
        file.write(str(os.getpid()))
    os.rename(path + ".part", path)
    print("begun", flush=True)
    time.sleep(seconds)
    return "done" """
SLOTS: Final = "2"


@contextlib.contextmanager
def working(
    folder: Path, platform: Platform, *, flags: Sequence[str] = (), **variables: str
) -> Iterator[Worker]:
    """Start a worker and wait for its first poll; stop it at the end and wait for its exit."""
    worker = started(folder, platform, flags=flags, **variables)
    try:
        yield worker
    finally:
        if worker.running:
            assert worker.stop() == 0, worker.last_words()


def started(
    folder: Path, platform: Platform, *, flags: Sequence[str] = (), **variables: str
) -> Worker:
    ours = {
        "FLASHPOOL_SLOTS": SLOTS,
        "FLASHPOOL_GRACE_S": "0.3",
        "FLASHPOOL_DRAIN_S": "10",
        "FLASHPOOL_ADMIN_PORT": "0",
        "FLASHPOOL_STATE_DIR": str(folder / "state"),
        "FLASHPOOL_LOCAL_DIR": str(folder / "local"),
        **variables,
    }
    worker = platform.start_worker([*HANDLER, *flags], variables=ours)

    def polls() -> bool:
        assert worker.running, worker.last_words()
        takes = ("job-take", "job-take-batch")
        return any(platform.exchanges(verb, worker=worker.id) for verb in takes) or any(
            one.worker == worker.id for job in platform.jobs() for one in job.deliveries
        )

    # The stand-in records a poll when it answers the poll.
    until(polls, 100)
    return worker


def started_as(
    platform: Platform, folder: Path, same: dict[str, str], command: Sequence[str] = HANDLER
) -> Worker:
    """Start a worker that polls as another pod: wait for its log instead."""
    ours = {
        "FLASHPOOL_SLOTS": "2",
        "FLASHPOOL_ADMIN_PORT": "0",
        "FLASHPOOL_STATE_DIR": str(folder / "state"),
        **same,
    }
    worker = platform.start_worker(command, variables=ours)
    until(lambda: "Ready" in worker.output(), 60)
    return worker


def value(record: JobRecord) -> Any:
    """Return the result of a job with JSON arguments."""
    assert record.status is Status.COMPLETED, record.error
    assert record.done_count == 1
    assert record.output["success"] is True
    assert "error" not in record.output
    return record.output["json_result"]


def failure(record: JobRecord) -> str:
    """Check that a failed job was reported once and in full; return its `error_type`."""
    assert record.status is Status.FAILED, record.output
    assert record.done_count == 1
    assert record.error
    assert record.output["success"] is False
    assert "error" not in record.output
    error_type: str = record.output["error_type"]
    return error_type


def run(platform: Platform, code: str, *args: Any, **fields: Any) -> JobRecord:
    """Submit a job and wait until it has finished."""
    return platform.wait(platform.submit(request(code, *args, **fields)))
