"""A call's surroundings: its modules as files, its loop, its commands."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from process.resident_calls import begin, result, run, thing

from support.live import Live

HELPER = {"helper.py": "import os\nHERE = os.path.dirname(__file__)\n"}


def shipping(code: str, modules: dict[str, str] = HELPER, **options: Any) -> dict[str, Any]:
    """Return a request's body, for `Live.start`."""
    request = {"function_name": "f", "function_code": code, "serialization_format": "json"}
    return {"body": json.dumps({**request, "modules": modules}).encode(), **options}


def test_module_files_are_removed_however_their_call_finishes(live: Live) -> None:
    ways = {
        "return": "return helper.HERE",
        "exit": "print(helper.HERE, flush=True)\n    os._exit(3)",
        "crash": "print(helper.HERE, flush=True)\n    os.kill(os.getpid(), 9)",
    }
    for way, end in ways.items():
        code = f"import helper, os\ndef f():\n    assert os.path.isdir(helper.HERE)\n    {end}\n"
        outcome = live.start(code, call=shipping(code)).wait()
        told = json.loads(outcome.body) if outcome.ok else outcome.output.decode().split()[0]
        live.until(lambda told=told: not os.path.exists(os.path.dirname(told)))
        assert (way == "return") == outcome.ok
        assert "warning" not in outcome.output.decode().lower()


def test_module_files_are_removed_when_the_zygote_is_killed(make_live: Any) -> None:
    live = make_live(slots=1).ready()
    code = "import helper, time\ndef f():\n    print(helper.HERE, flush=True)\n    time.sleep(60)\n"
    started = live.start(code, call=shipping(code))
    folder = Path(started.wait_for_output(b"/modules").decode().strip())
    assert folder.is_dir()
    os.kill(live.zygote().pid, signal.SIGKILL)
    assert started.wait().error_type == "WorkerCrashed"
    live.until(lambda: not folder.parents[1].exists())


def test_shipped_modules_do_not_count_as_changes_of_surroundings(make_live: Any) -> None:
    live = make_live(slots=1).ready()
    code = "import helper, json.tool\ndef f():\n    return 1\n"
    outcomes = [live.start(code, call=shipping(code)).wait() for _ in range(3)]
    assert {one.body for one in outcomes} == {b"1"}
    assert {one.output for one in outcomes} == {b""}


LOOPS = """
def __init__(self):
    import asyncio
    self.n = 0
    self.loop = asyncio.get_running_loop()
    self.task = asyncio.create_task(self.count())
async def count(self):
    import asyncio
    while True:
        self.n += 1
        await asyncio.sleep(0.01)
async def same(self):
    import asyncio
    await asyncio.sleep(0.05)
    return self.loop is asyncio.get_running_loop() and self.n > 1
async def many(self):
    import asyncio
    yield self.loop is asyncio.get_running_loop()
def plain(self):
    import asyncio
    async def nothing(): return "ran"
    return asyncio.run(nothing())
"""


@pytest.mark.parametrize("concurrency", [1, 32])
def test_an_instance_with_async_methods_is_created_on_their_loop(
    live: Live, concurrency: int
) -> None:
    code, want = thing(LOOPS), {"concurrency": concurrency}
    assert result(live, "a", "same", code=code, want=want) is True
    assert result(live, "a", "plain", code=code, want=want) == "ran"
    assert result(live, "a", "same", code=code, want=want) is True


def test_an_instance_with_plain_methods_only_is_created_without_a_loop(live: Live) -> None:
    code = "class Thing:\n def __init__(self):\n  import asyncio, sys\n  self.n = asyncio.run(self.get(self))\n"
    code += " get = staticmethod(lambda self: __import__('asyncio').sleep(0, 5))\n def inc(self): return self.n\n"
    assert result(live, "a", "inc", code=code) == 5


@pytest.mark.parametrize(("method", "value"), [("same", True), ("many", [True]), ("plain", "ran")])
def test_an_instance_for_one_call_is_created_on_its_methods_loop(
    live: Live, method: str, value: object
) -> None:
    request = {
        "execution_type": "class",
        "class_name": "Thing",
        "class_code": thing(LOOPS),
        "method_name": method,
        "serialization_format": "json",
    }
    outcome = live.start("", call={"body": json.dumps(request).encode()}).wait()
    assert outcome.ok, outcome.error
    assert json.loads(outcome.body) == value


def test_an_error_of_a_constructor_on_a_loop_shows_the_users_lines(live: Live) -> None:
    code = "class Thing:\n    def __init__(self):\n        raise ValueError('no')\n    async def inc(self): pass\n"
    outcome = run(live, "a", "inc", code=code)
    assert outcome.error is not None
    assert outcome.error.startswith("ValueError: no")
    assert "asyncio" not in outcome.error
    assert "flashpool" not in outcome.error


def test_output_of_a_constructor_on_a_loop_belongs_to_the_call(live: Live) -> None:
    code = "class Thing:\n    def __init__(self):\n        print('made')\n    async def inc(self): return 1\n"
    started = begin(live, "a", "inc", code=code)
    assert started.wait().ok
    assert b"made" in b"".join(started.sink.chunks)
