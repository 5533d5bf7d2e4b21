"""Jobs of the queue on a machine whose GPUs are scripted."""

import time
from pathlib import Path
from typing import Any, Final

import pytest
from e2e.queue_jobs import value, working

from support.cloud import JobRecord, Platform
from support.nvml.scripted import ScriptedNvml

SEEN: Final = """def seen(seconds=0.0):
    import os, time
    begun = time.monotonic()
    time.sleep(seconds)
    return os.environ["CUDA_VISIBLE_DEVICES"], begun, time.monotonic()
"""
HOLDER: Final = """class Holder:
    def where(self):
        import os
        return os.environ["CUDA_VISIBLE_DEVICES"], os.getpid()
"""


def seen(platform: Platform, *args: Any) -> str:
    fields = {"function_name": "seen", "function_code": SEEN, "args": list(args)}
    return platform.submit({**fields, "serialization_format": "json"})


def holder(platform: Platform) -> JobRecord:
    fields = {
        "execution_type": "class",
        "class_name": "Holder",
        "class_code": HOLDER,
        "method_name": "where",
        "instance_id": "holder",
        "serialization_format": "json",
    }
    return platform.wait(platform.submit(fields))


@pytest.mark.slow
def test_as_many_jobs_as_gpus_run_at_once_whatever_the_slots(
    scripted: ScriptedNvml, tmp_path: Path
) -> None:
    uuids = scripted.gpus(4)
    with (
        Platform() as platform,
        working(tmp_path, platform, FLASHPOOL_SLOTS="1", **scripted.variables),
    ):
        jobs = [seen(platform, 2.0) for _ in range(4)]
        results = [value(platform.wait(job)) for job in jobs]
        assert sorted(one[0] for one in results) == sorted(uuids)
        assert max(one[1] for one in results) < min(one[2] for one in results), "at once"


@pytest.mark.timeout(90)
def test_a_job_is_taken_although_an_idle_instance_holds_the_gpu(
    scripted: ScriptedNvml, tmp_path: Path
) -> None:
    (uuid,) = scripted.gpus(1)
    with Platform() as platform, working(tmp_path, platform, **scripted.variables):
        assert value(holder(platform))[0] == uuid
        began = time.monotonic()
        assert value(platform.wait(seen(platform)))[0] == uuid
        assert time.monotonic() - began < 30
