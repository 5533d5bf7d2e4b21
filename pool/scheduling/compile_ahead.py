"""Decides which sources a zygote compiles ahead of the calls that bring them.

A function that is called repeatedly brings the same source each time, and compiling the source is a
fifth of the work of a small call. After a few runs the zygote compiles it, and all workers forked
from then on find it compiled. Not earlier: most sources come once, and a source that breaks the
compiler must break a worker first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Final

from flashpool.pool._child.wire import SOURCE_LIMIT, SOURCES

__all__ = ["SOURCE_LIMIT", "CompileAhead"]

#: How many successful calls a source needs before it is compiled ahead.
RUNS: Final = 3
#: Most sources that are counted at once.
COUNTED: Final = 512


class CompileAhead:
    """The sources of one zygote."""

    def __init__(self) -> None:
        self._runs: OrderedDict[Hashable, int] = OrderedDict()
        #: The sources that the zygote keeps, the oldest first, which is dropped first.
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
