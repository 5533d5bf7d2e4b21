"""What a server does, told to stop right after its first build: other pods get what it built."""

from pathlib import Path
from typing import Final

import pytest
from e2e.server import report
from e2e.world import World

#: The compiler's work may take a minute where the machine is busy with other things.
pytestmark = pytest.mark.timeout(300)
BULKY: Final = "def f():\n    import bulky\n    return bulky.version"


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    # Some seconds of work for the compiler, behind the answer to the call that is the first.
    made.index.add("bulky", "1.0", files={"large.py": "a = 1\n" * 500_000})
    made.variables["FLASHPOOL_ENV_MODE"] = "archive"
    return made


def archives(world: World) -> list[str]:
    return [name for name in world.stored("archives") if name.endswith(".json")]


def test_a_server_that_is_told_to_stop_publishes_first(world: World) -> None:
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
def test_what_is_not_published_within_the_drain_is_told(world: World) -> None:
    with world.server(FLASHPOOL_DRAIN_S="0.1") as server:
        answer = server.execute(BULKY, dependencies=["bulky"])
        assert answer["json_result"] == "1.0", report(answer)
        assert server.stop(60) == 0
        assert "is truncated: other pods have to build it" in server.log()
    assert not archives(world)
    # Whoever uses it next publishes it.
    with world.server(FLASHPOOL_DRAIN_S="200") as server:
        assert server.execute(BULKY, dependencies=["bulky"])["json_result"] == "1.0"
        assert server.stop(220) == 0
    assert archives(world)
