"""Helpers to call instances of a live supervisor."""

import json
from pathlib import Path
from typing import Any

from flashpool.pool.calls import InstanceRequest, Outcome
from support.live import Live, Started

THING = """
class Thing:
    def __init__(self, start=0):
        self.n = start
    def inc(self, by=1):
        self.n += by
        return self.n
    def pid(self):
        import os
        return os.getpid()
    def sleep(self, seconds):
        import time
        time.sleep(seconds)
        return self.n
    async def nap(self, seconds):
        import asyncio
        await asyncio.sleep(seconds)
        return self.n
"""


def thing(*methods: str, base: str = THING) -> str:
    """Return the class with more methods, each given as a ``def`` at the left margin."""
    lines = "\n".join(methods).splitlines()
    return base + "\n".join("    " + line for line in lines) + "\n"


def begin(
    live: Live,
    name: str,
    method: str,
    *args: Any,
    code: str = THING,
    made_with: tuple[Any, ...] = (),
    stream: bool = False,
    environment: Any = None,
    want: dict[str, Any] | None = None,
    call: dict[str, Any] | None = None,
    **limits: Any,
) -> Started:
    """Start a call of a method."""
    request = {
        "execution_type": "class",
        "class_name": "Thing",
        "class_code": code,
        "constructor_args": list(made_with),
        "method_name": method,
        "args": list(args),
        "serialization_format": "json",
        "return_aggregate_stream": not stream,
    }
    given = {"code": code, "arguments": made_with, "concurrency": 32, **(want or {})}
    options: dict[str, Any] = {
        "body": json.dumps(request).encode(),
        "label": f"{name}.{method}",
        "want": InstanceRequest(instance=name, class_name="Thing", method=method, **given),
        "stream": stream,
        **(call or {}),
    }
    if environment is not None:
        options["provision"] = environment
    return live.start(code, name=method, call=options, **limits)


def run(live: Live, name: str, method: str, *args: Any, **options: Any) -> Outcome:
    return begin(live, name, method, *args, **options).wait()


def value(outcome: Outcome) -> Any:
    assert outcome.ok, outcome.error
    return json.loads(outcome.body)


def result(live: Live, name: str, method: str, *args: Any, **options: Any) -> Any:
    return value(run(live, name, method, *args, **options))


def instances(live: Live) -> dict[str, Any]:
    return {one.instance: one for one in live.stats().instances}


def closing(path: Path, *methods: str) -> str:
    """Return the class with methods that note their calls in a file."""
    return thing(
        f"def note(self, text):\n    open({str(path)!r}, 'a').write(text + '\\n')",
        "def __del__(self):\n    self.note('del')",
        *methods,
    )


def notes(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
