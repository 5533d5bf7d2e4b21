"""Values that a program's functions use travel to calls and back: real programs, real calls."""

import pytest
from contract.test_exit import run

HEAD = """
import functools, threading
from flashpool.pool import Pool
"""


def lines(tmp_path, text):
    done = run(tmp_path, HEAD + text)
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_cached_functions_and_methods_travel(tmp_path):
    assert lines(
        tmp_path,
        """
@functools.lru_cache(maxsize=None)
def table(n): return [i * i for i in range(n)]
def work(x): return sum(table(10)) + x
class A:
    def __init__(self, n): self.n = n
    @functools.cached_property
    def twice(self): return 2 * self.n
    def go(self, x): return self.twice + x
class B:
    @functools.lru_cache
    def big(self, x): return 2 * x
LOCK = threading.Lock()
def locked():
    with LOCK: return "locked"
with Pool(1) as pool:
    print(list(pool.map(work, range(3))))
    print(pool.submit(A(2).go, 1).result(), pool.submit(B().big, 2).result())
    print(pool.instance(B).big(2).result(), pool.submit(table, 3).result())
    print(pool.submit(locked).result())
    print(pool.submit(lambda: table).result()(3))
""",
    ) == ["[285, 286, 287]", "5 4", "4 [0, 1, 4]", "locked", "[0, 1, 4]"]


def test_a_result_does_not_change_the_programs_classes(tmp_path):
    assert lines(
        tmp_path,
        """
LIMIT = 1
class C:
    made = 0
    def limit(self): return LIMIT
class Wrong(Exception):
    seen = 0
def make():
    C.made += 1
    return C()
def fail():
    Wrong.seen += 1
    raise Wrong
with Pool(1) as pool:
    method = C.limit
    one = pool.submit(make).result()
    failure = pool.submit(fail).exception()
LIMIT = 2
print(type(one) is C, type(failure) is Wrong, C.made, Wrong.seen, C.limit is method, one.limit())
""",
    ) == ["True True 0 0 True 2"]


def test_arguments_do_not_change_the_classes_of_their_function(tmp_path):
    assert lines(
        tmp_path,
        """
N = 0
class C:
    def up(self):
        global N
        N += 1
def work(one):
    C().up()
    one.up()
    return N
with Pool(1) as pool:
    print(pool.submit(work, C()).result())
""",
    ) == ["2"]


def test_the_programs_main_module_can_be_imported_in_calls(tmp_path):
    assert lines(
        tmp_path,
        """
import __main__
X = 4
def helper(): return X
def work():
    import sys
    helper()
    main = sys.modules["__main__"]
    return main is __main__, main.work is work, main.helper(), main.X
with Pool(1) as pool:
    print(pool.submit(work).result())
""",
    ) == ["(True, True, 4, 4)"]


PROCESSES = """
import concurrent.futures, multiprocessing, os
print("the program runs")
X = None
class A:
    def __init__(self, n): self.n = n
    def go(self, x): return A(self.n + x)
def inc(x): return x + 1
@functools.lru_cache
def cached(x): return x + 2
def begin(x):
    global X
    X = x
def seen(y): return X + y
def put(queue, a): queue.put(a.go(1))
def fail(x): raise KeyError(x)
def nested(method):
    context = multiprocessing.get_context(method)
    told = []
    with context.Pool(1, initializer=begin, initargs=(5,)) as workers:
        told += workers.map(inc, [1, 2]) + workers.map(cached, [1]) + workers.map(seen, [1, 2])
        told += [a.n for a in workers.map(A(1).go, [1])] + workers.map(lambda x: x * 2, [3])
        try: workers.map(fail, [1])
        except KeyError as error: told.append(error.args)
    queue = context.SimpleQueue()
    process = context.Process(target=put, args=(queue, A(7)))
    process.start()
    a = queue.get()
    process.join()
    told.append((type(a) is A, a.n, process.exitcode))
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as executor:
        told.append(executor.submit(inc, 1).result())
    return told
# A fork server leaves its directory behind.
with Pool(1, worker_env={**os.environ, "TMPDIR": os.getcwd()}) as pool:
    print(pool.submit(nested, METHOD).result())
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_functions_of_the_program_run_in_processes_of_a_call(tmp_path, method):
    expected = "[2, 3, 3, 6, 7, 2, 6, (1,), (True, 8, 0), 2]"
    found = lines(tmp_path, PROCESSES.replace("METHOD", repr(method)))
    assert found == ["the program runs", expected]


def test_a_traceback_shows_files_and_lines_of_the_program(tmp_path):
    done = run(
        tmp_path,
        HEAD
        + """
def deep(x):
    return 1 / x  # the line
with Pool(1) as pool:
    pool.submit(deep, 0).result()
""",
    )
    there = f'File "{tmp_path}/program.py", line 6, in deep\n    return 1 / x  # the line'
    assert there in done.stderr


def test_a_result_that_cannot_be_unpickled_here_is_an_error(tmp_path):
    assert lines(
        tmp_path,
        """
class Two(Exception):
    def __init__(self, a, b): super().__init__(a)
with Pool(1) as pool:
    error = pool.submit(lambda: Two(1, 2)).exception()
    print(type(error).__name__, "missing 1 required positional argument" in str(error))
""",
    ) == ["ResultNotSerializable True"]
