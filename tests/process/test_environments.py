"""Environments in the pool: other interpreters, their number, eviction and preloading."""

from __future__ import annotations

from pathlib import Path

import pytest

from flashpool.pool.calls import Provision
from support.interpreters import virtualenv
from support.live import alive, value

VERSION = "def f():\n    import thing\n    return thing.version"


@pytest.fixture
def interpreter(tmp_path):
    """Create virtualenvs of this Python, each with its own version of ``thing``."""

    def make(name: str, text: str = "", at_start: str = "") -> str:
        thing = text or f"version = {name!r}\n"
        return str(virtualenv(tmp_path / name, at_start=at_start, thing=thing))

    return make


def of(name: str) -> dict[str, Provision]:
    return {"provision": Provision(environment=name, origin="memo")}


def test_each_call_runs_in_its_own_environment(live, interpreter):
    for name in ("one", "two"):
        live.supervisor.environments.add(name, interpreter(name))
    started = [(name, live.start(VERSION, call=of(name))) for name in ("one", "two") * 20]
    for name, call in started:
        outcome = call.wait()
        assert outcome.ok, outcome.error
        assert outcome.receipt.as_dict()["environment"] == name
    assert live.value(VERSION, call=of("one")) == "one"
    assert live.value(VERSION, call=of("two")) == "two"
    assert live.call(VERSION).error_type == "ModuleNotFoundError"


def test_an_environment_rebuilt_in_another_place_is_used_there(live, interpreter):
    """For example after its volume was lost; calls in the old copy finish, then its zygote exits."""
    gone: list[str] = []
    live.supervisor.environments.on_unused = gone.append
    found = interpreter("found")
    live.supervisor.environments.add("one", interpreter("lost"))
    go = Path(found).with_name("go")
    waits = f"import os, time\n{VERSION}".replace(
        "return",
        f"print('here', flush=True)\n    while not os.path.exists({str(go)!r}): "
        "time.sleep(0.01)\n    return",
    )
    running = live.start(waits, call=of("one"))
    running.wait_for_output(b"here")
    live.supervisor.environments.add("one", found)
    go.touch()
    assert value(running.wait()) == "lost"
    live.until(lambda: gone)
    live.supervisor.environments.add("one", found)
    assert live.value(VERSION, call=of("one")) == "found"


def test_programs_of_an_environment_are_found_first(live, interpreter):
    live.supervisor.environments.add("one", interpreter("one"))
    found = live.value("import shutil\ndef f(): return shutil.which('python')", call=of("one"))
    assert found.endswith("/one/bin/python")


def test_an_unknown_environment_is_an_error(live):
    outcome = live.call(VERSION, call=of("never"))
    assert outcome.error_type == "EnvironmentStartFailed"
    assert "not known" in outcome.error
    receipt = outcome.receipt
    assert (receipt.environment, receipt.attempts, receipt.pid) == ("never", 0, None)


def test_environments_beyond_the_limit_take_turns(make_live, interpreter):
    live = make_live(max_environments=1).ready()
    pythons = {name: interpreter(name) for name in ("one", "two", "three")}
    for name in ("one", "two", "three") * 3:
        # An environment that was evicted is forgotten.
        live.supervisor.environments.add(name, pythons[name])
        assert live.value(VERSION, call=of(name)) == name
        up = {z.environment for z in live.stats().zygotes if z.state == "ready"}
        assert len(up - {"base"}) <= 1


def test_an_idle_environment_is_retired_and_reported_once(make_live, interpreter):
    live = make_live(environment_idle_s=0.3).ready()
    gone: list[str] = []
    live.supervisor.environments.on_unused = gone.append
    python = interpreter("one")
    live.supervisor.environments.add("one", python)
    assert live.value(VERSION, call=of("one")) == "one"
    pids = [z.pid for z in live.stats().zygotes if z.environment == "one"]
    live.until(lambda: gone)
    assert gone == ["one"]
    assert not any(alive(pid) for pid in pids if pid)
    live.supervisor.environments.add("one", python)
    assert live.value(VERSION, call=of("one")) == "one"


def test_an_environment_without_any_call_is_reported_unused(live, interpreter):
    gone: list[str] = []
    live.supervisor.environments.on_unused = gone.append
    live.supervisor.environments.add("one", interpreter("one"))
    live.until(lambda: gone == ["one"])


def test_a_running_call_keeps_its_environment(make_live, interpreter):
    live = make_live(environment_idle_s=0.1).ready()
    gone: list[str] = []
    live.supervisor.environments.on_unused = gone.append
    live.supervisor.environments.add("one", interpreter("one"))
    code = "def f():\n    import time; print('here', flush=True); time.sleep(2.5); return 7"
    call = live.start(code, call=of("one"))
    call.wait_for_output(b"here")
    live.supervisor.environments.retire_idle("one")
    assert call.wait().ok
    assert gone == []
    live.until(lambda: gone == ["one"])


def test_imports_of_calls_are_reported_and_preloaded_next_time(live, interpreter):
    learned: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = []
    live.supervisor.environments.on_learned = lambda *told: learned.append(told)
    named = {"imports": frozenset(("thing", "json"))}
    python = interpreter("one")
    live.supervisor.environments.add("one", python)
    assert live.value(VERSION, call={**of("one"), **named}) == "one"
    live.until(lambda: learned)
    assert learned == [("one", ("thing",), ("thing",))]

    live.supervisor.environments.add("again", python, *learned[0][1:])
    outcome = live.call(VERSION, call={**of("again"), **named})
    assert outcome.ok, outcome.error
    assert outcome.receipt.preloaded
    other = live.call(VERSION, call={**of("again"), "function_key": "other"})
    assert not other.receipt.preloaded, "nobody knows what it imports"


@pytest.mark.parametrize(
    "text",
    [
        "import os; os._exit(3)",
        "import threading as t; t.Thread(target=t.Event().wait, daemon=True).start()",
    ],
)
def test_a_preload_that_fails_this_time_fails_no_call(live, interpreter, text):
    live.supervisor.environments.add("one", interpreter("one", text), ["thing"], ["thing"])
    named = {"imports": frozenset(("thing",))}
    assert live.value("def f(): return 5", call={**of("one"), **named}) == 5


def test_a_wait_for_the_interpreter_counts_as_start_time(live, interpreter):
    slow = interpreter("one", at_start="import time; time.sleep(1)")
    live.supervisor.environments.add("one", slow)
    first = live.call(VERSION, call=of("one")).receipt
    assert first.start_s >= 1
    assert first.total_s >= first.start_s + first.run_s


def test_any_number_of_modules_is_preloaded(live, interpreter):
    """A large library has thousands of modules, more than fit into one message."""
    many = "import sys, types\nversion = 'one'\n"
    many += "names = [f'thing.{i:04d}_{\"x\" * 60}' for i in range(3000)]\n"
    many += "sys.modules.update({name: types.ModuleType(name) for name in names})\n"
    names = ["thing", *(f"thing.{i:04d}_{'x' * 60}" for i in range(3000))]
    live.supervisor.environments.add("one", interpreter("one", many), names, ["thing"])
    outcome = live.call(VERSION, call={**of("one"), "imports": frozenset(("thing",))})
    assert outcome.ok, outcome.error
    assert outcome.receipt.preloaded
    (zygote,) = (one for one in live.stats().zygotes if one.environment == "one" and one.profile)
    assert zygote.preloaded == len(names)
    assert not zygote.skipped
