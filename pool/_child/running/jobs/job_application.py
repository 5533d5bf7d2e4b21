"""A handler of jobs as an ASGI application: a job is a request, its records are the answer's body.

    body --> job --> handler(job) --> value      --> RESULT
                                  --> generator  --> ITEM, ITEM, ... RESULT (the list)
                                  --> exception, or a value that is not JSON --> FAILED

A job has exactly one last record, whatever the handler does, unless the process exits.
"""

from __future__ import annotations

import inspect
import json

from ... import job_messages
from ...serialization.exception_report import summary
from .. import invoke, output_routing
from ..outcome import failed, flush_output
from . import json_results
from .places import JobCall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from typing import Any

    from ..output_routing import CallOutput
    from ..resident_link import ResidentLink
    from .places import Place

    Message = dict[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]

#: The key of a job's number in its scope.
NUMBER = "flashpool.number"
#: Stands for the end of a generator.
_END = object()
_RESULT = "the result"
_CHARACTERS = 200_000


class JobApplication:
    """The application of one handler."""

    def __init__(self, handler: Callable[..., Any], place: Place, link: ResidentLink) -> None:
        self.handler = handler
        self.link = link
        self.awaits = inspect.iscoroutinefunction(handler)
        self.place = place

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Run one job to its end."""
        output = output_routing.begin(self.link, scope[NUMBER])
        answer = _JobAnswer(scope, send, output)
        try:
            body = await _whole(receive)
            try:
                job: dict[str, Any] = json.loads(body)
            except (ValueError, RecursionError) as error:
                words = f"the job's input cannot be read as JSON: {summary(error)}"
                await answer.fail("InvalidRequest", words)
            else:
                await self.run(answer, job)
        except BaseException as error:  # even SystemExit ends only the job
            await answer.fail(**_raised(error))
        finally:
            output.close()

    async def run(self, answer: _JobAnswer, job: dict[str, Any]) -> None:
        """Run the handler, and send its result; raise whatever the handler raises."""
        given = job["input"]
        if given is None:
            given = job["input"] = {}
        if self.awaits and not isinstance(given, dict):
            # The message of the handler that is not a coroutine; the coroutine would raise.
            words = f"Malformed input: expected dict, got {type(given).__name__}"
            await answer.finish({"success": False, "error": words})
            return
        call = JobCall(self.place)
        if self.awaits:
            value = await self.handler(job)
        else:
            value = await call.away(self.handler, job)
        if inspect.isawaitable(value):
            value = await value
        if type(value) is invoke.Generators:
            await answer.items(_stepped(value, call))
        elif type(value) is invoke.AsyncGenerators:
            await answer.items(value)
        else:
            await answer.finish(value)


async def _whole(receive: Receive) -> bytes:
    pieces: list[bytes] = []
    more = True
    while more:
        message = await receive()
        pieces.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(pieces)


async def _stepped(items: Any, call: JobCall) -> AsyncGenerator[Any, None]:
    """Yield a generator's items, running each step in the generator's place."""
    try:
        while (item := await call.away(next, items, _END)) is not _END:
            yield item
    finally:
        await call.away(items.close)


def _raised(error: BaseException) -> dict[str, Any]:
    _, _, _, told = failed(error)
    return {
        "error_type": str(told["error_type"]),
        "error": str(told["error"])[-_CHARACTERS:],
        "user": bool(told.get("user", False)),
    }


class _JobAnswer:
    """The answer to one job."""

    def __init__(self, scope: Message, send: Send, output: CallOutput) -> None:
        self.output = output
        options = dict(scope["headers"])
        self.send = send
        self.item_limit = int(options[job_messages.ITEM_LIMIT])
        self.result_limit = int(options[job_messages.RESULT_LIMIT])
        self.streams = options[job_messages.STREAM] == job_messages.YES
        self.lists = options[job_messages.LIST] == job_messages.YES
        self.begun = False
        self.over = False

    async def record(self, kind: int, body: bytes, *, last: bool) -> None:
        if last:
            flush_output()
            self.output.flush()
        if not self.begun:
            self.begun = True
            await self.send({"type": "http.response.start", "status": 200, "headers": []})
        self.over = last
        piece = job_messages.pack(kind, body)
        await self.send({"type": "http.response.body", "body": piece, "more_body": not last})

    async def finish(self, value: Any) -> None:
        """Send the result; a failure if it cannot be encoded."""
        try:
            body = json_results.encode(value, _RESULT)
        except json_results.NotJson as error:
            await self.fail("ResultNotSerializable", str(error))
            return
        await self.result(body)

    async def result(self, body: bytes) -> None:
        if len(body) > self.result_limit:
            await self.too_large(_RESULT, len(body), self.result_limit)
            return
        await self.record(job_messages.RESULT, body, last=True)

    async def too_large(self, what: str, size: int, limit: int) -> None:
        words = (
            f"{what} has {size} bytes as JSON, and {limit} can be sent. Return less, or write it to "
            "the volume or an object store and return where it is"
        )
        await self.fail("ResultTooLarge", words)

    async def fail(self, error_type: str, error: str, *, user: bool = False) -> None:
        """Send a failure, unless the last record was sent."""
        if self.over:
            return
        told = {"error_type": error_type, "error": error, "user": user}
        body = json.dumps(told).encode()
        await self.record(job_messages.FAILED, body, last=True)

    async def items(self, items: AsyncGenerator[Any, None]) -> None:
        """Send items; an item with `error` ends the job, as in the platform's own loop."""
        listed: list[bytes] = []
        size = number = 0
        try:
            async for item in items:
                if isinstance(item, dict) and item.get("error"):
                    await self.finish(item)
                    return
                body = json_results.encode(item, f"item {number}")
                number += 1
                if self.lists:
                    size += len(body) + 1
                    if size > self.result_limit:
                        await self.too_large(f"the list of {number} items", size, self.result_limit)
                        return
                    listed.append(body)
                if self.streams:
                    if len(body) > self.item_limit:
                        await self.too_large(f"item {number - 1}", len(body), self.item_limit)
                        return
                    await self.record(job_messages.ITEM, body, last=False)
        except json_results.NotJson as error:
            await self.fail("ResultNotSerializable", str(error))
            return
        finally:
            await items.aclose()
        await self.result(b"[" + b",".join(listed) + b"]")
