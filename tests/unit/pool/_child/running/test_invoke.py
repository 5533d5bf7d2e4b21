"""Functions of every kind, and what they leave running when they return."""

import time

import pytest

from flashpool.pool._child.running import invoke

GENERATOR = "def f(n):\n    for i in range(n): yield i\n"
ASYNC_GENERATOR = "async def f(n):\n    for i in range(n): yield i\n"


@pytest.mark.parametrize(
    "code",
    [
        "def f(n): return n",
        "async def f(n): return n",
        "async def g(n): return n\ndef f(n): return g(n)",
        "async def g(n): return n\nimport functools\nf = functools.partial(g)",
        "import asyncio\nasync def f(n):\n    await asyncio.sleep(0)\n    return n",
        "class C:\n    async def __call__(self, n): return n\nf = C()",
        "class A:\n    def __init__(self, n): self.n = n\n    def __await__(self):\n        return self.n\n        yield\ndef f(n): return A(n)",
        "import types\n@types.coroutine\ndef f(n):\n    yield\n    return n",
        "import asyncio\ndef f(n):\n    loop = asyncio.new_event_loop()\n    x = loop.create_future()\n    loop.call_soon(x.set_result, n)\n    return x",
        "import asyncio\ndef f(n):\n    async def g(): return n\n    return asyncio.run(g())",
        "f = lambda n: n",
    ],
)
def test_functions_of_all_kinds_return_their_value(worker, code):
    assert worker.value(code, 3) == 3


@pytest.mark.parametrize(
    "code",
    [
        GENERATOR,
        ASYNC_GENERATOR,
        GENERATOR.replace("f(", "g(") + "async def f(n): return g(n)",
        ASYNC_GENERATOR.replace("f(", "g(") + "async def f(n): return g(n)",
        ASYNC_GENERATOR.replace("f(", "g(") + "def f(n): return g(n)",
        "def f(n): return (i for i in range(n))",
        "import asyncio\nasync def f(n):\n    for i in range(n):\n        await asyncio.sleep(0)\n        yield i",
    ],
)
def test_generators_of_all_kinds_yield_their_items(worker, code):
    assert worker.value(code, 3) == [0, 1, 2]
    assert worker(code, 3, stream=True).items == [0, 1, 2]


def test_other_iterators_are_returned_as_values(worker):
    assert list(worker.value("def f(): return iter([1, 2])")) == [1, 2]


def test_asyncio_is_imported_for_awaitables_only(worker):
    assert "asyncio" not in worker(GENERATOR, 1).modules
    assert "asyncio" in worker("async def f(): pass").modules


@pytest.mark.parametrize(
    "name",
    [
        "ValueError",
        "StopIteration",
        "KeyboardInterrupt",
        "SystemExit",
        "GeneratorExit",
        "BaseException",
        "StopAsyncIteration",
    ],
)
@pytest.mark.parametrize(
    "form",
    [
        "def f(): {}",
        "async def f(): {}",
        "import asyncio\nasync def f():\n    await asyncio.sleep(0)\n    {}",
        "def f():\n    {}\n    yield",
        "async def f():\n    {}\n    yield",
    ],
)
def test_every_exception_is_reported(worker, name, form):
    answer = worker(form.format(f"raise {name}('boom')"))
    # Python itself replaces these two when they leave a coroutine or generator.
    changed = (
        ("StopIteration", "StopAsyncIteration")
        if "yield" in form and "async" in form
        else ("StopIteration",)
    )
    expected = "RuntimeError" if name in changed and ("async" in form or "yield" in form) else name
    assert answer.error_type == expected
    assert len(answer.details["traceback"]) == 1 or expected != name
    assert "asyncio" not in "".join(frame[0] for frame in answer.details["traceback"])
    assert answer.pickle


def test_cancelling_oneself_is_an_error(worker):
    assert (
        worker("import asyncio\nasync def f(): raise asyncio.CancelledError").error_type
        == "CancelledError"
    )
    assert (
        worker(
            "import asyncio\nasync def f():\n    asyncio.current_task().cancel()\n    await asyncio.sleep(9)"
        ).error_type
        == "CancelledError"
    )


def test_a_sibling_task_that_exits_ends_the_call(worker):
    code = "import asyncio\nasync def g(): raise SystemExit(4)\nasync def f():\n    t = asyncio.create_task(g())\n    await asyncio.sleep(9)"
    assert worker(code).error_type == "SystemExit"


def run_noted(source):
    """Run ``f(note)`` of a source here; return its result and its notes."""
    noted = []
    scope = {"note": noted.append}
    exec(source, scope)
    return invoke.run(scope["f"], [], {}), noted


def test_left_tasks_are_cancelled_and_generators_closed():
    source = """
import asyncio
async def left():
    try:
        await asyncio.sleep(99)
    finally:
        await asyncio.sleep(0)
        note("cancelled")
async def items():
    try:
        yield 1
        yield 2
    finally:
        await asyncio.sleep(0)
        note("closed")
async def f():
    global task, open_items
    task = asyncio.create_task(left())
    open_items = items()
    await asyncio.sleep(0)
    return await open_items.__anext__()
"""
    assert run_noted(source) == (1, ["cancelled", "closed"])


def test_threads_of_the_executor_may_finish():
    source = """
import asyncio, time
async def f():
    def write():
        time.sleep(0.05)
        note("written")
    asyncio.get_running_loop().run_in_executor(None, write)
    return 1
"""
    assert run_noted(source) == (1, ["written"])


def test_tasks_that_ignore_cancellation_get_the_grace_and_no_more(monkeypatch):
    monkeypatch.setattr(invoke, "GRACE_S", 0.2)
    source = """
import asyncio, logging
logging.getLogger("asyncio").disabled = True
async def stubborn():
    for _ in range(200):
        try: await asyncio.sleep(0.05)
        except asyncio.CancelledError: pass
async def f():
    global task
    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    return 1
"""
    began = time.monotonic()
    assert run_noted(source)[0] == 1
    assert time.monotonic() - began < 8, "it would go on for ten"


def test_generators_are_closed_when_their_reader_fails():
    closed = []

    def items():
        try:
            yield 1
            yield 2
        finally:
            closed.append("sync")

    async def aitems():
        try:
            yield 1
            yield 2
        finally:
            closed.append("async")

    def refuse(_item):
        raise BrokenPipeError

    for function in (items, aitems):
        with pytest.raises(BrokenPipeError):
            invoke.run(function, [], {}, refuse)
    assert closed == ["sync", "async"]


def test_items_are_sent_one_by_one():
    log = []

    def items():
        for i in range(2):
            log.append(f"made {i}")
            yield i

    assert invoke.run(items, [], {}, lambda i: log.append(f"took {i}")) is invoke.STREAMED
    assert log == ["made 0", "took 0", "made 1", "took 1"]


def test_wrong_arguments_show_no_frame_of_flashpool(worker):
    answer = worker("def f(a): pass")
    assert answer.error.startswith("TypeError: f() missing 1 required positional argument: 'a'\n")
    assert "invoke.py" not in answer.error
