"""A worker's one call: wait for CALL -> decode -> user code -> RESULT.

Lean on purpose. A worker copies each page of memory that it is the first to touch, and
that is most of what a small call costs: so everything is imported at the top, once in the
zygote; calls go straight to C where they can; and functions are few and long.
"""

from __future__ import annotations

import builtins
import os
import sys

# Bound here: user code may have changed or deleted them when its end is reported.
from builtins import BaseException, OSError, getattr, isinstance, len, list, type  # noqa: UP029
from os import _exit, getpid
from time import monotonic

from . import exceptions, flash, framing, invoke, payload, preparation, processes, user_code, wire
from .channel import Channel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Callable
    from ctypes import Array, c_ubyte
    from typing import Any

    from . import randomness
    from .surroundings import Surroundings

    #: Form of the result, its bytes, its descriptors; or what went wrong in its place.
    Outcome = tuple[str, bytes, list[int], dict[str, Any]]

#: `preparation`'s: here, too, because a worker pays for each object it looks at. None where there
#: is nothing to renew; and where nothing was preloaded that a call's changes would matter to.
_held: randomness.Held | None = None
_surroundings: Surroundings | None = None


def look_around() -> None:
    """The process is prepared: see what workers have to renew, and what they find."""
    global _held, _surroundings
    _held = _surroundings = None
    if (held := preparation.held) is not None:
        _held = held if held.has_more else None
        _surroundings = preparation.surroundings = preparation.surroundings.again()


#: What everything in this process finds its builtins in, and what they were at first.
_BUILTINS = builtins.__dict__
_OWN_BUILTINS = _BUILTINS.copy()


def serve(channel: Channel, marks: Array[c_ubyte], mark: int) -> None:
    """Run the one call; send exactly one RESULT, from the process that got the call.

    A spare that is told to load an instance becomes a `resident`, and returns when that ends.

    Byte ``mark`` of ``marks`` becomes 1 when user code may run from there on.
    """
    call = channel.receive()
    pickled, stream, result_limit, seed, env = wire.unpack_call_meta(call.meta)
    if seed is not None or _held is not None:
        # What was preloaded may have a say in this, and is to blame then: nothing of the call ran.
        renew(seed)
    marks[mark] = 1
    if call.kind == wire.LOAD:
        from . import resident

        resident.live(channel, call)
        return
    pid = getpid()
    known = len(sys.modules)
    start = monotonic()
    outcome = _enter(env) if env else None
    if outcome is None:
        outcome = _run(channel, call, pickled, stream, result_limit)
    run_s = monotonic() - start
    if getpid() != pid:
        # User code forked and its child came back here too: only one may answer.
        _exit(0)
    try:
        _answer(channel, outcome, run_s, known, env)
    except OSError:
        raise
    except BaseException as error:
        answer_damaged(channel, outcome, run_s, error)


def renew(seed: int | None) -> None:
    """Have random numbers of one's own, or those of the call's seed; other calls have theirs."""
    if seed is not None:
        from . import seeding

        seeding.begin(seed)
    if _held is not None:
        _held.renew(seed)


def set_variables(env: dict[str, str]) -> None:
    """Have them as a process that is started with them."""
    os.environ.update(env)
    if "TZ" in env:
        import time

        time.tzset()


def _enter(env: dict[str, str]) -> Outcome | None:
    """Set the call's variables; what is wrong with them, if they cannot be."""
    try:
        set_variables(env)
    except (ValueError, OSError) as error:
        why = f"env: a variable cannot be set: {error}"
        return "pickle", b"", [], {"error_type": "InvalidRequest", "error": why}
    return None


def _run(
    channel: Channel, call: wire.Frame, pickled: bool, stream: bool, result_limit: int | None
) -> Outcome:
    """The call's end, whatever happened."""
    try:
        if pickled:
            function, args, kwargs = payload.load_call(call.body, call.fds)
        else:
            request = flash.load_call(call.body)
            function, args, kwargs = request.function, request.args, request.kwargs
        on_item = None
        if stream:
            on_item = _ItemSender(channel, payload.dump_result if pickled else request.dump_item)
        value = invoke.run(function, args, kwargs, on_item)
        return encoded(value, None if pickled else request, result_limit, last=True)
    except BaseException as error:  # SystemExit and its like are results
        return failed(error)


def encoded(
    value: Any, request: flash.Invocation | None, result_limit: int | None, *, last: bool
) -> Outcome:
    """The end of a call that returned; ``request`` is None where it came pickled.

    ``last``: this process ends now, and with it whatever else has a hold on the value.
    """
    if value is invoke.STREAMED:
        if request is None or request.items is None:
            return "stream", b"", [], {}
        value = request.items
    if request is None:
        return "pickle", *_dump(payload.dump_result, value, last), {}
    body = _dump(flash.dump_result, value, request.as_json)
    if result_limit is not None and len(body) > result_limit:
        return "pickle", b"", [], _too_large(len(body), result_limit)
    return "json" if request.as_json else "pickle", body, [], {}


def failed(error: BaseException) -> Outcome:
    """The end of a call that raised, or that could not be begun or answered."""
    _BUILTINS.update(_OWN_BUILTINS)
    if isinstance(error, wire.BadRequest):
        return "pickle", b"", [], {"error_type": "InvalidRequest", "error": str(error)}
    if isinstance(error, exceptions.Unserializable):
        return "pickle", b"", [], {"error_type": "ResultNotSerializable", "error": str(error)}
    return "pickle", *_capture(error)


def _dump(dump: Callable[[Any, bool], Any], value: Any, how: bool) -> Any:
    """Dump a result; once more with Python's own builtins where user code changed them."""
    try:
        return dump(value, how)
    except BaseException:
        if _BUILTINS == _OWN_BUILTINS:
            raise
        _BUILTINS.update(_OWN_BUILTINS)
        return dump(value, how)


def _capture(error: BaseException) -> tuple[bytes, list[int], dict[str, Any]]:
    """What user code raised; or, where it left nothing to tell that with, what is amiss."""
    try:
        record, body = exceptions.capture(error)
    except BaseException as problem:
        return b"", [], _damaged(problem, error)
    return body, [], {"user": True, **record}


def _damaged(problem: BaseException, raised: BaseException | None = None) -> dict[str, Any]:
    """A failure in words: this worker cannot do its part any more."""
    what = exceptions.summary(problem)
    error = (
        "the worker could not report how the call ended, because the call damaged its "
        f"interpreter (builtins, modules or hooks that Python itself needs): {what}"
    )
    if raised is not None:
        error += f". The call had raised {exceptions.summary(raised)}"
    return {"error_type": "WorkerCrashed", "error": error, "details": {"internal": what}}


def answer_damaged(
    channel: Channel,
    outcome: Outcome,
    run_s: float,
    error: BaseException,
    kind: int = wire.RESULT,
    number: bytes = b"",
) -> None:
    """Answer although that failed, with as little of Python as can be."""
    _BUILTINS.update(_OWN_BUILTINS)
    form, body, fds, failure = outcome
    try:
        try:
            meta = wire.ResultMeta(ok=not failure, form=form, run_s=run_s, rss_kb=0, more=failure)
            channel.send(kind, number + meta.pack(), body, fds)
        except OSError:
            raise
        except BaseException as again:
            more = _damaged(again)
            meta = wire.ResultMeta(ok=False, form="pickle", run_s=run_s, rss_kb=0, more=more)
            channel.send(kind, number + meta.pack(), b"", [])
    except OSError:
        raise
    except BaseException:
        raise wire.Damaged(exceptions.summary(error)) from None


def _answer(
    channel: Channel, outcome: Outcome, run_s: float, known: int, env: dict[str, str] | None
) -> None:
    form, body, fds, failure = outcome
    more = {**failure}
    if len(sys.modules) > known:
        more["modules"] = installed(list(sys.modules)[known:])
        more.update(changes(env, imported=True))
    elif _surroundings is not None and not _surroundings.are_as_they_were():
        more.update(changes(None, imported=False))
    rss_kb = processes.peak_rss_kb()
    flush_output()
    meta = wire.ResultMeta(ok=not failure, form=form, run_s=run_s, rss_kb=rss_kb, more=more)
    channel.send(wire.RESULT, meta.pack(), body, fds)


def changes(env: dict[str, str] | None, *, imported: bool) -> dict[str, list[str]]:
    """What the call changed of what imports read; and its variables that libraries may read."""
    found: dict[str, list[str]] = {}
    try:
        there, varying = preparation.surroundings, preparation.varying
        changed = there.changed()
        if not (changed or imported):
            return found
        if changed := [what for what in changed if what[4:] not in varying]:
            found["changed"] = changed
        names = {*(env or ()), *(what[4:] for what in changed if what.startswith("env:"))}
        own = [name for name in names - varying if "*" not in name]
        if imported and own and (native := there.known_to_libraries(own)):
            found["native"] = native
    except BaseException:
        # User code broke what this needs: nothing of its process is as it was.
        found["changed"] = ["env:*", "path"]
    return found


def flush_output() -> None:
    """What was printed goes out before the result does."""
    for stream in ("stdout", "stderr"):
        try:
            getattr(sys, stream).flush()
        except BaseException:  # replaced, closed or broken by user code
            pass
    processes.flush_c_streams()


def _too_large(size: int, limit: int) -> dict[str, Any]:
    return {
        "error_type": "ResultTooLarge",
        "error": f"the result is {size} bytes encoded and the answer may hold {limit}. "
        "Return less, or write it to a file or object store and return where it is.",
        "details": {"size": size, "limit": limit},
    }


def installed(names: list[str]) -> list[str]:
    """Those of the modules that any process of this environment could import as well."""
    found = []
    for name in names:
        loader = getattr(getattr(sys.modules.get(name), "__spec__", None), "loader", None)
        kind = loader if isinstance(loader, type) else type(loader)
        if kind.__module__ in {"_frozen_importlib", "_frozen_importlib_external"}:
            found.append(name)
    return found


class _ItemSender:
    """Sends a generator's items, at most a window ahead of whoever takes them."""

    def __init__(self, channel: Channel, dump: Callable[[Any], tuple[bytes, list[int]]]) -> None:
        self.channel = channel
        self.dump = dump
        self.left = wire.WINDOW

    def __call__(self, item: Any) -> None:
        """Send one item; blocks while the window is used up."""
        while self.left == 0:
            self._take_credit()
        self.left -= 1
        body, fds = self.dump(item)
        self.channel.send(wire.ITEM, b"", body, fds)

    async def room(self) -> None:
        """Until the window is open, without blocking the loop."""
        while self.left == 0:
            if not self.channel.frames:
                await readable(self.channel.fd)
            self._take_credit()

    def _take_credit(self) -> None:
        self.left += wire.CREDIT_META.unpack(self.channel.receive().meta)[0]


async def readable(fd: int) -> None:
    """Until there is something to read."""
    import asyncio

    loop = asyncio.get_running_loop()
    found = loop.create_future()

    def settle() -> None:
        if not found.done():
            found.set_result(None)

    loop.add_reader(fd, settle)
    try:
        await found
    finally:
        loop.remove_reader(fd)


# -- Warming up --------------------------------------------------------------------------


#: Bodies of calls to next to nothing, the last one as they mostly are: a request's; of Pool's
#: functions one that travels by reference, and one by value, if the program sent one along.
_REQUESTS = [b'{"function_name":"f","function_code":"def f(x): return x","args":["gAVLAS4="]}']
_PICKLED = [payload.pack_call(payload.pack(abs), payload.pack(((-1,), {})))[0]]

#: So often does the interpreter want to see code, at least, before it leaves it as it is.
ROUNDS = 20


def take_example(body: bytes) -> None:
    """A call of a function that travels by value, to `rehearse`."""
    _PICKLED.append(body)


def rehearse(near: socket, work: Callable[[], None], rounds: int) -> None:
    """Make calls to nothing, so that workers inherit what a first call builds.

    ``near`` is the other end of the channel that ``work`` serves one call of.

    The interpreter rewrites code in place while it is new, fills caches and creates what
    it creates late. In a zygote that happens once; in workers each page of it would be
    copied by every call. More than halves a call's time on CPython 3.11.
    """
    main = sys.modules["__main__"]
    calls = [(False, one) for one in _REQUESTS] + [(True, one) for one in _PICKLED]
    for pickled, body in calls:
        meta = wire.pack_call_meta(pickled=pickled, stream=False, result_limit=1 << 20, env={})
        call = wire.head(wire.CALL, meta, len(body), 0) + body
        for _ in range(rounds):
            near.send(call)
            work()
            framing.receive(near)
    _rehearse_failure()
    user_code.forget()
    sys.modules["__main__"] = main


def limber_up(pickled: bool) -> None:
    """In a spare with time on its hands: copy the pages now that its call will write to.

    The call then finds them copied, and takes a third of the time.
    """
    main = sys.modules["__main__"]
    meta = wire.pack_call_meta(pickled=pickled, stream=False, result_limit=None, env={})
    call = wire.Frame(wire.CALL, meta, (_PICKLED if pickled else _REQUESTS)[-1], [])
    form, body, _, _ = _run(None, call, pickled, False, None)  # type: ignore[arg-type]
    rss_kb = processes.peak_rss_kb()
    end = wire.ResultMeta(ok=True, form=form, run_s=monotonic(), rss_kb=rss_kb, more={})
    wire.head(wire.RESULT, end.pack(), len(body), 0)
    user_code.forget()
    sys.modules["__main__"] = main


def _rehearse_failure() -> None:
    for _ in range(2):
        try:
            raise ValueError("rehearsal")
        except ValueError as error:
            exceptions.capture(error)
