"""Rehearsed calls: a zygote makes them before it forks, so workers inherit warm caches."""

from __future__ import annotations

import sys
from builtins import len
from gc import freeze
from time import monotonic

from .. import framing, processes, wire
from ..serialization import exception_pickling, payload, user_code
from ..serialization.live_module import NAME
from . import worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Callable


#: Bodies of minimal calls, the last one typical: a request's; functions of Pool, one pickled by
#: reference, and one by value if the program sent one along.
_REQUESTS = [b'{"function_name":"f","function_code":"def f(x): return x","args":["gAVLAS4="]}']
_PICKLED = [payload.pack_call(payload.pack(abs), payload.pack(((-1,), {})))[0]]


#: How often the interpreter must run code, at least, before it stops rewriting it.
ROUNDS = 20


def take_example(body: bytes) -> None:
    """A call of a function that travels by value, to `rehearse`."""
    _PICKLED.append(body)


def rehearse(near: socket, work: Callable[[], None], rounds: int) -> None:
    """Make calls to nothing, so that workers inherit what a first call builds.

    ``near`` is the other end of the channel that ``work`` serves one call of.

    The interpreter rewrites code in place while it is new, fills caches and creates objects late.
    In a zygote that happens once; in workers every call would copy each page of it. The rehearsal
    more than halves a call's time on CPython 3.11.
    """
    before = sys.modules[NAME]
    worker.rehearsing = True
    calls = [(False, one) for one in _REQUESTS] + [(True, one) for one in _PICKLED]
    for pickled, body in calls:
        meta = wire.pack_call_meta(pickled=pickled, stream=False, result_limit=1 << 20, env={})
        call = wire.head(wire.CALL, meta, len(body), 0) + body
        for _ in range(rounds):
            near.send(call)
            work()
            framing.receive(near)
    worker.rehearsing = False
    _rehearse_failure()
    user_code.forget()
    sys.modules[NAME] = before


def limber_up(pickled: bool) -> None:
    """In a spare with time on its hands: copy the pages now that its call will write to.

    The call then finds them copied, and takes a third of the time.
    """
    before = sys.modules[NAME]
    meta = wire.pack_call_meta(pickled=pickled, stream=False, result_limit=None, env={})
    call = wire.Frame(wire.CALL, meta, (_PICKLED if pickled else _REQUESTS)[-1], [])
    form, body, _, _ = worker.run(None, call, pickled, False, None)  # type: ignore[arg-type]
    rss_kb = processes.peak_rss_kb()
    end = wire.ResultMeta(ok=True, form=form, run_s=monotonic(), rss_kb=rss_kb, more={})
    wire.head(wire.RESULT, end.pack(), len(body), 0)
    user_code.forget()
    sys.modules[NAME] = before
    freeze()  # what is left of it is no call's


def _rehearse_failure() -> None:
    for _ in range(2):
        try:
            raise ValueError("rehearsal")
        except ValueError as error:
            exception_pickling.capture(error)
