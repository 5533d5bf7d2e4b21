"""All messages that cross a process boundary.

Two kinds of Unix socket, both created before the receiving process:

*Control* (supervisor <-> zygote, ``SOCK_SEQPACKET``): one message per packet, a JSON object whose
``op`` is one of the names below; only `Exited`, which every call causes, is a struct.

    supervisor -> zygote                       zygote -> supervisor
      PRELOAD  modules (a part of them)          LOADING  module          (being imported)
      START  how to prepare, see `zygote`        SKIPPED  modules, why    (not preloaded)
                                                 PRELOADED  reads         (what imports read)
      FORK   n, practise                         READY    pid, modules, python, preloaded
      STOP   worker, grace, dump                 UNSAFE   module, why     (must not fork)
                                                 SHORT    what            (resource that is short)
      DROP   worker: unless user code began      SPARES   workers, ready  + 2 or 3 descriptors each
      SOFT   worker: its soft limit has passed   DROPPING  worker         (user code had not begun)
      STACK  worker: see `stack_dumps`
      COMPILE  name, source (JSON text)          NOT_FORKED  n, why
      PING                                       PONG
      LEAVE                                      Exited   a worker is dead
                                                 GONE     worker          (its orphans, too)

*Channel* (supervisor <-> worker, ``SOCK_STREAM``): frames. A frame is `HEADER`, ``meta`` (a struct,
followed by JSON if needed), and ``body``, opaque bytes; descriptors are sent with its first byte.

    CALL    supervisor -> worker   `pack_call_meta` | the request's bytes
    CREDIT  supervisor -> worker   `CREDIT_META`: how many more items may be sent
    WORKER_READY  worker -> supervisor   a spawned spare can take its call
    ITEM    worker -> supervisor                 | one item
    RESULT  worker -> supervisor   `ResultMeta`  | result, or pickled exception
    EXIT    worker -> supervisor   `pack_exit`: progress of an exit, if RESULT had ``exiting``

A spare that gets LOAD becomes a resident, with many calls: each later meta, except those of LOADED
and CLOSE, begins with the number of the call (`NUMBER`).

    LOAD    supervisor -> worker   `pack_call_meta` | class and arguments of the instance
    LOADED  worker -> supervisor   `ResultMeta`  | pickled exception, if loading failed
    OUTPUT, ERRORS  worker -> supervisor   number  | output of an overlapping call, or of a job
    CANCEL  supervisor -> worker   number: cancel an overlapping call
    CLOSE   supervisor -> worker   close the instance, or the app, then exit

A spare that gets LOAD_APP becomes an app worker, with an ASGI application. Its metas, except those
of LOAD_APP, LOADED and CLOSE, begin with the number of a request; `app_messages` packs them.

    LOAD_APP  supervisor -> worker   `pack_call_meta` | what to load, as JSON + the ledger
    LOAD_JOBS  supervisor -> worker  the same, with a handler of jobs instead of an application
    REQUEST   supervisor -> worker   the scope         | the first piece of the body
    BODY      supervisor -> worker   more follows?     | a piece of the body
    DISCONNECT  supervisor -> worker  the client has disconnected
    CANCEL    supervisor -> worker   cancel the request's task
    CREDIT    in both directions     how many more bytes of a body may be sent
    RESPONSE  worker -> supervisor   status, headers   | the first piece of the answer
    PIECE     worker -> supervisor   more follows?     | a piece of the answer
    LINGERS   worker -> supervisor   the request is answered, but its task continues
    REQUEST_OVER  worker -> supervisor   the request's task is over, and how it ended
    ACCEPTED  worker -> supervisor   the WebSocket is open: subprotocol, headers
    MESSAGE   in both directions     flags             | a piece of a WebSocket's message
    CLOSING   in both directions     the WebSocket is closed: code, reason

`framing` cuts messages from a stream, and sends descriptors with them. Only numbers, JSON and bytes
for user code cross, as the two ends may run different versions of Python. Messages of every call
are structs, because a worker copies each memory page when it first writes to it.
"""

from __future__ import annotations

import struct

# Bound here: user code may have replaced them in `json` when its outcome is reported.
from json import dumps as _dumps
from json import loads as _loads

from . import strict_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Meta = dict[str, Any]

#: The variable that makes the loader bind all symbols at once; only in a zygote's environment.
BIND_NOW = "LD_BIND_NOW"

# Operations on the control socket.
PRELOAD = "preload"
START = "start"
FORK = "fork"
STOP = "stop"
DROP = "drop"
SOFT = "soft"
STACK = "stack"
COMPILE = "compile"
PING = "ping"
LEAVE = "leave"
LOADING = "loading"
SKIPPED = "skipped"
PRELOADED = "preloaded"
READY = "ready"
UNSAFE = "unsafe"
SPARES = "spares"
NOT_FORKED = "not_forked"
DROPPING = "dropping"
PONG = "pong"
SHORT = "short"
GONE = "gone"

# Kinds of frame on a channel.
CALL = 1
CREDIT = 2
LOAD = 3
CANCEL = 4
CLOSE = 5
LOAD_APP = 6
REQUEST = 7
BODY = 8
DISCONNECT = 9
LOAD_JOBS = 10
MESSAGE = 12
CLOSING = 13
WORKER_READY = 16
ITEM = 18
RESULT = 19
LOADED = 20
OUTPUT = 21
ERRORS = 22
EXIT = 23
RESPONSE = 24
PIECE = 25
LINGERS = 26
REQUEST_OVER = 27
ACCEPTED = 28

# Stages of an exit: files are flushed; another stage runs; answer now, as the exit takes longer;
# the exit is over.
FLUSHED = 1
RUNS = 2
ANSWER = 3
DONE = 4

#: magic, kind, number of descriptors, length of meta, length of body.
HEADER = struct.Struct("<2sBBIQ")
MAGIC = b"fp"
#: Largest meta: it holds names and numbers, and error texts of bounded length.
META_LIMIT = 16 * 1024 * 1024
#: Most descriptors sent with one frame.
MAX_FDS = 16
#: Most sources that a zygote keeps compiled; the oldest is dropped first.
SOURCES = 64
#: Largest such source, in bytes as JSON text; each worker compiles larger sources itself.
SOURCE_LIMIT = 32 * 1024
#: Largest control packet: it fits a socket buffer, and malloc need not map memory for it.
PACKET_LIMIT = 96 * 1024
#: Number of items that a worker may send before it waits for credit.
WINDOW = 16


class BadRequest(Exception):
    """The request or its arguments are malformed (``InvalidRequest`` for callers)."""


class BadFrame(Exception):
    """The bytes on a channel are not a frame: other code wrote to its descriptor."""


class Closed(Exception):
    """The other end is gone."""


class Damaged(Exception):
    """No RESULT can be created or sent any more, because of ``what``."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


class Frame:
    """One complete frame; ``meta`` is still packed."""

    __slots__ = ("body", "fds", "kind", "meta")

    def __init__(self, kind: int, meta: bytes, body: bytes, fds: list[int]) -> None:
        self.kind = kind
        self.meta = meta
        self.body = body
        self.fds = fds

    def take_fds(self) -> tuple[int, ...]:
        """Return the frame's descriptors; the caller owns them from now on."""
        fds, self.fds = tuple(self.fds), []
        return fds


#: flags (1: pickled, 2: stream); limit of the result, seed and soft time limit (-1: none); then
#: ``env`` as JSON.
_CALL_META = struct.Struct("<Bqqd")
#: The key of the working directory among a call's variables; no variable has an empty name.
WORKDIR = ""


def pack_call_meta(
    *,
    pickled: bool,
    stream: bool,
    result_limit: int | None,
    env: dict[str, str],
    seed: int | None = None,
    soft_s: float | None = None,
) -> bytes:
    """Pack the parameters of a call, apart from its body."""
    limit = -1 if result_limit is None else result_limit
    soft = -1.0 if soft_s is None else soft_s
    form = _CALL_META.pack(pickled | stream << 1, limit, -1 if seed is None else seed, soft)
    return form + _dumps(env).encode() if env else form


def unpack_call_meta(
    data: bytes,
) -> tuple[bool, bool, int | None, int | None, float | None, dict[str, str] | None]:
    """Return ``pickled, stream, result_limit, seed, soft_s, env`` of `pack_call_meta`."""
    flags, limit, seed, soft = _CALL_META.unpack_from(data)
    env = _loads(data[_CALL_META.size :]) if len(data) > _CALL_META.size else None
    pickled, stream = flags & 1 > 0, flags & 2 > 0
    soft_s = None if soft < 0 else soft
    return pickled, stream, None if limit < 0 else limit, None if seed < 0 else seed, soft_s, env


#: First field of the metas of a resident's frames: the number of the call.
NUMBER = struct.Struct("<Q")
#: The bit of a number that marks a CALL which may overlap others.
_OVERLAPS = 1 << 63


def numbered(number: int, meta: bytes = b"", *, overlaps: bool = False) -> bytes:
    """Pack the meta of a frame on a resident's channel."""
    return NUMBER.pack(number | _OVERLAPS if overlaps else number) + meta


def split_number(meta: bytes) -> tuple[int, bytes]:
    """Return the number of the call, and the rest of the meta.

    Raises:
        BadFrame: the meta is too short.
    """
    if len(meta) < NUMBER.size:
        raise BadFrame("a frame without the number of its call")
    return NUMBER.unpack_from(meta)[0] & ~_OVERLAPS, meta[NUMBER.size :]


def overlaps(meta: bytes) -> bool:
    """Return whether a CALL to a resident may overlap others."""
    return bool(NUMBER.unpack_from(meta)[0] & _OVERLAPS)


class ResultMeta:
    """How a call finished.

    ``form`` is one of `FORMS`. ``more`` holds ``modules`` (that the call imported), ``changed``
    (surroundings that imports read, see `surroundings`), ``native`` (variables that libraries it
    loaded may read); for a failure ``error_type``, ``error``, ``details`` and ``user`` (raised by
    user code). ``exiting``: the process still has work to do before its exit, and reports that with
    EXIT. Only from a resident: ``overlapping`` (LOADED: methods whose calls may overlap) and
    ``poisoned`` (why the resident must run no more calls).
    """

    __slots__ = ("form", "more", "ok", "rss_kb", "run_s")

    #: ok, index of the form, seconds of running, peak resident KiB; then ``more`` as JSON.
    _FORM = struct.Struct("<BBdQ")

    def __init__(
        self, *, ok: bool, form: str, run_s: float, rss_kb: int, more: dict[str, Any]
    ) -> None:
        self.ok = ok
        self.form = form
        self.run_s = run_s
        self.rss_kb = rss_kb
        self.more = more

    def pack(self) -> bytes:
        """Pack for sending."""
        form = self._FORM.pack(self.ok, FORMS.index(self.form), self.run_s, self.rss_kb)
        return form + _dumps(self.more).encode() if self.more else form

    @classmethod
    def unpack(cls, data: bytes) -> ResultMeta:
        """Unpack received bytes.

        Raises:
            BadFrame: the bytes are malformed.
        """
        try:
            ok, form, run_s, rss_kb = cls._FORM.unpack_from(data)
            if not abs(run_s) < strict_json.INFINITY:  # true for NaN, too
                raise ValueError(f"its run time is {run_s} seconds")
            more = strict_json.read(data[cls._FORM.size :]) if len(data) > cls._FORM.size else {}
            if type(more) is not dict or not (ok or _is_told(more)):
                raise ValueError("a failure without error_type or error")
            return cls(ok=bool(ok), form=FORMS[form], run_s=run_s, rss_kb=rss_kb, more=more)
        except (struct.error, ValueError, IndexError, RecursionError) as error:
            raise BadFrame(f"malformed RESULT: {error}") from None

    def texts(self, name: str) -> list[str]:
        """Return a list of strings from ``more``; empty if it is missing.

        Raises:
            BadFrame: the value is not a list of strings.
        """
        found = self.more.get(name)
        if not found:
            return []
        if type(found) is list and all(type(one) is str for one in found):
            return found
        raise BadFrame(f"malformed RESULT: {name} is not a list of strings")


def _is_told(more: Meta) -> bool:
    texts = type(more.get("error_type")) is str and type(more.get("error")) is str
    return texts and type(more.get("details", {})) is dict and type(more.get("user", False)) is bool


def pack_exit(stage: int, runs: str, ended: str) -> bytes:
    """Pack the progress of an exit: the stage, what runs now, and what was abandoned."""
    return _dumps([stage, runs, ended]).encode()


#: Most characters of the texts of EXIT, which go into answers, stats and the log.
_EXIT_WORDS = 2000


def unpack_exit(data: bytes) -> tuple[int, str, str]:
    """Return ``stage, runs, ended`` of `pack_exit`.

    Raises:
        BadFrame: the data is malformed.
    """
    try:
        stage, runs, ended = strict_json.read(data)
        if type(stage) is int and type(runs) is str and type(ended) is str:
            return stage, runs[:_EXIT_WORDS], ended[:_EXIT_WORDS]
        raise ValueError("its parts have the wrong types")
    except (ValueError, TypeError, RecursionError) as error:
        raise BadFrame(f"malformed EXIT: {error}") from None


class Exited:
    """A dead worker: its wait status, whether user code had begun, and its number of orphans."""

    __slots__ = ("began", "orphans", "rss_kb", "status", "worker")

    #: A letter that no JSON begins with, then the fields.
    _FORM = struct.Struct("<cIiBIQ")
    _MARK = b"x"

    def __init__(self, worker: int, status: int, began: bool, orphans: int, rss_kb: int) -> None:
        self.worker = worker
        self.status = status
        self.began = began
        self.orphans = orphans
        self.rss_kb = rss_kb

    def pack(self) -> bytes:
        """Pack for sending."""
        return self._FORM.pack(
            self._MARK, self.worker, self.status, self.began, self.orphans, self.rss_kb
        )

    @classmethod
    def unpack(cls, data: bytes) -> Exited | None:
        """Unpack received bytes; return None for any other message."""
        if data[:1] != cls._MARK:
            return None
        _, worker, status, began, orphans, rss_kb = cls._FORM.unpack(data)
        return cls(worker, status, bool(began), orphans, rss_kb)


#: Forms of a result: a pickle (as encoded by the codec), JSON text, or nothing, because the items
#: were streamed.
FORMS = ("pickle", "json", "stream")
CREDIT_META = struct.Struct("<I")


def head(kind: int, meta: bytes, body_length: int, fds: int) -> bytes:
    """Return header and meta of a frame; the body follows them on the wire."""
    return HEADER.pack(MAGIC, kind, fds, len(meta), body_length) + meta
