"""The Executor suite for every start method of workers: calls, options, results, streams."""

import asyncio
import contextlib
import gc
import os
import threading
from concurrent import futures

import numpy as np
import pytest
from contract import executor_functions as there
from contract.waiting import eventually, is_alive, running, written

from flashpool.pool import InvalidRequest, Pool, ResultNotSerializable, Timeout, WorkerCrashed

METHODS = ["fork", "spawn"]


@pytest.fixture(scope="module", params=METHODS)
def shared(request):
    """One pool for the tests that leave it unchanged."""
    with Pool(3, start_method=request.param, grace_s=0.3) as pool:
        yield pool


@pytest.mark.shared_pool
class TestSubmit:
    def test_every_call_has_a_process_of_its_own(self, shared):
        pids = [shared.submit(there.pid_of_worker).result() for _ in range(5)]
        assert len({*pids, os.getpid()}) == 6

    def test_environment_variables_of_a_call(self, shared):
        view = shared.options(env={"OF_THE_CALL": "x y"})
        assert view.submit(there.environment, "OF_THE_CALL").result() == "x y"
        assert shared.submit(there.environment, "OF_THE_CALL").result() is None

    def test_result_that_cannot_be_unpickled(self, shared):
        with pytest.raises(ResultNotSerializable, match="LookupError") as raised:
            shared.submit(there.explodes_at_the_caller).result()
        assert isinstance(raised.value.__cause__, LookupError)

    def test_arguments_that_cannot_be_unpickled_in_the_worker(self, shared):
        with pytest.raises((InvalidRequest, LookupError), match="only where it was made"):
            shared.submit(there.identity, there.ExplodesHere()).result()

    def test_receipt_and_output(self, shared, capsys):
        future = shared.submit(there.speak, "hello")
        assert future.result() is None
        # Stdout and stderr use separate pipes, so their order is not known.
        assert sorted(future.output.splitlines()) == [b"hello", b"hello aloud"]
        assert future.receipt.pid != os.getpid()
        assert future.receipt.run_s > 0
        shown = capsys.readouterr()
        assert (shown.out, shown.err) == ("hello\n", "hello aloud\n")

    def test_a_pool_within_a_call(self, shared):
        assert shared.submit(there.nested, 4).result() == 5


@pytest.mark.shared_pool
class TestOptions:
    def test_unknown_options_are_refused(self, shared):
        with pytest.raises(InvalidRequest, match=r"unknown option colour; valid names: .*timeout"):
            shared.options(colour="red")
        with pytest.raises(InvalidRequest, match=r"did you mean memory_mb\?"):
            shared.options(memory=64)

    def test_unknown_parameters_of_the_pool_are_refused(self):
        with pytest.raises(
            InvalidRequest, match=r"unknown parameter preloads \(did you mean preload"
        ):
            Pool(preloads=("json",))
        with pytest.raises(InvalidRequest, match=r"valid names: max_workers, .*grace_s"):
            Pool(slots=3)

    @pytest.mark.parametrize(
        "options",
        [
            {"timeout": 0},
            {"timeout": "3"},
            {"memory_mb": -1},
            {"memory_mb": 15},
            {"memory_mb": 16.5},
            {"env": {"A=B": "x"}},
            {"env": {"A": 1}},
            {"isolation": "none"},
            {"dependencies": "numpy"},
        ],
        ids=str,
    )
    def test_invalid_values_are_refused(self, shared, options):
        with pytest.raises(InvalidRequest):
            shared.options(**options)

    def test_views_build_on_each_other(self, shared):
        view = shared.options(env={"A": "1"}).options(timeout=30)
        assert view.submit(there.environment, "A").result() == "1"

    def test_timeout(self, shared):
        with pytest.raises(Timeout) as raised:
            shared.options(timeout=0.2).submit(there.sleep, 60).result(30)
        assert raised.value.details["phase"] == "run"


@pytest.mark.shared_pool
class TestExceptions:
    @pytest.mark.parametrize("how", ["kill", "segfault", "exit"])
    def test_a_death_fails_that_call_alone(self, shared, how):
        good = [shared.submit(there.sleep, 0.2, i) for i in range(2)]
        bad = shared.submit(there.die, how)
        with pytest.raises(WorkerCrashed):
            bad.result()
        assert [one.result() for one in good] == [0, 1]
        assert shared.submit(abs, -1).result() == 1

    def test_many_deaths_in_a_row(self, shared):
        dying = [shared.submit(there.die, "kill") for _ in range(10)]
        assert all(isinstance(one.exception(), WorkerCrashed) for one in dying)
        assert list(shared.map(abs, range(-5, 5))) == list(map(abs, range(-5, 5)))


@pytest.mark.shared_pool
class TestMap:
    def test_a_chunk_is_one_process(self, shared):
        pids = list(shared.map(lambda _: os.getpid(), range(6), chunksize=3))
        assert len(set(pids)) == 2
        assert pids[0] == pids[1] == pids[2]

    def test_a_timeout_of_map_cancels_the_rest(self, shared):
        # Otherwise the remaining calls would occupy every slot for a minute.
        results = shared.map(there.sleep, [0, 60, 60, 60], timeout=3)
        assert next(results) is None
        with pytest.raises(futures.TimeoutError):
            next(results)
        assert shared.submit(abs, -1).result(30) == 1

    def test_a_worker_killed_during_map(self, shared):
        results = shared.map(there.die_at, range(10), [5] * 10)
        assert [next(results) for _ in range(5)] == list(range(5))
        with pytest.raises(WorkerCrashed):
            next(results)

    @pytest.mark.slow
    @pytest.mark.timeout(240)
    def test_two_million_small_results(self, shared):
        total = 2_000_000
        results = shared.map(abs, range(-total, 0), chunksize=20_000)
        assert sum(1 for i, r in enumerate(results) if r == total - i) == total


@pytest.mark.shared_pool
class TestLargeData:
    def test_descriptors_and_mappings_do_not_grow(self, shared):
        def descriptors():
            return len(os.listdir("/proc/self/fd"))

        array = np.zeros(1 << 20)
        shared.submit(there.identity, array).result()
        gc.collect()
        before = descriptors()
        for kind in (None, there.ExplodesHere, threading.Lock):
            value = [array, kind() if kind else None]
            shared.submit(there.identity, value).exception()
        queued = [shared.submit(there.sleep, 1, array) for _ in range(12)]
        for future in queued:
            future.cancel()
        del queued, future
        gc.collect()
        eventually(lambda: shared.stats().slots.busy == 0)
        eventually(lambda: descriptors() <= before + 6)  # spares come and go


@pytest.mark.shared_pool
class TestCancel:
    def test_cancelling_a_running_call_kills_its_process_tree(self, shared, tmp_path):
        mark = tmp_path / "grandchild"
        future = shared.submit(there.orphan_a_sleeper, str(mark))
        eventually(lambda: written(mark))
        assert future.running()
        pid = int(mark.read_text())
        assert future.cancel()
        with pytest.raises(futures.CancelledError):
            future.result(timeout=30)
        eventually(lambda: not is_alive(pid))

    def test_waiters_see_the_cancellation(self, shared, tmp_path):
        with running(shared, tmp_path) as (future, _):
            heard = []
            future.add_done_callback(lambda f: heard.append(f.cancelled()))
            threading.Timer(0.1, future.cancel).start()
            done, not_done = futures.wait([future], timeout=30)
            assert (done, not_done) == ({future}, set())
            eventually(lambda: heard == [True])

    def test_as_completed_yields_a_cancelled_future(self, shared, tmp_path):
        with running(shared, tmp_path) as (future, _):
            threading.Timer(0.1, future.cancel).start()
            assert list(futures.as_completed([future], timeout=30)) == [future]

    def test_from_asyncio(self, shared, tmp_path):
        async def main():
            mark = tmp_path / "pid"
            task = asyncio.wrap_future(shared.submit(there.touch_then_sleep, str(mark), 60))
            await asyncio.to_thread(eventually, lambda: written(mark))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return int(mark.read_text())

        pid = asyncio.run(main())
        eventually(lambda: not is_alive(pid))


@pytest.mark.shared_pool
class TestWaiting:
    def test_first_exception(self, shared):
        good = shared.submit(there.add, 1)
        bad = shared.submit(there.fail_after, 0.3)
        slow = shared.submit(there.sleep, 60)
        done, not_done = futures.wait([good, bad, slow], 30, futures.FIRST_EXCEPTION)
        assert bad in done
        assert not_done - {good} == {slow}
        slow.cancel()

    def test_first_exception_by_death(self, shared):
        bad = shared.submit(there.die, "kill")
        slow = shared.submit(there.sleep, 60)
        done, _ = futures.wait([bad, slow], 30, futures.FIRST_EXCEPTION)
        assert done == {bad}
        slow.cancel()

    def test_first_exception_by_pickling(self, shared):
        slow = shared.submit(there.sleep, 60)
        bad = shared.submit(there.identity, threading.Lock())
        done, _ = futures.wait([bad, slow], 30, futures.FIRST_EXCEPTION)
        assert done == {bad}
        slow.cancel()


@pytest.mark.shared_pool
class TestStreams:
    def test_other_tasks_on_the_loop_run_while_nobody_reads_the_stream(self, shared, tmp_path):
        clock = tmp_path / "clock"
        items = shared.submit(there.acount_beside_a_clock, 100, str(clock)).result()
        # The window is full long before that many ticks.
        eventually(lambda: clock.exists() and clock.stat().st_size > 50)
        assert list(items) == list(range(100))


@pytest.mark.shared_pool
class TestMultiprocessing:
    """The multiprocessing package inside a call."""

    @pytest.mark.parametrize("child", ["fork", "spawn"])
    def test_children(self, shared, child):
        view = shared.options(timeout=40)
        assert view.submit(there.in_a_child, child, 4).result() == (0, 8)
        assert view.submit(there.in_a_pool, child, [-1, -2]).result() == [1, 2]


@pytest.mark.shared_pool
class TestDescriptors:
    def test_unpicklable_arguments_leak_no_descriptor_of_the_function(self, shared):
        shared.submit(abs, 1).result()
        captured = np.zeros(1 << 20, dtype="u1")
        for _ in range(3):
            future = shared.submit(lambda _: captured.sum(), threading.Lock())
            assert isinstance(future.exception(30), TypeError)
            assert isinstance(
                next(iter_errors(shared.map(lambda _: captured.sum(), [threading.Lock()]))),
                TypeError,
            )
        del future
        gc.collect()
        assert segments_open() == 0

    def test_unread_results_hold_no_descriptors(self, shared):
        shared.submit(abs, 1).result()
        results = shared.map(np.zeros, [20_000] * 20)
        eventually(lambda: shared.stats().slots.busy == 0 and not shared._engine.outstanding)
        eventually(lambda: segments_open() == 0)
        assert sum(one.nbytes for one in results) == 20 * 160_000


def segments_open():
    """Return this process's descriptors of shared memory; mappings do not need them."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found += "memfd:flashpool (" in os.readlink(f"/proc/self/fd/{name}")
    return found


def iter_errors(results):
    try:
        yield from results
    except Exception as error:
        yield error


def test_queued_calls_move_to_the_zygote_that_preloads_their_imports():
    """Otherwise each of the waiting calls would import the package itself."""

    def importing(number):
        import asyncio  # slower than everything else here

        return number if asyncio else None

    with Pool(2) as pool:
        futures = [pool.submit(importing, number) for number in range(400)]
        assert [one.result(60) for one in futures] == list(range(400))
        assert futures[-1].receipt.preloaded
