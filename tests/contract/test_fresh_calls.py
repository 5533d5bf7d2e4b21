"""Calls of `Pool` find a fresh process, preloaded or not: random numbers, seeds, variables."""

import os
import random
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from flashpool.pool import Pool
from flashpool.pool.errors import InvalidRequest

pytestmark = [pytest.mark.timeout(120), pytest.mark.shared_pool]


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool(2) as made:
        yield made


def draw() -> tuple[float, float, str]:
    import numpy as np

    return random.random(), float(np.random.rand()), uuid.uuid4().hex


class Dice:
    def __init__(self) -> None:
        import numpy as np

        self.first = float(np.random.rand())

    def throw(self) -> tuple[float, float]:
        import numpy as np

        return self.first, float(np.random.rand())


def cache_folder(name: str) -> tuple[str, bool]:
    os.environ["HF_HOME"] = name
    import numpy as np

    return os.environ["HF_HOME"], np is not None


def preloaded(pool: Pool, function: Any) -> None:
    """Wait until the imports of the function are preloaded for its calls."""
    for _ in range(200):
        future = pool.submit(function)
        future.result()
        assert future.receipt is not None
        if future.receipt.preloaded:
            return
    pytest.fail("it is not preloaded")


def test_each_call_draws_its_own_numbers(pool: Pool) -> None:
    cold = list(pool.map(draw_for, range(10)))
    preloaded(pool, draw)
    warm = list(pool.map(draw_for, range(100)))
    for column in zip(*(cold + warm), strict=True):
        assert len(set(column)) == len(column)


def draw_for(_number: int) -> tuple[float, float, str]:
    return draw()


def test_a_seed_repeats_the_numbers(pool: Pool) -> None:
    seeded = pool.options(seed=1)
    preloaded(pool, draw)
    answers = [seeded.submit(draw).result() for _ in range(5)]
    assert len({answer[:2] for answer in answers}) == 1
    assert len({answer[2] for answer in answers}) == 5, "identifiers are never seeded"
    assert pool.options(seed=2).submit(draw).result()[:2] != answers[0][:2]
    assert answers[0][0] == random.Random(1).random()


def test_a_fresh_pool_gives_the_same_numbers_for_a_seed(pool: Pool) -> None:
    expected = pool.options(seed=1).submit(draw).result()[:2]
    with Pool(1, preload_learn=()) as without:
        assert without.options(seed=1).submit(draw).result()[:2] == expected
    with Pool(1, preload=["numpy"]) as always:
        future = always.options(seed=1).submit(draw)
        assert future.result()[:2] == expected
        assert future.receipt is not None
        assert future.receipt.preloaded


def test_instances_draw_their_own_and_a_seed_repeats_theirs(pool: Pool) -> None:
    def thrown(**options: Any) -> tuple[float, float]:
        with pool.instance(Dice, **options) as dice:
            value: tuple[float, float] = dice.throw().result()
            return value

    assert len({number for _ in range(4) for number in thrown()}) == 8
    assert len({thrown(seed=3) for _ in range(3)}) == 1


@pytest.mark.parametrize("seed", [-1, 1.0, "1", True, 1 << 63])
def test_a_seed_is_a_whole_number(pool: Pool, seed: object) -> None:
    with pytest.raises(InvalidRequest, match="seed must be a whole number"):
        pool.options(seed=seed)  # type: ignore[typeddict-item]


def test_a_call_that_sets_a_variable_sees_it(pool: Pool) -> None:
    for name in ("a", "b", "c"):
        assert pool.submit(cache_folder, name).result() == (name, True)
