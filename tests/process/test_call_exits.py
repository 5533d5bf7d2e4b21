"""Python's work at exit is done for each call within a time limit, or the call is warned."""

from __future__ import annotations

import contextlib
import gzip
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest
from process.resident_calls import run

from flashpool.pool import Pool, SoftTimeout
from support.live import WORKER_ENV, alive, value

FILES = """
import gzip, zipfile
TXT = open({0!r} + "/a.txt", "w"); GZ = gzip.open({0!r} + "/a.gz", "wt")
ZIP = zipfile.ZipFile({0!r} + "/a.zip", "w")
def f():
    TXT.write("line\\n"); GZ.write("line\\n" * 100); ZIP.writestr("a.txt", "hello")
    return "written"
"""
LOGGING = """import logging; h = logging.FileHandler({0!r}); h.terminator = ''
    h.setFormatter(logging.Formatter('%(message)s'))
    logging.getLogger('x').addHandler(h); logging.getLogger('x').warning('all')"""
THREADS = """
import concurrent.futures as cf, threading, time
EX = cf.ThreadPoolExecutor(2)
def job(i, path, seconds):
    time.sleep(seconds); open(path, "a").write(f"job {{i}}\\n")
def f(path={0!r}, seconds={1}):
    open(path, "w").close()
    for i in range(3): EX.submit(job, i, path, seconds)
    threading.Thread(target=job, args=(3, path, seconds)).start()
    return "submitted"
"""


@pytest.fixture
def gone(live):
    """Wait until no process of a call is left."""
    return lambda: live.until(lambda: live.stats().slots.busy == 0)


def test_files_of_module_level_names_are_complete_with_the_answer(live, tmp_path):
    outcome = live.call(FILES.format(str(tmp_path)))
    assert value(outcome) == "written"
    assert outcome.warnings == ()
    assert outcome.receipt.exit_s > 0
    assert (tmp_path / "a.txt").read_text() == "line\n"
    assert gzip.decompress((tmp_path / "a.gz").read_bytes()) == b"line\n" * 100
    assert zipfile.ZipFile(tmp_path / "a.zip").read("a.txt") == b"hello"


@pytest.mark.parametrize(
    "holder",
    [
        "f.x = open({0!r}, 'w'); f.x.write('all')",
        "class C: pass\n    c = C(); c.me = c; c.x = open({0!r}, 'wb'); c.x.write(b'all'); del c",
        "import io; global X\n    X = [io.BufferedWriter(io.FileIO({0!r}, 'w'))]; X[0].write(b'all')",
        LOGGING,
        "import builtins; builtins.x = open({0!r}, 'w'); builtins.x.write('all')",
        "import codecs; global X\n    X = codecs.open({0!r}, 'w', 'utf-8'); X.write('all')",
    ],
)
def test_files_are_flushed_whatever_holds_them(live, tmp_path, holder):
    path = tmp_path / "out"
    live.value(f"def f():\n    {holder.format(str(path))}")
    assert path.read_text() == "all"


def test_an_open_zip_member_is_closed(live, tmp_path):
    path = tmp_path / "a.zip"
    live.value(
        f"import zipfile, io\nZ = zipfile.ZipFile({str(path)!r}, 'w')\n"
        "T = io.TextIOWrapper(Z.open('m', 'w'))\ndef f(): T.write('member')"
    )
    assert zipfile.ZipFile(path).read("m") == b"member"


def test_a_database_in_wal_mode_is_checkpointed(live, tmp_path):
    path = tmp_path / "a.db"
    live.value(
        f"import sqlite3\nDB = sqlite3.connect({str(path)!r})\n"
        "def f():\n    DB.execute('pragma journal_mode=wal')\n"
        "    DB.execute('create table t (x)'); DB.execute('insert into t values (1)'); DB.commit()"
    )
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.db"]
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("select x from t").fetchall() == [(1,)]


def test_finalizers_and_hooks_run_and_temporary_files_are_removed(live, tmp_path):
    outcome = live.call(
        "import atexit, os, tempfile, weakref\n"
        "class D:\n"
        "    def __init__(self, name): self.name = name\n"
        "    def __del__(self): print('del', self.name, os.getpid() > 0, CONSTANT)\n"
        "CONSTANT = [1]\nA = D('a')\nB = D('b')\n"
        "atexit.register(print, 'hook 1')\natexit.register(print, 'hook 2')\n"
        f"T = tempfile.TemporaryDirectory(dir={str(tmp_path)!r})\n"
        f"N = tempfile.NamedTemporaryFile(dir={str(tmp_path)!r})\n"
        "weakref.finalize(D, print, 'finalized')\n"
        "def f(): return [os.path.exists(one) for one in (T.name, N.name)]"
    )
    assert value(outcome) == [True, True]
    lines = outcome.output.decode().splitlines()
    assert lines[:3] == ["finalized", "hook 2", "hook 1"]
    assert sorted(lines[3:]) == ["del a True [1]", "del b True [1]"]
    assert list(tmp_path.iterdir()) == []


def test_an_exception_in_a_hook_is_printed_and_fails_nothing(live):
    outcome = live.call(
        "import atexit\ndef bad(): raise ValueError('in a hook')\n"
        "atexit.register(bad)\ndef f(): return 1"
    )
    assert value(outcome) == 1
    assert b"ValueError: in a hook" in outcome.output


def test_a_call_that_raised_exits_the_same_way(live, tmp_path):
    path = tmp_path / "x"
    outcome = live.call(
        f"X = open({str(path)!r}, 'w')\ndef f():\n    X.write('before'); raise ValueError('no')"
    )
    assert outcome.error_type == "ValueError"
    assert path.read_text() == "before"


def test_threads_may_finish_and_slow_ones_are_named(live, tmp_path, gone):
    path = tmp_path / "jobs"
    outcome = live.call(THREADS.format(str(path), 2.0))
    assert path.read_text() == ""
    assert value(outcome) == "submitted"
    (note,) = outcome.warnings
    assert re.fullmatch(r"3 threads still run; they have [89]\.\d s", note)
    assert f"[flashpool: {note}]" in outcome.output.decode()
    assert 0.2 < outcome.receipt.exit_s < 2.0
    (running,) = live.stats().running
    assert (running.phase, running.label) == ("exit", "f")
    assert live.stats().slots.busy == 1
    gone()
    assert sorted(path.read_text().split("\n")) == ["", "job 0", "job 1", "job 2", "job 3"]
    assert live.stats().exits.ended == 0


def test_short_threads_cause_no_warning(make_live, tmp_path):
    live, path = make_live(exit_answer_s=8.0).ready(), tmp_path / "jobs"
    outcome = live.call(THREADS.format(str(path), 0.02))
    assert (value(outcome), outcome.warnings, outcome.output) == ("submitted", (), b"")
    assert path.read_text().count("job") == 4


def test_an_endless_thread_is_stopped_logged_and_counted(make_live, tmp_path, caplog):
    live = make_live(exit_s=0.6, exit_answer_s=0.1, grace_s=0.3).ready()
    path = tmp_path / "left"
    outcome = live.call(
        f"import threading, time, atexit\nX = open({str(path)!r}, 'w')\n"
        "def late(): time.sleep(60)\natexit.register(lambda: X.write('hook'))\n"
        "def f():\n    X.write('text '); threading.Thread(target=late, name='slow').start()"
    )
    assert re.fullmatch(r"1 thread still runs; it has 0\.[0-5] s", outcome.warnings[0])
    assert path.read_text() == "text "
    began = time.monotonic()
    live.until(lambda: live.stats().slots.busy == 0)
    assert time.monotonic() - began < 20, "the thread would go on for a minute"
    assert path.read_text() == "text hook"
    exits = live.stats().exits
    assert (exits.running, exits.ended) == (0, 1)
    number = exits.recent[0].call
    assert exits.recent[0].what == "1 thread (slow)"
    assert f"Call {number} (f)" in caplog.text


def test_an_endless_hook_is_stopped(make_live):
    live = make_live(exit_s=0.4, exit_answer_s=0.1, grace_s=0.2).ready()
    outcome = live.call(
        "import atexit, time, os\natexit.register(time.sleep, 60)\ndef f(): return os.getpid()"
    )
    assert outcome.warnings[0].startswith("exit hooks still run; they have 0.")
    live.until(lambda: not alive(value(outcome)))
    live.until(lambda: live.stats().exits.ended == 1)
    assert live.stats().exits.recent[0].what == "exit hooks"


def test_a_crash_at_exit_keeps_the_result(live):
    outcome = live.call("import atexit, os\natexit.register(os.abort)\ndef f(): return 'kept'")
    assert value(outcome) == "kept"
    assert "signal SIGABRT" in outcome.warnings[0]


def test_the_time_limit_does_not_include_the_exit(live):
    outcome = live.call(
        "import threading, time\ndef f():\n"
        "    threading.Thread(target=time.sleep, args=(0.6,)).start(); return 1",
        run_s=0.4,
    )
    assert value(outcome) == 1


def test_a_call_that_waits_for_its_exit_answers_after_it(live, tmp_path):
    path = tmp_path / "jobs"
    outcome = live.call(THREADS.format(str(path), 0.3), call={"awaits_exit": True})
    assert (value(outcome), outcome.warnings) == ("submitted", ())
    assert path.read_text().count("job") == 4
    assert outcome.receipt.exit_s > 0.5


def test_a_drain_counts_calls_in_their_exits(live, tmp_path):
    path = tmp_path / "jobs"
    live.call(THREADS.format(str(path), 0.5))
    assert live.supervisor.unfinished == 1
    assert live.run(live.supervisor.drain(5))
    assert live.supervisor.unfinished == 0
    assert path.read_text().count("job") == 4


def test_queue_listeners_handle_all_records(live, tmp_path):
    path = tmp_path / "log"
    live.value(
        "import logging, logging.handlers, queue\nQ = queue.Queue()\n"
        f"class Slow(logging.FileHandler):\n"
        "    def emit(self, record):\n        import time; time.sleep(0.005); super().emit(record)\n"
        f"L = logging.handlers.QueueListener(Q, Slow({str(path)!r})); L.start()\n"
        "LOG = logging.getLogger('l'); LOG.addHandler(logging.handlers.QueueHandler(Q))\n"
        "def f():\n    for i in range(20): LOG.warning('line %d', i)"
    )
    assert len(path.read_text().splitlines()) == 20


def test_a_no_op_has_no_output_about_its_exit(live):
    outcome = live.call("def f(): return None")
    assert (outcome.output, outcome.warnings, outcome.receipt.exit_s) == (b"", (), 0.0)


def test_a_soft_limit_lets_finally_run(live, tmp_path):
    path = tmp_path / "left"
    outcome = live.call(
        f"import time\ndef f():\n    try: time.sleep(30)\n    finally: open({str(path)!r}, 'w').close()",
        soft_s=0.3,
        run_s=10,
    )
    assert outcome.error_type == "SoftTimeout"
    assert not outcome.from_user
    assert "soft limit of 0.3 s" in outcome.error
    assert path.exists()


def test_a_soft_limit_can_be_caught_and_the_hard_one_still_holds(live):
    code = (
        "import time\ndef f(more):\n    try: time.sleep(30)\n    except TimeoutError as error:\n"
        "        time.sleep(more); return type(error).__name__"
    )
    assert value(live.call(code, 0, soft_s=0.2, run_s=10)) == "SoftTimeout"
    assert live.call(code, 30, soft_s=0.2, run_s=0.6).error_type == "Timeout"
    assert live.value("def f(): return 1", soft_s=5) == 1


def test_a_scratch_directory_is_removed_with_its_call(live, tmp_path):
    code = (
        "import os, tempfile\ndef f(how):\n    open('here', 'w').close(); t = tempfile.mkdtemp()\n"
        "    print(os.getcwd(), flush=True)\n    if how: os.kill(os.getpid(), 9)\n"
        "    return os.getcwd() == os.environ['TMPDIR'] == os.path.dirname(t)"
    )
    fine = live.call(code, 0, call={"scratch": True})
    assert value(fine)
    assert fine.warnings == ()
    crashed = live.call(code, 1, call={"scratch": True})
    assert crashed.error_type == "WorkerCrashed"
    paths = [Path(one.output.decode().strip()) for one in (fine, crashed)]
    assert paths[0] != paths[1]
    live.until(lambda: not any(path.exists() for path in paths))
    live.run(live.supervisor.stop())
    assert not paths[0].parent.exists()


@pytest.mark.parametrize("missing", [True, False], ids=["no-root", "no-directory"])
def test_a_scratch_directory_that_cannot_be_created_fails_the_call(make_live, tmp_path, missing):
    """For calls and instances alike; the next call has a scratch directory again."""
    live = make_live(worker_env={**WORKER_ENV, "TMPDIR": str(tmp_path / "tmp")}, slots=1)
    complaints = []
    live.loop.set_exception_handler(lambda _loop, context: complaints.append(context))
    place = tmp_path / "tmp"
    if not missing:  # remove the common parent directory that exists already
        place.mkdir()
        assert live.call("def f(): pass", call={"scratch": True}).ok
        shutil.rmtree(place)
    for _ in range(2):
        called = live.call("def f(): pass", call={"scratch": True})
        made = run(live, "a", "inc", call={"scratch": True})
        for outcome in (called, made):
            assert outcome.error_type == "WorkerCrashed"
            assert "TMPDIR" in outcome.error
    assert run(live, "b", "inc").ok
    place.mkdir()
    assert live.call("def f(): pass", call={"scratch": True}).ok
    assert run(live, "a", "inc", call={"scratch": True}).ok
    assert not complaints


def test_the_files_are_the_same_as_in_plain_python(live, tmp_path):
    """Run the program of the first test in the interpreter; it writes the same files."""
    (tmp_path / "plain").mkdir()
    code = FILES.format(str(tmp_path / "plain")) + "f()"
    subprocess.run([sys.executable, "-c", code], check=True)
    (tmp_path / "call").mkdir()
    live.value(FILES.format(str(tmp_path / "call")))
    for name in ("a.txt", "a.gz"):
        one, other = ((tmp_path / where / name).read_bytes() for where in ("plain", "call"))
        # Except for the time in a gzip header.
        assert one[:4] + one[8:] == other[:4] + other[8:]


def _late(path, seconds=0.4):
    def work():
        time.sleep(seconds)
        path.write_text("done")

    threading.Thread(target=work).start()
    return "returned"


def _items(path):
    file = path.open("w")
    globals()["KEPT"] = file
    for number in range(3):
        file.write(f"{number}\n")
        yield number


def test_a_pool_that_closes_waits_for_the_exits_of_its_calls(tmp_path):
    paths = [tmp_path / str(number) for number in range(4)]
    began = time.monotonic()
    with Pool(2) as pool:
        future = pool.submit(_late, paths[0])
        assert future.result() == "returned"
        assert future.warnings[0].startswith("1 thread still runs; it has 9.")
        assert list(pool.map(_late, paths[1:], chunksize=3)) == ["returned"] * 3
        assert pool.stats().exits.running > 0
    assert time.monotonic() - began < 8
    assert [path.read_text() for path in paths] == ["done"] * 4


def test_a_generator_exits_the_same_way(tmp_path):
    path = tmp_path / "items"
    with Pool(1) as pool:
        assert list(pool.submit(_items, path).result()) == [0, 1, 2]
    assert path.read_text() == "0\n1\n2\n"


def test_a_soft_timeout_is_raised_with_its_own_class():
    with Pool(1) as pool, pytest.raises(SoftTimeout, match=r"soft limit of 0\.2 s"):
        pool.options(soft_timeout=0.2, timeout=20).submit(time.sleep, 30).result()


def test_hooks_that_preloaded_modules_registered_run_in_each_call(make_live, tmp_path):
    (tmp_path / "hooked_module.py").write_text(
        "import atexit\nNAMES = []\natexit.register(lambda: print('hook', *NAMES))\n"
    )
    live = make_live(preload=("hooked_module",), extra_path=(str(tmp_path),)).ready()
    code = "import hooked_module\ndef f(name): hooked_module.NAMES.append(name)"
    assert live.call(code, "a").output == b"hook a\n"
    assert live.call(code, "b").output == b"hook b\n"


def test_a_call_that_leaves_nothing_skips_the_exit(live):
    """The call removes a function that the close check uses, so a check would show in the figures."""
    needs = "sys.modules['_flashpool.running.exit_needs']"
    code = f"def f():\n    import sys\n    {needs}.get_objects = None\n"
    assert live.call(code).ok
    live.until(lambda: live.stats().slots.busy == 0)
    assert live.stats().exits.ended == 0
    assert live.call(code + "KEPT = [1]").ok
    live.until(lambda: live.stats().exits.ended == 1)
