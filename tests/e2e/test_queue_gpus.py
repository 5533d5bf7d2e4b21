"""Jobs of the queue on a machine whose GPUs are scripted."""

from pathlib import Path
from typing import Final

import pytest
from e2e.queue_jobs import value, working

from support.cloud import JobRecord, Platform
from support.nvml.scripted import ScriptedNvml

#: Returns its device once this many jobs run at the same time.
MEET: Final = """def meet(folder, number):
    import os, time
    device, end = os.environ["CUDA_VISIBLE_DEVICES"], time.monotonic() + 40
    open(os.path.join(folder, device), "w").close()
    while len(os.listdir(folder)) < number:
        assert time.monotonic() < end, "the others did not come"
        time.sleep(0.01)
    return device
"""
HOLDER: Final = """class Holder:
    def where(self):
        import os
        return os.environ["CUDA_VISIBLE_DEVICES"], os.getpid()
"""


def meet(platform: Platform, folder: Path, number: int) -> str:
    folder.mkdir(exist_ok=True)
    args = [str(folder), number]
    fields = {"function_name": "meet", "function_code": MEET, "args": args}
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
        jobs = [meet(platform, tmp_path / "met", 4) for _ in range(4)]
        results = [value(platform.wait(job)) for job in jobs]
        assert sorted(results) == sorted(uuids)


@pytest.mark.timeout(90)
def test_a_job_is_taken_although_an_idle_instance_holds_the_gpu(
    scripted: ScriptedNvml, tmp_path: Path
) -> None:
    (uuid,) = scripted.gpus(1)
    with Platform() as platform, working(tmp_path, platform, **scripted.variables):
        assert value(holder(platform))[0] == uuid
        assert value(platform.wait(meet(platform, tmp_path / "met", 1))) == uuid
