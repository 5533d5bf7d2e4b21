"""Memory tricks: calls behave the same without them, each can be off, and a kernel may refuse."""

from __future__ import annotations

import errno
import os
import platform
import re
import sys
import textwrap
from collections.abc import Iterator

import pytest

from flashpool.pool import Pool
from flashpool.pool._child.fork_server import memory_tricks
from flashpool.pool._child.fork_server.memory_tricks import ALL, IMMORTAL, LAYOUT, MAPPINGS, UNTRIED
from flashpool.pool.calls import Outcome
from support import wants
from support.interpreters import virtualenv
from support.live import Live, value

USABLE = memory_tricks.usable(ALL)
FORMS = [*((one,) for one in ALL), ALL]

#: Finds out which tricks a call's process has, without asking the zygote.
FINDS = """
def f():
    import dis, json, sys
    from _flashpool.fork_server import worker_start

    with open("/proc/self/maps") as maps:
        rows = [line.split() for line in maps if "libc.so" in line]
    codes = [one.__code__.co_code for one in vars(worker_start).values() if type(one) is type(f)]
    return {
        "layout": any(code[-2] == dis.opmap["NOP"] for code in codes),
        "immortal": sys.getrefcount(json.loads) > 1 << 28,
        "mappings": rows[0][1] == "r-xp",
    }
"""

#: Calls that exercise what the tricks change: functions of the standard library, references,
#: object lifetimes, tracebacks, allocations of all sizes, libraries, forks.
CALLS = {
    "a value": "def f():\n    return {'a': [1, 2.5, None], 'b': {3, 4}}",
    "an error in a function of the library": """
        def f():
            import json
            print("before")
            json.loads("[1, 2")
    """,
    "an error with causes": """
        def f():
            try:
                {}["missing"]
            except KeyError as error:
                raise ValueError("no way") from error
    """,
    "too deep": "def f(n=0):\n    return f(n + 1)",
    "lines that are traced": """
        def f():
            import json, sys
            lines = []
            def trace(frame, event, argument):
                lines.append((frame.f_code.co_name, event, frame.f_lineno))
                return trace
            sys.settrace(trace)
            json.loads('{"a": [1, 2]}')
            sys.settrace(None)
            return lines
    """,
    "sources, names and lines of functions": """
        def f():
            import inspect, json, pickle, socket, threading
            functions = [json.loads, json.dumps, socket.socket.__init__, threading.Thread.start]
            return [
                (inspect.getsource(one), str(inspect.signature(one)), one.__code__.co_firstlineno,
                 one.__code__.co_names, one.__code__.co_consts[0], pickle.dumps(one))
                for one in functions
            ]
    """,
    "functions that are replaced": """
        def f():
            import gc, json
            before = json.loads
            json.loads = lambda text: "mine"
            mine = json.loads("[]")
            del json.loads
            gc.collect()
            return mine, hasattr(json, "loads"), before("[1]")
    """,
    "code that is replaced": """
        def f():
            import json
            json.loads.__code__ = (lambda text, **_: ["mine", text]).__code__
            return json.loads("x")
    """,
    "functions by value": """
        def f():
            import cloudpickle, json
            copy = cloudpickle.loads(cloudpickle.dumps(json.loads))
            anew = type(f)(json.loads.__code__, vars(json), "anew", json.loads.__defaults__,
                           json.loads.__closure__)
            anew.__kwdefaults__ = json.loads.__kwdefaults__
            return copy("[1]"), anew("[2]")
    """,
    "objects that die": """
        def f():
            import gc, weakref
            class Thing:
                def __del__(self):
                    died.append("thing")
            died = []
            thing = Thing()
            gone = weakref.ref(thing, lambda _: died.append("reference"))
            weakref.finalize(thing, died.append, "finalizer")
            thing.itself = thing
            del thing
            gc.collect()
            return sorted(died), gone() is None
    """,
    "references to new objects": """
        def f():
            import sys
            new = [object(), [], {}, f"{f}", 10**30, lambda: None]
            return [sys.getrefcount(one) for one in new]
    """,
    "memory of all sizes": """
        def f():
            kept = []
            for size in (1, 30, 200, 512, 513, 4000, 70_000, 1 << 20, 1 << 25):
                kept += [bytes([n % 251]) * size for n in range(max(1, min(2000, (1 << 24) // size)))]
                del kept[::3]
            return sum(map(len, kept)), [one[0] for one in kept[::101]]
    """,
    "libraries of C": """
        def f():
            import ctypes, decimal, hashlib, sqlite3, zlib
            with_callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(lambda n: n + 1)
            rows = sqlite3.connect(":memory:").execute("select 6 * 7").fetchall()
            return (with_callback(4), rows, str(decimal.Decimal(2).sqrt()),
                    hashlib.sha256(b"a").hexdigest(), zlib.crc32(b"b"))
    """,
    "arrays": """
        def f():
            import numpy as np
            a = np.arange(10_000.0).reshape(100, 100)
            return float(np.linalg.norm(a @ a)), np.sort(a.ravel())[::-1][:3].tolist()
    """,
    "code that is made": """
        def f():
            names = {}
            exec(compile("def made(x):\\n    return [x * n for n in range(5)]", "made", "exec"), names)
            return [names["made"](n) for n in range(300)][-1]
    """,
    "threads": """
        def f():
            from concurrent.futures import ThreadPoolExecutor
            with ThreadPoolExecutor(4) as threads:
                return list(threads.map(lambda n: n * n, range(50)))
    """,
    "a loop": """
        def f():
            import asyncio
            async def one(n):
                await asyncio.sleep(0)
                return n
            async def all():
                return await asyncio.gather(*map(one, range(20)))
            return asyncio.run(all())
    """,
    "processes": """
        def f():
            import multiprocessing, os, subprocess, sys
            with multiprocessing.get_context("fork").Pool(2) as pool:
                squares = pool.map(abs, range(-5, 0))
            return squares, subprocess.check_output([sys.executable, "-c", "print(7)"])
    """,
    "executable memory": """
        def f():
            import mmap
            with mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | 4) as memory:
                memory[:3] = b"abc"
                return memory[:3]
    """,
    "an exit": "def f():\n    import os\n    print('bye', flush=True)\n    os._exit(3)",
    "a crash": "def f():\n    import os, signal\n    os.kill(os.getpid(), signal.SIGSEGV)",
}


def ends(live: Live) -> dict[str, list[object]]:
    """Return how each call finishes: the first time, and with its source compiled ahead."""
    return {
        name: [end(live.call(textwrap.dedent(code))) for _ in range(3)]
        for name, code in CALLS.items()
    }


def end(outcome: Outcome) -> tuple[object, ...]:
    if outcome.ok:
        return value(outcome), outcome.output
    return outcome.error_type, masked(outcome.error or ""), masked(outcome.output.decode())


def masked(text: str) -> str:
    """Remove addresses and pids, which differ from call to call."""
    return re.sub(r"0x[0-9a-f]+|\bpid \d+|process \d+", "...", text)


@pytest.fixture(scope="module")
def plain_ends() -> Iterator[dict[str, list[object]]]:
    """Return how calls finish without any trick."""
    live = Live(memory_tricks=()).ready()
    try:
        yield ends(live)
    finally:
        live.close()


@pytest.mark.parametrize("tricks", FORMS, ids="+".join)
def test_calls_behave_the_same_with_and_without_tricks(make_live, plain_ends, tricks):
    found = ends(make_live(memory_tricks=tricks).ready())
    for name in CALLS:
        assert found[name] == plain_ends[name], name


def test_most_of_those_calls_succeed(plain_ends):
    """Otherwise the comparison would only compare failures."""
    failed = {name for name in CALLS if isinstance(plain_ends[name][0][-1], str)}
    assert failed == {
        "an error in a function of the library",
        "an error with causes",
        "too deep",
        "an exit",
        "a crash",
    }


class Account:
    def __init__(self, balance: int) -> None:
        self.balance = balance

    def pay(self, amount: int) -> int:
        if amount > self.balance:
            raise ValueError(f"only {self.balance}")
        self.balance -= amount
        return self.balance


def test_calls_of_pool_behave_the_same_with_and_without_tricks():
    offset = 3

    def count(n: int) -> Iterator[int]:
        yield from range(offset, offset + n)

    def failing(n: int) -> float:
        return 1 / n

    def all_ends(pool: Pool) -> list[object]:
        error = pool.submit(failing, 0).exception()
        account = pool.instance(Account, 10)
        return [
            list(pool.map(lambda n: n + offset, range(50))),
            list(pool.map(abs, range(-5, 0))),
            (type(error), error.args),
            account.pay(4).result(),
            str(account.pay(7).exception()),
            list(pool.submit(count, 4).result()),
        ]

    with Pool(1, memory_tricks=()) as without, Pool(1) as all_of_them:
        assert all_ends(without) == all_ends(all_of_them)


@pytest.mark.parametrize("tricks", [(), *FORMS], ids=lambda tricks: "+".join(tricks) or "none")
def test_only_the_requested_tricks_are_used(make_live, tricks):
    live = make_live(memory_tricks=tricks).ready()
    used = [one for one in tricks if one in USABLE]
    assert live.zygote().memory_tricks == used
    found = live.value(FINDS)
    if sys.version_info < (3, 11):
        # On these versions code has no inline caches, and is not made longer.
        found["layout"] = LAYOUT in used
    assert found == {one: one in used for one in ALL}


def test_a_source_compiled_ahead_is_immortal_only_if_requested(make_live):
    code = "import sys\ndef f():\n    return sys.getrefcount(f.__code__) > 1 << 28"
    for tricks in ((), ALL):
        live = make_live(memory_tricks=tricks).ready()
        last = [live.value(code) for _ in range(10)][-1]
        assert last == (IMMORTAL in tricks and IMMORTAL in USABLE)


def test_spawned_workers_use_no_tricks(make_live):
    live = make_live(start_method="spawn").ready()
    assert live.zygote().memory_tricks == []
    assert not any(live.value(FINDS).values())


UNTRIED_PYTHON = "import sys; sys.modules['_flashpool.fork_server.memory_tricks'].TRIED = ()"


def test_on_an_untested_python_tricks_are_off_unless_asked_for(make_live, tmp_path):
    python = str(virtualenv(tmp_path / "env", at_start=UNTRIED_PYTHON))
    live = make_live(base_python=python).ready()
    assert live.zygote().memory_tricks == []
    assert not any(live.value(FINDS).values())
    live = make_live(base_python=python, memory_tricks=(*ALL, UNTRIED)).ready()
    assert live.zygote().memory_tricks == USABLE


#: Makes the kernel refuse to make memory executable, from now on in this process (seccomp).
REFUSE = """
import ctypes, struct

def refuse(number, call):
    program = struct.pack(
        "<" + 6 * "HBBI",
        0x20, 0, 0, 0,                # load the system call's number
        0x15, 0, 3, call,             # not mprotect: allow it
        0x20, 0, 0, 32,               # load its third argument
        0x45, 0, 1, 4,                # without PROT_EXEC: allow it
        0x06, 0, 0, 0x50000 | number, # refuse it with this error
        0x06, 0, 0, 0x7FFF0000,       # allow it
    )
    kept = ctypes.create_string_buffer(program, len(program))
    filters = struct.pack("HxxxxxxP", 6, ctypes.addressof(kept))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    assert libc.prctl(22, 2, filters, 0, 0) == 0, ctypes.get_errno()  # PR_SET_SECCOMP
"""
#: The system call number of mprotect.
MPROTECT = {"x86_64": 10, "aarch64": 226}
#: PR_SET_MDWE: no descendant can make memory executable. Linux 6.3 and later.
REFUSE_GAIN = "import ctypes; assert ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) == 0"
REFUSALS = {
    **{
        errno.errorcode[number]: f"{REFUSE}\nrefuse({number}, {MPROTECT[platform.machine()]})"
        for number in (errno.EACCES, errno.EPERM, errno.ENOSYS, errno.EINVAL)
        if platform.machine() in MPROTECT
    },
    "MDWE": REFUSE_GAIN,
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_mappings_stay_as_they_are_where_the_kernel_refuses_changes(make_live, tmp_path, refusal):
    if refusal == "MDWE" and tuple(map(int, os.uname().release.split(".")[:2])) < (6, 3):
        raise wants.missing("Linux 6.3", "PR_SET_MDWE is newer than this kernel")
    python = str(virtualenv(tmp_path / "env", at_start=REFUSALS[refusal]))
    live = make_live(base_python=python).ready()
    others = [one for one in USABLE if one != MAPPINGS]
    assert live.zygote().memory_tricks == others
    assert not live.value(FINDS)["mappings"]
    (zygote,) = live.supervisor._components.zygote_set
    assert zygote.words.tail(1000) == ""
