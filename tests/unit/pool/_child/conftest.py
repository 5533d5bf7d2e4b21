"""`worker`: runs a request in a fork of a lean interpreter and says how it ended."""

from collections.abc import Iterator

import pytest

from support.lean import LeanWorker


@pytest.fixture(scope="session", autouse=True)
def worker() -> Iterator[LeanWorker]:
    """For all modules of this folder: begun within one, it would count as left behind by that."""
    worker = LeanWorker()
    yield worker
    worker.close()
