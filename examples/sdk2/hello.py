"""A queue function, from `rp flash dev examples/sdk2/hello.py`: SDK 2.0's client runs it."""

import runpod
from runpod import App

app = App("hello")


@app.queue(cpu="cpu3c-1-2")
def hello(name: str) -> str:
    print(f"greeting {name}")
    return f"hello {name}!"


@runpod.local_entrypoint
def main() -> None:
    """Runs on your machine; `hello` runs in a process of its own, on the worker."""
    print(hello.remote("world"))
