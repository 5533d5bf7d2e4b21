"""Work that a job leaves to its process's exit: the job is reported after the exit."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e.queue_jobs import value, working
from e2e.server import request, until

from support.cloud import Platform


@pytest.fixture
def platform() -> Iterator[Platform]:
    with Platform() as platform:
        yield platform


#: The function returns at once, and its process stays until the first file exists.
LEAVES_A_THREAD = """
def f(begun, go, done):
    import os, threading, time
    def stay():
        open(begun, "w").close()
        while not os.path.exists(go):
            time.sleep(0.01)
        open(done, "w").close()
    threading.Thread(target=stay).start()
    return "returned"
"""


@pytest.mark.parametrize("stopped", [False, True], ids=["running", "draining"])
def test_a_report_waits_until_the_process_has_exited(
    platform: Platform, tmp_path: Path, stopped: bool
) -> None:
    """For the platform may stop the pod once it has it."""
    begun, go, done = (tmp_path / name for name in ("begun", "go", "done"))
    with working(
        tmp_path, platform, FLASHPOOL_EXIT_S="40", FLASHPOOL_EXIT_ANSWER_S="0.05"
    ) as worker:
        job = platform.submit(request(LEAVES_A_THREAD, str(begun), str(go), str(done)))
        until(begun.exists)
        if stopped:
            worker.process.send_signal(signal.SIGTERM)
            until(lambda: "jobs to finish: 1" in worker.output())
        time.sleep(0.5)  # more than FLASHPOOL_EXIT_ANSWER_S
        assert not platform.job(job).final
        go.touch()
        assert value(platform.wait(job)) == "returned"
        assert done.exists()
        assert "warnings" not in platform.job(job).output


def test_a_report_waits_for_the_whole_exit_bound_and_no_longer(
    platform: Platform, tmp_path: Path
) -> None:
    begun, go, done = (tmp_path / name for name in ("begun", "go", "done"))
    with working(
        tmp_path, platform, FLASHPOOL_EXIT_S="1.5", FLASHPOOL_EXIT_ANSWER_S="0.05"
    ) as worker:
        record = platform.wait(
            platform.submit(request(LEAVES_A_THREAD, str(begun), str(go), str(done)))
        )
        assert value(record) == "returned"
        # The worker's time began a moment before the test's.
        assert record.output["receipt"]["seconds"]["exit"] > 1
        (warning,) = record.output["warnings"]
        assert "ended after 1.5 s" in warning
        until(lambda: "FLASHPOOL_EXIT_S" in worker.output())
