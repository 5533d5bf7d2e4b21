"""The seam between generations of the client for calls: what one of them needs beyond a plain call.

    request, Call --adapted--> Call --> pool --> Outcome --again--> Call, once more, or None: the end

`Service` knows no generation. Each that needs anything is a package of `contracts`, and
`assembly` is the one place that chooses.
"""

from __future__ import annotations

from typing import Protocol

from flashpool.pool.calls import Call, Outcome

from .schema import FunctionRequest


class CallAdapter(Protocol):
    """What a generation of the client adds to calls. Its methods are called for each of them."""

    def adapted(self, request: FunctionRequest, call: Call) -> Call:
        """The call, or a changed copy of it."""

    def again(self, call: Call, outcome: Outcome) -> Call | None:
        """What to run in place of a call that ended so; None: that is its end."""
