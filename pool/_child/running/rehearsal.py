"""Rehearsed calls, which a zygote runs before it forks, so that workers inherit warm caches."""

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


#: Bodies of minimal calls, the last one of each list typical: of a request; of Pool, a function
#: pickled by reference and, if the program sent one, a function pickled by value.
_REQUESTS = [b'{"function_name":"f","function_code":"def f(x): return x","args":["gAVLAS4="]}']
_PICKLED = [payload.pack_call(payload.pack(abs), payload.pack(((-1,), {})))[0]]


#: How often, at least, the interpreter must run code before it stops rewriting the code.
ROUNDS = 20


def take_example(body: bytes) -> None:
    """Add a call of a function that is pickled by value, for `rehearse`."""
    _PICKLED.append(body)


def rehearse(near: socket, work: Callable[[], None], rounds: int) -> None:
    """Run minimal calls, so that workers inherit objects and caches that a first call creates.

    ``work`` serves one call from a channel; ``near`` is the channel's other end.

    The interpreter rewrites new code in place, fills caches and creates objects when they are first
    needed. In a zygote that happens once; otherwise it would happen in every worker, on copied
    pages.
    The rehearsal more than halves a call's time on CPython 3.11.
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
    """In an idle spare: run a minimal call, so that the pages a call writes to are copied now.

    The call then takes a third of the time.
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
    freeze()  # objects left by the rehearsal belong to no call


def _rehearse_failure() -> None:
    for _ in range(2):
        try:
            raise ValueError("rehearsal")
        except ValueError as error:
            exception_pickling.capture(error)
