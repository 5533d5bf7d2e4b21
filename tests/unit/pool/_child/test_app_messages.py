"""Messages of apps: packed messages round-trip, and malformed ones are refused with a message."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashpool.pool._child import app_messages, wire

HEADERS = st.lists(st.tuples(st.binary(max_size=30), st.binary(max_size=50)), max_size=20)


@given(HEADERS, st.integers(100, 599), st.booleans())
def test_an_answers_head_round_trips(headers, status, more):
    fields = [part for pair in headers for part in pair]
    meta = app_messages.pack_response(7, status, more, fields)
    assert app_messages.unpack_response(meta) == (7, status, more, headers)


@given(HEADERS, st.text(max_size=20), st.binary(max_size=20))
def test_a_requests_head_round_trips(headers, path, query):
    connection = ("http", "", ("::1", 1), None)
    fields = app_messages.request_fields(
        connection, "GET", "1.1", path, path.encode(), query, headers
    )
    meta = app_messages.pack_request(9, app_messages.MORE, 3, fields)
    number, flags, slot, found = app_messages.unpack_request(meta)
    assert (number, flags, slot) == (9, app_messages.MORE, 3)
    assert app_messages.unpack_connection(found[0]) == connection
    assert found[3].decode() == path
    assert app_messages.paired(found, 6) == headers


@given(st.binary(max_size=200))
def test_a_malformed_message_is_a_bad_frame(data):
    for unpack in (
        app_messages.unpack_response,
        app_messages.unpack_flags,
        app_messages.unpack_credit,
    ):
        try:
            unpack(data)
        except wire.BadFrame:
            pass


@pytest.mark.parametrize("status", [0, 99, 600, 65535])
def test_an_invalid_status_is_a_bad_frame(status):
    with pytest.raises(wire.BadFrame, match="does not begin an answer"):
        app_messages.unpack_response(app_messages.pack_response(1, status, 0, []))


def test_lengths_that_do_not_add_up_are_a_bad_frame():
    meta = app_messages.pack_response(1, 200, 0, [b"name", b"value"])
    for wrong in (meta[:-1], meta + b"x"):
        with pytest.raises(wire.BadFrame):
            app_messages.unpack_response(wrong)
