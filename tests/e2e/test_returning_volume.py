"""A volume that disappears and comes back, with its content or without."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest
from e2e.server import Server, until
from e2e.world import World

NAMED: Final = ["parts==1.0"]
#: Waits within the call, then imports a module for the first time.
LATE: Final = """def late(gate, name):
    import parts, importlib, os, time
    open(gate, "w").close()
    while os.path.exists(gate):
        time.sleep(0.02)
    return sum(range(10))"""
PART: Final = (
    "def part(name):\n    import importlib\n    return importlib.import_module(name).value"
)


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    files = {f"part{number}.py": f"value = {number}\n" for number in range(40)}
    made.index.add("parts", "1.0", files=files)
    made.variables["FLASHPOOL_ENV_HEARTBEAT_S"] = "0.2"
    return made


def part(server: Server, number: int) -> dict[str, Any]:
    return server.execute(PART, f"parts.part{number}", dependencies=NAMED)


def succeeds(server: Server, number: int) -> bool:
    return part(server, number)["success"] is True


@pytest.mark.parametrize(
    "comes_back",
    [
        "empty",
        *(pytest.param(how, marks=pytest.mark.slow) for how in ("as it was", "built by another")),
    ],
)
def test_calls_find_their_modules_after_the_volume_is_back(world: World, comes_back: str) -> None:
    """Running calls finish, and each new one runs in what lies there now."""
    gate = world.folder / "gate"
    with world.server() as server, ThreadPoolExecutor(2) as threads:
        assert part(server, 0)["json_result"] == 0
        world.finished()
        (digest,) = world.stored("envs")
        zygotes = server.zygotes()
        running = threads.submit(server.execute, LATE, str(gate), "", dependencies=NAMED)
        until(gate.exists)
        aside = world.volume.rename(world.volume.with_name("aside"))
        world.volume.write_text("no directory any more")
        until(lambda: not succeeds(server, 1) or "local" in server.log())
        # If the volume is back before the next heartbeat, nothing was lost.
        until(lambda: "was moved or deleted" in server.log())
        world.volume.unlink()
        if comes_back == "as it was":
            aside.rename(world.volume)
        else:
            world.volume.mkdir()
        if comes_back == "built by another":
            with world.server("other") as other:
                assert part(other, 0)["json_result"] == 0
        until(lambda: succeeds(server, 2), 60)
        for number in range(3, 20):
            answer = part(server, number)
            assert answer["json_result"] == number, answer
            assert answer["receipt"]["environment"] == digest
        gate.unlink()
        assert running.result()["json_result"] == 45
        # Processes of the lost copy exit after its last call.
        until(lambda: not set(zygotes[1:]) & set(server.zygotes()))
        assert server.stop() == 0


def test_calls_use_another_copy_while_the_volume_is_away(world: World) -> None:
    """On local disk, with processes of its own, although a call runs in the old one."""
    gate = world.folder / "gate"
    with world.server() as server, ThreadPoolExecutor(1) as threads:
        assert part(server, 0)["json_result"] == 0
        world.finished()
        running = threads.submit(server.execute, LATE, str(gate), "", dependencies=NAMED)
        until(gate.exists)
        aside = world.volume.rename(world.volume.with_name("aside"))
        world.volume.write_text("no directory any more")
        until(lambda: succeeds(server, 1), 60)
        for number in range(2, 8):
            answer = part(server, number)
            assert answer["json_result"] == number, answer
        gate.unlink()
        assert running.result()["json_result"] == 45
        world.volume.unlink()
        aside.rename(world.volume)
        assert server.stop() == 0
