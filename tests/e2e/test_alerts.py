"""Alert rules of docs/operations in a real Prometheus that scrapes a real server.

The rules are as the file has them, with their bounds: only how often Prometheus looks differs.
"""

import concurrent.futures
from pathlib import Path

import httpx
import pytest
from e2e.prometheus import scraping
from e2e.server import Server, request, serving, until
from e2e.test_gpus import ALLOCATE

from support.nvml.scripted import GIB, ScriptedNvml

TOKEN = "the-operator-s"
#: Runs until a file exists.
STAYS = """def stays(path):
    import os, time
    while not os.path.exists(path):
        time.sleep(0.02)
"""
BOUND_S = 30.0


def variables(folder: Path, **more: str) -> dict[str, str]:
    state = {"FLASHPOOL_ADMIN_TOKEN": TOKEN, "FLASHPOOL_STATE_DIR": str(folder / "state")}
    return {**state, "FLASHPOOL_SLOTS": "1", **more}


def posted(server: Server, code: str, *args: str) -> bool:
    """Return whether a call succeeds, which may take minutes."""
    answer = httpx.post(
        f"{server.url}/execute", json=request(code, *args), timeout=200, trust_env=False
    )
    return bool(answer.json()["success"])


def oldest(server: Server) -> float:
    return float(server.stats()["queue"]["oldest_age_s"] or 0.0)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_call_that_waits_too_long_fires_and_resolves(tmp_path: Path) -> None:
    name = "FlashpoolQueueOld"
    release = tmp_path / "release"
    with (
        serving(tmp_path, **variables(tmp_path)) as server,
        scraping(tmp_path / "prometheus", server.admin, TOKEN) as prometheus,
        concurrent.futures.ThreadPoolExecutor(2) as callers,
    ):
        assert len(prometheus.rules()) == 12
        try:
            calls = [callers.submit(posted, server, STAYS, str(release)) for _ in range(2)]
            until(lambda: oldest(server) > 0)
            assert prometheus.fires(name) == []
            until(lambda: prometheus.alerts(name), 90)
            # An age only grows, so on any machine it exceeds the bound by now.
            assert oldest(server) > BOUND_S
            (alert,) = until(lambda: prometheus.fires(name), 120)
            assert oldest(server) > BOUND_S
            assert float(alert["value"]) > BOUND_S
            assert alert["labels"]["severity"] == "warning"
            assert "A call waits for" in alert["annotations"]["summary"]
            assert prometheus.metric("flashpool_queue_depth") == [1.0]
        finally:
            release.touch()
        assert all(call.result() for call in calls)
        until(lambda: not prometheus.alerts(name), 60)
        until(lambda: prometheus.metric('flashpool_calls_total{outcome="ok"}') == [2.0], 60)
        assert prometheus.fires("FlashpoolDown") == []


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_quarantined_gpu_fires_and_resolves(scripted: ScriptedNvml, tmp_path: Path) -> None:
    name = "FlashpoolGpuQuarantined"
    uuids = scripted.gpus(2)
    quick = {"FLASHPOOL_GPU_SETTLE_S": "0.3", "FLASHPOOL_GRACE_S": "0.3"}
    with (
        serving(tmp_path, **variables(tmp_path, **quick), **scripted.variables) as server,
        scraping(tmp_path / "prometheus", server.admin, TOKEN) as prometheus,
    ):
        assert prometheus.alerts(name) == []
        answer = server.execute(ALLOCATE, str(scripted.folder), GIB, True)
        (ill,) = answer["receipt"]["gpus"]
        assert ill in uuids
        (alert,) = until(lambda: prometheus.fires(name), 60)
        assert alert["labels"]["gpu"] == ill
        assert alert["labels"]["severity"] == "warning"
        assert ill in alert["annotations"]["summary"]
        scripted.free_stuck(ill)
        until(lambda: not prometheus.alerts(name), 60)
        assert sorted(prometheus.metric("flashpool_gpu_quarantined")) == [0.0, 0.0]
