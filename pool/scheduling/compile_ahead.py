"""Decides which sources a zygote compiles ahead of the calls that bring them.

A function that is called repeatedly brings the same source each time, and compiling it is a fifth
of a small call's work. After a few runs the source is compiled in the zygote, where all workers
forked from then on find it. Not earlier: most sources come once, and a source that breaks the
compiler must break a worker first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Final

from flashpool.pool._child.wire import SOURCE_LIMIT, SOURCES

__all__ = ["SOURCE_LIMIT", "CompileAhead"]

#: Calls of a source that have ended in a result before it is compiled ahead.
RUNS: Final = 3
#: Sources that are counted at once.
COUNTED: Final = 512


class CompileAhead:
    """The sources of one zygote."""

    def __init__(self) -> None:
        self._runs: OrderedDict[Hashable, int] = OrderedDict()
        #: The sources that the zygote keeps: the oldest is dropped first.
        self.compiled: OrderedDict[Hashable, None] = OrderedDict()

    def ran(self, source: Hashable) -> bool:
        """Count a successful call; return True if its source must be compiled now."""
        if source in self.compiled:
            return False
        runs = self._runs.pop(source, 0) + 1
        if runs < RUNS:
            self._runs[source] = runs
            if len(self._runs) > COUNTED:
                self._runs.popitem(last=False)
            return False
        self.compiled[source] = None
        if len(self.compiled) > SOURCES:
            self.compiled.popitem(last=False)
        return True
