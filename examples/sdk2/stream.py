"""A generator, a function with a start hook, and one that fails: `rp flash dev examples/sdk2/stream.py`."""

import os
from collections.abc import Iterator

import runpod
from runpod import App
from runpod.apps.errors import RemoteExecutionError

app = App("stream")
loaded: dict[str, str] = {}


@app.queue(cpu="cpu3c-1-2")
def words(text: str) -> Iterator[str]:
    yield from text.split()


@app.queue(cpu="cpu3c-1-2")
def shout(text: str) -> str:
    return loaded["prefix"] + text.upper()


@shout.init
def load() -> None:
    """Once, before the first call."""
    loaded["prefix"] = "> "


@app.queue(cpu="cpu3c-1-2")
def crash() -> None:
    os._exit(7)


@runpod.local_entrypoint
def main() -> None:
    for word in words.stream("one after the other"):
        print(word)
    print(shout.remote("loud"), shout.spawn("later").result())
    try:
        crash.remote()
    except RemoteExecutionError as error:
        print(type(error).__name__, "exit code 7" in str(error))
