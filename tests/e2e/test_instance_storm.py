"""Clients that send many kinds of calls at once, while processes are killed."""

import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from e2e.server import Server, serving, until
from e2e.test_instances import COUNTER

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]

STORM_S = 10.0
METHODS: list[tuple[str, list[Any]]] = [
    ("inc", []),
    ("inc", []),
    ("nap", [0.05]),
    ("nap", [0.3]),
    ("slow", [0.05]),
    ("die", []),
    ("fail", []),
    ("leave", []),
    ("say", ["x"]),
    ("stubborn", [0.2]),
    ("items", [3]),
    ("spin", []),
]


@pytest.mark.parametrize("seed", [1, 2])
def test_every_call_finishes_and_no_process_is_left(tmp_path: Path, seed: int) -> None:
    bounds = {"FLASHPOOL_INSTANCES": "3", "FLASHPOOL_SLOTS": "2", "FLASHPOOL_INSTANCES_MB": "60"}
    times = {"FLASHPOOL_GRACE_S": "0.3", "FLASHPOOL_INSTANCE_IDLE_S": "1"}
    hung: list[dict[str, Any]] = []
    with serving(tmp_path, **bounds, **times) as server:
        stop_at = time.monotonic() + STORM_S
        clients = [
            threading.Thread(
                target=_ask, args=(server, random.Random(seed * 100 + i), hung, stop_at)
            )
            for i in range(12)
        ]
        for client in clients:
            client.start()
        _kill(server, random.Random(seed), stop_at)
        for client in clients:
            client.join()
        assert hung == []
        until(lambda: _is_quiet(server))
        assert "Traceback" not in server.log()


def _ask(server: Server, rng: random.Random, hung: list[Any], stop_at: float) -> None:
    with httpx.Client(base_url=server.url, trust_env=False) as http:
        while time.monotonic() < stop_at:
            request = _request(rng)
            patience = 0.1 if request["method_name"] != "spin" and rng.random() < 0.2 else 60
            try:
                http.post("/execute", json=request, timeout=patience).json()
            except httpx.TimeoutException:
                if patience > 1:
                    hung.append(request)


def _request(rng: random.Random) -> dict[str, Any]:
    method, args = rng.choice(METHODS)
    limits: dict[str, Any] = {}
    if method == "spin" or rng.random() < 0.1:
        limits["timeout_s"] = rng.choice([0.05, 0.3])
    if rng.random() < 0.1:
        limits["memory_mb"] = rng.choice([16, 40])
    return {
        "execution_type": "class",
        "class_name": "Counter",
        "class_code": COUNTER + ("" if rng.random() < 0.9 else "\n# other code"),
        "constructor_args": [1],
        "method_name": method,
        "args": args,
        "instance_id": rng.choice("abcdef"),
        "create_new_instance": rng.random() < 0.1,
        "instance_must_exist": rng.random() < 0.1,
        "serialization_format": "json",
        **limits,
    }


def _kill(server: Server, rng: random.Random, stop_at: float) -> None:
    while time.monotonic() < stop_at:
        time.sleep(rng.random())
        stats = server.stats()
        which = "zygotes" if rng.random() < 0.15 else "instances"
        pids = [one["pid"] for one in stats[which] if one["pid"]]
        if pids:
            try:
                os.kill(rng.choice(pids), rng.choice([signal.SIGKILL, signal.SIGTERM]))
            except ProcessLookupError:
                continue


def _is_quiet(server: Server) -> bool:
    stats = server.stats()
    busy = stats["slots"]["busy"] or stats["queue"]["depth"]
    return not (busy or stats["running"] or stats["instances"])
