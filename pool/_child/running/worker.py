"""A worker's single call: wait for CALL -> decode -> user code -> RESULT.

Lean on purpose. A worker copies each memory page when it first writes to it, which is most of the
cost of a small call. So all imports are at the top, and happen once, in the zygote; calls go
straight to C functions if possible; and functions are few and long.
"""

from __future__ import annotations

import os
import sys

# Bound here: user code may have replaced or deleted them when the outcome is reported.
from builtins import BaseException, OSError, len, list  # noqa: UP029
from os import _exit, getpid
from time import monotonic

from .. import processes, wire
from ..channel import Channel
from ..renewal import prepared
from ..serialization import flash, payload
from . import exit_needs, invoke, process_exit, soft_timeout
from .item_stream import ChannelCredit, ItemSender
from .outcome import answer_damaged, changes, encoded, failed, flush_output, installed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctypes import Array, c_ubyte

    from ..renewal import randomness
    from ..renewal.surroundings import Surroundings
    from .outcome import Outcome

#: See `prepared`; also here, because a worker pays for each object that it accesses. None if there
#: is nothing to renew; None if nothing was preloaded, so that a call's changes do not matter.
_held: randomness.Held | None = None
_surroundings: Surroundings | None = None
#: Whether this is the zygote, which must not exit like a worker.
rehearsing = False


def look_around() -> None:
    """Record, once the process is prepared, what workers must renew, and their surroundings."""
    global _held, _surroundings
    _held = _surroundings = None
    exit_needs.look_around()
    if (held := prepared.held) is not None:
        _held = held if held.has_more else None
        _surroundings = prepared.surroundings = prepared.surroundings.again()


def serve(channel: Channel, marks: Array[c_ubyte], mark: int) -> wire.Frame | None:
    """Run the worker's call; send exactly one RESULT, from the process that got the call.

    If a LOAD, LOAD_APP or LOAD_JOBS frame arrives instead of a call, return it: the process then
    becomes a `resident`, or a worker of an app or of jobs.

    Byte ``mark`` of ``marks`` becomes 1 before user code may run.
    """
    call = channel.receive()
    pickled, stream, result_limit, seed, soft_s, env = wire.unpack_call_meta(call.meta)
    if seed is not None or _held is not None:
        # Preloaded code may run here, and is to blame for a failure: user code has not begun.
        renew(seed)
    marks[mark] = 1
    if call.kind in (wire.LOAD, wire.LOAD_APP, wire.LOAD_JOBS):
        return call
    pid = getpid()
    known = len(sys.modules)
    start = monotonic()
    outcome = _enter(env) if env else None
    if outcome is None:
        if soft_s is None:
            outcome = run(channel, call, pickled, stream, result_limit)
        else:
            outcome = soft_timeout.limited(
                soft_s, run, channel, call, pickled, stream, result_limit
            )
    run_s = monotonic() - start
    if getpid() != pid:
        # User code forked, and this is the child: only the original process may answer.
        _exit(0)
    exiting = exit_needs.any_left(known, exit_needs.FEW[pickled])
    try:
        _answer(channel, outcome, run_s, known, env, exiting)
    except OSError:
        raise
    except BaseException as error:
        answer_damaged(channel, outcome, run_s, error)
        return None
    if exiting and not rehearsing:
        process_exit.run(known, process_exit.tell_over(channel.send))
    return None


def renew(seed: int | None) -> None:
    """Renew random numbers, from entropy or from the call's seed."""
    if seed is not None:
        from ..renewal import seeding

        seeding.begin(seed)
    if _held is not None:
        _held.renew(seed)


def set_variables(env: dict[str, str]) -> None:
    """Set environment variables, with the effects that they have on a new process."""
    if workdir := env.pop(wire.WORKDIR, None):
        os.chdir(workdir)
    os.environ.update(env)
    if "TMPDIR" in env and (tempfile := sys.modules.get("tempfile")) is not None:
        tempfile.__dict__["tempdir"] = None  # an import may have caused it to be cached
    if "TZ" in env:
        import time

        time.tzset()


def _enter(env: dict[str, str]) -> Outcome | None:
    """Set the call's variables; return the problem if they cannot be set."""
    try:
        set_variables(env)
    except (ValueError, OSError) as error:
        why = f"env: a variable cannot be set: {error}"
        return "pickle", b"", [], {"error_type": "InvalidRequest", "error": why}
    return None


def run(
    channel: Channel, call: wire.Frame, pickled: bool, stream: bool, result_limit: int | None
) -> Outcome:
    """Run the call; return its outcome, whatever happened."""
    try:
        if pickled:
            function, args, kwargs = payload.load_call(call.body, call.fds, invoke.each)
        else:
            request = flash.load_call(call.body)
            function, args, kwargs = request.function, request.args, request.kwargs
        on_item = None
        if stream:
            on_item = ItemSender(
                lambda body, fds: channel.send(wire.ITEM, b"", body, fds),
                payload.dump_result if pickled else request.dump_item,
                ChannelCredit(channel),
            )
        value = invoke.run(function, args, kwargs, on_item)
        return encoded(value, None if pickled else request, result_limit, last=True)
    except BaseException as error:  # even SystemExit is a result
        return failed(error)


def _answer(
    channel: Channel,
    outcome: Outcome,
    run_s: float,
    known: int,
    env: dict[str, str] | None,
    exiting: bool,
) -> None:
    form, body, fds, failure = outcome
    more = {**failure}
    if exiting:
        more["exiting"] = True
    if len(sys.modules) > known:
        more["modules"] = installed(list(sys.modules)[known:])
        more.update(changes(env, imported=True))
    elif _surroundings is not None and not _surroundings.are_as_they_were():
        more.update(changes(None, imported=False))
    rss_kb = processes.peak_rss_kb()
    flush_output()
    meta = wire.ResultMeta(ok=not failure, form=form, run_s=run_s, rss_kb=rss_kb, more=more)
    channel.send(wire.RESULT, meta.pack(), body, fds)
