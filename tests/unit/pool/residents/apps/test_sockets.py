"""WebSockets in the table of an app, and their messages on the wire."""

from __future__ import annotations

import pytest

from flashpool.pool._child import app_messages, wire
from flashpool.pool.residents.apps.states import (
    AppPolicy,
    LoseRequest,
    SendRequest,
    StartWorker,
    TurnAway,
)
from flashpool.pool.residents.apps.table import AppTable


def ready(workers: int = 1) -> AppTable:
    table = AppTable(AppPolicy(workers=workers, concurrency=1, websockets=2))
    for command in table.start():
        assert isinstance(command, StartWorker)
        table.loaded(command.worker)
    return table


def test_websockets_do_not_count_against_requests():
    table = ready()
    assert table.requested(1, socket=True) == [SendRequest(1, 1, 2)]
    assert table.requested(2, socket=True) == [SendRequest(2, 1, 1)]
    assert table.requested(3) == [SendRequest(3, 1, 0)]
    assert table.requested(4) == []  # it waits


def test_websockets_beyond_the_limit_are_refused():
    table = ready()
    for number in (1, 2):
        table.requested(number, socket=True)
    assert table.requested(3, socket=True) == [TurnAway(3)]
    table.answered(1)
    assert table.requested(4, socket=True) == [SendRequest(4, 1, 2)]


def test_the_worker_with_the_fewest_websockets_gets_the_next():
    table = ready(2)
    found = [table.requested(number, socket=True)[0] for number in (1, 2)]
    assert {one.worker for one in found if isinstance(one, SendRequest)} == {1, 2}


def test_a_websocket_is_not_opened_a_second_time():
    table = ready()
    table.requested(1, socket=True)
    lost, *_ = table.died(1, [], "it died", 0.0)
    assert lost == LoseRequest(1, began=False, sibling=False)


def test_accept_and_close_messages_round_trip():
    meta = app_messages.pack_accepted(7, "chat", [b"x-a", b"1", b"x-a", b"2"])
    assert app_messages.unpack_accepted(meta) == (7, "chat", [(b"x-a", b"1"), (b"x-a", b"2")])
    assert app_messages.unpack_closing(app_messages.pack_closing(7, 4001, "grüße")) == (
        7,
        4001,
        "grüße",
    )


@pytest.mark.parametrize("meta", [b"", b"1234567", wire.NUMBER.pack(1), wire.NUMBER.pack(1) + b"x"])
def test_malformed_messages_are_bad_frames(meta: bytes):
    for unpack in (app_messages.unpack_accepted, app_messages.unpack_closing):
        with pytest.raises(wire.BadFrame):
            unpack(meta)
