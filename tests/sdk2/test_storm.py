"""Many calls of an SDK 2.0 module in one endpoint: good and bad ones have their own outcomes."""

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from sdk2.sdk_client import APPS

from support.client import sdk_python
from support.cloud import JobRecord, Platform, Status

pytestmark = [pytest.mark.shared_pool, pytest.mark.timeout(600), pytest.mark.slow]

WORKER: Final = [sys.executable, str(Path(__file__).parents[2] / "docker" / "handler.py")]
CALLS: Final = 300
#: The number of calls of each bad kind, spread over all calls.
BAD: Final = 5
#: The error message for each function and argument.
ENDS: Final = {
    ("leaves", "exit"): "SystemExit",
    ("leaves", "_exit"): "exit code 7",
    ("leaves", "segfault"): "SIGSEGV",
    ("leaves", "loop"): "its time limit of 1 s",
    ("unserialisable", "set"): "of type set",
    ("fails", "no such luck"): "ValueError: no such luck",
}


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    variables = {
        "FLASHPOOL_BASE_PYTHON": str(sdk_python()),
        "FLASHPOOL_LOCAL_DIR": str(tmp_path),
        "FLASHPOOL_ADMIN_PORT": "0",
        "FLASHPOOL_SLOTS": "8",
        "FLASHPOOL_GRACE_S": "0.3",
        "FLASHPOOL_PRELOAD": "runpod.apps",
        "RUNPOD_DEV_APP": "shop",
        "RUNPOD_DEV_RESOURCE": "scale",
    }
    with Platform() as platform:
        platform.start_worker(WORKER, variables=variables)
        yield platform


def test_good_and_bad_calls_each_get_their_own_outcome(platform: Platform) -> None:
    source = (APPS / "live_queue.py").read_text()
    bad = itertools.cycle(ENDS)
    every = CALLS // (BAD * len(ENDS))
    asked = [
        next(bad) if number % every == every - 1 else ("scale", [number]) for number in range(CALLS)
    ]
    jobs = [
        platform.submit(
            {
                "function_name": function,
                "function_code": source,
                "args": [argument],
                "serialization_format": "json",
                **({"timeout_s": 1} if argument == "loop" else {}),
            }
        )
        for function, argument in asked
    ]
    ended = platform.wait_all(jobs, 500)
    wrong = [
        (one, record.output, record.error)
        for one, record in zip(asked, ended, strict=True)
        if not _is_right(one, record)
    ]
    assert wrong == []
    assert sum(one in ENDS for one in asked if one[0] != "scale") == BAD * len(ENDS)


def _is_right(asked: tuple[str, object], record: JobRecord) -> bool:
    if record.done_count != 1:
        return False
    if asked[0] == "scale":
        (number,) = asked[1]  # type: ignore[misc]
        return record.status is Status.COMPLETED and record.output["json_result"] == [number * 10]
    return record.status is Status.FAILED and ENDS[asked] in (record.error or "")  # type: ignore[index]
