"""A server with scripted GPUs: assignment to calls, and devices whose memory is not freed."""

import concurrent.futures
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
from e2e.server import Server, serving, until

from support.hanging_file import HangingFile
from support.nvml.scripted import GIB, ScriptedNvml

Serve = Callable[..., AbstractContextManager[Server]]

#: Returns its devices once this many calls run at the same time.
MEET = """def meet(folder, name, number):
    import os, time
    open(os.path.join(folder, name), "w").close()
    end = time.monotonic() + 40
    while len(os.listdir(folder)) < number:
        assert time.monotonic() < end, "the others did not come"
        time.sleep(0.002)
    return os.environ["CUDA_VISIBLE_DEVICES"], os.environ["CUDA_DEVICE_ORDER"]
"""
SEEN = """def seen():
    import os
    return os.environ.get("CUDA_VISIBLE_DEVICES")
"""
HOLD = """def hold(seconds):
    import os, time
    begun = time.monotonic()
    time.sleep(seconds)
    return os.environ["CUDA_VISIBLE_DEVICES"], begun
"""
TOUCH = "def touch(path):\n    import os\n    os.path.exists(path)"
#: "Allocates" memory on its device that is freed when its process exits, or never.
ALLOCATE = """def allocate(folder, size, stuck=False):
    import os
    path = os.path.join(folder, "processes", os.environ["CUDA_VISIBLE_DEVICES"])
    with open(path, "a") as file:
        file.write(f"{'stuck' if stuck else os.getpid()} {size}\\n")
    return os.getpid()
"""


@pytest.fixture
def pod(tmp_path: Path, scripted: ScriptedNvml) -> Serve:
    def serve(**variables: str) -> AbstractContextManager[Server]:
        quick = {"FLASHPOOL_GPU_SETTLE_S": "0.3", "FLASHPOOL_GRACE_S": "0.3"}
        return serving(tmp_path, **{**scripted.variables, **quick, **variables})

    return serve


def result(answer: dict[str, Any]) -> Any:
    assert answer["success"], answer
    return answer["json_result"]


def together(server: Server, number: int, *args: Any, **fields: Any) -> list[dict[str, Any]]:
    with concurrent.futures.ThreadPoolExecutor(number) as threads:
        calls = [
            threads.submit(server.execute, MEET, args[0], str(index), number, **fields)
            for index in range(number)
        ]
        return [call.result() for call in calls]


def test_eight_calls_at_once_have_eight_different_devices(
    pod: Serve,
    scripted: ScriptedNvml,
    tmp_path: Path,
) -> None:
    uuids = scripted.gpus(8)
    (tmp_path / "met").mkdir()
    with pod(FLASHPOOL_SLOTS="1") as server:
        answers = together(server, 8, str(tmp_path / "met"))
        assert sorted(result(answer)[0] for answer in answers) == sorted(uuids)
        assert {result(answer)[1] for answer in answers} == {"PCI_BUS_ID"}
        for answer in answers:
            assert answer["receipt"]["gpus"] == [result(answer)[0]]
        # Calls for GPUs hold no CPU slot, and a call without GPUs sees no device.
        assert result(server.execute(SEEN, gpus=0)) == ""
        four = server.execute(SEEN, gpus=4)
        assert result(four).split(",") == four["receipt"]["gpus"]
        assert len(set(four["receipt"]["gpus"])) == 4
        stats = server.stats()["gpus"]
        assert (stats["total"], stats["usable"], stats["driver"]) == (8, 8, "580.95.05")
        assert [one["uuid"] for one in stats["devices"]] == uuids


@pytest.mark.slow
def test_operators_see_the_health_of_each_device(pod: Serve, scripted: ScriptedNvml) -> None:
    uuid, other = scripted.gpus(2)
    scripted.gpu(0, health="utilization 93, temperature 71, ecc.0 6, ecc.1 1")

    def device(server: Server, index: int = 0) -> dict[str, Any]:
        found: dict[str, Any] = server.stats()["gpus"]["devices"][index]
        return found

    with pod() as server, concurrent.futures.ThreadPoolExecutor(1) as threads:
        seen = until(lambda: (one := device(server))["temperature_c"] and one)
        assert (seen["utilization_percent"], seen["temperature_c"]) == (93, 71)
        assert (seen["ecc_corrected"], seen["ecc_uncorrected"]) == (6, 1)
        assert (seen["xid_errors"], seen["last_xid"]) == (0, None)
        assert device(server, 1)["temperature_c"] is None
        scripted.xid(0, 31)
        until(lambda: device(server)["xid_errors"], 60)
        assert (device(server)["last_xid"], device(server)["state"]) == (31, "free")
        assert f"GPU {uuid} reports Xid error 31" in server.log()
        metrics = server.http.get(f"{server.admin}/metrics").text
        assert f'flashpool_gpu_xid_errors_total{{gpu="{uuid}"}} 1.0' in metrics
        assert f'flashpool_gpu_temperature_celsius{{gpu="{uuid}"}} 71.0' in metrics
        assert f'flashpool_gpu_temperature_celsius{{gpu="{other}"}}' not in metrics
        # A call's memory use is shown if the call has the whole device.
        meanwhile = ALLOCATE.replace("return", "__import__('time').sleep(600); return")
        call = threads.submit(server.execute, meanwhile, str(scripted.folder), GIB, timeout_s=900)
        busy = until(lambda: [one for one in server.stats()["gpus"]["devices"] if one["calls"]])
        index = busy[0]["index"]
        until(lambda: device(server, index)["used_bytes"] > GIB, 60)
        (running,) = server.stats()["running"]
        os.kill(running["pid"], 9)
        assert call.result()["error_type"] == "WorkerCrashed"


@pytest.mark.slow
def test_the_gpu_of_a_call_that_cannot_be_killed_stays_taken(
    pod: Serve,
    scripted: ScriptedNvml,
    tmp_path: Path,
) -> None:
    uuids = set(scripted.gpus(2))
    volume = HangingFile(tmp_path / "volume")
    try:
        with pod() as server:
            hung = server.execute(TOUCH, volume.file, timeout_s=0.5)
            assert hung["error_type"] == "Timeout", hung
            (shown,) = server.stats()["stuck"]
            assert shown["state"] == "D"
            (other,) = uuids - set(hung["receipt"]["gpus"])
            assert {result(server.execute(SEEN)) for _ in range(4)} == {other}
            volume.release()
            until(lambda: not server.stats()["stuck"])
            (tmp_path / "met").mkdir()
            met = together(server, 2, str(tmp_path / "met"))
            assert {result(answer)[0] for answer in met} == uuids
    finally:
        volume.close()


def test_a_call_cannot_choose_its_device_by_its_environment(
    pod: Serve,
    scripted: ScriptedNvml,
) -> None:
    (uuid,) = scripted.gpus(1)
    with pod() as server:
        assert result(server.execute(SEEN, env={"CUDA_VISIBLE_DEVICES": "7"})) == uuid
        assert result(server.execute(SEEN, env={"CUDA_VISIBLE_DEVICES": "0"}, gpus=0)) == ""


def test_inherited_visible_devices_are_honoured(pod: Serve, scripted: ScriptedNvml) -> None:
    uuids = scripted.gpus(4)
    with pod(CUDA_VISIBLE_DEVICES="2,3") as server:
        assert result(server.execute(SEEN)) in uuids[2:]
        refused = server.http.post("/execute", json={**_seen(), "gpus": 3})
        assert refused.status_code == 422
        assert "asks for 3 GPUs, but this machine has 2" in refused.text


def _seen() -> dict[str, Any]:
    return {"function_name": "seen", "function_code": SEEN, "serialization_format": "json"}


def test_a_large_call_runs_amid_a_stream_of_small_ones(
    pod: Serve,
    scripted: ScriptedNvml,
) -> None:
    scripted.gpus(8)
    over = threading.Event()
    begun: list[float] = []

    def stream(server: Server) -> None:
        while not over.is_set():
            begun.append(result(server.execute(HOLD, 0.03))[1])

    with pod() as server, concurrent.futures.ThreadPoolExecutor(16) as threads:
        callers = [threads.submit(stream, server) for _ in range(16)]
        try:
            until(lambda: len(begun) > 32)
            for _ in range(3):
                sent = time.monotonic()
                answer = server.execute(HOLD, 0.03, gpus=4)
                devices, large = result(answer)
                assert len(devices.split(",")) == 4
                # Calls that were queued before the large one, and calls just being sent.
                between = [at for at in begun if sent < at < large]
                assert len(between) <= 64, (sent, large, sorted(between))
        finally:
            over.set()
        for caller in callers:
            caller.result()


def test_memory_freed_with_its_process_causes_no_wait(
    pod: Serve,
    scripted: ScriptedNvml,
) -> None:
    scripted.gpus(1)
    with pod() as server:
        for _ in range(5):
            result(server.execute(ALLOCATE, str(scripted.folder), 30 * GIB))
        (device,) = server.stats()["gpus"]["devices"]
        assert device["state"] in ("free", "settling")


def test_a_device_whose_memory_is_not_freed_is_quarantined_and_not_ready(
    pod: Serve,
    scripted: ScriptedNvml,
) -> None:
    first, second = scripted.gpus(2)
    with pod() as server:
        dirty = _leave_memory(server, scripted)
        other = second if dirty == first else first
        assert server.http.get("/ping").status_code == 200, "one is left"
        assert [result(server.execute(SEEN)) for _ in range(3)] == [other] * 3
        assert _leave_memory(server, scripted) == other
        until(lambda: server.http.get("/ping").status_code == 503)
        answer = server.http.get("/health")
        assert answer.status_code == 503
        assert "every GPU is quarantined" in answer.json()["reason"]
        assert server.stats()["ready"] is False
        # A call waits until a device recovers.
        waiting = threading.Thread(target=server.execute, args=(SEEN,))
        waiting.start()
        scripted.free_stuck(dirty)
        until(lambda: server.http.get("/ping").status_code == 200)
        waiting.join(30)
        assert not waiting.is_alive()
        assert result(server.execute(SEEN)) == dirty


def _leave_memory(server: Server, machine: ScriptedNvml) -> str:
    answer = server.execute(ALLOCATE, str(machine.folder), GIB, True)
    (uuid,) = answer["receipt"]["gpus"]

    def quarantined() -> bool:
        (one,) = (d for d in server.stats()["gpus"]["devices"] if d["uuid"] == uuid)
        return one["state"] == "quarantined" and "1024 MiB more" in one["evidence"]

    until(quarantined)
    return str(uuid)


def test_a_driver_that_hangs_does_not_block_probes(pod: Serve, scripted: ScriptedNvml) -> None:
    scripted.gpus(2)
    with pod() as server:
        scripted.driver(hang="nvmlDeviceGetMemoryInfo")
        result(server.execute(SEEN))
        before = time.monotonic()
        assert server.stats()["gpus"]["total"] == 2
        assert result(server.execute(SEEN, gpus=0)) == ""
        assert time.monotonic() - before < 5
        scripted.driver()
        result(server.execute(SEEN, gpus=2))


@pytest.mark.slow
def test_gpus_that_cannot_be_listed_are_reported_and_found_later(
    scripted: ScriptedNvml,
    tmp_path: Path,
) -> None:
    (uuid,) = scripted.gpus(1)
    scripted.driver(nvmlInit=999)
    server = Server(tmp_path / "server.log", scripted.variables)
    try:
        listens = until(server._listening, 30)
        server.url, server.admin_url = (text.decode() for text in listens.groups())
        server.http.base_url = server.url
        until(lambda: server.http.get("/ping").status_code == 503, 30)
        assert "nvmlInit: Unknown Error" in server.http.get("/health").json()["reason"]
        refused = server.http.post("/execute", json=_seen())
        assert refused.status_code == 503
        assert "no GPU is usable at the moment" in refused.text
        scripted.driver()
        until(lambda: server.http.get("/ping").status_code == 200)
        assert result(server.execute(SEEN)) == uuid
    finally:
        server.close()


@pytest.mark.slow
def test_a_withdrawn_call_frees_its_place_for_others(
    pod: Serve,
    scripted: ScriptedNvml,
) -> None:
    scripted.gpus(2)
    with pod() as server, concurrent.futures.ThreadPoolExecutor(3) as threads:
        long = threads.submit(server.execute, HOLD, 12.0)
        until(lambda: server.stats()["gpus"]["devices"][0]["calls"] == 1)
        large = httpx.Client(timeout=0.5, trust_env=False)
        with large, pytest.raises(httpx.ReadTimeout):
            large.post(f"{server.url}/execute", json={**_seen(), "gpus": 2})
        # The second device was reserved for the call whose client disconnected.
        small = server.execute(HOLD, 0.0)
        assert not long.done()
        result(small)


def test_a_call_for_gpus_fails_on_a_machine_without_gpus(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        answer = server.http.post("/execute", json={**_seen(), "gpus": 1})
        assert answer.status_code == 422
        assert "asks for 1 GPU, but this machine has 0" in answer.text
        assert result(server.execute(SEEN)) is None
        assert server.stats()["gpus"]["total"] == 0
        assert result(server.execute(SEEN, gpus=0)) is None


@pytest.mark.slow
def test_a_call_that_waits_too_long_is_told_the_reason(pod: Serve, scripted: ScriptedNvml) -> None:
    scripted.gpus(2)
    with (
        pod(FLASHPOOL_QUEUE_TIMEOUT_S="1.5") as server,
        concurrent.futures.ThreadPoolExecutor(1) as threads,
    ):
        held = threads.submit(server.execute, HOLD, 6.0)
        until(lambda: server.stats()["gpus"]["devices"][0]["calls"] == 1)
        late = server.execute(SEEN, gpus=2)
        assert late["error_type"] == "Timeout"
        assert "s for 2 free GPUs, longer than its limit of 1.5 s" in late["error"]
        result(held.result())


PROGRAM = """
import os
from flashpool.pool import Pool
from flashpool.pool.errors import InvalidRequest

def seen():
    return os.environ.get("CUDA_VISIBLE_DEVICES")

with Pool() as pool:
    assert pool.submit(seen).result() == "", "it did not ask for any"
    with_one = pool.options(gpus=1)
    future = with_one.submit(seen)
    print(future.result())
    assert future.receipt.gpus == (future.result(),)
    assert len(pool.options(gpus=2).submit(seen).result().split(",")) == 2
    try:
        pool.options(gpus=3).submit(seen).result()
    except InvalidRequest as error:
        assert "asks for 3 GPUs, but this machine has 2" in str(error), error
    else:
        raise AssertionError("three of two")
    assert len(pool.stats().gpus.devices) == 2
"""


def test_a_program_s_pool_leases_them_to_calls_that_ask(
    scripted: ScriptedNvml, tmp_path: Path
) -> None:
    uuids = scripted.gpus(2)
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, program],
        env={**os.environ, **scripted.variables},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=50,
    )
    assert done.stdout.strip() in uuids


HOLDER = """class Holder:
    def __init__(self, folder):
        import os
        self.devices = os.environ["CUDA_VISIBLE_DEVICES"]
        with open(os.path.join(folder, "processes", self.devices), "a") as file:
            file.write(f"{os.getpid()} 1000000000\\n")

    def where(self):
        import os
        return os.environ["CUDA_VISIBLE_DEVICES"], self.devices, os.getpid()
"""


def where(server: Server, machine: ScriptedNvml, name: str) -> dict[str, Any]:
    fields = {
        "execution_type": "class",
        "class_name": "Holder",
        "class_code": HOLDER,
        "constructor_args": [str(machine.folder)],
        "method_name": "where",
        "instance_id": name,
        "create_new_instance": False,
        "serialization_format": "json",
    }
    return dict(server.http.post("/execute", json=fields).json())


def test_an_idle_instance_releases_its_device_to_a_waiting_call(
    pod: Serve, scripted: ScriptedNvml
) -> None:
    uuids = scripted.gpus(2)
    with pod() as server:
        first, other = (where(server, scripted, name) for name in ("one", "two"))
        assert {result(first)[0], result(other)[0]} == set(uuids)
        again = where(server, scripted, "one")
        assert result(again) == result(first)
        assert again["receipt"]["gpus"] == [result(first)[0]]
        # "two" has been idle for longer, so it is closed and "one" stays.
        call = server.execute(SEEN)
        assert result(call) == result(other)[0]
        assert result(where(server, scripted, "one"))[2] == result(first)[2]
        both = server.execute(SEEN, gpus=2)
        assert sorted(result(both).split(",")) == sorted(uuids)
        rebuilt = where(server, scripted, "one")
        assert result(rebuilt)[2] != result(first)[2]
        assert rebuilt["instance_info"]["generation"] == 2
        assert server.stats()["gpus"]["usable"] == 2


def test_idle_instances_that_hold_too_much_gpu_memory_are_closed(
    pod: Serve, scripted: ScriptedNvml
) -> None:
    scripted.gpus(3)
    with pod(FLASHPOOL_INSTANCES_GPU_MB="2500") as server:
        for name in ("one", "two"):
            result(where(server, scripted, name))
        held = until(lambda: [one for one in server.stats()["instances"] if one["gpu_memory_mb"]])
        assert {one["gpu_memory_mb"] for one in held} == {953.7}
        result(where(server, scripted, "three"))

        def names() -> set[str]:
            return {one["instance"] for one in server.stats()["instances"]}

        until(lambda: names() == {"two", "three"})
        answer = where(server, scripted, "one")
        assert "FLASHPOOL_INSTANCES_GPU_MB" in answer["instance_info"]["rebuilt_because"]
