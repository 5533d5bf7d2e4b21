"""A user's program for SDK 2.0: a function that calls a function of another endpoint."""

import os

import runpod
from runpod import App

app = App("nested")


@app.queue(cpu="cpu3c-2-4", env={"TAG": "t1"})
def inner(number):
    return [os.environ["TAG"], number]


@app.queue(cpu="cpu3c-2-4")
def outer(number):
    return inner.remote(number + 1)


@runpod.local_entrypoint
def main():
    print(outer.remote(1))
