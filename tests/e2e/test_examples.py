"""Each program of examples/ runs as its first lines say."""

import subprocess
import sys
from pathlib import Path

import pytest
from e2e.app_servers import serving_app
from e2e.server import serving, until
from e2e.world import World

EXAMPLES = Path(__file__).parents[2] / "examples"
#: Programs that a test below runs.
RUN = {
    *("pool_script.py", "instance.py", "environments.py"),
    *("execute_client.py", "execute_client.sh", "app/handler_hello.py"),
    # By tests/sdk2/test_examples.py.
    *("sdk2/hello.py", "sdk2/counter.py", "sdk2/stream.py"),
}


def run(*command: str | Path, env: dict[str, str] | None = None, limit_s: float = 100) -> list[str]:
    """Run a program that has to exit with 0; return its output lines."""
    done = subprocess.run(
        command, capture_output=True, text=True, env=env, timeout=limit_s, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_each_example_has_a_test_and_a_row() -> None:
    programs = {str(path.relative_to(EXAMPLES)) for path in EXAMPLES.rglob("*.[ps][yh]")}
    assert programs == RUN
    readme = (EXAMPLES / "README.md").read_text("utf-8")
    assert all(f"({name})" in readme for name in programs)


def test_a_script_with_a_pool() -> None:
    assert run(sys.executable, EXAMPLES / "pool_script.py") == [
        "areas: [3.14, 12.57, 28.27]",
        "raised: division by zero",
        "crashed with exit code 7",
        "ended after 0.5 s",
        "items: [3, 2, 1]",
    ]


def test_an_instance() -> None:
    assert run(sys.executable, EXAMPLES / "instance.py") == [
        "predictions: [0, 10, 20]",
        "fetches: ['a fetched', 'b fetched']",
    ]


def test_environments(tmp_path: Path) -> None:
    world = World(tmp_path)
    for version in ("4.9.0", "4.11.0"):
        world.index.add("humanize", version)
    lines = run(sys.executable, EXAMPLES / "environments.py", env=world.environ())
    shown = [line for line in lines if line.startswith(("versions", "environment:", "failed"))]
    assert (shown[0], shown[2]) == ("versions: ['4.9.0', '4.11.0']", "failed in phase resolve")


def test_clients_of_a_server(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        assert run(sys.executable, EXAMPLES / "execute_client.py", server.url) == [
            "result: 5 printed: adding",
            "success: False error: TypeError: unsupported operand type(s) for +: 'int' and 'str'",
            "counter: 11",
            "counter: 12",
        ]
        (line,) = run("sh", EXAMPLES / "execute_client.sh", server.url)
        assert '"json_result":5' in line


@pytest.mark.timeout(300)
def test_an_app(tmp_path: Path) -> None:
    with serving_app(tmp_path, EXAMPLES / "app") as server:
        assert server.http.get("/hello/Ada").json() == {"hello": "Ada"}
        assert server.http.post("/crash").status_code == 502
        until(lambda: server.http.get("/hello/Ada").status_code == 200)
