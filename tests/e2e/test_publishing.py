"""A server that stops right after its first build still publishes the environment to others."""

from pathlib import Path
from typing import Final

import pytest
from e2e.server import report
from e2e.world import World

#: Compiling bytecode may take a minute on a busy machine.
pytestmark = pytest.mark.timeout(300)
BULKY: Final = "def f():\n    import bulky\n    return bulky.version"


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    # Some seconds of compiling, after the answer to the first call.
    made.index.add("bulky", "1.0", files={"large.py": "a = 1\n" * 500_000})
    made.variables["FLASHPOOL_ENV_MODE"] = "archive"
    return made


def archives(world: World) -> list[str]:
    return [name for name in world.stored("archives") if name.endswith(".json")]


def test_a_stopping_server_publishes_first(world: World) -> None:
    with world.server(FLASHPOOL_DRAIN_S="200") as server:
        answer = server.execute(BULKY, dependencies=["bulky"])
        assert answer["json_result"] == "1.0", report(answer)
        assert not archives(world)
        assert server.stop(220) == 0
        assert "is truncated" not in server.log()
    assert archives(world)
    elsewhere = str(world.folder / "elsewhere")
    with world.server("other", FLASHPOOL_LOCAL_DIR=elsewhere) as other:
        answer = other.execute(BULKY, dependencies=["bulky"])
        assert answer["receipt"]["environment_origin"] == "archive", report(answer)


@pytest.mark.slow
def test_an_environment_not_published_within_the_drain_is_logged(world: World) -> None:
    with world.server(FLASHPOOL_DRAIN_S="0.1") as server:
        answer = server.execute(BULKY, dependencies=["bulky"])
        assert answer["json_result"] == "1.0", report(answer)
        assert server.stop(60) == 0
        assert "is truncated: other pods have to build it" in server.log()
    assert not archives(world)
    # The next server that uses the environment publishes it.
    with world.server(FLASHPOOL_DRAIN_S="200") as server:
        assert server.execute(BULKY, dependencies=["bulky"])["json_result"] == "1.0"
        assert server.stop(220) == 0
    assert archives(world)
