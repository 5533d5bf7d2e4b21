"""What code does as a matter of course: classes, pickles, children, threads, loops, numbers."""

from differential.programs import program, program_text

program_text(
    "main_module",
    """
    import sys


    def run():
        own = sys.modules[__name__]
        return [own.run is run, run.__module__ == __name__, run.__qualname__]
    """,
    group="base",
)

program_text(
    "pickles_of_the_sources_classes",
    """
    import dataclasses
    import pickle


    @dataclasses.dataclass(order=True)
    class Point:
        x: int
        y: int = 0
        tags: list = dataclasses.field(default_factory=list)


    def run():
        point = pickle.loads(pickle.dumps(Point(1, tags=["a"])))
        return [point == Point(1, tags=["a"]), repr(point), Point.__module__ == __name__]
    """,
    group="base",
)

program_text(
    "source_by_inspect",
    """
    import inspect


    def helper():
        return 42


    def run():
        return [inspect.getsource(helper), inspect.signature(run).parameters == {}]
    """,
    group="base",
)

program_text(
    "type_hints",
    """
    import dataclasses
    import enum
    import typing


    class Colour(enum.Enum):
        RED = 1
        BLUE = 2


    @dataclasses.dataclass
    class Car:
        colour: "Colour"
        seats: "typing.Optional[int]" = None


    def run():
        hints = typing.get_type_hints(Car)
        return [hints["colour"] is Colour, str(hints["seats"]), Colour["RED"].value]
    """,
    group="base",
)

program_text(
    "asynchronous_function",
    """
    import asyncio


    async def part(number):
        await asyncio.sleep(0.001 * number)
        return number


    async def run():
        return sorted(await asyncio.gather(*(part(number) for number in range(5))))
    """,
    group="base",
)

program_text(
    "generator_function",
    """
    def run():
        for number in range(5):
            yield number * number
    """,
    group="base",
)

program_text(
    "pool_of_processes",
    """
    import multiprocessing


    def square(number):
        return number * number


    def run():
        with multiprocessing.get_context("fork").Pool(2) as pool:
            return pool.map(square, range(6))
    """,
    group="base",
)

program_text(
    "pool_of_spawned_processes",
    """
    import math
    import multiprocessing


    def run():
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.map(math.factorial, range(6))
    """,
    group="base",
)

program_text(
    "loader_with_forked_workers",
    """
    import multiprocessing

    import numpy


    def load(index, queue):
        rng = numpy.random.default_rng(index)
        queue.put((index, rng.integers(100, size=4).tolist()))


    def run():
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        workers = [context.Process(target=load, args=(index, queue)) for index in range(3)]
        for worker in workers:
            worker.start()
        batches = sorted(queue.get(timeout=20) for _ in workers)
        for worker in workers:
            worker.join()
        return [batches, [worker.exitcode for worker in workers]]
    """,
    group="base",
)


@program(group="base")
def error_of_the_function():
    return {}["missing"]


program_text(
    "error_of_a_class_of_the_source",
    """
    class Broken(Exception):
        pass


    def run():
        print("about to break")
        raise Broken("for a reason")
    """,
    group="base",
)


@program(group="base")
def error_of_a_module_not_there():
    import no_such_module_anywhere

    return no_such_module_anywhere


@program(group="base")
def exit_of_the_function():
    import sys

    print("leaving")
    sys.exit(3)


@program(group="base")
def loop_run_in_the_function():
    import asyncio

    async def all_of_them():
        queue = asyncio.Queue()
        await asyncio.gather(*(queue.put(number) for number in range(3)))
        return [await queue.get() for _ in range(3)]

    return asyncio.run(all_of_them())


@program(group="base")
def task_of_the_running_loop():
    """There is none where _asyncio was imported before asyncio: see its two kinds of tasks."""
    import asyncio

    async def kinds():
        task = asyncio.current_task()
        await asyncio.wait_for(asyncio.sleep(0), 5)
        return [type(task).__name__, type(task).__module__, len(asyncio.all_tasks())]

    return asyncio.run(kinds())


@program(group="base")
def threads_in_the_function():
    import threading
    from concurrent.futures import ThreadPoolExecutor

    lock = threading.Lock()
    total = []

    def work(number):
        with lock:
            total.append(number)
        return number * 2

    with ThreadPoolExecutor(4) as pool:
        return [list(pool.map(work, range(10))), sorted(total)]


@program(group="own")
def child_with_the_same_python():
    import subprocess
    import sys

    code = "import counts, numpy, sys; print(counts.count(), numpy.arange(3).sum(), sys.argv[1:])"
    child = subprocess.run(
        [sys.executable, "-c", code, "x"], capture_output=True, text=True, check=True
    )
    return [child.stdout, child.stderr]


@program(group="base")
def module_run_by_the_same_python():
    import subprocess
    import sys

    command = [sys.executable, "-m", "json.tool"]
    done = subprocess.run(command, input='{"a": [1]}', capture_output=True, text=True, check=True)
    return done.stdout


@program(group="base")
def prefixes_of_the_interpreter():
    import os
    import sys
    import sysconfig

    return [
        sys.prefix == sys.exec_prefix,
        os.path.realpath(sys.executable),
        sys.prefix != sys.base_prefix,
        sysconfig.get_paths()["purelib"] in sys.path,
        sys.flags.isolated,
        sys.flags.utf8_mode,
        sys.flags.dev_mode,
        sys.version_info[:3],
    ]


@program(group="base")
def numbers_as_text():
    import decimal
    import fractions
    import math

    return [
        repr(0.1 + 0.2),
        f"{math.pi:.10f} {1e300 * 10} {-0.0}",
        str(decimal.Decimal("1.10") * 3),
        str(fractions.Fraction(1, 3) + fractions.Fraction(1, 6)),
        round(2.675, 2),
        (5e-324).hex(),
    ]


@program(group="base")
def digests_and_codecs():
    import base64
    import hashlib
    import zlib

    text = b"flashpool" * 100
    return [
        hashlib.sha256(text).hexdigest(),
        hashlib.blake2b(text).hexdigest()[:16],
        hashlib.md5(text, usedforsecurity=False).hexdigest(),
        zlib.crc32(text),
        base64.b85encode(text[:9]).decode(),
        hash((1, 2, 3)),
    ]


@program(group="base")
def database_in_memory():
    import sqlite3

    with sqlite3.connect(":memory:") as database:
        database.execute("create table t (a integer, b text)")
        database.executemany("insert into t values (?, ?)", [(1, "x"), (2, "y"), (3, "z")])
        rows = database.execute("select b from t where a > 1 order by a desc").fetchall()
    database.close()
    return rows


@program(group="base")
def files_of_many_formats(scratch):
    import csv
    import json
    import os
    import pickle
    import zipfile

    with open(os.path.join(scratch, "rows.csv"), "w", newline="") as file:
        csv.writer(file).writerows([["a", "b"], [1, "two, three"]])
    with open(os.path.join(scratch, "data.json"), "w") as file:
        json.dump({"a": [1, 2.5, None], "ü": "ß"}, file, indent=1)
    path = os.path.join(scratch, "archive.zip")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo("a.txt"), "hello")
    with zipfile.ZipFile(path) as archive:
        text = archive.read("a.txt").decode()
    return [text, pickle.loads(pickle.dumps({1: {2, 3}}))[1] == {2, 3}]


@program(group="base")
def request_to_a_server_of_the_function():
    import http.server
    import threading
    import urllib.request

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.path.encode())

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/path") as answer:
            text = answer.read().decode()
        server.shutdown()
    return text
