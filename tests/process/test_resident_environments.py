"""Instances and their environments: idle instances do not block other environments."""

from collections.abc import Callable
from pathlib import Path

import pytest
from process.resident_calls import begin, instances, result, run, value

from flashpool.pool.calls import Provision
from support.interpreters import virtualenv
from support.live import Live, alive

Make = Callable[..., Live]


@pytest.fixture
def python(tmp_path: Path) -> str:
    return str(virtualenv(tmp_path / "venv"))


def of(name: str) -> Provision:
    return Provision(environment=name, origin="memo")


def up(live: Live) -> set[str]:
    return {one.environment for one in live.stats().zygotes if one.environment != "base"}


def test_idle_instances_are_evicted_for_another_environment(make_live: Make, python: str) -> None:
    live = make_live(max_environments=2, instances=8).ready()
    for name in ("one", "two"):
        live.supervisor.environments.add(name, python)
        for number in (1, 2):
            made = result(live, f"{name}-{number}", "inc", environment=of(name))
            assert made == 1
    live.supervisor.environments.add("three", python)
    assert result(live, "three", "inc", environment=of("three")) == 1
    live.until(lambda: up(live) == {"two", "three"})
    assert set(instances(live)) == {"two-1", "two-2", "three"}
    live.supervisor.environments.add("one", python)
    back = run(live, "one-1", "inc", environment=of("one"))
    assert value(back) == 1
    assert back.instance is not None
    assert "FLASHPOOL_MAX_ENVIRONMENTS" in (back.instance.rebuilt_because or "")


def test_a_busy_instance_keeps_its_environment_until_it_is_idle(
    make_live: Make, python: str
) -> None:
    live = make_live(max_environments=1).ready()
    for name in ("one", "two"):
        live.supervisor.environments.add(name, python)
        if name == "one":
            busy = begin(live, "busy", "sleep", 1.5, environment=of("one"))
            live.until(lambda: instances(live).get("busy") and instances(live)["busy"].running)
    waits = begin(live, "other", "inc", environment=of("two"))
    function = live.start("def f(): return 7", call={"provision": of("two")})
    assert value(busy.wait()) == 0
    assert value(waits.wait()) == 1
    assert function.wait().ok
    assert set(instances(live)) == {"other"}


def test_idle_instances_are_closed_when_the_store_needs_the_disk(
    make_live: Make, python: str
) -> None:
    live = make_live().ready()
    gone: list[str] = []
    live.supervisor.environments.on_unused = gone.append
    live.supervisor.environments.add("one", python)
    pid = result(live, "a", "pid", environment=of("one"))
    assert live.supervisor.environments.retire_idle("one") is True
    live.until(lambda: gone == ["one"])
    assert not alive(pid)
    assert instances(live) == {}


def test_a_busy_instance_is_closed_only_when_it_is_idle(make_live: Make, python: str) -> None:
    live = make_live().ready()
    gone: list[str] = []
    live.supervisor.environments.on_unused = gone.append
    live.supervisor.environments.add("one", python)
    result(live, "idle", "inc", environment=of("one"))
    busy = begin(live, "busy", "sleep", 0.7, environment=of("one"))
    live.until(lambda: instances(live).get("busy") and instances(live)["busy"].running)
    assert live.supervisor.environments.retire_idle("one") is False
    assert value(busy.wait()) == 0
    assert set(instances(live)) == {"idle", "busy"}, "nothing would have come of it"
    assert gone == []
    assert live.supervisor.environments.retire_idle("one") is True
    live.until(lambda: gone == ["one"])


def test_an_environment_that_does_not_start_is_an_error(live: Live, tmp_path: Path) -> None:
    live.supervisor.environments.add("none", str(tmp_path / "no" / "python"))
    calls = [begin(live, "a", "inc", environment=of("none")) for _ in range(2)]
    for call in calls:
        outcome = call.wait()
        assert outcome.error_type == "EnvironmentStartFailed", outcome
        assert (outcome.receipt.environment, outcome.receipt.attempts) == ("none", 0)
    assert instances(live) == {}
    assert live.stats().queue.depth == 0
