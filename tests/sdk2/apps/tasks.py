"""A user's program for SDK 2.0: tasks."""

import os
import sys
import time

from runpod import App

app = App("shop")
CPU = "cpu3c-2-4"


@app.task(cpu=CPU)
def collect(values):
    print("collecting")
    return {"set": set(values)}


@app.task(cpu=CPU)
def ends(how):
    if how == "raise":
        raise ValueError("no such luck")
    if how == "exit":
        sys.exit(3)
    if how == "_exit":
        os._exit(7)
    if how == "segfault":
        os.kill(os.getpid(), 11)
    time.sleep(600)


@app.task(cpu=CPU)
def items(count):
    yield from range(count)
