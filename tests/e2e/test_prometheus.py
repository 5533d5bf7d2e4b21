"""A real Prometheus, with the rules of docs/operations, scrapes a real server."""

import contextlib
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from support import wants

from .server import Server, serving, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "operations"
LIMIT_S = 90.0


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@contextlib.contextmanager
def prometheus(folder: Path, target: str) -> Iterator[str]:
    """The address of one that scrapes a target twice a second, with bounds that a test can wait for."""
    program = wants.program("prometheus")
    rules = yaml.safe_load((FOLDER / "alerts.yml").read_text("utf-8"))
    for rule in rules["groups"][0]["rules"]:
        if rule["alert"] == "FlashpoolQueueOld":
            rule |= {"expr": rule["expr"].replace("> 30", "> 1"), "for": "1s"}
    (folder / "alerts.yml").write_text(yaml.safe_dump(rules))
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text("utf-8"))
    config["global"] = {"scrape_interval": "500ms", "evaluation_interval": "500ms"}
    (job,) = config["scrape_configs"]
    del job["authorization"]
    job["static_configs"] = [{"targets": [target]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    command = [
        program,
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address={address}",
        "--log.level=warn",
    ]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        try:
            yield f"http://{address}"
        finally:
            process.terminate()
            process.wait(30)
            shutil.rmtree(folder / "data", ignore_errors=True)


def asked(url: str, path: str, **params: str) -> Any:
    answer = httpx.get(f"{url}/api/v1/{path}", params=params, trust_env=False, timeout=30)
    answer.raise_for_status()
    return answer.json()["data"]


def firing(url: str) -> set[str]:
    alerts = asked(url, "alerts")["alerts"]
    return {one["labels"]["alertname"] for one in alerts if one["state"] == "firing"}


def value(url: str, query: str) -> float | None:
    found = asked(url, "query", query=query)["result"]
    return float(found[0]["value"][1]) if found else None


def test_it_scrapes_and_an_alert_fires_and_resolves(tmp_path: Path) -> None:
    with serving(tmp_path, FLASHPOOL_SLOTS="1") as server:
        target = server.admin.removeprefix("http://")
        with prometheus(tmp_path, target) as url:
            until(lambda: value(url, 'up{job="flashpool"}') == 1.0, LIMIT_S)
            calling = [threading.Thread(target=sleep, args=(server,)) for _ in range(2)]
            for one in calling:
                one.start()
            until(lambda: "FlashpoolQueueOld" in firing(url), LIMIT_S)
            for one in calling:
                one.join(LIMIT_S)
            until(lambda: "FlashpoolQueueOld" not in firing(url), LIMIT_S)
            until(lambda: value(url, 'flashpool_calls_total{outcome="ok"}') == 2.0, LIMIT_S)
            quantile = 'histogram_quantile(0.5, sum by (le) (flashpool_call_phase_seconds_bucket{phase="run"}))'
            median = value(url, quantile)
            assert median is not None
            assert 5.0 <= median <= 30.0


def sleep(server: Server) -> None:
    answer = httpx.post(
        f"{server.url}/execute",
        json={
            "function_name": "f",
            "function_code": "import time\ndef f(): time.sleep(10)",
            "serialization_format": "json",
        },
        timeout=LIMIT_S,
        trust_env=False,
    )
    assert answer.json()["success"]
