"""A worker with a handler of jobs: an app worker that loads differently, and lends its main thread.

    LOAD_JOBS    -> module -> handler -> LOADED
    REQUEST n    -> a job: `job_application`

The module is loaded while no loop runs, as if a program imported it.
"""

from __future__ import annotations

import asyncio
import inspect

from ... import app_messages, wire
from .. import output_routing
from ..apps import app_worker, loading
from . import binding
from .job_application import NUMBER, JobApplication
from .places import OnMain, OnThreads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ...channel import Channel
    from ..apps.exchange import Exchange
    from .places import Place


def live(channel: Channel, load: wire.Frame) -> None:
    """Load the handler, run jobs, and close."""
    app_worker.see_through(JobWorker(channel, load))


class JobWorker(app_worker.AppWorker):
    """The handler and its jobs."""

    def __init__(self, channel: Channel, load: wire.Frame) -> None:
        super().__init__(channel, load)
        self.main = OnMain(self.loop, super().turn)
        number = self.what["threads"]
        self.place: Place = self.main if number == 1 else OnThreads(self.loop, number)

    def begin(self) -> None:
        """Load the handler."""
        output_routing.route()
        handler, module = loading.load_handler(self.what)
        asyncio.set_event_loop(self.loop)  # an import that ran a loop has unset it
        awaits = inspect.iscoroutinefunction(handler)
        binding.bind(module, self.what["functions"], awaits=awaits)
        self.app = JobApplication(handler, self.place, self.resident)

    def turn(self, own: asyncio.Task[Any] | None = None) -> None:
        """Run the loop until it is stopped, then functions that wait for the main thread."""
        super().turn(own)
        self.main.work()

    def take(self, frame: wire.Frame) -> None:
        """Handle a frame; put a job's number, which identifies its output, into its scope."""
        super().take(frame)
        if frame.kind == wire.REQUEST:
            number, *_ = app_messages.unpack_request(frame.meta)
            self.link.exchanges[number].scope[NUMBER] = number

    def cancel(self, exchange: Exchange) -> None:
        """Cancel a job; nobody waits for its answer any more."""
        exchange.leave()
        super().cancel(exchange)
