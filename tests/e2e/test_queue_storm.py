"""A platform with all kinds of faults for a while, in random order."""

import random
from pathlib import Path
from typing import Final

import psutil
import pytest
from e2e.queue_jobs import NOTHING, value, working
from e2e.server import request

from support.cloud import Fault, Platform, Status

VERBS: Final = ("job-take", "job-done", "job-stop", "job-stream", "ping")
ITEMS: Final = "def f():\n    for n in range(5): yield n"
DIES: Final = "def f():\n    import os\n    os._exit(1)"


def fault(dice: random.Random) -> Fault:
    verb = dice.choice(VERBS)
    statuses = [400, 401, 500, 503] if verb == "job-take" else [302, 400, 401, 429, 500, 503]
    ways = [
        Fault.answers(verb, dice.choice(statuses), times=dice.randint(1, 4)),
        Fault.cuts(verb, times=2),
        Fault.slow(verb, 0.3, times=3),
    ]
    if verb in ("job-take", "job-stop", "ping"):
        body = dice.choice([b"", b"{", b"<html>", b"[]", b"null", b"5"])
        ways.append(Fault.bad_json(verb, body=body))
    return dice.choice(ways)


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("seed", range(3))
def test_every_job_is_reported_once_despite_the_faults(seed: int, tmp_path: Path) -> None:
    dice = random.Random(seed)
    expected: dict[str, object] = {}
    with (
        Platform(poll_s=0.5) as platform,
        working(tmp_path, platform, FLASHPOOL_SLOTS="4", FLASHPOOL_QB_PROGRESS="yes") as worker,
    ):
        for round_ in range(40):
            platform.script(fault(dice))
            batch = {
                platform.submit(request(NOTHING, round_)): round_,
                platform.submit(request(ITEMS)): [0, 1, 2, 3, 4],
                platform.submit(request(DIES)): None,
                platform.submit(None): None,
            }
            expected |= batch
            # Faults should occur during work, not while a queue grows.
            platform.wait_all(list(batch), 60)
        platform.clear_faults()
        for record in platform.wait_all(list(expected), 60):
            assert record.done_count == 1, record
            if (result := expected[record.id]) is None:
                assert record.status is Status.FAILED
                continue
            assert value(record) == result
            assert not isinstance(result, list) or record.items == result
        assert "Traceback" not in worker.output()
        assert "never retrieved" not in worker.output()
        assert psutil.Process(worker.process.pid).memory_info().rss < 150 * 1024 * 1024
