"""One Executor suite, over every way workers are started: what one pool does for its callers."""

import asyncio
import contextlib
import functools
import gc
import os
import sys
import threading
import time
import weakref
from concurrent import futures

import numpy as np
import pytest
from contract import executor_functions as there
from contract.waiting import eventually, is_alive, running, written

from flashpool.pool import InvalidRequest, Pool, ResultNotSerializable, Timeout, WorkerCrashed
from flashpool.pool.executor import pool as pool_module
from flashpool.pool.executor.tracebacks import RemoteTraceback

METHODS = ["fork", "spawn"]


@pytest.fixture(scope="module", params=METHODS)
def shared(request):
    """One pool for the tests that leave it as it was."""
    with Pool(3, start_method=request.param, grace_s=0.3) as pool:
        yield pool


@pytest.mark.shared_pool
class TestSubmit:
    def test_result(self, shared):
        assert shared.submit(pow, 2, 8).result() == 256

    def test_keywords_of_any_name(self, shared):
        future = shared.submit(dict, self=1, fn=2, args=3, function=4)
        assert future.result() == {"self": 1, "fn": 2, "args": 3, "function": 4}

    def test_every_call_has_a_process_of_its_own(self, shared):
        pids = [shared.submit(there.pid_of_worker).result() for _ in range(5)]
        assert len({*pids, os.getpid()}) == 6

    @pytest.mark.parametrize(
        "function",
        [
            lambda x: x + 1,
            functools.partial(there.add, 1),
            there.Counter(1).plus,
            (1).__add__,
            functools.partial(lambda a, b: a + b, b=1),
        ],
        ids=["lambda", "partial", "method", "builtin method", "partial of a lambda"],
    )
    def test_kinds_of_functions(self, shared, function):
        assert shared.submit(function, 4).result() == 5

    def test_closure(self, shared):
        offset = 10
        assert shared.submit(lambda x: x + offset, 1).result() == 11

    def test_coroutine_function(self, shared):
        assert shared.submit(there.aadd, 1, 2).result() == 3

    def test_environment_variables_of_a_call(self, shared):
        view = shared.options(env={"OF_THE_CALL": "x y"})
        assert view.submit(there.environment, "OF_THE_CALL").result() == "x y"
        assert shared.submit(there.environment, "OF_THE_CALL").result() is None

    def test_arguments_that_cannot_be_pickled_fail_the_future(self, shared):
        future = shared.submit(there.identity, threading.Lock())
        assert isinstance(future.exception(), TypeError)

    def test_result_that_cannot_be_pickled(self, shared):
        with pytest.raises(ResultNotSerializable, match="cannot be pickled"):
            shared.submit(there.unpicklable_result).result()

    def test_result_that_cannot_be_unpickled(self, shared):
        with pytest.raises(ResultNotSerializable, match="LookupError") as raised:
            shared.submit(there.explodes_at_the_caller).result()
        assert isinstance(raised.value.__cause__, LookupError)

    def test_arguments_that_cannot_be_unpickled_there(self, shared):
        with pytest.raises((InvalidRequest, LookupError), match="only where it was made"):
            shared.submit(there.identity, there.ExplodesHere()).result()

    def test_receipt_and_output(self, shared, capsys):
        future = shared.submit(there.speak, "hello")
        assert future.result() is None
        assert future.output == b"hello\nhello aloud\n"
        assert future.receipt.pid != os.getpid()
        assert future.receipt.run_s > 0
        assert capsys.readouterr().out == "hello\nhello aloud\n"

    def test_from_many_threads(self, shared):
        results = {}

        def work(k):
            results[k] = [shared.submit(there.add, k, i).result() for i in range(8)]

        threads = [threading.Thread(target=work, args=(k,)) for k in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == {k: [k + i for i in range(8)] for k in range(12)}

    def test_a_pool_within_a_call(self, shared):
        assert shared.submit(there.nested, 4).result() == 5

    def test_stats(self, shared):
        shared.submit(abs, 1).result()
        stats = shared.stats()
        assert stats.slots.total == 3
        assert stats.calls >= 1

    def test_repr_tells_the_state(self, shared):
        assert repr(shared) == "<Pool open, 3 at once, 0 outstanding>"


@pytest.mark.shared_pool
class TestOptions:
    def test_unknown(self, shared):
        with pytest.raises(InvalidRequest, match=r"unknown option colour; there are: .*timeout"):
            shared.options(colour="red")
        with pytest.raises(InvalidRequest, match=r"did you mean memory_mb\?"):
            shared.options(memory=64)

    def test_unknown_parameters_of_the_pool(self):
        with pytest.raises(
            InvalidRequest, match=r"unknown parameter preloads \(did you mean preload"
        ):
            Pool(preloads=("json",))
        with pytest.raises(InvalidRequest, match=r"there are: max_workers, .*grace_s"):
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
    def test_bad_values(self, shared, options):
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
    def test_the_class_its_arguments_and_the_remote_text(self, shared):
        with pytest.raises(ValueError, match="a message") as raised:
            shared.submit(there.fail, ValueError, "a message").result()
        assert isinstance(raised.value.__cause__, RemoteTraceback)
        assert "raise kind(*args)" in str(raised.value.__cause__)

    def test_a_class_with_a_constructor_of_its_own(self, shared):
        with pytest.raises(there.CustomError) as raised:
            shared.submit(there.fail_custom).result()
        assert (raised.value.code, raised.value.hint) == (4, "h")

    def test_causes(self, shared):
        with pytest.raises(RuntimeError, match="because") as raised:
            shared.submit(there.fail_with_cause).result()
        assert isinstance(raised.value.__cause__, KeyError)

    @pytest.mark.skipif(sys.version_info < (3, 11), reason="groups came with Python 3.11")
    def test_groups(self, shared):
        error = shared.submit(there.fail_with_group).exception()
        assert [type(one) for one in error.exceptions] == [ValueError, TypeError]

    def test_classes_of_the_call(self, shared):
        error = shared.submit(there.fail_with_local_class).exception()
        assert type(error).__name__ in {"Local", "RemoteException"}
        assert "mine" in str(error)

    @pytest.mark.parametrize("kind", [KeyboardInterrupt, GeneratorExit, SystemExit])
    def test_base_exceptions_are_results(self, shared, kind):
        assert type(shared.submit(there.fail, kind).exception()) is kind

    def test_exit_code(self, shared):
        error = shared.submit(there.leave, 3).exception()
        assert type(error) is SystemExit
        assert error.code == 3

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
    @pytest.mark.parametrize("chunksize", [1, 3, 100])
    def test_results_in_order(self, shared, chunksize):
        results = shared.map(pow, range(10), range(10), chunksize=chunksize)
        assert list(results) == list(map(pow, range(10), range(10)))

    def test_shortest_ends_and_nothing_is_fine(self, shared):
        assert list(shared.map(there.add, range(3), range(100))) == [0, 2, 4]
        assert list(shared.map(there.add, [])) == []

    @pytest.mark.parametrize("chunksize", [0, -1])
    def test_chunks_of_nothing(self, shared, chunksize):
        with pytest.raises(ValueError, match="chunksize"):
            shared.map(abs, [1], chunksize=chunksize)

    @pytest.mark.parametrize("buffersize", [0, -1])
    def test_buffers_of_nothing(self, shared, buffersize):
        with pytest.raises(ValueError, match="buffersize"):
            shared.map(abs, [1], buffersize=buffersize)

    def test_a_chunk_is_one_process(self, shared):
        pids = list(shared.map(lambda _: os.getpid(), range(6), chunksize=3))
        assert len(set(pids)) == 2
        assert pids[0] == pids[1] == pids[2]

    def test_chunks_of_coroutine_functions(self, shared):
        assert list(shared.map(there.aadd, range(4), range(4), chunksize=2)) == [0, 2, 4, 6]

    def test_infinite_input_with_a_buffer(self, shared):
        def numbers():
            n = 0
            while True:
                taken.append(n)
                yield n
                n += 1

        taken = []
        results = shared.map(abs, numbers(), buffersize=3)
        assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
        results.close()
        assert len(taken) <= 9

    def test_the_error_comes_in_its_place(self, shared):
        results = shared.map(divmod, [1, 1, 1, 1], [2, 3, 0, 5])
        assert next(results) == (0, 1)
        assert next(results) == (0, 1)
        with pytest.raises(ZeroDivisionError):
            next(results)
        with pytest.raises(StopIteration):
            next(results)

    def test_timeout_ends_the_rest(self, shared):
        # The rest would take every slot for a minute.
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

    def test_a_function_that_cannot_be_pickled(self, shared):
        lock = threading.Lock()
        with pytest.raises(TypeError):
            list(shared.map(lambda x: lock, range(3)))

    def test_a_function_with_much_memory_travels_once(self, shared, monkeypatch):
        monkeypatch.setattr(pool_module, "MAX_CALLS_WITH_MEMORY", 4)
        big = np.arange(1 << 20)
        results = shared.map(lambda i: int(big[i]), range(12))
        assert list(results) == list(range(12))

    def test_results_are_not_kept(self, shared):
        for value in shared.map(there.Counter, range(10)):
            gone = weakref.ref(value)
            del value
            assert gone() is None

    @pytest.mark.slow
    @pytest.mark.timeout(240)
    def test_two_million_small_results(self, shared):
        total = 2_000_000
        results = shared.map(abs, range(-total, 0), chunksize=20_000)
        assert sum(1 for i, r in enumerate(results) if r == total - i) == total


@pytest.mark.shared_pool
class TestLargeData:
    def test_there_and_back(self, shared):
        array = np.random.default_rng(0).random(4 << 20)
        back = shared.submit(there.identity, array).result()
        assert np.array_equal(back, array)
        back[0] = 7
        assert array[0] != 7

    def test_the_program_keeps_its_own(self, shared):
        def spoil(x):
            x[:] = 9
            return x[0]

        array = np.zeros(1 << 20)
        assert shared.submit(spoil, array).result() == 9
        assert array[0] == 0

    def test_more_calls_with_memory_than_descriptors(self, shared, monkeypatch):
        monkeypatch.setattr(pool_module, "MAX_CALLS_WITH_MEMORY", 4)
        arrays = [np.full(20_000, i) for i in range(12)]
        assert list(shared.map(lambda a: int(a.sum()), arrays)) == [20_000 * i for i in range(12)]

    def test_large_bytes(self, shared):
        data = os.urandom(5 << 20)
        assert shared.submit(there.identity, data).result() == data

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
    def test_queued(self, shared):
        blockers = [shared.submit(there.sleep, 1) for _ in range(3)]
        queued = shared.submit(there.add, 1)
        assert queued.cancel()
        assert queued.cancelled()
        assert queued.done()
        assert futures.wait([queued], timeout=30).done == {queued}
        for one in blockers:
            one.cancel()

    def test_running_kills_the_tree(self, shared, tmp_path):
        mark = tmp_path / "grandchild"
        future = shared.submit(there.orphan_a_sleeper, str(mark))
        eventually(lambda: written(mark))
        assert future.running()
        pid = int(mark.read_text())
        assert future.cancel()
        with pytest.raises(futures.CancelledError):
            future.result(timeout=30)
        eventually(lambda: not is_alive(pid))

    def test_waiters_hear_of_it(self, shared, tmp_path):
        with running(shared, tmp_path) as (future, _):
            heard = []
            future.add_done_callback(lambda f: heard.append(f.cancelled()))
            threading.Timer(0.1, future.cancel).start()
            done, not_done = futures.wait([future], timeout=30)
            assert (done, not_done) == ({future}, set())
            eventually(lambda: heard == [True])

    def test_as_completed_yields_it(self, shared, tmp_path):
        with running(shared, tmp_path) as (future, _):
            threading.Timer(0.1, future.cancel).start()
            assert list(futures.as_completed([future], timeout=30)) == [future]

    def test_too_late(self, shared):
        future = shared.submit(abs, -1)
        future.result()
        assert not future.cancel()

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

    def test_as_completed_in_the_order_of_ends(self, shared, tmp_path):
        go = tmp_path / "go"
        slow, quick = shared.submit(there.wait_for, str(go)), shared.submit(abs, -1)
        ended = futures.as_completed([slow, quick], timeout=40)
        assert next(ended) is quick
        go.touch()
        assert list(ended) == [slow]

    def test_asyncio(self, shared):
        async def main():
            loop = asyncio.get_running_loop()
            wrapped = asyncio.wrap_future(shared.submit(there.add, 1, 2))
            return await asyncio.gather(wrapped, loop.run_in_executor(shared, there.add, 3, 4))

        assert asyncio.run(main()) == [3, 7]

    def test_the_pool_keeps_no_future(self, shared):
        future = shared.submit(there.Counter, 1)
        value = future.result()
        gone = weakref.ref(future), weakref.ref(value)
        del future, value
        eventually(lambda: gone[0]() is None and gone[1]() is None)

    def test_a_callback_that_raises_harms_nobody(self, shared, caplog):
        future = shared.submit(there.sleep, 0.1)
        future.add_done_callback(lambda _: 1 / 0)
        assert future.result() is None
        assert shared.submit(abs, -1).result() == 1

    def test_a_callback_may_submit(self, shared):
        seen = threading.Event()
        results = []

        def more(future):
            following = shared.submit(there.add, future.result(), 1)
            following.add_done_callback(lambda f: (results.append(f.result()), seen.set()))

        shared.submit(there.add, 1, 1).add_done_callback(more)
        assert seen.wait(30)
        assert results == [3]


@pytest.mark.shared_pool
class TestStreams:
    def test_items(self, shared):
        assert list(shared.submit(there.count, 100).result()) == list(range(100))

    def test_no_items(self, shared):
        assert list(shared.submit(there.count, 0).result()) == []

    def test_async_generator(self, shared):
        assert list(shared.submit(there.acount, 20).result()) == list(range(20))

    def test_a_loop_goes_on_while_nobody_reads(self, shared, tmp_path):
        clock = tmp_path / "clock"
        items = shared.submit(there.acount_beside_a_clock, 100, str(clock)).result()
        # Its window is full long before that many ticks.
        eventually(lambda: clock.exists() and clock.stat().st_size > 50)
        assert list(items) == list(range(100))

    def test_async_iteration(self, shared):
        async def main():
            iterator = await asyncio.wrap_future(shared.submit(there.count, 40))
            return [item async for item in iterator]

        assert asyncio.run(main()) == list(range(40))

    def test_the_error_comes_after_the_items(self, shared):
        items = shared.submit(there.count_then_fail, 3).result()
        assert [next(items) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(ValueError, match="after the items"):
            next(items)
        with pytest.raises(StopIteration):
            next(items)

    def test_an_error_before_the_first_item(self, shared):
        items = shared.submit(there.count_then_fail, 0).result()
        with pytest.raises(ValueError, match="after the items"):
            next(items)

    def test_the_worker_does_not_run_far_ahead(self, shared, tmp_path):
        mark = tmp_path / "mark"
        items = shared.submit(there.count_with_marks, 1_000, str(mark)).result()
        assert next(items) == 0
        time.sleep(0.5)
        assert int(mark.read_text() or 0) <= 20
        assert sum(1 for _ in items) == 999

    def test_close_ends_the_call(self, shared, tmp_path):
        mark = tmp_path / "mark"
        items = shared.submit(there.count_with_marks, 10**9, str(mark)).result()
        next(items)
        items.close()
        assert list(items) == []
        eventually(lambda: shared.stats().slots.busy == 0)

    def test_dropping_it_ends_the_call(self, shared, tmp_path):
        items = shared.submit(there.count_with_marks, 10**9, str(tmp_path / "m")).result()
        next(items)
        del items
        gc.collect()
        eventually(lambda: shared.stats().slots.busy == 0)

    def test_arrays_as_items(self, shared):
        def arrays():
            for i in range(30):
                yield np.full(1 << 17, i)

        assert [int(a[-1]) for a in shared.submit(arrays).result()] == list(range(30))


@pytest.mark.shared_pool
class TestMultiprocessing:
    """Inside of a call."""

    @pytest.mark.parametrize("child", ["fork", "spawn"])
    def test_children(self, shared, child):
        view = shared.options(timeout=40)
        assert view.submit(there.in_a_child, child, 4).result() == (0, 8)
        assert view.submit(there.in_a_pool, child, [-1, -2]).result() == [1, 2]


@pytest.mark.shared_pool
class TestDescriptors:
    def test_arguments_that_cannot_be_pickled_leave_none_of_the_function(self, shared):
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

    def test_results_that_nobody_reads_yet_hold_none(self, shared):
        shared.submit(abs, 1).result()
        results = shared.map(np.zeros, [20_000] * 20)
        eventually(lambda: shared.stats().slots.busy == 0 and not shared._engine.outstanding)
        eventually(lambda: segments_open() == 0)
        assert sum(one.nbytes for one in results) == 20 * 160_000


def segments_open():
    """Descriptors of shared memory that this process has, and that no mapping needs."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found += "memfd:flashpool" in os.readlink(f"/proc/self/fd/{name}")
    return found


def iter_errors(results):
    try:
        yield from results
    except Exception as error:
        yield error


def test_calls_that_came_before_anybody_knew_what_they_import():
    """They move over to the zygote that has it, in place of importing it one after the other."""

    def importing(number):
        import asyncio  # takes longer than all else

        return number if asyncio else None

    with Pool(2) as pool:
        futures = [pool.submit(importing, number) for number in range(400)]
        assert [one.result(60) for one in futures] == list(range(400))
        assert futures[-1].receipt.preloaded
