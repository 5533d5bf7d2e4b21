"""A generator, a function with a start hook, and one that fails: `rp flash dev examples/sdk2/stream.py`."""

import runpod
from runpod import App

app = App("stream")
prefix = ""


@app.queue(cpu="cpu3c-1-2")
def words(text: str):
    yield from text.split()


@app.queue(cpu="cpu3c-1-2")
def shout(text: str):
    return prefix + text.upper()


@shout.init
def load():
    """Once, before the first call."""
    global prefix
    prefix = "> "


@app.queue(cpu="cpu3c-1-2")
def crash():
    import os

    os._exit(7)


@runpod.local_entrypoint
def main():
    for word in words.stream("one after the other"):
        print(word)
    print(shout.remote("loud"), shout.spawn("later").result())
    try:
        crash.remote()
    except Exception as error:
        print(type(error).__name__, "exit code 7" in str(error))
