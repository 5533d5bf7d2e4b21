from collections.abc import Callable, Iterator
from typing import Any

import pytest

from support.live import Live


@pytest.fixture
def make_live() -> Iterator[Callable[..., Live]]:
    """Create supervisors, and stop them whatever the test did to them."""
    made: list[Live] = []

    def make(**config: Any) -> Live:
        made.append(Live(**config))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def live(make_live: Callable[..., Live]) -> Live:
    return make_live().ready()
