"""Tests that need a real GPU: CUDA in forked workers, and memory that is freed."""

import concurrent.futures
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from e2e.server import Server, until

from .conftest import Serve

pytestmark = pytest.mark.timeout(300)

GIB = 1 << 30

SEES = """def sees():
    import os, torch
    x = torch.ones(1 << 20, device="cuda")
    return torch.cuda.device_count(), os.environ["CUDA_VISIBLE_DEVICES"], float(x.sum()), \\
        str(getattr(torch.cuda.get_device_properties(0), "uuid", ""))
"""
HOLDS = """def holds(path, size, seconds):
    import os, time, torch
    x = torch.ones(size, dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    with open(path + ".part", "w") as file:
        file.write(str(os.getpid()))
    os.rename(path + ".part", path)
    time.sleep(seconds)
    return torch.cuda.memory_allocated()
"""
TOO_MUCH = """def too_much():
    import torch
    keep = []
    while True:
        keep.append(torch.ones(1 << 32, dtype=torch.uint8, device="cuda"))
"""
MODEL = """class Model:
    def __init__(self, size):
        import os, torch
        self.weights = torch.ones(size, dtype=torch.uint8, device="cuda")
        self.pid = os.getpid()

    def where(self):
        return self.pid, self.weights.data_ptr(), int(self.weights[0])
"""


def result(answer: dict[str, Any]) -> Any:
    assert answer["success"], answer
    return answer["json_result"]


def device(server: Server, uuid: str) -> dict[str, Any]:
    (found,) = (one for one in server.stats()["gpus"]["devices"] if one["uuid"] == uuid)
    return dict(found)


def settled(server: Server, uuid: str) -> dict[str, Any]:
    until(lambda: device(server, uuid)["state"] == "free", 20)
    return device(server, uuid)


def test_a_call_sees_its_device_and_no_other(pod: Serve) -> None:
    with pod() as server:
        answer = server.execute(SEES)
        count, visible, total, uuid = result(answer)
        assert (count, total) == (1, 1 << 20)
        assert answer["receipt"]["gpus"] == [visible]
        assert not uuid or uuid in visible
        none = "def f():\n import torch\n return torch.cuda.is_available()"
        assert result(server.execute(none, gpus=0)) is False


def test_memory_is_freed_after_a_kill(pod: Serve, tmp_path: Path) -> None:
    mark = tmp_path / "held"
    with pod() as server, concurrent.futures.ThreadPoolExecutor(1) as threads:
        (gpu,) = server.execute(SEES)["receipt"]["gpus"]
        level = settled(server, gpu)["level_bytes"]
        call = threads.submit(server.execute, HOLDS, str(mark), 2 * GIB, 60.0)
        until(mark.exists, 60)
        os.kill(int(mark.read_text()), signal.SIGKILL)
        killed_at = time.monotonic()
        assert call.result()["error_type"] == "WorkerCrashed"
        back = settled(server, gpu)
        print(f"memory back {time.monotonic() - killed_at:.3f} s after SIGKILL")
        assert back["used_bytes"] <= level + (64 << 20)
        assert result(server.execute(SEES))[2] == 1 << 20


def test_cuda_works_in_a_fork_of_preloaded_torch(pod: Serve) -> None:
    with pod(FLASHPOOL_PRELOAD="torch") as server:
        answers = [server.execute(SEES) for _ in range(5)]
        assert {result(one)[2] for one in answers} == {float(1 << 20)}
        print("seconds of a call:", [one["receipt"]["seconds"]["total"] for one in answers])
        (zygote,) = (one for one in server.stats()["zygotes"] if one["state"] == "ready")
        assert zygote["start_method"] == "fork", zygote["reason"]


def test_two_calls_can_share_one_device(pod: Serve, tmp_path: Path) -> None:
    marks = [tmp_path / "one", tmp_path / "two"]
    with (
        pod(FLASHPOOL_CALLS_PER_GPU="2", CUDA_VISIBLE_DEVICES="0") as server,
        concurrent.futures.ThreadPoolExecutor(2) as threads,
    ):
        calls = [threads.submit(server.execute, HOLDS, str(m), GIB, 15.0) for m in marks]
        until(lambda: all(mark.exists() for mark in marks), 60)
        assert server.stats()["gpus"]["devices"][0]["calls"] == 2
        answers = [call.result() for call in calls]
        assert [result(one) for one in answers] == [GIB, GIB]
        assert len({one["receipt"]["gpus"][0] for one in answers}) == 1


def test_asking_for_more_memory_than_the_device_has_is_an_error(pod: Serve) -> None:
    with pod() as server:
        answer = server.execute(TOO_MUCH)
        assert answer["error_type"] == "OutOfMemoryError"
        (gpu,) = answer["receipt"]["gpus"]
        settled(server, gpu)
        assert result(server.execute(SEES))[0] == 1


def test_an_instance_keeps_its_weights_until_it_is_evicted(pod: Serve) -> None:
    def where(server: Server) -> dict[str, Any]:
        fields = {
            "execution_type": "class",
            "class_name": "Model",
            "class_code": MODEL,
            "constructor_args": [2 * GIB],
            "method_name": "where",
            "instance_id": "model-1",
            "create_new_instance": False,
            "serialization_format": "json",
        }
        return dict(server.http.post("/execute", json=fields).json())

    with pod(FLASHPOOL_INSTANCE_IDLE_S="3") as server:
        first, second = where(server), where(server)
        assert result(first) == result(second)
        (gpu,) = first["receipt"]["gpus"]
        held = device(server, gpu)
        assert held["calls"] == 1
        back = until(lambda: (one := device(server, gpu))["calls"] == 0 and one, 30)
        settled(server, gpu)
        assert back["used_bytes"] is not None
        assert result(where(server)) != result(first)


DRAWS = """def draws():
    import torch
    return torch.rand(1).item(), torch.rand(1, device="cuda").item()
"""


def test_each_call_draws_its_own_numbers_and_a_seed_repeats_them(pod: Serve) -> None:
    with pod() as server:
        cold = result(server.execute(DRAWS, seed=1))
        until(lambda: server.execute(DRAWS)["receipt"]["preloaded"], 120)
        answers = [result(server.execute(DRAWS)) for _ in range(10)]
        for column in zip(*answers, strict=True):
            assert len(set(column)) == len(column)
        warm = [server.execute(DRAWS, seed=1) for _ in range(3)]
        assert all(one["receipt"]["preloaded"] for one in warm)
        assert [result(one) for one in warm] == [cold] * 3
