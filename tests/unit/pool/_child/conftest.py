"""`worker`: runs a request in a fork of a lean interpreter and says how it ended."""

from collections.abc import Iterator

import pytest

from support.lean import LeanWorker


@pytest.fixture(scope="session", autouse=True)
def worker() -> Iterator[LeanWorker]:
    """One worker for all modules here; started in a module, it would count as a leak of it."""
    worker = LeanWorker()
    yield worker
    worker.close()
