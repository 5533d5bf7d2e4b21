"""Calls a function of any kind, and awaits or iterates its result.

    function(*args) -> value                           the result
                    -> generator                       items, one by one
                    -> awaitable -> value              the result
                                 -> generator          items
                    -> async generator                 items

Items are passed to ``on_item`` as they come, or collected to a list without it. ``on_item`` may
have a coroutine function ``room``: code on a loop awaits it before each item, instead of blocking
the loop's other tasks until the reader continues. `asyncio` is imported when the first awaitable
appears: most calls never pay for it.
"""

from __future__ import annotations

# Bound here, so that replaced builtins do not change how a result is classified.
from builtins import hasattr, list, type  # noqa: UP029

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable, Mapping
    from typing import Any, Final

    OnItem = Callable[[Any], None]


class _Streamed:
    """The type of `STREAMED`."""

    def __repr__(self) -> str:
        return "STREAMED"


#: Returned in place of a result whose items were all passed to ``on_item``.
STREAMED: Final = _Streamed()

#: Longest wait for tasks, async generators and executor threads that outlive the function, in
#: seconds; `asyncio.run` would wait forever. Then the process exits.
GRACE_S = 5.0

Generators = type(_ for _ in ())
#: Code flag of ``@types.coroutine`` generators, which are awaited and not iterated.
_ITERABLE_COROUTINE = 0x100


async def _no_items() -> AsyncGenerator[None, None]:
    yield


AsyncGenerators = type(_no_items())


def each(function: Any, calls: list[tuple[Any, ...]]) -> list[Any]:
    """Run one chunk of a map: many calls in one process."""
    return [run(function, args, {}, None) for args in calls]


def run(
    function: Callable[..., Any],
    args: Iterable[Any],
    kwargs: Mapping[str, Any],
    on_item: OnItem | None = None,
) -> Any:
    """Call a function; return its result, or `STREAMED`; raise whatever it raises."""
    value = function(*args, **kwargs)
    if needs_loop(value):
        return _run_loop(value, on_item)
    if type(value) is Generators:
        return _drain(value, on_item)
    return value


def needs_loop(value: object) -> bool:
    """Return whether the result of a function needs `complete`, which runs on a loop."""
    return _is_awaitable(value) or type(value) is AsyncGenerators


def _is_awaitable(value: object) -> bool:
    if type(value) is Generators:
        return bool(value.gi_code.co_flags & _ITERABLE_COROUTINE)  # type: ignore[attr-defined]
    return hasattr(type(value), "__await__")


def _drain(items: Generator[Any, None, None], on_item: OnItem | None) -> Any:
    if on_item is None:
        return list(items)
    try:
        for item in items:
            on_item(item)
    finally:
        items.close()
    return STREAMED


async def _drain_on_loop(items: Generator[Any, None, None], on_item: OnItem | None) -> Any:
    """Like `_drain`, but other tasks continue while the reader does not take items."""
    room = getattr(on_item, "room", None)
    if on_item is None or room is None:
        return _drain(items, on_item)
    try:
        for item in items:
            await room()
            on_item(item)
    finally:
        items.close()
    return STREAMED


async def _adrain(items: AsyncGenerator[Any, None], on_item: OnItem | None) -> Any:
    if on_item is None:
        return [item async for item in items]
    room = getattr(on_item, "room", None)
    try:
        async for item in items:
            if room is not None:
                await room()
            on_item(item)
    finally:
        await items.aclose()
    return STREAMED


async def complete(value: Any, on_item: OnItem | None) -> Any:
    """On the running loop, await or iterate a function's result."""
    if _is_awaitable(value):
        value = await value
    if type(value) is AsyncGenerators:
        return await _adrain(value, on_item)
    if type(value) is Generators:
        return await _drain_on_loop(value, on_item)
    return value


# -- The loop, as in asyncio.run, but with limited waits ----------------------------------


def _run_loop(value: Any, on_item: OnItem | None) -> Any:
    import asyncio

    loop = _loop_of(value) or asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        return _result(loop, complete(value, on_item))
    finally:
        close_loop(loop)


def _loop_of(value: Any) -> asyncio.AbstractEventLoop | None:
    """Return the loop on which a plain function created its future, if it can still run."""
    if not hasattr(value, "_asyncio_future_blocking"):
        return None
    loop: asyncio.AbstractEventLoop = value.get_loop()
    return None if loop.is_closed() or loop.is_running() else loop


def _result(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any]) -> Any:
    import asyncio

    task = loop.create_task(coroutine)
    try:
        # Waiting for the task, instead of running it, keeps asyncio's frames out of tracebacks.
        loop.run_until_complete(asyncio.wait({task}))
    except BaseException:
        # SystemExit and KeyboardInterrupt escape from the loop. If the task is done, it raised the
        # exception; if not, another task or a signal did.
        if not task.done():
            raise
    return task.result()


def close_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel the tasks that are left on the loop, wait for them up to `GRACE_S`, and close it."""
    import asyncio
    import time

    deadline = time.monotonic() + GRACE_S
    try:
        _cancel_tasks(loop, deadline)
        _settle(loop, [loop.create_task(loop.shutdown_asyncgens())], deadline)
        _join_executor(loop, deadline)
    finally:
        asyncio.set_event_loop(None)
        loop.close()


def _cancel_tasks(loop: asyncio.AbstractEventLoop, deadline: float) -> None:
    import asyncio

    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    _settle(loop, tasks, deadline)
    for task in tasks:
        if task.done() and not task.cancelled() and task.exception() is not None:
            loop.call_exception_handler(
                {
                    "message": "a task failed while it was cancelled at the end of the call",
                    "exception": task.exception(),
                    "task": task,
                }
            )


def _settle(loop: asyncio.AbstractEventLoop, tasks: Any, deadline: float) -> None:
    """Run the loop until the tasks are done, or the deadline."""
    import asyncio
    import time

    if tasks:
        left = max(0.0, deadline - time.monotonic())
        loop.run_until_complete(asyncio.wait(tasks, timeout=left))


def _join_executor(loop: asyncio.AbstractEventLoop, deadline: float) -> None:
    """Wait for threads of ``run_in_executor``.

    ``loop.shutdown_default_executor`` has a time limit only from Python 3.12 on.
    """
    import time

    executor = getattr(loop, "_default_executor", None)
    if executor is None:
        return
    executor.shutdown(wait=False)
    for thread in tuple(getattr(executor, "_threads", ())):
        thread.join(max(0.0, deadline - time.monotonic()))
