"""One server for the unmodified clients of both generations."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from e2e.server import serving
from sdk2.sdk_client import APPS, call_api

from support.client import ROOT, client_python, sdk_python

pytestmark = [pytest.mark.shared_pool, pytest.mark.timeout(300)]


def test_one_server_runs_calls_of_both_generations(tmp_path: Path) -> None:
    """The base has SDK 2.0, which does not affect functions of the older client."""
    home = tmp_path / "home"
    with serving(tmp_path, FLASHPOOL_BASE_PYTHON=str(sdk_python())) as server:
        script = ROOT / "tests" / "e2e" / "client" / "calls.py"
        older = subprocess.run(
            [client_python(), script, "A", server.url],
            cwd=tmp_path,
            env={"HOME": str(tmp_path), "PATH": os.environ["PATH"], "TMPDIR": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert older.returncode == 0, older.stderr
        told = json.loads(older.stdout.splitlines()[-1])
        assert (told["add"], told["add_later"]) == ({"value": "42"}, {"value": "42"})
        newer = call_api(
            sdk_python(),
            "live_api.py",
            server.url,
            [("added", "Counter", "post", "/add", {"by": 5})],
            home=home,
        )
        assert newer.value("added") == {"n": 105}
        answer = server.http.post(
            "/execute",
            json={
                "function_name": "scale",
                "function_code": (APPS / "live_queue.py").read_text(),
                "args": [[1, 2], 3],
                "serialization_format": "json",
            },
        )
        assert answer.json()["json_result"] == [30, 60]
