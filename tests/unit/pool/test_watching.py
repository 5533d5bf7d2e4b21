import asyncio
import os

from flashpool.pool import call_ids
from flashpool.pool.call_history import CALLS, OUTPUT_BYTES, CallHistory
from flashpool.pool.calls import Call, Codec, Outcome
from flashpool.pool.watching import OutputFeed


def test_public_ids_are_valid_in_this_process_only() -> None:
    assert call_ids.number_of(call_ids.name_of(17)) == 17
    assert call_ids.number_of("17") == 17
    for text in ("", "-", "x-17", "17-", f"{call_ids.prefix}-²", "9" * 40):
        assert call_ids.number_of(text) is None
    assert call_ids.GIVEN.fullmatch("order-9:2/a")
    for text in ("", " a", "a b", "a\n", "-a", "é", "a" * 129):
        assert call_ids.GIVEN.fullmatch(text) is None


def test_a_forked_process_has_other_public_ids() -> None:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writer, call_ids.prefix.encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    assert os.read(reader, 100).decode() != call_ids.prefix
    os.close(reader)


def test_a_slow_reader_loses_output_and_learns_how_much() -> None:
    async def read() -> "list[bytes]":
        feed = OutputFeed(b"kept;", limit=10)
        feed.put(b"12345678")
        feed.put(b"too much", stderr=True)
        feed.end(None)
        found = []
        while (piece := await feed.next()) is not None:
            found.append(piece[0])
        return found

    assert asyncio.run(read()) == [
        b"kept;",
        b"12345678",
        b"\n[... 8 bytes were not read in time ...]\n",
    ]


def test_a_silent_feed_does_not_block_its_reader() -> None:
    assert asyncio.run(OutputFeed().next(0.01)) is None


def test_history_is_bounded_in_number_and_bytes() -> None:
    history, call = CallHistory(), Call(codec=Codec.FLASH, body=b"")
    large = b"x" * (OUTPUT_BYTES // 4)
    for number in range(CALLS + 10):
        history.keep(number, call, Outcome(output=large if number % 100 == 0 else b"y"))
    assert history.get(0) is None
    assert history.output_of(0) is None
    last = history.get(CALLS + 9)
    assert last is not None
    assert history.output_of(last.number) == b"y"
    assert sum(map(len, history._outputs.values())) <= OUTPUT_BYTES
    assert len(list(history)) == CALLS
