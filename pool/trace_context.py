"""The place of a call in a distributed trace, in the terms of W3C Trace Context.

A front-end that traces calls gives each call its place. The call's environment variables hold that
place, where OpenTelemetry's SDKs and programs that the call starts read it.
"""

from __future__ import annotations

from typing import Final, NamedTuple

#: Variables of which each call has its own value.
VARIABLES: Final = ("TRACEPARENT", "TRACESTATE")


class TraceContext(NamedTuple):
    """A place in a trace."""

    #: ``00-<trace id>-<span id>-<flags>``.
    traceparent: str
    tracestate: str = ""

    @property
    def trace_id(self) -> str:
        """The id that all spans of the trace have in common."""
        return self.traceparent.split("-")[1]

    def variables(self) -> dict[str, str]:
        """Return the place as environment variables for the call's process."""
        return {name: value for name, value in zip(VARIABLES, self, strict=True) if value}
