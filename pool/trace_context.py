"""Where a call is in a distributed trace, in the words of W3C Trace Context.

A front-end that traces calls gives each one its place. The call's process has that place in its
environment, where OpenTelemetry's SDKs and the programs that the call starts look for it.
"""

from __future__ import annotations

from typing import Final, NamedTuple

#: Variables of which each call has its own value.
VARIABLES: Final = ("TRACEPARENT", "TRACESTATE")


class TraceContext(NamedTuple):
    """One place in a trace."""

    #: ``00-<trace id>-<span id>-<flags>``.
    traceparent: str
    tracestate: str = ""

    @property
    def trace_id(self) -> str:
        """The id that all spans of the trace have in common."""
        return self.traceparent.split("-")[1]

    def variables(self) -> dict[str, str]:
        """As environment variables of the call's process."""
        return {name: value for name, value in zip(VARIABLES, self, strict=True) if value}
