"""The files of docs/operations are parsed, and loaded by their programs where installed."""

import json
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from e2e.server import request, serving, until

from flashpool.frontends.admin.metrics import render
from flashpool.frontends.settings.table import FILE, table, variable
from flashpool.pool.recorder import Recorder
from support import wants
from support.stats_sample import document, ended

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "operations"
SUFFIXES = ("_bucket", "_count", "_sum", "_created")


def run(*command: str) -> str:
    done = subprocess.run(
        command, cwd=FOLDER, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def read(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text("utf-8"))


def metrics() -> set[str]:
    """The names that the listener serves."""
    recorder = Recorder()
    ended(recorder, 1)
    text = render(document(recorder), "")[0].decode()
    return {line.split(" ")[2] for line in text.splitlines() if line.startswith("# TYPE ")}


def named_in(text: str) -> set[str]:
    found = set(re.findall(r"\bflashpool_[a-z_]+", text))
    for suffix in SUFFIXES:
        found = {name.removesuffix(suffix) for name in found}
    return found


def test_rules_and_dashboard_use_metrics_that_exist() -> None:
    rules = read("alerts.yml")["groups"][0]["rules"]
    assert named_in("".join(rule["expr"] for rule in rules)) <= metrics()
    panels = json.loads((FOLDER / "grafana-dashboard.json").read_text("utf-8"))["panels"]
    queries = "".join(target["expr"] for panel in panels for target in panel["targets"])
    assert named_in(queries) <= metrics()
    assert len(panels) > 10


def test_prometheus_accepts_the_rules_and_they_fire_and_resolve() -> None:
    promtool = wants.program("promtool")
    assert "12 rules found" in run(promtool, "check", "rules", "alerts.yml")
    assert "SUCCESS" in run(promtool, "test", "rules", "alerts_test.yml")
    assert "is valid" in run(promtool, "check", "config", "--syntax-only", "prometheus.yml")


def test_promtool_has_no_complaints_about_the_metrics() -> None:
    recorder = Recorder()
    ended(recorder, 1)
    promtool = wants.program("promtool")
    done = subprocess.run(
        [promtool, "check", "metrics"],
        input=render(document(recorder), "")[0],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_nginx_accepts_its_configuration(tmp_path: Path) -> None:
    nginx = wants.program("nginx")
    page = nginx_page(tmp_path, FOLDER / "nginx.conf")
    assert "test is successful" in run(nginx, "-t", "-c", str(page))


def nginx_page(folder: Path, included: Path) -> Path:
    """A complete configuration that includes the page's part; nginx writes only to the folder."""
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = " ".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
    page = folder / "nginx.conf"
    page.write_text(
        f"pid {folder}/pid; error_log stderr; events {{}}\n"
        f"http {{ access_log off; {paths} include {included}; }}\n"
    )
    return page


@pytest.fixture
def through_nginx(tmp_path: Path) -> Iterator[httpx.Client]:
    """A client of a server behind an nginx that has the page, with ports that are free here."""
    nginx = wants.program("nginx")
    with serving(tmp_path, FLASHPOOL_SLOTS="2") as server, socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        taken.close()
        text = (FOLDER / "nginx.conf").read_text("utf-8")
        text = text.replace("127.0.0.1:8000", server.url.removeprefix("http://"))
        (tmp_path / "page.conf").write_text(text.replace("listen 8080", f"listen 127.0.0.1:{port}"))
        page = nginx_page(tmp_path, tmp_path / "page.conf")
        process = subprocess.Popen([nginx, "-c", page, "-g", "daemon off; master_process off;"])
        client = httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60)
        try:
            until(lambda: client.get("/ping").status_code == 200)
            yield client
        finally:
            client.close()
            process.terminate()
            process.wait(30)


def test_calls_go_through_nginx_with_its_page(through_nginx: httpx.Client) -> None:
    answer = through_nginx.post("/execute", json=request("def f(): return 'x' * 1000000")).json()
    assert len(answer["json_result"]) == 1_000_000
    # A body of more than nginx's own default, and of less than the server's limit.
    large = request("def f(text): return len(text)", "x" * (20 << 20))
    assert through_nginx.post("/execute", json=large).json()["json_result"] == 20 << 20
    # nginx answers neither for a server that is there, nor in place of the server's own refusal.
    refused = through_nginx.post("/execute", content=b"{")
    assert (refused.status_code, refused.json()["error_type"]) == (422, "InvalidRequest")


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    analyze = wants.program("systemd-analyze")
    unit = tmp_path / "flashpool.service"
    text = (FOLDER / "flashpool.service").read_text("utf-8")
    # The program is not installed at that path; only the unit is checked.
    unit.write_text(text.replace("/opt/flashpool/bin/flashpool", "/bin/true"))
    run(analyze, "verify", str(unit))


def test_every_variable_of_the_files_is_a_setting() -> None:
    known = {variable(name) for name in table()}
    known |= {variable(name) + FILE for name, row in table().items() if row.secret}
    for path in FOLDER.iterdir():
        names = set(re.findall(r"\bFLASHPOOL_[A-Z_]*[A-Z]\b", path.read_text("utf-8")))
        assert names <= known, path.name


def test_the_compose_file_restricts_the_container() -> None:
    service = read("compose.yaml")["services"]["flashpool"]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["healthcheck"]["test"] == ["CMD", "flashpool", "health"]


def test_kubernetes_probes_use_paths_that_exist() -> None:
    pod = read("kubernetes.yaml")["spec"]["template"]["spec"]["containers"][0]
    paths = {name: pod[name]["httpGet"]["path"] for name in pod if name.endswith("Probe")}
    assert paths == {
        "startupProbe": "/readyz",
        "livenessProbe": "/livez",
        "readinessProbe": "/readyz",
    }
