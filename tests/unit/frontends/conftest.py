"""Fixtures that run a test on both event loops."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
import uvloop

from support.frontends.sockets import Run

# The first loop of a process creates a pipe that stays open.
uvloop.new_event_loop().close()


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    make = asyncio.new_event_loop if request.param == "asyncio" else uvloop.new_event_loop

    def run_on(main: Coroutine[Any, Any, None]) -> None:
        loop = make()
        try:
            loop.run_until_complete(asyncio.wait_for(main, 50))
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    return run_on
