"""Watching calls: their stacks, their output, and lookup by id."""

import asyncio
import os
import signal
import threading
import time

import pytest

from support.live import Live


def text_of(live: Live, call_id: int) -> "tuple[str, str]":
    found = live.run(live.supervisor.watching.stacks(call_id))
    assert found is not None
    return found.text, found.problem


def until(live: Live, call_id: int, words: str, seconds: float = 60) -> "tuple[str, str]":
    """Request stacks until the words are in the answer, or in the reason why there is none."""
    end = time.monotonic() + seconds
    while words not in "".join(found := text_of(live, call_id)):
        assert time.monotonic() < end, found
        live.run(asyncio.sleep(0.05))
    return found


def test_stacks_show_every_thread_and_the_call_continues(live: Live) -> None:
    code = """
def rests(event):
    event.wait()

def f():
    import sys, threading
    event = threading.Event()
    thread = threading.Thread(target=rests, args=(event,))
    thread.start()
    print("begun", flush=True)
    sys.stdin.read()
    import time
    time.sleep(1)
    event.set()
    thread.join()
    return 5
"""
    one = live.start(code)
    one.wait_for_output(b"begun")
    text, problem = text_of(live, one.id)
    assert problem == ""
    assert "in rests" in text
    assert 'File "flash:f"' in text
    assert "_child" not in text
    outcome = one.wait()
    assert outcome.ok
    assert outcome.output == b"begun\n"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (
            "import signal\n    signal.signal(signal.SIGWINCH, lambda *_: 0)",
            "handles SIGWINCH itself",
        ),
        ("import signal\n    signal.signal(signal.SIGWINCH, signal.SIG_IGN)", "to be ignored"),
        ("import signal\n    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))", "blocks"),
        ("import signal\n    signal.signal(signal.SIGWINCH, signal.SIG_DFL)", "to its default"),
    ],
)
def test_missing_stacks_are_explained(live: Live, code: str, words: str) -> None:
    one = live.start(
        f"def f():\n    {code}\n    print('begun', flush=True)\n    import time; time.sleep(60)"
    )
    one.wait_for_output(b"begun")  # one parameter set makes the standard library emit many warnings
    text, problem = text_of(live, one.id)
    assert text == ""
    assert words in problem
    live.supervisor.cancel(one.id)


def test_a_busy_extension_shows_where_it_is(live: Live) -> None:
    one = live.start(
        "import re\ndef f():\n    print(0, flush=True)\n    re.match('(a+)+$', 'a' * 40 + 'b')"
    )
    one.wait_for_output(b"0")
    until(live, one.id, "in match")
    live.supervisor.cancel(one.id)


def test_a_reader_gets_all_output_and_then_the_end(live: Live) -> None:
    watching = live.supervisor.watching
    one = live.start(
        "import time\ndef f():\n    print('a', flush=True)\n    time.sleep(0.5)\n    print('b')"
    )
    one.wait_for_output(b"a")
    feeds = [watching.follow(one.id) for _ in range(2)]
    gone = watching.follow(one.id)
    assert gone is not None
    watching.unfollow(one.id, gone)
    one.wait()
    for feed in feeds:
        assert feed is not None
        pieces = []
        while (piece := live.run(feed.next(10))) is not None:
            pieces.append(piece[0])
        assert b"".join(pieces) == b"a\nb\n"
        assert feed.ended
    late = watching.follow(one.id)
    assert late is not None
    assert live.run(late.next(10)) == (b"a\nb\n", False)
    assert live.run(late.next(10)) is None
    assert watching.follow(10**9) is None


def test_calls_are_found_by_each_of_their_ids(live: Live) -> None:
    watching = live.supervisor.watching
    one = live.start("import time\ndef f():\n    time.sleep(30)")
    one.live.supervisor._components.calls[one.id].call.request_id = "theirs"
    name = watching.call(one.id).id  # type: ignore[union-attr]
    live.until(lambda: watching.call(one.id).state == "running")  # type: ignore[union-attr]
    assert {watching.find(text) for text in ("theirs", name, str(one.id))} == {one.id}
    assert {watching.find(text) for text in ("", "x", "1" * 30, f"other-{one.id}")} == {None}
    live.supervisor.cancel(one.id, "enough")
    assert one.wait().receipt.call_id == one.id
    ended = watching.call(watching.find("theirs") or 0)
    assert ended is not None
    assert (ended.state, ended.outcome, ended.id) == ("ended", "Cancelled", name)
    assert live.run(watching.stacks(one.id)) is None


def test_stopped_processes_have_no_stacks(live: Live) -> None:
    one = live.start("import time\ndef f():\n    print(0, flush=True)\n    time.sleep(30)")
    one.wait_for_output(b"0")
    os.kill(one.pid, signal.SIGSTOP)
    began = time.monotonic()
    assert "stopped" in text_of(live, one.id)[1]
    assert time.monotonic() - began < 60
    live.supervisor.cancel(one.id)


def test_a_dump_is_complete_although_its_process_is_stopped_repeatedly(live: Live) -> None:
    one = live.start(
        "import threading, time\n"
        "def last(): time.sleep(60)\n"
        "def deep(n): return deep(n - 1) if n else last()\n"
        "def f():\n"
        "    for _ in range(20): threading.Thread(target=deep, args=(50,), daemon=True).start()\n"
        "    print(0, flush=True)\n    deep(50)"
    )
    one.wait_for_output(b"0")
    pid, over = one.pid, threading.Event()

    (zygote,) = live.supervisor._components.zygote_set

    def pulse() -> None:
        stops = 0
        while not over.is_set() and stops < 10:
            written = zygote.stack_file.size()
            os.kill(pid, signal.SIGCONT)
            while zygote.stack_file.size() <= written and not over.is_set():
                pass  # stop the process as soon as it has written some more
            os.kill(pid, signal.SIGSTOP)
            stops += 1
            over.wait(0.1)
        os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=pulse)
    thread.start()
    try:
        text, problem = text_of(live, one.id)
    finally:
        over.set()
        thread.join()
    live.supervisor.cancel(one.id)
    assert problem == ""
    assert text.count("in last") == 21, text[-500:]
