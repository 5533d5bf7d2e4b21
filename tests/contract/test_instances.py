"""`pool.instance`: objects in workers of their own, called through futures."""

import asyncio
import concurrent.futures
import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from flashpool.pool import Pool
from flashpool.pool.errors import (
    InstanceLost,
    InvalidRequest,
    ResultNotSerializable,
    Timeout,
    WorkerCrashed,
)

SECONDS = 30


class Counter:
    def __init__(self, start: int = 0, *, closed: str = "") -> None:
        self.n = start
        self.here = 0
        self.closed = closed

    def inc(self, by: int = 1) -> int:
        self.n += by
        return self.n

    def pid(self) -> int:
        return os.getpid()

    def fail(self) -> None:
        raise KeyError("lost")

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def items(self, number: int) -> Iterator[int]:
        for i in range(number):
            self.n += 1
            yield i

    async def nap(self, seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    async def meet(self, number: int) -> str:
        """Return when this many calls are in here at once."""
        self.here += 1
        while self.here < number:  # noqa: ASYNC110 - nothing sets an event
            await asyncio.sleep(0.01)
        return "met"

    async def stream(self, number: int) -> Any:
        for i in range(number):
            await asyncio.sleep(0)
            yield i

    def unpicklable(self) -> Any:
        return (i for i in range(3)), lambda: 1, object

    def __call__(self, x: int) -> int:
        return self.n * x

    def close(self) -> None:
        if self.closed:
            Path(self.closed).write_text(str(self.n))


class Fragile:
    def __init__(self) -> None:
        raise ValueError("will not be")

    def f(self) -> None: ...


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool(2, show_output=False) as pool:
        yield pool


pytestmark = pytest.mark.shared_pool


def test_state_lasts_and_calls_come_in_order(pool: Pool) -> None:
    with pool.instance(Counter, 10) as counter:
        futures = [counter.inc() for _ in range(20)]
        assert [f.result(SECONDS) for f in futures] == list(range(11, 31))
        assert counter(2).result(SECONDS) == 60
        assert counter.pid().result(SECONDS) != os.getpid()


def test_two_instances_of_a_class_share_nothing(pool: Pool) -> None:
    with pool.instance(Counter, 1) as one, pool.instance(Counter, 100) as other:
        assert (one.inc().result(SECONDS), other.inc().result(SECONDS)) == (2, 101)
        assert one.pid().result(SECONDS) != other.pid().result(SECONDS)


def test_what_a_method_raises_is_raised_and_the_instance_lives(pool: Pool) -> None:
    with pool.instance(Counter) as counter:
        counter.inc().result(SECONDS)
        with pytest.raises(KeyError, match="lost"):
            counter.fail().result(SECONDS)
        assert counter.inc().result(SECONDS) == 2


def test_async_methods_overlap(pool: Pool) -> None:
    with pool.instance(Counter) as counter:
        counter.inc().result(SECONDS)
        futures = [counter.meet(5) for _ in range(5)]
        assert [f.result(SECONDS) for f in futures] == ["met"] * 5


def test_max_concurrency_bounds_them(pool: Pool) -> None:
    with pool.instance(Counter, max_concurrency=1) as counter:
        begun = time.monotonic()
        concurrent.futures.wait([counter.nap(0.2) for _ in range(3)], SECONDS)
        assert time.monotonic() - begun >= 0.6
    with pytest.raises(InvalidRequest, match="max_concurrency"):
        pool.instance(Counter, max_concurrency=0)


def test_in_asyncio(pool: Pool) -> None:
    async def main() -> list[int]:
        with pool.instance(Counter) as counter:
            return [await asyncio.wrap_future(counter.inc()), await counter.inc()]

    assert asyncio.run(main()) == [1, 2]


def test_generators(pool: Pool) -> None:
    with pool.instance(Counter) as counter:
        assert list(counter.items(40).result(SECONDS)) == list(range(40))
        assert counter.inc().result(SECONDS) == 41
        assert list(counter.stream(40).result(SECONDS)) == list(range(40))


def test_options_and_keywords_of_the_constructor(pool: Pool) -> None:
    made = partial(Counter, start=5)
    with pool.instance(made, timeout=2) as counter:
        assert counter.inc().result(SECONDS) == 6
        with pytest.raises(Timeout):
            counter.sleep(30).result(SECONDS)
    with pytest.raises(InvalidRequest, match="tmeout"):
        pool.instance(Counter, tmeout=3)


def test_a_crash_fails_the_call_and_ends_the_instance(pool: Pool) -> None:
    counter = pool.instance(Counter)
    counter.inc().result(SECONDS)
    with pytest.raises(WorkerCrashed, match="SIGSEGV"):
        counter.die().result(SECONDS)
    with pytest.raises(InstanceLost, match="SIGSEGV"):
        counter.inc().result(SECONDS)
    counter.close()


def test_with_rebuild_a_crashed_instance_is_created_again(pool: Pool) -> None:
    with pool.instance(Counter, 7, rebuild=True) as counter:
        counter.inc().result(SECONDS)
        with pytest.raises(WorkerCrashed):
            counter.die().result(SECONDS)
        assert counter.inc().result(SECONDS) == 8


def test_a_constructor_that_raises(pool: Pool) -> None:
    fragile = pool.instance(Fragile)
    with pytest.raises(ValueError, match="will not be"):
        fragile.f().result(SECONDS)
    with pytest.raises(InstanceLost, match="ValueError"):
        fragile.f().result(SECONDS)


def test_cancelling_a_waiting_call_leaves_the_others_alone(pool: Pool) -> None:
    with pool.instance(Counter) as counter:
        first = counter.sleep(1.5)
        waiting = counter.inc(100)
        last = counter.inc()
        assert waiting.cancel()
        assert last.result(SECONDS) == 1
        assert first.result(SECONDS) is None


def test_cancelling_a_running_call_ends_the_instance(pool: Pool) -> None:
    counter = pool.instance(Counter)
    pid = counter.pid().result(SECONDS)
    running = counter.sleep(60)
    while not running.running():
        time.sleep(0.01)
    assert running.cancel()
    end = time.monotonic() + SECONDS
    while os.path.exists(f"/proc/{pid}"):
        assert time.monotonic() < end
        time.sleep(0.01)
    with pytest.raises(InstanceLost, match="cancelled"):
        counter.inc().result(SECONDS)


def test_cancelling_an_async_call_keeps_the_instance(pool: Pool) -> None:
    with pool.instance(Counter) as counter:
        counter.inc().result(SECONDS)
        running = counter.nap(60)
        while not running.running():
            time.sleep(0.01)
        assert running.cancel()
        assert counter.inc().result(SECONDS) == 2


def test_closing_the_handle_calls_close_after_the_calls(pool: Pool, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    with pool.instance(partial(Counter, closed=str(closed))) as counter:
        futures = [counter.inc() for _ in range(5)]
    assert [f.result(SECONDS) for f in futures] == [1, 2, 3, 4, 5]
    end = time.monotonic() + SECONDS
    while not closed.exists() or closed.read_text() != "5":
        assert time.monotonic() < end
        time.sleep(0.01)
    with pytest.raises(InstanceLost, match="closed"):
        counter.inc()


def test_dropping_the_handle_closes_the_instance(pool: Pool, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    future = pool.instance(partial(Counter, closed=str(closed))).inc()
    assert future.result(SECONDS) == 1
    end = time.monotonic() + SECONDS
    while not closed.exists() or closed.read_text() != "1":
        assert time.monotonic() < end
        time.sleep(0.01)


def test_shutting_the_pool_down_closes_instances(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    with Pool(1) as pool:
        counter = pool.instance(partial(Counter, closed=str(closed)))
        assert counter.inc().result(SECONDS) == 1
    assert closed.read_text() == "1"


def test_a_result_that_cannot_travel(pool: Pool) -> None:
    with pool.instance(Counter) as counter:
        with pytest.raises(ResultNotSerializable):
            counter.unpicklable().result(SECONDS)
        assert counter.inc().result(SECONDS) == 1


def test_large_arrays_go_in_and_out(pool: Pool) -> None:
    np = pytest.importorskip("numpy")

    class Keeper:
        def keep(self, array: Any) -> Any:
            self.array = array
            return array.sum()

        def back(self) -> Any:
            return self.array

    with pool.instance(Keeper) as keeper:
        array = np.arange(1_000_000, dtype="float64")
        assert keeper.keep(array).result(SECONDS) == array.sum()
        for _ in range(3):
            assert (keeper.back().result(SECONDS) == array).all()


def test_private_names_are_no_methods(pool: Pool) -> None:
    with pool.instance(Counter) as counter, pytest.raises(AttributeError, match="_hidden"):
        counter._hidden()


def test_a_method_that_is_not_there(pool: Pool) -> None:
    with pool.instance(Counter) as counter, pytest.raises(InvalidRequest, match="inc"):
        counter.missing().result(SECONDS)
