"""A live supervisor for tests: real zygotes, real workers, driven from the test's thread."""

import asyncio
import base64
import json
import os
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import cloudpickle

from flashpool.pool.calls import Call, CallLimits, Codec, Outcome
from flashpool.pool.config import PoolConfig
from flashpool.pool.stats import PoolStats, ZygoteStats
from flashpool.pool.supervisor.supervisor import Supervisor
from support.waiting import PATIENCE

#: The environment variables of zygotes and workers in tests.
WORKER_ENV = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "LANG": "C.UTF-8"}


class Sink:
    """Collects output, items and the outcome of a call."""

    wants_output = True

    def __init__(self, future: "asyncio.Future[Outcome]") -> None:
        self.future = future
        self.chunks: list[bytes] = []
        self.items: list[bytes] = []
        #: Progress of the call's environment.
        self.lines: list[str] = []
        self.on_item: Callable[[], None] = lambda: None

    def told(self, line: str) -> None:
        self.lines.append(line)

    def environment_ready(self) -> None:
        self.lines.append("ready")

    def output(self, chunk: bytes, *, stderr: bool = False) -> None:
        self.chunks.append(chunk)

    def item(self, body: bytes, fds: tuple[int, ...]) -> None:
        assert not fds
        self.items.append(body)
        self.on_item()

    def done(self, outcome: Outcome) -> None:
        self.future.set_result(outcome)


class Started:
    """A call that was submitted."""

    def __init__(self, live: "Live", call_id: int, sink: Sink) -> None:
        self.live = live
        self.id = call_id
        self.sink = sink

    def wait(self, seconds: float = 30) -> Outcome:
        outcome: Outcome = self.live.run(
            asyncio.wait_for(asyncio.shield(self.sink.future), seconds)
        )
        return outcome

    def wait_for_output(self, text: bytes, seconds: float = 30) -> bytes:
        """Wait until the call has printed this; return all of its output."""
        self.live.until(lambda: text in b"".join(self.sink.chunks), seconds)
        return b"".join(self.sink.chunks)

    @property
    def pid(self) -> int:
        """The worker's pid, once the call has a worker."""
        pid: int = self.live.until(self._pid)
        return pid

    def _pid(self) -> "int | None":
        (pid,) = (one.pid for one in self.live.stats().running if one.id == self.id)
        return pid


class Live:
    """A supervisor on a loop that runs only while the test waits."""

    def __init__(self, **config: Any) -> None:
        given = {"slots": 4, "grace_s": 0.3, "worker_env": WORKER_ENV, **config}
        self.loop = asyncio.new_event_loop()
        self.supervisor = Supervisor(PoolConfig(**given))
        self.run(self.supervisor.start())

    def run(self, waiting: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(waiting)

    def until(self, holds: Callable[[], Any], seconds: float = 30) -> Any:
        """Run the loop until the condition holds; return its value."""

        async def watch() -> Any:
            deadline = time.monotonic() + PATIENCE * seconds
            while not (value := holds()):
                assert time.monotonic() < deadline, f"it did not come about in {seconds} s"
                await asyncio.sleep(0.002)
            return value

        return self.run(watch())

    def ready(self) -> "Live":
        self.run(asyncio.wait_for(self.supervisor.wait_ready(), 30))
        return self

    def start(
        self, code: str, *args: Any, name: str = "f", call: Any = None, **limits: Any
    ) -> Started:
        """Submit the function of this name in the source."""
        made = Call(
            codec=Codec.FLASH,
            body=request(code, *args, name=name),
            label=name,
            function_key=code,
            source=json.dumps(code).encode(),
            limits=CallLimits(**limits),
        )
        sink = Sink(self.loop.create_future())
        return Started(self, self.supervisor.submit(replace(made, **(call or {})), sink), sink)

    def call(self, code: str, *args: Any, **options: Any) -> Outcome:
        """Submit a function and wait for its outcome."""
        return self.start(code, *args, **options).wait()

    def value(self, code: str, *args: Any, **options: Any) -> Any:
        """Return the result of a call that must succeed."""
        return value(self.call(code, *args, **options))

    def stats(self) -> PoolStats:
        return self.supervisor.stats()

    def zygote(self, profile: int = 0) -> ZygoteStats:
        (one,) = (z for z in self.stats().zygotes if z.profile == profile and z.state == "ready")
        return one

    def close(self) -> None:
        self.run(self.supervisor.stop())
        self.loop.close()


def request(code: str, *args: Any, name: str = "f") -> bytes:
    """Build a FunctionRequest."""
    pickled = [base64.b64encode(cloudpickle.dumps(one)).decode() for one in args]
    return json.dumps({"function_name": name, "function_code": code, "args": pickled}).encode()


def value(outcome: Outcome) -> Any:
    """Return the result of a successful outcome."""
    assert outcome.ok, outcome.error
    return cloudpickle.loads(base64.b64decode(outcome.body))


def alive(pid: int) -> bool:
    """Return whether the process exists and is not a zombie."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
