"""Passes on the bodies and answers of the requests of one app that have not ended.

    sink's body  --> hand_over, body --> REQUEST, BODY --> worker  as far as the worker gives credit
    sink         <-- response, piece <-- RESPONSE, PIECE <--'      as far as the sink gives credit

A request ends once; after that, its sink is not notified. The body of a request that has not begun
is kept, for another worker that may get the request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from flashpool.pool import call_ids
from flashpool.pool._child import app_messages, wire
from flashpool.pool.apps import AppEnd, AppRequest, AppSink, Headers
from flashpool.pool.workers.poller import Clock

from .requests import AppClock, LiveRequest
from .socket_traffic import SocketTraffic


class SendFrame(Protocol):
    """`AppWorkers.send`."""

    def __call__(self, number: int, kind: int, meta: bytes, body: bytes = b"") -> None: ...


class AppTraffic:
    """The requests of one app that have not ended."""

    def __init__(
        self,
        now: Clock,
        *,
        send: SendFrame,
        late: Callable[[LiveRequest], None],
        answered: Callable[[LiveRequest], None],
        empty: Callable[[], None],
    ) -> None:
        """``answered``: called for each request whose answer is complete. ``empty``: called when
        no request is left.
        """
        self._send = send
        self._answered = answered
        self._empty = empty
        self.clock = AppClock(now, late)
        self.sockets = SocketTraffic(self.clock, send, self.of)
        self._live: dict[int, LiveRequest] = {}

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[LiveRequest]:
        return iter(list(self._live.values()))

    def __getitem__(self, number: int) -> LiveRequest:
        return self._live[number]

    def get(self, number: int) -> LiveRequest | None:
        """Return the request; None if it has ended."""
        return self._live.get(number)

    def add(self, request: AppRequest, sink: AppSink) -> LiveRequest:
        """Add a request."""
        number = next(call_ids.numbers)
        live = self._live[number] = LiveRequest(number, request, sink)
        return live

    # From the client to a worker.

    def hand_over(self, live: LiveRequest, worker: int, slot: int) -> None:
        """Send a request to a worker, with the part of its body that has arrived."""
        live.worker, live.slot = worker, slot
        assert live.held is not None
        first, *rest = live.held
        flags = app_messages.MORE if live.more or rest else 0
        if live.on_demand:
            flags |= app_messages.ASKED_FOR
        if live.socket:
            flags |= app_messages.SOCKET
        meta = app_messages.pack_request(live.number, flags, slot, live.fields)
        self.clock.set(live, live.limit_s)
        self._send(worker, wire.REQUEST, meta, first)
        for at, piece in enumerate(rest, 1):
            more = live.more or at < len(rest)
            self._send(worker, wire.BODY, app_messages.pack_flags(live.number, more), piece)

    def back_to_queue(self, live: LiveRequest, limit_s: float | None) -> None:
        """Return a request to the queue: its worker died before the request had begun."""
        live.worker = None
        self.clock.set(live, limit_s)

    def body(self, number: int, piece: bytes, more: bool) -> None:
        """Pass on a piece of a request's body."""
        live = self._live.get(number)
        if live is None or live.sink is None:
            return
        live.room -= len(piece)
        live.more = more
        if live.held is not None:
            live.held.append(piece)
        if live.worker is not None:
            self.clock.set(live, live.limit_s)
            self._send(live.worker, wire.BODY, app_messages.pack_flags(number, more), piece)

    def credit(self, number: int, size: int) -> None:
        """Give the worker credit for ``size`` bytes of an answer that the client has read."""
        live = self._live.get(number)
        if live is None or live.worker is None:
            return
        if live.waits_for_client and live.sink is not None:
            self.clock.restart(live)
        live.out -= size
        self._send(live.worker, wire.CREDIT, app_messages.pack_credit(number, size))

    # From a worker to the client.

    def of(self, worker: int, number: int) -> LiveRequest | None:
        """Return a request by number, if this worker has it."""
        live = self._live.get(number)
        return live if live is not None and live.worker == worker else None

    def take(self, worker: int, frame: wire.Frame) -> bool:
        """Handle a frame; return False if it is not part of a body or an answer.

        Raises:
            BadFrame: the frame is malformed.
        """
        if frame.kind == wire.RESPONSE:
            number, status, flags, headers = app_messages.unpack_response(frame.meta)
            live = self.of(worker, number)
            if live is not None and not live.started:
                self._on_response(live, status, headers, frame.body, bool(flags))
        elif frame.kind == wire.PIECE:
            number, flags = app_messages.unpack_flags(frame.meta)
            live = self.of(worker, number)
            if live is not None and live.started:
                self._on_piece(live, frame.body, bool(flags))
        elif frame.kind == wire.CREDIT:
            number, size = app_messages.unpack_credit(frame.meta)
            live = self.of(worker, number)
            if live is not None and live.sink is not None:
                live.held = None  # the request has begun
                live.room += size
                if live.room > app_messages.WINDOW:
                    raise wire.BadFrame("credit for more bytes than were sent")
                self.clock.set(live, live.limit_s)
                live.sink.room(size)
        elif frame.kind in (wire.OUTPUT, wire.ERRORS):
            number, _ = wire.split_number(frame.meta)
            live = self.of(worker, number)
            if live is not None and (output := getattr(live.sink, "output", None)) is not None:
                output(frame.body)
        else:
            return self.sockets.take(worker, frame)
        return True

    def _on_response(
        self, live: LiveRequest, status: int, headers: Headers, body: bytes, more: bool
    ) -> None:
        live.started = True
        live.held = None
        sink = live.sink
        self._count(live, len(body), more)
        if sink is not None:
            sink.response(status, headers, body, more)

    def _on_piece(self, live: LiveRequest, body: bytes, more: bool) -> None:
        sink = live.sink
        self._count(live, len(body), more)
        if sink is not None:
            sink.piece(body, more)

    def _count(self, live: LiveRequest, size: int, more: bool) -> None:
        """Count a part of an answer, which may be the last."""
        if not more:
            self.forget(live)
            self._answered(live)
            return
        live.out += size
        if live.out > app_messages.WINDOW + app_messages.PIECE:
            raise wire.BadFrame("more of an answer than the credit allows")
        if live.sink is not None:
            self.clock.restart(live)

    # Ends.

    def end(self, live: LiveRequest, end: AppEnd) -> None:
        """End a request without a complete answer."""
        self.forget(live)
        if live.sink is not None:
            live.sink.ended(end)

    def forget(self, live: LiveRequest) -> None:
        """Forget a request that is over."""
        del self._live[live.number]
        self.clock.forget(live)
        if not self._live:
            self._empty()
