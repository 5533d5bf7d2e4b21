"""Servers that share a volume: one build for all, builders that are killed, empty disks, quotas."""

import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from e2e.server import Server, report, request, until
from e2e.world import World, busy_until

from flashpool.envs.store.manifest import check_sizes, read_facts

MODULES: Final = 60
#: Returns whether every module of the package exists with the right content.
WHOLE = f"""def f(version):
    import importlib, bulk
    names = [f"bulk.part{{n}}" for n in range({MODULES})]
    values = [importlib.import_module(name).value for name in names]
    return bulk.version == version and values == [f"{{version}} {{n}}" for n in range({MODULES})]
"""


def add_bulk(world: World, version: str) -> None:
    """Add a package of many files, which differ between versions."""
    files = {f"part{n}.py": f"value = '{version} {n}'\n" for n in range(MODULES)}
    world.index.add("bulk", version, files=files)


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    made.watch_uv()
    return made


@contextlib.contextmanager
def two(world: World) -> Iterator[list[Server]]:
    with world.server("one") as one, world.server("two") as other:
        yield [one, other]


def all_are_complete(world: World) -> None:
    for digest in world.stored("envs"):
        path = world.volume / "flashpool" / "envs" / digest
        facts = read_facts(path)
        assert facts is not None
        assert facts.digest == digest
        check_sizes(path)


def only_the_living_have_scratch(world: World, servers: list[Any]) -> None:
    """Check that scratch holds only spare virtualenvs and stubs of the living servers."""
    pids = {server.process.pid for server in servers}
    until(lambda: {int(name.split("-")[1]) for name in world.stored("scratch")} <= pids, 30)
    until(lambda: len(world.stored("scratch")) <= 2 * len(servers))


def test_two_servers_and_twenty_requests_build_once(world: World) -> None:
    add_bulk(world, "1.0")
    with two(world) as servers, ThreadPoolExecutor(20) as threads:

        def one(number: int) -> dict[str, Any]:
            return servers[number % 2].execute(WHOLE, "1.0", dependencies=["bulk==1.0"])

        with world.holding("install"):
            asked = [threads.submit(one, number) for number in range(20)]
            until(lambda: world.uv_runs("install"))
            # A second builder would have started by now.
            time.sleep(1.5)
        answers = [future.result() for future in asked]
        for answer in answers:
            assert answer["json_result"] is True, report(answer)
        origins = Counter(answer["receipt"]["environment_origin"] for answer in answers)
        assert origins == {"built": 10, "disk": 10}
        told = [answer["stdout"] for answer in answers]
        assert sum("+ bulk==1.0" in text for text in told) == 10
        assert sum("Another process is building" in text for text in told) == 10
        world.finished()
    assert len({run.scratch for run in world.uv_runs("install")}) == 1
    assert len(world.stored("envs")) == 1
    all_are_complete(world)


# Builders that are killed.


class Callers:
    """Twenty clients of two servers; a client that loses its server uses the other one."""

    def __init__(self, servers: list[Server | None]) -> None:
        self.servers = servers
        self.threads = ThreadPoolExecutor(20)

    def ask(self, version: str) -> Callable[[], list[dict[str, Any]]]:
        body = request(WHOLE, version, dependencies=[f"bulk=={version}"])
        asked = [self.threads.submit(self._answer, number, body) for number in range(20)]
        return lambda: [future.result() for future in asked]

    def _answer(self, number: int, body: dict[str, Any]) -> dict[str, Any]:
        for attempt in range(50):
            server = self.servers[(number + attempt) % 2]
            if server is None:
                continue
            try:
                answer = server.http.post("/execute", json=body)
            except httpx.TransportError:
                continue
            return answer.json()  # type: ignore[no-any-return]
        raise AssertionError("both servers are gone")


def _begun(world: World, step: str, before: int) -> Callable[[], bool]:
    return lambda: len(world.uv_runs(step)) > before


def _some(folder: Path, pattern: str, before: int) -> Callable[[], bool]:
    return lambda: len(list(folder.glob(pattern))) > before


#: When the builder is killed. Each takes the world and returns the condition to wait for.
MOMENTS: Final[list[Callable[[World], Callable[[], bool]]]] = [
    lambda w: _begun(w, "compile", len(w.uv_runs("compile"))),
    lambda w: lambda: bool(w.stored("claims")),
    lambda w: _begun(w, "install", len(w.uv_runs("install"))),
    lambda w: _some(w.volume, "flashpool/scratch/*/env/lib/*/site-packages/bulk/part1.py", 0),
    lambda w: _some(w.volume, "flashpool/scratch/*/env/flashpool.json", 0),
    lambda w: _some(w.volume, "flashpool/envs/*", len(w.stored("envs"))),
]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_servers_that_build_are_killed_again_and_again(world: World) -> None:
    with contextlib.ExitStack() as stack:
        servers: list[Server | None] = [
            stack.enter_context(world.server(name)) for name in ("one", "two")
        ]
        callers = Callers(servers)
        stack.enter_context(callers.threads)
        for number in range(10):
            version = f"{number}.5"
            add_bulk(world, version)
            moment = MOMENTS[number % len(MOMENTS)](world)
            answers = callers.ask(version)
            with contextlib.suppress(AssertionError):
                # Some moments pass before they are noticed; then the kill comes a little later.
                busy_until(moment, 3)
            killed = _kill_a_builder(world, servers, number)
            for answer in answers():
                assert answer.get("json_result") is True, report(answer)
            servers[killed] = stack.enter_context(world.server(("one", "two")[killed]))
        for server in servers:
            answer = server.execute(WHOLE, "0.5", dependencies=["bulk==0.5"])
            assert answer["json_result"] is True, report(answer)
        world.finished()
        all_are_complete(world)
        assert len(world.stored("envs")) == 10
        only_the_living_have_scratch(world, servers)


def _kill_a_builder(world: World, servers: list[Server | None], number: int) -> int:
    """Kill the server that has the claim, or one of the two; return which one."""
    pids = [server.process.pid for server in servers if server]
    mine = [pids.index(pid) for pid in world.builders() if pid in pids]
    killed = mine[0] if mine else number % 2
    server = servers[killed]
    assert server is not None
    servers[killed] = None
    server.process.kill()
    server.process.wait()
    return killed


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_uv_is_killed_again_and_again(world: World) -> None:
    with two(world) as servers:
        callers = Callers([*servers])
        with callers.threads:
            for number in range(10):
                version = f"{number}.5"
                add_bulk(world, version)
                step = ("compile", "install")[number % 2]
                before = len(world.uv_runs(step))
                begun = _begun(world, step, before)
                with world.holding(step):
                    answers = callers.ask(version)
                    until(begun)
                    for run in world.uv_runs(step)[before:]:
                        os.kill(run.pid, signal.SIGKILL)
                for answer in answers():
                    assert answer.get("json_result") is True, report(answer)
        world.finished()
        all_are_complete(world)
        assert len(world.stored("envs")) == 10
        only_the_living_have_scratch(world, servers)
