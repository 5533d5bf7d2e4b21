"""The generic part of the Executor suite, for every backend."""

import asyncio
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
from contract.backends import MAKERS
from contract.waiting import eventually

from flashpool.pool import ResultNotSerializable
from flashpool.pool.executor import pool as pool_module
from flashpool.pool.executor.tracebacks import RemoteTraceback


@pytest.fixture(scope="module", params=MAKERS)
def shared(request):
    """One pool for the tests that leave it unchanged."""
    with MAKERS[request.param](3, grace_s=0.3) as pool:
        yield pool


@pytest.mark.shared_pool
class TestSubmit:
    def test_result(self, shared):
        assert shared.submit(pow, 2, 8).result() == 256

    def test_keywords_of_any_name(self, shared):
        future = shared.submit(dict, self=1, fn=2, args=3, function=4)
        assert future.result() == {"self": 1, "fn": 2, "args": 3, "function": 4}

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

    def test_arguments_that_cannot_be_pickled_fail_the_future(self, shared):
        future = shared.submit(there.identity, threading.Lock())
        assert isinstance(future.exception(), TypeError)

    def test_result_that_cannot_be_pickled(self, shared):
        with pytest.raises(ResultNotSerializable, match="cannot be pickled"):
            shared.submit(there.unpicklable_result).result()

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

    def test_stats(self, shared):
        shared.submit(abs, 1).result()
        stats = shared.stats()
        assert stats.slots.total == 3
        assert stats.calls >= 1

    def test_repr_tells_the_state(self, shared):
        assert repr(shared) == "<Pool open, 3 at once, 0 outstanding>"


@pytest.mark.shared_pool
class TestExceptions:
    def test_an_exception_keeps_its_class_arguments_and_remote_traceback(self, shared):
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


@pytest.mark.shared_pool
class TestMap:
    @pytest.mark.parametrize("chunksize", [1, 3, 100])
    def test_results_in_order(self, shared, chunksize):
        results = shared.map(pow, range(10), range(10), chunksize=chunksize)
        assert list(results) == list(map(pow, range(10), range(10)))

    def test_map_stops_at_the_shortest_input_and_accepts_none(self, shared):
        assert list(shared.map(there.add, range(3), range(100))) == [0, 2, 4]
        assert list(shared.map(there.add, [])) == []

    @pytest.mark.parametrize("chunksize", [0, -1])
    def test_an_empty_input_with_chunks(self, shared, chunksize):
        with pytest.raises(ValueError, match="chunksize"):
            shared.map(abs, [1], chunksize=chunksize)

    @pytest.mark.parametrize("buffersize", [0, -1])
    def test_an_empty_input_with_a_buffer(self, shared, buffersize):
        with pytest.raises(ValueError, match="buffersize"):
            shared.map(abs, [1], buffersize=buffersize)

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

    def test_an_error_is_raised_at_its_place_in_the_results(self, shared):
        results = shared.map(divmod, [1, 1, 1, 1], [2, 3, 0, 5])
        assert next(results) == (0, 1)
        assert next(results) == (0, 1)
        with pytest.raises(ZeroDivisionError):
            next(results)
        with pytest.raises(StopIteration):
            next(results)

    def test_a_function_that_cannot_be_pickled(self, shared):
        items = (item for item in ())
        with pytest.raises(TypeError, match="generator"):
            list(shared.map(lambda x: items, range(3)))

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


@pytest.mark.shared_pool
class TestLargeData:
    def test_large_arrays_go_to_a_call_and_back(self, shared):
        array = np.random.default_rng(0).random(4 << 20)
        back = shared.submit(there.identity, array).result()
        assert np.array_equal(back, array)
        back[0] = 7
        assert array[0] != 7

    def test_the_program_keeps_its_own_array_unchanged(self, shared):
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


@pytest.mark.shared_pool
class TestCancel:
    def test_a_queued_call_can_be_cancelled(self, shared):
        blockers = [shared.submit(there.sleep, 1) for _ in range(3)]
        queued = shared.submit(there.add, 1)
        assert queued.cancel()
        assert queued.cancelled()
        assert queued.done()
        assert futures.wait([queued], timeout=30).done == {queued}
        for one in blockers:
            one.cancel()

    def test_a_finished_call_cannot_be_cancelled(self, shared):
        future = shared.submit(abs, -1)
        future.result()
        assert not future.cancel()


@pytest.mark.shared_pool
class TestWaiting:
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

    def test_async_iteration(self, shared):
        async def main():
            iterator = await asyncio.wrap_future(shared.submit(there.count, 40))
            return [item async for item in iterator]

        assert asyncio.run(main()) == list(range(40))

    def test_an_error_is_raised_after_the_items(self, shared):
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
