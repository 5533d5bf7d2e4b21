"""What a new user would try first, with real packages: slow, and needs the network.

The base is an interpreter that numpy 1.26 has wheels for; that may be another one than the
server's own.
"""

import json
import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest
from e2e.server import Server, report, serving, until

from support import wants
from support.interpreters import installed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.shared_pool]

NUMPY: Final = "def f():\n    import numpy\n    return numpy.__version__"
PANDAS: Final = (
    "def f():\n    import numpy, pandas\n    return int(pandas.Series(numpy.ones(3)).sum())"
)
#: Blocks the network: connections to other machines are refused at once.
CUT_OFF: Final = dict.fromkeys(
    ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "https_proxy", "http_proxy", "all_proxy"),
    "http://127.0.0.1:9",
)


@pytest.fixture(scope="module")
def variables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables of servers that share a volume."""
    folder = tmp_path_factory.mktemp("real")
    (folder / "volume").mkdir()
    return {
        "FLASHPOOL_VOLUME": str(folder / "volume"),
        "FLASHPOOL_LOCAL_DIR": str(folder / "local"),
        "FLASHPOOL_ENV_MIN_FREE_MB": "0",
        "FLASHPOOL_SLOTS": "4",
        "FLASHPOOL_BASE_PYTHON": str(_base(folder)),
    }


def _base(folder: Path) -> Path:
    python = installed("3.12") or installed("3.11") or installed("3.10")
    if python is None:
        raise wants.missing("a Python before 3.13", "numpy 1.26 has no wheels for later ones")
    make = [python, "-m", "venv", "--without-pip", folder / "base"]
    subprocess.run(make, check=True)
    return folder / "base" / "bin" / "python"


@pytest.fixture(scope="module")
def server(variables: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server"), **variables) as server:
        yield server


def test_two_versions_of_numpy_work_in_turn(server: Server) -> None:
    versions = ("1.26.4", "2.2.6")

    def one(number: int) -> dict[str, Any]:
        wanted = versions[number % 2]
        answer = server.execute(NUMPY, dependencies=[f"numpy=={wanted}"])
        assert answer["json_result"] == wanted, report(answer)
        return answer

    for _ in range(2):
        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(one, range(200)))
    origins = Counter(answer["receipt"]["environment_origin"] for answer in answers)
    assert origins == {"memo": 200}
    spent = [answer["receipt"]["seconds"] for answer in answers]
    assert not any(s["resolve"] + s["fetch"] + s["build"] for s in spent)


def test_spelling_and_order_and_pins_do_not_matter(server: Server) -> None:
    first = server.execute(PANDAS, dependencies=["NumPy ", "pandas"])
    again = server.execute(PANDAS, dependencies=["pandas", "numpy"])
    for answer in (first, again):
        assert answer["json_result"] == 3, report(answer)
    assert first["receipt"]["environment"] == again["receipt"]["environment"]
    assert again["receipt"]["environment_hit"]

    loose = server.execute(NUMPY, dependencies=["numpy"])
    version = loose["json_result"]
    pinned = server.execute(NUMPY, dependencies=[f"numpy=={version}"])
    assert pinned["json_result"] == version, report(pinned)
    assert loose["receipt"]["environment"] == pinned["receipt"]["environment"]


def test_an_import_of_pandas_is_preloaded(server: Server) -> None:
    """How much that saves is a row of `make bench`; here, that it comes about."""
    dependencies = ["numpy", "pandas"]

    def preloaded() -> bool:
        answer = server.execute(PANDAS, dependencies=dependencies)
        assert answer["json_result"] == 3, report(answer)
        return bool(answer["receipt"]["preloaded"])

    until(preloaded, 120)
    assert all(preloaded() for _ in range(10))


def test_an_archived_environment_works_without_the_network(
    variables: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "volume").mkdir()
    archives = {
        **variables,
        "FLASHPOOL_ENV_MODE": "archive",
        "FLASHPOOL_VOLUME": str(tmp_path / "volume"),
    }

    def asked(name: str, **more: str) -> dict[str, Any]:
        (tmp_path / name).mkdir()
        disk = {"FLASHPOOL_LOCAL_DIR": str(tmp_path / name / "disk")}
        with serving(tmp_path / name, **{**archives, **disk, **more}) as server:
            answer = server.execute(PANDAS, dependencies=["numpy", "pandas"])
            assert answer["json_result"] == 3, report(answer)
            until(lambda: list((tmp_path / "volume/flashpool/archives").glob("*.json")), 120)
            if more:
                refused = server.execute(NUMPY, dependencies=["numpy<1.20", "six"])
                assert refused["details"]["kind"] == "RegistryUnreachable", report(refused)
        return answer

    built = asked("one")
    assert built["receipt"]["environment_origin"] == "built"
    unpacked = asked("two", **CUT_OFF, UV_HTTP_RETRIES="0")
    assert unpacked["receipt"]["environment_origin"] == "archive"
    assert unpacked["receipt"]["environment"] == built["receipt"]["environment"]


#: Writes events without flush or close; the writer's thread writes only every two minutes.
EVENTS: Final = """
from tensorboardX import SummaryWriter
def f(folder):
    global writer
    writer = SummaryWriter(folder)
    for step in range(300):
        writer.add_scalar("loss", 1 / (step + 1), step)
    writer.add_text("note", "the last one", 300)
"""


def events(folder: Path) -> list[int]:
    """Return the lengths of complete records of a SummaryWriter; these do not depend on times."""
    (file,) = folder.glob("events.out.*")
    data, found = file.read_bytes(), []
    while data:
        # A length and its checksum, the event, its checksum.
        length = int.from_bytes(data[:8], "little")
        assert len(data) >= length + 16, f"the event after {len(found)} is cut"
        found.append(length)
        data = data[length + 16 :]
    return found


def test_a_summary_writer_is_as_complete_as_in_a_script(server: Server, tmp_path: Path) -> None:
    needed = {"dependencies": ["tensorboardX"]}
    code = "def f():\n    import sys; return sys.executable"
    python = server.execute(code, **needed)["json_result"]
    script = f"{EVENTS}\nf({str(tmp_path / 'script')!r})"
    subprocess.run([python, "-c", script], check=True)
    wanted = events(tmp_path / "script")
    assert len(wanted) > 300
    for name in ("cold", "warm", "warmer"):
        answer = server.execute(EVENTS, str(tmp_path / name), **needed)
        assert answer["success"], report(answer)
        assert "warnings" not in answer
        assert events(tmp_path / name) == wanted


@wants.needs_program("dpkg-query")
# As root, the call gets the system package installed.
@wants.needs_program("curl", *["apt-get"] * (os.geteuid() == 0))
def test_the_real_client_asks_for_packages(
    server: Server, client_python: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [client_python, Path(__file__).parent / "client" / "packages.py", server.url],
        cwd=tmp_path,
        env={"HOME": str(tmp_path), "PATH": os.environ["PATH"], "TMPDIR": str(tmp_path)},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    outcomes = json.loads(done.stdout.splitlines()[-1])
    assert outcomes == [[{"status": "healthy"}, "curl"]] * 2
