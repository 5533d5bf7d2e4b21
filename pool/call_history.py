"""The latest finished calls, for look-ups by id; bounded in number and bytes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from typing import Final, NamedTuple

from flashpool.pool.calls import Call, Outcome, Receipt

#: Most calls that are remembered, and most bytes of their output.
CALLS: Final = 1000
OUTPUT_BYTES: Final = 16 * 1024 * 1024
#: Most characters that are kept of an error.
_ERROR: Final = 4000


class EndedCall(NamedTuple):
    """A finished call."""

    number: int
    request_id: str
    label: str
    instance: str | None
    receipt: Receipt
    ended_at: float
    error_type: str | None = None
    from_user: bool = False
    error: str | None = None
    #: Whether the call wrote anything; the output may be dropped by now.
    wrote: bool = False


class CallHistory:
    """Remembers the latest finished calls."""

    def __init__(self) -> None:
        #: Fields of `EndedCall`; for successful calls without output a plain tuple, which is
        #: cheaper.
        self.recent: deque[tuple[object, ...]] = deque(maxlen=CALLS)
        self._outputs: dict[int, bytes] = {}
        self._size = 0

    def keep(self, number: int, call: Call, outcome: Outcome) -> None:
        """Remember a call that failed or wrote something."""
        want = call.want
        self.recent.append(
            EndedCall(
                number,
                call.request_id,
                call.label,
                None if want is None else want.instance,
                outcome.receipt,
                time.time(),
                outcome.error_type,
                outcome.from_user,
                outcome.error and outcome.error[:_ERROR],
                bool(outcome.output),
            )
        )
        if outcome.output:
            self._keep_output(number, outcome.output)

    def _keep_output(self, number: int, output: bytes) -> None:
        self._outputs[number] = output
        self._size += len(output)
        while self._size > OUTPUT_BYTES or len(self._outputs) > CALLS:
            self._size -= len(self._outputs.pop(next(iter(self._outputs))))

    def __iter__(self) -> Iterator[EndedCall]:
        """Iterate over the calls, newest first."""
        return (EndedCall(*one) for one in reversed(self.recent))  # type: ignore[arg-type]

    def get(self, number: int) -> EndedCall | None:
        """Return the call with this number."""
        return next((one for one in self if one.number == number), None)

    def output_of(self, number: int) -> bytes | None:
        """Return the output of a call; None if it is not kept."""
        return self._outputs.get(number)
