"""Packages that requests name, over HTTP: real builds from a small index of wheels."""

import json
import signal
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from e2e.server import FLASHPOOL, Server, report, request, until
from e2e.world import VERSION, World, processes_with


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_built_once_then_remembered(world: World) -> None:
    with world.server() as server:
        assert server.execute("def f(): return 1")["receipt"]["environment_origin"] == "base"
        assert list((world.folder / "volume").iterdir()) == [], "nothing was asked of the store"
        first = server.execute(VERSION, dependencies=["alpha==1.0"])
        assert first["json_result"] == "1.0", report(first)
        assert "+ alpha==1.0" in first["stdout"]
        receipt = first["receipt"]
        assert (receipt["environment_origin"], receipt["environment_hit"]) == ("built", False)
        assert receipt["seconds"]["resolve"] > 0
        assert receipt["seconds"]["start"] > 0
        again = server.execute(VERSION, dependencies=["Alpha == 1.0 "])
        assert again["json_result"] == "1.0", report(again)
        third = server.execute(VERSION, dependencies=["alpha==1.0"])
        assert third["stdout"] == ""
        assert third["receipt"]["environment"] == receipt["environment"]
        assert third["receipt"]["environment_hit"]
        assert third["receipt"]["seconds"]["resolve"] == 0
        names = {zygote["environment"] for zygote in server.stats()["zygotes"]}
        assert names == {"base", receipt["environment"]}
        until(lambda: list((world.folder / "volume").glob("flashpool/preloads/*.json")))
        (store,) = until(
            lambda: [one for one in server.stats()["stores"] if one["environments"] == 1]
        )
        assert store["bytes"] > 0
        assert (store["builds"], store["failed_builds"], store["evictions"]) == (1, 0, 0)
        shown = httpx.get(f"{server.admin}/metrics", trust_env=False).text
        assert f'flashpool_environments{{store="{store["root"]}"}} 1.0' in shown
    with world.server() as other:
        answer = other.execute(VERSION, dependencies=["alpha==1.0"])
        assert answer["receipt"]["environment_origin"] == "disk", report(answer)
        assert answer["receipt"]["preloaded"], "what was imported before is there at once"


def test_calls_that_wait_are_counted_by_what_they_wait_for(world: World) -> None:
    world.watch_uv()
    with world.server() as server, ThreadPoolExecutor(1) as thread:
        with world.holding("compile"):
            answer = thread.submit(server.execute, VERSION, dependencies=["alpha==1.0"])
            queue = until(lambda: _queue_with(server, "environment"))
            assert queue["by_phase"]["environment"]["oldest_age_s"] >= 0
            assert (queue["depth"], queue["oldest_age_s"]) == (0, None)
        assert answer.result()["json_result"] == "1.0"
        assert all(one["depth"] == 0 for one in server.stats()["queue"]["by_phase"].values())


def _queue_with(server: Server, phase: str) -> Any:
    queue = server.stats()["queue"]
    return queue if queue["by_phase"][phase]["depth"] == 1 else None


def test_versions_that_conflict_side_by_side(world: World) -> None:
    with world.server() as server:

        def one(number: int) -> bool:
            wanted = ("1.0", "2.0")[number % 2]
            answer = server.execute(VERSION, dependencies=[f"alpha=={wanted}"])
            return bool(answer["json_result"] == wanted)

        with ThreadPoolExecutor(8) as threads:
            assert all(threads.map(one, range(100)))
        lists = world.command("ls", "--json")
        assert len(json.loads(lists.stdout)["environments"]) == 2, lists.stderr


def test_failures_contain_uvs_message(world: World) -> None:
    with world.server() as server:
        answer = server.execute(VERSION, dependencies=["alpha==7"])
        assert answer["error_type"] == "EnvironmentError", report(answer)
        assert "alpha==7" in answer["error"]
        details: dict[str, Any] = answer["details"]
        assert (details["kind"], details["phase"]) == ("ResolutionFailed", "resolve")
        assert "Resolving versions" in answer["stdout"]
        receipt = answer["receipt"]
        assert (receipt["environment"], receipt["environment_origin"]) == (None, "failed")
        assert not receipt["environment_hit"]
        assert receipt["seconds"]["resolve"] > 0
        assert (receipt["attempts"], receipt["pid"]) == (0, None)
        stats = server.stats()
        assert (stats["calls"], stats["outcomes"]) == (1, {"EnvironmentError": 1})
        (failure,) = stats["recent_failures"]
        assert failure["error_type"] == "EnvironmentError"
        assert "alpha==7" in failure["error"]
        assert stats["latency"] == {}, "it took nothing of the pool's time"
        for text in ("-r x.txt", "--index-url=http://x", "", "a b c", "../x"):
            reply = server.http.post("/execute", json=request(VERSION, dependencies=[text]))
            assert reply.status_code == 422, reply.text
            assert reply.json()["error_type"] == "InvalidRequest"
        answer = server.execute(VERSION, python_version="2.7")
        assert answer["error_type"] == "InvalidRequest", report(answer)
        assert server.execute("def f(): return 3")["json_result"] == 3


def test_the_time_for_building_is_limited_by_itself(world: World) -> None:
    with world.server(FLASHPOOL_BUILD_TIMEOUT_S="0.01") as server:
        answer = server.execute(VERSION, dependencies=["alpha"], timeout_s=60)
        assert answer["error_type"] == "Timeout", report(answer)
        assert answer["details"]["phase"] == "build"
        assert server.stats()["outcomes"] == {"Timeout": 1}
        assert server.execute("def f(): return 3")["json_result"] == 3


@pytest.mark.slow
def test_an_environment_in_use_is_not_deleted_and_an_idle_one_is(world: World) -> None:
    with world.server(FLASHPOOL_ENVIRONMENT_IDLE_S="1") as server:
        answer = server.execute(VERSION, dependencies=["alpha"])
        digest = answer["receipt"]["environment"]
        kept = world.command("rm", digest)
        assert (kept.returncode, kept.stdout.split()[0]) == (1, "kept,"), kept.stderr

        def others() -> set[str]:
            return {zygote["environment"] for zygote in server.stats()["zygotes"]} - {"base"}

        until(lambda: not others())
        # The store keeps its lease mark for a moment, in case another request follows.
        until(lambda: world.command("rm", digest).returncode == 0, 40)
        answer = server.execute(VERSION, dependencies=["alpha"])
        assert answer["receipt"]["environment_origin"] == "built", report(answer)


def test_a_package_that_ends_the_interpreter_ends_its_own_call_only(world: World) -> None:
    code = "def f():\n    import quitter.now"
    with world.server() as server:
        for _ in range(3):
            answer = server.execute(code, dependencies=["quitter"])
            assert answer["error_type"] == "WorkerCrashed", report(answer)
        assert server.execute("def f(): return 1", dependencies=["quitter"])["json_result"] == 1


@pytest.mark.slow
def test_the_envs_commands_work_on_the_servers_store(world: World, tmp_path: Path) -> None:
    built = world.command("build", "beta")
    assert built.returncode == 0, built.stderr
    digest = built.stdout.split()[0]
    assert "+ beta==1.0" in built.stderr
    failed = world.command("build", "beta==9")
    assert (failed.returncode, failed.stdout) == (1, "")
    assert "beta==9" in failed.stderr

    sets = tmp_path / "sets.txt"
    sets.write_text("alpha==1.0\n\nbeta\n")
    warmed = world.command("warm", str(sets))
    assert warmed.stdout.splitlines()[1].startswith(f"{digest}  disk"), warmed.stderr

    assert digest[:12] in world.command("ls").stdout
    assert "alpha" in world.command("show", digest[:8]).stdout
    explained = json.loads(world.command("explain", "beta", "--json").stdout)
    assert (explained["digest"], explained["present"]) == (digest, "disk")
    assert world.command("verify").stdout.count("good") == 2
    assert world.command("rm", digest[:8]).returncode == 0
    assert "deleted" in world.command("gc", "--all").stdout
    assert json.loads(world.command("ls", "--json").stdout)["environments"] == []
    assert world.command("show", "zzz").returncode == 1


@pytest.mark.slow
def test_a_new_environment_gets_its_turn_while_others_are_busy(world: World) -> None:
    """A call in each of two slots all the time, in the one environment that may be up."""
    code = "def f():\n    import alpha, time\n    time.sleep(0.2)\n    return alpha.version"
    done = threading.Event()

    def steadily(_number: int) -> int:
        count = 0
        while not done.is_set():
            answer = server.execute(code, dependencies=["alpha==1.0"])
            assert answer["json_result"] == "1.0", report(answer)
            count += 1
        return count

    limits = {"FLASHPOOL_MAX_ENVIRONMENTS": "1", "FLASHPOOL_SLOTS": "2"}
    with world.server(**limits) as server, ThreadPoolExecutor(6) as threads:
        assert world.command("build", "alpha==2.0").returncode == 0
        assert server.execute(code, dependencies=["alpha==1.0"])["json_result"] == "1.0"
        busy = [threads.submit(steadily, number) for number in range(6)]
        try:
            for _ in range(2):
                answer = server.execute(VERSION, dependencies=["alpha==2.0"])
                assert answer["json_result"] == "2.0", report(answer)
                assert answer["receipt"]["seconds"]["total"] < 40, "it waits for a turn, no longer"
        finally:
            done.set()
        assert all(future.result() for future in busy)


# Progress during a build.


def test_log_and_command_line_show_progress_of_builds(world: World) -> None:
    world.watch_uv()
    (world.folder / "work.py").write_text(VERSION)
    with world.server() as server, ThreadPoolExecutor(20) as threads:
        with world.holding("install"):
            many = [
                threads.submit(server.execute, VERSION, dependencies=["beta", "alpha"])
                for _ in range(20)
            ]
            until(lambda: "beta alpha: Resolved" in server.log())
            assert server.log().count("beta alpha: Resolved") == 1
            assert len(world.uv_runs("install")) == 1
            assert not any(future.done() for future in many)
        for future in many:
            assert "+ beta==1.0" in future.result()["stdout"]
        assert server.log().count("beta alpha:  + beta==1.0") == 1
    with world.holding("install"):
        one = subprocess.Popen(
            [FLASHPOOL, "call", "--with", "alpha==1.0", f"{world.folder}/work.py:f"],
            env=world.environ(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert one.stderr
        assert "Resolving" in one.stderr.readline()
        assert "Resolved" in one.stderr.readline()
    out, err = one.communicate(timeout=30)
    assert (one.returncode, json.loads(out)) == (0, "1.0"), err
    assert "+ alpha==1.0" in err
    failed = world.command("--with", "alpha==7", f"{world.folder}/work.py:f", group="call")
    assert failed.returncode == 1
    assert "alpha==7" in failed.stderr
    assert "The call ended as EnvironmentError" in failed.stderr


# Stopping during a build.


@pytest.fixture
def watched(world: World) -> World:
    world.watch_uv()
    return world


def test_a_drain_waits_for_builds_and_runs_their_calls(watched: World) -> None:
    with watched.server() as server, ThreadPoolExecutor(1) as threads:
        with watched.holding("install"):
            asked = threads.submit(server.execute, VERSION, dependencies=["alpha==1.0"])
            until(lambda: watched.uv_runs("install"))
            server.process.send_signal(signal.SIGTERM)
            until(lambda: server.http.get("/ping").status_code == 503)
            refused = server.http.post("/execute", json=request(VERSION, dependencies=["beta"]))
            assert refused.status_code == 503
            until(lambda: "1 call to finish" in server.log())
        answer = asked.result()
        assert answer["json_result"] == "1.0", report(answer)
        assert server.process.wait(40) == 0
    assert processes_with(str(watched.volume)) == []


@pytest.mark.parametrize("hurry", [False, True])
def test_a_build_that_outlasts_the_drain_is_cancelled(watched: World, hurry: bool) -> None:
    limits = {"FLASHPOOL_DRAIN_S": "50" if hurry else "0.5"}
    with watched.server(**limits) as server, ThreadPoolExecutor(1) as threads:
        body = request(VERSION, dependencies=["alpha==1.0"])
        with watched.holding("install"):
            asked = threads.submit(server.http.post, "/execute", json=body)
            until(lambda: watched.uv_runs("install"))
            server.process.send_signal(signal.SIGTERM)
            until(lambda: "draining" in server.log())
            if hurry:
                server.process.send_signal(signal.SIGTERM)
            reply = asked.result()
            assert server.process.wait(40) == 0
            assert processes_with(str(watched.volume)) == []
        assert (reply.status_code, reply.json()["error_type"]) == (503, "Overloaded")
        assert "retry-after" in reply.headers
    assert watched.stored("scratch") == []
    assert watched.stored("claims") == []
    assert watched.stored("envs") == []
