"""Calls whose output the log repeats (`FLASHPOOL_LOG_OUTPUT_KB_S`)."""

from __future__ import annotations

import asyncio

from flashpool.pool import call_ids
from flashpool.pool.backend import Backend
from flashpool.pool.calls import Outcome

from .call_handles import CallHandle, Prepared
from .logs import OutputLines


class LoggedCallHandle(CallHandle):
    """One that passes what its call writes to the log."""

    __slots__ = ("_lines", "_rate")

    wants_output = True

    def __init__(
        self,
        pool: Backend,
        outcome: asyncio.Future[Outcome],
        prepared: Prepared,
        bytes_a_second: int,
    ) -> None:
        super().__init__(pool, outcome, prepared)
        self._rate = bytes_a_second
        #: Made with the first piece: the call has its id by then.
        self._lines: OutputLines | None = None

    def output(self, chunk: bytes, *, stderr: bool = False) -> None:
        """It wrote that."""
        if self._lines is None:
            call, name = self._prepared.call, call_ids.name_of(self.call_id)
            self._lines = OutputLines(call.label, name, call.request_id, self._rate)
        self._lines.feed(chunk)

    def done(self, outcome: Outcome) -> None:
        """The end."""
        if self._lines is not None:
            self._lines.close()
        super().done(outcome)
