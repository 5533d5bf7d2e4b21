"""A module of SDK 2.0 that cannot be imported."""

from runpod import App

app = App("shop")


@app.queue(cpu="cpu3c-2-4")
def unreachable():
    return 1


raise RuntimeError("no such model")
