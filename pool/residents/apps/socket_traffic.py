"""Messages of the WebSockets of one app, in both directions; `traffic` has their requests.

    sink's message --> MESSAGE --> worker            as far as the worker gives credit
    sink           <-- ACCEPTED, MESSAGE, CLOSING    as far as the sink gives credit

A WebSocket has a single limit, which each message from either side restarts.
"""

from __future__ import annotations

from collections.abc import Callable

from flashpool.pool._child import app_messages, wire
from flashpool.pool.apps import SocketSink

from .requests import AppClock, LiveRequest

_MORE = app_messages.MORE


class SocketTraffic:
    """Passes on messages of WebSockets; the owner keeps the requests."""

    def __init__(
        self,
        clock: AppClock,
        send: Callable[..., None],
        of: Callable[[int, int], LiveRequest | None],
    ) -> None:
        """``of``: returns a request by worker and number; None if that worker does not have it."""
        self._clock = clock
        self._send = send
        self._of = of

    def message(self, live: LiveRequest, piece: bytes, *, more: bool, text: bool) -> None:
        """Send a piece of a message to the app."""
        if live.worker is None:
            return
        live.room -= app_messages.weight(piece)
        self._clock.set(live, live.limit_s)
        flags = (_MORE if more else 0) | (app_messages.TEXT if text else 0)
        meta = app_messages.pack_flags(live.number, flags)
        self._send(live.worker, wire.MESSAGE, meta, piece)

    def close(self, live: LiveRequest, code: int, reason: str) -> None:
        """Close a WebSocket whose client has closed it, or has disconnected."""
        assert live.worker is not None
        meta = app_messages.pack_closing(live.number, code, reason)
        self._send(live.worker, wire.CLOSING, meta)

    def take(self, worker: int, frame: wire.Frame) -> bool:
        """Handle a frame; return False if it does not belong to a WebSocket.

        Raises:
            BadFrame: the frame is malformed.
        """
        if frame.kind == wire.MESSAGE:
            number, flags = app_messages.unpack_flags(frame.meta)
            self._on_message(self._of(worker, number), flags, frame.body)
        elif frame.kind == wire.ACCEPTED:
            number, subprotocol, headers = app_messages.unpack_accepted(frame.meta)
            live = self._of(worker, number)
            if live is not None and not live.started:
                live.started, live.held = True, None
                if sink := self._sink(live):
                    sink.accepted(subprotocol, headers)
        elif frame.kind == wire.CLOSING:
            number, code, reason = app_messages.unpack_closing(frame.meta)
            live = self._of(worker, number)
            if live is not None and (sink := self._sink(live)):
                # The rest of its task does not concern the client.
                live.sink = None
                self._clock.forget(live)
                sink.closed(code, reason)
        else:
            return False
        return True

    def _on_message(self, live: LiveRequest | None, flags: int, piece: bytes) -> None:
        if live is None or not live.started:
            return
        live.out += app_messages.weight(piece)
        if live.out > app_messages.WINDOW + app_messages.weight(b" " * app_messages.PIECE):
            raise wire.BadFrame("more messages than the credit allows")
        if sink := self._sink(live):
            sink.message(piece, bool(flags & _MORE), bool(flags & app_messages.TEXT))

    def _sink(self, live: LiveRequest) -> SocketSink | None:
        """Return the receiver of a WebSocket's events, if any, and restart the limit."""
        if live.sink is None:
            return None
        self._clock.set(live, live.limit_s)
        assert live.socket
        return live.sink  # type: ignore[return-value]
