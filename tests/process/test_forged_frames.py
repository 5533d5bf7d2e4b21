"""Frames that user code forges on its channel fail that call only, and leak no descriptor."""

import os
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from process.resident_calls import begin, run, thing

from flashpool.frontends import responses
from flashpool.pool._child import wire
from flashpool.pool.calls import Outcome
from support.live import Live

Make = Callable[..., Live]

#: Sends forged frames, in one piece, with descriptors attached.
FORGE = """
import os, signal, socket, struct

def frame(kind, meta, body=b"", fds=0):
    return struct.pack("<2sBBIQ", b"fp", kind, fds, len(meta), len(body)) + meta + body

def send(data, fds=0):
    fd = max(n for n in map(int, os.listdir("/proc/self/fd")) if n < 5000)
    with socket.socket(fileno=os.dup(fd)) as channel:
        if fds:
            socket.send_fds(channel, [data], [0] * fds)
        else:
            channel.sendall(data)

ITEM, RESULT, LOADED, EXIT = 18, 19, 20, 23
def ended(ok=1, form=0, run_s=0.0, rss_kb=0, more=b""):
    return struct.pack("<BBdQ", ok, form, run_s, rss_kb) + more

ENDED = ended()
FAILED = struct.pack("<BBdQ", 0, 0, 0.0, 0)
TOLD = FAILED + b'{"error_type": "E", "error": "e"}'
"""


#: Keeps the worker alive, so that the frame fails the call and not the worker's death.
STAY = "import time; time.sleep(60)"


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(
    "forged",
    [
        "send(frame(RESULT, ENDED, b'1', 3) + b'garbage' * 9, 3)",
        "send(frame(RESULT, b'no meta', b'1', 3), 3)",
        "send(frame(RESULT, TOLD, b'', 3), 3)",
        "send(frame(99, b'', b'', 3), 3)",
        "send(frame(LOADED, ENDED, b'', 3), 3)",
        "[send(frame(ITEM, b''), 16) for _ in range(40)]",
        "[send(frame(99, b''), 16) for _ in range(40)]",
    ],
    ids=["then-garbage", "no-result", "failure", "unknown", "loaded", "items", "unclaimed"],
)
def test_unexpected_descriptors_are_closed(live: Live, forged: str) -> None:
    live.until(lambda: live.zygote().spares == 2)
    before = open_files()
    outcome = live.call(f"{FORGE}\ndef f():\n    {forged}\n    return 1", run_s=25)
    assert not outcome.fds, "a request's result has none that its front-end could mean"
    live.until(lambda: live.stats().slots.busy == 0 and live.zygote().spares == 2)
    live.until(lambda: open_files() <= before)


def test_a_result_counts_even_if_garbage_follows(live: Live) -> None:
    outcome = live.call(
        f"{FORGE}\ndef f():\n    send(frame(RESULT, ENDED, b'1') + bytes(50))\n    os._exit(0)"
    )
    assert outcome.ok
    assert outcome.body == b"1"


@pytest.mark.parametrize("more", ["[1, 2]", "5", "[{}]", '["os", 5]'])
def test_malformed_modules_fail_the_call(live: Live, more: str) -> None:
    told = f"ENDED + b'{{\"modules\": {more}}}'"
    outcome = live.call(f"{FORGE}\ndef f():\n    send(frame(RESULT, {told}))\n    {STAY}")
    assert outcome.error_type == "WorkerCrashed"
    assert "channel" in outcome.error


def test_malformed_modules_fail_the_call_of_an_instance(live: Live) -> None:
    code = FORGE + thing(
        """
def forge(self, number):
    meta = struct.pack("<Q", number) + ENDED + b'{"modules": 5}'
    send(frame(RESULT, meta))
    import time; time.sleep(60)
"""
    )
    # The number of a call follows that of its load.
    assert run(live, "a", "pid", code=code).ok
    number = begin(live, "b", "pid").id
    outcome = run(live, "a", "forge", number + 2, code=code)
    assert outcome.error_type == "WorkerCrashed"
    assert "channel" in outcome.error


def test_malformed_details_fail_the_call(live: Live) -> None:
    told = 'FAILED + b\'{"error_type": "E", "error": "e", "details": 5}\''
    outcome = live.call(f"{FORGE}\ndef f():\n    send(frame(RESULT, {told}))\n    {STAY}")
    assert outcome.error_type == "WorkerCrashed"
    assert "channel" in outcome.error


def fail_with(told: str) -> str:
    return f"{FORGE}\ndef f():\n    send(frame(RESULT, FAILED + {told}))\n    {STAY}"


def test_unknown_error_types_are_counted_together(live: Live) -> None:
    for name in ("One", "Two" * 10_000, ""):
        told = f'b\'{{"error_type": "{name}", "error": "e"}}\''
        assert live.call(fail_with(told)).error_type == name
    stats = live.stats()
    assert stats.outcomes == {"other": 3}
    assert all(len(one.error_type) < 1000 for one in stats.recent_failures)


@pytest.mark.parametrize(
    "told",
    [
        'b\'{"error_type": "E\\\\ud800", "error": "e"}\'',
        'b\'{"error_type": "E", "error": "\\\\udfff"}\'',
        'b\'{"error_type": "E", "error": "\\xed\\xa0\\x80"}\'',
        "b'[' * 200_000",
    ],
    ids=["type", "error", "raw", "nested"],
)
def test_fields_that_cannot_be_encoded_again_fail_the_call(live: Live, told: str) -> None:
    outcome = live.call(fail_with(told), run_s=25)
    assert outcome.error_type == "WorkerCrashed"
    assert "channel" in outcome.error
    msgspec.json.encode(live.stats())


NOT_NUMBERS = {
    "NaN": "float('nan')",
    "infinity": "float('inf')",
    "minus infinity": "-float('inf')",
}
DETAILS = {
    "NaN": "NaN",
    "infinity": "Infinity",
    "too large a number": "1e999",
    "more than 64 bits": "1" + "0" * 300,
    "digits without end": "1" + "0" * 10_000,
    "deep": "[" * 500 + "]" * 500,
    "half a pair": '"\\\\ud800"',
}
CLAIMS = "WorkerCrashed", "Overloaded", "Timeout"


def answer_of(outcome: Outcome) -> dict[str, Any]:
    """Return what a client gets, parsed by a strict JSON reader."""
    answer = responses.of_outcome(outcome, None)
    assert answer.status == 200
    fields: dict[str, Any] = msgspec.json.decode(answer.body)
    return fields


@pytest.mark.parametrize("seconds", NOT_NUMBERS.values(), ids=NOT_NUMBERS)
def test_a_time_that_is_not_a_number_fails_the_call(live: Live, seconds: str) -> None:
    told = f"frame(RESULT, ended(run_s={seconds}), b'gAVOLg==')"
    outcome = live.call(f"{FORGE}\ndef f():\n    send({told})\n    {STAY}")
    assert answer_of(outcome)["error_type"] == "WorkerCrashed"
    assert "channel" in outcome.error


@pytest.mark.parametrize("seconds", ["-5.0", "1e300"])
def test_an_impossible_time_is_replaced_by_a_measured_one(live: Live, seconds: str) -> None:
    told = f"frame(RESULT, ended(run_s={seconds}, rss_kb=2**64 - 1), b'gAVOLg==')"
    outcome = live.call(f"{FORGE}\ndef f():\n    send({told})\n    {STAY}")
    spent = answer_of(outcome)["receipt"]["seconds"]
    assert 0 <= spent["start"] <= spent["total"]
    assert 0 < spent["run"] <= spent["total"] < 1000


@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize("value", DETAILS.values(), ids=DETAILS)
def test_details_that_are_not_strict_json_fail_the_call(live: Live, claim: str, value: str) -> None:
    details = f'{{"limit_s": {value}, "retry_after_s": {value}, "more": [{value}]}}'
    told = f'{{"error_type": "{claim}", "error": "e", "details": {details}}}'
    outcome = live.call(fail_with(f"b'{told}'"), run_s=25)
    assert answer_of(outcome)["error_type"] == "WorkerCrashed"
    assert "channel" in outcome.error


@pytest.mark.parametrize("value", ["5", '"yes"', "[]", "null"])
def test_the_user_flag_of_an_error_has_to_be_a_boolean(live: Live, value: str) -> None:
    outcome = live.call(fail_with(f'b\'{{"error_type": "E", "error": "e", "user": {value}}}\''))
    assert outcome.error_type == "WorkerCrashed"
    assert "channel" in outcome.error


@pytest.mark.parametrize("form", [0, 1, 2], ids=wire.FORMS)
def test_a_body_that_does_not_match_its_form_is_an_error(live: Live, form: int) -> None:
    told = f"frame(RESULT, ended(form={form}), b'abc,NaN')"
    outcome = live.call(f"{FORGE}\ndef f():\n    send({told})\n    {STAY}")
    assert answer_of(outcome)["error_type"] == "WorkerCrashed"


def test_a_stream_with_a_result_is_an_error(live: Live) -> None:
    told = "frame(RESULT, ended(form=2), b'AAAA')"
    outcome = live.call(f"{FORGE}\ndef f():\n    send({told})\n    {STAY}")
    assert answer_of(outcome)["error_type"] == "WorkerCrashed"


EXITS = {
    "NaN": "[NaN, '', '']",
    "of other types": '["1", 2, []]',
    "half a pair": '[1, "\\ud800", ""]',
    "nothing": "",
}


@pytest.mark.parametrize("stage", EXITS.values(), ids=EXITS)
def test_a_malformed_exit_message_fails_the_call(live: Live, stage: str) -> None:
    exiting = """ended(more=b'{"exiting": true}')"""
    outcome = live.call(
        f"{FORGE}\ndef f():\n    send(frame(RESULT, {exiting}, b'gAVOLg=='))\n"
        f"    send(frame(EXIT, {stage!r}.encode()))\n    {STAY}"
    )
    assert answer_of(outcome)["error_type"] == "WorkerCrashed"


def test_the_warning_about_a_slow_exit_is_bounded(live: Live) -> None:
    exiting = """ended(more=b'{"exiting": true}')"""
    outcome = live.call(
        f"{FORGE}\ndef f():\n    send(frame(RESULT, {exiting}, b'gAVOLg=='))\n"
        f"    send(frame(EXIT, b'[3, \"' + b'x' * 10**6 + b'\", \"\"]'))\n    {STAY}"
    )
    assert answer_of(outcome)["success"]
    assert len(outcome.warnings[-1]) < 5000


def test_forged_call_numbers_of_an_instance_fail_its_calls(live: Live) -> None:
    code = FORGE + thing(
        """
def forge(self, number):
    send(frame(RESULT, struct.pack("<Q", number) + ended(run_s=float("nan"))))
    import time; time.sleep(60)
"""
    )
    assert run(live, "a", "pid", code=code).ok
    number = begin(live, "b", "pid").id
    outcome = run(live, "a", "forge", number + 2, code=code)
    assert answer_of(outcome)["error_type"] == "WorkerCrashed"


#: More items than credit allows; the first ones may all arrive at once.
FLOOD = """
    for _ in range(20_000):
        send(frame(ITEM, {meta}, b'1'))
    import time; time.sleep(60)
"""


@pytest.mark.parametrize("stream", [False, True])
def test_items_beyond_the_credit_fail_the_call(live: Live, stream: bool) -> None:
    flood = FLOOD.format(meta="b''")
    started = live.start(f"{FORGE}\ndef f():{flood}", call={"stream": stream}, run_s=25)
    check_flooded(started.wait(), started.sink.items, stream)


@pytest.mark.parametrize("stream", [False, True])
def test_items_beyond_the_credit_end_the_instance(live: Live, stream: bool) -> None:
    flood = FLOOD.format(meta='struct.pack("<Q", number)')
    code = FORGE + thing(f"def forge(self, number):{flood}")
    assert run(live, "a", "pid", code=code).ok
    number = begin(live, "b", "pid").id
    started = begin(live, "a", "forge", number + 2, code=code, stream=stream, run_s=25)
    check_flooded(started.wait(), started.sink.items, stream)


def check_flooded(outcome: Any, items: list[bytes], stream: bool) -> None:
    assert outcome.error_type == "WorkerCrashed"
    assert "items" in outcome.error
    assert len(items) == (wire.WINDOW if stream else 0)


def test_a_child_that_fills_a_dead_workers_channel_blocks_nothing(
    make_live: Callable[..., Live],
) -> None:
    live = make_live(grace_s=50.0).ready()
    started = live.start(
        f"{FORGE}\ndef f():"
        """
    r, w = os.pipe()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.write(w, b"-")
        while True:
            send(frame(99, b"") * 500)
    os.read(r, 1)
    os._exit(3)
"""
    )
    # The outcome arrives long before the grace is over.
    assert started.wait().error_type == "WorkerCrashed"
    assert live.call("def f(): return 1").ok
