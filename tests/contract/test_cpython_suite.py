"""CPython's own executor tests, run over `Pool`.

The mixins of ``test.test_concurrent_futures`` (a package from 3.12 on, a module before)
are taken from the running interpreter and mixed with one that makes a `Pool`. Every
difference is in `DIFFERENCES` or `PROCESS_POOL_ONLY`, with its reason, and in
docs/executor.md. Interpreters without the ``test`` package skip the module: Debian has it in
libpython3.x-testsuite.
"""

import gc
import importlib
import pickle
import sys
import unittest

import pytest

from flashpool.pool import InvalidRequest, Pool, ResultNotSerializable, WorkerCrashed
from support import wants
from support.thread_backend import ThreadPool

NAME = "test.test_concurrent_futures"
try:
    BASE = importlib.import_module(NAME)
except ImportError:
    raise wants.missing(
        "libpython{}.{}-testsuite".format(*sys.version_info),
        f"this interpreter comes without {NAME}",
    ) from None


def mixin(module: str, name: str) -> type:
    """Return a test class of the suite, wherever this Python version has it."""
    home = importlib.import_module(f"{NAME}.{module}") if hasattr(BASE, "__path__") else BASE
    found: type = getattr(home, name)
    return found


class ForkMixin:
    """The attributes and methods that the suite expects of an executor's mixin; forked workers."""

    worker_count = 5
    start_method = "fork"

    def executor_type(self, max_workers=None, **_):
        return Pool(max_workers, start_method=self.start_method, grace_s=0.3)

    def get_context(self):
        return None

    def setUp(self):
        super().setUp()
        self.executor = self.executor_type(max_workers=self.worker_count)

    def tearDown(self):
        self.executor.shutdown(wait=True)
        self.executor = None
        # The pool's threads are in reference cycles. CPython's check keeps one alive by its own
        # loop variable, and then waits in vain through a hundred collections.
        gc.collect()
        super().tearDown()


class SpawnMixin(ForkMixin):
    start_method = "spawn"


class ThreadMixin(ForkMixin):
    def executor_type(self, max_workers=None, **_):
        return ThreadPool(max_workers)


#: Tests that rely on internals of CPython's own pools, and why.
DIFFERENCES = {
    "test_interpreter_shutdown": "builds its script from the class's name; ours: test_exit.py",
    "test_submit_after_interpreter_shutdown": "the same",
    "test_hang_gh83386": "the same",
    "test_gh105829_should_not_deadlock_if_wakeup_pipe_full": (
        "replaces ProcessPoolExecutor's own thread and pipe; a pool has neither"
    ),
    "test_executor_map_current_future_cancel": "a thread pool's: waits on a lock in the call",
}

#: CPython expects a broken pool; `Pool` fails only the call, with an error class that says why.
EXPECTED_ERRORS = {
    "test_exit_at_task_unpickle": SystemExit,
    "test_error_at_task_unpickle": pickle.UnpicklingError,
    "test_crash_at_task_unpickle": WorkerCrashed,
    "test_crash_during_func_exec_on_worker": WorkerCrashed,
    "test_crash_during_result_pickle_on_worker": WorkerCrashed,
    "test_error_during_result_pickle_on_worker": ResultNotSerializable,
    "test_error_during_result_unpickle_in_result_handler": ResultNotSerializable,
    "test_exit_during_result_unpickle_in_result_handler": ResultNotSerializable,
}


class DeadlockMixin:
    """The deadlock tests, with the error that `Pool` raises in place of a broken pool."""

    def _check_crash(self, error, func, *args, ignore_stderr=False):
        expected = EXPECTED_ERRORS.get(self._testMethodName, error)
        with pytest.raises((expected, InvalidRequest)):
            self.executor.submit(func, *args).result(timeout=self.TIMEOUT)
        assert self.executor.submit(abs, -1).result(timeout=self.TIMEOUT) == 1

    def test_shutdown_deadlock(self):
        crash = mixin("test_deadlock", "_crash")
        future = self.executor.submit(crash, delay=0.1)
        self.executor.shutdown(wait=True)
        with pytest.raises(WorkerCrashed):
            future.result(0)

    def test_shutdown_deadlock_pickle(self):
        self.executor.submit(id, 42).result()
        future = self.executor.submit(id, mixin("test_deadlock", "ErrorAtPickle")())
        self.executor.shutdown(wait=False)
        with pytest.raises(pickle.PicklingError):
            future.result()

    def test_crash_big_data(self):
        crash = getattr(self._home(), "_crash_with_data", None)
        if crash is None:
            self.skipTest("not in this Python's suite")
        with pytest.raises(WorkerCrashed):
            list(self.executor.map(crash, ["a" * (4 << 20)] * 10))

    def _home(self):
        return sys.modules[mixin("test_deadlock", "ExecutorDeadlockTest").__module__]


def make(name: str, *parts: type) -> type[unittest.TestCase]:
    """Build a test class of the suite's tests and ours, without those that do not apply."""
    base = mixin("util", "BaseTestCase")
    body = {
        test: unittest.skip(reason)(lambda self: None)
        for test, reason in DIFFERENCES.items()
        if any(hasattr(part, test) for part in parts)
    }
    return type(name, (*parts, base), {**body, "__module__": __name__})


SUITES = {
    "Executor": (mixin("executor", "ExecutorTest"),),
    "Wait": (mixin("test_wait", "WaitTests"),),
    "AsCompleted": (mixin("test_as_completed", "AsCompletedTests"),),
    "Shutdown": (mixin("test_shutdown", "ExecutorShutdownTest"),),
    "Deadlock": (DeadlockMixin, mixin("test_deadlock", "ExecutorDeadlockTest")),
}

for how in (ForkMixin, SpawnMixin, ThreadMixin):
    for suite, parts in SUITES.items():
        if how is ThreadMixin and suite == "Deadlock":
            continue  # its calls crash their process
        name = f"Test{suite}{how.__name__.removesuffix('Mixin')}"
        made = make(name, *parts[:-1], how, parts[-1])
        globals()[name] = pytest.mark.slow(made) if how is SpawnMixin else made
del name, how, suite, parts, made
