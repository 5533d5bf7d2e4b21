"""The first program of docs/how-to/clients.md: SDK 2.0's own client, and a queue on loopback."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from e2e.queue_client import _free_port
from e2e.server import FLASHPOOL, request, until
from e2e.test_queue_local import running
from sdk2.rp_command import run_rp

from support.client import ROOT, sdk_python

pytestmark = [pytest.mark.shared_pool, pytest.mark.timeout(200)]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port, folder = _free_port(), tmp_path_factory.mktemp("queue")
    command: list[Any] = [FLASHPOOL, "serve", "qb", "--rp_serve_api", "--rp_api_port", str(port)]
    variables = {
        "FLASHPOOL_BASE_PYTHON": str(sdk_python()),
        "FLASHPOOL_LOCAL_DIR": str(folder / "local"),
    }
    with running(command, folder / "server.log", **variables) as process:
        until(lambda: httpx.get(f"http://127.0.0.1:{port}/", trust_env=False).status_code == 200)
        yield f"http://127.0.0.1:{port}/v2"
        process.terminate()
        process.wait(40)


def test_the_program_prints_what_the_page_shows(url: str, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "how-to" / "clients.md").read_text("utf-8")
    found = re.search(r"```python\n(.*?)```\n\nIt prints `(.*?)`", page, re.DOTALL)
    assert found
    program = tmp_path / "greeter.py"
    program.write_text(found[1], "utf-8")
    variables = {"RUNPOD_ENDPOINT_BASE_URL": url}
    lines = run_rp(program, folder=tmp_path, variables=variables, program="python")
    assert lines == [found[2]]


def test_the_status_of_a_job_can_be_queried(url: str) -> None:
    """Clients of both generations do so."""
    job = {"input": request("def f(a): return a", 5)}
    with httpx.Client(timeout=60, trust_env=False) as http:
        id_ = http.post(f"{url}/local/run", json=job).json()["id"]
        ended = http.get(f"{url}/local/status/{id_}").json()
    assert (ended["status"], ended["output"]["json_result"]) == ("COMPLETED", 5)
