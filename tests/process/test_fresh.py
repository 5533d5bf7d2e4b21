"""Calls forked from a preloaded process find a fresh one: real zygotes, real imports."""

from __future__ import annotations

import random
import textwrap

import numpy as np
import pytest

from support.live import WORKER_ENV, Live, value

#: A module body that takes long enough to be worth preloading.
HEAVY = "PAYLOAD = list(range(1000))\n"


class Fresh:
    """A pool whose calls may import modules of the test's own."""

    def __init__(self, make_live, folder, **config) -> None:
        self.folder = folder
        config.setdefault("workdir", str(folder))
        env = {**WORKER_ENV, "FRESH_FOLDER": str(folder), **config.pop("worker_env", {})}
        self.live: Live = make_live(extra_path=(str(folder),), worker_env=env, **config).ready()

    def module(self, name: str, source: str) -> None:
        (self.folder / f"{name}.py").write_text(HEAVY + textwrap.dedent(source))

    def settled(self) -> None:
        """Wait until no zygote is starting."""
        self.live.until(lambda: all(z.state == "ready" for z in self.live.stats().zygotes))

    def outcomes(self, code: str, calls: int = 4, **options):
        """Outcomes of a first call, and of later calls after the preloading is decided."""
        found = [self.live.call(code, **options)]
        self.settled()
        found += [self.live.call(code, **options) for _ in range(calls - 1)]
        return found

    def values(self, code: str, calls: int = 4, **options):
        return [value(outcome) for outcome in self.outcomes(code, calls, **options)]

    def reason(self, name: str) -> str:
        """Return why the module is not preloaded."""
        return next(z.skipped[name] for z in self.live.stats().zygotes if name in z.skipped)


@pytest.fixture
def fresh(make_live, tmp_path):
    return Fresh(make_live, tmp_path)


def source(body: str) -> str:
    return "def f():\n" + textwrap.indent(textwrap.dedent(body), "    ")


# -- State that forks would share or lose --------------------------------------------------

CONNECTING = """
    import socket
    with socket.create_server(("127.0.0.1", 0)) as listener:
        socket.create_connection(listener.getsockname()).close()
"""
SHARED = {
    "a file": ("LOG = open(__file__ + '.log', 'a')", "descriptor"),
    "a database": (
        "import sqlite3; DB = sqlite3.connect(__file__ + '.db'); DB.execute('create table if not exists t(x)')",
        "descriptor",
    ),
    "a socket that listens": (
        "import socket; S = socket.create_server(('127.0.0.1', 0))",
        "socket",
    ),
    "a pipe": ("import os; ENDS = os.pipe()", "descriptor"),
    "a lock of several processes": ("import multiprocessing as m; LOCK = m.Lock()", "forks share"),
    "a number of several processes": (
        "import multiprocessing as m; N = m.RawValue('i', 0)",
        "every call would share",
    ),
    "a shared mapping": ("import mmap; M = mmap.mmap(-1, 4096)", "forks share"),
    "a process": ("import subprocess; P = subprocess.Popen(['sleep', '60'])", "started a process"),
    "a thread": (
        "import threading; T = threading.Thread(target=threading.Event().wait, daemon=True); T.start()",
        "thread",
    ),
    "a timer": ("import signal; signal.setitimer(signal.ITIMER_VIRTUAL, 600)", "timer"),
    "a temporary directory": ("import tempfile; D = tempfile.mkdtemp()", "writes a file"),
    "a file that it writes": ("open(__file__ + '.seen', 'a').close()", "writes a file"),
    "something printed": ("print('welcome')", "prints"),
    "something printed by C": ("import ctypes; ctypes.CDLL(None).puts(b'welcome')", "prints"),
    "a warning": ("import warnings; warnings.warn('old')", "prints"),
    "an empty line printed": ("print()", "prints"),
    "a connection that it closes": (CONNECTING, "connects to"),
    "a token as a key": ("import uuid; TABLE = {uuid.uuid4().hex: 1}", "random bytes"),
    "a digest of random bytes": (
        "import hashlib, os; S = hashlib.sha256(os.urandom(8)).hexdigest()",
        "random bytes",
    ),
    "the end of an identifier": ("import uuid; S = uuid.uuid4().hex[-6:]", "random bytes"),
    "a closure over a token": (
        "import uuid\ndef f(token=uuid.uuid4().hex): return lambda: token",
        "random bytes",
    ),
    "a sequence of seeds": (
        "import numpy; SEEDS = numpy.random.SeedSequence()",
        "sequence of random seeds",
    ),
    "a generator that is given a state": (
        "import numpy as n; G = n.random.default_rng(); G.bit_generator.state = n.random.PCG64(1).state",
        "another state",
    ),
    "a copy of a generator": (
        "import copy, random; R = random.Random(); C = copy.deepcopy(R)",
        "another state",
    ),
    "a name for its database": (
        "import sqlite3; sqlite3.connect(__file__ + '.db').close()",
        "writes a file",
    ),
    "a token in a list": ("import os; TOKENS = [os.urandom(16)]", "random bytes"),
    "another directory": ("import os; os.chdir('/usr')", "working directory"),
    "seeded numbers": ("import random; random.seed(4)", "random"),
    "seeded numbers of NumPy": ("import numpy; numpy.random.seed(4)", "random"),
}


@pytest.mark.parametrize("name", SHARED)
def test_a_module_whose_import_leaves_state_behind_is_not_preloaded(fresh, name):
    body, words = SHARED[name]
    fresh.module("culprit", body)
    fresh.module("innocent", "")
    outcomes = fresh.outcomes(source("import culprit; return len(culprit.PAYLOAD)"))
    assert [outcome.error for outcome in outcomes] == [None] * 4
    assert len({outcome.output for outcome in outcomes}) == 1, "each call prints the same"
    if "numpy" not in body:  # numpy is preloaded in any case
        assert not any(outcome.receipt.preloaded for outcome in outcomes)
    assert words in fresh.reason("culprit")
    assert fresh.outcomes(source("import innocent; return 1"))[-1].receipt.preloaded


#: Like polars: a function of an extension module starts a thread once, at import.
RUNTIME = """
    import os, threading
    CALLS = []
    def __register_startup_deps(warn):
        CALLS.append((os.getpid(), warn))
        threading.Thread(target=threading.Event().wait, name="cleaner", daemon=True).start()
"""
FRAMES = """
    from _polars_runtime_32 import _polars_runtime as runtime
    from _polars_runtime_32._polars_runtime import __register_startup_deps
    def warn(): pass
    __register_startup_deps(warn)
"""
USES_FRAMES = """
    import os, threading, frames
    [(pid, warn)] = frames.runtime.CALLS
    threads = [one.name for one in threading.enumerate()]
    name = "__register_startup_deps"
    is_whole = vars(frames)[name] is vars(frames.runtime)[name]
    return [pid == os.getpid(), warn is frames.warn, threads.count("cleaner"), is_whole]
"""


def test_threads_that_one_known_function_starts_are_started_in_each_call(fresh):
    runtime = fresh.folder / "_polars_runtime_32"
    runtime.mkdir()
    (runtime / "__init__.py").write_text("")
    (runtime / "_polars_runtime.py").write_text(textwrap.dedent(RUNTIME))
    fresh.module("frames", FRAMES)
    outcomes = fresh.outcomes(source(USES_FRAMES))
    assert [value(outcome) for outcome in outcomes] == [[True, True, 1, True]] * 4
    assert outcomes[-1].receipt.preloaded


def test_writing_bytecode_does_not_prevent_preloading(make_live, tmp_path):
    (tmp_path / "package.py").write_text(HEAVY + "import part")
    (tmp_path / "part.py").write_text("")
    fresh = Fresh(make_live, tmp_path, preload=("package",))
    assert value(fresh.live.call(source("import package; return len(package.PAYLOAD)"))) == 1000
    assert [dict(zygote.skipped) for zygote in fresh.live.stats().zygotes] == [{}]
    assert fresh.live.call(source("import package")).receipt.preloaded


def test_random_numbers_that_an_import_seeds_are_the_same_everywhere(fresh):
    fresh.module("culprit", "import random; random.seed(4)")
    code = source("import culprit, random; return random.random()")
    assert fresh.values(code) == [random.Random(4).random()] * 4


def test_a_module_that_imports_such_a_module_is_not_preloaded_either(fresh):
    fresh.module("culprit", "print('welcome')")
    fresh.module("user", "def late(): import json\nfrom culprit import PAYLOAD as P")
    outcomes = fresh.outcomes(source("import user; return 1"))
    assert [outcome.output for outcome in outcomes] == [b"welcome\n"] * 4
    assert "it needs culprit: it prints" in fresh.reason("user")


def test_one_unsuitable_module_does_not_prevent_preloading_others(fresh):
    fresh.module("culprit", "import tool_a, tool_b; LOG = open(__file__ + '.log', 'a')")
    fresh.module("tool_a", "import tool_b")
    fresh.module("tool_b", "")
    outcomes = fresh.outcomes(source("import culprit; return 1"))
    assert outcomes[-1].receipt.preloaded, "what it needs is"
    assert set(fresh.live.zygote(1).skipped) == {"culprit"}


@pytest.mark.parametrize(
    "end", ["os._exit(0)", "os._exit(3)", "os.kill(os.getpid(), 11)", "raise SystemExit(1)"]
)
def test_an_import_that_exits_ends_a_scout_and_no_zygote(fresh, end):
    once = f"import os, sys\nif type(sys.argv) is not list: {end}  # as in a scout"
    fresh.module("culprit", once)
    fresh.module("innocent", "")
    code = source("import culprit, innocent; return 1")
    assert fresh.values(code) == [1] * 4
    assert "culprit" in fresh.live.zygote(1).skipped
    assert "innocent" not in fresh.live.zygote(1).skipped
    assert [z.starts for z in fresh.live.stats().zygotes] == [1, 1]


# -- Random numbers, and other values that belong to one process ---------------------------

DRAWN = {
    "random": "import random; return random.random()",
    "a generator of a module": "import holder; return holder.RNG.random()",
    "one that its class keeps": "import holder; return holder.Holder.rng.random()",
    "one in a closure": "import holder; return holder.hidden()",
    "numpy": "import numpy; return float(numpy.random.rand())",
    "numpy, later numbers": "import numpy; return [float(numpy.random.randn()) for _ in range(700)][-1]",
    "a generator of NumPy": "import holder; return float(holder.GENERATOR.random())",
    "a random state of NumPy": "import holder; return float(holder.STATE.rand())",
    "a child of a generator of NumPy": "import holder; return float(holder.GENERATOR.spawn(1)[0].random())",
    "generators of one seed": "import holder; return [float(g.random()) for g in holder.SOME]",
    "a generator with a class of its own": "import holder; return holder.NAMED.random(), holder.NAMED.made",
    "an identifier": "import holder; return str(holder.SESSION)",
    "a part of one": "import holder; return holder.NAME",
    "a number kept": "import holder; return holder.HASH_SEED",
    "one of NumPy kept": "import holder; return int(holder.NUMBER)",
    "a token": "import holder; return holder.TOKEN",
    "bytes": "import holder; return holder.SALT.hex()",
    "an object's identifier": "import holder; return holder.CLIENT.identifier",
    "uuid4": "import holder, uuid; return uuid.uuid4().hex",
    "os.urandom": "import holder, os; return os.urandom(8).hex()",
    "secrets": "import holder, secrets; return secrets.token_hex(8)",
    "the key of multiprocessing": "import holder, multiprocessing as m; return bytes(m.current_process().authkey).hex()",
    "the process": "import holder, os; return holder.PID - os.getpid(), os.getpid()",
    "the process in a text": (
        "import holder, os; return int(holder.OWN.split('-')[1]) - os.getpid(), os.getpid()"
    ),
}
HOLDER = """
    class Odd:
        __module__ = 5
    ODD = Odd()
    class Proxy:
        def __getattribute__(self, name): raise RuntimeError("nobody is here")
        __class__ = property(lambda self: 1 / 0)
    PROXY = Proxy()
    import multiprocessing, os, random, secrets, time, uuid
    import numpy
    RNG = random.Random()
    class Holder:
        rng = random.Random()
    def hide(rng=random.Random()):
        return lambda: rng.random()
    hidden = hide()
    GENERATOR = numpy.random.default_rng()
    STATE = numpy.random.RandomState()
    SESSION = uuid.uuid4()
    NAME = f"run-{uuid.uuid4().hex[:12]}-x"
    TOKEN = secrets.token_urlsafe(16)
    SALT = os.urandom(16)
    HASH_SEED = random.getrandbits(64)
    NUMBER = numpy.random.randint(1 << 60)
    class Client:
        def __init__(self): self.identifier = uuid.uuid4().hex
    CLIENT = Client()
    PID = os.getpid()
    OWN = f"/tmp/of-{os.getpid()}-here"
    STARTED = time.time()
    class Named(random.Random):
        def __init__(self, name):
            self.made = getattr(self, "made", 0) + 1
            super().__init__()
    NAMED = Named("x")
    SOME = numpy.random.default_rng().spawn(3) if hasattr(numpy.random.Generator, "spawn") else []
    SOME += [numpy.random.default_rng()]
    LATER = random.Random()
    LATER.seed(42)
    FIXED = random.Random(4)
    FIXED_GENERATOR = numpy.random.default_rng(4)
"""


def test_values_that_only_look_like_a_process_id_are_unchanged(fresh):
    """In a container pids are small, so strings and numbers of modules may contain them."""
    fresh.module(
        "counts",
        """
    import os
    PID = os.getpid()
    TEXT = " ".join(map(str, range(100_000)))
    vars().update({f"N{number}": number for number in range(2000)})
    """,
    )
    code = source(
        "import counts, os\n"
        "same = counts.TEXT == ' '.join(map(str, range(100_000)))\n"
        "return same and all(getattr(counts, f'N{n}') == n for n in range(2000)), "
        "counts.PID == os.getpid()"
    )
    outcomes = fresh.outcomes(code, 4)
    assert outcomes[-1].receipt.preloaded
    assert {value(outcome) for outcome in outcomes} == {(True, True)}


@pytest.mark.parametrize("name", DRAWN)
def test_every_call_draws_its_own_random_numbers(fresh, name):
    fresh.module("holder", HOLDER)
    outcomes = fresh.outcomes(source(f"import holder; {DRAWN[name]}"), 12)
    values = [value(outcome) for outcome in outcomes]
    assert len(set(map(str, values))) == 12, values
    assert not any("holder" in zygote.skipped for zygote in fresh.live.stats().zygotes)
    assert outcomes[-1].receipt.preloaded
    if name.startswith("the process"):
        assert {difference for difference, _ in values} == {0}


def test_an_import_may_draw_random_numbers(fresh):
    fresh.module("drawer", "import random; NUMBERS = [random.random() for _ in range(5000)]")
    outcomes = fresh.outcomes(source("import drawer, random; return random.random()"))
    assert outcomes[-1].receipt.preloaded
    assert len({value(outcome) for outcome in outcomes}) == 4


def test_seeded_generators_are_unchanged(fresh):
    fresh.module("holder", HOLDER)
    code = source("""
        import holder as h
        return [g.random() for g in (h.FIXED, h.FIXED_GENERATOR, h.LATER)]
    """)
    assert len(set(map(str, fresh.values(code)))) == 1


def test_an_import_time_that_a_module_stores_is_that_of_the_call(fresh):
    fresh.module("holder", HOLDER)
    code = source("import holder, time; return time.time() - holder.STARTED")
    assert all(0 <= age < 5 for age in fresh.values(code))


def test_forks_of_one_batch_draw_different_numbers(fresh):
    fresh.module("holder", HOLDER)
    code = source("import holder, numpy; return float(numpy.random.rand()), holder.RNG.random()")
    fresh.outcomes(code)
    started = [fresh.live.start(code) for _ in range(100)]
    assert len({value(one.wait()) for one in started}) == 100


SEEDED = """
    import holder, numpy, os, random, uuid
    fixed = [
        holder.NAMED.random(), float(holder.SOME[0].random()), holder.LATER.random(),
        random.random(), random.Random().random(), holder.RNG.random(), holder.Holder.rng.random(),
        holder.hidden(), float(numpy.random.rand()), float(holder.GENERATOR.random()),
        float(holder.STATE.rand()), float(numpy.random.default_rng().random()),
    ]
    return fixed, [uuid.uuid4().hex, os.urandom(4).hex(), holder.SESSION.hex]
"""


def test_a_seed_gives_the_same_numbers_whether_preloaded_or_not(fresh):
    fresh.module("holder", HOLDER)
    one = fresh.values(source(SEEDED), call={"seed": 1})
    two = fresh.values(source(SEEDED), call={"seed": 2})
    assert len({str(fixed) for fixed, _ in one}) == 1
    assert len({str(fixed) for fixed, _ in two}) == 1
    assert one[0][0] != two[0][0]
    assert len(set(one[0][0]) & set(two[0][0])) == 1, "one was given a seed"
    assert len({drawn for _, some in one + two for drawn in some}) == 3 * len(one + two)


def test_a_seed_gives_the_numbers_of_the_libraries_own_seed(fresh):
    code = source("import random, numpy; return random.random(), float(numpy.random.rand())")
    expected = random.Random(7).random(), float(np.random.RandomState(7).rand())
    assert fresh.values(code, call={"seed": 7}) == [expected] * 4


# -- Surroundings that imports read --------------------------------------------------------

READER = """
    import os, sys, locale
    HOME = os.environ.get("FRESH_HOME", "unset")
    HERE = os.getcwd()
    PREFIXED = {k: v for k, v in os.environ.items() if k.startswith("FRESH_P_")}
    ARGUMENTS = list(sys.argv)
    ASKED = "mine" in sys.argv
    CONFIG = os.path.exists("reader.cfg")
"""


@pytest.fixture
def reader(fresh):
    fresh.module("reader", READER)
    return fresh


SHADOWED = """
    import os, sys
    folder = os.environ["FRESH_FOLDER"] + "/other"
    os.makedirs(folder, exist_ok=True)
    with open(folder + "/reader.py", "w") as file:
        file.write("HOME = 'mine'")
    sys.path.insert(0, folder)
    import reader
    return reader.HOME
"""
REPLACED = """
    import sys, types
    sys.modules["reader"] = types.ModuleType("reader")
    sys.modules["reader"].HOME = "mine"
    import reader
    return reader.HOME
"""


@pytest.mark.parametrize(
    "body",
    [
        "import os; os.environ['FRESH_HOME'] = 'mine'; import reader; return reader.HOME",
        "import os; os.environ.update(FRESH_HOME='mine'); import reader; return reader.HOME",
        "import os; os.environ.setdefault('FRESH_HOME', 'mine'); import reader; return reader.HOME",
        "import os; os.putenv('X', 'y'); os.environ['FRESH_HOME'] = 'mine'; import reader; return reader.HOME",
        "import os; os.environ['FRESH_P_A'] = 'mine'; import reader; return reader.PREFIXED['FRESH_P_A']",
        "import os; os.chdir('/usr'); import reader; return reader.HERE.replace('/usr', 'mine')",
        "import sys; sys.argv = ['mine']; import reader; return 'mine' if reader.ASKED else ''",
        "import sys; sys.argv = ['mine']; import reader; return reader.ARGUMENTS[0]",
        SHADOWED,
        REPLACED,
    ],
)
def test_imports_see_changes_made_by_the_source(reader, body):
    # Another function's calls get the module preloaded.
    others = reader.outcomes(source("import reader; return reader.HOME"))
    assert others[-1].receipt.preloaded
    assert reader.values(source(body)) == ["mine"] * 4
    assert reader.values(source("import reader; return reader.HOME")) == ["unset"] * 4


def test_variables_of_a_request_are_seen_by_imports(reader):
    code = source("import reader; return reader.HOME")
    assert reader.values(code) == ["unset"] * 4
    call = {"env": {"FRESH_HOME": "mine"}, "touches": frozenset(("env:FRESH_HOME",))}
    assert reader.values(code, call={**call, "function_key": "with it"}) == ["mine"] * 4
    other = {"env": {"FRESH_X": "y"}, "touches": frozenset(("env:FRESH_X",))}
    assert reader.outcomes(code, call={**other, "function_key": "x"})[-1].receipt.preloaded


def test_a_change_not_visible_in_the_source_is_warned_of_once(reader):
    reader.module("helper", "def change(name, value):\n    import os; os.environ[name] = value")
    code = source(
        "import helper; helper.change('FRESH_HOME', 'mine'); import reader; return reader.HOME"
    )
    steady = source("import helper, reader; return reader.HOME")
    assert reader.outcomes(steady)[-1].receipt.preloaded
    # The first call runs without preloading, and the change is observed.
    assert reader.values(code) == ["mine"] * 4
    # A function that makes the change only in a later call.
    late = (
        "def f(change=False):\n    import helper\n"
        "    if change: helper.change('FRESH_HOME', 'mine')\n    import reader; return reader.HOME"
    )
    reader.outcomes(late)
    warned = reader.live.call(late, True)
    assert len(warned.warnings) == 1
    assert "FRESH_HOME" in warned.warnings[0]
    assert "reader" in warned.warnings[0]
    right = reader.live.call(late, True)
    assert (value(right), right.warnings) == ("mine", ())
    assert "FRESH_HOME" in reader.reason("reader")


def test_a_variable_set_by_an_import_overrides_that_of_the_call(fresh):
    fresh.module("setter", "import os; os.environ['FRESH_SET'] = 'import'")
    code = source("import os, setter; return os.environ['FRESH_SET']")
    assert fresh.values(code) == ["import"] * 4
    call = {"env": {"FRESH_SET": "call"}, "touches": frozenset(("env:FRESH_SET",))}
    assert fresh.values(code, call={**call, "function_key": 1}) == ["import"] * 4


def test_modules_are_imported_in_the_order_of_the_call(fresh):
    fresh.module("ca", "import cb; V = 1")
    fresh.module("cb", "import ca; W = getattr(ca, 'V', None)")
    fresh.module("first", "import sys; V = 'ftplib' in sys.modules")
    code = source("import ca, cb, first, ftplib; return cb.W, first.V")
    assert fresh.values(code) == [(None, False)] * 4
    assert fresh.outcomes(code)[-1].receipt.preloaded


def test_a_temporary_file_that_is_removed_does_not_prevent_preloading(fresh):
    fresh.module("brief", "import tempfile\nwith tempfile.NamedTemporaryFile() as f: f.write(b'x')")
    assert fresh.outcomes(source("import brief; return 1"))[-1].receipt.preloaded


def test_an_import_finds_the_standard_library_unmodified(fresh):
    fresh.module(
        "picky",
        """
        import os, random, time
        class Timed:
            clock = time.time
            pid = os.getpid
            draw = random.random
        Timed().clock(), Timed().pid(), Timed().draw(), os.listdir(None)
        assert os.stat in os.supports_dir_fd
        """,
    )
    assert fresh.outcomes(source("import picky; return 1"))[-1].receipt.preloaded


def test_variables_set_by_an_import_do_not_count_as_changes(fresh):
    fresh.module("setter", "import os; os.environ.setdefault('FRESH_SET', '1')")
    outcomes = fresh.outcomes(source("import os, setter; return os.environ['FRESH_SET']"))
    assert outcomes[-1].receipt.preloaded
    assert not any(outcome.warnings for outcome in outcomes)


def test_a_function_finds_no_modules_preloaded_for_another(fresh):
    fresh.module("noisy", "import warnings, socket; socket.setdefaulttimeout(3)\nimport plain")
    fresh.module("plain", "")
    noisy, plain = (
        source("import noisy; return 1"),
        source(
            "import plain, socket, sys; return 'noisy' in sys.modules, socket.getdefaulttimeout()"
        ),
    )
    assert fresh.outcomes(noisy)[-1].receipt.preloaded
    outcomes = fresh.outcomes(plain)
    assert [value(outcome) for outcome in outcomes] == [(False, None)] * 4
    assert outcomes[-1].receipt.preloaded


def test_imports_run_in_the_working_directory_of_calls(fresh):
    fresh.module("reader", READER)
    (fresh.folder / "reader.cfg").write_text("")
    code = source("import os, reader; return reader.HERE == os.getcwd(), reader.CONFIG")
    assert fresh.values(code) == [(True, True)] * 4


def test_a_module_that_reads_per_call_variables_is_not_preloaded(fresh):
    fresh.module("devices", "import os; DEVICES = os.environ.get('CUDA_VISIBLE_DEVICES')")
    outcomes = fresh.outcomes(source("import devices; return devices.DEVICES"))
    assert not outcomes[-1].receipt.preloaded
    assert "CUDA_VISIBLE_DEVICES" in fresh.reason("devices")


def test_modules_of_the_setting_are_not_preloaded_for_calls_that_change_what_they_read(
    make_live, tmp_path
):
    (tmp_path / "reader.py").write_text(textwrap.dedent(READER))
    fresh = Fresh(make_live, tmp_path, preload=("reader",))
    code = source("import reader; return reader.HOME")
    assert fresh.outcomes(code)[0].receipt.preloaded
    touching = "import os; os.environ['FRESH_HOME'] = 'mine'; import reader; return reader.HOME"
    call: dict[str, object] = {"touches": frozenset(("env:FRESH_HOME",))}
    assert fresh.values(source(touching), call=call) == ["mine"] * 4
